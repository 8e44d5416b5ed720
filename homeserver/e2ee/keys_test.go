package e2ee_test

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

func TestUploadAndQuery(t *testing.T) {
	s := start(t)
	k := newSigner()
	keys := deviceKeys(alice, "A1", k)
	keys["unsigned"] = m{"x": 1}
	body := m{"device_keys": keys, "one_time_keys": m{"signed_curve25519:1": m{"key": "one"}, "curve25519:1": "plain"}}
	s.want(200, `{"one_time_key_counts":{"curve25519":1,"signed_curve25519":1}}`, a1, "POST", "/keys/upload", body)
	if got := s.changes(stream.KindDeviceList); len(got) != 1 || got[0].User != alice {
		t.Errorf("told of %+v", got)
	}
	s.want(200, `"signed_curve25519":1`, a1, "POST", "/keys/upload", body) // the same again
	if got := s.changes(stream.KindDeviceList); len(got) != 0 {
		t.Errorf("the same keys again told of %+v", got)
	}
	got := s.query(b1, alice, "@nobody:example.org")
	if at(got, "device_keys", string(alice), "A1", "keys", "ed25519:A1") != k.public ||
		at(got, "device_keys", string(alice), "A1", "unsigned", "device_display_name") != "Name of A1" ||
		at(got, "device_keys", string(alice), "A1", "unsigned", "x") != nil ||
		at(got, "device_keys", string(alice), "A1", "signatures", string(alice), "ed25519:A1") == nil ||
		at(got, "device_keys", string(alice), "A2") != nil || at(got, "failures") == nil {
		t.Errorf("query: %v", got)
	}
	one := decode(t, s.want(200, "", b1, "POST", "/keys/query", m{"device_keys": m{string(alice): []string{"A2"}}}))
	if at(one, "device_keys", string(alice), "A1") != nil {
		t.Errorf("a device that was not asked for: %v", one)
	}
	s.want(200, `"device_keys":{}`, b1, "POST", "/keys/query", `{"device_keys":{}}`)
}

func TestUploadErrors(t *testing.T) {
	s := start(t)
	k := newSigner()
	without := func(name string) m {
		d := deviceKeys(alice, "A1", k)
		delete(d, name)
		return m{"device_keys": d}
	}
	for _, tt := range []struct {
		code string
		body any
	}{
		{"M_NOT_JSON", `{`},
		{"M_BAD_JSON", `[]`},
		{"M_BAD_JSON", without("keys")},
		{"M_BAD_JSON", without("algorithms")},
		{"M_BAD_JSON", without("user_id")},
		{"M_BAD_JSON", without("device_id")},
		{"M_BAD_JSON", without("signatures")},
		{"M_BAD_JSON", m{"device_keys": deviceKeys(bob, "A1", k)}},
		{"M_BAD_JSON", m{"device_keys": deviceKeys(alice, "A2", k)}},
		{"M_BAD_JSON", m{"device_keys": "text"}},
		{"M_BAD_JSON", m{"one_time_keys": []string{"x"}}},
		{"M_BAD_JSON", m{"one_time_keys": m{"signed_curve25519:1": 7}}},
		{"M_BAD_JSON", m{"one_time_keys": m{"signed_curve25519:1": m{"no": "key"}}}},
		{"M_INVALID_PARAM", m{"one_time_keys": m{"noid": m{"key": "x"}}}},
		{"M_INVALID_PARAM", m{"one_time_keys": m{"alg:\x00": m{"key": "x"}}}},
		{"M_INVALID_PARAM", m{"fallback_keys": m{"a:1": m{"key": "x"}, "a:2": m{"key": "y"}}}},
	} {
		s.want(400, tt.code, a1, "POST", "/keys/upload", tt.body)
	}
	s.want(400, "M_INVALID_PARAM", string(alice)+"|", "POST", "/keys/upload", m{"one_time_keys": m{"a:1": m{"key": "x"}}})
	s.want(200, "", a1, "POST", "/keys/upload", m{"one_time_keys": m{"a:1": m{"key": "x", "n": 1}}})
	s.want(200, "", a1, "POST", "/keys/upload", `{"one_time_keys":{"a:1":{"n":1, "key":"x"}}}`)
	s.want(400, "M_INVALID_PARAM", a1, "POST", "/keys/upload", m{"one_time_keys": m{"a:1": m{"key": "y"}, "a:9": m{"key": "z"}}})
	s.want(200, `"a":1`, a1, "POST", "/keys/upload", `{}`) // nothing of the refused upload stayed

	for _, tt := range []struct{ code, path, body string }{
		{"M_MISSING_PARAM", "/keys/query", `{}`},
		{"M_BAD_JSON", "/keys/query", `{"device_keys":{"@a:b":"not a list"}}`},
		{"M_BAD_JSON", "/keys/query", `{"device_keys":[]}`},
		{"M_INVALID_PARAM", "/keys/query", `{"device_keys":{"nobody":[]}}`},
		{"M_MISSING_PARAM", "/keys/claim", `{}`},
		{"M_BAD_JSON", "/keys/claim", `{"one_time_keys":{"@a:b":["x"]}}`},
		{"M_INVALID_PARAM", "/keys/claim", `{"one_time_keys":{"x":{"A":"b"}}}`},
	} {
		s.want(400, tt.code, a1, "POST", tt.path, tt.body)
	}
	s.want(200, "", a1, "POST", "/keys/claim", `{"one_time_keys":{"@alice:example.org":{"\u0000":"a","A1":"\u0000"}}}`)
	s.want(200, "", a1, "POST", "/keys/query", `{"device_keys":{"@alice:example.org":["\u0000"]}}`)
}

