package accounts_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

func TestRegister(t *testing.T) {
	s := open(t)
	r := s.do("POST", v3+"/register", "", obj{"username": "Alice", "password": "secret"})
	r.want(401, "")
	if fmt.Sprint(r.body["flows"]) != "[map[stages:[m.login.dummy]]]" || r.str("session") == "" {
		t.Errorf("flows: %v", r.body)
	}
	r = s.do("POST", v3+"/register", "", obj{
		"username": "Alice", "password": "secret", "device_id": "PHONE", "initial_device_display_name": "my phone",
		"auth": obj{"type": "m.login.dummy", "session": r.str("session")},
	}).ok()
	if r.str("user_id") != "@alice:test" || r.str("device_id") != "PHONE" || r.str("access_token") == "" {
		t.Errorf("got %v", r.body)
	}
	if w := s.whoami(r.str("access_token")).ok(); w.str("user_id") != "@alice:test" || w.str("device_id") != "PHONE" || w.body["is_guest"] != false {
		t.Errorf("whoami: %v", w.body)
	}
	if d := s.do("GET", v3+"/devices/PHONE", r.str("access_token"), nil).ok(); d.str("display_name") != "my phone" {
		t.Errorf("device: %v", d.body)
	}
	dummy := obj{"type": "m.login.dummy"}
	for _, tc := range []struct {
		body   any
		status int
		code   string
	}{
		{obj{"username": "alice", "password": "x", "auth": dummy}, 400, "M_USER_IN_USE"},
		{obj{"username": "ALICE", "password": "x"}, 400, "M_USER_IN_USE"},
		{obj{"username": "a b", "password": "x"}, 400, "M_INVALID_USERNAME"},
		{obj{"username": "a!", "password": "x"}, 400, "M_INVALID_USERNAME"},
		{obj{"username": "", "password": "x"}, 400, "M_INVALID_USERNAME"},
		{obj{"username": "张三", "password": "x"}, 400, "M_INVALID_USERNAME"},
		{obj{"username": strings.Repeat("a", 255), "password": "x"}, 400, "M_INVALID_USERNAME"},
		{obj{"username": "bob", "auth": dummy}, 400, "M_MISSING_PARAM"},
		{obj{"username": "bob", "password": 1}, 400, "M_BAD_JSON"},
		{obj{"username": "bob", "password": strings.Repeat("x", 513)}, 400, "M_INVALID_PARAM"},
		{obj{"username": "bob", "password": "x", "device_id": "a\x00b", "auth": dummy}, 400, "M_INVALID_PARAM"},
		{obj{"username": "bob", "password": "x", "auth": obj{"type": "m.login.dummy", "session": "no\x00ne"}}, 400, "M_UNKNOWN"},
		{obj{"username": "bob", "password": "x", "auth": obj{"type": "m.login.password"}}, 401, "M_UNRECOGNIZED"},
		{[]byte("{\"username\":\"bob\",\"password\":\"\xff\"}"), 400, "M_NOT_JSON"},
		{[]byte("nonsense"), 400, "M_NOT_JSON"},
	} {
		s.do("POST", v3+"/register", "", tc.body).want(tc.status, tc.code)
	}
	for _, name := range []string{"a.b", "a_b", "a=b", "a-b", "a/b", "a+b", "007"} {
		s.register(name, "secret")
	}
	r = s.do("POST", v3+"/register", "", obj{"password": "x", "inhibit_login": true, "auth": dummy}).ok()
	if r.str("user_id") == "" || r.str("access_token") != "" || r.str("device_id") != "" {
		t.Errorf("inhibit_login: %v", r.body)
	}
	s.do("POST", v3+"/register?kind=guest", "", obj{}).want(403, "M_FORBIDDEN")
	s.do("POST", v3+"/register?kind=x", "", obj{}).want(400, "M_INVALID_PARAM")
	s.do("GET", v3+"/register/available?username=alice", "", nil).want(400, "M_USER_IN_USE")
	s.do("GET", v3+"/register/available?username=%21", "", nil).want(400, "M_INVALID_USERNAME")
	s.do("GET", v3+"/register/available", "", nil).want(400, "M_MISSING_PARAM")
	if r := s.do("GET", v3+"/register/available?username=carol", "", nil).ok(); r.body["available"] != true {
		t.Errorf("available: %v", r.body)
	}
	closed := start(t, accounts.Options{})
	closed.do("POST", v3+"/register", "", obj{"username": "x", "password": "x"}).want(403, "M_FORBIDDEN")
}

