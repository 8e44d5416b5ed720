package oauth_test

import (
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// clock is a clock that a test moves.
type clock struct {
	mu    sync.Mutex
	ahead time.Duration
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
}

// world is a server with the OAuth 2.0 API, and a client.
type world struct {
	*hstest.Server
	t        testing.TB
	clock    *clock
	client   string
	redirect string
}

const verifier = "correct-horse-battery-staple-0123456789-abcdefgh"

func challenge(v string) string {
	h := sha256.Sum256([]byte(v))
	return base64.RawURLEncoding.EncodeToString(h[:])
}

func open(t testing.TB, options ...hstest.Option) *world {
	t.Helper()
	w := &world{t: t, clock: &clock{}, redirect: "https://app.client.example/callback"}
	w.Server = hstest.New(t, append([]hstest.Option{hstest.OAuth, func(o *homeserver.Options) { o.Now = w.clock.Now }}, options...)...)
	w.client = w.register(map[string]any{"redirect_uris": []string{w.redirect}})
	return w
}

// metadata of a client that is right, with changes.
func metadata(change map[string]any) map[string]any {
	m := map[string]any{
		"client_name": "Bell", "client_uri": "https://client.example/", "redirect_uris": []string{"https://client.example/cb"},
		"token_endpoint_auth_method": "none", "response_types": []string{"code"}, "application_type": "web",
		"grant_types": []string{"authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"},
	}
	for k, v := range change {
		if v == nil {
			delete(m, k)
			continue
		}
		m[k] = v
	}
	return m
}

func (w *world) register(change map[string]any) string {
	w.t.Helper()
	a := w.Do("", "POST", "/_carillon/oauth/register", metadata(change))
	if a.Status != 201 {
		w.t.Fatalf("registering: %d %s", a.Status, a.Body)
	}
	return a.Get("client_id").Str
}

// form sends a form to an endpoint.
func (w *world) form(path string, fields ...string) hstest.Answer {
	w.t.Helper()
	return w.send(path, "application/x-www-form-urlencoded", pairs(fields...).Encode())
}

func pairs(fields ...string) url.Values {
	q := url.Values{}
	for i := 0; i+1 < len(fields); i += 2 {
		q.Set(fields[i], fields[i+1])
	}
	return q
}

func (w *world) token(fields ...string) hstest.Answer {
	w.t.Helper()
	return w.form("/_carillon/oauth/token", fields...)
}

// authorize is the address that a client opens.
func (w *world) authorize(device string, change ...string) string {
	q := pairs("response_type", "code", "client_id", w.client, "redirect_uri", w.redirect, "state", "some state&x",
		"scope", "urn:matrix:client:api:* urn:matrix:client:device:"+device, "response_mode", "fragment",
		"code_challenge", challenge(verifier), "code_challenge_method", "S256")
	for i := 0; i+1 < len(change); i += 2 {
		if q.Set(change[i], change[i+1]); change[i+1] == "" {
			q.Del(change[i])
		}
	}
	return w.URL + "/_carillon/oauth/authorize?" + q.Encode()
}

// outcome are the parameters with which the browser comes back to the client.
func outcome(t testing.TB, to string) url.Values {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	q, err := url.ParseQuery(u.EscapedFragment())
	if err != nil || len(q) == 0 {
		q = u.Query()
	}
	return q
}

// signIn takes a browser through sign-in and consent and gives the code.
func (w *world) signIn(b *hstest.Browser, user, device string) string {
	w.t.Helper()
	w.User(user)
	p := b.Get(w.authorize(device))
	if strings.Contains(p.URL.Path, "/login") {
		p = p.Press("Sign in", "user", user, "password", "password of "+user)
	}
	p = p.Press("Allow")
	q := outcome(w.t, p.To)
	if q.Get("code") == "" || q.Get("state") != "some state&x" || q.Get("iss") != w.URL+"/" || !strings.HasPrefix(p.To, w.redirect+"#") {
		w.t.Fatalf("back at the client: %q, %d %s", p.To, p.Status, p.Body)
	}
	return q.Get("code")
}

func (w *world) exchange(code string) hstest.Answer {
	w.t.Helper()
	return w.token("grant_type", "authorization_code", "code", code, "redirect_uri", w.redirect, "client_id", w.client, "code_verifier", verifier)
}

// session gives a user a session on a device.
func (w *world) session(user, device string) (access, refresh string) {
	w.t.Helper()
	a := w.exchange(w.signIn(w.Browser("en"), user, device))
	if a.Status != 200 {
		w.t.Fatalf("exchanging: %d %s", a.Status, a.Body)
	}
	return a.Get("access_token").Str, a.Get("refresh_token").Str
}

func (w *world) refresh(token string) hstest.Answer {
	w.t.Helper()
	return w.token("grant_type", "refresh_token", "refresh_token", token, "client_id", w.client)
}

func (w *world) whoami(access string) hstest.Answer {
	w.t.Helper()
	return w.Do(access, "GET", "/_matrix/client/v3/account/whoami", nil)
}

func (w *world) isError(what string, a hstest.Answer, status int, code string) {
	w.t.Helper()
	if a.Status != status || a.Get("error").Str != code {
		w.t.Errorf("%s: %d %s, want %d %s", what, a.Status, a.Body, status, code)
	}
}

func TestAuthorizationCode(t *testing.T) {
	t.Parallel()
	w := open(t)
	b := w.Browser("en")
	if p := b.Get(w.authorize("PHONE00001", "login_hint", "mxid:@mei:a.example")); !p.Shows(`value="@mei:a.example"`) {
		t.Errorf("the hint of the client: %s", p.Body)
	}
	p := b.Get(w.authorize("PHONE00001"))
	if !p.Shows("Sign in", "Bell", "client.example") {
		t.Fatalf("the sign-in page does not name the client: %s", p.Body)
	}
	w.User("mei")
	if p = p.Press("Sign in", "user", "mei", "password", "wrong"); p.Status != 403 || !p.Shows("Wrong user name or password.", `value="mei"`) {
		t.Fatalf("wrong password: %d %s", p.Status, p.Body)
	}
	p = p.Press("Sign in", "user", "@mei:a.example", "password", "password of mei")
	if !p.Shows("Give access to your account?", "@mei:a.example", "app.client.example") {
		t.Fatalf("consent: %s", p.Body)
	}
	csp := p.Header.Get("Content-Security-Policy")
	for _, part := range []string{"default-src 'none'", "form-action 'self' https://app.client.example;", "frame-ancestors 'none'", "base-uri 'none'"} {
		if !strings.Contains(csp, part) {
			t.Errorf("the policy has no %q: %s", part, csp)
		}
	}
	if p.Header.Get("X-Frame-Options") != "DENY" || p.Header.Get("Access-Control-Allow-Origin") != "" || p.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("headers: %v", p.Header)
	}
	p = p.Press("Allow")
	a := w.exchange(outcome(t, p.To).Get("code"))
	if a.Status != 200 || a.Get("token_type").Str != "Bearer" || a.Get("expires_in").Int() < 60 || a.Get("refresh_token").Str == "" ||
		a.Get("scope").Str != "urn:matrix:client:api:* urn:matrix:client:device:PHONE00001" || a.Get("id_token").Exists() {
		t.Fatalf("token: %d %s", a.Status, a.Body)
	}
	if a.Header.Get("Cache-Control") != "no-store" || a.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("headers of the token endpoint: %v", a.Header)
	}
	access := a.Get("access_token").Str
	if who := w.whoami(access); who.Get("user_id").Str != "@mei:a.example" || who.Get("device_id").Str != "PHONE00001" {
		t.Errorf("whoami: %s", who.Body)
	}
	d := w.Do(access, "GET", "/_matrix/client/v3/devices/PHONE00001", nil)
	if d.Get("display_name").Str != "Bell" {
		t.Errorf("device: %s", d.Body)
	}
	if r := w.Do(access, "POST", "/_matrix/client/v3/createRoom", map[string]any{}); r.Status != 200 {
		t.Errorf("the token makes no room: %d %s", r.Status, r.Body)
	}
	// The browser stays signed in: the next client asks for consent alone.
	if p := b.Get(w.authorize("PHONE00002")); !p.Shows("Give access to your account?") {
		t.Errorf("a second client: %s", p.Body)
	}
	if p := b.Get(w.authorize("PHONE00001")); !p.Shows("its present session will be replaced", "PHONE00001") {
		t.Errorf("the page does not tell that a device is replaced: %s", p.Body)
	}
}

