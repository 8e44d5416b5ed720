package hstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Pair starts two servers that reach each other over real TLS on loopback, with
// certificates of an authority of the test's own. Their names are their
// addresses, so that no name has to be looked up.
func Pair(t testing.TB, options ...Option) (a, b *Server) {
	t.Helper()
	w := newAuthority(t)
	return w.start(options), w.start(options)
}

// Trio is Pair with a third server.
func Trio(t testing.TB, options ...Option) (a, b, c *Server) {
	t.Helper()
	w := newAuthority(t)
	return w.start(options), w.start(options), w.start(options)
}

// authority signs the certificates of a test's servers.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t: t, key: key, cert: cert, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// certificate is one for the loopback address.
func (w *authority) certificate() tls.Certificate {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test server"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, w.cert, key.Public(), w.key)
	if err != nil {
		w.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (w *authority) start(options []Option) *Server {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	federate := func(o *homeserver.Options) {
		o.Federation.Enabled, o.Federation.AllowPrivate, o.Federation.ExtraCAs = true, true, w.pem
	}
	conf := &tls.Config{Certificates: []tls.Certificate{w.certificate()}, MinVersion: tls.VersionTLS12}
	return start(w.t, matrix.ServerName(l.Addr().String()), l, conf, append([]Option{federate}, options...))
}
