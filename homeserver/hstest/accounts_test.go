package hstest_test

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// want checks the status and errcode of an answer.
func want(t testing.TB, what string, a hstest.Answer, status int, code string) {
	t.Helper()
	if a.Status != status || a.Code() != code {
		t.Errorf("%s: %d %s, want %d %s", what, a.Status, a.Body, status, code)
	}
}

func login(s *hstest.Server, user, password string, more ...string) hstest.Answer {
	body := map[string]any{
		"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": user}, "password": password,
	}
	for _, m := range more {
		k, v, _ := strings.Cut(m, "=")
		body[k] = v
	}
	return s.Do("", "POST", hstest.Path("login"), body)
}

func TestRegistrationByDummy(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	if a := s.Do("", "GET", hstest.Path("register", "available")+"?username=alice", nil); !a.Get("available").Bool() {
		t.Errorf("alice should be free: %s", a.Body)
	}
	first := s.Do("", "POST", hstest.Path("register"), map[string]any{"username": "alice", "password": "a good password"})
	if first.Status != 401 || first.Get("flows.#.stages").Raw == "" || first.Get("session").Str == "" {
		t.Fatalf("the first step: %d %s", first.Status, first.Body)
	}
	done := s.Do("", "POST", hstest.Path("register"), map[string]any{
		"username": "alice", "password": "a good password", "device_id": "LAPTOP", "initial_device_display_name": "笔记本",
		"auth": map[string]string{"type": "m.login.dummy", "session": first.Get("session").Str},
	})
	want(t, "registering", done, 200, "")
	if done.Get("user_id").Str != "@alice:a.example" || done.Get("device_id").Str != "LAPTOP" {
		t.Errorf("registered as %s", done.Body)
	}
	who := s.Do(done.Get("access_token").Str, "GET", hstest.Path("account", "whoami"), nil)
	if who.Get("user_id").Str != "@alice:a.example" || who.Get("device_id").Str != "LAPTOP" || who.Get("is_guest").Bool() {
		t.Errorf("whoami: %s", who.Body)
	}
	want(t, "again", s.Do("", "POST", hstest.Path("register"), map[string]any{
		"username": "alice", "password": "other", "auth": map[string]string{"type": "m.login.dummy"},
	}), 400, "M_USER_IN_USE")
	want(t, "no longer free", s.Do("", "GET", hstest.Path("register", "available")+"?username=alice", nil), 400, "M_USER_IN_USE")
	want(t, "a bad name", s.Do("", "POST", hstest.Path("register"), map[string]any{
		"username": "Ålice!", "password": "other", "auth": map[string]string{"type": "m.login.dummy"},
	}), 400, "M_INVALID_USERNAME")
	quiet := s.Do("", "POST", hstest.Path("register"), map[string]any{
		"username": "quiet", "password": "other password", "inhibit_login": true, "auth": map[string]string{"type": "m.login.dummy"},
	})
	if quiet.Status != 200 || quiet.Get("access_token").Exists() {
		t.Errorf("with inhibit_login: %d %s", quiet.Status, quiet.Body)
	}
}

func TestRegistrationByToken(t *testing.T) {
	t.Parallel()
	s := hstest.New(t, func(o *homeserver.Options) { o.Registration.Dummy, o.Registration.Tokens = false, true })
	once := int64(1)
	token, err := s.Accounts().CreateRegistrationToken(t.Context(), accounts.RegistrationToken{Token: "welcome", UsesAllowed: &once})
	if err != nil {
		t.Fatal(err)
	}
	if a := s.Do("", "GET", "/_matrix/client/v1/register/m.login.registration_token/validity?token="+token.Token, nil); !a.Get("valid").Bool() {
		t.Errorf("the token is not valid: %s", a.Body)
	}
	register := func(user, token string) hstest.Answer {
		return s.Do("", "POST", hstest.Path("register"), map[string]any{
			"username": user, "password": "a good password", "auth": map[string]string{"type": "m.login.registration_token", "token": token},
		})
	}
	if a := register("anna", "wrong"); a.Status != 401 {
		t.Errorf("with a wrong token: %d %s", a.Status, a.Body)
	}
	want(t, "with the token", register("anna", "welcome"), 200, "")
	if a := register("berta", "welcome"); a.Status != 401 {
		t.Errorf("with a used-up token: %d %s", a.Status, a.Body)
	}
}

func TestRegistrationBySharedSecret(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	register := func(secret, user string, admin bool) hstest.Answer {
		const path = "/_synapse/admin/v1/register"
		nonce := s.Do("", "GET", path, nil).Get("nonce").Str
		role := "notadmin"
		if admin {
			role = "admin"
		}
		mac := hmac.New(sha1.New, []byte(secret))
		fmt.Fprintf(mac, "%s\x00%s\x00%s\x00%s", nonce, user, "a good password", role)
		return s.Do("", "POST", path, map[string]any{
			"nonce": nonce, "username": user, "password": "a good password", "admin": admin, "mac": hex.EncodeToString(mac.Sum(nil)),
		})
	}
	a := register("secret", "boss", true)
	want(t, "shared secret", a, 200, "")
	if a.Get("user_id").Str != "@boss:a.example" || a.Get("access_token").Str == "" {
		t.Errorf("registered: %s", a.Body)
	}
	want(t, "wrong secret", register("wrong", "thief", true), 403, "M_FORBIDDEN")
}

