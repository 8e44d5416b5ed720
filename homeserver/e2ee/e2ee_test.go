package e2ee_test

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/devices"
	"github.com/carillon-chat/carillon/homeserver/e2ee"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	alice = matrix.UserID("@alice:example.org")
	bob   = matrix.UserID("@bob:example.org")
	carol = matrix.UserID("@carol:far.example.org")
)

// together says that everybody shares a room, but for those who are listed.
type together struct{ apart map[matrix.UserID]bool }

func (r together) SharesRoom(a, b matrix.UserID) bool { return !r.apart[a] && !r.apart[b] }
func (r together) RoomsOf(u matrix.UserID) []matrix.RoomID {
	if r.apart[u] {
		return nil
	}
	return []matrix.RoomID{"!r:example.org"}
}

// far is the server of carol.
type far struct {
	mu     sync.Mutex
	down   bool
	answer *e2ee.Answer
	claims int
}

var errDown = errors.New("connection refused")

func (f *far) QueryKeys(context.Context, matrix.ServerName, e2ee.Query) (*e2ee.Answer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, errDown
	}
	return f.answer, nil
}

func (f *far) ClaimKeys(_ context.Context, _ matrix.ServerName, claim e2ee.Claim) (e2ee.Claimed, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, errDown
	}
	f.claims++
	return e2ee.Claimed{
		carol:      {"FAR": {"signed_curve25519:1": json.RawMessage(`{"key":"far"}`)}, "UNASKED": {"x:1": json.RawMessage(`"x"`)}},
		"@x:other": {"Y": {"x:1": json.RawMessage(`"x"`)}},
	}, nil
}

type server struct {
	t       *testing.T
	url     string
	db      *sqldb.DB
	log     *stream.Log
	keys    *e2ee.Keys
	devices *devices.Devices
	service *e2ee.Service
	far     *far
	stop    func()
	refuse  bool // interactive authentication fails

	mu   sync.Mutex
	seen []stream.Change
}

func start(t *testing.T) *server {
	t.Helper()
	s := &server{t: t, db: sqldbtest.Open(t), far: &far{answer: &e2ee.Answer{}}}
	s.open()
	api := httpapi.New(httpapi.Options{Authenticator: httpapitest.ByToken{}})
	api.Add(s.service.Routes()...)
	web := httptest.NewServer(api)
	t.Cleanup(web.Close)
	s.url = web.URL
	for _, d := range []struct {
		user matrix.UserID
		id   matrix.DeviceID
	}{{alice, "A1"}, {alice, "A2"}, {bob, "B1"}, {bob, "B2"}} {
		if err := s.devices.Create(t.Context(), d.user, d.id, "Name of "+string(d.id), "", time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// open builds the package on the database, as a start of the server does.
func (s *server) open() {
	s.t.Helper()
	if s.stop != nil {
		s.stop()
	} else {
		s.t.Cleanup(func() { s.stop() })
	}
	var err error
	ctx := s.t.Context()
	if s.log, err = stream.Open(ctx, s.db); err != nil {
		s.t.Fatal(err)
	}
	if s.keys, err = e2ee.New(ctx, s.db, s.log, "example.org", nil); err != nil {
		s.t.Fatal(err)
	}
	if s.devices, err = devices.New(ctx, s.db, s.log, s.keys); err != nil {
		s.t.Fatal(err)
	}
	s.log.Subscribe(func(cs []stream.Change) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.seen = append(s.seen, cs...)
	})
	s.service = e2ee.NewService(s.keys, e2ee.Deps{
		Devices: s.devices, Remote: s.far, Rooms: together{map[matrix.UserID]bool{"@stranger:example.org": true, "@stranger:far.example.org": true}},
		Authorise: func(*httpapi.Call) error {
			if s.refuse {
				return &matrix.Error{Status: 401, Extra: map[string]any{"session": "x"}}
			}
			return nil
		},
		ShareNames: true,
	})
	running, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	log := s.log
	go func() { defer close(done); _ = log.Run(running) }()
	s.stop = func() { cancel(); <-done }
}

// changes returns the changes of a kind that were told since the last call.
func (s *server) changes(kind stream.Kind) (out []stream.Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.seen {
		if c.Kind == kind {
			out = append(out, c)
		}
	}
	s.seen = nil
	return out
}

// call sends a request as "user|device".
func (s *server) call(token, method, path string, body any) (int, string) {
	s.t.Helper()
	text, ok := body.(string)
	if !ok {
		text = string(mustJSON(body))
	}
	a := httpapitest.Call(s.t, method, s.url+"/_matrix/client/v3"+path, token, strings.NewReader(text))
	return a.Status, string(a.Body)
}

// want calls and checks the status and that the body holds a text.
func (s *server) want(status int, text, token, method, path string, body any) string {
	s.t.Helper()
	got, b := s.call(token, method, path, body)
	if got != status || !strings.Contains(b, text) {
		s.t.Errorf("%s %s %.200v: got %d %.400s, want %d with %s", method, path, body, got, b, status, text)
	}
	return b
}

const (
	a1 = string(alice) + "|A1"
	a2 = string(alice) + "|A2"
	b1 = string(bob) + "|B1"
)

type m = map[string]any

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func decode(t *testing.T, b string) m {
	t.Helper()
	var v m
	if err := json.Unmarshal([]byte(b), &v); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	return v
}

// at walks into JSON.
func at(v any, path ...string) any {
	for _, p := range path {
		o, ok := v.(m)
		if !ok {
			return nil
		}
		v = o[p]
	}
	return v
}

// signer is a key pair; its objects in the tests hold only what encoding/json writes in canonical form.
type signer struct {
	public  string
	private ed25519.PrivateKey
}

func newSigner() signer {
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err)
	}
	return signer{base64.RawStdEncoding.EncodeToString(pub), priv}
}

