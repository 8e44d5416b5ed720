package hstest_test

import (
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

func TestTwoPeopleTalk(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	first := bob.Sync(0)
	if first.Rooms.Join[room] == nil {
		t.Fatal("the room is not in the first sync")
	}
	event := alice.Say(room, "你好")
	heard := bob.Hears(room, "你好")
	if heard.ID != event {
		t.Fatalf("heard %s, sent %s", heard.ID, event)
	}
	// Unread for bob, not for alice; gone once bob has read it.
	alice.Sync(0)
	again := bob.Say(room, "早")
	_ = again
	event = alice.Say(room, "在吗")
	bob.SyncUntil("an unread count", func(r *mautrix.RespSync) bool {
		j := r.Rooms.Join[room]
		return j != nil && j.UnreadNotifications != nil && j.UnreadNotifications.NotificationCount == 1
	})
	if err := bob.MarkRead(t.Context(), room, event); err != nil {
		t.Fatal(err)
	}
	bob.SyncUntil("the count to go", func(r *mautrix.RespSync) bool {
		j := r.Rooms.Join[room]
		return j != nil && j.UnreadNotifications != nil && j.UnreadNotifications.NotificationCount == 0
	})
	alice.SyncUntil("bob's receipt", func(r *mautrix.RespSync) bool {
		j := r.Rooms.Join[room]
		if j == nil {
			return false
		}
		for _, e := range j.Ephemeral.Events {
			if e.Type.Type == "m.receipt" {
				if _, ok := e.Content.Raw[string(event)]; ok {
					return true
				}
			}
		}
		return false
	})
}

func TestIdleSyncWaitsAndWakes(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	bob.Sync(0)
	start := time.Now()
	r := bob.Sync(300 * time.Millisecond)
	if took := time.Since(start); took < 250*time.Millisecond {
		t.Fatalf("an idle sync came back after %v: %+v", took, r)
	}
	got := make(chan id.EventID, 1)
	go func() { got <- bob.Hears(room, "wake up").ID }()
	time.Sleep(50 * time.Millisecond)
	sent := alice.Say(room, "wake up")
	if id := <-got; id != sent {
		t.Fatalf("woken by %s, want %s", id, sent)
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	alice.Say(room, "before")
	bob.Sync(0)
	s.Stop()
	s.Start()
	alice.Say(room, "after")
	bob.Hears(room, "after")
}
