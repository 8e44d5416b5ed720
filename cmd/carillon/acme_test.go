package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	stdlog "log"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/letsencrypt/challtestsrv"
	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"

	"github.com/carillon-chat/carillon/config"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/test/freeport"
)

// authority starts a real ACME server that finds every name on this machine, at the ports given. It wants an
// account that it knows.
func authority(t *testing.T, httpPort, tlsPort int) (directory string, trust []byte, roots *x509.CertPool) {
	t.Helper()
	quiet := stdlog.New(io.Discard, "", 0)
	dns := freeport.Address(t)
	names, err := challtestsrv.New(challtestsrv.Config{DNSAddrs: []string{dns}, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	names.SetDefaultDNSIPv4("127.0.0.1")
	names.SetDefaultDNSIPv6("")
	go names.Run()
	t.Cleanup(names.Shutdown)
	store := db.NewMemoryStore()
	if err := store.AddExternalAccountKeyByID("kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"); err != nil {
		t.Fatal(err)
	}
	signer := ca.New(quiet, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {ValidityPeriod: 0}})
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_WFE_NONCEREJECT", "0")
	front := wfe.New(quiet, store, va.New(quiet, httpPort, tlsPort, true, dns, store), signer, []string{"authority.test"}, true, true, 1, 1)
	own := httpapitest.NewAuthority(t)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{own.Certificate("127.0.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: front.Handler(), ErrorLog: quiet}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	roots = x509.NewCertPool()
	roots.AddCert(signer.GetRootCert(0).Cert)
	return "https://" + ln.Addr().String() + wfe.DirectoryPath, own.PEM, roots
}

// TestCertificatesByThemselves: a real authority proves the name at the listening port itself or by plain HTTP, the
// certificate serves clients and federation, and is there again after a restart without asking.
func TestCertificatesByThemselves(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain http %t", plain), func(t *testing.T) {
			dir := t.TempDir()
			httpPort, tlsPort := freeport.Number(t), freeport.Number(t)
			directory, trust, roots := authority(t, httpPort, tlsPort)
			ca := filepath.Join(dir, "ca.pem")
			if err := os.WriteFile(ca, trust, 0o600); err != nil {
				t.Fatal(err)
			}
			cfg := &config.Config{ServerName: "chat.example.test", DataDir: dir, Listen: fmt.Sprintf("127.0.0.1:%d", tlsPort)}
			cfg.ACME = config.ACME{
				Enabled: true, AcceptTerms: true, Directory: directory, CAFile: ca,
				KeyID: "kid-1", Key: "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W",
			}
			if plain {
				cfg.ACME.HTTPListen = fmt.Sprintf("127.0.0.1:%d", httpPort)
				cfg.Listen = freeport.Address(t) // not where the authority looks
			}
			serial := serveOnce(t, cfg, roots)
			cfg.ACME.Directory = "https://127.0.0.1:1/nothing"
			if again := serveOnce(t, cfg, roots); again != serial {
				t.Errorf("another certificate after a restart: %s, was %s", again, serial)
			}
		})
	}
}

// serveOnce serves with automatic certificates, looks at the certificate from outside, and stops.
func serveOnce(t *testing.T, cfg *config.Config, roots *x509.CertPool) (serial string) {
	t.Helper()
	auto, err := newAutomatic(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := listen("clients", cfg.Listen, "", "", auto)
	if err != nil {
		t.Fatal(err)
	}
	l.serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }), func(err error) { t.Error(err) })
	defer l.srv.Close()
	if err := auto.start(t.Context(), func(err error) { t.Error(err) }); err != nil {
		t.Fatal(err)
	}
	defer auto.close()
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "chat.example.test"}}}
	var resp *http.Response
	// A first attempt that fails, perhaps since the authority was not ready, is repeated after a minute.
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if resp, err = client.Get("https://" + cfg.Listen + "/"); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	// A name that is not ours gets none.
	_, err = tls.Dial("tcp", cfg.Listen, &tls.Config{RootCAs: roots, ServerName: "other.example.test"})
	if err == nil {
		t.Error("a certificate for a strange name")
	}
	// Who names nobody gets the first.
	c, err := tls.Dial("tcp", cfg.Listen, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // what is shown is looked at
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.ConnectionState().PeerCertificates[0]; got.VerifyHostname("chat.example.test") != nil {
		t.Errorf("without a name: a certificate for %v", got.DNSNames)
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "acme")); err != nil {
		t.Error(err)
	}
	return resp.TLS.PeerCertificates[0].SerialNumber.String()
}
