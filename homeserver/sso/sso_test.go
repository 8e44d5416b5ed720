package sso_test

import (
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sso"
)

const app = "https://app.client.example/#/home?x=1"

func (w *world) redirect(target string) string {
	return w.URL + "/_matrix/client/v3/login/sso/redirect/company?" + url.Values{"redirectUrl": {target}}.Encode()
}

// loginToken is the token with which the browser comes to the client.
func loginToken(t testing.TB, to string) string {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query().Get("loginToken")
}

func (w *world) login(token string) hstest.Answer {
	w.t.Helper()
	return w.Do("", "POST", "/_matrix/client/v3/login", map[string]any{"type": "m.login.token", "token": token})
}

// signIn takes somebody all the way into the account.
func (w *world) signIn(name string) hstest.Answer {
	w.t.Helper()
	b := w.browser()
	p := w.atProvider(b, b.Get(w.redirect(app)), name).Press("Continue")
	a := w.login(loginToken(w.t, p.To))
	if a.Status != 200 {
		w.t.Fatalf("log-in: %d %s (%q)", a.Status, a.Body, p.To)
	}
	return a
}

func TestLogIn(t *testing.T) {
	t.Parallel()
	w := open(t, nil)
	flows := w.Do("", "GET", "/_matrix/client/v3/login", nil)
	f := flows.Get(`flows.#(type=="m.login.sso")`)
	if f.Get("identity_providers.0.id").Str != "company" || f.Get("identity_providers.0.name").Str != "Corp company" || f.Get("oauth_aware_preferred").Exists() {
		t.Errorf("flows: %s", flows.Body)
	}
	b := w.browser()
	p := b.Get(w.redirect("https://app.client.example/?a=1&loginToken=forged&b=2#top"))
	q, err := url.Parse(p.To)
	if err != nil {
		t.Fatal(err)
	}
	if v := q.Query(); v.Get("code_challenge_method") != "S256" || v.Get("nonce") == "" || v.Get("scope") != "openid profile email" || v.Get("prompt") != "" {
		t.Errorf("the request to the provider: %s", p.To)
	}
	p = w.atProvider(b, p, "Anna.Test")
	if !p.Shows("app.client.example", "@anna.test:a.example") || !strings.Contains(p.Header.Get("Content-Security-Policy"), "form-action 'self' https://app.client.example;") {
		t.Fatalf("the page that asks: %s %v", p.Body, p.Header)
	}
	p = p.Press("Continue")
	token := loginToken(t, p.To)
	if want := "https://app.client.example/?a=1&b=2&loginToken=" + token + "#top"; p.To != want || token == "" {
		t.Fatalf("back at the client: %s, want %s", p.To, want)
	}
	a := w.login(token)
	if a.Get("user_id").Str != "@anna.test:a.example" {
		t.Fatalf("log-in: %d %s", a.Status, a.Body)
	}
	if again := w.login(token); again.Status != 403 || again.Code() != "M_FORBIDDEN" {
		t.Errorf("a token used twice: %d %s", again.Status, again.Body)
	}
	name := w.Do(a.Get("access_token").Str, "GET", "/_matrix/client/v3/profile/@anna.test:a.example/displayname", nil)
	if name.Get("displayname").Str != "Anna Test" {
		t.Errorf("the name of the new account: %s", name.Body)
	}
	// The next time it is the same account; a token that waits too long is worth nothing.
	b = w.browser()
	p = w.atProvider(b, b.Get(w.redirect(app)), "Anna.Test").Press("Continue")
	w.move(31 * time.Second)
	if late := w.login(loginToken(t, p.To)); late.Status != 403 {
		t.Errorf("an expired token: %d %s", late.Status, late.Body)
	}
	if n := len(w.Accounts().Users()); n != 1 {
		t.Errorf("%d accounts, want one", n)
	}
}