func TestLogInAndOut(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice := s.User("alice")
	flows := s.Do("", "GET", hstest.Path("login"), nil)
	if !strings.Contains(string(flows.Body), "m.login.password") {
		t.Errorf("flows: %s", flows.Body)
	}
	want(t, "wrong password", login(s, "alice", "no"), 403, "M_FORBIDDEN")
	want(t, "unknown user", login(s, "nobody", "no"), 403, "M_FORBIDDEN")
	by := login(s, string(alice.UserID), "password of alice", "device_id=PAD")
	want(t, "by full ID", by, 200, "")
	pad := by.Get("access_token").Str

	// The other device opens a third one with a short-lived token.
	get := alice.Do("POST", "/_matrix/client/v1/login/get_token", map[string]any{
		"auth": map[string]any{"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": "alice"}, "password": "password of alice"},
	})
	want(t, "get_token", get, 200, "")
	third := s.Do("", "POST", hstest.Path("login"), map[string]any{"type": "m.login.token", "token": get.Get("login_token").Str})
	want(t, "by token", third, 200, "")
	want(t, "by token again", s.Do("", "POST", hstest.Path("login"), map[string]any{"type": "m.login.token", "token": get.Get("login_token").Str}), 403, "M_FORBIDDEN")

	want(t, "log-out", s.Do(pad, "POST", hstest.Path("logout"), "{}"), 200, "")
	want(t, "after log-out", s.Do(pad, "GET", hstest.Path("account", "whoami"), nil), 401, "M_UNKNOWN_TOKEN")
	want(t, "no token", s.Do("", "GET", hstest.Path("account", "whoami"), nil), 401, "M_MISSING_TOKEN")
	alice.OK("POST", hstest.Path("logout", "all"), "{}")
	want(t, "after log-out everywhere", s.Do(third.Get("access_token").Str, "GET", hstest.Path("account", "whoami"), nil), 401, "M_UNKNOWN_TOKEN")
	want(t, "after log-out everywhere", alice.Do("GET", hstest.Path("account", "whoami"), nil), 401, "M_UNKNOWN_TOKEN")
}

func TestRefreshTokens(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	s.User("alice")
	body := map[string]any{
		"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": "alice"},
		"password": "password of alice", "refresh_token": true,
	}
	in := s.Do("", "POST", hstest.Path("login"), body)
	if in.Get("refresh_token").Str == "" || in.Get("expires_in_ms").Int() <= 0 {
		t.Fatalf("log-in with refresh: %s", in.Body)
	}
	next := s.Do("", "POST", hstest.Path("refresh"), map[string]string{"refresh_token": in.Get("refresh_token").Str})
	want(t, "refresh", next, 200, "")
	if next.Get("access_token").Str == "" || next.Get("access_token").Str == in.Get("access_token").Str {
		t.Errorf("refreshed: %s", next.Body)
	}
	want(t, "with the new token", s.Do(next.Get("access_token").Str, "GET", hstest.Path("account", "whoami"), nil), 200, "")
	want(t, "the old refresh token", s.Do("", "POST", hstest.Path("refresh"), map[string]string{"refresh_token": in.Get("refresh_token").Str}), 401, "M_UNKNOWN_TOKEN")
	s.Stop()
	s.Start()
	want(t, "after a restart", s.Do(next.Get("access_token").Str, "GET", hstest.Path("account", "whoami"), nil), 200, "")
}

func TestDevices(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice := s.User("alice")
	phone := alice.Login("PHONE")
	phone.OK("PUT", hstest.Path("devices", "PHONE"), map[string]string{"display_name": "手机"})
	if got := alice.OK("GET", hstest.Path("devices", "PHONE"), nil).Get("display_name").Str; got != "手机" {
		t.Errorf("the phone is called %q", got)
	}
	if n := alice.OK("GET", hstest.Path("devices"), nil).Get("devices.#").Int(); n != 2 {
		t.Errorf("%d devices", n)
	}
	alice.Refused(404, "M_NOT_FOUND", "GET", hstest.Path("devices", "NONE"), nil)
	first := alice.Do("DELETE", hstest.Path("devices", "PHONE"), "{}")
	if first.Status != 401 || first.Get("session").Str == "" {
		t.Fatalf("deleting a device: %d %s", first.Status, first.Body)
	}
	auth := map[string]any{"auth": map[string]any{
		"type": "m.login.password", "session": first.Get("session").Str, "password": "password of alice",
		"identifier": map[string]string{"type": "m.id.user", "user": "alice"},
	}}
	alice.OK("DELETE", hstest.Path("devices", "PHONE"), auth)
	want(t, "the deleted device", phone.Do("GET", hstest.Path("account", "whoami"), nil), 401, "M_UNKNOWN_TOKEN")
	bob := s.User("bob")
	bob.Refused(404, "M_NOT_FOUND", "GET", hstest.Path("devices", string(alice.DeviceID)), nil)
}

