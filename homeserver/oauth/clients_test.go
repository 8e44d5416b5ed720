package oauth_test

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

func TestMetadata(t *testing.T) {
	t.Parallel()
	w := open(t)
	for _, path := range []string{
		"/_matrix/client/v1/auth_metadata", "/_matrix/client/unstable/org.matrix.msc2965/auth_metadata",
		"/.well-known/oauth-authorization-server", "/.well-known/openid-configuration",
	} {
		a := w.Do("", "GET", path, nil)
		if a.Status != 200 || a.Get("issuer").Str != w.URL+"/" || a.Header.Get("Access-Control-Allow-Origin") != "*" ||
			a.Header.Get("Cache-Control") != "public, max-age=600" {
			t.Errorf("%s: %d %s %v", path, a.Status, a.Body, a.Header)
		}
		for _, key := range []string{"authorization_endpoint", "token_endpoint", "revocation_endpoint", "registration_endpoint", "device_authorization_endpoint", "account_management_uri"} {
			if !strings.HasPrefix(a.Get(key).Str, w.URL+"/") {
				t.Errorf("%s: %s is %q", path, key, a.Get(key).Str)
			}
		}
		for _, action := range []string{"profile", "devices_list", "device_view", "device_delete", "account_deactivate", "cross_signing_reset"} {
			if !strings.Contains(a.Get("account_management_actions_supported").Raw, `"org.matrix.`+action+`"`) {
				t.Errorf("%s: no action %s", path, action)
			}
		}
	}
	if a := w.Do("", "GET", "/_matrix/client/unstable/org.matrix.msc2965/auth_issuer", nil); a.Get("issuer").Str != w.URL+"/" {
		t.Errorf("auth_issuer: %s", a.Body)
	}
	if a := w.Do("", "GET", "/.well-known/matrix/client", nil); a.Get(`m\.authentication.issuer`).Str != w.URL+"/" {
		t.Errorf("well-known: %s", a.Body)
	}
	off := hstest.New(t)
	if a := off.Do("", "GET", "/_matrix/client/v1/auth_metadata", nil); a.Status != 404 || a.Code() != "M_UNRECOGNIZED" {
		t.Errorf("switched off: %d %s", a.Status, a.Body)
	}
	plain := hstest.New(t, func(o *homeserver.Options) { o.PublicURL, o.SignIn.OAuth = "http://chat.a.example", true })
	if a := plain.Do("", "GET", "/_matrix/client/v1/auth_metadata", nil); a.Status != 404 {
		t.Errorf("without https: %d %s", a.Status, a.Body)
	}
}

