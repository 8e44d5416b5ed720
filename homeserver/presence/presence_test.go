package presence_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/partstest"
	"github.com/carillon-chat/carillon/homeserver/presence"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

const (
	here  = partstest.Here
	alice = partstest.Alice
	bob   = partstest.Bob
	carol = partstest.Carol
)

func open(t *testing.T, db *sqldb.DB, enabled bool) (*partstest.World, *presence.Presence) {
	t.Helper()
	w := partstest.New(t, db, rooms.Options{})
	p, err := presence.New(w.Ctx, db, w.Log, enabled, here, w.Hub, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.API.Add(p.Routes()...)
	w.Run(p.Run)
	return w, p
}

func status(u matrix.UserID) string {
	return "/_matrix/client/v3/presence/" + string(u) + "/status"
}

func TestPresence(t *testing.T) {
	db := sqldbtest.Open(t)
	w, p := open(t, db, true)
	var told []presence.State
	p.Subscribe(func(s presence.State) { told = append(told, s) })
	w.Room(alice, bob)
	seq := w.Hub.Ephemeral()
	waiter := w.Hub.Wait(alice)
	defer waiter.Close()

	w.Want(bob, "PUT", status(bob), `{"presence":"unavailable","status_msg":"in a meeting"}`, 200, "")
	select {
	case <-waiter.C:
	case <-time.After(5 * time.Second):
		t.Fatal("nobody was woken")
	}
	out := w.Want(alice, "GET", status(bob), "", 200, "")
	if !strings.Contains(out, `"presence":"unavailable"`) || !strings.Contains(out, `"status_msg":"in a meeting"`) ||
		!strings.Contains(out, `"last_active_ago":`) || strings.Contains(out, "currently_active") {
		t.Errorf("bob is %s", out)
	}
	list := p.Since(alice, seq)
	if len(list) != 1 || list[0].User != bob {
		t.Errorf("alice hears of %v", list)
	}
	if list := p.Since(carol, seq); len(list) != 0 { // shares no room
		t.Errorf("carol hears of %v", list)
	}
	if list := p.Since(alice, w.Hub.Ephemeral()); len(list) != 0 {
		t.Errorf("alice hears again of %v", list)
	}
	var ev struct {
		Type, Sender string
		Content      struct{ Presence string }
	}
	if err := json.Unmarshal(list[0].Event(time.Now()), &ev); err != nil || ev.Type != "m.presence" || ev.Sender != string(bob) || ev.Content.Presence != "unavailable" {
		t.Errorf("event %+v %v", ev, err)
	}
	if len(told) != 1 || told[0].User != bob {
		t.Errorf("told %v", told)
	}
	w.Want(carol, "GET", status(bob), "", 403, "M_FORBIDDEN")
	w.Want(alice, "PUT", status(bob), `{"presence":"online"}`, 403, "M_FORBIDDEN")
	w.Want(bob, "PUT", status(bob), `{"presence":"asleep"}`, 400, "M_INVALID_PARAM")
	w.Want(bob, "PUT", status(bob), `{}`, 400, "M_MISSING_PARAM")
	w.Want(bob, "PUT", status("nobody"), `{}`, 400, "M_INVALID_PARAM")
	// The last word survives a restart; nobody is online then.
	w.Stop()
	w, _ = open(t, db, true)
	if out := w.Want(bob, "GET", status(bob), "", 200, ""); !strings.Contains(out, `"presence":"offline"`) || !strings.Contains(out, "in a meeting") {
		t.Errorf("after a restart bob is %s", out)
	}
}

func TestConnect(t *testing.T) {
	w, p := open(t, sqldbtest.Open(t), true)
	room := w.Room(alice, bob)
	done := p.Connect(bob, "")
	if s, _ := p.Of(bob); s.Presence != presence.Online || !s.CurrentlyActive {
		t.Errorf("bob is %+v", s)
	}
	done()
	p.Connect(alice, "offline")()
	w.Say(room, alice, "hello")
	seq := w.Hub.Ephemeral()
	w.Say(room, alice, "again")
	if s, _ := p.Of(alice); s.Presence != presence.Online {
		t.Errorf("alice is %+v", s)
	}
	if list := p.Since(bob, seq); len(list) != 0 {
		t.Errorf("an activity is no news: %v", list)
	}
	p.Set(bob, presence.Offline, "")
	p.Connect(bob, "online")()
	if s, _ := p.Of(bob); s.Presence != presence.Offline {
		t.Errorf("bob wants to be seen offline and is %+v", s)
	}
}

func TestReceive(t *testing.T) {
	w, p := open(t, sqldbtest.Open(t), true)
	w.Room(alice, bob)
	edu := json.RawMessage(`{"push":[{"user_id":"@bob:a.example","presence":"online","last_active_ago":5000,"currently_active":true},{"user_id":"@zoe:c.example","presence":"online"}]}`)
	if err := p.Receive(w.Ctx, here, edu); err != nil {
		t.Fatal(err)
	}
	if s, _ := p.Of(bob); s.Presence != presence.Online || time.Since(s.LastActive) < 5*time.Second {
		t.Errorf("bob is %+v", s)
	}
	if _, ok := p.Of("@zoe:c.example"); ok {
		t.Error("took the word of a server for another's user")
	}
	if err := p.Receive(w.Ctx, here, json.RawMessage(`[]`)); !matrix.IsCode(err, "M_BAD_JSON") {
		t.Errorf("malformed: %v", err)
	}
}

func TestDisabled(t *testing.T) {
	w, p := open(t, sqldbtest.Open(t), false)
	w.Room(alice, bob)
	w.Want(bob, "PUT", status(bob), `{"presence":"online"}`, 200, "")
	p.Connect(bob, "")()
	if out := w.Want(alice, "GET", status(bob), "", 200, ""); out != `{"presence":"offline"}` {
		t.Errorf("bob is %s", out)
	}
	if list := p.Since(alice, 0); list != nil {
		t.Errorf("alice hears of %v", list)
	}
}
