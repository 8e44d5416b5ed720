package oauth_test

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// at signs a browser in to the account pages.
func (w *world) at(b *hstest.Browser, user, path string) *hstest.Page {
	w.t.Helper()
	w.User(user)
	p := b.Get(w.URL + path)
	if p.Shows("Sign in") {
		p = p.Press("Sign in", "user", user, "password", "password of "+user)
	}
	return p
}

func (w *world) device(fields ...string) hstest.Answer {
	w.t.Helper()
	q := pairs("client_id", w.client, "scope", "urn:matrix:client:api:* urn:matrix:client:device:TV00000001")
	for i := 0; i+1 < len(fields); i += 2 {
		q.Set(fields[i], fields[i+1])
	}
	return w.send("/_carillon/oauth/device", "application/x-www-form-urlencoded", q.Encode())
}

func (w *world) poll(code string) hstest.Answer {
	w.t.Helper()
	return w.token("grant_type", "urn:ietf:params:oauth:grant-type:device_code", "device_code", code, "client_id", w.client)
}

func TestDeviceGrant(t *testing.T) {
	t.Parallel()
	w := open(t)
	a := w.device()
	if a.Status != 200 || a.Get("interval").Int() != 5 || a.Get("expires_in").Int() < 300 || !regexp.MustCompile(`^[B-Z]{4}-[B-Z]{4}$`).MatchString(a.Get("user_code").Str) ||
		a.Get("verification_uri_complete").Str != a.Get("verification_uri").Str+"?user_code="+a.Get("user_code").Str {
		t.Fatalf("device authorization: %d %s", a.Status, a.Body)
	}
	code := a.Get("device_code").Str
	w.isError("undecided", w.poll(code), 400, "authorization_pending")
	w.isError("at once again", w.poll(code), 400, "slow_down")
	w.clock.move(6 * time.Second)
	w.isError("after the old interval", w.poll(code), 400, "slow_down")
	w.clock.move(15 * time.Second)
	w.isError("after the new interval", w.poll(code), 400, "authorization_pending")

	b := w.Browser("en")
	p := w.at(b, "mei", "/_carillon/link")
	if !p.Shows("Enter the code that the device shows.") {
		t.Fatalf("the page for codes: %s", p.Body)
	}
	if p := p.Press("Next", "user_code", "BCDF-GHJK"); p.Status != 400 || !p.Shows("This code is not valid or has expired.") {
		t.Errorf("a wrong code: %d %s", p.Status, p.Body)
	}
	typed := strings.ToLower(strings.ReplaceAll(a.Get("user_code").Str, "-", " "))
	p = p.Press("Next", "user_code", typed)
	if !p.Shows("Bell", "client.example", a.Get("user_code").Str, "@mei:a.example") {
		t.Fatalf("the page that asks: %s", p.Body)
	}
	if p := p.Press("Allow", "token", "x"); p.Status != 403 {
		t.Errorf("a forged answer: %d", p.Status)
	}
	if p := p.Press("Allow"); !p.Shows("Go on at your device.") {
		t.Fatalf("allowed: %s", p.Body)
	}
	if p := p.Press("Allow"); p.Status != 400 {
		t.Errorf("allowed twice: %d", p.Status)
	}
	w.clock.move(20 * time.Second)
	other := w.register(map[string]any{"client_name": "Other"})
	w.isError("another client", w.token("grant_type", "urn:ietf:params:oauth:grant-type:device_code", "device_code", code, "client_id", other), 400, "invalid_grant")
	got := w.poll(code)
	if got.Status != 200 || got.Get("refresh_token").Str == "" {
		t.Fatalf("token: %d %s", got.Status, got.Body)
	}
	if who := w.whoami(got.Get("access_token").Str); who.Get("user_id").Str != "@mei:a.example" || who.Get("device_id").Str != "TV00000001" {
		t.Errorf("whoami: %s", who.Body)
	}
	w.isError("once more", w.poll(code), 400, "invalid_grant")
	if a := w.refresh(got.Get("refresh_token").Str); a.Status != 200 {
		t.Errorf("refresh: %d %s", a.Status, a.Body)
	}
}

