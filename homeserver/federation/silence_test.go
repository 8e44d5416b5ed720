package federation_test

import (
	"context"
	"crypto/ed25519"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/serverkeys"
)

// stranger has c come into a room of a and b, and set its name, while c is cut off from b, which has never met it: b
// can judge nothing of what c says.
func stranger(t *testing.T, version string) (a, b, c *server, room matrix.RoomID, carol matrix.UserID, name matrix.EventID, restart func() *server) {
	t.Helper()
	w := newWorld(t)
	kept := newDisk(t)
	a, b, c = w.start("a.test", newDisk(t)), w.start("b.test", kept), w.start("c.test", newDisk(t))
	room, alice, _ := joined(t, a, b, version)
	carol = c.user("carol")
	levels := map[string]any{"users": map[matrix.UserID]int{alice: 100, carol: 50}}
	if version == "12" {
		levels = map[string]any{"users": map[matrix.UserID]int{carol: 50}}
	}
	pl := a.set(room, alice, "m.room.power_levels", levels)
	until(t, "the levels on b", func() bool { return b.holder(room, "m.room.power_levels") == pl })
	w.cut(b.name, c.name, true)
	ok(t, c.rooms.Join(context.Background(), rooms.MemberChange{Room: room, Sender: carol, Target: carol, Via: []matrix.ServerName{a.name}}))
	until(t, "a sees the join", func() bool { return a.hub.Joined(carol, room) })
	name = c.set(room, carol, "m.room.name", map[string]string{"name": "c's"})
	until(t, "a has the name", func() bool { return a.holder(room, "m.room.name") == name })
	a.send(room, alice, "goes on")
	until(t, "b goes on without c", func() bool { return len(b.texts(room)) == 1 })
	if b.hub.Joined(carol, room) || b.holder(room, "m.room.name") != "" {
		t.Fatal("b has taken what it cannot check")
	}
	return a, b, c, room, carol, name, func() *server {
		b.stop()
		return w.start("b.test", kept)
	}
}

// A server that could not be asked for its keys is believed as soon as it can be: its first word brings along what was
// missing of it.
func TestAStrangerSpeaksWhenTheLineIsBack(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"1", "12"} {
		t.Run("v"+version, func(t *testing.T) {
			t.Parallel()
			_, b, c, room, carol, name, _ := stranger(t, version)
			c.w.cut(b.name, c.name, false)
			c.send(room, carol, "heard")
			until(t, "b hears c", func() bool { texts := b.texts(room); return texts[len(texts)-1] == "heard" })
			if !b.hub.Joined(carol, room) || b.holder(room, "m.room.name") != name {
				t.Errorf("b lacks the member, %t, or the name, %q", b.hub.Joined(carol, room), b.holder(room, "m.room.name"))
			}
		})
	}
}

// Where nobody speaks the room is brought in order all the same, also by a server that was started anew.
func TestAStrangerIsKnownThoughNobodySpeaks(t *testing.T) {
	t.Parallel()
	a, _, c, room, carol, name, restart := stranger(t, "12")
	b := restart()
	if b.hub.Joined(carol, room) {
		t.Fatal("the join is there already")
	}
	c.w.cut(b.name, c.name, false)
	until(t, "b knows c", func() bool { return b.hub.Joined(carol, room) && b.holder(room, "m.room.name") == name })
	bob := matrix.NewUserID("bob", b.name)
	b.send(room, bob, "welcome")
	for _, s := range []*server{a, c} {
		until(t, "everybody hears b", func() bool { texts := s.texts(room); return texts[len(texts)-1] == "welcome" })
	}
}

// A notary that is trusted tells the keys of a server that cannot be reached: then nothing is missing.
func TestANotaryTellsTheKeysOfAStranger(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.start("a.test", newDisk(t))
	w.notaries = []serverkeys.Notary{serverkeys.NewNotary(a.name, map[string][]byte{string(a.own.KeyID()): a.own.Private().Public().(ed25519.PublicKey)})}
	b, c := w.start("b.test", newDisk(t)), w.start("c.test", newDisk(t))
	room, _, bob := joined(t, a, b, "12")
	w.cut(b.name, c.name, true)
	carol := c.user("carol")
	ok(t, c.rooms.Join(context.Background(), rooms.MemberChange{Room: room, Sender: carol, Target: carol, Via: []matrix.ServerName{a.name}}))
	if !c.hub.Joined(bob, room) {
		t.Error("c has not taken bob from a")
	}
	until(t, "a sees the join", func() bool { return a.hub.Joined(carol, room) })
	a.send(room, matrix.NewUserID("alice", a.name), "who is there?")
	until(t, "b sees the join", func() bool { return b.hub.Joined(carol, room) })
}
