package hstest_test

import (
	"fmt"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// texts lists what was said in a room, from the beginning of what the user may
// see of it.
func texts(u *hstest.User, room id.RoomID) (out []string) {
	u.OK("GET", hstest.Path("rooms", string(room), "messages")+"?dir=f&limit=1000", nil).Get("chunk").ForEach(func(_, e gjson.Result) bool {
		if e.Get("type").Str == "m.room.message" {
			out = append(out, e.Get("content.body").Str)
		}
		return true
	})
	return out
}

// membership is a user's membership as another one sees it.
func membership(u *hstest.User, room id.RoomID, of id.UserID) string {
	return u.Do("GET", hstest.Path("rooms", string(room), "state", "m.room.member", string(of)), nil).Get("membership").Str
}

// invited waits for an invitation and gives its stripped state.
func invited(u *hstest.User, room id.RoomID) (stripped []*event.Event) {
	u.SyncUntil("an invitation", func(r *mautrix.RespSync) bool {
		i := r.Rooms.Invite[room]
		if i != nil {
			stripped = i.State.Events
		}
		return i != nil
	})
	return stripped
}

func TestFederatedRoomByAlias(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "public_chat", Name: "总部", RoomAliasName: "hq"})
	alice.Say(room, "before bob came")
	alias := "#hq:" + string(a.Name)
	if got := bob.OK("POST", hstest.Path("join", alias), map[string]any{}).Get("room_id").Str; got != string(room) {
		t.Fatalf("joined %s, want %s", got, room)
	}
	j := bob.Sync(0).Rooms.Join[room]
	if j == nil {
		t.Fatal("the joined room is not in bob's sync")
	}
	seen := map[string]bool{}
	for _, e := range append(slices.Clone(j.State.Events), j.Timeline.Events...) {
		seen[e.Type.Type+"|"+e.GetStateKey()] = true
	}
	for _, key := range []string{"m.room.create|", "m.room.name|", "m.room.power_levels|", "m.room.member|" + string(alice.UserID), "m.room.member|" + string(bob.UserID)} {
		if !seen[key] {
			t.Errorf("bob's first sync lacks %s", key)
		}
	}
	alice.Hears(room, "before bob came")
	for i := range 3 {
		alice.Say(room, fmt.Sprintf("a%d", i))
		bob.Hears(room, fmt.Sprintf("a%d", i))
		bob.Say(room, fmt.Sprintf("b%d", i))
		alice.Hears(room, fmt.Sprintf("b%d", i))
	}
	want := []string{"a0", "b0", "a1", "b1", "a2", "b2"}
	if got := texts(alice, room); !slices.Equal(got, append([]string{"before bob came"}, want...)) {
		t.Errorf("alice reads %v", got)
	}
	if got := texts(bob, room); len(got) < 6 || !slices.Equal(got[len(got)-6:], want) {
		t.Errorf("bob reads %v", got)
	}
	for _, u := range []*hstest.User{alice, bob} {
		m := u.OK("GET", hstest.Path("rooms", string(room), "joined_members"), nil).Get("joined")
		if len(m.Map()) != 2 {
			t.Errorf("%s sees the members %s", u.UserID, m.Raw)
		}
	}
}