func TestTrustedClient(t *testing.T) {
	t.Parallel()
	w := open(t, nil, func(o *homeserver.Options) {
		o.SignIn.TrustedClients = []string{"https://chat.client.example/app/", "com.client.example://"}
	})
	for target, asks := range map[string]bool{
		"https://chat.client.example/app/":        false,
		"https://chat.client.example/app/x?y#z":   false,
		"https://chat.client.example/app":         false,
		"https://chat.client.example/apple":       true,
		"https://chat.client.example/app/../evil": true,
		"https://chat.client.example.evil/app/":   true,
		"http://chat.client.example/app/":         true,
		"https://evil@chat.client.example/app/":   true,
		"com.client.example://back":               true, // another host of the scheme
		w.URL + "/_matrix/static/client/login/":   false,
	} {
		b := w.browser()
		start := b.Get(w.redirect(target))
		if strings.Contains(target, "@") {
			if start.Status != 400 {
				t.Errorf("%s: %d", target, start.Status)
			}
			continue
		}
		p := w.atProvider(b, start, "bo")
		asked := p.Shows("Go on to sign in?")
		if !asked && strings.HasPrefix(target, w.URL) { // the browser has followed it on this server
			asked = loginToken(t, p.URL.String()) == ""
		} else if !asked && loginToken(t, p.To) == "" {
			t.Errorf("%s: no token: %d %q", target, p.Status, p.To)
		}
		if asked != asks {
			t.Errorf("%s: asked %v, want %v", target, asked, asks)
		}
	}
}

func TestAddressesThatAreNoClients(t *testing.T) {
	t.Parallel()
	w := open(t, nil)
	b := w.browser()
	for _, target := range []string{
		"", "javascript:alert(1)", "JavaScript:alert(1)", "data:text/html,x", "/relative", "//evil.example", "https:///x", "https:evil",
		"file:///etc/passwd", "https://a\nb", "vbscript:x", "https://user:pw@host/", "blob:https://x/y", "https://a\\b",
	} {
		if p := b.Get(w.redirect(target)); p.Status != 400 || p.To != "" {
			t.Errorf("%q: %d %q", target, p.Status, p.To)
		}
	}
	if p := b.Get(w.URL + "/_matrix/client/v3/login/sso/redirect/nobody?redirectUrl=https://x.example"); p.Status != 404 || !p.Shows("no such way") {
		t.Errorf("an unknown provider: %d %s", p.Status, p.Body)
	}
	if p := b.Get(w.URL + "/_matrix/client/v3/login/sso/redirect?redirectUrl=https://x.example"); !strings.HasPrefix(p.To, w.op.issuer) {
		t.Errorf("without a provider: %d %q", p.Status, p.To)
	}
}

func TestNameIsTaken(t *testing.T) {
	t.Parallel()
	w := open(t, nil)
	w.User("bo") // made before, with a password
	b := w.browser()
	p := w.atProvider(b, b.Get(w.redirect(app)), "bo")
	if p.Status != 409 || !p.Shows("There is an account of your name", "@bo:a.example") {
		t.Fatalf("conflict: %d %s", p.Status, p.Body)
	}
	if p = p.Press("Link the account", "password", "wrong"); p.Status != 403 || !p.Shows("Wrong password.") {
		t.Fatalf("a wrong password: %d %s", p.Status, p.Body)
	}
	if p = p.Press("Link the account", "password", "password of bo"); !p.Shows("Go on to sign in?", "@bo:a.example") {
		t.Fatalf("the right password: %d %s", p.Status, p.Body)
	}
	if a := w.login(loginToken(t, p.Press("Continue").To)); a.Get("user_id").Str != "@bo:a.example" {
		t.Errorf("log-in: %s", a.Body)
	}
	if a := w.signIn("bo"); a.Get("user_id").Str != "@bo:a.example" { // asked no more
		t.Errorf("the next time: %s", a.Body)
	}
}

