package hstest_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// Whoever has loaded the members keeps them up to date by what /sync brings, wherever it brings state.
func TestLazyMembersHearOfChanges(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob, carol := s.User("alice"), s.User("bob"), s.User("carol")
	room := alice.Room(nil, bob)
	lazy := `filter={"room":{"timeline":{"limit":3},"state":{"lazy_load_members":true}}}`
	rename := func(name string) {
		setState(t, bob, room, "m.room.member", string(bob.UserID), map[string]any{"membership": "join", "displayname": name})
	}
	for _, after := range []string{"", "use_state_after=true"} {
		var since string
		state := func() string {
			r := alice.RawSync(since, lazy, after)
			since = r.Get("next_batch").Str
			j := r.Get(in("join", room))
			told := keysOf(j.Get("state.events"))
			if after != "" {
				return strings.Join(keysOf(j.Get("state_after.events")), " ")
			}
			return strings.Join(append(told, keysOf(j.Get("timeline.events"))...), " ")
		}
		member := func(u *hstest.User) string { return "m.room.member|" + string(u.UserID) }
		state()
		rename("Bob" + after)
		if got := state(); !strings.Contains(got, member(bob)) {
			t.Errorf("%s: a new name is not told: %s", after, got)
		}
		alice.OK("POST", hstest.Path("rooms", string(room), "invite"), map[string]string{"user_id": string(carol.UserID)})
		if got := state(); !strings.Contains(got, member(carol)) {
			t.Errorf("%s: an invitation is not told: %s", after, got)
		}
		carol.OK("POST", hstest.Path("rooms", string(room), "leave"), "{}")
		rename("Robert" + after)
		for i := range 4 {
			send(alice, room, fmt.Sprint(after, i), "past it")
		}
		if got := state(); !strings.Contains(got, member(carol)) || !strings.Contains(got, member(bob)) {
			t.Errorf("%s: what happened before the timeline is not told: %s", after, got)
		}
		// A first sync: whom the timeline is about, after it.
		rename("Bob again" + after)
		if since = ""; !strings.Contains(state(), member(bob)) {
			t.Errorf("%s: a first sync has no %s", after, bob.UserID)
		}
	}
}

// A first message of somebody who takes another name afterwards comes with the name of then.
func TestLazyMembersOfTheStart(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "public_chat", Name: "named, so without heroes"}, bob)
	for i := range 3 {
		send(alice, room, fmt.Sprint("a", i), "far back")
	}
	send(bob, room, "b", "hello")
	setState(t, bob, room, "m.room.member", string(bob.UserID), map[string]any{"membership": "join", "displayname": "Robert"})
	r := alice.RawSync("", `filter={"room":{"timeline":{"limit":2},"state":{"lazy_load_members":true}}}`).Get(in("join", room))
	if got := r.Get(`state.events.#(state_key=="` + string(bob.UserID) + `").event_id`).Str; got == "" {
		t.Errorf("the one who speaks is not among %s", r.Raw)
	}
}

// The state is whole for who may not see, or does not want to see, the events that made it.
func TestStateOfWhatTheTimelineHides(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil)
	setState(t, alice, room, "m.room.history_visibility", "", map[string]any{"history_visibility": "joined"})
	setState(t, alice, room, "m.room.name", "", map[string]any{"name": "named before he came"})
	bob.OK("POST", hstest.Path("join", string(room)), "{}")
	for _, limit := range []int{2, 50} {
		r := bob.RawSync("", fmt.Sprintf(`filter={"room":{"timeline":{"limit":%d}}}`, limit)).Get(in("join", room))
		if name := r.Get(`state.events.#(type=="m.room.name").content.name`).Str; name != "named before he came" {
			t.Errorf("with %d events, the state is %v and the timeline %v", limit, keysOf(r.Get("state.events")), keysOf(r.Get("timeline.events")))
		}
		seen := append(eventIDs(r.Get("state.events")), eventIDs(r.Get("timeline.events"))...)
		if slices.Sort(seen); len(slices.Compact(slices.Clone(seen))) != len(seen) {
			t.Errorf("with %d events, an event is told twice: %s", limit, r.Raw)
		}
	}
	texts := `filter={"room":{"timeline":{"types":["m.room.message"]}}}`
	since := bob.RawSync("", texts).Get("next_batch").Str
	send(alice, room, "1", "one")
	setState(t, alice, room, "m.room.topic", "", map[string]any{"topic": "no message"})
	send(alice, room, "2", "two")
	r := bob.RawSync(since, texts).Get(in("join", room))
	if got := keysOf(r.Get("state.events")); !slices.Equal(got, []string{"m.room.topic|"}) || r.Get("timeline.events.#").Int() != 2 {
		t.Errorf("who wants messages alone in the timeline gets the state %v: %s", got, r.Raw)
	}
}
