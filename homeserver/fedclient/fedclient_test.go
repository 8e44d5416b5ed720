package fedclient_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/serverkeys"
	"github.com/matrix-org/gomatrixserverlib"
)

// authority certifies test servers.
type authority struct {
	t *testing.T
	*httpapitest.Authority
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	return &authority{t, httpapitest.NewAuthority(t)}
}

// serve starts a TLS server for a name and returns its address.
func (a *authority) serve(h http.Handler, names ...string) string {
	a.t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{a.Certificate(names...)}}
	srv.StartTLS()
	a.t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// network sends dials of "host:port" to the addresses given and counts them.
type network struct {
	mu    sync.Mutex
	to    map[string]string
	dials map[string]int
}

func (n *network) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	n.mu.Lock()
	to, ok := n.to[addr]
	if n.dials == nil {
		n.dials = map[string]int{}
	}
	n.dials[addr]++
	n.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("nothing listens on %s", addr)
	}
	return new(net.Dialer).DialContext(ctx, network, to)
}

// noDNS answers every look-up at once with a failure.
func noDNS() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no name service in tests")
	}}
}

func newClient(t *testing.T, a *authority, n *network, now matrix.Now) (*fedclient.Client, *serverkeys.Own) {
	t.Helper()
	own, err := serverkeys.Load(t.TempDir(), "here.test")
	if err != nil {
		t.Fatal(err)
	}
	c, err := fedclient.New(fedclient.Options{Own: own, ExtraCAs: a.PEM, Dial: n.dial, Resolver: noDNS(), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, own
}

func versionHandler(hits *atomic.Int64, hosts *sync.Map) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/_matrix/federation/v1/version" {
			http.NotFound(w, r)
			return
		}
		hits.Add(1)
		hosts.Store("last", r.Host)
		_, _ = io.WriteString(w, `{"server":{"name":"far","version":"1"}}`)
	})
}

func TestDiscovery(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	var hits atomic.Int64
	var hosts sync.Map
	plain := versionHandler(&hits, &hosts)
	byName := a.serve(plain, "far.test", "127.0.0.1")
	delegated := a.serve(plain, "hub.far.test")
	wellKnown := a.serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"m.server":"hub.far.test:7000"}`)
	}), "deleg.test")
	broken := a.serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"m.server":"http://not a name"}`)
	}), "broken.test")
	_, ipPort, _ := net.SplitHostPort(byName)
	n := &network{to: map[string]string{
		"far.test:8448": byName, "far.test:9000": byName, "127.0.0.1:" + ipPort: byName, "deleg.test:443": wellKnown,
		"hub.far.test:7000": delegated, "broken.test:443": broken, "broken.test:8448": a.serve(plain, "broken.test"),
		"wrong.test:8448": byName,
	}}
	c, _ := newClient(t, a, n, nil)
	for _, tt := range []struct {
		server matrix.ServerName
		host   string // "" when it must fail
	}{
		{"far.test", "far.test"},
		{"far.test:9000", "far.test:9000"},
		{matrix.ServerName("127.0.0.1:" + ipPort), "127.0.0.1:" + ipPort},
		{"deleg.test", "hub.far.test:7000"},
		{"broken.test", "broken.test"},
		{"wrong.test", ""}, // its certificate is for another name
		{"nobody.test", ""},
	} {
		before := hits.Load()
		name, version, err := c.Version(t.Context(), tt.server)
		if tt.host == "" {
			var fe *fedclient.Error
			if !errors.As(err, &fe) || !fe.Unreachable() {
				t.Errorf("%s: got %v, want an unreachable server", tt.server, err)
			}
			if hits.Load() != before {
				t.Errorf("%s: the request was sent", tt.server)
			}
			continue
		}
		if err != nil || name != "far" || version != "1" {
			t.Errorf("%s: %q %q %v", tt.server, name, version, err)
			continue
		}
		if h, _ := hosts.Load("last"); h != tt.host {
			t.Errorf("%s: Host header %v, want %s", tt.server, h, tt.host)
		}
	}
	// A second request reuses the connection and asks nobody for the way.
	if _, _, err := c.Version(t.Context(), "deleg.test"); err != nil {
		t.Fatal(err)
	}
	if got := n.dials["deleg.test:443"]; got != 1 {
		t.Errorf("well-known was fetched %d times", got)
	}
	if got := n.dials["hub.far.test:7000"]; got != 1 {
		t.Errorf("the server was dialled %d times", got)
	}
}

