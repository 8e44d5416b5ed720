package hstest_test

import (
	"testing"

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
