package policy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/partstest"
	"github.com/carillon-chat/carillon/homeserver/policy"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

const (
	here  = partstest.Here
	alice = partstest.Alice
	bob   = partstest.Bob
	carol = partstest.Carol
)

type world struct {
	*partstest.World
	p     *policy.Policy
	asked int
}

func newWorld(t *testing.T, o policy.Options) *world {
	t.Helper()
	w := &world{}
	w.World = partstest.New(t, sqldbtest.Open(t), rooms.Options{
		AskPolicy: func(ctx context.Context, server matrix.ServerName, pdu json.RawMessage) (json.RawMessage, error) {
			w.asked++
			if server != here {
				return nil, matrix.NewError(502, "M_UNKNOWN", "away")
			}
			return w.p.Sign(ctx, here, pdu)
		},
	})
	o.Server = here
	var err error
	if w.p, err = policy.New(w.Rooms, o); err != nil {
		t.Fatal(err)
	}
	w.API.Add(w.Rooms.Routes()...)
	w.API.Add(w.p.Routes()...)
	w.Run()
	return w
}

func (w *world) send(u matrix.UserID, room matrix.RoomID, txn, body string, status int, code string) string {
	w.T.Helper()
	out := w.Want(u, "PUT", fmt.Sprintf("/_matrix/client/v3/rooms/%s/send/m.room.message/%s", room, txn), body, status, code)
	return gjson.Get(out, "event_id").Str
}

func (w *world) name(room matrix.RoomID, via, key string) {
	w.T.Helper()
	w.Set(room, alice, rooms.PolicyType, "", fmt.Sprintf(`{"via":%q,"public_keys":{"ed25519":%q}}`, via, key))
}

func (w *world) signature(id string) string {
	w.T.Helper()
	e, err := w.Events.ByID(w.Ctx, matrix.EventID(id))
	if err != nil || e == nil {
		w.T.Fatal(id, err)
	}
	return e.Signature(here, rooms.PolicyKey)
}

func TestOwnRoomsAreJudged(t *testing.T) {
	w := newWorld(t, policy.Options{DataDir: t.TempDir(), Enabled: true, DenyUsers: []string{"@c?rol:*"}, DenyTexts: []string{" Buy NOW "}})
	room := w.Room(alice, bob, carol)
	if id := w.send(bob, room, "0", `{"body":"buy now"}`, 200, ""); w.signature(id) != "" {
		t.Error("signed before the room has a policy server")
	}
	w.name(room, string(here), w.p.PublicKey())
	if w.asked != 0 {
		t.Error("the policy server was asked about the event that names it")
	}
	id := w.send(bob, room, "1", `{"body":"hello"}`, 200, "")
	if w.signature(id) == "" {
		t.Error("there is no signature")
	}
	if again := w.send(bob, room, "1", `{"body":"hello"}`, 200, ""); again != id {
		t.Errorf("the repeated request gave %s, not %s", again, id)
	}
	w.send(bob, room, "2", `{"body":"you must buy now!"}`, 400, "M_FORBIDDEN")
	w.send(carol, room, "3", `{"body":"hello"}`, 400, "M_FORBIDDEN")
	w.Want(alice, "PUT", fmt.Sprintf("/_matrix/client/v3/rooms/%s/state/m.room.topic", room), `{"topic":"Buy now"}`, 400, "M_FORBIDDEN")
	w.Want(alice, "PUT", fmt.Sprintf("/_matrix/client/v3/rooms/%s/state/m.room.policy/x", room), `{"topic":"Buy now"}`, 400, "M_FORBIDDEN")
	w.Want(alice, "PUT", fmt.Sprintf("/_matrix/client/v3/rooms/%s/state/m.room.topic", room), `{"topic":"News"}`, 200, "")
	if e, err := w.Rooms.State(w.Ctx, room, "m.room.topic", ""); err != nil || e.ContentString("topic") != "News" || w.signature(string(e.ID)) == "" {
		t.Errorf("the topic is %v, %v", e, err)
	}
	// Forbidden by the room itself: nobody has to be asked.
	asked := w.asked
	w.Want(bob, "PUT", fmt.Sprintf("/_matrix/client/v3/rooms/%s/state/m.room.topic", room), `{"topic":"x"}`, 403, "M_FORBIDDEN")
	if w.asked != asked {
		t.Error("asked about what is not allowed anyway")
	}
	// Another key than the room's: no event is good any more, but the policy server can be dismissed.
	w.name(room, string(here), "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	w.send(bob, room, "4", `{"body":"hello"}`, 403, "M_FORBIDDEN")
	w.name(room, string(here), "no key")
	w.send(bob, room, "5", `{"body":"hello"}`, 403, "M_FORBIDDEN")
	w.Set(room, alice, rooms.PolicyType, "", `{}`)
	w.send(carol, room, "6", `{"body":"buy now"}`, 200, "")
	// A server without a user in the room does not count, one that does not answer stops all.
	w.name(room, "elsewhere.example", w.p.PublicKey())
	w.send(carol, room, "7", `{"body":"buy now"}`, 200, "")
}

func TestManyAtOnce(t *testing.T) {
	w := newWorld(t, policy.Options{DataDir: t.TempDir(), Enabled: true, PerMinute: 3})
	room := w.Room(alice, bob)
	w.name(room, string(here), w.p.PublicKey())
	for i := range 3 {
		w.send(bob, room, fmt.Sprint(i), `{"body":"x"}`, 200, "")
	}
	w.send(bob, room, "3", `{"body":"x"}`, 429, "M_LIMIT_EXCEEDED")
	w.send(alice, room, "3", `{"body":"x"}`, 200, "")
}

func TestNoPolicyServer(t *testing.T) {
	w := newWorld(t, policy.Options{DataDir: t.TempDir()})
	w.Want("", "GET", "/.well-known/matrix/policy_server", "", 404, "M_NOT_FOUND")
	room := w.Room(alice)
	w.name(room, string(here), "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	w.send(alice, room, "1", `{"body":"x"}`, 404, "M_NOT_FOUND")
}

func TestTheKeyStays(t *testing.T) {
	dir := t.TempDir()
	o := policy.Options{DataDir: dir, Enabled: true, Server: here}
	a, err := policy.New(nil, o)
	if err != nil {
		t.Fatal(err)
	}
	b, err := policy.New(nil, o)
	if err != nil || a.PublicKey() != b.PublicKey() || len(a.PublicKey()) != 43 {
		t.Errorf("%s, then %s, %v", a.PublicKey(), b.PublicKey(), err)
	}
	if st, err := os.Stat(filepath.Join(dir, policy.FileName)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if err := os.WriteFile(filepath.Join(dir, policy.FileName), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := policy.New(nil, o); err == nil {
		t.Error("a broken key is taken")
	}
}
