package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// tokens is an authenticator whose token is the name of the user.
type tokens map[string]*httpapi.Caller

func (t tokens) Authenticate(r *http.Request) (*httpapi.Caller, error) {
	tok := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if tok == "" {
		tok = r.URL.Query().Get("access_token")
	}
	if tok == "" {
		return nil, matrix.MissingToken()
	}
	if c := t[tok]; c != nil {
		return c, nil
	}
	return nil, matrix.UnknownToken(false)
}

type origin struct{}

func (origin) VerifyOrigin(r *http.Request, body []byte) (matrix.ServerName, error) {
	if r.Header.Get("X-Sum") != string(body) {
		return "", matrix.NewError(401, "M_UNAUTHORIZED", "bad signature")
	}
	return "remote.test", nil
}

var cast = tokens{
	"alice":  {User: "@alice:test", Device: "A", TokenID: 1},
	"admin":  {User: "@admin:test", Admin: true},
	"guest":  {User: "@guest:test", Guest: true},
	"frozen": {User: "@frozen:test", Suspended: true},
	"as":     {User: "@bot:test", AppService: "svc", Unlimited: true},
}

func newAPI(opts httpapi.Options) *httpapi.API {
	opts.Authenticator = cast
	opts.OriginVerifier = origin{}
	return httpapi.New(opts)
}

type answer struct {
	status int
	header http.Header
	raw    string
	body   map[string]any
}

func do(t *testing.T, h http.Handler, method, path, token, body string, headers ...string) answer {
	t.Helper()
	srv := httptest.NewServer(h)
	defer srv.Close()
	got := httpapitest.Call(t, method, srv.URL+path, token, strings.NewReader(body), headers...)
	a := answer{status: got.Status, header: got.Header, raw: string(got.Body)}
	_ = json.Unmarshal(got.Body, &a.body)
	return a
}

func (a answer) want(t *testing.T, status int, code string) {
	t.Helper()
	got, _ := a.body["errcode"].(string)
	if a.status != status || got != code {
		t.Errorf("got %d %q, want %d %q: %s", a.status, got, status, code, a.raw)
	}
}

// echo answers with the route and the variables asked for.
func echo(names ...string) httpapi.Handler {
	return func(c *httpapi.Call) (any, error) {
		m := map[string]string{"route": c.Route()}
		for _, n := range names {
			m[n] = c.Var(n)
		}
		return m, nil
	}
}