func TestDeviceGrantRefused(t *testing.T) {
	t.Parallel()
	w := open(t)
	b := w.Browser("en")
	a := w.device()
	w.at(b, "mei", "/_carillon/link?user_code="+a.Get("user_code").Str).Press("Decline")
	w.isError("declined", w.poll(a.Get("device_code").Str), 400, "access_denied")
	a = w.device()
	w.clock.move(21 * time.Minute)
	w.isError("too late", w.poll(a.Get("device_code").Str), 400, "expired_token")
	if p := b.Get(w.URL + "/_carillon/link?user_code=" + a.Get("user_code").Str); p.Status != 400 {
		t.Errorf("an expired code: %d", p.Status)
	}
	w.isError("a code of nobody", w.poll("x"), 400, "invalid_grant")
	w.isError("no client", w.device("client_id", "x"), 401, "invalid_client")
	w.isError("no device", w.device("scope", "urn:matrix:client:api:*"), 400, "invalid_scope")
	web := w.register(map[string]any{"grant_types": []string{"authorization_code", "refresh_token"}})
	w.isError("not registered for it", w.device("client_id", web), 400, "unauthorized_client")
	// Codes are short, so nobody may try many.
	limited := false
	for range 15 {
		limited = limited || b.Get(w.URL+"/_carillon/link?user_code=BCDFGHJK").Status == http.StatusTooManyRequests
	}
	if !limited {
		t.Error("codes can be guessed without end")
	}
}

func TestFormsAreGuarded(t *testing.T) {
	t.Parallel()
	w := open(t)
	w.session("mei", "D1")
	b := w.Browser("en")
	w.at(b, "mei", "/_carillon/account")
	device := w.URL + "/_carillon/account/devices/D1"
	stranger := w.at(w.Browser("en"), "jun", "/_carillon/account")
	for what, fields := range map[string]url.Values{
		"no token":                {"do": {"delete"}},
		"a token of nobody":       {"do": {"delete"}, "token": {"x"}},
		"a token of another user": {"do": {"delete"}, "token": {stranger.Form("Save").Fields.Get("token")}},
	} {
		if p := b.Post(device, fields); p.Status != 403 {
			t.Errorf("%s: %d", what, p.Status)
		}
	}
	right := b.Get(device).Form("Sign out this device").Fields
	b.Headers = map[string]string{"Sec-Fetch-Site": "cross-site"}
	right.Set("do", "delete")
	if p := b.Post(device, right); p.Status != 403 {
		t.Errorf("a form of another site: %d", p.Status)
	}
	b.Headers = nil
	for what, address := range map[string]string{"consent": w.authorize("D2"), "sign-in": w.URL + "/_carillon/account/login?again=1"} {
		if p := b.Post(address, url.Values{"decision": {"allow"}, "user": {"mei"}, "password": {"password of mei"}}); p.Status != 403 || p.To != "" {
			t.Errorf("%s without a token: %d %q", what, p.Status, p.To)
		}
	}
	if n := w.User("mei").OK("GET", "/_matrix/client/v3/devices/D1", nil); n.Get("device_id").Str != "D1" {
		t.Error("the device is gone")
	}
	if p := b.Post(device, url.Values{"x": {strings.Repeat("y", 70_000)}}); p.Status != 413 {
		t.Errorf("a huge form: %d", p.Status)
	}
	for _, c := range b.Cookies(w.URL) {
		if len(c.Value) < 22 {
			t.Errorf("cookie %s is short", c.Name)
		}
	}
	r, err := http.Post(w.URL+"/_carillon/account/login", "application/x-www-form-urlencoded", strings.NewReader("user=mei"))
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	for _, c := range r.Cookies() {
		if !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" {
			t.Errorf("cookie: %s", c)
		}
	}
}

