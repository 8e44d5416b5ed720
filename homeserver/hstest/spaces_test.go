package hstest_test

import (
	"strings"
	"testing"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/hstest"
)

const v1 = "/_matrix/client/v1"

// tree is the names of the rooms below a space, as a user sees it.
func tree(u *hstest.User, space string) string {
	var names []string
	u.OK("GET", v1+"/rooms/"+space+"/hierarchy", nil).Get("rooms.#.name").ForEach(func(_, n gjson.Result) bool {
		names = append(names, n.Str)
		return true
	})
	return strings.Join(names, " ")
}

// A tree goes over two servers and back; a summary is found through either.
func TestFederatedSpaces(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	space := map[string]any{"preset": "public_chat", "creation_content": map[string]any{"type": "m.space"}}
	makeRoom := func(u *hstest.User, name string, of map[string]any) string {
		body := map[string]any{"preset": "public_chat", "name": name}
		for k, v := range of {
			body[k] = v
		}
		return string(create(u, body))
	}
	link := func(u *hstest.User, from, to string, via *hstest.Server) {
		u.OK("PUT", hstest.Path("rooms", from, "state", "m.space.child", to), map[string]any{"via": []string{string(via.Name)}})
	}
	root, sub := makeRoom(alice, "root", space), makeRoom(bob, "sub", space)
	near, far := makeRoom(alice, "near", nil), makeRoom(bob, "far", map[string]any{"topic": "Far away"})
	secret := makeRoom(bob, "secret", map[string]any{"preset": "private_chat"})
	link(alice, root, sub, b)
	link(bob, sub, far, b)
	link(bob, sub, secret, b)
	link(bob, sub, near, a)
	if got := tree(alice, root); got != "root sub far near" {
		t.Errorf("alice sees %s", got)
	}
	sum := alice.OK("GET", v1+"/room_summary/"+far+"?via="+string(b.Name), nil)
	if sum.Get("topic").Str != "Far away" || sum.Get("membership").Str != "leave" || sum.Get("num_joined_members").Int() != 1 {
		t.Errorf("summary %s", sum.Raw)
	}
	alice.Refused(404, "M_NOT_FOUND", "GET", v1+"/room_summary/"+secret+"?via="+string(b.Name), nil)
	bob.OK("POST", hstest.Path("rooms", secret, "invite"), map[string]any{"user_id": alice.UserID})
	invited(alice, id.RoomID(secret))
	if got := alice.OK("GET", v1+"/room_summary/"+secret, nil); got.Get("name").Str != "secret" || got.Get("membership").Str != "invite" {
		t.Errorf("summary of an invitation %s", got.Raw)
	}
}

// Who upgrades is on another server; tags come along with the join.
func TestFederatedUpgrade(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	old := alice.Room(&mautrix.ReqCreateRoom{Preset: "public_chat", RoomVersion: "11"})
	bob.OK("POST", hstest.Path("join", string(old))+"?via="+string(a.Name), map[string]any{})
	bob.OK("PUT", hstest.Path("user", string(bob.UserID), "rooms", string(old), "tags", "m.favourite"), map[string]any{"order": 0.5})
	to := alice.OK("POST", hstest.Path("rooms", string(old), "upgrade"), map[string]any{"new_version": "12"}).Get("replacement_room").Str
	b.Eventually("the tombstone", func() bool { return stateString(bob, old, "m.room.tombstone", "replacement_room") == to })
	bob.OK("POST", hstest.Path("join", to)+"?via="+string(a.Name), map[string]any{})
	b.Eventually("the tag", func() bool {
		return bob.OK("GET", hstest.Path("user", string(bob.UserID), "rooms", to, "tags"), nil).Get(`tags.m\.favourite.order`).Num == 0.5
	})
	bob.Refused(403, "M_FORBIDDEN", "PUT", hstest.Path("rooms", string(old), "send", "m.room.message", "1"), text("still here"))
}

// Blocked invitations are refused on both sides and not shown; those of an
// application service's own user come through.
func TestBlockedInvitations(t *testing.T) {
	t.Parallel()
	as := &accounts.ApplicationService{ID: "staff", ASToken: "as-secret", HSToken: "hs-secret", SenderLocalpart: "staff"}
	a, b := hstest.Pair(t, hstest.With(as))
	alice, bob, carol := a.User("alice"), b.User("bob"), a.User("carol")
	room, early := create(bob, map[string]any{"preset": "private_chat"}), create(carol, map[string]any{"preset": "private_chat"})
	near := create(carol, map[string]any{"preset": "private_chat"})
	invite := func(room string) string { return hstest.Path("rooms", room, "invite") }
	who := map[string]any{"user_id": alice.UserID}
	carol.OK("POST", invite(string(early)), who)
	config := hstest.Path("user", string(alice.UserID), "account_data", "m.invite_permission_config")
	alice.OK("PUT", config, map[string]any{"default_action": "block"})

	bob.Refused(403, "M_INVITE_BLOCKED", "POST", invite(string(room)), who)
	carol.Refused(403, "M_INVITE_BLOCKED", "POST", invite(string(near)), who)
	carol.Refused(403, "M_INVITE_BLOCKED", "PUT", hstest.Path("rooms", string(near), "state", "m.room.member", string(alice.UserID)), map[string]any{"membership": "invite"})
	if got := carol.OK("POST", hstest.Path("createRoom"), map[string]any{"invite": []any{alice.UserID}}).Get("room_id").Str; got == "" {
		t.Error("the room was not created")
	}
	if got := alice.RawSync("").Get("rooms.invite"); got.Exists() {
		t.Errorf("alice is shown %s", got.Raw)
	}
	staff := func(method, path string, body any) gjson.Result {
		r := a.Do("as-secret", method, path, body)
		if r.Status != 200 {
			t.Fatalf("%s %s: %d %s", method, path, r.Status, r.Body)
		}
		return gjson.ParseBytes(r.Body)
	}
	office := staff("POST", hstest.Path("createRoom"), map[string]any{"preset": "private_chat"}).Get("room_id").Str
	staff("POST", invite(office), who)
	if got := alice.RawSync("").Get("rooms.invite"); !got.Get(gjson.Escape(office)).Exists() || len(got.Map()) != 1 {
		t.Errorf("alice is shown %s", got.Raw)
	}
	alice.OK("PUT", config, map[string]any{})
	bob.OK("POST", invite(string(room)), who)
	if got := alice.RawSync("").Get("rooms.invite"); len(got.Map()) != 3 {
		t.Errorf("alice is shown %s", got.Raw)
	}
}