func TestSignedRequest(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	var got atomic.Pointer[http.Request]
	var body atomic.Pointer[[]byte]
	addr := a.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got.Store(r)
		body.Store(&b)
		_, _ = io.WriteString(w, `{}`)
	}), "far.test")
	c, own := newClient(t, a, &network{to: map[string]string{"far.test:8448": addr}}, nil)
	_, err := c.Do(t.Context(), fedclient.Request{
		Method: http.MethodPut, Server: "far.test", Path: fedclient.Path("_matrix", "x", "a/b c", "#r:é"),
		Query: url.Values{"ver": {"1", "2"}}, Body: map[string]any{"html": "<b>&"},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := got.Load()
	if r.URL.Path != "/_matrix/x/a/b c/#r:é" || !strings.Contains(r.RequestURI, "a%2Fb%20c") {
		t.Errorf("path %q of %q", r.URL.Path, r.RequestURI)
	}
	auth := r.Header.Get("Authorization")
	sig := auth[strings.Index(auth, `sig="`)+5 : len(auth)-1]
	doc := map[string]any{
		"method": "PUT", "uri": r.RequestURI, "origin": "here.test", "destination": "far.test", "content": json.RawMessage(*body.Load()),
		"signatures": map[string]any{"here.test": map[string]any{string(own.KeyID()): sig}},
	}
	raw, _ := json.Marshal(doc)
	if err := gomatrixserverlib.VerifyJSON("here.test", own.KeyID(), own.Public(), raw); err != nil {
		t.Errorf("signature: %v\n%s", err, auth)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	var status atomic.Int64
	var reply atomic.Value
	addr := a.serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "https://elsewhere.test/")
		w.WriteHeader(int(status.Load()))
		_, _ = io.WriteString(w, reply.Load().(string))
	}), "far.test")
	c, _ := newClient(t, a, &network{to: map[string]string{"far.test:8448": addr}}, nil)
	ask := func(st int, body string) error {
		status.Store(int64(st))
		reply.Store(body)
		_, err := c.Do(t.Context(), fedclient.Request{Method: "GET", Server: "far.test", Path: "/x", MaxBody: 1000})
		return err
	}
	var me *matrix.Error
	if err := ask(403, `{"errcode":"M_FORBIDDEN","error":"no"}`); !errors.As(err, &me) || me.Status != 403 || me.Code != "M_FORBIDDEN" {
		t.Errorf("forbidden became %v", err)
	}
	if err := ask(400, `{"errcode":"M_INCOMPATIBLE_ROOM_VERSION","error":"no","room_version":"9"}`); !errors.As(err, &me) || me.Extra["room_version"] != "9" {
		t.Errorf("room version became %v", err)
	}
	if err := ask(401, `{"errcode":"M_UNKNOWN_TOKEN","error":"no"}`); !errors.As(err, &me) || me.Status != 502 {
		t.Errorf("another's token error became %v", me)
	}
	if err := ask(500, `<html>`); !errors.As(err, &me) || me.Status != 502 {
		t.Errorf("a broken answer became %v", me)
	}
	if err := ask(200, strings.Repeat("x", 1001)); err == nil {
		t.Error("an answer beyond the limit was read")
	}
	if err := ask(200, strings.Repeat("x", 1000)); err != nil {
		t.Errorf("an answer of the largest size: %v", err)
	}
}

func TestRest(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	var clock atomic.Int64
	clock.Store(time.Now().UnixNano())
	now := func() time.Time { return time.Unix(0, clock.Load()) }
	n := &network{to: map[string]string{}}
	c, _ := newClient(t, a, n, now)
	ask := func(patient bool) error {
		_, err := c.Do(t.Context(), fedclient.Request{Method: "GET", Server: "far.test:1", Path: "/x", Patient: patient})
		return err
	}
	dials := func() int { n.mu.Lock(); defer n.mu.Unlock(); return n.dials["far.test:1"] }
	if ask(false) == nil || dials() != 1 {
		t.Fatal("no dial")
	}
	if ask(false) == nil || dials() != 1 {
		t.Error("a resting server was dialled")
	}
	if ask(true) == nil || dials() != 2 {
		t.Error("a patient request did not dial")
	}
	clock.Add(int64(2 * time.Second))
	if ask(false) == nil || dials() != 3 {
		t.Error("not dialled after the rest")
	}
	c.Alive("far.test:1")
	if ask(false) == nil || dials() != 4 {
		t.Error("not dialled although it was heard of")
	}
}