func (s *server) claim(token string, user matrix.UserID, id, algorithm string) (key string) {
	s.t.Helper()
	got := decode(s.t, s.want(200, "one_time_keys", token, "POST", "/keys/claim", m{"one_time_keys": m{string(user): m{id: algorithm}}}))
	keys, _ := at(got, "one_time_keys", string(user), id).(m)
	for name := range keys {
		key = name
	}
	return key
}

func TestClaimOrderAndFallback(t *testing.T) {
	s := start(t)
	for _, name := range []string{"9", "1", "5"} {
		s.want(200, "", a1, "POST", "/keys/upload", m{"one_time_keys": m{"signed_curve25519:" + name: m{"key": name}}})
	}
	s.want(200, "", a1, "POST", "/keys/upload", m{"fallback_keys": m{"signed_curve25519:F": m{"key": "f", "fallback": true}}})
	counts, unused := s.keys.KeyCounts(alice, "A1")
	if counts["signed_curve25519"] != 3 || !slices.Equal(unused, []string{"signed_curve25519"}) {
		t.Errorf("counts %v, unused %v", counts, unused)
	}
	s.changes(stream.KindKeyCounts)
	for i, want := range []string{"9", "1", "5", "F", "F"} {
		if got := s.claim(b1, alice, "A1", "signed_curve25519"); got != "signed_curve25519:"+want {
			t.Errorf("claim %d gave %s, want %s", i, got, want)
		}
		counts, unused = s.keys.KeyCounts(alice, "A1")
		if counts["signed_curve25519"] != max(2-i, 0) || (len(unused) == 1) != (i < 3) {
			t.Errorf("after claim %d: %v %v", i, counts, unused)
		}
	}
	if told := s.changes(stream.KindKeyCounts); len(told) != 4 { // the second use of the fallback key is no news
		t.Errorf("told %d times", len(told))
	}
	// The same fallback key again stays used, another one is new.
	s.want(200, "", a1, "POST", "/keys/upload", m{"fallback_keys": m{"signed_curve25519:F": m{"key": "f", "fallback": true}}})
	if _, unused = s.keys.KeyCounts(alice, "A1"); len(unused) != 0 {
		t.Error("the used key counts as new")
	}
	s.want(200, "", a1, "POST", "/keys/upload", m{"fallback_keys": m{"signed_curve25519:G": m{"key": "g", "fallback": true}}})
	if _, unused = s.keys.KeyCounts(alice, "A1"); len(unused) != 1 {
		t.Error("the new key does not count")
	}
	if got := s.claim(b1, alice, "A1", "other"); got != "" {
		t.Errorf("another algorithm gave %s", got)
	}
	if got := s.claim(b1, alice, "NONE", "signed_curve25519"); got != "" {
		t.Errorf("no device gave %s", got)
	}
	s.open() // a restart
	counts, unused = s.keys.KeyCounts(alice, "A1")
	if counts["signed_curve25519"] != 0 || len(unused) != 1 {
		t.Errorf("after a restart: %v %v", counts, unused)
	}
}