func TestRouting(t *testing.T) {
	a := newAPI(httpapi.Options{})
	room := "/_matrix/client/v3/rooms/{roomId}/"
	a.Add(
		httpapi.Route{Method: "GET", Path: room + "state", Handler: echo("roomId")},
		httpapi.Route{Method: "GET", Path: room + "state/{eventType}/{stateKey}", Handler: echo("roomId", "eventType", "stateKey")},
		httpapi.Route{Method: "PUT", Path: room + "state/{eventType}/{stateKey}", Handler: echo("eventType", "stateKey")},
		httpapi.Route{Method: "PUT", Path: room + "send/{eventType}/{txnId}", Handler: echo("eventType", "txnId")},
		httpapi.Route{Method: "GET", Path: "/_matrix/client/v3/profile/{userId}", Handler: echo("userId")},
		httpapi.Route{Method: "GET", Path: "/_matrix/client/v3/profile/{userId}/{keyName}", Handler: echo("userId", "keyName")},
		httpapi.Route{Method: "GET", Path: "/_matrix/client/v3/pushrules/", Handler: echo()},
		httpapi.Route{Method: "GET", Path: "/_matrix/client/v3/directory/room/{roomAlias}", Handler: echo("roomAlias")},
		httpapi.Route{Method: "GET", Path: "/_matrix/client/v3/directory/list", Handler: echo()},
		httpapi.Route{Method: "GET", Path: "/_matrix/federation/v1/version", Handler: echo()},
	)
	for _, tc := range []struct {
		method, path string
		want         map[string]string
	}{
		{"GET", "/_matrix/client/v3/rooms/!a:b/state", map[string]string{"roomId": "!a:b"}},
		{"GET", "/_matrix/client/v3/rooms/%21a%2Fx:b/state/m.room.name/", map[string]string{"roomId": "!a/x:b", "eventType": "m.room.name", "stateKey": ""}},
		{"GET", "/_matrix/client/v3/rooms/!a/state/m.room.name", map[string]string{"eventType": "m.room.name", "stateKey": ""}},
		{"PUT", "/_matrix/client/r0/rooms/!a/state/m.room.member/@u:b", map[string]string{"eventType": "m.room.member", "stateKey": "@u:b"}},
		{"PUT", "/_matrix/client/v3/rooms/!a/state/a%2Fb/%25", map[string]string{"eventType": "a/b", "stateKey": "%"}},
		{"PUT", "/_matrix/client/v3/rooms/!a/send/m.room.message/a%2Fb", map[string]string{"txnId": "a/b"}},
		{"GET", "/_matrix/client/v3/profile/@a:b", map[string]string{"userId": "@a:b"}},
		{"GET", "/_matrix/client/v3/profile/@a:b/displayname", map[string]string{"keyName": "displayname"}},
		{"GET", "/_matrix/client/v3/pushrules", nil},
		{"GET", "/_matrix/client/v3/pushrules/", nil},
		{"GET", "/_matrix/client/v3/directory/room/%23a%2Fb:c", map[string]string{"roomAlias": "#a/b:c"}},
		{"GET", "/_matrix/federation/v1/version", nil},
	} {
		r := do(t, a, tc.method, tc.path, "", "")
		r.want(t, 200, "")
		for k, v := range tc.want {
			if r.body[k] != v {
				t.Errorf("%s: %s = %q, want %q", tc.path, k, r.body[k], v)
			}
		}
	}
	do(t, a, "GET", "/_matrix/client/v3/nothing", "", "").want(t, 404, "M_UNRECOGNIZED")
	do(t, a, "GET", "/", "", "").want(t, 404, "M_UNRECOGNIZED")
	do(t, a, "GET", "/_matrix/client/v3/profile/@a%00:b", "", "").want(t, 400, "M_INVALID_PARAM")
	do(t, a, "GET", "/_matrix/client/v3/profile/@a:b?x=%ff", "", "").want(t, 400, "M_INVALID_PARAM")
	do(t, a, "GET", "/_matrix/client/v3/rooms/!a/state/"+strings.Repeat("x/", 30), "", "").want(t, 404, "M_UNRECOGNIZED")
	r := do(t, a, "DELETE", "/_matrix/client/v3/rooms/!a/state/x/y", "", "")
	r.want(t, 405, "M_UNRECOGNIZED")
	if r.header.Get("Allow") != "GET, PUT" {
		t.Errorf("Allow is %q", r.header.Get("Allow"))
	}
	fed := a.Only("/_matrix/federation/", "/_matrix/key/")
	do(t, fed, "GET", "/_matrix/federation/v1/version", "", "").want(t, 200, "")
	do(t, fed, "GET", "/_matrix/client/v3/pushrules", "", "").want(t, 404, "M_UNRECOGNIZED")
	defer func() {
		if recover() == nil {
			t.Error("a second route for the same method and path was accepted")
		}
	}()
	a.Add(httpapi.Route{Method: "GET", Path: "/_matrix/client/v3/directory/list", Handler: echo()})
}

func TestAnExplicitRouteReplacesADerivedOne(t *testing.T) {
	for _, swapped := range []bool{false, true} {
		a := newAPI(httpapi.Options{})
		rs := []httpapi.Route{
			{Method: "GET", Path: "/x/{eventType}/{stateKey}", Handler: echo()},
			{Method: "GET", Path: "/x/{eventType}", Handler: echo("eventType")},
		}
		if swapped {
			rs[0], rs[1] = rs[1], rs[0]
		}
		a.Add(rs...)
		if r := do(t, a, "GET", "/x/m", "", ""); r.body["route"] != "/x/{eventType}" || r.body["eventType"] != "m" {
			t.Errorf("answered by %v", r.body)
		}
		if r := do(t, a, "GET", "/x/m/", "", ""); r.body["route"] != "/x/{eventType}/{stateKey}" {
			t.Errorf("answered by %v", r.body)
		}
	}
}

