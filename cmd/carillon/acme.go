package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	log "github.com/sirupsen/logrus"
	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"

	"github.com/carillon-chat/carillon/config"
)

// automatic obtains certificates from an ACME authority and renews them. They are kept in data_dir/acme.
// Spec: RFC 8555, RFC 8737
type automatic struct {
	*autocert.Manager
	names []string
	http  *http.Server // of the challenges by plain HTTP; nil: none
}

// newAutomatic prepares certificates as the configuration wants them; nil if it wants none.
func newAutomatic(cfg *config.Config) (*automatic, error) {
	a := &cfg.ACME
	if !a.Enabled {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if a.CAFile != "" {
		pem, err := os.ReadFile(a.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading acme.ca_file: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("acme.ca_file %s holds no PEM certificate", a.CAFile)
		}
	}
	transport, _ := http.DefaultTransport.(*http.Transport)
	transport = transport.Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	m := &autocert.Manager{
		Prompt: autocert.AcceptTOS, // acme.accept_terms is checked with the configuration
		Cache:  autocert.DirCache(filepath.Join(cfg.DataDir, "acme")),
		Email:  a.Email,
		Client: &acme.Client{DirectoryURL: a.Directory, HTTPClient: &http.Client{Transport: transport, Timeout: time.Minute}, UserAgent: "carillon"},
	}
	if a.KeyID != "" {
		key, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(a.Key.Value(), "="))
		if err != nil {
			return nil, fmt.Errorf("acme.key is not base64url: %w", err)
		}
		m.ExternalAccountBinding = &acme.ExternalAccountBinding{KID: a.KeyID, Key: key}
	}
	names := cfg.CertificateNames()
	own := autocert.HostWhitelist(names...)
	m.HostPolicy = func(ctx context.Context, host string) error {
		if h, _, err := net.SplitHostPort(host); err == nil { // by plain HTTP it may come with a port
			host = h
		}
		return own(ctx, host)
	}
	c := &automatic{Manager: m, names: names}
	if a.HTTPListen != "" {
		c.http = &http.Server{
			Addr: a.HTTPListen, Handler: m.HTTPHandler(nil), ReadHeaderTimeout: 15 * time.Second, IdleTimeout: time.Minute,
			ErrorLog: newHTTPLog("acme"),
		}
	}
	return c, nil
}

// get gives the certificate for a connection. Other servers come to federation by the name that they have looked up,
// or without any: they get the first.
func (c *automatic) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if hello.ServerName == "" {
		named := *hello
		named.ServerName = c.names[0]
		hello = &named
	}
	cert, err := c.GetCertificate(hello)
	if err != nil && hello.Context().Err() == nil && !strings.Contains(err.Error(), "not configured in HostWhitelist") {
		log.WithError(err).WithField("name", hello.ServerName).Warn("no certificate could be had")
	}
	return cert, err //nolint:wrapcheck // for crypto/tls
}

// start opens the port of the challenges and asks for the certificates before anybody needs them.
func (c *automatic) start(ctx context.Context, failed func(error)) error {
	if c.http != nil {
		ln, err := net.Listen("tcp", c.http.Addr)
		if err != nil {
			return fmt.Errorf("listening for acme.http_listen: %w", err)
		}
		go func() {
			if err := c.http.Serve(ln); err != nil && !errors.Is(err, http.ErrServerClosed) {
				failed(fmt.Errorf("serving acme.http_listen: %w", err))
			}
		}()
	}
	go func() {
		for _, name := range c.names {
			hello := &tls.ClientHelloInfo{ServerName: name, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}}
			if _, err := c.GetCertificate(hello); err != nil && ctx.Err() == nil {
				log.WithError(err).WithField("name", name).Warn("no certificate could be had; it is tried again when somebody connects")
			} else if err == nil {
				log.WithField("name", name).Info("the certificate is there")
			}
		}
	}()
	return nil
}

func (c *automatic) close() {
	if c != nil && c.http != nil {
		c.http.Close()
	}
}