func TestFederatedInvitations(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "private_chat", Name: "机密", IsDirect: true, Invite: []id.UserID{bob.UserID}})
	name, direct := "", false
	for _, e := range invited(bob, room) {
		switch e.Type.Type {
		case "m.room.name":
			name, _ = e.Content.Raw["name"].(string)
		case "m.room.member":
			if e.GetStateKey() == string(bob.UserID) {
				direct, _ = e.Content.Raw["is_direct"].(bool)
			}
		}
	}
	if name != "机密" || !direct {
		t.Errorf("the invitation shows the name %q, direct %v", name, direct)
	}
	if _, err := bob.JoinRoomByID(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	alice.SyncUntil("bob's join", func(*mautrix.RespSync) bool { return membership(alice, room, bob.UserID) == "join" })
	alice.Say(room, "welcome")
	bob.Hears(room, "welcome")

	// Declined.
	second := alice.Room(&mautrix.ReqCreateRoom{Preset: "private_chat", Invite: []id.UserID{bob.UserID}})
	invited(bob, second)
	if _, err := bob.LeaveRoom(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	a.Eventually("bob declines", func() bool { return membership(alice, second, bob.UserID) == "leave" })
	bob.SyncUntil("the declined room", func(r *mautrix.RespSync) bool { return r.Rooms.Leave[second] != nil })
	bob.Refused(403, "M_FORBIDDEN", "POST", hstest.Path("join", string(second))+"?via="+url.QueryEscape(string(a.Name)), "{}")

	// Taken back.
	third := alice.Room(&mautrix.ReqCreateRoom{Preset: "private_chat", Invite: []id.UserID{bob.UserID}})
	invited(bob, third)
	if _, err := alice.KickUser(t.Context(), third, &mautrix.ReqKickUser{UserID: bob.UserID, Reason: "a mistake"}); err != nil {
		t.Fatal(err)
	}
	bob.SyncUntil("the end of the invitation", func(r *mautrix.RespSync) bool { return r.Rooms.Leave[third] != nil })
	if r := bob.RawSync(""); r.Get("rooms.invite." + gjson.Escape(string(third))).Exists() {
		t.Error("the invitation that was taken back is in the initial sync")
	}

	alice.Refused(404, "M_NOT_FOUND", "POST", hstest.Path("rooms", string(third), "invite"), map[string]string{"user_id": "@nobody:" + string(b.Name)})
}

func TestFederatedReceiptsAndTyping(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	room := alice.Room(nil)
	join(bob, room, a)
	ev := alice.Say(room, "read me")
	bob.Hears(room, "read me")
	if err := bob.MarkRead(t.Context(), room, ev); err != nil {
		t.Fatal(err)
	}
	alice.SyncUntil("bob's receipt", ephemeral(room, "m.receipt", func(c map[string]any) bool { _, ok := c[string(ev)]; return ok }))
	if _, err := bob.UserTyping(t.Context(), room, true, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	alice.SyncUntil("bob typing", ephemeral(room, "m.typing", func(c map[string]any) bool {
		l, _ := c["user_ids"].([]any)
		return len(l) == 1 && l[0] == string(bob.UserID)
	}))
	if _, err := bob.UserTyping(t.Context(), room, false, 0); err != nil {
		t.Fatal(err)
	}
	alice.SyncUntil("bob stopping", ephemeral(room, "m.typing", func(c map[string]any) bool {
		l, _ := c["user_ids"].([]any)
		return len(l) == 0
	}))
}

// join joins a room through a server.
func join(u *hstest.User, room id.RoomID, via *hstest.Server) {
	u.OK("POST", hstest.Path("join", string(room))+"?via="+url.QueryEscape(string(via.Name)), "{}")
}

// ephemeral looks for an ephemeral event of a room.
func ephemeral(room id.RoomID, typ string, match func(map[string]any) bool) func(*mautrix.RespSync) bool {
	return func(r *mautrix.RespSync) bool {
		if j := r.Rooms.Join[room]; j != nil {
			for _, e := range j.Ephemeral.Events {
				if e.Type.Type == typ && match(e.Content.Raw) {
					return true
				}
			}
		}
		return false
	}
}

func TestFederatedLeaveKickBanAndReturn(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob, carol := a.User("alice"), b.User("bob"), b.User("carol")
	room := alice.Room(nil)
	join(bob, room, a)
	join(carol, room, a)
	a.Eventually("all are in", func() bool { return len(a.Rooms().JoinedMembers(roomID(room))) == 3 })
	if _, err := carol.LeaveRoom(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	a.Eventually("carol leaves", func() bool { return membership(alice, room, carol.UserID) == "leave" })

	if _, err := alice.KickUser(t.Context(), room, &mautrix.ReqKickUser{UserID: bob.UserID}); err != nil {
		t.Fatal(err)
	}
	bob.SyncUntil("the kick", func(r *mautrix.RespSync) bool { return r.Rooms.Leave[room] != nil })
	bob.Refused(403, "M_FORBIDDEN", "PUT", hstest.Path("rooms", string(room), "send", "m.room.message", "k1"), map[string]string{"msgtype": "m.text", "body": "x"})

	// What happens while nobody of b is there.
	alice.Say(room, "among ourselves")
	if _, err := alice.SendStateEvent(t.Context(), room, event.StateRoomName, "", map[string]any{"name": "new name"}); err != nil {
		t.Fatal(err)
	}
	join(bob, room, a)
	if got := bob.OK("GET", hstest.Path("rooms", string(room), "state", "m.room.name"), nil).Get("name").Str; got != "new name" {
		t.Errorf("after coming back bob sees the name %q", got)
	}
	if m := membership(bob, room, carol.UserID); m != "leave" {
		t.Errorf("after coming back bob sees carol as %q", m)
	}
	alice.Say(room, "again together")
	bob.Hears(room, "again together")
	bob.Say(room, "yes")
	alice.Hears(room, "yes")

	if _, err := alice.BanUser(t.Context(), room, &mautrix.ReqBanUser{UserID: bob.UserID}); err != nil {
		t.Fatal(err)
	}
	bob.SyncUntil("the ban", func(r *mautrix.RespSync) bool { return r.Rooms.Leave[room] != nil })
	bob.Refused(403, "M_FORBIDDEN", "POST", hstest.Path("join", string(room))+"?via="+url.QueryEscape(string(a.Name)), "{}")
	if _, err := alice.UnbanUser(t.Context(), room, &mautrix.ReqUnbanUser{UserID: bob.UserID}); err != nil {
		t.Fatal(err)
	}
	join(bob, room, a)
	alice.Say(room, "unbanned")
	bob.Hears(room, "unbanned")
}

func TestFederationOutlivesStops(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	room := alice.Room(nil)
	join(bob, room, a)
	alice.Say(room, "0")
	bob.Hears(room, "0")

	b.Stop()
	var want []string
	say := func(from, to int) {
		for i := from; i < to; i++ {
			alice.Say(room, fmt.Sprint(i))
			want = append(want, fmt.Sprint(i))
		}
	}
	say(1, 6)
	b.Start()
	bob.Hears(room, "5")

	b.Stop()
	say(6, 11)
	a.Stop()
	a.Start()
	say(11, 13)
	b.Start()
	bob.Hears(room, "12")
	if got := texts(bob, room); !slices.Equal(got[len(got)-len(want):], want) {
		t.Errorf("bob reads %v, want %v at the end", got, want)
	}
	bob.Say(room, "got them all")
	alice.Hears(room, "got them all")
	for _, u := range []*hstest.User{alice, bob} {
		seen := map[string]int{}
		for _, s := range texts(u, room) {
			if seen[s]++; seen[s] > 1 {
				t.Errorf("%s reads %q %d times", u.UserID, s, seen[s])
			}
		}
	}
}

func TestFederatedLookUps(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	if err := alice.SetDisplayName(t.Context(), "王小丽"); err != nil {
		t.Fatal(err)
	}
	if got := bob.OK("GET", hstest.Path("profile", string(alice.UserID)), nil).Get("displayname").Str; got != "王小丽" {
		t.Errorf("bob sees the name %q", got)
	}
	bob.Refused(404, "M_NOT_FOUND", "GET", hstest.Path("profile", "@nobody:"+string(a.Name)), nil)
	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "public_chat", Visibility: "public", RoomAliasName: "plaza", Name: "Plaza"})
	got := bob.OK("GET", hstest.Path("directory", "room", "#plaza:"+string(a.Name)), nil)
	if got.Get("room_id").Str != string(room) || got.Get("servers.0").Str != string(a.Name) {
		t.Errorf("the alias leads to %s", got.Raw)
	}
	bob.Refused(404, "M_NOT_FOUND", "GET", hstest.Path("directory", "room", "#none:"+string(a.Name)), nil)
	list := bob.OK("GET", hstest.Path("publicRooms")+"?server="+url.QueryEscape(string(a.Name)), nil)
	if list.Get("chunk.0.room_id").Str != string(room) || list.Get("chunk.0.name").Str != "Plaza" {
		t.Errorf("a's public rooms, seen from b: %s", list.Raw)
	}
}

func TestFederatedKnockAndRestricted(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	knock := alice.Room(&mautrix.ReqCreateRoom{Preset: "private_chat", Name: "behind a door", InitialState: []*event.Event{
		state("m.room.join_rules", map[string]any{"join_rule": "knock"}),
	}})
	bob.OK("POST", hstest.Path("knock", string(knock))+"?via="+url.QueryEscape(string(a.Name)), map[string]string{"reason": "let me in"})
	bob.SyncUntil("his knock", func(r *mautrix.RespSync) bool { return r.Rooms.Knock[knock] != nil })
	a.Eventually("the knock is heard", func() bool { return membership(alice, knock, bob.UserID) == "knock" })
	if _, err := alice.InviteUser(t.Context(), knock, &mautrix.ReqInviteUser{UserID: bob.UserID}); err != nil {
		t.Fatal(err)
	}
	invited(bob, knock)
	join(bob, knock, a)
	alice.Say(knock, "come in")
	bob.Hears(knock, "come in")

	department := alice.Room(&mautrix.ReqCreateRoom{Preset: "private_chat", InitialState: []*event.Event{
		state("m.room.join_rules", map[string]any{"join_rule": "restricted", "allow": []any{map[string]any{"type": "m.room_membership", "room_id": knock}}}),
	}})
	join(bob, department, a)
	alice.Say(department, "by membership")
	bob.Hears(department, "by membership")
	carol := b.User("carol")
	carol.Refused(403, "M_FORBIDDEN", "POST", hstest.Path("join", string(department))+"?via="+url.QueryEscape(string(a.Name)), "{}")
}

func state(typ string, content map[string]any) *event.Event {
	key := ""
	return &event.Event{Type: event.Type{Type: typ, Class: event.StateEventType}, StateKey: &key, Content: event.Content{Raw: content}}
}

func TestFederatedRedaction(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	room := alice.Room(nil)
	join(bob, room, a)
	ev := bob.Say(room, "a slip")
	alice.Hears(room, "a slip")
	if _, err := alice.RedactEvent(t.Context(), room, ev, mautrix.ReqRedact{Reason: "no"}); err != nil {
		t.Fatal(err)
	}
	b.Eventually("the redaction arrives", func() bool {
		e := bob.OK("GET", hstest.Path("rooms", string(room), "event", string(ev)), nil)
		return !e.Get("content.body").Exists() && e.Get("unsigned.redacted_because.content.reason").Str == "no"
	})
}

func TestThreeServers(t *testing.T) {
	t.Parallel()
	a, b, c := hstest.Trio(t)
	alice, bob, carol := a.User("alice"), b.User("bob"), c.User("carol")
	room := alice.Room(nil)
	join(bob, room, a)
	join(carol, room, b) // through one that did not create it
	// Who speaks before he has heard of the third speaks to two: that is told
	// elsewhere.
	a.Eventually("the founder hears of the third", func() bool { return membership(alice, room, carol.UserID) == "join" })
	for _, u := range []*hstest.User{alice, bob, carol} {
		u.Say(room, "here is "+u.UserID.Localpart())
	}
	for _, u := range []*hstest.User{alice, bob, carol} {
		for _, o := range []string{"alice", "bob", "carol"} {
			u.Hears(room, "here is "+o)
		}
	}
	// The founder leaves; the others stay together.
	if _, err := alice.LeaveRoom(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	b.Eventually("alice leaves", func() bool { return membership(bob, room, alice.UserID) == "leave" })
	c.Eventually("alice leaves", func() bool { return membership(carol, room, alice.UserID) == "leave" })
	bob.Say(room, "without her")
	carol.Hears(room, "without her")
	join(alice, room, c)
	carol.Say(room, "with her")
	alice.Hears(room, "with her")
}

func TestFederationInEveryRoomVersion(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	for v := 1; v <= 12; v++ {
		version := fmt.Sprint(v)
		room := alice.Room(&mautrix.ReqCreateRoom{Preset: "private_chat", RoomVersion: id.RoomVersion(version), Invite: []id.UserID{bob.UserID}})
		invited(bob, room)
		join(bob, room, a)
		ev := alice.Say(room, "version "+version)
		if heard := bob.Hears(room, "version "+version); heard.ID != ev {
			t.Errorf("version %s: sent %s, heard %s", version, ev, heard.ID)
		}
		bob.Say(room, "answer "+version)
		alice.Hears(room, "answer "+version)
		red := bob.Say(room, "gone "+version)
		alice.Hears(room, "gone "+version)
		if _, err := bob.RedactEvent(t.Context(), room, red); err != nil {
			t.Fatal(err)
		}
		a.Eventually("redaction in version "+version, func() bool {
			return !alice.OK("GET", hstest.Path("rooms", string(room), "event", string(red)), nil).Get("content.body").Exists()
		})
	}
}