func TestCORS(t *testing.T) {
	a := newAPI(httpapi.Options{})
	a.Add(httpapi.Route{Method: "GET", Path: "/_matrix/client/versions", Auth: httpapi.AuthUser, Handler: echo()})
	for _, r := range []answer{
		do(t, a, "OPTIONS", "/_matrix/client/versions", "", ""),
		do(t, a, "GET", "/_matrix/client/versions", "", ""),
		do(t, a, "GET", "/_matrix/client/versions", "alice", ""),
		do(t, a, "GET", "/_matrix/client/unknown", "", ""),
	} {
		if r.header.Get("Access-Control-Allow-Origin") != "*" ||
			!strings.Contains(r.header.Get("Access-Control-Allow-Methods"), "DELETE") ||
			!strings.Contains(r.header.Get("Access-Control-Allow-Headers"), "Authorization") {
			t.Errorf("%d has no CORS headers: %v", r.status, r.header)
		}
	}
	if r := do(t, a, "OPTIONS", "/_matrix/client/versions", "", ""); r.status/100 != 2 {
		t.Errorf("OPTIONS answered %d", r.status)
	}
}

func TestAuthentication(t *testing.T) {
	who := func(c *httpapi.Call) (any, error) {
		if c.Caller == nil {
			return map[string]string{"user": ""}, nil
		}
		return map[string]string{"user": string(c.Caller.User)}, nil
	}
	a := newAPI(httpapi.Options{})
	a.Add(
		httpapi.Route{Method: "GET", Path: "/user", Auth: httpapi.AuthUser, Handler: who},
		httpapi.Route{Method: "GET", Path: "/optional", Auth: httpapi.AuthOptional, Handler: who},
		httpapi.Route{Method: "GET", Path: "/admin", Auth: httpapi.AuthAdmin, Handler: who},
		httpapi.Route{Method: "GET", Path: "/as", Auth: httpapi.AuthAppService, Handler: who},
		httpapi.Route{Method: "GET", Path: "/frozen", Auth: httpapi.AuthUser, AllowSuspended: true, Handler: who},
		httpapi.Route{Method: "GET", Path: "/guest", Auth: httpapi.AuthUser, AllowGuest: true, Handler: who},
		httpapi.Route{Method: "PUT", Path: "/server", Auth: httpapi.AuthServer, Handler: func(c *httpapi.Call) (any, error) {
			var b struct{ X int }
			err := c.Body(&b)
			return map[string]any{"origin": c.Origin, "x": b.X}, err
		}},
	)
	for _, tc := range []struct {
		path, token string
		status      int
		code        string
	}{
		{"/user", "alice", 200, ""},
		{"/user?access_token=alice", "", 200, ""},
		{"/user", "", 401, "M_MISSING_TOKEN"},
		{"/user", "nobody", 401, "M_UNKNOWN_TOKEN"},
		{"/optional", "", 200, ""},
		{"/optional", "nobody", 401, "M_UNKNOWN_TOKEN"},
		{"/admin", "alice", 403, "M_FORBIDDEN"},
		{"/admin", "admin", 200, ""},
		{"/as", "alice", 403, "M_FORBIDDEN"},
		{"/as", "as", 200, ""},
		{"/user", "frozen", 403, "M_USER_SUSPENDED"},
		{"/frozen", "frozen", 200, ""},
		{"/user", "guest", 403, "M_GUEST_ACCESS_FORBIDDEN"},
		{"/guest", "guest", 200, ""},
	} {
		do(t, a, "GET", tc.path, tc.token, "").want(t, tc.status, tc.code)
	}
	do(t, a, "PUT", "/server", "", `{"x":1}`).want(t, 401, "M_UNAUTHORIZED")
	r := do(t, a, "PUT", "/server", "", `{"x":1}`, "X-Sum", `{"x":1}`)
	if r.body["origin"] != "remote.test" || r.body["x"] != 1.0 {
		t.Errorf("got %s", r.raw)
	}
	bare := httpapi.New(httpapi.Options{})
	bare.Add(httpapi.Route{Method: "PUT", Path: "/server", Auth: httpapi.AuthServer, Handler: who})
	do(t, bare, "PUT", "/server", "", "{}").want(t, 401, "M_UNAUTHORIZED")
}

