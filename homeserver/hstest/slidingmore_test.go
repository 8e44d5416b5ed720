package hstest_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/hstest"
)

func TestSlidingForgotten(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	keep, gone := alice.Room(nil, bob), alice.Room(nil, bob)
	c := slide(t, bob, allRooms(1, 9))
	if r := c.next(0); r.Get("lists.all.count").Int() != 2 {
		t.Fatalf("at first: %s", r.Raw)
	}
	bob.OK("POST", hstest.Path("rooms", string(gone), "leave"), "{}")
	if r := c.next(1000); r.Get(at(gone)+".membership").Str != "leave" || r.Get("lists.all.count").Int() != 2 {
		t.Errorf("left: %s", r.Raw)
	}
	done := make(chan gjson.Result, 1)
	go func() { done <- c.next(10_000) }() // it is told at once
	time.Sleep(20 * time.Millisecond)
	bob.OK("POST", hstest.Path("rooms", string(gone), "forget"), "{}")
	select {
	case r := <-done:
		if r.Get("lists.all.count").Int() != 1 || len(names(r)) != 0 {
			t.Errorf("forgotten: %s", r.Raw)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("a forgotten room stays")
	}
	bob.OK("POST", hstest.Path("rooms", string(gone), "forget"), "{}") // again: nothing new
	bob.OK("POST", hstest.Path("rooms", string(gone), "join"), "{}")
	if r := c.next(1000).Get(at(gone)); r.Get("membership").Str != "join" || !r.Get("initial").Bool() {
		t.Errorf("back: %s", r.Raw)
	}
	bob.Refused(400, "M_UNKNOWN", "POST", hstest.Path("rooms", string(keep), "forget"), "{}")
}

// A room that the user has left is told of when it is named, if he has been in it.
func TestSlidingLeftByName(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	left, never := alice.Room(nil, bob), alice.Room(nil)
	alice.Say(left, "while he was there")
	bob.OK("POST", hstest.Path("rooms", string(left), "leave"), "{}")
	alice.Say(left, "after he left")
	body := allRooms(3, 9)
	body["room_subscriptions"] = obj{}
	for _, r := range []id.RoomID{left, never, "!none:a.example"} {
		body["room_subscriptions"].(obj)[string(r)] = obj{"timeline_limit": 3, "required_state": [][]string{{"m.room.create", ""}}}
	}
	c := slide(t, bob, body)
	r := c.next(0)
	if !slices.Equal(names(r), []string{string(left)}) || r.Get("lists.all.count").Int() != 0 {
		t.Fatalf("by name: %s", r.Raw)
	}
	room := r.Get(at(left))
	if got := bodies(room.Get("timeline")); room.Get("membership").Str != "leave" || !slices.Equal(got, []string{"while he was there"}) {
		t.Errorf("the room: %s", room.Raw)
	}
	if r := c.next(0); len(names(r)) != 0 {
		t.Errorf("again: %s", r.Raw)
	}
}

func TestSlidingBounds(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	for i := range 3 {
		alice.Room(&mautrix.ReqCreateRoom{Name: fmt.Sprint("Über uns ", i)})
	}
	subs := obj{}
	for i := range 101 {
		subs[fmt.Sprintf("!%d:a.example", i)] = obj{"timeline_limit": 1, "required_state": obj{}}
	}
	alice.Refused(400, "M_INVALID_PARAM", "POST", slidingV4, obj{"room_subscriptions": subs})
	for k := range subs {
		subs[k].(obj)["required_state"] = [][]string{}
	}
	alice.OK("POST", slidingPath, obj{"room_subscriptions": subs})

	// Names are compared without regard to case.
	body := allRooms(1, 9)
	body["lists"].(obj)["all"].(obj)["filters"] = obj{"room_name_like": "ÜBER UNS 2"}
	if r := alice.OK("POST", slidingPath, body); len(names(r)) != 1 || r.Get("lists.all.count").Int() != 1 {
		t.Errorf("by name: %s", r.Raw)
	}

	// A pos is of one device.
	c := slide(t, alice, obj{"extensions": obj{"account_data": obj{"enabled": true}}})
	c.next(0)
	bob.Refused(400, "M_UNKNOWN_POS", "POST", c.path(0), c.body)
	alice.Login("SECOND").Refused(400, "M_UNKNOWN_POS", "POST", c.path(0), c.body)
	c.next(0)
}

func TestSlidingSticky(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room, other := alice.Room(nil, bob), alice.Room(nil, bob)
	n := 0
	stick := func(room id.RoomID) string {
		n++
		path := hstest.Path("rooms", string(room), "send", "m.rtc.member", fmt.Sprint("k", n)) + "?org.matrix.msc4354.sticky_duration_ms=600000"
		return alice.OK("PUT", path, obj{"body": "here"}).Get("event_id").Str
	}
	const ext = "extensions." + `org\.matrix\.msc4354\.sticky_events`
	told := func(r gjson.Result) (out []string) {
		r.Get(ext + ".rooms").ForEach(func(_, v gjson.Result) bool {
			for _, e := range v.Get("events").Array() {
				out = append(out, e.Get("event_id").Str)
			}
			return true
		})
		return out
	}
	first, second := stick(room), stick(other)
	alice.Say(room, "then")
	alice.Say(other, "then")
	body := allRooms(1, 0)
	sticky := obj{"enabled": true, "limit": 1}
	body["extensions"] = obj{"org.matrix.msc4354.sticky_events": sticky}
	c := slide(t, bob, body)
	r := c.next(0)
	if got := told(r); !slices.Equal(got, []string{first}) { // though the window holds the other room alone
		t.Fatalf("at first: %s", r.Raw)
	}
	sticky["since"] = r.Get(ext + ".next_batch").Str
	r = c.next(1000)
	if got := told(r); !slices.Equal(got, []string{second}) {
		t.Fatalf("then: %s", r.Raw)
	}
	sticky["since"] = r.Get(ext + ".next_batch").Str
	if r := c.next(0); r.Get(ext).Exists() {
		t.Errorf("nothing new: %s", r.Raw)
	}
	third := stick(other)
	r = c.next(1000) // in the timeline, so not here
	if got := told(r); len(got) != 0 || r.Get(at(other)+".timeline.0.event_id").Str != third || !r.Get(ext+".next_batch").Exists() {
		t.Errorf("in the timeline: %s", r.Raw)
	}
	sticky["since"] = r.Get(ext + ".next_batch").Str
	if r := c.next(0); r.Get(ext).Exists() {
		t.Errorf("once more: %s", r.Raw)
	}
	// Who joins hears of all.
	sticky["limit"] = 10
	late := alice.Room(nil)
	old := stick(late)
	for i := range 2 {
		alice.Say(late, fmt.Sprint("later ", i))
	}
	r = c.next(0)
	if r.Get(ext).Exists() {
		t.Errorf("of a room that he is not in: %s", r.Raw)
	}
	bob.OK("POST", hstest.Path("rooms", string(late), "join"), "{}")
	if r := c.next(1000); !slices.Equal(told(r), []string{old}) {
		t.Errorf("joined: %s", r.Raw)
	}
}

// Rooms of one person that begin in the same moment and ask for the same are two.
func TestRoomsOfOneMoment(t *testing.T) {
	t.Parallel()
	now := time.Now()
	s := hstest.New(t, func(o *homeserver.Options) { o.Now = func() time.Time { return now } })
	alice := s.User("alice")
	seen := map[id.RoomID]bool{}
	for range 5 {
		seen[alice.Room(nil)] = true
	}
	if len(seen) != 5 {
		t.Errorf("there are %d rooms", len(seen))
	}
}
