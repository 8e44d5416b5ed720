package hstest

import (
	"crypto/tls"
	"testing"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/test/freeport"
)

// Pair starts two servers that reach each other over real TLS on loopback, with
// certificates of an authority of the test's own. Their names are their
// addresses, so that no name has to be looked up.
func Pair(t testing.TB, options ...Option) (a, b *Server) {
	t.Helper()
	w := newNetwork(t)
	return w.start(options), w.start(options)
}

// Trio is Pair with a third server.
func Trio(t testing.TB, options ...Option) (a, b, c *Server) {
	t.Helper()
	w := newNetwork(t)
	return w.start(options), w.start(options), w.start(options)
}

// Among is one server that federates with others whose certificates the same authority signs.
func Among(t testing.TB, authority *httpapitest.Authority, options ...Option) *Server {
	t.Helper()
	return (&network{t, authority}).start(options)
}

// network starts servers whose certificates an authority of the test's own signs.
type network struct {
	t         testing.TB
	authority *httpapitest.Authority
}

func newNetwork(t testing.TB) *network {
	t.Helper()
	return &network{t, httpapitest.NewAuthority(t)}
}

func (w *network) start(options []Option) *Server {
	w.t.Helper()
	l := freeport.Listen(w.t)
	federate := func(o *homeserver.Options) {
		o.Federation.Enabled, o.Federation.AllowPrivate, o.Federation.ExtraCAs = true, true, w.authority.PEM
	}
	conf := &tls.Config{Certificates: []tls.Certificate{w.authority.Certificate("127.0.0.1")}, MinVersion: tls.VersionTLS12}
	return start(w.t, matrix.ServerName(l.Addr().String()), l, conf, append([]Option{federate}, options...))
}