func TestOneNameIsGivenOutOnce(t *testing.T) {
	s := open(t)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		made int
	)
	for range 12 {
		wg.Go(func() {
			err := s.acc.Create(context.Background(), accounts.NewUser{ID: "@same:test", Password: "x"})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				made++
			case !matrix.IsCode(err, "M_USER_IN_USE"):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made != 1 {
		t.Errorf("the name was given out %d times", made)
	}
}

func TestGuests(t *testing.T) {
	s := start(t, accounts.Options{Registration: accounts.Registration{Guests: true}})
	r := s.do("POST", v3+"/register?kind=guest", "", obj{"username": "ignored", "device_id": "IGNORED"}).ok()
	if strings.Contains(r.str("user_id"), "ignored") || r.str("device_id") == "IGNORED" {
		t.Errorf("got %v", r.body)
	}
	if w := s.whoami(r.str("access_token")).ok(); w.body["is_guest"] != true {
		t.Errorf("whoami: %v", w.body)
	}
	s.do("POST", v3+"/account/deactivate", r.str("access_token"), obj{}).want(401, "")
	s.do("POST", "/_matrix/client/v1/login/get_token", r.str("access_token"), obj{}).want(403, "M_GUEST_ACCESS_FORBIDDEN")
}

func TestRegistrationTokens(t *testing.T) {
	s := start(t, accounts.Options{Registration: accounts.Registration{Enabled: true, Tokens: true}})
	ctx := context.Background()
	if err := s.acc.Create(ctx, accounts.NewUser{ID: "@root:test", Password: "secret", Admin: true}); err != nil {
		t.Fatal(err)
	}
	root := s.login("root", "secret", "").ok().str("access_token")
	const tokens = "/_carillon/admin/v1/registration_tokens"
	s.do("POST", tokens, root, obj{"token": "welcome", "uses_allowed": 1}).want(201, "")
	s.do("POST", tokens, root, obj{"token": "welcome"}).want(400, "M_INVALID_PARAM")
	s.do("POST", tokens, root, obj{"token": "no way"}).want(400, "M_INVALID_PARAM")
	s.do("POST", tokens, root, obj{"expiry_time": 5}).want(400, "M_INVALID_PARAM")
	s.do("POST", tokens, root, obj{"token": "brief", "expiry_time": s.clock().Add(time.Minute).UnixMilli()}).want(201, "")

	valid := func(token string, want bool) {
		t.Helper()
		r := s.do("GET", "/_matrix/client/v1/register/m.login.registration_token/validity?token="+token, "", nil).ok()
		if r.body["valid"] != want {
			t.Errorf("token %q: %v, want %v", token, r.body, want)
		}
	}
	valid("welcome", true)
	valid("other", false)
	valid("brief", true)
	s.advance(2 * time.Minute)
	valid("brief", false)

	auth := func(token, session string) obj {
		return obj{"type": "m.login.registration_token", "token": token, "session": session}
	}
	s.do("POST", v3+"/register", "", obj{"username": "a", "password": "x", "auth": auth("wrong", "")}).want(401, "M_UNAUTHORIZED")
	s.do("POST", v3+"/register", "", obj{"username": "a", "password": "x", "auth": auth("welcome", "")}).ok()
	valid("welcome", false)
	s.do("POST", v3+"/register", "", obj{"username": "b", "password": "x", "auth": auth("welcome", "")}).want(401, "M_UNAUTHORIZED")
	r := s.do("PUT", tokens+"/welcome", root, obj{"uses_allowed": nil}).ok()
	if r.body["completed"] != 1.0 || r.body["uses_allowed"] != nil {
		t.Errorf("got %v", r.body)
	}
	valid("welcome", true)
	if r := s.do("GET", tokens, root, nil).ok(); len(r.body["registration_tokens"].([]any)) != 2 {
		t.Errorf("got %v", r.body)
	}
	s.do("DELETE", tokens+"/welcome", root, nil).ok()
	s.do("GET", tokens+"/welcome", root, nil).want(404, "M_NOT_FOUND")
	s.do("DELETE", tokens+"/welcome", root, nil).want(404, "M_NOT_FOUND")
}

func TestLoginAndLogout(t *testing.T) {
	s := open(t)
	first := s.register("alice", "secret")
	for _, name := range []string{"alice", "@alice:test", "ALICE"} {
		if r := s.login(name, "secret", "X").ok(); r.str("user_id") != "@alice:test" || r.str("device_id") != "X" {
			t.Errorf("%s: %v", name, r.body)
		}
	}
	s.do("POST", v3+"/login", "", obj{"type": "m.login.password", "user": "alice", "password": "secret"}).ok()
	s.do("POST", "/_matrix/client/r0/login", "", obj{"type": "m.login.password", "user": "alice", "password": "secret"}).ok()
	s.login("alice", "wrong", "").want(403, "M_FORBIDDEN")
	s.login("nobody", "secret", "").want(403, "M_FORBIDDEN")
	s.login("@alice:elsewhere", "secret", "").want(403, "M_FORBIDDEN")
	s.login("alice", strings.Repeat("x", 5000), "").want(403, "M_FORBIDDEN")
	for _, tc := range []struct {
		body   any
		status int
		code   string
	}{
		{obj{}, 400, "M_MISSING_PARAM"},
		{obj{"type": "m.login.password", "password": "x"}, 400, "M_MISSING_PARAM"},
		{obj{"type": "m.login.password", "user": "alice"}, 400, "M_MISSING_PARAM"},
		{obj{"type": "m.login.fingerprint"}, 400, "M_UNKNOWN"},
		{obj{"type": "m.login.password", "identifier": obj{"type": "m.id.thirdparty"}, "password": "x"}, 400, "M_MISSING_PARAM"},
		{obj{"type": "m.login.password", "identifier": obj{"type": "m.id.thirdparty", "medium": "email", "address": "a@b.example"}, "password": "x"}, 403, "M_FORBIDDEN"},
		{obj{"type": "m.login.password", "identifier": obj{"type": "m.id.phone", "country": "GB", "phone": "1"}, "password": "x"}, 403, "M_FORBIDDEN"},
		{obj{"type": "m.login.password", "identifier": obj{"type": "m.id.phone", "phone": "1"}, "password": "x"}, 400, "M_MISSING_PARAM"},
		{obj{"type": "m.login.password", "identifier": obj{"type": "m.id.odd"}, "password": "x"}, 400, "M_UNKNOWN"},
		{obj{"type": "m.login.token"}, 400, "M_MISSING_PARAM"},
		{obj{"type": "m.login.token", "token": "x"}, 403, "M_FORBIDDEN"},
		{obj{"type": "m.login.application_service", "user": "alice"}, 401, "M_MISSING_TOKEN"},
	} {
		s.do("POST", v3+"/login", "", tc.body).want(tc.status, tc.code)
	}
	if r := s.do("GET", v3+"/login", "", nil).ok(); !strings.Contains(fmt.Sprint(r.body["flows"]), "m.login.password") {
		t.Errorf("flows: %v", r.body)
	}
	// A known device gets a new token and loses its old one.
	x1 := s.login("alice", "secret", "X").ok().str("access_token")
	s.whoami(x1).ok()
	x2 := s.login("alice", "secret", "X").ok().str("access_token")
	s.whoami(x1).want(401, "M_UNKNOWN_TOKEN")
	s.whoami(x2).ok()
	s.do("POST", v3+"/logout", x2, nil).ok()
	s.whoami(x2).want(401, "M_UNKNOWN_TOKEN")
	s.whoami(first).ok()
	s.do("GET", v3+"/devices/X", first, nil).want(404, "M_NOT_FOUND")
	other := s.login("alice", "secret", "Y").ok().str("access_token")
	s.do("POST", v3+"/logout/all", other, obj{}).ok()
	s.whoami(first).want(401, "M_UNKNOWN_TOKEN")
	s.whoami(other).want(401, "M_UNKNOWN_TOKEN")
	s.do("POST", v3+"/logout", "", nil).want(401, "M_MISSING_TOKEN")
	s.whoami("").want(401, "M_MISSING_TOKEN")
}

func TestSessionsSurviveARestart(t *testing.T) {
	opts := accounts.Options{Registration: accounts.Registration{Enabled: true, Dummy: true}}
	s := start(t, opts)
	token := s.register("alice", "secret")
	r := s.do("POST", v3+"/account/password", token, obj{"new_password": "better"}).want(401, "")
	s.restart(opts)
	s.whoami(token).ok()
	s.do("POST", v3+"/account/password", token, obj{
		"new_password": "better", "auth": passwordAuth("alice", "secret", r.str("session")),
	}).ok()
	s.do("POST", v3+"/register", "", obj{"username": "alice", "password": "x"}).want(400, "M_USER_IN_USE")
	s.login("alice", "better", "").ok()
}

func TestRefresh(t *testing.T) {
	s := open(t)
	s.register("alice", "secret")
	r := s.do("POST", v3+"/login", "", obj{"type": "m.login.password", "user": "alice", "password": "secret", "refresh_token": true}).ok()
	a1, r1 := r.str("access_token"), r.str("refresh_token")
	if r1 == "" || r.body["expires_in_ms"] != 3600000.0 {
		t.Fatalf("no refresh token: %v", r.body)
	}
	refresh := func(token string) answer { return s.do("POST", v3+"/refresh", "", obj{"refresh_token": token}) }
	s.whoami(a1).ok()
	s.advance(61 * time.Minute)
	if w := s.whoami(a1).want(401, "M_UNKNOWN_TOKEN"); w.body["soft_logout"] != true {
		t.Errorf("an expired token is no soft logout: %v", w.body)
	}
	lost := refresh(r1).ok() // an answer that never arrived
	again := refresh(r1).ok()
	a2, r2 := again.str("access_token"), again.str("refresh_token")
	s.whoami(a2).ok()
	refresh(r1).want(401, "M_UNKNOWN_TOKEN") // the new pair has been used
	s.whoami(lost.str("access_token")).want(401, "M_UNKNOWN_TOKEN")
	refresh(lost.str("refresh_token")).want(401, "M_UNKNOWN_TOKEN")

	third := refresh(r2).ok()
	s.whoami(a2).ok() // still valid: the third pair is unused
	fourth := refresh(third.str("refresh_token")).ok()
	s.whoami(a2).want(401, "M_UNKNOWN_TOKEN")
	refresh(r2).want(401, "M_UNKNOWN_TOKEN")
	w := s.whoami(fourth.str("access_token")).ok()
	if w.str("device_id") != r.str("device_id") {
		t.Errorf("the device changed from %s to %s", r.str("device_id"), w.str("device_id"))
	}
	s.do("POST", v3+"/refresh", "", obj{}).want(400, "M_MISSING_PARAM")
	refresh("nonsense").want(401, "M_UNKNOWN_TOKEN")
	s.do("POST", v3+"/logout", fourth.str("access_token"), nil).ok()
	refresh(fourth.str("refresh_token")).want(401, "M_UNKNOWN_TOKEN")
}

func TestLoginToken(t *testing.T) {
	s := open(t)
	token := s.register("alice", "secret")
	const path = "/_matrix/client/v1/login/get_token"
	c := s.do("POST", path, token, obj{}).want(401, "")
	r := s.do("POST", path, token, obj{"auth": passwordAuth("alice", "secret", c.str("session"))}).ok()
	use := func() answer {
		return s.do("POST", v3+"/login", "", obj{"type": "m.login.token", "token": r.str("login_token")})
	}
	if l := use().ok(); l.str("user_id") != "@alice:test" {
		t.Errorf("got %v", l.body)
	}
	use().want(403, "M_FORBIDDEN")
	r = s.do("POST", path, token, obj{"auth": passwordAuth("alice", "secret", "")}).ok()
	s.advance(3 * time.Minute)
	use().want(403, "M_FORBIDDEN")
}

func TestInteractiveAuthentication(t *testing.T) {
	s := open(t)
	alice := s.register("alice", "secret")
	bob := s.register("bob", "secret")
	path := v3 + "/account/password"
	c := s.do("POST", path, alice, obj{"new_password": "x"}).want(401, "")
	if !strings.Contains(fmt.Sprint(c.body["flows"]), "m.login.password") {
		t.Errorf("flows: %v", c.body)
	}
	session := c.str("session")
	try := func(token, name, password, session string) answer {
		return s.do("POST", path, token, obj{"new_password": "new", "auth": passwordAuth(name, password, session)})
	}
	r := try(alice, "alice", "wrong", session).want(401, "M_FORBIDDEN")
	if r.str("session") != session || r.body["flows"] == nil {
		t.Errorf("a failed stage tells no flows: %v", r.body)
	}
	try(alice, "bob", "secret", session).want(403, "M_FORBIDDEN") // somebody else's password
	try(bob, "bob", "secret", session).want(403, "M_FORBIDDEN")   // somebody else's session
	try(alice, "alice", "secret", "none").want(400, "M_UNKNOWN")  // no session
	s.do("POST", v3+"/account/deactivate", alice, obj{"auth": passwordAuth("alice", "secret", session)}).
		want(403, "M_FORBIDDEN") // another operation
	try(alice, "alice", "secret", session).ok()
	try(alice, "alice", "new", session).want(400, "M_UNKNOWN") // used up
	s.do("POST", path, "", obj{"new_password": "newer"}).want(401, "")
	s.do("POST", path, "", obj{"new_password": "newer", "auth": passwordAuth("alice", "new", "")}).ok()
	s.login("alice", "newer", "").ok()
}

func TestChangePassword(t *testing.T) {
	s := open(t)
	first := s.register("alice", "secret")
	second := s.login("alice", "secret", "").ok().str("access_token")
	path := v3 + "/account/password"
	s.do("POST", path, first, obj{"auth": passwordAuth("alice", "secret", "")}).want(400, "M_MISSING_PARAM")
	s.do("POST", path, first, obj{"new_password": "2", "logout_devices": false, "auth": passwordAuth("alice", "secret", "")}).ok()
	s.whoami(second).ok()
	s.login("alice", "secret", "").want(403, "M_FORBIDDEN")
	s.do("POST", path, first, obj{"new_password": "3", "auth": passwordAuth("alice", "2", "")}).ok()
	s.whoami(first).ok()
	s.whoami(second).want(401, "M_UNKNOWN_TOKEN")
	s.login("alice", "3", "").ok()
}

func TestDeactivate(t *testing.T) {
	s := open(t)
	var left []matrix.UserID
	s.acc.OnDeactivate(func(_ context.Context, u matrix.UserID, erase bool) error {
		if !erase {
			return errors.New("erase is lost")
		}
		left = append(left, u)
		return nil
	})
	token := s.register("alice", "secret")
	s.do("POST", v3+"/account/deactivate", token, obj{"auth": passwordAuth("alice", "wrong", "")}).want(401, "M_FORBIDDEN")
	r := s.do("POST", v3+"/account/deactivate", token, obj{"erase": true, "auth": passwordAuth("alice", "secret", "")}).ok()
	if r.str("id_server_unbind_result") != "success" || len(left) != 1 {
		t.Errorf("got %v, hooks ran for %v", r.body, left)
	}
	s.whoami(token).want(401, "M_UNKNOWN_TOKEN")
	s.login("alice", "secret", "").want(403, "M_USER_DEACTIVATED")
	s.do("POST", v3+"/register", "", obj{"username": "alice", "password": "x"}).want(400, "M_USER_IN_USE")
	if u, _ := s.acc.User("@alice:test"); !u.Deactivated || !u.Erased || s.acc.Active(u.ID) {
		t.Errorf("user is %+v", u)
	}
}

func TestLockSuspendAndAdminEndpoints(t *testing.T) {
	s := open(t)
	root := s.admin("root")
	alice := s.register("alice", "secret")
	lock := "/_matrix/client/v1/admin/lock/"
	suspend := "/_matrix/client/v1/admin/suspend/"
	s.do("PUT", lock+"@alice:test", alice, obj{"locked": true}).want(403, "M_FORBIDDEN")
	s.do("GET", lock+"@nobody:test", alice, nil).want(403, "M_FORBIDDEN")
	for _, tc := range []struct {
		user, code string
		status     int
	}{
		{"@nobody:test", "M_NOT_FOUND", 404},
		{"@alice:elsewhere", "M_INVALID_PARAM", 400},
		{"alice", "M_INVALID_PARAM", 400},
		{"@root:test", "M_FORBIDDEN", 403},
	} {
		s.do("GET", lock+tc.user, root, nil).want(tc.status, tc.code)
		s.do("PUT", suspend+tc.user, root, obj{"suspended": true}).want(tc.status, tc.code)
	}
	s.do("PUT", lock+"@alice:test", root, obj{}).want(400, "M_MISSING_PARAM")
	s.whoami(alice).ok()
	s.do("PUT", lock+"@alice:test", root, obj{"locked": true}).ok()
	if r := s.whoami(alice).want(401, "M_USER_LOCKED"); r.body["soft_logout"] != true {
		t.Errorf("locked: %v", r.body)
	}
	if r := s.login("alice", "secret", "").want(401, "M_USER_LOCKED"); r.body["soft_logout"] != true {
		t.Errorf("locked: %v", r.body)
	}
	if r := s.do("GET", lock+"@alice:test", root, nil).ok(); r.body["locked"] != true {
		t.Errorf("got %v", r.body)
	}
	s.do("PUT", lock+"@alice:test", root, obj{"locked": false}).ok()
	s.whoami(alice).ok()
	s.do("PUT", suspend+"@alice:test", root, obj{"suspended": true}).ok()
	s.whoami(alice).ok()
	s.login("alice", "secret", "other").ok()
	if r := s.do("GET", suspend+"@alice:test", root, nil).ok(); r.body["suspended"] != true {
		t.Errorf("got %v", r.body)
	}
	s.do("PUT", lock+"@alice:test", root, obj{"locked": true}).ok()
	s.do("POST", v3+"/logout", alice, nil).ok() // a locked account may still log out

	const users = "/_carillon/admin/v1/users"
	s.do("GET", users, alice, nil).want(401, "M_UNKNOWN_TOKEN")
	if r := s.do("POST", users, root, obj{"username": "carol", "password": "secret", "admin": true}).want(201, ""); r.body["admin"] != true {
		t.Errorf("got %v", r.body)
	}
	carol := s.login("carol", "secret", "").ok().str("access_token")
	s.do("POST", users, root, obj{"username": "carol"}).want(400, "M_USER_IN_USE")
	s.do("PUT", users+"/@carol:test/admin", root, obj{"admin": false}).ok()
	s.do("GET", users, carol, nil).want(403, "M_FORBIDDEN")
	s.do("PUT", users+"/@root:test/admin", root, obj{"admin": false}).want(403, "M_FORBIDDEN")
	s.do("PUT", users+"/@carol:test/password", root, obj{"new_password": "fresh"}).ok()
	s.whoami(carol).want(401, "M_UNKNOWN_TOKEN")
	s.login("carol", "fresh", "").ok()
	s.do("PUT", users+"/@no:test/password", root, obj{"new_password": "fresh"}).want(404, "M_NOT_FOUND")
	r := s.do("GET", users+"?limit=2", root, nil).ok()
	if len(r.body["users"].([]any)) != 2 || r.body["total"] != 3.0 || r.str("next_batch") != "@carol:test" {
		t.Errorf("got %v", r.body)
	}
	r = s.do("GET", users+"?limit=2&from="+r.str("next_batch"), root, nil).ok()
	if len(r.body["users"].([]any)) != 1 || r.str("next_batch") != "" {
		t.Errorf("got %v", r.body)
	}
	s.do("POST", users+"/@carol:test/deactivate", root, obj{}).ok()
	s.do("GET", lock+"@carol:test", root, nil).want(404, "M_NOT_FOUND")
}

func TestSharedSecretRegistration(t *testing.T) {
	s := start(t, accounts.Options{Registration: accounts.Registration{SharedSecret: "hush"}})
	const path = "/_synapse/admin/v1/register"
	body := func(username, password, secret string, admin bool) obj {
		nonce := s.do("GET", path, "", nil).ok().str("nonce")
		role := "notadmin"
		if admin {
			role = "admin"
		}
		mac := hmac.New(sha1.New, []byte(secret))
		mac.Write([]byte(strings.Join([]string{nonce, username, password, role}, "\x00")))
		return obj{"nonce": nonce, "username": username, "password": password, "admin": admin, "mac": hex.EncodeToString(mac.Sum(nil))}
	}
	b := body("Root", "secret", "hush", true)
	r := s.do("POST", path, "", b).ok()
	if r.str("user_id") != "@root:test" || !s.acc.IsAdmin("@root:test") {
		t.Errorf("got %v", r.body)
	}
	s.whoami(r.str("access_token")).ok()
	s.do("POST", path, "", b).want(400, "M_UNKNOWN") // the nonce again
	s.do("POST", path, "", body("bob", "x", "wrong", false)).want(403, "M_FORBIDDEN")
	s.do("POST", path, "", body("b!ob", "x", "hush", false)).want(400, "M_INVALID_USERNAME")
	s.do("POST", path, "", body("root", "x", "hush", false)).want(400, "M_USER_IN_USE")
	s.do("POST", path, "", obj{"username": "bob"}).want(400, "M_MISSING_PARAM")
	late := body("bob", "x", "hush", false)
	s.advance(2 * time.Minute)
	s.do("POST", path, "", late).want(400, "M_UNKNOWN")
	s.do("POST", path, "", body("bob", "x", "hush", false)).ok()
	if s.acc.IsAdmin("@bob:test") {
		t.Error("bob became an administrator")
	}
	open(t).do("GET", path, "", nil).want(404, "M_UNRECOGNIZED")
}

func TestLoginAttemptsAreLimited(t *testing.T) {
	s := start(t, accounts.Options{
		Registration: accounts.Registration{Enabled: true, Dummy: true}, LoginAttempts: 0.1, LoginBurst: 3,
	})
	s.register("alice", "secret")
	for range 3 {
		s.login("alice", "wrong", "").want(403, "M_FORBIDDEN")
	}
	s.login("alice", "secret", "").want(429, "M_LIMIT_EXCEEDED")
	s.advance(time.Minute)
	for range 6 {
		s.login("alice", "secret", "").ok() // right ones do not count
	}
}
