package federation_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// TestManyEventsTogether hands a server a whole transaction in which events follow each other, with others among
// them that do not: known ones, one twice, a forged one, one out of its turn, a redaction of what came just before,
// and what somebody says who has left.
func TestManyEventsTogether(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"1", "10", "12"} {
		t.Run("v"+version, func(t *testing.T) {
			t.Parallel()
			manyTogether(t, version)
		})
	}
}

func manyTogether(t *testing.T, version string) {
	a, b := pair(t)
	ctx := context.Background()
	room, alice, _ := joined(t, a, b, version)
	a.send(room, alice, "known")
	until(t, "what b hears by itself", func() bool { return slices.Contains(b.texts(room), "known") })
	from := a.log.Head()
	a.w.deafen(b)

	var want []string
	say := func(s string) matrix.EventID {
		want = append(want, s)
		return a.send(room, alice, s)
	}
	for i := range 10 {
		say(fmt.Sprint("m", i))
	}
	dave := a.user("dave")
	ok(t, a.rooms.Join(ctx, rooms.MemberChange{Room: room, Sender: dave, Target: dave}))
	a.send(room, dave, "dave was here")
	want = append(want, "dave was here")
	gone := a.send(room, alice, "taken back")
	_, err := a.rooms.Send(ctx, rooms.Draft{Room: room, Sender: alice, Type: "m.room.redaction", Redacts: gone, Content: json.RawMessage(`{"redacts":"` + gone + `"}`)})
	ok(t, err)
	empty := ""
	_, err = a.rooms.Send(ctx, rooms.Draft{Room: room, Sender: alice, Type: "m.room.topic", StateKey: &empty, Content: json.RawMessage(`{"topic":"new"}`)})
	ok(t, err)
	for i := range 10 {
		say(fmt.Sprint("n", i))
	}

	var pdus []json.RawMessage
	err = a.db.Read(ctx, func(tx *sqldb.Tx) error {
		pdus = nil
		list, err := a.events.Timeline(tx, room, from, a.log.Head(), 1000, true)
		for _, e := range list {
			pdus = append(pdus, json.RawMessage(e.JSON))
		}
		return err
	})
	ok(t, err)
	if bytes.Contains(pdus[0], []byte(`"n9"`)) {
		slices.Reverse(pdus)
	}
	forged := json.RawMessage(bytes.Replace(pdus[3], []byte(`"origin_server_ts":`), []byte(`"origin_server_ts":1`), 1))
	mixed := slices.Concat(pdus[:3], []json.RawMessage{pdus[0], forged}, pdus[3:8], []json.RawMessage{pdus[20]}, pdus[8:], []json.RawMessage{pdus[2], []byte(`{"room_id":"` + string(room) + `"}`)})
	raw, err := json.Marshal(map[string]any{"origin": a.name, "origin_server_ts": 1, "pdus": mixed})
	ok(t, err)
	a.w.mu.Lock()
	a.w.deaf[b.name] = false
	a.w.mu.Unlock()
	refused, err := a.client.SendTransaction(ctx, b.name, "many", raw)
	ok(t, err)
	bad := 1 // the forged one; what has no ID cannot be answered for
	if version == "1" {
		bad = 0 // there it has the ID of the good one
	}
	if len(refused) != bad {
		t.Errorf("refused: %v", refused)
	}
	got := b.texts(room)
	slices.Sort(got)
	want = append(want, "known", "") // the body of what was taken back is gone
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("b has\n%q, want\n%q", got, want)
	}
	state := func(s *server) (out []string) {
		list, err := s.rooms.CurrentState(ctx, room)
		ok(t, err)
		for _, e := range list {
			out = append(out, fmt.Sprintf("%s %s %s", e.Type, e.Key(), e.ID))
		}
		slices.Sort(out)
		return out
	}
	if x, y := state(a), state(b); !slices.Equal(x, y) {
		t.Errorf("the state on a\n%q, on b\n%q", x, y)
	}
	if !b.hub.Joined(dave, room) {
		t.Error("b does not know dave")
	}
	// b goes on from there.
	bob := matrix.UserID("@bob:b.test")
	b.send(room, bob, "goes on")
	until(t, "bob's message on a", func() bool { return slices.Contains(a.texts(room), "goes on") })
}