func TestAccountPages(t *testing.T) {
	t.Parallel()
	w := open(t, func(o *homeserver.Options) { o.Admins = []matrix.UserID{"@chief:a.example"} })
	access, _ := w.session("mei", "PHONE1")
	b := w.Browser("en")
	p := w.at(b, "mei", "/_carillon/account?action=org.matrix.profile")
	if p.Shows("Contact details") {
		t.Errorf("contact details of nobody: %s", p.Body)
	}
	chief := w.User("chief").AccessToken
	if a := w.Do(chief, "POST", "/_carillon/admin/v1/users/@mei:a.example/contacts", map[string]any{"medium": "email", "address": "mei@corp.example"}); a.Status != 201 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	if p := b.Get(w.URL + "/_carillon/account"); !p.Shows("Contact details", "mei@corp.example") {
		t.Errorf("contact details: %s", p.Body)
	}
	p = p.Press("Save", "name", "梅 <b>")
	if !p.Shows("Saved.", "梅 <b>") || strings.Contains(p.Body, "梅 <b>") {
		t.Errorf("name: %s", p.Body)
	}
	if n := w.Do(access, "GET", "/_matrix/client/v3/profile/@mei:a.example/displayname", nil); n.Get("displayname").Str != "梅 <b>" {
		t.Errorf("profile: %s", n.Body)
	}
	p = b.Get(w.URL + "/_carillon/account?action=org.matrix.devices_list")
	if !p.Shows("PHONE1", "Bell") {
		t.Errorf("devices: %s", p.Body)
	}
	for _, action := range []string{"org.matrix.device_view", "org.matrix.session_view", "session_end", "org.matrix.device_delete"} {
		p = b.Get(w.URL + "/_carillon/account?device_id=PHONE1&action=" + action)
		if !p.Shows("PHONE1", "client.example", "Sign out this device") {
			t.Errorf("%s: %s", action, p.Body)
		}
	}
	if p := p.Press("Rename", "name", "My phone"); !p.Shows("My phone") {
		t.Errorf("renamed: %s", p.Body)
	}
	if p := p.Press("Sign out this device"); !p.Shows("The device has been signed out.") || p.Shows("PHONE1") {
		t.Errorf("signed out: %s", p.Body)
	}
	if w.whoami(access).Status != 401 {
		t.Error("the session of a device that was signed out lives")
	}
	if p := b.Get(w.URL + "/_carillon/account/devices/PHONE1"); p.Status != 404 {
		t.Errorf("a device that is gone: %d", p.Status)
	}
	w.session("jun", "JUNS")
	if p := b.Get(w.URL + "/_carillon/account/devices/JUNS"); p.Status != 404 {
		t.Errorf("somebody else's device: %d", p.Status)
	}
	if p := b.Get(w.URL + "/_carillon/account").Press("Sign out of this browser"); !p.Shows("Sign in") {
		t.Errorf("signed out: %s", p.Body)
	}
	if p := b.Get(w.URL + "/_carillon/account/devices"); !p.Shows("Sign in") || p.Shows("Devices") && p.URL.Path != "/_carillon/account/login" {
		t.Errorf("after signing out: %s", p.URL)
	}
}

func TestPasswordPage(t *testing.T) {
	t.Parallel()
	w := open(t, func(o *homeserver.Options) { o.MinPassword = 8 })
	access, _ := w.session("mei", "D1")
	b, other := w.Browser("en"), w.Browser("en")
	w.at(other, "mei", "/_carillon/account")
	p := w.at(b, "mei", "/_carillon/account/password")
	for _, c := range []struct{ current, new, repeat, want string }{
		{"wrong", "new password", "new password", "The current password is wrong."},
		{"password of mei", "new password", "other", "The two passwords differ."},
		{"password of mei", "short", "short", "The password is too short."},
	} {
		if p := p.Press("Change", "current", c.current, "password", c.new, "repeat", c.repeat); !p.Shows(c.want) {
			t.Errorf("%+v: %s", c, p.Body)
		}
	}
	if p := p.Press("Change", "current", "password of mei", "password", "new password", "repeat", "new password", "logout", "1"); !p.Shows("The password has been changed.") {
		t.Fatalf("changed: %s", p.Body)
	}
	if w.whoami(access).Status != 401 {
		t.Error("the devices were to be signed out")
	}
	if p := other.Get(w.URL + "/_carillon/account"); !p.Shows("Sign in") {
		t.Error("another browser stays signed in after the password was changed")
	}
	p = b.Get(w.URL + "/_carillon/account")
	if !p.Shows("@mei:a.example") {
		t.Error("the browser that has changed the password is signed out")
	}
	if p := p.Press("Save", "name", "Mei"); !p.Shows("Saved.") {
		t.Errorf("its forms: %d %s", p.Status, p.Body)
	}
	if err := w.Accounts().SetPassword(t.Context(), "@mei:a.example", "by an administrator", false, ""); err != nil {
		t.Fatal(err)
	}
	if p := b.Get(w.URL + "/_carillon/account"); !p.Shows("Sign in") {
		t.Error("the browser stays signed in after the password was changed elsewhere")
	}
}

