package hstest_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sso"
)

// pending are operations that are being built. The walk fails when one of them
// succeeds, so that none stays here by mistake.
var pending = []string{}

// walk calls the endpoints of the specification and holds each answer against its
// schema.
type walk struct {
	t    testing.TB
	s    *hstest.Server
	spec *apiSpec

	succeeded, failed map[string]bool
	mismatches        map[string]string

	// For those who walk with something else in mind: before is told of each
	// request, and lenient asks for no particular answer.
	before  func(o *operation, path, params, token string, content []byte)
	lenient bool

	alice, bob, carol *hstest.User
	olga              *hstest.User // in no room
	chief             *hstest.User // an administrator
	post              *post
	ids               *idServer
	room              string
}

// Arguments of a call, in any order beside the path's variables, which are
// strings.
type (
	query string         // "a=1&b=2"
	body  map[string]any // of the request, as JSON
	raw   []byte         // of the request
	kind  string         // its content type
	as    string         // an access token in place of the user's
)

// call makes one request of an operation and checks the answer.
func (w *walk) call(u *hstest.User, op string, args ...any) hstest.Answer {
	w.t.Helper()
	o := w.spec.byID[op]
	if o == nil {
		w.t.Fatalf("the specification has no operation %s", op)
	}
	var vars []string
	var params, token, contentType string
	var content []byte
	if u != nil {
		token = u.AccessToken
	}
	for _, a := range args {
		switch a := a.(type) {
		case string:
			vars = append(vars, a)
		case query:
			params = "?" + string(a)
		case body:
			content, _ = json.Marshal(a) // of the test's own making
			contentType = "application/json"
		case raw:
			content = a
		case kind:
			contentType = string(a)
		case as:
			token = string(a)
		default:
			w.t.Fatalf("%T is no argument", a)
		}
	}
	path, err := o.url(vars)
	if err != nil {
		w.t.Fatal(err)
	}
	if w.before != nil {
		w.before(o, path, params, token, content)
	}
	req, err := http.NewRequestWithContext(w.t.Context(), o.method, w.s.URL+path+params, strings.NewReader(string(content)))
	if err != nil {
		w.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	a := w.send(req)
	if a.Status < 400 {
		w.succeeded[op] = true
	} else if _, listed := o.responses[a.Status]; listed || a.Code() != "M_UNRECOGNIZED" {
		w.failed[op] = true
	}
	if err := w.spec.check(o, a); err != nil && !slices.Contains(pending, op) {
		w.mismatches[op] = fmt.Sprintf("%s %s: %d %.600s: %v", o.method, path+params, a.Status, a.Body, err)
	}
	return a
}

// send does not follow redirects.
func (w *walk) send(req *http.Request) hstest.Answer {
	w.t.Helper()
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		w.t.Fatal(err)
	}
	a, err := hstest.ReadAnswer(resp)
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

// ok is a call that has to succeed.
func (w *walk) ok(u *hstest.User, op string, args ...any) gjson.Result {
	w.t.Helper()
	a := w.call(u, op, args...)
	if a.Status >= 400 && !slices.Contains(pending, op) && !w.lenient {
		w.t.Errorf("%s: %d %.300s", op, a.Status, a.Body)
	}
	return gjson.ParseBytes(a.Body)
}

// no is a call that has to fail.
func (w *walk) no(status int, code string, u *hstest.User, op string, args ...any) {
	w.t.Helper()
	a := w.call(u, op, args...)
	if (a.Status != status || a.Code() != code) && !slices.Contains(pending, op) && !w.lenient {
		w.t.Errorf("%s: %d %.300s, want %d %s", op, a.Status, a.Body, status, code)
	}
}

// network is an application service that leads to a network of its own.
func network(t testing.TB) string {
	mux := http.NewServeMux()
	answer := func(v any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(v) // to the server under test
		}
	}
	const base = "/_matrix/app/v1/"
	mux.HandleFunc(base+"ping", answer(struct{}{}))
	mux.HandleFunc(base+"thirdparty/protocol/irc", answer(body{
		"user_fields": []string{"nick"}, "location_fields": []string{"channel"}, "icon": "mxc://a.example/icon",
		"field_types": body{"nick": body{"regexp": ".+", "placeholder": "nick"}, "channel": body{"regexp": "#.+", "placeholder": "#channel"}},
		"instances":   []body{{"network_id": "libera", "desc": "Libera", "fields": body{}}},
	}))
	location := answer([]body{{"alias": "#irc_go:a.example", "protocol": "irc", "fields": body{"channel": "#go"}}})
	user := answer([]body{{"userid": "@irc_fan:a.example", "protocol": "irc", "fields": body{"nick": "fan"}}})
	mux.HandleFunc(base+"thirdparty/location", location)
	mux.HandleFunc(base+"thirdparty/location/irc", location)
	mux.HandleFunc(base+"thirdparty/user", user)
	mux.HandleFunc(base+"thirdparty/user/irc", user)
	mux.HandleFunc(base, func(w http.ResponseWriter, r *http.Request) { // transactions and queries
		if r.Method != http.MethodPut {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = w.Write([]byte("{}"))
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv.URL
}

// provider is the company's OpenID provider, as far as the way to it goes.
func provider(t testing.TB) string {
	var srv *httptest.Server
	srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(body{ // to the server under test
			"issuer": srv.URL, "authorization_endpoint": srv.URL + "/auth", "token_endpoint": srv.URL + "/token", "jwks_uri": srv.URL + "/keys",
			"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"},
		})
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func newWalk(t testing.TB) *walk { return newWalkWith(t) }

func newWalkWith(t testing.TB, options ...hstest.Option) *walk {
	services := []*accounts.ApplicationService{
		{
			ID: "irc", URL: network(t), ASToken: "as-secret", HSToken: "hs-secret", SenderLocalpart: "irc_bot", Protocols: []string{"irc"},
			Namespaces: accounts.Namespaces{Users: []accounts.Namespace{{Exclusive: true, Regex: "@irc_.*"}}, Aliases: []accounts.Namespace{{Exclusive: true, Regex: "#irc_.*"}}},
		},
		{ID: "gone", URL: "http://127.0.0.1:1", ASToken: "gone-secret", HSToken: "hs-gone", SenderLocalpart: "gone_bot"},
	}
	post, _ := withPost(t)
	ids := newIDServer(t)
	ids.trusts = true // this server, which does not federate, publishes no key
	options = append([]hstest.Option{hstest.With(services...), ids.option, func(o *homeserver.Options) {
		o.PublicURL = publicURL
		o.Contacts = homeserver.Contacts{Mail: post.Options(), SMS: post.send, Notify: true}
		o.Registration.Flows = []accounts.Flow{{accounts.StageDummy}, {"m.login.email.identity"}, {"m.login.msisdn"}}
		o.Registration.Guests = true
		o.Admins = []matrix.UserID{"@chief:a.example"}
		o.Media = homeserver.Media{MaxUpload: 1 << 20, MaxRemote: 1 << 20, MaxPixels: 10 << 20, DynamicThumbnails: true, OpenDownloads: true}
		o.Previews = homeserver.Previews{Enabled: true, AllowPrivate: true}
		o.SignIn.OAuth, o.SignIn.Providers = true, []sso.Provider{{ID: "company", Name: "Company", Issuer: provider(t), ClientID: "carillon", Localpart: "{{.sub}}", Create: true}}
		o.PolicyServer.Enabled = true
		o.Support = homeserver.Support{Page: "https://a.example/help", Contacts: []homeserver.SupportContact{{User: "@chief:a.example", Email: "chief@a.example", Role: "m.role.admin"}}}
		o.TURN = homeserver.TURN{URIs: []string{"turn:turn.a.example:3478?transport=udp"}, SharedSecret: "turn secret", Lifetime: time.Hour}
	}}, options...)
	s := hstest.New(t, options...)
	w := &walk{
		t: t, s: s, spec: loadSpec(t), succeeded: map[string]bool{}, failed: map[string]bool{}, mismatches: map[string]string{},
		alice: s.User("alice"), bob: s.User("bob"), carol: s.User("carol"),
		olga: s.User("olga"), chief: s.User("chief"), post: post, ids: ids,
	}
	return w
}

// TestEveryEndpoint walks the table of the specification: each operation of the
// client-server API is called on a running server, successfully and not, and each
// answer is held against its OpenAPI schema.
func TestEveryEndpoint(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	w.all()
	w.strangers()
	w.bare()
	complete := 0
	for _, o := range w.spec.ops {
		later := slices.Contains(pending, o.id)
		switch bad := w.mismatches[o.id]; {
		case bad != "":
			t.Errorf("%s: %s", o.id, bad)
		case later && w.succeeded[o.id]:
			t.Errorf("%s works: take it off the list of what is pending", o.id)
		case later:
			t.Logf("%s %s is pending", o.method, o.path)
		case !w.succeeded[o.id]:
			t.Errorf("%s %s (%s) was never called with success", o.method, o.path, o.id)
		case !w.failed[o.id] && (o.auth != "none" || len(o.responses) > 1) && o.id != "getLoginFlows": // its errors are those of too many requests
			t.Errorf("%s %s (%s) was never called without success", o.method, o.path, o.id)
		default:
			complete++
		}
	}
	t.Logf("%d of %d, %d mismatches", complete, len(w.spec.ops), len(w.mismatches))
}

// all calls everything, on one server.
func (w *walk) all() {
	w.discovery()
	w.rooms()
	w.members()
	w.messages()
	w.readers()
	w.profiles()
	w.directories()
	w.keys()
	w.backups()
	w.media()
	w.push()
	w.networks()
	w.oldSync()
	w.threepids()
	w.accounts()
}

// strangers calls everything that wants a token without one, and with a wrong one.
func (w *walk) strangers() {
	for _, o := range w.spec.ops {
		if o.auth != "access-token" && o.auth != "appservice-token" || slices.Contains(pending, o.id) {
			continue
		}
		var vars []any
		for range strings.Count(o.path, "{") {
			vars = append(vars, "x")
		}
		w.no(401, "M_MISSING_TOKEN", nil, o.id, vars...)
		w.no(401, "M_UNKNOWN_TOKEN", nil, o.id, append(vars, as("no such token"))...)
	}
}

func (w *walk) discovery() {
	w.ok(nil, "getWellknown")
	w.ok(nil, "getWellknownSupport")
	w.ok(nil, "getWellknownPolicy")
	w.ok(nil, "getVersions")
	w.ok(w.alice, "getVersions")
	w.no(401, "M_UNKNOWN_TOKEN", nil, "getVersions", as("wrong"))
	w.ok(w.alice, "getCapabilities")
	w.ok(w.alice, "getTurnServer")
	w.ok(nil, "getAuthMetadata")
	w.ok(nil, "redirectToSSO", query("redirectUrl="+url.QueryEscape("https://app.example/")))
	w.ok(nil, "redirectToIdP", "company", query("redirectUrl="+url.QueryEscape("https://app.example/")))
	w.no(404, "", nil, "redirectToIdP", "nobody", query("redirectUrl="+url.QueryEscape("https://app.example/")))
}

func (w *walk) accounts() {
	w.registrations()
	w.logins()
	w.devices()
	w.admins()

	dave := w.s.User("dave")
	w.ok(dave, "getTokenOwner")
	password := func(u *hstest.User) body {
		return body{"type": "m.login.password", "identifier": body{"type": "m.id.user", "user": u.UserID.Localpart()}, "password": "password of " + u.UserID.Localpart()}
	}
	w.no(401, "", dave, "changePassword", body{"new_password": "another password"})
	w.ok(dave, "changePassword", body{"new_password": "another password", "logout_devices": false, "auth": password(dave)})
	w.no(401, "", dave, "deactivateAccount", body{})
	auth := password(dave)
	auth["password"] = "another password"
	w.ok(dave, "deactivateAccount", body{"auth": auth})
	w.no(401, "M_UNKNOWN_TOKEN", dave, "getTokenOwner")
}

func (w *walk) registrations() {
	dummy := body{"type": "m.login.dummy"}
	w.no(401, "", nil, "register", body{"username": "erin", "password": "a good password"})
	w.ok(nil, "register", body{"username": "erin", "password": "a good password", "refresh_token": true, "auth": dummy})
	w.ok(nil, "register", body{"username": "frank", "password": "a good password", "inhibit_login": true, "auth": dummy})
	w.ok(nil, "register", query("kind=guest"), body{})
	w.no(400, "M_USER_IN_USE", nil, "register", body{"username": "erin", "password": "a good password", "auth": dummy})
	w.no(400, "M_INVALID_USERNAME", nil, "register", body{"username": "Ö", "password": "a good password", "auth": dummy})
	w.no(400, "M_EXCLUSIVE", nil, "register", body{"username": "irc_x", "password": "a good password", "auth": dummy})
	w.ok(nil, "register", as("as-secret"), body{"type": "m.login.application_service", "username": "irc_fan"})
	w.ok(nil, "checkUsernameAvailability", query("username=free"))
	w.no(400, "M_USER_IN_USE", nil, "checkUsernameAvailability", query("username=erin"))
	w.no(400, "M_INVALID_USERNAME", nil, "checkUsernameAvailability", query("username=%21"))
	w.no(403, "M_FORBIDDEN", nil, "registrationTokenValidity", query("token=welcome"))
}

// bare calls a server that has little and asks for tokens at registration.
func (w *walk) bare() {
	b := *w
	b.s = hstest.New(w.t, func(o *homeserver.Options) { o.Registration = accounts.Registration{Enabled: true, Tokens: true} })
	token, err := b.s.Accounts().CreateRegistrationToken(w.t.Context(), accounts.RegistrationToken{Token: "welcome"})
	if err != nil {
		w.t.Fatal(err)
	}
	if !b.ok(nil, "registrationTokenValidity", query("token="+token.Token)).Get("valid").Bool() {
		w.t.Error("a registration token is not valid")
	}
	b.ok(nil, "registrationTokenValidity", query("token=other"))
	b.no(400, "M_MISSING_PARAM", nil, "registrationTokenValidity")
	b.no(404, "M_NOT_FOUND", nil, "getWellknown")
	b.no(404, "M_NOT_FOUND", nil, "getWellknownSupport")
	b.no(404, "M_NOT_FOUND", nil, "getWellknownPolicy")
	b.no(404, "M_UNRECOGNIZED", nil, "getAuthMetadata")
	b.no(404, "M_UNRECOGNIZED", nil, "redirectToIdP", "company", query("redirectUrl="+url.QueryEscape("https://app.example/")))
}

func (w *walk) logins() {
	w.ok(nil, "getLoginFlows")
	who := body{"type": "m.id.user", "user": "erin"}
	in := w.ok(nil, "login", body{"type": "m.login.password", "identifier": who, "password": "a good password", "refresh_token": true})
	w.no(403, "M_FORBIDDEN", nil, "login", body{"type": "m.login.password", "identifier": who, "password": "wrong"})
	w.no(400, "M_UNKNOWN", nil, "login", body{"type": "m.login.magic"})
	next := w.ok(nil, "refresh", body{"refresh_token": in.Get("refresh_token").Str})
	w.no(401, "M_UNKNOWN_TOKEN", nil, "refresh", body{"refresh_token": "wrong"})
	erin := as(next.Get("access_token").Str)
	w.no(401, "", nil, "generateLoginToken", erin, body{})
	proof := body{"type": "m.login.password", "identifier": who, "password": "a good password"}
	login := w.ok(nil, "generateLoginToken", erin, body{"auth": proof})
	other := w.ok(nil, "login", body{"type": "m.login.token", "token": login.Get("login_token").Str})
	w.ok(nil, "logout", as(other.Get("access_token").Str), body{})
	w.no(401, "M_UNKNOWN_TOKEN", nil, "logout", as(other.Get("access_token").Str))
	w.ok(nil, "logout_all", erin, body{})
	w.no(401, "M_UNKNOWN_TOKEN", nil, "logout_all", erin)
}

func (w *walk) devices() {
	tablet, phone, old := w.alice.Login("TABLET"), w.alice.Login("PHONE"), w.alice.Login("OLD")
	_, _, _ = tablet, phone, old
	w.ok(w.alice, "getDevices")
	w.ok(w.alice, "getDevice", "PHONE")
	w.no(404, "M_NOT_FOUND", w.alice, "getDevice", "NOTHING")
	w.ok(w.alice, "updateDevice", "PHONE", body{"display_name": "电话"})
	w.no(404, "M_NOT_FOUND", w.alice, "updateDevice", "NOTHING", body{"display_name": "x"})
	auth := body{"type": "m.login.password", "identifier": body{"type": "m.id.user", "user": "alice"}, "password": "password of alice"}
	w.no(401, "", w.alice, "deleteDevice", "PHONE", body{})
	w.ok(w.alice, "deleteDevice", "PHONE", body{"auth": auth})
	w.no(401, "", w.alice, "deleteDevices", body{"devices": []string{"TABLET", "OLD"}})
	w.ok(w.alice, "deleteDevices", body{"devices": []string{"TABLET", "OLD"}, "auth": auth})
	w.ok(nil, "updateDevice", "BRIDGE", as("as-secret"), query("user_id=@irc_fan:a.example"), body{"display_name": "bridge"})
}

func (w *walk) admins() {
	erin := "@erin:a.example"
	w.ok(w.alice, "getWhoIs", string(w.alice.UserID))
	w.ok(w.chief, "getWhoIs", string(w.alice.UserID))
	w.no(403, "M_FORBIDDEN", w.alice, "getWhoIs", string(w.bob.UserID))
	for _, c := range []struct{ get, set, field string }{
		{"getAdminLockUser", "setAdminLockUser", "locked"}, {"getAdminSuspendUser", "setAdminSuspendUser", "suspended"},
	} {
		w.ok(w.chief, c.set, erin, body{c.field: true})
		w.ok(w.chief, c.get, erin)
		w.ok(w.chief, c.set, erin, body{c.field: false})
		w.no(403, "M_FORBIDDEN", w.alice, c.set, erin, body{c.field: true})
		w.no(403, "M_FORBIDDEN", w.alice, c.get, erin)
		w.no(404, "M_NOT_FOUND", w.chief, c.get, "@nobody:a.example")
		w.no(400, "M_INVALID_PARAM", w.chief, c.get, "@somebody:else.example")
		w.no(403, "M_FORBIDDEN", w.chief, c.set, string(w.chief.UserID), body{c.field: true})
	}
}
