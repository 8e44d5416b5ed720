package accounts_test

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

const registration = `
id: bridge
url: http://127.0.0.1:9000/
as_token: as-secret
hs_token: hs-secret
sender_localpart: bridge
rate_limited: false
receive_ephemeral: true
some.unknown.key: {a: [1, 2]}
protocols: [irc]
namespaces:
  users:
    - {exclusive: true, regex: "@irc_.*", group_id: "+x:y"}
    - {exclusive: false, regex: "@shared_.*:test"}
  aliases:
    - {exclusive: true, regex: "#irc_.*"}
  rooms: []
`

func TestReadingRegistrations(t *testing.T) {
	as, err := accounts.ParseRegistration([]byte(registration))
	if err != nil {
		t.Fatal(err)
	}
	if as.ID != "bridge" || as.URL != "http://127.0.0.1:9000" || as.RateLimited || !as.ReceiveEphemeral || as.Protocols[0] != "irc" {
		t.Errorf("got %+v", as)
	}
	for user, want := range map[string]bool{"@irc_a:test": true, "@shared_x:test": true, "@x_irc_a:test": false, "@bridge:test": true, "@bridges:test": false} {
		if as.OwnsUser(matrix.UserID(user)) != want {
			t.Errorf("owns %s: %v", user, !want)
		}
	}
	for name, text := range map[string]string{
		"no id":         strings.Replace(registration, "id: bridge", "", 1),
		"no token":      strings.Replace(registration, "as_token: as-secret", "", 1),
		"bad regex":     strings.Replace(registration, "@irc_.*", "@irc_(", 1),
		"bad sender":    strings.Replace(registration, "sender_localpart: bridge", "sender_localpart: a b", 1),
		"bad url":       strings.Replace(registration, "http://127.0.0.1:9000/", "nowhere", 1),
		"not yaml":      "{{",
		"no registry":   "[]",
		"empty":         "",
		"numeric wrong": strings.Replace(registration, "namespaces:", "namespaces: 3\nx:", 1),
	} {
		if _, err := accounts.ParseRegistration([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	quiet, err := accounts.ParseRegistration([]byte(strings.Replace(registration, "http://127.0.0.1:9000/", "null", 1)))
	if err != nil || quiet.URL != "" {
		t.Errorf("url null: %+v, %v", quiet, err)
	}

	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a.yaml", registration)
	write("notes.txt", "no registration")
	list, err := accounts.LoadRegistrations(dir)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d read: %v", len(list), err)
	}
	for _, same := range []string{"id: bridge", "as_token: as-secret", "sender_localpart: bridge"} {
		other := registration
		for _, line := range []string{"id: bridge", "as_token: as-secret", "sender_localpart: bridge"} {
			if line != same {
				other = strings.Replace(other, line, line+"2", 1)
			}
		}
		write("b.yaml", other)
		if _, err := accounts.LoadRegistrations(dir); err == nil {
			t.Errorf("two services with the same %q were accepted", same)
		}
	}
}

func service(t *testing.T) *server {
	t.Helper()
	as, err := accounts.ParseRegistration([]byte(registration))
	if err != nil {
		t.Fatal(err)
	}
	as.Admin = true
	return start(t, accounts.Options{
		Registration:        accounts.Registration{Enabled: true, Dummy: true},
		ApplicationServices: []*accounts.ApplicationService{as},
	})
}

func TestApplicationServices(t *testing.T) {
	s := service(t)
	const token = "as-secret"
	if r := s.whoami(token).ok(); r.str("user_id") != "@bridge:test" {
		t.Errorf("the service is %v", r.body)
	}
	reg := func(token, name string, more ...any) answer {
		b := obj{"type": "m.login.application_service", "username": name}
		for i := 0; i < len(more); i += 2 {
			b[more[i].(string)] = more[i+1]
		}
		return s.do("POST", v3+"/register", token, b)
	}
	reg("", "irc_a").want(401, "M_MISSING_TOKEN")
	reg("wrong", "irc_a").want(401, "M_UNKNOWN_TOKEN")
	reg(token, "other").want(400, "M_EXCLUSIVE")
	if r := reg(token, "irc_a", "inhibit_login", true).ok(); r.str("user_id") != "@irc_a:test" || r.str("access_token") != "" {
		t.Errorf("got %v", r.body)
	}
	reg(token, "irc_a").want(400, "M_USER_IN_USE")
	s.do("POST", v3+"/register", token, obj{"type": "m.login.application_service"}).want(400, "M_MISSING_PARAM")
	s.do("POST", v3+"/register", "", obj{"username": "irc_b", "password": "x", "auth": obj{"type": "m.login.dummy"}}).want(400, "M_EXCLUSIVE")
	s.do("GET", v3+"/register/available?username=irc_c", "", nil).want(400, "M_EXCLUSIVE")
	s.do("GET", v3+"/register/available?username=bridge", "", nil).want(400, "M_EXCLUSIVE")
	s.register("shared_x", "secret") // not exclusive

	who := v3 + "/account/whoami?user_id="
	if r := s.do("GET", who+"@irc_a:test", token, nil).ok(); r.str("user_id") != "@irc_a:test" || r.str("device_id") != "" {
		t.Errorf("masquerading: %v", r.body)
	}
	s.do("GET", who+"@other:test", token, nil).want(403, "M_FORBIDDEN")
	s.do("GET", who+"@irc_a:elsewhere", token, nil).want(403, "M_FORBIDDEN")
	s.do("GET", who+"@irc_unmade:test", token, nil).want(403, "M_FORBIDDEN")
	s.do("GET", who+"@irc_a:test&device_id=NONE", token, nil).want(400, "M_UNKNOWN_DEVICE")
	s.do("PUT", v3+"/devices/PHONE?user_id=@irc_a:test", token, obj{"display_name": "made"}).want(201, "")
	if r := s.do("GET", who+"@irc_a:test&device_id=PHONE", token, nil).ok(); r.str("device_id") != "PHONE" {
		t.Errorf("device masquerading: %v", r.body)
	}
	s.do("GET", who+"@irc_a:test&org.matrix.msc3202.device_id=PHONE", token, nil).ok()
	s.do("DELETE", v3+"/devices/PHONE?user_id=@irc_a:test", token, nil).ok() // no interactive authentication
	s.do("GET", who+"@irc_a:test&device_id=PHONE", token, nil).want(400, "M_UNKNOWN_DEVICE")

	login := func(token, name string) answer {
		return s.do("POST", v3+"/login", token, obj{"type": "m.login.application_service", "identifier": obj{"type": "m.id.user", "user": name}})
	}
	if r := login(token, "irc_a").ok(); r.str("user_id") != "@irc_a:test" {
		t.Errorf("got %v", r.body)
	}
	login(token, "stranger").want(400, "M_EXCLUSIVE")
	login(token, "irc_unmade").want(403, "M_FORBIDDEN")
	login("wrong", "irc_a").want(401, "M_UNKNOWN_TOKEN")
	login("", "irc_a").want(401, "M_MISSING_TOKEN")

	// Its sender is an administrator here; a locked user can still be acted for.
	s.do("PUT", "/_matrix/client/v1/admin/lock/@irc_a:test", token, obj{"locked": true}).ok()
	s.do("GET", who+"@irc_a:test", token, nil).ok()
	s.do("PUT", "/_matrix/client/v1/admin/lock/@shared_x:test?user_id=@irc_a:test", token, obj{"locked": true}).want(403, "M_FORBIDDEN")
}

func TestReadyMadePasswordHashes(t *testing.T) {
	s := service(t)
	salt := []byte("0123456789abcdef")
	sum := sha256.Sum256(append(salt, "first password"...))
	enc := base64.RawStdEncoding
	sha := fmt.Sprintf("$carillon-sha256$%s$%s", enc.EncodeToString(salt), enc.EncodeToString(sum[:]))
	b, err := bcrypt.GenerateFromPassword([]byte("first password"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	for i, hash := range []string{sha, string(b)} {
		name := fmt.Sprintf("irc_%d", i)
		s.do("POST", v3+"/register", "as-secret", obj{
			"type": "m.login.application_service", "username": name, "inhibit_login": true, "im.carillon.password_hash": hash,
		}).ok()
		s.login(name, "wrong", "").want(403, "M_FORBIDDEN")
		s.login(name, "first password", "").ok() // this makes the hash anew
		s.login(name, "first password", "").ok()
		s.login(name, "wrong", "").want(403, "M_FORBIDDEN")
	}
	for _, bad := range []string{
		"plain", "$carillon-sha256$x$y", "$carillon-sha256$" + enc.EncodeToString(salt), "$2a$31$" + strings.Repeat("x", 53),
		"$argon2id$v=19$m=99999999,t=1,p=1$c2FsdHNhbHQ$" + enc.EncodeToString(sum[:]),
	} {
		s.do("POST", v3+"/register", "as-secret", obj{
			"type": "m.login.application_service", "username": "irc_bad", "im.carillon.password_hash": bad,
		}).want(400, "M_INVALID_PARAM")
	}
	// Nobody else may set a hash: it is ignored.
	s.do("POST", v3+"/register", "", obj{
		"username": "bob", "password": "real", "im.carillon.password_hash": sha, "auth": obj{"type": "m.login.dummy"},
	}).ok()
	s.login("bob", "first password", "").want(403, "M_FORBIDDEN")
	s.login("bob", "real", "").ok()
}
