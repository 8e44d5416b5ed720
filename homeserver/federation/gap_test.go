package federation_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
)

func (s *server) set(room matrix.RoomID, sender matrix.UserID, typ string, content any) matrix.EventID {
	s.w.t.Helper()
	raw, err := json.Marshal(content)
	if err != nil {
		s.w.t.Fatal(err)
	}
	key := ""
	id, err := s.rooms.Send(context.Background(), rooms.Draft{Room: room, Sender: sender, Type: typ, StateKey: &key, Content: raw})
	if err != nil {
		s.w.t.Fatal(err)
	}
	return id
}

// pdu is an event as it goes to other servers.
func (s *server) pdu(id matrix.EventID) json.RawMessage {
	s.w.t.Helper()
	var raw json.RawMessage
	err := s.db.Read(context.Background(), func(tx *sqldb.Tx) error {
		e, err := s.events.Get(tx, id)
		if err == nil {
			raw = e.JSON
		}
		return err
	})
	if err != nil {
		s.w.t.Fatal(err)
	}
	return raw
}

// holder is the event that holds a state entry now.
func (s *server) holder(room matrix.RoomID, typ string) (id matrix.EventID) {
	s.w.t.Helper()
	err := s.db.Read(context.Background(), func(tx *sqldb.Tx) error {
		row, ok, err := state.KeyAt(tx, room, state.Key{Type: typ}, s.log.Head())
		if err != nil || !ok {
			return err
		}
		evs, err := s.events.ByNID(tx, []int64{row.NID})
		if err == nil {
			id = evs[row.NID].ID
		}
		return err
	})
	if err != nil {
		s.w.t.Fatal(err)
	}
	return id
}

// A server that has missed more than is sent to it takes the state behind the gap from the sender, but what it knows
// itself stands: its own topic was set before the sender's name, beside it.
func TestStateBehindAGap(t *testing.T) {
	t.Parallel()
	const sent = 520
	for _, version := range []string{"1", "12"} {
		t.Run("v"+version, func(t *testing.T) {
			t.Parallel()
			a, b := pair(t)
			room, alice, bob := joined(t, a, b, version)
			levels := map[string]any{"users": map[matrix.UserID]int{alice: 100, bob: 50}}
			if version == "12" {
				levels = map[string]any{"users": map[matrix.UserID]int{bob: 50}}
			}
			pl := a.set(room, alice, "m.room.power_levels", levels)
			until(t, "the levels on b", func() bool { return b.holder(room, "m.room.power_levels") == pl })
			a.w.deafen(a, b)

			topic := b.set(room, bob, "m.room.topic", map[string]string{"topic": "b's"})
			name := a.set(room, alice, "m.room.name", map[string]string{"name": "a's"})
			if version == "12" { // so much that the state is asked for in full
				for i := range 120 {
					a.set(room, alice, fmt.Sprintf("test.%d", i), map[string]string{})
				}
			}
			for i := range sent { // more than is asked for
				a.send(room, alice, fmt.Sprint(i))
			}
			avatar := a.set(room, alice, "m.room.avatar", map[string]string{"url": "mxc://a.test/x"})
			last := a.send(room, alice, "last")
			id, err := b.rooms.Receive(context.Background(), a.name, a.pdu(last))
			if err != nil || id != last {
				t.Fatalf("%s: %v", id, err)
			}
			for typ, want := range map[string]matrix.EventID{
				"m.room.name": name, "m.room.avatar": avatar, "m.room.topic": topic, "m.room.power_levels": pl,
			} {
				if got := b.holder(room, typ); got != want {
					t.Errorf("%s is %s, not %s", typ, got, want)
				}
			}
			texts := b.texts(room)
			if n := len(texts); n < 150 || n > sent || texts[n-1] != "last" {
				t.Errorf("%d messages of %d are there", n, sent+1)
			}
			if err := b.rooms.Join(context.Background(), rooms.MemberChange{Room: room, Sender: bob, Target: bob}); err != nil {
				t.Errorf("bob is out: %v", err)
			}
		})
	}
}

// An event whose ancestors cannot be had is refused, whatever it says.
func TestAncestorsThatCannotBeHad(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	room, alice, _ := joined(t, a, b, "11")
	a.w.deafen(b)
	a.send(room, alice, "missed")
	last := a.pdu(a.send(room, alice, "last"))
	a.stop()
	id, err := b.rooms.Receive(context.Background(), a.name, last)
	if err == nil || id == "" {
		t.Errorf("%q was taken: %v", id, err)
	}
	if got := b.texts(room); len(got) != 0 {
		t.Errorf("there is %v", got)
	}
}