// However many claim at the same time, nobody gets the key of another.
func TestClaimsAreExclusive(t *testing.T) {
	s := start(t)
	const keys, claimers = 120, 16
	upload := m{}
	for i := range keys {
		upload[fmt.Sprintf("signed_curve25519:%d", i)] = m{"key": fmt.Sprint(i)}
	}
	s.want(200, "", a1, "POST", "/keys/upload", m{"one_time_keys": upload})
	var (
		mu   sync.Mutex
		seen = map[string]int{}
		wg   sync.WaitGroup
	)
	for range claimers {
		wg.Go(func() {
			for range keys/claimers + 2 {
				key := s.claim(b1, alice, "A1", "signed_curve25519")
				mu.Lock()
				seen[key]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	none := seen[""]
	delete(seen, "")
	if len(seen) != keys || none != claimers*(keys/claimers+2)-keys {
		t.Errorf("%d keys were handed out, and nothing %d times", len(seen), none)
	}
	for key, n := range seen {
		if n != 1 {
			t.Errorf("%s was handed out %d times", key, n)
		}
	}
	if counts, _ := s.keys.KeyCounts(alice, "A1"); counts["signed_curve25519"] != 0 {
		t.Errorf("counts: %v", counts)
	}
}

func TestDeleteDevice(t *testing.T) {
	s := start(t)
	s.uploadDevice(a1, alice, "A1")
	s.want(200, "", a1, "POST", "/keys/upload", m{"one_time_keys": m{"a:1": m{"key": "x"}}, "fallback_keys": m{"a:2": m{"key": "x"}}})
	s.want(200, "", b1, "PUT", "/sendToDevice/m.x/1", m{"messages": m{string(alice): m{"A1": m{"a": 1}}}})
	mark := s.log.Head()
	if err := s.devices.Delete(t.Context(), alice, []matrix.DeviceID{"A1"}); err != nil {
		t.Fatal(err)
	}
	if got := s.query(b1, alice); at(got, "device_keys", string(alice), "A1") != nil {
		t.Errorf("keys of a deleted device: %v", got)
	}
	if got := s.claim(b1, alice, "A1", "a"); got != "" {
		t.Errorf("a key of a deleted device: %s", got)
	}
	if counts, unused := s.keys.KeyCounts(alice, "A1"); counts["a"] != 0 || len(unused) != 0 {
		t.Errorf("counts of a deleted device: %v %v", counts, unused)
	}
	if msgs, _ := s.toDevice(alice, "A1", 0, 10); len(msgs) != 0 {
		t.Errorf("messages of a deleted device: %v", msgs)
	}
	if got := s.listChanges(bob, mark); !slices.Equal(got, []matrix.UserID{alice}) {
		t.Errorf("list changes: %v", got)
	}
}

func TestChanges(t *testing.T) {
	s := start(t)
	token := func(p stream.Pos) string { return fmt.Sprintf("s%d_0", p) }
	path := func(from, to string) string {
		return "/keys/changes?from=" + url.QueryEscape(from) + "&to=" + url.QueryEscape(to)
	}
	before := s.log.Head()
	s.uploadDevice(a1, alice, "A1")
	if err := s.devices.Create(t.Context(), "@stranger:example.org", "S", "", "", time.Now()); err != nil {
		t.Fatal(err)
	}
	s.uploadDevice("@stranger:example.org|S", "@stranger:example.org", "S")
	after := s.log.Head()
	s.want(200, `{"changed":["@alice:example.org"],"left":[]}`, b1, "GET", path(token(before), token(after)), "")
	s.want(200, `{"changed":[],"left":[]}`, b1, "GET", path(token(after), token(after)), "")
	s.want(400, "M_MISSING_PARAM", b1, "GET", "/keys/changes?from=s1", "")
	s.want(400, "M_INVALID_PARAM", b1, "GET", path("nonsense", token(after)), "")
	s.want(400, "M_INVALID_PARAM", b1, "GET", path(token(before), "s-1"), "")
}

func TestPrune(t *testing.T) {
	s := start(t)
	s.uploadDevice(a1, alice, "A1")
	if err := s.keys.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Far on: of the changes of one device the newest stays.
	if _, err := s.log.Append(t.Context(), 300_000, func(*sqldb.Tx, stream.Pos) ([]stream.Change, error) { return nil, nil }); err != nil {
		t.Fatal(err)
	}
	s.uploadDevice(a2, alice, "A2")
	if err := s.keys.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.listChanges(bob, 0); !slices.Equal(got, []matrix.UserID{alice}) {
		t.Errorf("list changes: %v", got)
	}
}

// cast is a user with cross-signing keys.
type cast struct {
	master, self, user signer
	keys               m
}

func newCast(u matrix.UserID) cast {
	c := cast{master: newSigner(), self: newSigner(), user: newSigner()}
	by := "ed25519:" + c.master.public
	c.keys = m{
		"master_key":       crossKey(u, "master", c.master),
		"self_signing_key": c.master.sign(crossKey(u, "self_signing", c.self), u, by),
		"user_signing_key": c.master.sign(crossKey(u, "user_signing", c.user), u, by),
	}
	return c
}

const signing = "/keys/device_signing/upload"

func TestCrossSigningUpload(t *testing.T) {
	s := start(t)
	s.refuse = true // the first upload needs no proof
	c := newCast(alice)
	s.want(400, "M_MISSING_PARAM", a1, "POST", signing, m{"self_signing_key": c.keys["self_signing_key"]})
	s.want(200, "{}", a1, "POST", signing, c.keys)
	s.want(200, "{}", a1, "POST", signing, c.keys) // idempotent without proof
	s.want(200, "{}", a1, "POST", signing, m{"master_key": c.keys["master_key"]})
	if got := s.changes(stream.KindDeviceList); len(got) != 1 || got[0].User != alice {
		t.Errorf("told of %+v", got)
	}
	other := newCast(alice)
	s.want(401, "session", a1, "POST", signing, other.keys)
	s.want(401, "session", a1, "POST", signing, m{"master_key": c.keys["master_key"], "self_signing_key": c.master.sign(crossKey(alice, "self_signing", other.self), alice, "ed25519:"+c.master.public)})
	s.refuse = false

	got := s.query(a1, alice)
	if at(got, "master_keys", string(alice), "keys", "ed25519:"+c.master.public) == nil ||
		at(got, "self_signing_keys", string(alice), "keys", "ed25519:"+c.self.public) == nil ||
		at(got, "user_signing_keys", string(alice), "keys", "ed25519:"+c.user.public) == nil {
		t.Errorf("own keys: %v", got)
	}
	if got = s.query(b1, alice); at(got, "master_keys", string(alice)) == nil || at(got, "user_signing_keys", string(alice)) != nil {
		t.Errorf("keys seen by another: %v", got)
	}
	for _, tt := range []struct {
		status int
		code   string
		body   m
	}{
		{400, "M_INVALID_SIGNATURE", m{"self_signing_key": crossKey(alice, "self_signing", newSigner())}},
		{400, "M_INVALID_SIGNATURE", m{"self_signing_key": other.keys["self_signing_key"]}},
		{400, "M_INVALID_PARAM", m{"master_key": crossKey(bob, "master", newSigner())}},
		{400, "M_INVALID_PARAM", m{"master_key": crossKey(alice, "self_signing", newSigner())}},
		{400, "M_INVALID_PARAM", m{"master_key": m{"user_id": string(alice), "usage": []string{"master"}, "keys": m{}}}},
		{400, "M_INVALID_PARAM", m{"master_key": m{"user_id": string(alice), "usage": []string{"master"}, "keys": m{"ed25519:AAAA": "AAAA"}}}},
		{400, "M_BAD_JSON", m{"master_key": "text"}},
	} {
		s.want(tt.status, tt.code, a1, "POST", signing, tt.body)
	}
	clash := newSigner()
	if err := s.devices.Create(t.Context(), alice, matrix.DeviceID(clash.public), "", "", time.Now()); err != nil {
		t.Fatal(err)
	}
	s.want(403, "M_FORBIDDEN", a1, "POST", signing, m{"master_key": crossKey(alice, "master", clash)})

	// A new master key alone makes the other keys void.
	s.want(200, "{}", a1, "POST", signing, m{"master_key": other.keys["master_key"]})
	if got = s.query(a1, alice); at(got, "self_signing_keys", string(alice)) != nil || at(got, "master_keys", string(alice), "keys", "ed25519:"+other.master.public) == nil {
		t.Errorf("after a reset: %v", got)
	}
}

func TestSignatures(t *testing.T) {
	s := start(t)
	alices, bobs := newCast(alice), newCast(bob)
	s.want(200, "", a1, "POST", signing, alices.keys)
	s.want(200, "", b1, "POST", signing, bobs.keys)
	dev, keys := s.uploadDevice(a1, alice, "A1")
	self, user := "ed25519:"+alices.self.public, "ed25519:"+alices.user.public
	master, bobsMaster := alices.keys["master_key"].(m), bobs.keys["master_key"].(m)
	mark := s.log.Head()
	s.changes(stream.KindDeviceList)

	const path = "/keys/signatures/upload"
	s.want(200, `{"failures":{}}`, a1, "POST", path, m{
		string(alice): m{"A1": alices.self.only(keys, alice, self), alices.master.public: dev.only(master, alice, "ed25519:A1")},
		string(bob):   m{bobs.master.public: alices.user.only(bobsMaster, alice, user)},
	})
	if told := s.changes(stream.KindDeviceList); len(told) != 3 {
		t.Errorf("told of %+v", told)
	}
	got := s.query(a1, alice, bob)
	if at(got, "device_keys", string(alice), "A1", "signatures", string(alice), self) == nil ||
		at(got, "device_keys", string(alice), "A1", "signatures", string(alice), "ed25519:A1") == nil ||
		at(got, "master_keys", string(alice), "signatures", string(alice), "ed25519:A1") == nil ||
		at(got, "master_keys", string(bob), "signatures", string(alice), user) == nil {
		t.Errorf("alice sees %v", got)
	}
	got = s.query(b1, alice, bob)
	if at(got, "device_keys", string(alice), "A1", "signatures", string(alice), self) == nil ||
		at(got, "master_keys", string(alice), "signatures", string(alice), "ed25519:A1") == nil ||
		at(got, "master_keys", string(bob), "signatures", string(alice)) != nil {
		t.Errorf("bob sees %v", got)
	}
	if list := s.listChanges(alice, mark); len(list) != 2 {
		t.Errorf("alice is told of %v", list)
	}
	if list := s.listChanges(bob, mark); !slices.Equal(list, []matrix.UserID{alice}) {
		t.Errorf("bob is told of %v", list)
	}

	changed := maps.Clone(keys)
	changed["algorithms"] = []string{}
	for _, tt := range []struct {
		code   string
		target matrix.UserID
		key    string
		obj    any
	}{
		{"M_INVALID_SIGNATURE", alice, "A1", newSigner().only(keys, alice, self)},
		{"M_INVALID_SIGNATURE", alice, "A1", dev.only(keys, alice, "ed25519:A1")}, // not by the self-signing key
		{"M_INVALID_SIGNATURE", alice, "A1", deviceWithout(keys)},
		{"M_INVALID_PARAM", alice, "A1", alices.self.only(changed, alice, self)},
		{"M_NOT_FOUND", alice, "NONE", alices.self.only(keys, alice, self)},
		{"M_NOT_FOUND", bob, "B1", alices.user.only(keys, alice, user)},
		{"M_INVALID_SIGNATURE", bob, bobs.master.public, alices.self.only(bobsMaster, alice, user)},
		{"M_INVALID_SIGNATURE", alice, alices.master.public, newSigner().only(master, alice, "ed25519:A1")},
		{"M_BAD_JSON", alice, "A1", nil},
	} {
		b := decode(t, s.want(200, tt.code, a1, "POST", path, m{string(tt.target): m{tt.key: tt.obj}}))
		if at(b, "failures", string(tt.target), tt.key, "errcode") != tt.code {
			t.Errorf("failures %v, want %s", b, tt.code)
		}
	}
	s.want(400, "M_BAD_JSON", a1, "POST", path, `{"@alice:example.org":"x"}`)
	s.want(400, "M_INVALID_PARAM", a1, "POST", path, `{"x":{}}`)
	// One bad object does not spoil the others.
	b := s.want(200, "M_NOT_FOUND", a1, "POST", path, m{string(alice): m{"NONE": keys, "A1": alices.self.only(keys, alice, self)}})
	if strings.Contains(b, `"A1"`) {
		t.Errorf("a good signature failed: %s", b)
	}
}

func deviceWithout(keys m) m {
	c := maps.Clone(keys)
	delete(c, "signatures")
	return c
}