func TestGuard(t *testing.T) {
	t.Parallel()
	g := fedclient.Guard{
		Allow: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		Deny:  []netip.Prefix{netip.MustParsePrefix("8.8.0.0/16"), netip.MustParsePrefix("10.1.2.0/24")},
	}
	for ip, want := range map[string]bool{
		"1.1.1.1": true, "2606:4700::1111": true, "10.1.3.4": true, "10.1.2.3": false, "10.2.0.1": false, "8.8.8.8": false,
		"127.0.0.1": false, "::1": false, "169.254.1.1": false, "fe80::1": false, "fd00::1": false, "192.168.0.1": false,
		"172.16.0.1": false, "100.64.0.1": false, "0.0.0.0": false, "::": false, "::ffff:127.0.0.1": false, "224.0.0.1": false,
		"64:ff9b::7f00:1": false, "2002:7f00:1::": false, "255.255.255.255": false,
		"169.254.169.254": false, "192.0.0.8": false, "198.18.0.1": false, "240.0.0.1": false, "::127.0.0.1": false, "::ffff:10.0.0.1": false,
		"64:ff9b:1::a00:1": false, "2001:0:4136:e378:8000:63bf:3fff:fdd2": false, "ff02::1": false,
		"3fff::1": false,
	} {
		if got := g.Permits(netip.MustParseAddr(ip)); got != want {
			t.Errorf("%s: %v, want %v", ip, got, want)
		}
	}
	own, err := serverkeys.Load(t.TempDir(), "here.test")
	if err != nil {
		t.Fatal(err)
	}
	c, err := fedclient.New(fedclient.Options{Own: own})
	if err != nil {
		t.Fatal(err)
	}
	var hit atomic.Bool
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			hit.Store(true)
			conn.Close()
		}
	}()
	_, _, err = c.Version(t.Context(), matrix.ServerName(l.Addr().String()))
	if err == nil || !strings.Contains(err.Error(), "network that requests are not sent to") || hit.Load() {
		t.Errorf("loopback was dialled: %v", err)
	}
}

func TestAllowList(t *testing.T) {
	t.Parallel()
	if fedclient.AllowList(nil) != nil {
		t.Error("an empty list forbids something")
	}
	allowed := fedclient.AllowList([]string{"a.example", "*.Corp.example"})
	for server, want := range map[matrix.ServerName]bool{
		"a.example": true, "A.example": true, "b.example": false, "x.corp.example": true, "corp.example": false, "a.example:8448": false,
		"evilcorp.example": false,
	} {
		if allowed(server) != want {
			t.Errorf("%s: %v", server, !want)
		}
	}
	a := newAuthority(t)
	n := &network{to: map[string]string{}}
	own, err := serverkeys.Load(t.TempDir(), "here.test")
	if err != nil {
		t.Fatal(err)
	}
	c, err := fedclient.New(fedclient.Options{Own: own, ExtraCAs: a.PEM, Dial: n.dial, Allow: allowed})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Version(t.Context(), "b.example:1"); err == nil || len(n.dials) > 0 {
		t.Error("a server that is not allowed was dialled")
	}
}

func TestPlaces(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	addr := a.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/file":
			_, _ = io.WriteString(w, "content")
		case "/moved":
			http.Redirect(w, r, "https://10.0.0.1/", http.StatusFound)
		default:
			http.NotFound(w, r)
		}
	}), "far.test")
	c, _ := newClient(t, a, &network{to: map[string]string{"far.test:443": addr, "far.test:8448": addr}}, nil)
	resp, err := c.GetURL(t.Context(), "https://far.test/file")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(b) != "content" {
		t.Errorf("got %q", b)
	}
	for _, bad := range []string{"http://far.test/file", "https://far.test/none", "https://u:p@far.test/file", "file:///etc/passwd", "https://nobody.test/"} {
		if resp, err := c.GetURL(t.Context(), bad); err == nil {
			resp.Body.Close()
			t.Errorf("%s was fetched", bad)
		}
	}
	if resp, err := c.GetURL(t.Context(), "https://far.test/moved"); err != nil || resp.StatusCode != http.StatusFound {
		t.Errorf("a redirect was followed: %v", err)
	} else {
		resp.Body.Close()
	}
	resp, err = c.Get(t.Context(), "far.test", "/file", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}