func TestDeactivation(t *testing.T) {
	t.Parallel()
	w := open(t)
	access, _ := w.session("mei", "D1")
	b := w.Browser("en")
	w.at(b, "mei", "/_carillon/account")
	w.clock.move(11 * time.Minute)
	p := b.Get(w.URL + "/_carillon/account?action=org.matrix.account_deactivate")
	if !p.Shows("Confirm it is you", `value="@mei:a.example"`) {
		t.Fatalf("an old sign-in is enough: %s", p.Body)
	}
	p = p.Press("Sign in", "password", "password of mei")
	if p = p.Press("Close the account", "confirm", "jun"); p.Status != 400 || !p.Shows("That is not your user name.") {
		t.Fatalf("a wrong name: %d %s", p.Status, p.Body)
	}
	if p = p.Press("Close the account", "confirm", "mei"); !p.Shows("The account has been deactivated.") {
		t.Fatalf("closed: %s", p.Body)
	}
	if w.whoami(access).Status != 401 || w.Accounts().Active("@mei:a.example") {
		t.Error("the account lives")
	}
	if p := b.Get(w.URL + "/_carillon/account"); !p.Shows("Sign in") {
		t.Error("the browser of a closed account is signed in")
	}
}

func TestCrossSigningReset(t *testing.T) {
	t.Parallel()
	w := open(t)
	access, _ := w.session("mei", "D1")
	upload := func(seed byte, auth any) hstest.Answer {
		body := crossKeys("@mei:a.example", seed)
		if auth != nil {
			body["auth"] = auth
		}
		return w.Do(access, "POST", "/_matrix/client/v3/keys/device_signing/upload", body)
	}
	if a := upload(1, nil); a.Status != 200 {
		t.Fatalf("the first keys: %d %s", a.Status, a.Body)
	}
	a := upload(2, nil)
	if a.Status != 401 || a.Get("flows.0.stages.0").Str != "m.oauth" || a.Get("flows.1.stages.0").Str != "org.matrix.cross_signing_reset" ||
		a.Get(`params.m\.oauth.url`).Str != w.URL+"/_carillon/account?action=org.matrix.cross_signing_reset" {
		t.Fatalf("replacing them: %d %s", a.Status, a.Body)
	}
	session := map[string]any{"session": a.Get("session").Str}
	if a := upload(2, session); a.Status != 401 || a.Get("session").Str != session["session"] {
		t.Errorf("before the person has agreed: %d %s", a.Status, a.Body)
	}
	if a := upload(2, map[string]any{"type": "m.login.password", "password": "password of mei", "session": session["session"]}); a.Status != 401 {
		t.Errorf("with a password: %d", a.Status)
	}
	b := w.Browser("en")
	u, _ := url.Parse(a.Get(`params.m\.oauth.url`).Str)
	p := w.at(b, "mei", u.RequestURI())
	if p = p.Press("Allow the reset"); !p.Shows("The reset is allowed.") {
		t.Fatalf("agreeing: %s", p.Body)
	}
	if a := upload(2, session); a.Status != 200 {
		t.Errorf("after it: %d %s", a.Status, a.Body)
	}
	if a := upload(3, nil); a.Status != 401 {
		t.Errorf("an agreement is good twice: %d", a.Status)
	}
	// Clients that begin anew instead of going on.
	b.Get(w.URL + "/_carillon/account/reset").Press("Allow the reset")
	if a := upload(3, nil); a.Status != 200 {
		t.Errorf("without a session: %d %s", a.Status, a.Body)
	}
	b.Get(w.URL + "/_carillon/account/reset").Press("Allow the reset")
	w.clock.move(10*time.Minute + time.Second)
	if a := upload(4, nil); a.Status != 401 {
		t.Errorf("an old agreement: %d", a.Status)
	}
	// Sessions of the legacy API go on by password.
	legacy := w.User("mei")
	a = legacy.Do("POST", "/_matrix/client/v3/keys/device_signing/upload", crossKeys("@mei:a.example", 5))
	if a.Status != 401 || a.Get("flows.0.stages.0").Str != "m.login.password" || a.Get("flows.#").Int() != 1 {
		t.Errorf("a legacy session: %d %s", a.Status, a.Body)
	}
}

