package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"
	"golang.org/x/crypto/acme"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
)

// Times of a shutdown; together they stay under the ten seconds that service
// managers and people are promised.
const (
	partTime     = 4 * time.Second // for one part: its requests and its background work
	shutdownTime = 9 * time.Second // for everything
)

// listener is one open port.
type listener struct {
	name string
	ln   net.Listener
	srv  *http.Server
	park func(net.Listener) *httpapi.Listener // of the port where clients wait
}

// listen opens a port at once, so that a port in use is known before anything is started.
func listen(name, addr, cert, key string, auto *automatic) (*listener, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listening for %s: %w", name, err)
	}
	tlsConfig := &tls.Config{NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12}
	switch {
	case cert != "":
		certs, err := newCertificates(cert, key)
		if err != nil {
			ln.Close()
			return nil, fmt.Errorf("listening for %s: %w", name, err)
		}
		tlsConfig.GetCertificate = certs.get
	case auto != nil:
		tlsConfig.GetCertificate = auto.get
		tlsConfig.NextProtos = append(tlsConfig.NextProtos, acme.ALPNProto)
	default:
		return &listener{name: name, ln: ln}, nil
	}
	return &listener{name: name, ln: tls.NewListener(ln, tlsConfig)}, nil
}

// serve answers requests until shut; failed is called when the port breaks before.
func (l *listener) serve(h http.Handler, failed func(error)) {
	l.srv = &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 15 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          nil,
	}
	l.srv.ErrorLog = newHTTPLog(l.name)
	log.WithFields(log.Fields{"for": l.name, "address": l.ln.Addr().String()}).Info("listening")
	ln := l.ln
	if l.park != nil {
		parking := l.park(ln)
		ln, l.srv.ConnContext = parking, parking.ConnContext
	}
	go func() {
		if err := l.srv.Serve(ln); err != nil && !errors.Is(err, http.ErrServerClosed) {
			failed(fmt.Errorf("serving %s: %w", l.name, err))
		}
	}()
}

// shut stops listening and waits for the requests that are being answered.
func (l *listener) shut(ctx context.Context) {
	if l.srv == nil {
		l.ln.Close()
		return
	}
	if err := l.srv.Shutdown(ctx); err != nil {
		log.WithField("for", l.name).Warn("requests were cut off at shutdown")
		l.srv.Close()
	}
}

// certificates gives the certificate of two files and notices when they change.
type certificates struct {
	certFile, keyFile string

	mu      sync.Mutex
	cert    *tls.Certificate
	changed time.Time // of the file, when it was read
	looked  time.Time
}

func newCertificates(certFile, keyFile string) (*certificates, error) {
	c := &certificates{certFile: certFile, keyFile: keyFile}
	return c, c.load()
}

func (c *certificates) load() error {
	info, err := os.Stat(c.certFile)
	if err != nil {
		return fmt.Errorf("reading the certificate: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("reading the certificate: %w", err)
	}
	c.cert, c.changed, c.looked = &cert, info.ModTime(), time.Now()
	return nil
}

// get looks at the file once a minute at most. A new one that cannot be read (it is
// perhaps half written) leaves the old in use.
func (c *certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) > time.Minute {
		c.looked = time.Now()
		if info, err := os.Stat(c.certFile); err == nil && !info.ModTime().Equal(c.changed) {
			if err := c.load(); err != nil {
				log.WithError(err).Warn("the new certificate cannot be used, the old one stays")
			}
		}
	}
	return c.cert, nil
}
