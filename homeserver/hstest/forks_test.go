package hstest_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// parted cuts two servers off from each other while fn runs, then waits until
// each has what the other side's user said last.
func parted(a, b *hstest.Server, alice, bob *hstest.User, room id.RoomID, fn func()) {
	a.Cut()
	b.Cut()
	fn()
	alice.Say(room, fmt.Sprintf("alice before %s", alice.Since()))
	fromAlice := fmt.Sprintf("alice before %s", alice.Since())
	fromBob := fmt.Sprintf("bob before %s", bob.Since())
	bob.Say(room, fromBob)
	a.Heal()
	b.Heal()
	alice.Hears(room, fromBob)
	bob.Hears(room, fromAlice)
}

// stateOf is a room's state as a user's server has it: type|key to event ID.
func stateOf(u *hstest.User, room id.RoomID) map[string]string {
	m := map[string]string{}
	u.OK("GET", hstest.Path("rooms", string(room), "state"), nil).ForEach(func(_, e gjson.Result) bool {
		m[e.Get("type").Str+"|"+e.Get("state_key").Str] = e.Get("event_id").Str
		return true
	})
	return m
}

// sameState checks that both servers have come to the same state.
func sameState(t *testing.T, alice, bob *hstest.User, room id.RoomID) {
	t.Helper()
	sa, sb := stateOf(alice, room), stateOf(bob, room)
	for k, v := range sa {
		if sb[k] != v {
			t.Errorf("%s is %s with alice and %s with bob", k, v, sb[k])
		}
	}
	for k, v := range sb {
		if sa[k] == "" {
			t.Errorf("%s is nothing with alice and %s with bob", k, v)
		}
	}
}

func setState(t *testing.T, u *hstest.User, room id.RoomID, typ, key string, content map[string]any) {
	t.Helper()
	u.OK("PUT", hstest.Path("rooms", string(room), "state", typ, key), content)
}

func stateString(u *hstest.User, room id.RoomID, typ, field string) string {
	return u.Do("GET", hstest.Path("rooms", string(room), "state", typ)+"/", nil).Get(field).String()
}

// forkedRoom is a room of alice with bob as moderator, in which both servers are
// at the same point.
func forkedRoom(t *testing.T, version string, alice, bob *hstest.User, a *hstest.Server) id.RoomID {
	t.Helper()
	room := alice.Room(&mautrix.ReqCreateRoom{
		Preset: "public_chat", RoomVersion: id.RoomVersion(version),
		PowerLevelOverride: &event.PowerLevelsEventContent{Users: powers(version, alice, bob, 60)},
	})
	join(bob, room, a)
	alice.Say(room, "ready")
	bob.Hears(room, "ready")
	return room
}

// powers are the levels of a room's users; creators have none of their own since
// version 12.
func powers(version string, alice, bob *hstest.User, level int) map[id.UserID]int {
	m := map[id.UserID]int{bob.UserID: level}
	if version != "12" {
		m[alice.UserID] = 100
	}
	return m
}

func TestForkedRoomsComeTogether(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"1", "2", "6", "10", "11", "12"} {
		t.Run("version "+version, func(t *testing.T) {
			a, b := hstest.Pair(t)
			alice, bob := a.User("alice"), b.User("bob")
			room := forkedRoom(t, version, alice, bob, a)
			carol, dave := a.User("carol"), b.User("dave")

			// Both name the room, others come on both sides.
			parted(a, b, alice, bob, room, func() {
				setState(t, alice, room, "m.room.name", "", map[string]any{"name": "alice's"})
				setState(t, bob, room, "m.room.name", "", map[string]any{"name": "bob's"})
				setState(t, bob, room, "m.room.topic", "", map[string]any{"topic": "bob's topic"})
				carol.OK("POST", hstest.Path("join", string(room)), "{}")
				dave.OK("POST", hstest.Path("join", string(room)), "{}")
				carol.Say(room, "carol is here")
				dave.Say(room, "dave is here")
			})
			for _, u := range []*hstest.User{alice, bob, carol, dave} {
				u.Hears(room, "carol is here")
				u.Hears(room, "dave is here")
			}
			alice.Say(room, "merged")
			bob.Hears(room, "merged")
			sameState(t, alice, bob, room)
			if got := stateString(alice, room, "m.room.topic", "topic"); got != "bob's topic" {
				t.Errorf("the topic is %q", got)
			}
			for _, u := range []*hstest.User{carol, dave} {
				for _, o := range []*hstest.User{alice, bob} {
					if m := membership(o, room, u.UserID); m != "join" {
						t.Errorf("%s sees %s as %q", o.UserID, u.UserID, m)
					}
				}
			}

			// One side takes the other's power while it is being used.
			parted(a, b, alice, bob, room, func() {
				levels := alice.OK("GET", hstest.Path("rooms", string(room), "state", "m.room.power_levels", ""), nil).Value().(map[string]any)
				levels["users"].(map[string]any)[string(bob.UserID)] = 0
				setState(t, alice, room, "m.room.power_levels", "", levels)
				setState(t, bob, room, "m.room.name", "", map[string]any{"name": "bob's once more"})
			})
			alice.Say(room, "levelled")
			bob.Hears(room, "levelled")
			sameState(t, alice, bob, room)
			bob.Refused(403, "M_FORBIDDEN", "PUT", hstest.Path("rooms", string(room), "state", "m.room.name", ""), map[string]any{"name": "no more"})

			// One side bans whom the other talks with.
			parted(a, b, alice, bob, room, func() {
				if _, err := alice.BanUser(t.Context(), room, &mautrix.ReqBanUser{UserID: dave.UserID}); err != nil {
					t.Fatal(err)
				}
				dave.Say(room, "I am still here")
				setDisplayName(t, dave, "Dave the second")
			})
			alice.Say(room, "banned")
			bob.Hears(room, "banned")
			sameState(t, alice, bob, room)
			for _, o := range []*hstest.User{alice, bob} {
				if m := membership(o, room, dave.UserID); m != "ban" {
					t.Errorf("%s sees dave as %q", o.UserID, m)
				}
			}
			dave.SyncUntil("his ban", func(r *mautrix.RespSync) bool { return r.Rooms.Leave[room] != nil })
			dave.Refused(403, "M_FORBIDDEN", "PUT", hstest.Path("rooms", string(room), "send", "m.room.message", "x"), map[string]string{"msgtype": "m.text", "body": "x"})
			if l := dave.OK("GET", hstest.Path("joined_rooms"), nil).Get("joined_rooms").Array(); len(l) != 0 {
				t.Errorf("dave is still joined to %v", l)
			}
			if slices.Contains(b.Hub().Members(roomID(room)), matrixUser(dave)) {
				t.Error("the hub still has dave in the room")
			}

			// Nobody has lost or doubled a message.
			for _, u := range []*hstest.User{alice, bob} {
				seen := map[string]int{}
				for _, s := range texts(u, room) {
					seen[s]++
				}
				for _, s := range []string{"ready", "carol is here", "dave is here", "merged", "levelled", "banned"} {
					if s == "ready" && u == bob {
						continue
					}
					if seen[s] != 1 {
						t.Errorf("%s reads %q %d times", u.UserID, s, seen[s])
					}
				}
			}
			// After a restart all is as before.
			before := stateOf(bob, room)
			b.Stop()
			b.Start()
			if after := stateOf(bob, room); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("after a restart the state is %v, before %v", after, before)
			}
			bob.Say(room, "back")
			alice.Hears(room, "back")
		})
	}
}

