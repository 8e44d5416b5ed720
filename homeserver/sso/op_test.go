package sso_test

import (
	"crypto/tls"
	"encoding/json"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/sso"
)

// op is a real OpenID Connect provider over TLS.
type op struct {
	issuer string
	ln     net.Listener
	srv    *http.Server
	people map[string]*storage.User
	conf   *tls.Config
	t      testing.TB
	client string
}

const secret = "the client's secret"

// providers starts OpenID Connect providers whose certificates one authority signs.
type providers struct {
	authority *httpapitest.Authority
}

// newOP listens; serve makes it answer.
func (ps *providers) newOP(t testing.TB) *op {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &op{
		t: t, ln: ln, issuer: "https://" + ln.Addr().String(), client: "carillon-" + ln.Addr().String(),
		conf: &tls.Config{Certificates: []tls.Certificate{ps.authority.Certificate("127.0.0.1")}, MinVersion: tls.VersionTLS12},
		people: map[string]*storage.User{
			"id-anna": {ID: "id-anna", Username: "Anna.Test", Password: "pw", FirstName: "Anna", LastName: "Test", Email: "anna@corp.example", EmailVerified: true},
			"id-bo":   {ID: "id-bo", Username: "bo", Password: "pw", FirstName: "伯", LastName: "陈", Email: "bo@corp.example", EmailVerified: true},
		},
	}
	t.Cleanup(func() { ln.Close() })
	return o
}

// setup is held while a provider is set up: the example sets the logger of the whole process.
var setup sync.Mutex

func (o *op) serve(callback string) {
	o.t.Helper()
	b, err := json.Marshal(o.people)
	if err != nil {
		o.t.Fatal(err)
	}
	path := filepath.Join(o.t.TempDir(), "people.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		o.t.Fatal(err)
	}
	users, err := storage.StoreFromFile(path)
	if err != nil {
		o.t.Fatal(err)
	}
	setup.Lock()
	defer setup.Unlock()
	known := map[string]*storage.Client{o.client: storage.WebClient(o.client, secret, callback)}
	router := exampleop.SetupServer(o.issuer, storage.NewStorageWithClients(users, known), slog.New(slog.DiscardHandler), false)
	o.srv = &http.Server{Handler: router, ErrorLog: stdlog.New(io.Discard, "", 0)}
	ln := tls.NewListener(o.ln, o.conf)
	go o.srv.Serve(ln)
	o.t.Cleanup(func() { o.srv.Close() })
}

// world is a server whose people sign in at a provider.
type world struct {
	*hstest.Server
	t     testing.TB
	ps    *providers
	op    *op
	ahead time.Duration
	mu    sync.Mutex
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(w.ahead)
}

func (w *world) move(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ahead += d
}

// open starts a server with one provider, changed by change, and the provider itself.
func open(t testing.TB, change func(*sso.Provider), options ...hstest.Option) *world {
	t.Helper()
	w := &world{t: t, ps: &providers{authority: httpapitest.NewAuthority(t)}}
	w.op = w.ps.newOP(t)
	p := w.provider("company", w.op)
	if change != nil {
		change(&p)
	}
	w.Server = hstest.New(t, append([]hstest.Option{func(o *homeserver.Options) {
		hstest.OAuth(o)
		o.SignIn.OAuth = false
		o.SignIn.Providers = []sso.Provider{p}
		o.SignIn.ExtraCAs = w.ps.authority.PEM
		o.Now = w.now
	}}, options...)...)
	w.op.serve(w.URL + "/_carillon/sso/callback/company")
	return w
}

func (w *world) provider(id string, o *op) sso.Provider {
	return sso.Provider{
		ID: id, Name: "Corp " + id, Issuer: o.issuer, ClientID: o.client, ClientSecret: secret, Scopes: []string{"profile", "email"},
		Localpart: "{{.preferred_username}}", DisplayName: "{{.name}}", Create: true,
	}
}

// browser is a browser that trusts the provider.
func (w *world) browser() *hstest.Browser {
	b := w.Browser("en")
	b.Trust(w.ps.authority.PEM)
	return b
}

// atProvider signs in at the provider, where the page leads, and comes back.
func (w *world) atProvider(b *hstest.Browser, p *hstest.Page, name string) *hstest.Page {
	w.t.Helper()
	if !strings.HasPrefix(p.To, "https://") {
		w.t.Fatalf("%s leads to no provider: %d %q %s", p.URL, p.Status, p.To, p.Body)
	}
	return w.backFrom(b, w.loginAt(b, p.To, name))
}

// loginAt is the sign-in at the provider: the last page of it, which redirects to the server.
func (w *world) loginAt(b *hstest.Browser, to, name string) *hstest.Page {
	w.t.Helper()
	p := b.Get(to)
	if len(p.Forms) == 0 {
		w.t.Fatalf("the provider shows no form: %d %s", p.Status, p.Body)
	}
	for text := range p.Forms[0].Buttons {
		return p.Press(text, "username", name, "password", "pw")
	}
	w.t.Fatalf("the provider's form has no button: %s", p.Body)
	return nil
}

func (w *world) backFrom(b *hstest.Browser, p *hstest.Page) *hstest.Page {
	w.t.Helper()
	if !strings.HasPrefix(p.To, w.URL+"/_carillon/sso/callback/") {
		w.t.Fatalf("the provider does not send the browser back: %d %q %s", p.Status, p.To, p.Body)
	}
	return b.Get(p.To)
}
