package federation_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/matrix-org/gomatrixserverlib"
)

// TestJoinWithoutMembers: a server that can do without the members gets those alone who name the room, and all that
// authorises what it gets.
func TestJoinWithoutMembers(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"10", "12"} {
		a, b := pair(t)
		ctx := context.Background()
		alice := a.user("alice")
		room := a.room(alice, "public_chat", version)
		for i := range 30 {
			u := a.user(fmt.Sprint("u", i))
			ok(t, a.rooms.Join(ctx, rooms.MemberChange{Room: room, Sender: u, Target: u}))
		}
		join := func(name string) (rooms.JoinState, *events.Event) {
			t.Helper()
			u := b.user(name)
			ok(t, b.rooms.Join(ctx, rooms.MemberChange{Room: room, Sender: u, Target: u, Via: []matrix.ServerName{a.name}}))
			until(t, "the join on a", func() bool { return a.hub.Joined(u, room) })
			var ev *events.Event
			ok(t, a.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
				ev, err = a.rooms.State(ctx, room, "m.room.member", string(u))
				return err
			}))
			s, err := a.rooms.SendJoin(ctx, room, ev.ID, b.name, ev.JSON, true)
			ok(t, err)
			return s, ev
		}
		check := func(s rooms.JoinState, ev *events.Event, members int) {
			t.Helper()
			have, n := map[matrix.EventID]bool{}, 0
			parse := func(raw json.RawMessage) *events.Event {
				e, err := events.Parse(raw, gomatrixserverlib.RoomVersion(s.Version))
				ok(t, err)
				if have[e.ID] {
					t.Errorf("%s comes twice", e.ID)
				}
				have[e.ID] = true
				return e
			}
			all := []*events.Event{ev}
			for _, raw := range s.State {
				all = append(all, parse(raw))
				if gjson.GetBytes(raw, "type").Str == "m.room.member" {
					n++
				}
			}
			for _, raw := range s.AuthChain {
				all = append(all, parse(raw))
			}
			if n != members {
				t.Errorf("version %s: %d members, want %d", version, n, members)
			}
			for _, e := range all {
				for _, id := range e.AuthEvents() {
					if !have[id] {
						t.Errorf("version %s: %s is authorised by %s, which is missing", version, e.ID, id)
					}
				}
			}
		}
		s, ev := join("bob")
		check(s, ev, 5)
		empty := ""
		_, err := a.rooms.Send(ctx, rooms.Draft{Room: room, Sender: alice, Type: "m.room.name", StateKey: &empty, Content: json.RawMessage(`{"name":"named"}`)})
		ok(t, err)
		ok(t, b.rooms.Leave(ctx, rooms.MemberChange{Room: room, Sender: "@bob:b.test", Target: "@bob:b.test"}))
		s, ev = join("carol")
		check(s, ev, 0)
		if len(s.Servers) == 0 || len(s.State) < 4 {
			t.Errorf("%d servers, %d state events", len(s.Servers), len(s.State))
		}
	}
}