func TestRules(t *testing.T) {
	t.Parallel()
	t.Run("an account of the name is the person's", func(t *testing.T) {
		w := open(t, func(p *sso.Provider) { p.LinkExisting = true })
		w.User("bo")
		if a := w.signIn("bo"); a.Get("user_id").Str != "@bo:a.example" {
			t.Errorf("%s", a.Body)
		}
	})
	t.Run("accounts are not made", func(t *testing.T) {
		w := open(t, func(p *sso.Provider) { p.Create = false })
		b := w.browser()
		if p := w.atProvider(b, b.Get(w.redirect(app)), "bo"); p.Status != 403 || !p.Shows("You have no account on this server") {
			t.Errorf("%d %s", p.Status, p.Body)
		}
		if len(w.Accounts().Users()) != 0 {
			t.Error("an account was made")
		}
	})
	t.Run("the name comes from another claim", func(t *testing.T) {
		w := open(t, func(p *sso.Provider) { p.Localpart, p.DisplayName = `staff.{{before "@" .email}}`, "" })
		if a := w.signIn("bo"); a.Get("user_id").Str != "@staff.bo:a.example" {
			t.Errorf("%s", a.Body)
		}
	})
	t.Run("a claim is missing", func(t *testing.T) {
		w := open(t, func(p *sso.Provider) { p.Localpart = "{{.employee_number}}" })
		b := w.browser()
		if p := w.atProvider(b, b.Get(w.redirect(app)), "bo"); p.Status != 403 || !p.Shows("does not tell your user name") {
			t.Errorf("%d %s", p.Status, p.Body)
		}
	})
	t.Run("a deactivated account stays closed", func(t *testing.T) {
		w := open(t, nil)
		w.signIn("bo")
		if err := w.Accounts().Deactivate(t.Context(), "@bo:a.example", false); err != nil {
			t.Fatal(err)
		}
		b := w.browser()
		if p := w.atProvider(b, b.Get(w.redirect(app)), "bo"); p.Status != 403 || !p.Shows("deactivated") {
			t.Errorf("%d %s", p.Status, p.Body)
		}
	})
	t.Run("no passwords", func(t *testing.T) {
		w := open(t, nil, func(o *homeserver.Options) { o.SignIn.NoPasswords = true })
		flows := w.Do("", "GET", "/_matrix/client/v3/login", nil)
		if flows.Get(`flows.#(type=="m.login.password")`).Exists() || !flows.Get(`flows.#(type=="m.login.sso")`).Exists() {
			t.Errorf("flows: %s", flows.Body)
		}
		w.User("mei")
		a := w.Do("", "POST", "/_matrix/client/v3/login", map[string]any{
			"type": "m.login.password", "identifier": map[string]any{"type": "m.id.user", "user": "mei"}, "password": "password of mei",
		})
		if a.Status != 403 {
			t.Errorf("a password is taken: %d %s", a.Status, a.Body)
		}
	})
}

func TestProviderThatIsAway(t *testing.T) {
	t.Parallel()
	w := open(t, nil)
	w.op.srv.Close()
	b := w.browser()
	if p := b.Get(w.redirect(app)); p.Status != 502 || !p.Shows("cannot be reached") {
		t.Fatalf("%d %s", p.Status, p.Body)
	}
	if a := w.Do("", "GET", "/_matrix/client/v3/login", nil); a.Status != 200 {
		t.Errorf("log-in with a provider that is away: %d", a.Status)
	}
	ln, err := w.op.ln.Addr(), error(nil)
	if err != nil {
		t.Fatal(err)
	}
	w.op.ln = listen(t, ln.String())
	w.op.serve(w.URL + "/_carillon/sso/callback/company")
	w.move(5 * time.Second)
	if p := b.Get(w.redirect(app)); !strings.HasPrefix(p.To, w.op.issuer) {
		t.Errorf("after it has come back: %d %s", p.Status, p.Body)
	}
}

func TestCertificateOfAStranger(t *testing.T) {
	t.Parallel()
	w := open(t, nil, func(o *homeserver.Options) { o.SignIn.ExtraCAs = nil })
	if p := w.browser().Get(w.redirect(app)); p.Status != 502 {
		t.Errorf("a certificate that nobody trusts: %d %q", p.Status, p.To)
	}
}

func TestCallbackIsGuarded(t *testing.T) {
	t.Parallel()
	w := open(t, nil)
	start := func(b *hstest.Browser) string { // the answer of the provider
		return w.loginAt(b, b.Get(w.redirect(app)).To, "bo").To
	}
	refused := func(what string, p *hstest.Page, status int) {
		t.Helper()
		if p.Status != status || p.Shows("Continue") || p.To != "" {
			t.Errorf("%s: %d %q %s", what, p.Status, p.To, p.Body)
		}
	}
	b := w.browser()
	back := start(b)
	refused("an answer in another browser", w.browser().Get(back), 400)
	other := w.browser()
	start(other)
	refused("an answer of another sign-in", other.Get(back), 400)
	refused("a changed state", b.Get(strings.Replace(back, "state=", "state=x", 1)), 400)
	refused("the callback of another provider", b.Get(strings.Replace(back, "/company", "/other", 1)), 400)
	if p := b.Get(back); !p.Shows("Continue") {
		t.Fatalf("the right answer: %d %s", p.Status, p.Body)
	}
	refused("the answer again", b.Get(back), 400)

	back = start(b)
	refused("another issuer", b.Get(back+"&iss=https%3A%2F%2Fevil.example"), 400)
	back = start(b)
	u, err := url.Parse(back)
	if err != nil {
		t.Fatal(err)
	}
	refused("an error", b.Get(w.URL+u.Path+"?error=access_denied&state="+u.Query().Get("state")), 403)
	back = start(b)
	refused("a made-up code", b.Get(strings.Replace(back, "code=", "code=x", 1)), 502)
	back = start(b)
	w.move(11 * time.Minute)
	refused("an answer that took long", b.Get(back), 400)
}

