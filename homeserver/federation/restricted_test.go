package federation_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
)

func TestRestricted(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	ctx := context.Background()
	alice, bob := a.user("alice"), b.user("bob")
	allowed := a.room(alice, "public_chat", "8")
	room, err := a.rooms.Create(ctx, alice, rooms.CreateRequest{
		Preset: "private_chat", Version: "8",
		InitialState: []rooms.InitialState{{
			Type:    "m.room.join_rules",
			Content: json.RawMessage(fmt.Sprintf(`{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":%q}]}`, allowed)),
		}},
	}, 0)
	ok(t, err)
	via := []matrix.ServerName{a.name}
	join := func(room matrix.RoomID) error {
		return b.rooms.Join(ctx, rooms.MemberChange{Room: room, Sender: bob, Target: bob, Via: via})
	}
	if err := join(room); !matrix.IsCode(err, "M_FORBIDDEN") {
		t.Errorf("joined a restricted room: %v", err)
	}
	ok(t, join(allowed))
	ok(t, join(room))
	until(t, "bob on a", func() bool { return a.hub.Joined(bob, room) })
	for _, r := range []matrix.RoomID{room, allowed} {
		ok(t, b.rooms.Leave(ctx, rooms.MemberChange{Room: r, Sender: bob, Target: bob}))
		until(t, "bob has left on a", func() bool { return !a.hub.Joined(bob, r) })
	}
	if err := join(room); !matrix.IsCode(err, "M_FORBIDDEN") {
		t.Errorf("joined again after leaving the room that allowed it: %v", err)
	}
	ok(t, a.rooms.Invite(ctx, rooms.MemberChange{Room: room, Sender: alice, Target: bob}))
	ok(t, join(room))
}
