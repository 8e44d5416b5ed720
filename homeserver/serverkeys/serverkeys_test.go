package serverkeys_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/serverkeys"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

func load(t *testing.T, dir string, name matrix.ServerName) *serverkeys.Own {
	t.Helper()
	o, err := serverkeys.Load(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestKeyFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := load(t, dir, "a.test")
	fi, err := os.Stat(filepath.Join(dir, serverkeys.FileName))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", fi.Mode(), err)
	}
	if again := load(t, dir, "a.test"); again.KeyID() != first.KeyID() || !again.Private().Equal(first.Private()) {
		t.Error("another key after a restart")
	}
	next, err := serverkeys.Rotate(dir, "a.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if next.KeyID() == first.KeyID() {
		t.Error("rotation kept the key")
	}
	if again := load(t, dir, "a.test"); again.KeyID() != next.KeyID() {
		t.Error("the file has not the new key")
	}
	for _, bad := range []string{"", "ed25519 a xx\n", "nonsense\n", "old ed25519 a b c\n"} {
		d := t.TempDir()
		if err := os.WriteFile(filepath.Join(d, serverkeys.FileName), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := serverkeys.Load(d, "a.test"); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// far are other servers: their published answers by name.
type far struct {
	mu      sync.Mutex
	answers map[matrix.ServerName][]byte
	notary  []json.RawMessage
	asked   int
}

func (f *far) ServerKeys(_ context.Context, s matrix.ServerName) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	if a, ok := f.answers[s]; ok {
		return a, nil
	}
	return nil, errors.New("down")
}

func (f *far) QueryKeys(context.Context, matrix.ServerName, matrix.ServerName, int64) ([]json.RawMessage, error) {
	return f.notary, nil
}

func (f *far) count() int { f.mu.Lock(); defer f.mu.Unlock(); return f.asked }

func ring(t *testing.T, db *sqldb.DB, own *serverkeys.Own, f *far, opts serverkeys.Options) *serverkeys.Ring {
	t.Helper()
	r, err := serverkeys.NewRing(t.Context(), db, own, f, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// serve runs a ring's routes and returns a function that gets or posts.
func serve(t *testing.T, r *serverkeys.Ring) func(method, path, body string) (int, []byte) {
	t.Helper()
	api := httpapi.New(httpapi.Options{})
	api.Add(r.Routes()...)
	srv := httptest.NewServer(api)
	t.Cleanup(srv.Close)
	return func(method, path, body string) (int, []byte) {
		t.Helper()
		a := httpapitest.Call(t, method, srv.URL+path, "", strings.NewReader(body))
		return a.Status, a.Body
	}
}

func TestPublishVerifyAndNotary(t *testing.T) {
	t.Parallel()
	aDir := t.TempDir()
	old := load(t, aDir, "a.test")
	signedOld, err := old.SignJSON([]byte(`{"x":1}`))
	if err != nil {
		t.Fatal(err)
	}
	a, err := serverkeys.Rotate(aDir, "a.test", time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	f := &far{answers: map[matrix.ServerName][]byte{}}
	dbB := sqldbtest.Open(t)
	b := load(t, t.TempDir(), "b.test")
	ringB := ring(t, dbB, b, f, serverkeys.Options{})

	get := serve(t, ring(t, sqldbtest.Open(t), a, f, serverkeys.Options{}))
	status, published := get("GET", "/_matrix/key/v2/server", "")
	if status != 200 {
		t.Fatalf("status %d: %s", status, published)
	}
	f.answers["a.test"] = published

	signed, _ := a.SignJSON([]byte(`{"hello":"world"}`))
	if err := ringB.VerifyJSON(t.Context(), "a.test", signed); err != nil {
		t.Fatal(err)
	}
	asked := f.count()
	for range 3 {
		if err := ringB.VerifyJSON(t.Context(), "a.test", signed); err != nil {
			t.Fatal(err)
		}
	}
	if f.count() != asked {
		t.Error("a known key was fetched again")
	}
	// An old key holds for what was signed before it expired, and for nothing later.
	check := func(at time.Time) error {
		res, err := ringB.VerifyJSONs(t.Context(), []gomatrixserverlib.VerifyJSONRequest{{
			ServerName: "a.test", AtTS: spec.AsTimestamp(at), Message: signedOld, ValidityCheckingFunc: gomatrixserverlib.StrictValiditySignatureCheck,
		}})
		if err != nil {
			t.Fatal(err)
		}
		return res[0].Error
	}
	if err := check(time.Now().Add(-2 * time.Hour)); err != nil {
		t.Errorf("old key: %v", err)
	}
	if check(time.Now()) == nil {
		t.Error("an expired key was good for a new signature")
	}
	if ringB.VerifyJSON(t.Context(), "a.test", []byte(strings.Replace(string(signed), "world", "w0rld", 1))) == nil {
		t.Error("a changed message was accepted")
	}
	// The keys survive in the table, without the network.
	again := ring(t, dbB, b, &far{}, serverkeys.Options{})
	if err := again.VerifyJSON(t.Context(), "a.test", signed); err != nil {
		t.Errorf("after a restart: %v", err)
	}

	asNotary := serve(t, again)
	for _, q := range []struct{ method, path, body string }{
		{"GET", "/_matrix/key/v2/query/a.test", ""},
		{"POST", "/_matrix/key/v2/query", `{"server_keys":{"a.test":{},"down.test":{}}}`},
	} {
		status, body := asNotary(q.method, q.path, q.body)
		var out struct {
			ServerKeys []json.RawMessage `json:"server_keys"`
		}
		if err := json.Unmarshal(body, &out); status != 200 || err != nil || len(out.ServerKeys) != 1 {
			t.Fatalf("%s: %d %s", q.path, status, body)
		}
		for name, o := range map[string]*serverkeys.Own{"a.test": a, "b.test": b} {
			if err := gomatrixserverlib.VerifyJSON(name, o.KeyID(), o.Public(), out.ServerKeys[0]); err != nil {
				t.Errorf("%s: signature of %s: %v", q.path, name, err)
			}
		}
	}
	if status, body := asNotary("GET", "/_matrix/key/v2/query/b.test", ""); status != 200 || !strings.Contains(string(body), "b.test") {
		t.Errorf("own keys through the notary: %d %s", status, body)
	}
	for body, want := range map[string]string{`{`: "M_NOT_JSON", `{}`: "M_MISSING_PARAM", `{"server_keys":[]}`: "M_BAD_JSON"} {
		if status, got := asNotary("POST", "/_matrix/key/v2/query", body); status != 400 || !strings.Contains(string(got), want) {
			t.Errorf("%s: %d %s", body, status, got)
		}
	}
	if status, got := asNotary("GET", "/_matrix/key/v2/query/b%20d", ""); status != 400 {
		t.Errorf("bad server name: %d %s", status, got)
	}
	if status, got := asNotary("GET", "/_matrix/key/v2/query/b.test?minimum_valid_until_ts=x", ""); status != 400 {
		t.Errorf("bad time: %d %s", status, got)
	}
}

func TestFailuresAreRemembered(t *testing.T) {
	t.Parallel()
	now := time.Now()
	f := &far{}
	r := ring(t, sqldbtest.Open(t), load(t, t.TempDir(), "b.test"), f, serverkeys.Options{Now: func() time.Time { return now }})
	a := load(t, t.TempDir(), "a.test")
	signed, _ := a.SignJSON([]byte(`{}`))
	for range 20 {
		if r.VerifyJSON(t.Context(), "a.test", signed) == nil {
			t.Fatal("verified without a key")
		}
	}
	if n := f.count(); n != 1 {
		t.Errorf("a silent server was asked %d times", n)
	}
	now = now.Add(3 * time.Second)
	_ = r.VerifyJSON(t.Context(), "a.test", signed)
	if n := f.count(); n != 2 {
		t.Errorf("asked %d times after the wait", n)
	}
}

func TestForeignAnswers(t *testing.T) {
	t.Parallel()
	evil := load(t, t.TempDir(), "evil.test")
	f := &far{answers: map[matrix.ServerName][]byte{}}
	get := serve(t, ring(t, sqldbtest.Open(t), evil, f, serverkeys.Options{}))
	_, published := get("GET", "/_matrix/key/v2/server", "")
	forged := load(t, t.TempDir(), "a.test") // a key for a.test that a.test has not published
	signed, _ := forged.SignJSON([]byte(`{}`))
	r := ring(t, sqldbtest.Open(t), load(t, t.TempDir(), "b.test"), f, serverkeys.Options{})
	f.answers["a.test"] = published
	if r.VerifyJSON(t.Context(), "a.test", signed) == nil {
		t.Error("keys of another server were believed")
	}

	// A notary is believed only with its own known signature.
	n := load(t, t.TempDir(), "notary.test")
	a := load(t, t.TempDir(), "a.test")
	_, answer := serve(t, ring(t, sqldbtest.Open(t), a, f, serverkeys.Options{}))("GET", "/_matrix/key/v2/server", "")
	ofA, _ := a.SignJSON([]byte(`{}`))
	trust := serverkeys.Options{Notaries: []serverkeys.Notary{{
		Server: "notary.test", Keys: map[gomatrixserverlib.KeyID][]byte{n.KeyID(): n.Public()},
	}}}
	unsigned := &far{notary: []json.RawMessage{answer}}
	if ring(t, sqldbtest.Open(t), n, unsigned, trust).VerifyJSON(t.Context(), "a.test", ofA) == nil {
		t.Error("a notary without a signature was believed")
	}
	withSig, _ := n.SignJSON(answer)
	good := &far{notary: []json.RawMessage{withSig}}
	if err := ring(t, sqldbtest.Open(t), evil, good, trust).VerifyJSON(t.Context(), "a.test", ofA); err != nil {
		t.Errorf("through a notary: %v", err)
	}
}

// What is signed is the message, whatever its keys are made of.
func TestAwkwardKeys(t *testing.T) {
	t.Parallel()
	a := load(t, t.TempDir(), "a.test")
	f := &far{answers: map[matrix.ServerName][]byte{}}
	_, f.answers["a.test"] = serve(t, ring(t, sqldbtest.Open(t), a, f, serverkeys.Options{}))("GET", "/_matrix/key/v2/server", "")
	b := ring(t, sqldbtest.Open(t), load(t, t.TempDir(), "b.test"), f, serverkeys.Options{})
	for _, in := range []string{
		`{"q\"x":1}`, `{"\\":1,"\u0001":{"\n":2}}`, `{"z":"<&>","unsigned":{"age":1},"a":"\u2028"}`, `{"f":1.5}`, `{}`,
		`{"signatures":{"other":{"ed25519:x":"AA"},"a.test":{"ed25519:old":"AA"}},"b":1}`,
	} {
		signed, err := a.SignJSON([]byte(in))
		if err != nil || !json.Valid(signed) {
			t.Fatalf("%s: %s, %v", in, signed, err)
		}
		var was, is map[string]any
		if json.Unmarshal([]byte(in), &was) != nil || json.Unmarshal(signed, &is) != nil {
			t.Fatal(in)
		}
		if of, ok := was["signatures"].(map[string]any); ok {
			got := is["signatures"].(map[string]any)
			if got["other"].(map[string]any)["ed25519:x"] != "AA" || got["a.test"].(map[string]any)["ed25519:old"] != "AA" || len(of) != len(got) {
				t.Errorf("other signatures were lost: %s", signed)
			}
		}
		delete(was, "signatures")
		delete(is, "signatures")
		if !reflect.DeepEqual(was, is) {
			t.Errorf("%s became %s", in, signed)
		}
		if err := b.VerifyJSON(t.Context(), "a.test", signed); err != nil {
			t.Errorf("%s: %v", signed, err)
		}
		changed := append([]byte(`{"more":1,`), signed[1:]...)
		if b.VerifyJSON(t.Context(), "a.test", changed) == nil {
			t.Errorf("%s was accepted", changed)
		}
	}
	for _, bad := range []string{`[]`, `{`, `{"signatures":[]}`, `{"signatures":{"a.test":{"ed25519:1":"AA"}}}`, `{"signatures":{"a.test":{"rsa:1":"AA"}}}`, `{"signatures":{"a.test":7}}`} {
		if b.VerifyJSON(t.Context(), "a.test", []byte(bad)) == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}

// Of many messages each gets its own verdict, and each server is asked once.
func TestVerifyMany(t *testing.T) {
	t.Parallel()
	f := &far{answers: map[matrix.ServerName][]byte{}}
	var reqs []gomatrixserverlib.VerifyJSONRequest
	add := func(server matrix.ServerName, message []byte) {
		reqs = append(reqs, gomatrixserverlib.VerifyJSONRequest{
			ServerName: spec.ServerName(server), AtTS: spec.AsTimestamp(time.Now()), Message: message,
			ValidityCheckingFunc: gomatrixserverlib.StrictValiditySignatureCheck,
		})
	}
	a, c := load(t, t.TempDir(), "a.test"), load(t, t.TempDir(), "c.test")
	for _, o := range []*serverkeys.Own{a, c} {
		_, f.answers[o.Server()] = serve(t, ring(t, sqldbtest.Open(t), o, f, serverkeys.Options{}))("GET", "/_matrix/key/v2/server", "")
	}
	both, _ := a.SignJSON([]byte(`{"both":1}`))
	both, _ = c.SignJSON(both)
	gone, _ := load(t, t.TempDir(), "gone.test").SignJSON([]byte(`{}`))
	late, _ := a.SignJSON([]byte(`{"late":1}`))
	add("a.test", both)
	add("c.test", both)
	add("c.test", []byte(strings.Replace(string(both), `"both":1`, `"both":2`, 1)))
	add("gone.test", gone)
	add("a.test", gone)
	add("a.test", late)
	reqs[5].AtTS = spec.AsTimestamp(time.Now().Add(30 * 24 * time.Hour))
	r := ring(t, sqldbtest.Open(t), load(t, t.TempDir(), "b.test"), f, serverkeys.Options{})
	for round, asked := range []int{3, 3} {
		res, err := r.VerifyJSONs(t.Context(), reqs)
		if err != nil {
			t.Fatal(err)
		}
		for i, good := range []bool{true, true, false, false, false, false} {
			if (res[i].Error == nil) != good {
				t.Errorf("round %d, message %d: %v", round, i, res[i].Error)
			}
		}
		if n := f.count(); n != asked {
			t.Errorf("round %d: %d questions, want %d", round, n, asked)
		}
	}
}