func TestPasswordChangeAndDeactivation(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice := s.User("alice")
	phone := alice.Login("PHONE")
	room := alice.Room(nil, s.User("bob"))
	proof := func(password string) map[string]any {
		return map[string]any{"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": "alice"}, "password": password}
	}
	if a := alice.Do("POST", hstest.Path("account", "password"), map[string]any{"new_password": "a new password", "auth": proof("wrong")}); a.Status != 401 {
		t.Errorf("with a wrong password: %d %s", a.Status, a.Body)
	}
	alice.OK("POST", hstest.Path("account", "password"), map[string]any{"new_password": "a new password", "auth": proof("password of alice")})
	want(t, "other devices", phone.Do("GET", hstest.Path("account", "whoami"), nil), 401, "M_UNKNOWN_TOKEN")
	want(t, "this device", alice.Do("GET", hstest.Path("account", "whoami"), nil), 200, "")
	want(t, "the old password", login(s, "alice", "password of alice"), 403, "M_FORBIDDEN")
	want(t, "the new password", login(s, "alice", "a new password"), 200, "")

	alice.OK("POST", hstest.Path("account", "deactivate"), map[string]any{"auth": proof("a new password")})
	want(t, "after closing", alice.Do("GET", hstest.Path("account", "whoami"), nil), 401, "M_UNKNOWN_TOKEN")
	if a := login(s, "alice", "a new password"); a.Status != 403 {
		t.Errorf("log-in to a closed account: %d %s", a.Status, a.Body)
	}
	bob := s.User("bob")
	s.Eventually("alice leaves her rooms", func() bool { return membership(bob, room, alice.UserID) == "leave" })
}

func TestApplicationServiceActs(t *testing.T) {
	t.Parallel()
	as, err := accounts.ParseRegistration([]byte(`
id: bridge
url: ""
as_token: as-secret
hs_token: hs-secret
sender_localpart: bridge
rate_limited: false
namespaces:
  users: [{exclusive: true, regex: "@irc_.*"}]
  aliases: [{exclusive: true, regex: "#irc_.*"}]
  rooms: []
`))
	if err != nil {
		t.Fatal(err)
	}
	s := hstest.New(t, func(o *homeserver.Options) { o.ApplicationServices = []*accounts.ApplicationService{as} })
	do := func(user, method, path string, body any) hstest.Answer {
		sep := "?"
		if strings.Contains(path, "?") {
			sep = "&"
		}
		if user != "" {
			path += sep + "user_id=" + user
		}
		return s.Do("as-secret", method, path, body)
	}
	want(t, "registering its user", s.Do("as-secret", "POST", hstest.Path("register"), map[string]any{"type": "m.login.application_service", "username": "irc_fan"}), 200, "")
	want(t, "registering another's", s.Do("as-secret", "POST", hstest.Path("register"), map[string]any{"type": "m.login.application_service", "username": "carl"}), 400, "M_EXCLUSIVE")
	want(t, "somebody takes its name", s.Do("", "POST", hstest.Path("register"), map[string]any{
		"username": "irc_thief", "password": "a good password", "auth": map[string]string{"type": "m.login.dummy"},
	}), 400, "M_EXCLUSIVE")
	if a := do("", "GET", hstest.Path("account", "whoami"), nil); a.Get("user_id").Str != "@bridge:a.example" {
		t.Errorf("its bot is %s", a.Body)
	}
	made := do("@irc_fan:a.example", "POST", hstest.Path("createRoom"), map[string]any{"preset": "public_chat", "room_alias_name": "irc_go"})
	want(t, "its user creates a room", made, 200, "")
	room := made.Get("room_id").Str
	sent := do("@irc_fan:a.example", "PUT", hstest.Path("rooms", room, "send", "m.room.message", "1")+"?ts=1500000000000", map[string]string{"msgtype": "m.text", "body": "from the past"})
	want(t, "its user writes", sent, 200, "")
	if again := do("@irc_fan:a.example", "PUT", hstest.Path("rooms", room, "send", "m.room.message", "1"), map[string]string{"msgtype": "m.text", "body": "x"}); again.Get("event_id").Str != sent.Get("event_id").Str {
		t.Errorf("the same transaction gave %s and %s", sent.Body, again.Body)
	}
	if ev := do("@irc_fan:a.example", "GET", hstest.Path("rooms", room, "event", sent.Get("event_id").Str), nil); ev.Get("origin_server_ts").Int() != 1500000000000 {
		t.Errorf("its time is %s", ev.Body)
	}
	want(t, "as a stranger", do("@alice:a.example", "GET", hstest.Path("account", "whoami"), nil), 403, "M_FORBIDDEN")
	in := s.Do("as-secret", "POST", hstest.Path("login"), map[string]any{
		"type": "m.login.application_service", "identifier": map[string]string{"type": "m.id.user", "user": "irc_fan"},
	})
	want(t, "log-in", in, http.StatusOK, "")
	want(t, "with the token", s.Do(in.Get("access_token").Str, "GET", hstest.Path("account", "whoami"), nil), 200, "")
}