func TestAnswerOfThePerson(t *testing.T) {
	t.Parallel()
	w := open(t)
	b := w.Browser("en")
	w.signIn(b, "mei", "D1")
	p := b.Get(w.authorize("D2")).Press("Decline")
	if q := outcome(t, p.To); q.Get("error") != "access_denied" || q.Get("state") != "some state&x" || q.Get("code") != "" {
		t.Errorf("declined: %s", p.To)
	}
	p = b.Get(w.authorize("D2", "response_mode", "query")).Press("Allow")
	if !strings.HasPrefix(p.To, w.redirect+"?") || strings.Contains(p.To, "#") {
		t.Errorf("response_mode=query: %s", p.To)
	}
	p = b.Get(w.authorize("D2")).Press("Use another account")
	if !p.Shows("Sign in", "Bell") || p.Shows("Allow") {
		t.Errorf("another account: %s", p.Body)
	}
	w.User("jun")
	if p = p.Press("Sign in", "user", "jun", "password", "password of jun"); !p.Shows("@jun:a.example", "Allow") {
		t.Errorf("as somebody else: %s", p.Body)
	}
}

func TestCodeIsGoodOnce(t *testing.T) {
	t.Parallel()
	w := open(t)
	b := w.Browser("en")
	code := w.signIn(b, "mei", "D1")
	first := w.exchange(code)
	if first.Status != 200 {
		t.Fatal(string(first.Body))
	}
	w.isError("a replayed code", w.exchange(code), 400, "invalid_grant")
	if a := w.whoami(first.Get("access_token").Str); a.Status != 401 || a.Code() != "M_UNKNOWN_TOKEN" {
		t.Errorf("the session of a replayed code lives: %d %s", a.Status, a.Body)
	}
	w.isError("its refresh token", w.refresh(first.Get("refresh_token").Str), 400, "invalid_grant")

	// Of many at once, one wins, and then all lose.
	code = w.signIn(b, "mei", "D2")
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for range 6 {
		wg.Go(func() {
			if a := w.exchange(code); a.Status == 200 {
				mu.Lock()
				won++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d of six exchanges of one code succeeded", won)
	}
}

func TestCodeIsForOneClient(t *testing.T) {
	t.Parallel()
	w := open(t)
	b := w.Browser("en")
	other := w.register(map[string]any{"client_uri": "https://other.example", "redirect_uris": []string{"https://other.example/"}})
	good := []string{"grant_type", "authorization_code", "redirect_uri", w.redirect, "client_id", w.client, "code_verifier", verifier}
	for what, change := range map[string][]string{
		"a wrong verifier":  {"code_verifier", strings.Repeat("x", 50)},
		"a short verifier":  {"code_verifier", "x"},
		"a wrong redirect":  {"redirect_uri", "https://app.client.example/other"},
		"another client":    {"client_id", other},
		"an unknown client": {"client_id", "nobodynobodynobodynobodynob"},
		"no verifier":       {"code_verifier", ""},
	} {
		code := w.signIn(b, "mei", "D1")
		q := pairs(append(append(good, "code", code), change...)...)
		a := w.send("/_carillon/oauth/token", "application/x-www-form-urlencoded", q.Encode())
		want, status := "invalid_grant", 400
		switch what {
		case "an unknown client":
			want, status = "invalid_client", 401
		case "no verifier":
			want = "invalid_request"
		}
		w.isError(what, a, status, want)
		if want == "invalid_grant" { // somebody has the code who should not
			w.isError("the right client after "+what, w.exchange(code), 400, "invalid_grant")
		}
	}
	code := w.signIn(b, "mei", "D1")
	w.clock.move(61 * time.Second)
	w.isError("an expired code", w.exchange(code), 400, "invalid_grant")
}

func TestRefresh(t *testing.T) {
	t.Parallel()
	w := open(t)
	access, refresh := w.session("mei", "D1")
	a := w.refresh(refresh)
	if a.Status != 200 || a.Get("scope").Str == "" {
		t.Fatalf("refresh: %d %s", a.Status, a.Body)
	}
	// The answer may be lost: the old pair is good until the new one is used.
	if w.whoami(access).Status != 200 {
		t.Error("the old token ended before the new one was used")
	}
	again := w.refresh(refresh)
	if again.Status != 200 {
		t.Fatalf("a repeated refresh: %d %s", again.Status, again.Body)
	}
	if w.whoami(again.Get("access_token").Str).Status != 200 {
		t.Fatal("the new token does not work")
	}
	for what, old := range map[string]string{"the first": access, "the lost": a.Get("access_token").Str} {
		if w.whoami(old).Status != 401 {
			t.Errorf("%s token works after its successor was used", what)
		}
	}
	// Whoever shows a refresh token of before ends the session.
	w.isError("a used refresh token", w.refresh(refresh), 400, "invalid_grant")
	if w.whoami(again.Get("access_token").Str).Status != 401 {
		t.Error("the session lives after a refresh token was reused")
	}
	w.isError("its last refresh token", w.refresh(again.Get("refresh_token").Str), 400, "invalid_grant")
}

func TestRefreshOfALostTwin(t *testing.T) {
	t.Parallel()
	w := open(t)
	_, refresh := w.session("mei", "D1")
	mine, theirs := w.refresh(refresh), w.refresh(refresh)
	if w.whoami(mine.Get("access_token").Str).Status != 200 {
		t.Fatal("the new token does not work")
	}
	w.isError("the twin", w.refresh(theirs.Get("refresh_token").Str), 400, "invalid_grant")
	if w.whoami(mine.Get("access_token").Str).Status != 401 {
		t.Error("two parties had the session, and it goes on")
	}
}

func TestRefreshMany(t *testing.T) {
	t.Parallel()
	w := open(t)
	_, refresh := w.session("mei", "D1")
	var wg sync.WaitGroup
	answers := make([]hstest.Answer, 8)
	for i := range answers {
		wg.Go(func() { answers[i] = w.refresh(refresh) })
	}
	wg.Wait()
	for i, a := range answers {
		if a.Status != 200 {
			t.Fatalf("refresh %d of many at once: %d %s", i, a.Status, a.Body)
		}
	}
	if w.whoami(answers[3].Get("access_token").Str).Status != 200 {
		t.Error("a pair of many does not work")
	}
	for i := range 12 { // and on, over many turns
		a := w.refresh(answers[3].Get("refresh_token").Str)
		if a.Status != 200 {
			t.Fatalf("turn %d: %d %s", i, a.Status, a.Body)
		}
		answers[3] = a
	}
}

func TestSessionsEndAndRest(t *testing.T) {
	t.Parallel()
	w := open(t)
	access, refresh := w.session("mei", "D1")
	w.clock.move(90 * time.Minute)
	if a := w.whoami(access); a.Status != 401 || a.Code() != "M_UNKNOWN_TOKEN" || !a.Get("soft_logout").Bool() {
		t.Errorf("an expired token: %d %s", a.Status, a.Body)
	}
	mei := w.User("mei").UserID
	if err := w.Accounts().SetLocked(t.Context(), matrix.UserID(mei), true); err != nil {
		t.Fatal(err)
	}
	if a := w.refresh(refresh); a.Status != 503 {
		t.Errorf("refreshing a locked session must not end it: %d %s", a.Status, a.Body)
	}
	if err := w.Accounts().SetLocked(t.Context(), matrix.UserID(mei), false); err != nil {
		t.Fatal(err)
	}
	a := w.refresh(refresh)
	if a.Status != 200 {
		t.Fatalf("after unlocking: %d %s", a.Status, a.Body)
	}
	access, refresh = a.Get("access_token").Str, a.Get("refresh_token").Str
	if err := w.Accounts().SetSuspended(t.Context(), matrix.UserID(mei), true); err != nil {
		t.Fatal(err)
	}
	if a := w.Do(access, "POST", "/_matrix/client/v3/createRoom", map[string]any{}); a.Code() != "M_USER_SUSPENDED" {
		t.Errorf("a suspended user: %d %s", a.Status, a.Body)
	}
	if a := w.whoami(access); a.Status != 200 {
		t.Errorf("a suspended user asks who they are: %d", a.Status)
	}
	// The two ways to log in do not mix.
	if a := w.Do("", "POST", "/_matrix/client/v3/refresh", map[string]any{"refresh_token": refresh}); a.Status != 401 {
		t.Errorf("the legacy refresh takes an OAuth token: %d %s", a.Status, a.Body)
	}
	if a := w.Do(access, "POST", "/_matrix/client/v3/delete_devices", map[string]any{"devices": []string{"D1"}}); a.Status != 403 {
		t.Errorf("interactive authentication of an OAuth session: %d %s", a.Status, a.Body)
	}
	if a := w.Do(access, "POST", "/_matrix/client/v3/logout", map[string]any{}); a.Status != 200 {
		t.Errorf("log-out: %d", a.Status)
	}
	w.isError("the refresh token of a device that is gone", w.refresh(refresh), 400, "invalid_grant")
}

func TestRevoke(t *testing.T) {
	t.Parallel()
	w := open(t)
	for i, hint := range []string{"access_token", "refresh_token", ""} {
		access, refresh := w.session("mei", "D1")
		tok := access
		if i == 1 {
			tok = refresh
		}
		if a := w.form("/_carillon/oauth/revoke", "token", tok, "token_type_hint", hint, "client_id", "of somebody else"); a.Status != 200 {
			t.Errorf("revoking: %d %s", a.Status, a.Body)
		}
		if w.whoami(access).Status != 401 {
			t.Error("a revoked session lives")
		}
		w.isError("its refresh token", w.refresh(refresh), 400, "invalid_grant")
	}
	mei := w.User("mei")
	if a := w.form("/_carillon/oauth/revoke", "token", mei.AccessToken); a.Status != 200 || w.whoami(mei.AccessToken).Status != 200 {
		t.Errorf("a token of the legacy API: %d", a.Status)
	}
	for _, r := range mei.OK("GET", "/_matrix/client/v3/devices", nil).Get("devices").Array() {
		if r.Get("device_id").Str == "D1" {
			t.Error("the device of a revoked session is left")
		}
	}
	w.isError("no token", w.form("/_carillon/oauth/revoke", "x", "y"), 400, "invalid_request")
	w.isError("an unknown hint", w.form("/_carillon/oauth/revoke", "token", "y", "token_type_hint", "z"), 400, "unsupported_token_type")
	if a := w.form("/_carillon/oauth/revoke", "token", "nobody's"); a.Status != 200 {
		t.Errorf("an unknown token: %d", a.Status)
	}
}

func TestDeviceOfBothAPIs(t *testing.T) {
	t.Parallel()
	w := open(t)
	access, refresh := w.session("mei", "D1")
	legacy := w.User("mei").Login("D1") // the same device by password: the OAuth session ends
	if w.whoami(access).Status != 401 || legacy.Do("GET", "/_matrix/client/v3/account/whoami", nil).Status != 200 {
		t.Error("two sessions share a device")
	}
	w.isError("the session before", w.refresh(refresh), 400, "invalid_grant")
	if _, r := w.session("mei", "D1"); r == "" {
		t.Error("no session")
	}
	if legacy.Do("GET", "/_matrix/client/v3/account/whoami", nil).Status != 401 {
		t.Error("the legacy session lives on after its device was taken")
	}
}

func TestRestartBetween(t *testing.T) {
	t.Parallel()
	w := open(t)
	b := w.Browser("en")
	code := w.signIn(b, "mei", "D1")
	w.Stop()
	w.Start()
	a := w.exchange(code)
	if a.Status != 200 {
		t.Fatalf("a code over a restart: %d %s", a.Status, a.Body)
	}
	first := w.refresh(a.Get("refresh_token").Str)
	w.Stop()
	w.Start()
	if w.whoami(a.Get("access_token").Str).Status != 200 || w.refresh(a.Get("refresh_token").Str).Status != 200 {
		t.Error("the old pair ended though the new one was never used")
	}
	if w.whoami(first.Get("access_token").Str).Status != 200 {
		t.Error("the pair of before the restart does not work")
	}
	if p := b.Get(w.authorize("D2")); !p.Shows("Allow") {
		t.Errorf("the browser was signed out by a restart: %s", p.Body)
	}
}

func TestIDToken(t *testing.T) {
	t.Parallel()
	w := open(t)
	b := w.Browser("en")
	w.User("mei")
	scope := "openid urn:matrix:org.matrix.msc2967.client:api:* urn:matrix:org.matrix.msc2967.client:device:D1 other"
	p := b.Get(w.authorize("D1", "scope", scope, "nonce", "N1")).Press("Sign in", "user", "mei", "password", "password of mei").Press("Allow")
	a := w.exchange(outcome(t, p.To).Get("code"))
	if a.Get("scope").Str != strings.TrimSuffix(scope, " other") {
		t.Errorf("scope: %s", a.Body)
	}
	parts := strings.Split(a.Get("id_token").Str, ".")
	if len(parts) != 3 {
		t.Fatalf("no ID token: %s", a.Body)
	}
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	claims := gjson.ParseBytes(body)
	if claims.Get("iss").Str != w.URL+"/" || claims.Get("aud").Str != w.client || claims.Get("nonce").Str != "N1" || claims.Get("sub").Str != "@mei:a.example" {
		t.Errorf("claims: %s", body)
	}
	verify(t, w, a.Get("id_token").Str)
}

// A client that is told 4xx at a refresh takes its session for ended: a busy office must not be logged out.
func TestRefreshIsNotLimited(t *testing.T) {
	t.Parallel()
	w := open(t, func(o *homeserver.Options) { o.RateLimits = httpapi.RateLimits{PerSecond: 0.1, Burst: 12} })
	_, refresh := w.session("mei", "D1")
	for i := range 30 {
		a := w.refresh(refresh)
		if a.Status != 200 {
			t.Fatalf("refresh %d: %d %s", i, a.Status, a.Body)
		}
		refresh = a.Get("refresh_token").Str
	}
	limited := false
	for range 30 {
		limited = limited || w.Do("", "POST", "/_carillon/oauth/register", metadata(nil)).Status == 429
	}
	if !limited {
		t.Error("registrations are not limited")
	}
}
