package hstest_test

import (
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/hstest"
)

func TestGuestsAreWhereTheyMayBe(t *testing.T) {
	t.Parallel()
	s := hstest.New(t, func(o *homeserver.Options) { o.Registration.Guests = true })
	alice := s.User("alice")
	reg := s.Do("", "POST", hstest.Path("register")+"?kind=guest", "{}")
	guest, token := id.UserID(reg.Get("user_id").Str), reg.Get("access_token").Str
	access := func(room id.RoomID, v string) {
		alice.OK("PUT", hstest.Path("rooms", string(room), "state", "m.room.guest_access", ""), map[string]string{"guest_access": v})
	}
	room := create(alice, map[string]any{"preset": "public_chat"})
	join := func() hstest.Answer { return s.Do(token, "POST", hstest.Path("rooms", string(room), "join"), "{}") }
	want(t, "a guest joins where guests are not let in", join(), 403, "M_GUEST_ACCESS_FORBIDDEN")
	want(t, "a guest joins a room far away", s.Do(token, "POST", hstest.Path("join", "!far:b.example")+"?via=b.example", "{}"), 403, "M_GUEST_ACCESS_FORBIDDEN")
	access(room, "can_join")
	want(t, "a guest joins", join(), 200, "")
	want(t, "a guest writes", s.Do(token, "PUT", hstest.Path("rooms", string(room), "send", "m.room.message", "1"), text("hello")), 200, "")
	access(room, "forbidden")
	s.Eventually("the guest is out", func() bool { return membership(alice, room, guest) == "leave" })
	s.Eventually("the guest is refused", func() bool { return join().Code() == "M_GUEST_ACCESS_FORBIDDEN" })
	if membership(alice, room, alice.UserID) != "join" {
		t.Error("alice was taken out too")
	}
	want(t, "a guest makes a room", s.Do(token, "POST", hstest.Path("createRoom"), "{}"), 403, "M_GUEST_ACCESS_FORBIDDEN")

	access(room, "can_join")
	want(t, "a guest joins", join(), 200, "")
	bob := s.User("bob")
	for _, action := range []string{"invite", "kick", "ban", "unban"} {
		want(t, "a guest: "+action, s.Do(token, "POST", hstest.Path("rooms", string(room), action), map[string]string{"user_id": string(bob.UserID)}), 403, "M_GUEST_ACCESS_FORBIDDEN")
	}
	want(t, "a guest invites by the state", s.Do(token, "PUT", hstest.Path("rooms", string(room), "state", "m.room.member", string(bob.UserID)), map[string]string{"membership": "invite"}), 403, "M_GUEST_ACCESS_FORBIDDEN")
	profile := func(field string) hstest.Answer {
		return s.Do(token, "PUT", hstest.Path("profile", string(guest), field), map[string]string{field: "mxc://a.example/x"})
	}
	want(t, "a guest's name", profile("displayname"), 200, "")
	want(t, "a guest's avatar", profile("avatar_url"), 403, "M_GUEST_ACCESS_FORBIDDEN")

	// The room closes in the moment in which the server stops.
	access(room, "forbidden")
	s.Stop()
	s.Start()
	s.Eventually("the guest is out after a restart", func() bool { return membership(alice, room, guest) == "leave" })
}