func TestBodies(t *testing.T) {
	a := newAPI(httpapi.Options{})
	a.Add(
		httpapi.Route{Method: "POST", Path: "/body", MaxBody: 100, Handler: func(c *httpapi.Call) (any, error) {
			var b struct {
				N int    `json:"n"`
				S string `json:"s"`
			}
			if err := c.Body(&b); err != nil {
				return nil, err
			}
			return b, nil
		}},
		httpapi.Route{Method: "POST", Path: "/raw", Handler: func(c *httpapi.Call) (any, error) {
			b, err := c.RawBody()
			return httpapi.Raw(b), err
		}},
	)
	for _, tc := range []struct {
		path, body string
		status     int
		code       string
	}{
		{"/body", `{"n":1,"s":"<&>"}`, 200, ""},
		{"/body", ``, 200, ""},
		{"/body", `{"n":`, 400, "M_NOT_JSON"},
		{"/body", `{"n":1} x`, 400, "M_NOT_JSON"},
		{"/body", `nonsense`, 400, "M_NOT_JSON"},
		{"/body", "{\"s\":\"\xff\"}", 400, "M_NOT_JSON"},
		{"/body", `{"n":"1"}`, 400, "M_BAD_JSON"},
		{"/body", `[]`, 400, "M_BAD_JSON"},
		{"/body", `"x"`, 400, "M_BAD_JSON"},
		{"/body", `{"s":"` + strings.Repeat("x", 100) + `"}`, 413, "M_TOO_LARGE"},
		{"/raw", `{"a": 1}`, 200, ""},
		{"/raw", ``, 400, "M_NOT_JSON"},
		{"/raw", `[1]`, 400, "M_BAD_JSON"},
		{"/raw", `{"a":1`, 400, "M_NOT_JSON"},
	} {
		do(t, a, "POST", tc.path, "", tc.body).want(t, tc.status, tc.code)
	}
	if r := do(t, a, "POST", "/body", "", `{"s":"<&>"}`); r.raw != `{"n":0,"s":"<&>"}` {
		t.Errorf("got %s", r.raw)
	}
	if r := do(t, a, "POST", "/raw", "", `{"b": 1,  "a":2}`); r.raw != `{"b": 1,  "a":2}` {
		t.Errorf("got %s", r.raw)
	}
	srv := httptest.NewServer(a)
	defer srv.Close()
	// Without a length the limit has to hold while reading.
	res, err := http.Post(srv.URL+"/body", "application/json", io.MultiReader(strings.NewReader(strings.Repeat(" ", 200))))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 413 {
		t.Errorf("a chunked body beyond the limit answered %d", res.StatusCode)
	}
}

func TestAnswersAndErrors(t *testing.T) {
	answers := map[string]func() (any, error){
		"nil":    func() (any, error) { return nil, nil },
		"status": func() (any, error) { return httpapi.Status{Code: 202, Body: httpapi.Raw(`{"a":1}`)}, nil },
		"extra":  func() (any, error) { return nil, matrix.Forbidden("no").With("hint", "x") },
		"wrap":   func() (any, error) { return nil, errors.Join(errors.New("storing"), matrix.NotFound("gone")) },
		"plain":  func() (any, error) { return nil, errors.New("secret detail") },
		"panic":  func() (any, error) { panic("secret detail") },
		"encode": func() (any, error) { return map[string]any{"f": func() {}}, nil },
		"retry":  func() (any, error) { return nil, matrix.LimitExceeded(1500 * time.Millisecond) },
	}
	a := newAPI(httpapi.Options{})
	a.Add(httpapi.Route{Method: "GET", Path: "/{what}", Handler: func(c *httpapi.Call) (any, error) {
		if c.Var("what") == "done" {
			c.W.Header().Set("Content-Type", "text/plain")
			_, err := io.WriteString(c.W, "hello")
			return httpapi.Done, err
		}
		return answers[c.Var("what")]()
	}})
	if r := do(t, a, "GET", "/nil", "", ""); r.raw != "{}" || r.header.Get("Content-Type") != "application/json" {
		t.Errorf("got %q %v", r.raw, r.header)
	}
	if r := do(t, a, "GET", "/status", "", ""); r.raw != `{"a":1}` || r.status != 202 {
		t.Errorf("got %d %q", r.status, r.raw)
	}
	if r := do(t, a, "GET", "/done", "", ""); r.raw != "hello" || r.header.Get("Content-Type") != "text/plain" {
		t.Errorf("got %q %v", r.raw, r.header)
	}
	r := do(t, a, "GET", "/extra", "", "")
	r.want(t, 403, "M_FORBIDDEN")
	if r.body["hint"] != "x" {
		t.Errorf("extra fields are lost: %s", r.raw)
	}
	do(t, a, "GET", "/wrap", "", "").want(t, 404, "M_NOT_FOUND")
	for _, what := range []string{"plain", "panic", "encode"} {
		r := do(t, a, "GET", "/"+what, "", "")
		r.want(t, 500, "M_UNKNOWN")
		if strings.Contains(r.raw, "secret") {
			t.Errorf("%s tells what went wrong inside: %s", what, r.raw)
		}
	}
	if a.Panics() != 1 {
		t.Errorf("%d panics counted", a.Panics())
	}
	r = do(t, a, "GET", "/retry", "", "")
	r.want(t, 429, "M_LIMIT_EXCEEDED")
	if r.header.Get("Retry-After") != "2" || r.body["retry_after_ms"] != 1500.0 {
		t.Errorf("Retry-After %q, %s", r.header.Get("Retry-After"), r.raw)
	}
}