func TestSignUp(t *testing.T) {
	t.Parallel()
	w := open(t)
	if a := w.Do("", "GET", "/_matrix/client/v1/auth_metadata", nil); a.Get("prompt_values_supported.0").Str != "create" {
		t.Errorf("metadata: %s", a.Body)
	}
	b := w.Browser("en")
	p := b.Get(w.authorize("D1", "prompt", "create"))
	w.User("taken")
	for _, c := range []struct{ user, password, repeat, want string }{
		{"taken", "a password", "a password", "This user name is taken."},
		{"Ü", "a password", "a password", "A user name has the letters"},
		{"wei", "a password", "another", "The two passwords differ."},
	} {
		if p := p.Press("Make the account", "user", c.user, "password", c.password, "repeat", c.repeat); !p.Shows(c.want) {
			t.Errorf("%+v: %s", c, p.Body)
		}
	}
	p = p.Press("Make the account", "user", "wei", "password", "a password", "repeat", "a password")
	if !p.Shows("Give access to your account?", "@wei:a.example") {
		t.Fatalf("after it: %s", p.Body)
	}
	closed := open(t, func(o *homeserver.Options) { o.Registration = accounts.Registration{Enabled: true, Tokens: true} })
	p = closed.Browser("en").Get(closed.URL + "/_carillon/account/register")
	if p = p.Press("Make the account", "user", "wei", "password", "a password", "repeat", "a password", "registration_token", "guess"); p.Status != 403 || !p.Shows("The registration token is not valid.") {
		t.Errorf("a wrong token: %d %s", p.Status, p.Body)
	}
	none := open(t, func(o *homeserver.Options) { o.Registration = accounts.Registration{} })
	if p := none.Browser("en").Get(none.URL + "/_carillon/account/register"); p.Status != 404 {
		t.Errorf("registration that is off: %d", p.Status)
	}
}

func TestLanguages(t *testing.T) {
	t.Parallel()
	w := open(t)
	w.User("mei")
	for accept, want := range map[string]string{
		"zh-CN,zh;q=0.9": "登录", "en-US,en;q=0.9": "Sign in", "": "登录", "fr": "Sign in", "en;q=0.2, zh;q=0.8": "登录", "zh-Hant-TW": "登录", "x;;;,": "登录",
	} {
		if p := w.Browser(accept).Get(w.authorize("D1")); !p.Shows("<h1>" + want + "</h1>") {
			t.Errorf("%q: %s", accept, p.Body)
		}
	}
	b := w.Browser("zh")
	p := b.Get(w.authorize("D1", "state", "s"))
	if !p.Shows("密码", `lang="zh"`) {
		t.Errorf("%s", p.Body)
	}
	p = p.Follow("English")
	if !p.Shows("Password", `lang="en"`, "Bell") {
		t.Fatalf("switched: %s", p.Body)
	}
	p = p.Press("Sign in", "user", "mei", "password", "password of mei") // and it stays so
	if !p.Shows("Give access to your account?") {
		t.Fatalf("%s", p.Body)
	}
	p = p.Follow("中文")
	if !p.Shows("允许访问您的账号？", "钟") && !p.Shows("允许访问您的账号？", "Bell") {
		t.Fatalf("%s", p.Body)
	}
	if q := outcome(t, p.Press("允许").To); q.Get("code") == "" {
		t.Error("no code after the language was changed")
	}
	if p := w.Browser("en").Get(w.authorize("D1", "ui_locales", "zh-CN en")); !p.Shows("密码") {
		t.Error("ui_locales is not heeded")
	}
}

func TestGuessingPasswords(t *testing.T) {
	t.Parallel()
	w := open(t, func(o *homeserver.Options) { o.LoginAttempts = 0.1 })
	w.User("mei")
	p := w.Browser("en").Get(w.URL + "/_carillon/account/login")
	last := 0
	for range 8 {
		q := p.Press("Sign in", "user", "mei", "password", "guess")
		last = q.Status
		if last == 429 && !q.Shows("Too many attempts.", "Password") {
			t.Errorf("%s", q.Body)
		}
	}
	if last != 429 {
		t.Errorf("passwords can be guessed without end: %d", last)
	}
	a := w.Do("", "POST", "/_matrix/client/v3/login", map[string]any{
		"type": "m.login.password", "identifier": map[string]any{"type": "m.id.user", "user": "mei"}, "password": "x",
	})
	if a.Status != 429 {
		t.Errorf("the limit of the page is not that of the endpoint: %d", a.Status)
	}
}

func TestLockedAccount(t *testing.T) {
	t.Parallel()
	w := open(t)
	b := w.Browser("en")
	w.at(b, "mei", "/_carillon/account")
	if err := w.Accounts().SetLocked(t.Context(), "@mei:a.example", true); err != nil {
		t.Fatal(err)
	}
	p := b.Get(w.URL + "/_carillon/account")
	if !p.Shows("Sign in") {
		t.Fatal("the browser of a locked account is signed in")
	}
	if p = p.Press("Sign in", "user", "mei", "password", "password of mei"); !p.Shows("This account is locked.") {
		t.Errorf("%d %s", p.Status, p.Body)
	}
}
