package oauth_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/sso"
)

// Every page and endpoint is sent what nobody should send, by somebody who is signed in.
func TestHostileInput(t *testing.T) {
	t.Parallel()
	w := open(t, func(o *homeserver.Options) {
		o.SignIn.Providers = []sso.Provider{{ID: "away", Name: "Away", Issuer: "https://127.0.0.1:1", ClientID: "c", Localpart: "{{.sub}}"}}
	})
	access, refresh := w.session("mei", "D1")
	b := w.Browser("en")
	p := w.at(b, "mei", "/_carillon/account")
	token := p.Form("Save").Fields.Get("token")
	uia := w.Do(w.User("mei").AccessToken, "DELETE", "/_matrix/client/v3/devices/D1", map[string]any{}).Get("session").Str
	request, err := url.Parse(w.authorize("D2"))
	if err != nil {
		t.Fatal(err)
	}
	good := request.Query()
	for k, v := range map[string]string{
		"token": token, "then": "/_carillon/account", "redirectUrl": "https://c.example/", "user_code": "BCDF-GHJK", "action": "org.matrix.device_view",
		"device_id": "D1", "page": "0", "lang": "en", "login_hint": "mei", "prompt": "", "nonce": "n", "again": "", "session": uia, "state": "s", "code": "c",
		"decision": "", "name": "n", "user": "mei", "password": "x", "repeat": "x", "current": "x", "confirm": "x", "do": "rename", "box": "x", "iss": "",
		"grant_type": "refresh_token", "refresh_token": refresh, "code_verifier": verifier, "device_code": "d", "token_type_hint": "access_token", "ui_locales": "zh",
		"registration_token": "x", "error": "", "provider": "away",
	} {
		good.Set(k, v)
	}
	vars := map[string]string{"provider": "away", "idpId": "away", "deviceId": "D1", "userId": "@mei:a.example", "subject": "x"}
	api := w.Handler().(*httpapi.API)
	h := &httpapitest.Hostile{
		T: t, Handler: api, Stranger: "@jun:a.example", Brief: true,
		Allow: func(_, route string, status int, _ string) bool { // the provider is away
			return status == http.StatusBadGateway && (strings.Contains(route, "/sso/") || strings.Contains(route, "m.login.sso"))
		},
		Prepare: func(r *http.Request, _ []byte) {
			for _, c := range b.Cookies(w.URL) {
				r.AddCookie(c)
			}
			if r.Method == http.MethodPost {
				r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			}
		},
	}
	for _, route := range api.Paths() {
		method, path, _ := strings.Cut(route, " ")
		mine := strings.HasPrefix(path, "/_carillon/") && !strings.Contains(path, "/admin/") || strings.Contains(path, "/login/sso/") ||
			strings.Contains(path, "auth_") || strings.HasSuffix(path, "m.oauth/fallback/web") || strings.HasSuffix(path, "m.login.sso/fallback/web")
		if !mine || strings.HasSuffix(path, "/logout") || strings.HasSuffix(path, "/revoke") {
			continue
		}
		h.Path(method, path, vars, good.Encode(), []byte(good.Encode()))
		at := httpapitest.Fill(path, vars)
		for name := range good {
			texts := h.Texts()
			for _, bad := range []string{texts[h.Sent%len(texts)], texts[(h.Sent+4)%len(texts)]} {
				q := url.Values{}
				for k, v := range good {
					q[k] = v
				}
				q.Set(name, bad)
				if method == http.MethodPost {
					h.Send(method, path, at, good.Encode(), []byte(q.Encode()), "field "+name)
				} else {
					h.Send(method, path, at, q.Encode(), nil, "parameter "+name)
				}
			}
		}
		for _, body := range []string{"", "=", "&&&", "%", "%zz=1", "a=%00", strings.Repeat("a=b&", 20_000), "\xff=\xfe", "{}", "a;b=c"} {
			h.Send(method, path, at, "", []byte(body), "body")
		}
	}
	if n := api.Panics(); n > 0 {
		t.Errorf("%d handlers panicked", n)
	}
	if w.whoami(access).Status != 200 {
		t.Error("the session has ended")
	}
	t.Logf("%d requests: %v", h.Sent, h.Statuses)
}
