package e2ee_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

const backups = "/room_keys/version"

func backupKey(first, forwarded int, verified bool, data string) m {
	return m{"first_message_index": first, "forwarded_count": forwarded, "is_verified": verified, "session_data": m{"ciphertext": data}}
}

func TestBackupVersions(t *testing.T) {
	s := start(t)
	body := m{"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": m{"public_key": "abc"}}
	s.want(404, "M_NOT_FOUND", a1, "GET", backups, "")
	s.want(404, "M_NOT_FOUND", a1, "GET", backups+"/1", "")
	s.want(200, `{"version":"1"}`, a1, "POST", backups, body)
	s.want(200, `{"version":"2"}`, a1, "POST", backups, body)
	s.want(200, `"version":"2"`, a1, "GET", backups, "")
	got := decode(t, s.want(200, "", a1, "GET", backups+"/1", ""))
	if got["count"] != 0.0 || got["etag"] != "0" || at(got, "auth_data", "public_key") != "abc" || got["version"] != "1" {
		t.Errorf("version 1: %v", got)
	}
	s.want(404, "M_NOT_FOUND", b1, "GET", backups+"/1", "") // another's
	s.want(404, "M_NOT_FOUND", a1, "GET", backups+"/nonsense", "")
	s.want(404, "M_NOT_FOUND", a1, "PUT", backups+"/9", body)
	s.want(404, "M_NOT_FOUND", a1, "DELETE", backups+"/9", "")

	update := m{"algorithm": body["algorithm"], "auth_data": m{"public_key": "new"}, "version": "2"}
	s.want(200, "{}", a1, "PUT", backups+"/2", update)
	s.want(200, "new", a1, "GET", backups, "")
	s.want(400, "M_INVALID_PARAM", a1, "PUT", backups+"/1", update)
	s.want(400, "M_INVALID_PARAM", a1, "PUT", backups+"/2", m{"algorithm": "other", "auth_data": m{}})
	for _, bad := range []struct{ code, body string }{
		{"M_MISSING_PARAM", `{}`},
		{"M_MISSING_PARAM", `{"algorithm":"x"}`},
		{"M_BAD_JSON", `{"algorithm":"x","auth_data":"text"}`},
		{"M_BAD_JSON", `{"algorithm":7,"auth_data":{}}`},
		{"M_NOT_JSON", `{`},
	} {
		s.want(400, bad.code, a1, "POST", backups, bad.body)
		s.want(400, bad.code, a1, "PUT", backups+"/2", bad.body)
	}

	s.want(200, "{}", a1, "DELETE", backups+"/2", "")
	s.want(200, "{}", a1, "DELETE", backups+"/2", "") // deleted before
	s.want(404, "M_NOT_FOUND", a1, "GET", backups+"/2", "")
	s.want(200, `"version":"1"`, a1, "GET", backups, "")
	s.want(200, `{"version":"3"}`, a1, "POST", backups, body) // numbers are not used again
}