func TestTokenOfAnotherClient(t *testing.T) {
	t.Parallel()
	// A code that somebody else's sign-in gave is bound to that browser's verifier and nonce.
	w := open(t, nil)
	attacker, victim := w.browser(), w.browser()
	stolen, err := url.Parse(w.loginAt(attacker, attacker.Get(w.redirect(app)).To, "bo").To)
	if err != nil {
		t.Fatal(err)
	}
	mine, err := url.Parse(w.loginAt(victim, victim.Get(w.redirect(app)).To, "Anna.Test").To)
	if err != nil {
		t.Fatal(err)
	}
	q := mine.Query()
	q.Set("code", stolen.Query().Get("code"))
	mine.RawQuery = q.Encode()
	if p := victim.Get(mine.String()); p.Status == 200 {
		t.Errorf("an injected code was taken: %s", p.Body)
	}
}

func TestConfirmationIsGuarded(t *testing.T) {
	t.Parallel()
	w := open(t, nil)
	b := w.browser()
	p := w.atProvider(b, b.Get(w.redirect(app)), "bo")
	box := p.Form("Continue").Fields.Get("box")
	if p := w.browser().Post(w.URL+"/_carillon/sso/confirm", url.Values{"box": {box}, "token": {p.Form("Continue").Fields.Get("token")}}); p.Status != 403 {
		t.Errorf("a form in another browser: %d", p.Status)
	}
	if p := p.Press("Continue", "token", "x"); p.Status != 403 {
		t.Errorf("a form without token: %d", p.Status)
	}
	if p := p.Press("Continue", "box", box[:len(box)-2]+"xx"); p.Status != 403 || p.To != "" {
		t.Errorf("a changed box: %d %q", p.Status, p.To)
	}
	b.Headers = map[string]string{"Sec-Fetch-Site": "cross-site"}
	if p := p.Press("Continue"); p.Status != 403 {
		t.Errorf("a form of another site: %d", p.Status)
	}
	b.Headers = nil
	w.move(11 * time.Minute)
	if p := p.Press("Continue"); p.Status != 403 {
		t.Errorf("an old form: %d", p.Status)
	}
}

