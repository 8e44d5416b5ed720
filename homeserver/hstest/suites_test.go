package hstest_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// What public suites for homeservers expect beside the letter of the specification.

func TestCreatorsLevelIsAMistakeOfTheClient(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice := s.User("alice")
	levels := map[string]any{"users": map[string]int{string(alice.UserID): 100}}
	alice.Refused(400, "M_INVALID_PARAM", "POST", hstest.Path("createRoom"), map[string]any{"room_version": "12", "power_level_content_override": levels})
	room := create(alice, map[string]any{"room_version": "12"})
	alice.Refused(400, "M_INVALID_PARAM", "PUT", hstest.Path("rooms", string(room), "state", "m.room.power_levels", ""), levels)
	alice.Refused(400, "M_INVALID_PARAM", "PUT", hstest.Path("rooms", string(room), "state", "m.room.create", ""), map[string]string{"room_version": "12"})
	alice.Refused(403, "M_FORBIDDEN", "PUT", hstest.Path("rooms", string(room), "state", "m.room.member", "@nobody:a.example"), map[string]string{"membership": "join"})
}

func TestJoinsCarryFurtherFields(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := create(alice, map[string]any{"preset": "public_chat"})
	bob.OK("POST", hstest.Path("join", string(room)), map[string]any{"im.carillon.desk": 3, "reason": "new", "membership": "ban", "join_authorised_via_users_server": "@x:y"})
	c := alice.OK("GET", hstest.Path("rooms", string(room), "state", "m.room.member", string(bob.UserID)), nil)
	if c.Get("im\\.carillon\\.desk").Int() != 3 || c.Get("reason").Str != "new" || c.Get("membership").Str != "join" || c.Get("join_authorised_via_users_server").Exists() {
		t.Errorf("the join is %s", c.Raw)
	}
}

func TestWhoMayRedactOthersMayRedactTheUnknown(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	alice.OK("PUT", hstest.Path("rooms", string(room), "redact", "$elsewhere", "1"), "{}")
	bob.Refused(404, "M_NOT_FOUND", "PUT", hstest.Path("rooms", string(room), "redact", "$elsewhere", "1"), "{}")
}

func TestWhoIsSentAwayHearsOfItByAFirstSync(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob, carol, dave := s.User("alice"), s.User("bob"), s.User("carol"), s.User("dave")
	room := alice.Room(nil, bob, carol, dave)
	if _, err := alice.KickUser(t.Context(), room, &mautrix.ReqKickUser{UserID: bob.UserID}); err != nil {
		t.Fatal(err)
	}
	if _, err := alice.BanUser(t.Context(), room, &mautrix.ReqBanUser{UserID: carol.UserID}); err != nil {
		t.Fatal(err)
	}
	if _, err := dave.LeaveRoom(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	left := func(u *hstest.User) bool {
		return u.RawSync("").Get("rooms.leave." + gjson.Escape(string(room))).Exists()
	}
	if !left(bob) || !left(carol) || left(dave) {
		t.Errorf("kicked %v, banned %v, left %v", left(bob), left(carol), left(dave))
	}
	bob.OK("POST", hstest.Path("rooms", string(room), "forget"), "{}")
	if left(bob) {
		t.Error("a forgotten room is back")
	}
	if e := alice.RawSync("").Get("rooms.join." + gjson.Escape(string(room)) + ".ephemeral.events"); !e.IsArray() {
		t.Errorf("ephemeral events of a first sync: %s", e.Raw)
	}
}

func TestOldPushActionsAreKept(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice := s.User("alice")
	rule := hstest.Path("pushrules", "global", "sender", string(alice.UserID))
	alice.OK("PUT", rule, map[string]any{"actions": []string{"dont_notify"}})
	if got := alice.OK("GET", rule, nil).Get("actions.0").Str; got != "dont_notify" {
		t.Errorf("the action is %q", got)
	}
	alice.Refused(404, "M_NOT_FOUND", "GET", hstest.Path("pushrules", "global", "postcontent", "x"), nil)
}

func TestHistoryOfAnotherServerIsFetchedAsFarAsAPageNeeds(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	room := create(alice, map[string]any{"preset": "public_chat"})
	const n = 230
	sent := make([]string, n)
	for i := range n {
		sent[i] = send(alice, room, strconv.Itoa(i), strconv.Itoa(i))
	}
	join(bob, room, a)
	var got []string
	for from := ""; ; {
		query := "?dir=b&limit=200"
		if from != "" {
			query += "&from=" + from
		}
		p := bob.OK("GET", hstest.Path("rooms", string(room), "messages")+query, nil)
		for _, e := range p.Get("chunk").Array() {
			if e.Get("type").Str == "m.room.message" {
				got = append(got, e.Get("event_id").Str)
			}
		}
		if from = p.Get("end").Str; from == "" {
			break
		}
	}
	slices.Reverse(got)
	if !slices.Equal(got, sent) {
		t.Errorf("%d of %d messages, or in another order", len(got), n)
	}
}

func TestTheEventNextToATimeIsFoundOnAnotherServer(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	room := create(alice, map[string]any{"preset": "public_chat"})
	first := send(alice, room, "1", "first")
	ts := alice.OK("GET", hstest.Path("rooms", string(room), "event", first), nil).Get("origin_server_ts").Int()
	time.Sleep(3 * time.Millisecond)
	send(alice, room, "2", "second")
	join(bob, room, a)
	at := strings.Replace(hstest.Path("rooms", string(room), "timestamp_to_event"), "/v3/", "/v1/", 1)
	found := bob.OK("GET", fmt.Sprintf("%s?dir=b&ts=%d", at, ts), nil)
	if found.Get("event_id").Str != first || found.Get("origin_server_ts").Int() != ts {
		t.Fatalf("found %s, not %s", found.Raw, first)
	}
	bob.OK("GET", hstest.Path("rooms", string(room), "context", first), nil)
}

func TestOnlyWhoInvitedTakesAnInvitationBackFromAfar(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, carol, bob := a.User("alice"), a.User("carol"), b.User("bob")
	for _, c := range []struct {
		kicker *hstest.User
		ends   bool
	}{{alice, false}, {carol, true}} {
		room := create(alice, map[string]any{"invite": []string{string(carol.UserID)}})
		carol.OK("POST", hstest.Path("join", string(room)), "{}")
		carol.OK("POST", hstest.Path("rooms", string(room), "invite"), map[string]string{"user_id": string(bob.UserID)})
		invited := func() bool { return bob.RawSync("").Get("rooms.invite." + gjson.Escape(string(room))).Exists() }
		b.Eventually("the invitation", invited)
		if c.kicker == carol {
			alice.OK("PUT", hstest.Path("rooms", string(room), "state", "m.room.power_levels", ""), map[string]any{"users": map[string]int{string(carol.UserID): 50}})
		}
		c.kicker.OK("POST", hstest.Path("rooms", string(room), "kick"), map[string]string{"user_id": string(bob.UserID)})
		// Something that comes after it over the same way.
		probe := create(alice, map[string]any{"invite": []string{string(bob.UserID)}})
		b.Eventually("another invitation", func() bool { return bob.RawSync("").Get("rooms.invite." + gjson.Escape(string(probe))).Exists() })
		if c.ends {
			b.Eventually("the end of the invitation", func() bool { return !invited() })
		} else if !invited() {
			t.Error("somebody else took the invitation back")
		}
	}
}