func setDisplayName(t *testing.T, u *hstest.User, name string) {
	t.Helper()
	if err := u.SetDisplayName(t.Context(), name); err != nil {
		t.Fatal(err)
	}
}

func TestForkedMembership(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob, dave := a.User("alice"), b.User("bob"), b.User("dave")
	room := forkedRoom(t, "12", alice, bob, a)
	join(dave, room, a)
	alice.SyncUntil("dave", func(*mautrix.RespSync) bool { return membership(alice, room, dave.UserID) == "join" })
	// Dave leaves and comes back on his side, is kicked on the other.
	parted(a, b, alice, bob, room, func() {
		if _, err := dave.LeaveRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		dave.OK("POST", hstest.Path("join", string(room)), "{}")
		if _, err := alice.KickUser(t.Context(), room, &mautrix.ReqKickUser{UserID: dave.UserID}); err != nil {
			t.Fatal(err)
		}
	})
	alice.Say(room, "settled")
	bob.Hears(room, "settled")
	sameState(t, alice, bob, room)
	m := membership(bob, room, dave.UserID)
	joined := len(dave.OK("GET", hstest.Path("joined_rooms"), nil).Get("joined_rooms").Array()) == 1
	if joined != (m == "join") {
		t.Errorf("dave is %q by the state, joined by his list: %v", m, joined)
	}
	if has := slices.Contains(a.Hub().Members(roomID(room)), matrixUser(dave)); has != (m == "join") {
		t.Errorf("dave is %q by the state, in a's hub: %v", m, has)
	}
	if has := slices.Contains(b.Hub().Members(roomID(room)), matrixUser(dave)); has != (m == "join") {
		t.Errorf("dave is %q by the state, in b's hub: %v", m, has)
	}
	b.Stop()
	b.Start()
	if has := slices.Contains(b.Hub().Members(roomID(room)), matrixUser(dave)); has != (m == "join") {
		t.Errorf("after a restart dave is in b's hub: %v", has)
	}
	in := dave.RawSync("").Get("rooms.join." + gjson.Escape(string(room))).Exists()
	if in != (m == "join") {
		t.Errorf("dave is %q by the state, in his sync: %v", m, in)
	}
}

// What resolution takes back stands before the timeline, for clients that know of
// nothing better.
func TestResolutionIsTold(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	room := forkedRoom(t, "11", alice, bob, a)
	setState(t, alice, room, "m.room.topic", "", map[string]any{"topic": "agreed"})
	b.Eventually("the topic comes", func() bool { return stateString(bob, room, "m.room.topic", "topic") == "agreed" })
	since := ""
	parted(a, b, alice, bob, room, func() {
		setState(t, bob, room, "m.room.topic", "", map[string]any{"topic": "bob's"})
		since = bob.RawSync("").Get("next_batch").Str
		levels := alice.OK("GET", hstest.Path("rooms", string(room), "state", "m.room.power_levels", ""), nil).Value().(map[string]any)
		levels["users"].(map[string]any)[string(bob.UserID)] = 0
		setState(t, alice, room, "m.room.power_levels", "", levels)
	})
	alice.Say(room, "merged")
	bob.Hears(room, "merged")
	b.Eventually("the topic is taken back", func() bool { return stateString(bob, room, "m.room.topic", "topic") == "agreed" })
	for _, filter := range []string{"{}", `{"room":{"state":{"lazy_load_members":true}}}`} {
		r := bob.RawSync(since, "filter="+filter).Get("rooms.join." + gjson.Escape(string(room)))
		if got := r.Get(`state.events.#(type=="m.room.topic").content.topic`).Str; got != "agreed" || !strings.Contains(r.Get("timeline").Raw, "merged") {
			t.Errorf("with %s: %s", filter, r.Raw)
		}
	}
}