// sign adds a signature to a copy of an object.
func (k signer) sign(obj m, user matrix.UserID, keyID string) m {
	bare, out := m{}, m{}
	for n, v := range obj {
		out[n] = v
		if n != "signatures" && n != "unsigned" {
			bare[n] = v
		}
	}
	sig := base64.RawStdEncoding.EncodeToString(ed25519.Sign(k.private, mustJSON(bare)))
	users := m{}
	if old, ok := obj["signatures"].(m); ok {
		for u, v := range old {
			users[u] = v
		}
	}
	own := m{}
	if old, ok := users[string(user)].(m); ok {
		for id, v := range old {
			own[id] = v
		}
	}
	own[keyID] = sig
	users[string(user)] = own
	out["signatures"] = users
	return out
}

// only is the object with nothing but one new signature.
func (k signer) only(obj m, user matrix.UserID, keyID string) m {
	bare := m{}
	for n, v := range obj {
		if n != "signatures" {
			bare[n] = v
		}
	}
	return k.sign(bare, user, keyID)
}

func deviceKeys(user matrix.UserID, id string, k signer) m {
	return k.sign(m{
		"user_id": string(user), "device_id": id, "algorithms": []string{"m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"},
		"keys": m{"ed25519:" + id: k.public, "curve25519:" + id: "curve-" + id},
	}, user, "ed25519:"+id)
}

func crossKey(user matrix.UserID, usage string, k signer) m {
	return m{"user_id": string(user), "usage": []string{usage}, "keys": m{"ed25519:" + k.public: k.public}}
}

func (s *server) uploadDevice(token string, user matrix.UserID, id string) (signer, m) {
	s.t.Helper()
	k := newSigner()
	keys := deviceKeys(user, id, k)
	s.want(200, "one_time_key_counts", token, "POST", "/keys/upload", m{"device_keys": keys})
	return k, keys
}

func (s *server) query(token string, list ...matrix.UserID) m {
	s.t.Helper()
	q := m{}
	for _, u := range list {
		q[string(u)] = []string{}
	}
	return decode(s.t, s.want(200, "device_keys", token, "POST", "/keys/query", m{"device_keys": q}))
}

func (s *server) listChanges(viewer matrix.UserID, from stream.Pos) (list []matrix.UserID) {
	s.t.Helper()
	err := s.db.Read(s.t.Context(), func(tx *sqldb.Tx) (err error) {
		list, err = s.keys.DeviceListChanges(s.t.Context(), tx, viewer, from, s.log.Head())
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return list
}
