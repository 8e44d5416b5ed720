package hub_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

type fixture struct {
	t   testing.TB
	log *stream.Log
	hub *hub.Hub
}

func start(t testing.TB) *fixture {
	t.Helper()
	l, err := stream.Open(t.Context(), sqldbtest.Open(t))
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t, l, hub.New(l, "a")}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { l.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return f
}

func (f *fixture) publish(kind stream.Kind, room matrix.RoomID, user matrix.UserID, payload func(stream.Pos) any) stream.Pos {
	f.t.Helper()
	pos, err := f.log.Append(context.Background(), 1, func(_ *sqldb.Tx, pos stream.Pos) ([]stream.Change, error) {
		return []stream.Change{{Pos: pos, Kind: kind, Room: room, User: user, Payload: payload(pos)}}, nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return pos
}

func (f *fixture) member(room matrix.RoomID, user matrix.UserID, membership string) stream.Pos {
	key := string(user)
	return f.publish(stream.KindEvent, room, user, func(pos stream.Pos) any {
		return &events.Event{Pos: pos, ID: matrix.EventID(fmt.Sprint("$", pos)), Room: room, Sender: user, Type: "m.room.member", StateKey: &key, Membership: membership}
	})
}

func (f *fixture) say(room matrix.RoomID) stream.Pos {
	return f.publish(stream.KindEvent, room, "@x:a", func(pos stream.Pos) any {
		return &events.Event{Pos: pos, ID: matrix.EventID(fmt.Sprint("$", pos)), Room: room, Type: "m.room.message"}
	})
}

func woken(w *hub.Waiter, wait time.Duration) bool {
	select {
	case <-w.C:
		return true
	case <-time.After(wait):
		return false
	}
}

func TestWhoIsWoken(t *testing.T) {
	f := start(t)
	f.member("!r", "@alice:a", "join")
	f.member("!r", "@remote:b", "join")
	alice, carol := f.hub.Wait("@alice:a"), f.hub.Wait("@carol:a")
	defer alice.Close()
	defer carol.Close()
	pos := f.say("!r")
	if !woken(alice, time.Second) {
		t.Error("a member was not woken")
	}
	if f.hub.Head() < pos {
		t.Errorf("woken at head %d, the message is at %d", f.hub.Head(), pos)
	}
	if woken(carol, 50*time.Millisecond) {
		t.Error("somebody else was woken")
	}
	f.member("!r", "@carol:a", "invite")
	if !woken(carol, time.Second) {
		t.Error("who is invited was not woken")
	}
	f.publish(stream.KindReceipt, "!r", "@remote:b", func(stream.Pos) any { return nil })
	if !woken(alice, time.Second) {
		t.Error("a receipt woke nobody")
	}
	f.member("!r", "@alice:a", "leave")
	woken(alice, time.Second)
	f.say("!r")
	if woken(alice, 50*time.Millisecond) {
		t.Error("who has left was woken")
	}
	f.publish(stream.KindAccountData, "", "@alice:a", func(stream.Pos) any { return nil })
	if !woken(alice, time.Second) {
		t.Error("account data woke nobody")
	}
}

// Some clients take a message for lost that comes before the answer to their
// request to send it.
func TestSenderIsWokenAfterOthers(t *testing.T) {
	f := start(t)
	f.member("!r", "@alice:a", "join")
	f.member("!r", "@bob:a", "join")
	alice, bob := f.hub.Wait("@alice:a"), f.hub.Wait("@bob:a")
	defer alice.Close()
	defer bob.Close()
	f.publish(stream.KindEvent, "!r", "@alice:a", func(pos stream.Pos) any {
		return &events.Event{Pos: pos, ID: "$m", Room: "!r", Sender: "@alice:a", Txn: "t", Type: "m.room.message"}
	})
	select {
	case <-bob.C:
	case <-alice.C:
		t.Error("the sender was woken before the others")
	case <-time.After(time.Second):
		t.Fatal("nobody was woken")
	}
	if !woken(alice, time.Second) {
		t.Error("the sender was not woken")
	}
}

// A waiter that is registered before it reads misses nothing, however the two
// fall together.
func TestNothingIsMissed(t *testing.T) {
	f := start(t)
	f.member("!r", "@alice:a", "join")
	const n = 300
	var wg sync.WaitGroup
	wg.Go(func() {
		for range n {
			f.say("!r")
		}
	})
	var snap hub.Snapshot
	since, seen := f.hub.Head(), 0
	end := time.Now().Add(20 * time.Second)
	for seen < n {
		w := f.hub.Wait("@alice:a")
		f.hub.Snapshot("@alice:a", since, 0, &snap)
		if snap.Head == since {
			if !woken(w, time.Second) && f.hub.Head() == since && time.Now().After(end) {
				t.Fatalf("saw %d of %d", seen, n)
			}
			w.Close()
			continue
		}
		w.Close()
		list, complete := f.hub.Recent("!r", since, snap.Head)
		if !complete {
			t.Fatal("the newest events are not at hand")
		}
		for _, e := range list {
			if e.Pos <= since || e.Pos > snap.Head {
				t.Fatalf("event at %d for the range (%d, %d]", e.Pos, since, snap.Head)
			}
			if e.Type == "m.room.message" {
				seen++
			}
		}
		since = snap.Head
	}
	wg.Wait()
}

func TestWhoIsWhere(t *testing.T) {
	f := start(t)
	f.hub.Seed("!old", "@alice:a", 1)
	f.member("!r", "@alice:a", "join")
	f.member("!r", "@bob:b", "join")
	f.member("!s", "@bob:b", "join")
	f.member("!s", "@carol:a", "join")
	if got := fmt.Sprint(f.hub.RoomsOf("@alice:a")); got != "[!old !r]" {
		t.Errorf("alice is in %s", got)
	}
	if got := fmt.Sprint(f.hub.Servers("!r")); got != "[a b]" {
		t.Errorf("servers %s", got)
	}
	if !f.hub.SharesRoom("@alice:a", "@bob:b") || f.hub.SharesRoom("@alice:a", "@carol:a") {
		t.Error("who shares a room with whom is wrong")
	}
	f.member("!r", "@bob:b", "leave")
	if f.hub.SharesRoom("@alice:a", "@bob:b") || f.hub.MemberCount("!r") != 1 || f.hub.LocalCount("!r") != 1 {
		t.Error("bob is still there")
	}
	if f.hub.Joined("@bob:b", "!r") || !f.hub.Joined("@bob:b", "!s") {
		t.Error("bob is in the wrong room")
	}
}

// Who comes back to a room learns who is in it now: many may have left since.
func TestRoomIsSeededAnew(t *testing.T) {
	f := start(t)
	for i := range 9 {
		f.member("!r", matrix.UserID(fmt.Sprintf("@u%d:b", i)), "join")
	}
	f.publish(stream.KindEvent, "!r", "", func(stream.Pos) any { return hub.Seeded{Members: []matrix.UserID{"@u4:b", "@new:c"}} })
	if got := f.hub.Members("!r"); len(got) != 2 || !f.hub.Joined("@u4:b", "!r") || !f.hub.Joined("@new:c", "!r") {
		t.Errorf("%v are in the room", got)
	}
}

// Redaction replaces what is at hand; readers that hold the old list keep it.
func TestRedactionReplacesTheEvent(t *testing.T) {
	f := start(t)
	f.member("!r", "@alice:a", "join")
	since := f.hub.Head()
	pos := f.say("!r")
	before, _ := f.hub.Recent("!r", since, pos)
	id := before[0].ID
	f.publish(stream.KindEvent, "!r", "@alice:a", func(p stream.Pos) any {
		e := &events.Event{Pos: p, ID: "$redaction", Room: "!r", Type: "m.room.redaction"}
		e.Target = &events.Event{Pos: pos, ID: id, Room: "!r", Type: "m.room.message", RedactedBy: int64(p)}
		return e
	})
	after, complete := f.hub.Recent("!r", since, pos)
	if !complete || len(after) != 1 || !after[0].Redacted() {
		t.Errorf("after the redaction: %+v", after)
	}
	if before[0].Redacted() {
		t.Error("a list that was handed out has changed")
	}
}

func BenchmarkPublish(b *testing.B) {
	f := start(b)
	for i := range 7000 {
		f.hub.Seed("!r", matrix.UserID(fmt.Sprint("@u", i, ":a")), 1)
	}
	for i := range 1000 {
		defer f.hub.Wait(matrix.UserID(fmt.Sprint("@u", i, ":a"))).Close()
	}
	b.ResetTimer()
	for range b.N {
		f.say("!r")
	}
}