func TestRateLimit(t *testing.T) {
	now := time.Unix(1000, 0)
	a := newAPI(httpapi.Options{
		RateLimits: httpapi.RateLimits{PerSecond: 1, Burst: 2},
		Now:        func() time.Time { return now },
	})
	a.Add(
		httpapi.Route{Method: "GET", Path: "/u", Auth: httpapi.AuthUser, RateLimit: true, Handler: echo()},
		httpapi.Route{Method: "GET", Path: "/ip", RateLimit: true, Handler: echo()},
		httpapi.Route{Method: "GET", Path: "/free", Auth: httpapi.AuthUser, Handler: echo()},
	)
	for i, want := range []int{200, 200, 429} {
		if r := do(t, a, "GET", "/u", "alice", ""); r.status != want {
			t.Errorf("request %d answered %d, want %d", i, r.status, want)
		}
	}
	do(t, a, "GET", "/free", "alice", "").want(t, 200, "")
	do(t, a, "GET", "/u", "admin", "").want(t, 200, "")
	for range 5 {
		do(t, a, "GET", "/u", "as", "").want(t, 200, "")
	}
	for _, want := range []int{200, 200, 429} {
		if r := do(t, a, "GET", "/ip", "", ""); r.status != want {
			t.Errorf("by address: %d, want %d", r.status, want)
		}
	}
	now = now.Add(time.Second)
	do(t, a, "GET", "/u", "alice", "").want(t, 200, "")
}

func TestClassesOfLimits(t *testing.T) {
	now := time.Unix(1000, 0)
	a := newAPI(httpapi.Options{
		RateLimits: httpapi.RateLimits{PerSecond: 1, Burst: 4, Classes: map[httpapi.Class]httpapi.Rate{
			httpapi.ClassMessages: {PerSecond: 1, Burst: 2}, httpapi.ClassLogIns: {PerSecond: 1, Burst: 1}, httpapi.ClassMedia: {},
			httpapi.ClassAddresses: {PerSecond: 1, Burst: 3},
		}},
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		Now:            func() time.Time { return now },
	})
	a.Add(
		httpapi.Route{Method: "GET", Path: "/general", Auth: httpapi.AuthUser, RateLimit: true, Handler: echo()},
		httpapi.Route{Method: "GET", Path: "/send", Auth: httpapi.AuthUser, RateLimit: true, Class: httpapi.ClassMessages, Handler: echo()},
		httpapi.Route{Method: "GET", Path: "/file", Auth: httpapi.AuthUser, RateLimit: true, Class: httpapi.ClassMedia, Handler: echo()},
		httpapi.Route{Method: "GET", Path: "/login", RateLimit: true, Class: httpapi.ClassLogIns, Handler: echo()},
		httpapi.Route{Method: "GET", Path: "/open", RateLimit: true, Class: httpapi.ClassMedia, Handler: echo()},
	)
	allowed := func(path, token string, header ...string) (n int) {
		for range 30 {
			if r := do(t, a, "GET", path, token, "", header...); r.status == 200 {
				n++
			} else if r.want(t, 429, "M_LIMIT_EXCEEDED"); r.header.Get("Retry-After") == "" {
				t.Error("there is no Retry-After")
			}
		}
		return n
	}
	for _, c := range []struct {
		path, token, from string
		want              int
	}{
		{"/general", "alice", "", 4},
		{"/send", "alice", "", 2},
		{"/file", "alice", "", 30},
		{"/login", "", "203.0.113.1", 1},
		{"/login", "", "203.0.113.2", 1},
		{"/login", "as", "203.0.113.2", 30}, // a service that is not limited
		{"/login", "", "2001:db8::1", 1},
		{"/login", "", "2001:db8::2", 0}, // the same client
		{"/login", "", "2001:db8:0:1::2", 1},
		{"/open", "", "203.0.113.1", 3},
	} {
		if got := allowed(c.path, c.token, "X-Forwarded-For", c.from); got != c.want {
			t.Errorf("%s by %q from %q: %d are let through, not %d", c.path, c.token, c.from, got, c.want)
		}
	}
}