func TestStageOfInteractiveAuthentication(t *testing.T) {
	t.Parallel()
	w := open(t, nil)
	bo := w.signIn("bo")
	token, device := bo.Get("access_token").Str, bo.Get("device_id").Str
	path := "/_matrix/client/v3/devices/" + device
	a := w.Do(token, "DELETE", path, map[string]any{})
	if a.Status != 401 || a.Get("flows.#").Int() != 1 || a.Get("flows.0.stages.0").Str != "m.login.sso" {
		t.Fatalf("flows of somebody without a password: %d %s", a.Status, a.Body)
	}
	session := a.Get("session").Str
	fallback := w.URL + "/_matrix/client/v3/auth/m.login.sso/fallback/web?session=" + session
	auth := map[string]any{"auth": map[string]any{"session": session}}
	if a := w.Do(token, "DELETE", path, map[string]any{"auth": map[string]any{"type": "m.login.sso", "session": session}}); a.Status != 401 {
		t.Errorf("a stage that is not done: %d %s", a.Status, a.Body)
	}

	b := w.browser()
	start := b.Get(fallback)
	if u, err := url.Parse(start.To); err != nil || u.Query().Get("prompt") != "login" {
		t.Errorf("the provider is not told to ask again: %s", start.To)
	}
	if p := w.atProvider(b, start, "Anna.Test"); p.Status != 403 || p.Shows("Confirm") && len(p.Forms) > 0 {
		t.Errorf("somebody else confirms: %d %s", p.Status, p.Body)
	}
	b = w.browser()
	p := w.atProvider(b, b.Get(fallback), "bo")
	if !p.Shows("sign out devices of yours") {
		t.Fatalf("the page does not say what is confirmed: %s", p.Body)
	}
	if a := w.Do(token, "DELETE", path, auth); a.Status != 401 {
		t.Errorf("done before it was confirmed: %d", a.Status)
	}
	p = p.Press("Confirm")
	if !p.Shows("window.onAuthDone") || !strings.Contains(p.Header.Get("Content-Security-Policy"), "script-src 'sha256-") {
		t.Errorf("the completed stage: %s", p.Body)
	}
	if a := w.Do(token, "DELETE", path, auth); a.Status != 200 {
		t.Errorf("after confirming: %d %s", a.Status, a.Body)
	}
	if p := w.browser().Get(w.URL + "/_matrix/client/v3/auth/m.login.sso/fallback/web?session=nobody"); p.Status != 400 {
		t.Errorf("an unknown session: %d", p.Status)
	}
	// With a password too, either will do.
	mei := w.User("bo2")
	if a := mei.Do("DELETE", "/_matrix/client/v3/devices/"+string(mei.DeviceID), map[string]any{}); a.Get("flows.0.stages.0").Str != "m.login.password" || a.Get("flows.#").Int() != 1 {
		t.Errorf("flows of somebody with a password alone: %s", a.Body)
	}
}

func TestTwoProviders(t *testing.T) {
	t.Parallel()
	var second *op
	w := open(t, nil, func(o *homeserver.Options) {
		ps := &providers{}
		ps.authority = newAuthority(t)
		second = ps.newOP(t)
		o.SignIn.ExtraCAs = append(append([]byte{}, o.SignIn.ExtraCAs...), ps.authority.PEM...)
		p := (&world{}).provider("second", second)
		o.SignIn.Providers = append(o.SignIn.Providers, p)
	})
	second.serve(w.URL + "/_carillon/sso/callback/second")
	b := w.browser()
	p := b.Get(w.URL + "/_matrix/client/v3/login/sso/redirect?" + url.Values{"redirectUrl": {app}}.Encode())
	if !p.Shows("Corp company", "Corp second") {
		t.Fatalf("the choice: %s", p.Body)
	}
	to := p.Follow("Continue with Corp second").To
	if !strings.HasPrefix(to, second.issuer) {
		t.Errorf("the second leads to %s", to)
	}
	if p := w.atProvider(b, p.Follow("Continue with Corp company"), "bo"); !p.Shows("Continue") {
		t.Errorf("at the first: %s", p.Body)
	}
	// Mix-up: the answer of one provider at the callback of the other.
	back := w.loginAt(b, b.Get(w.redirect(app)).To, "bo").To
	if p := b.Get(strings.Replace(back, "callback/company", "callback/second", 1)); p.Status != 400 {
		t.Errorf("an answer at the wrong callback: %d", p.Status)
	}
}