func TestRegistration(t *testing.T) {
	t.Parallel()
	w := open(t)
	a := w.Do("", "POST", "/_carillon/oauth/register", metadata(map[string]any{
		"client_name": "Bell\u202e\u0000  chat", "client_name#zh": "钟声", "logo_uri": "https://client.example/l.png", "contacts": []string{"x"},
		"grant_types": []string{"authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:token-exchange"}, "application_type": nil,
	}))
	if a.Status != 201 || a.Get("client_id").Str == "" || a.Get("client_name").Str != "Bell chat" || a.Get("client_name#zh").Str != "钟声" ||
		a.Get("grant_types.#").Int() != 2 || a.Get("application_type").Str != "web" || a.Get("contacts").Exists() || a.Get("client_secret").Exists() {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	same := w.Do("", "POST", "/_carillon/oauth/register", metadata(nil))
	again := w.Do("", "POST", "/_carillon/oauth/register", metadata(nil))
	if same.Get("client_id").Str != again.Get("client_id").Str || same.Get("client_id").Str == a.Get("client_id").Str {
		t.Errorf("installations of one client: %s %s", same.Body, again.Body)
	}
	many := []string{}
	for i := range 17 {
		many = append(many, fmt.Sprintf("https://client.example/%d", i))
	}
	for what, bad := range map[string]map[string]any{
		"no client_uri":            {"client_uri": nil},
		"http":                     {"client_uri": "http://client.example"},
		"a user":                   {"client_uri": "https://u:p@client.example"},
		"this machine":             {"client_uri": "https://localhost/"},
		"a secret":                 {"token_endpoint_auth_method": "client_secret_post"},
		"a type":                   {"application_type": "toaster"},
		"no grants":                {"grant_types": []string{"password"}},
		"no response":              {"response_types": []string{"token"}},
		"a logo elsewhere":         {"logo_uri": "https://evil.example/l.png"},
		"terms over http":          {"tos_uri": "http://client.example/"},
		"a translated policy":      {"policy_uri#zh": "https://evil.example/"},
		"a translation of nothing": {"client_name#": "x"},
		"a type of value":          {"client_name": 5},
		"redirects: none":          {"redirect_uris": []string{}},
		"redirects: many":          {"redirect_uris": many},
	} {
		code := "invalid_client_metadata"
		if strings.HasPrefix(what, "redirects") {
			code = "invalid_redirect_uri"
		}
		w.isError(what, w.Do("", "POST", "/_carillon/oauth/register", metadata(bad)), 400, code)
	}
	for _, body := range []string{"", "[]", "{", "null", `"x"`, `{"client_uri":"https://c.example/` + strings.Repeat("x", 70_000) + `"}`} {
		if a := w.Do("", "POST", "/_carillon/oauth/register", body); a.Status != 400 {
			t.Errorf("%.20q: %d %s", body, a.Status, a.Body)
		}
	}
	device := metadata(map[string]any{"grant_types": []string{"urn:ietf:params:oauth:grant-type:device_code", "refresh_token"}, "redirect_uris": nil, "response_types": nil})
	if a := w.Do("", "POST", "/_carillon/oauth/register", device); a.Status != 201 {
		t.Errorf("a client for device codes alone: %d %s", a.Status, a.Body)
	}
}

// The examples of the specification, and what an attacker may try.
func TestRedirectAddresses(t *testing.T) {
	t.Parallel()
	w := open(t)
	for address, native := range map[string]string{ // "": neither, "n": native alone, "b": both
		"https://client.example/callback":       "b",
		"https://app.client.example/callback":   "b",
		"https://client.example:5173/?query=v":  "b",
		"https://client.example/callback#f":     "",
		"http://client.example/callback":        "",
		"https://evil.example/":                 "",
		"https://client.example.evil/":          "",
		"https://evilclient.example/":           "",
		"https://u:p@client.example/":           "",
		"https://client.example\\@evil.example": "",
		"http://localhost/":                     "n",
		"http://127.0.0.1/callback":             "n",
		"http://[::1]/callback":                 "n",
		"http://localhost:1234/callback":        "",
		"http://localhost@evil.example/":        "",
		"https://localhost/callback":            "",
		"http://127.0.0.2/":                     "",
		"example.client.app:/callback":          "n",
		"example.client:/":                      "n",
		"example.client:callback":               "n",
		"example.client.app://callback":         "",
		"example.clientevil:/callback":          "",
		"example:/callback":                     "",
		"javascript:alert(1)":                   "",
		"data:text/html,x":                      "",
		"":                                      "",
		"/relative":                             "",
		"//client.example/":                     "",
	} {
		for _, kind := range []string{"web", "native"} {
			a := w.Do("", "POST", "/_carillon/oauth/register", metadata(map[string]any{"application_type": kind, "redirect_uris": []string{address}}))
			want := native == "b" || native == "n" && kind == "native"
			if (a.Status == 201) != want {
				t.Errorf("%s client, %q: %d %s", kind, address, a.Status, a.Body)
			}
		}
	}
}

func TestRedirectOfRequests(t *testing.T) {
	t.Parallel()
	w := open(t)
	native := w.register(map[string]any{"application_type": "native", "redirect_uris": []string{"http://127.0.0.1/cb", "http://[::1]/cb", "example.client:/cb"}})
	b := w.Browser("en")
	for address, ok := range map[string]bool{
		"http://127.0.0.1:43210/cb":       true,
		"http://127.0.0.1/cb":             true,
		"http://[::1]:5/cb":               true,
		"example.client:/cb":              true,
		"http://localhost:43210/cb":       false,
		"http://127.0.0.1:43210/other":    false,
		"http://127.0.0.1:43210/cb?x=y":   false,
		"http://127.0.0.1:43210/cb#x":     false,
		"http://x@127.0.0.1:43210/cb":     false,
		"http://127.0.0.1.evil:43210/cb":  false,
		"http://127.0.0.1:80@evil.com/cb": false,
		"example.client:/cb/..":           false,
		"":                                false,
	} {
		p := b.Get(w.authorize("D1", "client_id", native, "redirect_uri", address))
		if signIn := strings.Contains(p.URL.Path, "/login"); signIn != ok || !ok && (p.Status != 400 || p.To != "") {
			t.Errorf("%q: %d at %s, to %q", address, p.Status, p.URL.Path, p.To)
		}
	}
	// Of a client that is not right nobody is sent anywhere, whatever it asks for.
	p := b.Get(w.authorize("D1", "client_id", "nobodynobodynobodynobodynob", "redirect_uri", "https://evil.example/"))
	if p.Status != 400 || p.To != "" || strings.Contains(p.Body, `="https://evil.example`) {
		t.Errorf("an unknown client: %d %q %s", p.Status, p.To, p.Body)
	}
}

func TestErrorsOfRequests(t *testing.T) {
	t.Parallel()
	w := open(t)
	b := w.Browser("en")
	for _, c := range []struct {
		what, code string
		change     []string
	}{
		{"a token", "unsupported_response_type", []string{"response_type", "token"}},
		{"no PKCE", "invalid_request", []string{"code_challenge", "", "code_challenge_method", ""}},
		{"plain PKCE", "invalid_request", []string{"code_challenge_method", "plain"}},
		{"a short challenge", "invalid_request", []string{"code_challenge", "abc"}},
		{"a challenge that is none", "invalid_request", []string{"code_challenge", strings.Repeat("=", 43)}},
		{"form_post", "invalid_request", []string{"response_mode", "form_post"}},
		{"no scope", "invalid_scope", []string{"scope", ""}},
		{"no device", "invalid_scope", []string{"scope", "urn:matrix:client:api:*"}},
		{"no API", "invalid_scope", []string{"scope", "urn:matrix:client:device:X"}},
		{"two devices", "invalid_scope", []string{"scope", "urn:matrix:client:api:* urn:matrix:client:device:X urn:matrix:client:device:Y"}},
		{"an empty device", "invalid_scope", []string{"scope", "urn:matrix:client:api:* urn:matrix:client:device:"}},
		{"a device with a quote", "invalid_scope", []string{"scope", `urn:matrix:client:api:* urn:matrix:client:device:a"b`}},
		{"a long device", "invalid_scope", []string{"scope", "urn:matrix:client:api:* urn:matrix:client:device:" + strings.Repeat("x", 256)}},
		{"an object", "request_not_supported", []string{"request", "x"}},
		{"no page", "interaction_required", []string{"prompt", "none"}},
	} {
		p := b.Get(w.authorize("D1", c.change...))
		if q := outcome(t, p.To); q.Get("error") != c.code || q.Get("state") != "some state&x" || q.Get("iss") != w.URL+"/" {
			t.Errorf("%s: %d %q, want %s", c.what, p.Status, p.To, c.code)
		}
	}
	if p := b.Get(w.authorize("D1") + "&client_id=other"); p.Status != 400 || p.To != "" {
		t.Errorf("a parameter twice: %d %q", p.Status, p.To)
	}
	if p := b.Get(w.authorize("D1", "scope", "urn:matrix:client:api:* urn:matrix:org.matrix.msc2967.client:api:* urn:matrix:client:device:X urn:matrix:org.matrix.msc2967.client:device:X")); p.To != "" {
		t.Errorf("both names of one device: %q", p.To)
	}
	for what, a := range map[string]hstest.Answer{
		"no grant_type": w.token("client_id", w.client),
		"a password":    w.token("grant_type", "password", "client_id", w.client),
		"implicit":      w.token("grant_type", "implicit", "client_id", w.client),
	} {
		w.isError(what, a, 400, "unsupported_grant_type")
	}
	w.isError("no client", w.token("grant_type", "refresh_token", "refresh_token", "x"), 400, "invalid_request")
	w.isError("JSON", w.Do("", "POST", "/_carillon/oauth/token", map[string]any{"grant_type": "refresh_token"}), 400, "invalid_request")
	w.isError("twice", w.send("/_carillon/oauth/token", "application/x-www-form-urlencoded", "grant_type=refresh_token&client_id=a&client_id=b"), 400, "invalid_request")
	w.isError("broken", w.send("/_carillon/oauth/token", "application/x-www-form-urlencoded", "a=%zz"), 400, "invalid_request")
	w.isError("NUL", w.send("/_carillon/oauth/token", "application/x-www-form-urlencoded", "grant_type=refresh_token&client_id=%00"), 400, "invalid_request")
	w.isError("a refresh token of nobody", w.refresh("cr_x"), 400, "invalid_grant")
	web := w.register(map[string]any{"grant_types": []string{"authorization_code"}, "redirect_uris": []string{w.redirect}})
	w.isError("a grant that was not registered", w.token("grant_type", "refresh_token", "refresh_token", "x", "client_id", web), 400, "unauthorized_client")
}

func TestUnusedClientsGo(t *testing.T) {
	t.Parallel()
	w := open(t)
	w.session("mei", "D1")
	var ids []string
	for i := range 3 {
		ids = append(ids, w.register(map[string]any{"client_name": fmt.Sprint("Bell ", i)}))
	}
	there := func(id string) bool {
		w.t.Helper()
		p := w.Browser("en").Get(w.authorize("D9", "client_id", id, "redirect_uri", "https://client.example/cb"))
		return p.Status == 200
	}
	if !there(ids[0]) {
		t.Fatal("a client that has just registered is not there")
	}
	w.clock.move(20 * time.Hour)
	w.register(map[string]any{"client_name": "Bell 1"}) // asks again, so it stays a day from now
	w.clock.move(5 * time.Hour)
	w.cleanup()
	if there(ids[0]) || !there(ids[1]) {
		t.Errorf("after a day: %v %v", there(ids[0]), there(ids[1]))
	}
	w.clock.move(60 * 24 * time.Hour)
	w.cleanup()
	p := w.Browser("en").Get(w.authorize("D9"))
	if p.Status != 200 {
		t.Error("a client with a session is gone")
	}
	if err := w.Accounts().Deactivate(t.Context(), "@mei:a.example", false); err != nil {
		t.Fatal(err)
	}
	w.clock.move(20 * 24 * time.Hour)
	w.cleanup()
	if p := w.Browser("en").Get(w.authorize("D9")); p.Status != 400 {
		t.Error("a client whose sessions have ended long ago is still there")
	}
}

// cleanup starts the server again, which removes what is old.
func (w *world) cleanup() {
	w.t.Helper()
	w.Stop()
	w.Start()
	w.Eventually("a clean start", func() bool {
		var n int
		err := w.DB().Read(context.Background(), func(tx *sqldb.Tx) error {
			return tx.QueryRow(`SELECT COUNT(*) FROM oauth_clients WHERE (NOT used AND checked_at < $1) OR (used AND checked_at < $2)`,
				w.clock.Now().Add(-24*time.Hour).UnixMilli(), w.clock.Now().Add(-14*24*time.Hour).UnixMilli()).Scan(&n)
		})
		return err == nil && n == 0
	})
}

func TestTooManyClients(t *testing.T) {
	t.Parallel()
	w := open(t)
	err := w.DB().Write(t.Context(), func(tx *sqldb.Tx) error {
		for i := range 5000 {
			if _, err := tx.Exec(`INSERT INTO oauth_clients (client_id, metadata, checked_at) VALUES ($1, '{}', $2)`, fmt.Sprintf("%027d", i), w.clock.Now().UnixMilli()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	w.isError("one more", w.Do("", "POST", "/_carillon/oauth/register", metadata(map[string]any{"client_name": "more"})), 503, "temporarily_unavailable")
	w.clock.move(time.Hour)
	if a := w.Do("", "POST", "/_carillon/oauth/register", metadata(map[string]any{"client_name": "more"})); a.Status != 201 {
		t.Errorf("after those have not come back: %d %s", a.Status, a.Body)
	}
}

func TestOpenRedirect(t *testing.T) {
	t.Parallel()
	w := open(t)
	w.User("mei")
	for _, then := range []string{
		"https://evil.example/", "//evil.example/", "/\\evil.example", "/_carillon/../../evil", "/_matrix/client/versions",
		"javascript:alert(1)", "/_carillon/account/../../x", "https:/_carillon/account", "/_carillon//evil.example", "/_carillon/%2e%2e/x",
	} {
		b := w.Browser("en")
		p := b.Get(w.URL + "/_carillon/account/login?" + url.Values{"then": {then}}.Encode())
		p = p.Press("Sign in", "user", "mei", "password", "password of mei")
		if p.To != "" || p.URL.Path != "/_carillon/account" {
			t.Errorf("%q: at %s, to %q", then, p.URL, p.To)
		}
	}
}