func TestQueryHelpers(t *testing.T) {
	a := newAPI(httpapi.Options{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}})
	a.Add(httpapi.Route{Method: "GET", Path: "/q", Handler: func(c *httpapi.Call) (any, error) {
		n, err := c.QueryInt("n", 7, 1, 50)
		if err != nil {
			return nil, err
		}
		b, err := c.Bool("b")
		return map[string]any{"n": n, "b": b, "ip": c.RemoteIP()}, err
	}})
	for q, want := range map[string]string{
		"":            `{"b":false,"ip":"127.0.0.1","n":7}`,
		"?n=3&b=true": `{"b":true,"ip":"127.0.0.1","n":3}`,
		"?n=900":      `{"b":false,"ip":"127.0.0.1","n":50}`,
	} {
		if r := do(t, a, "GET", "/q"+q, "", ""); r.raw != want {
			t.Errorf("%q: %s", q, r.raw)
		}
	}
	for _, q := range []string{"?n=x", "?n=0", "?b=1"} {
		do(t, a, "GET", "/q"+q, "", "").want(t, 400, "M_INVALID_PARAM")
	}
	r := do(t, a, "GET", "/q", "", "", "X-Forwarded-For", "1.1.1.1, 203.0.113.9, 10.0.0.2")
	if r.body["ip"] != "203.0.113.9" {
		t.Errorf("the client behind proxies is %v", r.body["ip"])
	}
}

func TestDrain(t *testing.T) {
	a := newAPI(httpapi.Options{})
	entered := make(chan struct{})
	a.Add(httpapi.Route{Method: "GET", Path: "/wait", Handler: func(c *httpapi.Call) (any, error) {
		ctx, cancel := c.WaitContext(time.Minute)
		defer cancel()
		close(entered)
		<-ctx.Done()
		return map[string]bool{"drained": true}, nil
	}})
	srv := httptest.NewServer(a)
	defer srv.Close()
	got := make(chan string, 1)
	go func() {
		res, err := http.Get(srv.URL + "/wait")
		if err != nil {
			got <- err.Error()
			return
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		got <- string(b)
	}()
	<-entered
	if a.InFlight() != 1 {
		t.Errorf("%d in flight", a.InFlight())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := a.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	if b := <-got; b != `{"drained":true}` {
		t.Errorf("the waiting request got %s", b)
	}
	do(t, a, "GET", "/wait", "", "").want(t, 503, "M_UNKNOWN")
}

type discard struct{ h http.Header }

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}

// BenchmarkDispatch is what the door costs beside net/http: routing, authentication, decoding, answering.
func BenchmarkDispatch(b *testing.B) {
	a := newAPI(httpapi.Options{RateLimits: httpapi.RateLimits{PerSecond: 1e9, Burst: 1 << 30}})
	for _, op := range []string{"state", "messages", "members", "invite", "join", "leave", "kick", "ban", "unban", "forget"} {
		a.Add(httpapi.Route{Method: "POST", Path: "/_matrix/client/v3/rooms/{roomId}/" + op, Handler: echo()})
	}
	a.Add(
		httpapi.Route{Method: "PUT", Path: "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}", Handler: echo()},
		httpapi.Route{Method: "PUT", Path: "/_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}", Handler: echo()},
		httpapi.Route{
			Method: "PUT", Path: "/_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}", Auth: httpapi.AuthUser, RateLimit: true,
			Handler: func(c *httpapi.Call) (any, error) {
				if c.Var("eventType") == "" || c.Var("roomId") == "" || c.Var("txnId") == "" {
					b.Fatal("no variables")
				}
				return httpapi.Raw(`{"event_id":"$x"}`), nil
			},
		})
	req := httptest.NewRequest("PUT", "/_matrix/client/v3/rooms/!aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/send/m.room.message/m123456789", nil)
	req.Header.Set("Authorization", "Bearer alice")
	w := &discard{h: make(http.Header)}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.h)
		a.ServeHTTP(w, req)
	}
}