func TestWithOAuth(t *testing.T) {
	t.Parallel()
	w := open(t, nil, func(o *homeserver.Options) { o.SignIn.OAuth = true })
	reg := w.Do("", "POST", "/_carillon/oauth/register", map[string]any{
		"client_uri": "https://client.example", "client_name": "Bell", "redirect_uris": []string{"https://client.example/cb"},
		"token_endpoint_auth_method": "none", "grant_types": []string{"authorization_code", "refresh_token"}, "response_types": []string{"code"},
	})
	sum := sha256.Sum256([]byte(strings.Repeat("v", 43)))
	address := w.URL + "/_carillon/oauth/authorize?" + url.Values{
		"response_type": {"code"}, "client_id": {reg.Get("client_id").Str}, "redirect_uri": {"https://client.example/cb"}, "state": {"s"},
		"scope": {"urn:matrix:client:api:* urn:matrix:client:device:D1"}, "code_challenge_method": {"S256"},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])},
	}.Encode()
	b := w.browser()
	p := b.Get(address)
	if !p.Shows("Continue with Corp company", "Bell", "Password") {
		t.Fatalf("the sign-in page: %s", p.Body)
	}
	p = w.atProvider(b, p.Follow("Continue with Corp company"), "Anna.Test")
	if !p.Shows("Give access to your account?", "@anna.test:a.example", "Bell") {
		t.Fatalf("after the provider: %d %s", p.Status, p.Body)
	}
	u, err := url.Parse(p.Press("Allow").To)
	if err != nil {
		t.Fatal(err)
	}
	tok := w.Browser("").Post(w.URL+"/_carillon/oauth/token", url.Values{
		"grant_type": {"authorization_code"}, "code": {u.Query().Get("code")}, "redirect_uri": {"https://client.example/cb"},
		"client_id": {reg.Get("client_id").Str}, "code_verifier": {strings.Repeat("v", 43)},
	})
	if !tok.Shows("access_token") {
		t.Fatalf("token: %s", tok.Body)
	}
	if p := b.Get(w.URL + "/_carillon/account/sso/nobody"); p.Status != 404 || !p.Shows("no such way") {
		t.Errorf("an unknown provider: %d %s", p.Status, p.Body)
	}
	if p := b.Get(w.URL + "/_carillon/account"); !p.Shows("Corp company", "Linked") || p.Shows("/_carillon/account/password") {
		t.Errorf("the account page: %s", p.Body)
	}
	// What cannot be undone asks at the provider again.
	w.move(11 * time.Minute)
	p = b.Get(w.URL + "/_carillon/account/deactivate")
	if !p.Shows("Confirm it is you") {
		t.Fatalf("closing the account: %s", p.Body)
	}
	start := p.Follow("Continue with Corp company")
	if !strings.Contains(start.To, "prompt=login") {
		t.Errorf("the provider is not told to ask again: %s", start.To)
	}

	// m.login.sso for clients that know the legacy API alone, through the same page.
	flows := w.Do("", "GET", "/_matrix/client/v3/login", nil)
	if !flows.Get(`flows.#(type=="m.login.sso").oauth_aware_preferred`).Bool() {
		t.Errorf("flows: %s", flows.Body)
	}
	bo := w.browser()
	w.User("mei")
	p = bo.Get(w.URL + "/_matrix/client/v3/login/sso/redirect?action=login&" + url.Values{"redirectUrl": {app}}.Encode())
	p = p.Press("Sign in", "user", "mei", "password", "password of mei")
	if !p.Shows("app.client.example", "@mei:a.example") {
		t.Fatalf("the page that asks: %s", p.Body)
	}
	if a := w.login(loginToken(t, p.Press("Allow").To)); a.Get("user_id").Str != "@mei:a.example" {
		t.Errorf("log-in with a password at the page: %s", a.Body)
	}
	if p := bo.Get(w.URL + "/_carillon/account/client?redirectUrl=javascript:alert(1)"); p.Status != 400 {
		t.Errorf("a client that is none: %d", p.Status)
	}
}

func TestAdministrators(t *testing.T) {
	t.Parallel()
	w := open(t, nil, func(o *homeserver.Options) { o.Admins = []matrix.UserID{"@chief:a.example"} })
	chief := w.User("chief")
	w.User("wei")
	path := "/_carillon/admin/v1/users/@wei:a.example/identities"
	if a := w.User("wei").Do("GET", path, nil); a.Status != 403 {
		t.Errorf("somebody else asks: %d", a.Status)
	}
	chief.OK("POST", path, map[string]any{"provider": "company", "subject": "id-bo"})
	chief.Refused(409, "M_UNKNOWN", "POST", path, map[string]any{"provider": "company", "subject": "id-bo"})
	chief.Refused(404, "M_NOT_FOUND", "POST", path, map[string]any{"provider": "x", "subject": "y"})
	chief.Refused(400, "M_INVALID_PARAM", "POST", path, map[string]any{"provider": "company", "subject": ""})
	if a := w.signIn("bo"); a.Get("user_id").Str != "@wei:a.example" {
		t.Errorf("a link by hand: %s", a.Body)
	}
	if l := chief.OK("GET", path, nil); l.Get("identities.0.subject").Str != "id-bo" {
		t.Errorf("list: %s", l)
	}
	chief.OK("DELETE", path+"/company/id-bo", nil)
	chief.Refused(404, "M_NOT_FOUND", "DELETE", path+"/company/id-bo", nil)
	if a := w.signIn("bo"); a.Get("user_id").Str != "@bo:a.example" {
		t.Errorf("after the link was removed: %s", a.Body)
	}
}