func TestBackupKeys(t *testing.T) {
	s := start(t)
	create := m{"algorithm": "a", "auth_data": m{}}
	const keys, room = "/room_keys/keys", "/room_keys/keys/%21r:example.org"
	s.want(404, "M_NOT_FOUND", a1, "PUT", keys+"?version=1", m{"rooms": m{}})
	s.want(200, "", a1, "POST", backups, create)
	s.want(200, `{"etag":"1","count":1}`, a1, "PUT", room+"/s1?version=1", backupKey(5, 2, false, "first"))
	s.want(200, `{"etag":"2","count":3}`, a1, "PUT", room+"?version=1", m{"sessions": m{"s2": backupKey(0, 0, true, "x"), "a/b+": backupKey(0, 0, true, "y")}})
	s.want(200, `{"etag":"3","count":4}`, a1, "PUT", keys+"?version=1", m{"rooms": m{"!q:x": m{"sessions": m{"s1": backupKey(0, 0, true, "z")}}}})
	s.want(200, `"ciphertext":"y"`, a1, "GET", room+"/a%2Fb+?version=1", "")

	// Which of two keys stays, in order.
	for _, tt := range []struct {
		key  m
		etag string
		want string
	}{
		{backupKey(6, 0, false, "later index"), "3", "first"},
		{backupKey(5, 2, false, "the same"), "3", "first"},
		{backupKey(5, 3, false, "more forwarded"), "3", "first"},
		{backupKey(5, 1, false, "less forwarded"), "4", "less forwarded"},
		{backupKey(4, 9, false, "earlier index"), "5", "earlier index"},
		{backupKey(9, 9, true, "verified"), "6", "verified"},
		{backupKey(0, 0, false, "unverified"), "6", "verified"},
	} {
		s.want(200, fmt.Sprintf(`{"etag":%q,"count":4}`, tt.etag), a1, "PUT", room+"/s1?version=1", tt.key)
		s.want(200, tt.want, a1, "GET", room+"/s1?version=1", "")
	}
	all := decode(t, s.want(200, "", a1, "GET", keys+"?version=1", ""))
	if at(all, "rooms", "!q:x", "sessions", "s1", "is_verified") != true || at(all, "rooms", "!r:example.org", "sessions", "s2", "session_data", "ciphertext") != "x" {
		t.Errorf("all: %v", all)
	}
	got := decode(t, s.want(200, "", a1, "GET", room+"?version=1", ""))
	if sessions, _ := got["sessions"].(m); len(sessions) != 3 {
		t.Errorf("room: %v", got)
	}
	s.want(200, `{"sessions":{}}`, a1, "GET", keys+"/%21none:x?version=1", "")
	s.want(404, "M_NOT_FOUND", a1, "GET", room+"/none?version=1", "")
	s.want(404, "M_NOT_FOUND", a1, "GET", keys+"?version=7", "")
	s.want(404, "M_NOT_FOUND", b1, "GET", keys+"?version=1", "")
	s.want(400, "M_MISSING_PARAM", a1, "GET", keys, "")
	s.want(400, "M_MISSING_PARAM", a1, "PUT", keys, m{"rooms": m{}})
	s.want(400, "M_MISSING_PARAM", a1, "DELETE", keys, "")
	s.want(400, "M_MISSING_PARAM", a1, "PUT", keys+"?version=1", "{}")
	s.want(400, "M_MISSING_PARAM", a1, "PUT", room+"?version=1", "{}")
	s.want(400, "M_BAD_JSON", a1, "PUT", room+"/s1?version=1", "{}")
	s.want(400, "M_BAD_JSON", a1, "PUT", room+"/s1?version=1", `{"first_message_index":"x"}`)
	s.want(400, "M_BAD_JSON", a1, "PUT", room+"/s1?version=1", backupKey(-1, 0, false, "x"))
	s.want(400, "M_INVALID_PARAM", a1, "PUT", keys+"/notaroom?version=1", m{"sessions": m{}})
	s.want(400, "M_INVALID_PARAM", a1, "PUT", keys+"?version=1", m{"rooms": m{"notaroom": m{"sessions": m{}}}})
	s.want(400, "M_INVALID_PARAM", a1, "PUT", room+"?version=1", m{"sessions": m{"a\x00": backupKey(1, 1, true, "x")}})
	s.want(413, "M_TOO_LARGE", a1, "PUT", room+"/s1?version=1", backupKey(1, 1, true, strings.Repeat("x", 2<<20)))

	s.want(200, `{"etag":"7","count":3}`, a1, "DELETE", room+"/s1?version=1", "")
	s.want(200, `{"etag":"7","count":3}`, a1, "DELETE", room+"/s1?version=1", "")
	s.want(200, `{"etag":"8","count":1}`, a1, "DELETE", room+"?version=1", "")
	s.want(200, `"count":1`, a1, "GET", backups, "")
	s.want(200, `{"etag":"9","count":0}`, a1, "DELETE", keys+"?version=1", "")
	s.want(200, `{"rooms":{}}`, a1, "GET", keys+"?version=1", "")

	s.want(200, "", a1, "POST", backups, create)
	s.want(403, `"current_version":"2"`, a1, "PUT", room+"/s1?version=1", backupKey(1, 1, true, "x"))
	s.want(403, "M_WRONG_ROOM_KEYS_VERSION", a1, "PUT", keys+"?version=1", m{"rooms": m{}})
	s.want(404, "M_NOT_FOUND", a1, "PUT", keys+"?version=9", m{"rooms": m{}})
	s.want(200, `{"etag":"0","count":0}`, a1, "PUT", keys+"?version=2", m{"rooms": m{}})
}

func TestBackupAtTheSameTime(t *testing.T) {
	s := start(t)
	s.want(200, "", a1, "POST", backups, m{"algorithm": "a", "auth_data": m{}})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 5 {
				path := fmt.Sprintf("/room_keys/keys/%%21r:x/s%d?version=1", (i+j)%10)
				if status, b := s.call(a1, "PUT", path, backupKey(i, j, true, "x")); status != 200 {
					t.Errorf("%d %s", status, b)
				}
			}
		})
	}
	wg.Wait()
	s.want(200, `"count":10`, a1, "GET", backups, "")
}
