package hstest_test

import (
	"fmt"
	"net/url"
	"slices"
	"testing"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

func text(s string) map[string]string { return map[string]string{"msgtype": "m.text", "body": s} }

// send sends a message with a transaction ID of the test's own.
func send(u *hstest.User, room id.RoomID, txn, body string) string {
	return u.OK("PUT", hstest.Path("rooms", string(room), "send", "m.room.message", txn), text(body)).Get("event_id").Str
}

func create(u *hstest.User, body map[string]any) id.RoomID {
	return id.RoomID(u.OK("POST", hstest.Path("createRoom"), body).Get("room_id").Str)
}

func TestPresets(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	for _, c := range []struct{ preset, rule, guests string }{
		{"private_chat", "invite", "can_join"}, {"trusted_private_chat", "invite", "can_join"}, {"public_chat", "public", ""},
	} {
		for _, version := range []string{"11", "12"} {
			room := create(alice, map[string]any{"preset": c.preset, "room_version": version, "invite": []string{string(bob.UserID)}})
			if got := stateString(alice, room, "m.room.join_rules", "join_rule"); got != c.rule {
				t.Errorf("%s: join rule %q", c.preset, got)
			}
			if got := stateString(alice, room, "m.room.history_visibility", "history_visibility"); got != "shared" {
				t.Errorf("%s: history visibility %q", c.preset, got)
			}
			if got := stateString(alice, room, "m.room.guest_access", "guest_access"); got != c.guests {
				t.Errorf("%s: guest access %q", c.preset, got)
			}
			if got := stateString(alice, room, "m.room.create", "room_version"); got != version {
				t.Errorf("%s: version %q, want %s", c.preset, got, version)
			}
			users := alice.OK("GET", hstest.Path("rooms", string(room), "state", "m.room.power_levels", ""), nil).Get("users")
			creators := alice.OK("GET", hstest.Path("rooms", string(room), "state", "m.room.create", ""), nil).Get("additional_creators.0").Str
			trusted := c.preset == "trusted_private_chat"
			if version == "11" && (users.Get(gjson.Escape(string(bob.UserID))).Int() == 100) != trusted {
				t.Errorf("%s in version 11: levels %s", c.preset, users.Raw)
			}
			if version == "12" && (creators == string(bob.UserID)) != trusted {
				t.Errorf("%s in version 12: further creator %q", c.preset, creators)
			}
		}
	}
}

func TestCreationWithEverything(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := create(alice, map[string]any{
		"preset": "private_chat", "name": "财务部", "topic": "月度报表", "room_alias_name": "finance", "visibility": "public", "is_direct": true,
		"invite": []string{string(bob.UserID)}, "room_version": "11",
		"creation_content":             map[string]any{"m.federate": false, "type": "m.space"},
		"power_level_content_override": map[string]any{"users": map[string]int{string(alice.UserID): 100, string(bob.UserID): 50}, "events_default": 10},
		"initial_state": []any{
			map[string]any{"type": "m.room.join_rules", "content": map[string]string{"join_rule": "knock"}},
			map[string]any{"type": "im.carillon.unit", "state_key": "42", "content": map[string]any{"code": "FIN"}},
			map[string]any{"type": "m.room.encryption", "content": map[string]string{"algorithm": "m.megolm.v1.aes-sha2"}},
		},
	})
	for key, want := range map[[3]string]string{
		{"m.room.name", "", "name"}: "财务部", {"m.room.topic", "", "topic"}: "月度报表", {"m.room.join_rules", "", "join_rule"}: "knock",
		{"im.carillon.unit", "42", "code"}: "FIN", {"m.room.canonical_alias", "", "alias"}: "#finance:a.example",
		{"m.room.create", "", "type"}: "m.space", {"m.room.power_levels", "", "events_default"}: "10",
		{"m.room.encryption", "", "algorithm"}: "m.megolm.v1.aes-sha2",
	} {
		if got := alice.OK("GET", hstest.Path("rooms", string(room), "state", key[0], key[1]), nil).Get(key[2]).String(); got != want {
			t.Errorf("%v is %q, want %q", key, got, want)
		}
	}
	if got := bob.OK("GET", hstest.Path("directory", "room", "#finance:a.example"), nil).Get("room_id").Str; got != string(room) {
		t.Errorf("the alias leads to %q", got)
	}
	if list := bob.OK("GET", hstest.Path("publicRooms"), nil); list.Get("chunk.0.room_id").Str != string(room) {
		t.Errorf("published: %s", list.Raw)
	}
	stripped := map[string]bool{}
	for _, e := range invited(bob, room) {
		stripped[e.Type.Type] = true
		if e.Type.Type == "m.room.member" && e.GetStateKey() == string(bob.UserID) && e.Content.Raw["is_direct"] != true {
			t.Errorf("the invitation's content is %v", e.Content.Raw)
		}
	}
	for _, typ := range []string{"m.room.create", "m.room.name", "m.room.join_rules", "m.room.encryption", "m.room.member"} {
		if !stripped[typ] {
			t.Errorf("the invitation shows no %s", typ)
		}
	}
	alice.Refused(400, "M_ROOM_IN_USE", "POST", hstest.Path("createRoom"), map[string]any{"room_alias_name": "finance"})
}

func TestMembershipsOfARoom(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob, carol := s.User("alice"), s.User("bob"), s.User("carol")
	room := create(alice, map[string]any{"preset": "private_chat"})
	path := func(what string) string { return hstest.Path("rooms", string(room), what) }
	who := func(u *hstest.User) map[string]string {
		return map[string]string{"user_id": string(u.UserID), "reason": "because"}
	}

	bob.Refused(403, "M_FORBIDDEN", "POST", path("join"), "{}")
	alice.OK("POST", path("invite"), who(bob))
	carol.Refused(403, "M_FORBIDDEN", "POST", path("invite"), who(bob))
	bob.OK("POST", path("join"), map[string]string{"reason": "thanks"})
	alice.Refused(403, "M_FORBIDDEN", "POST", path("invite"), who(bob))
	bob.OK("POST", path("join"), "{}") // once more does nothing
	bob.Refused(403, "M_FORBIDDEN", "POST", path("kick"), who(alice))
	bob.Refused(403, "M_FORBIDDEN", "POST", path("ban"), who(carol))
	alice.OK("POST", path("kick"), who(bob))
	if m := alice.OK("GET", hstest.Path("rooms", string(room), "state", "m.room.member", string(bob.UserID)), nil); m.Get("membership").Str != "leave" || m.Get("reason").Str != "because" {
		t.Errorf("after a kick: %s", m.Raw)
	}
	alice.Refused(403, "M_FORBIDDEN", "POST", path("kick"), who(bob))
	alice.OK("POST", path("ban"), who(bob))
	alice.Refused(403, "M_FORBIDDEN", "POST", path("invite"), who(bob))
	bob.Refused(403, "M_FORBIDDEN", "POST", path("join"), "{}")
	alice.OK("POST", path("unban"), who(bob))
	alice.Refused(403, "M_FORBIDDEN", "POST", path("unban"), who(bob))
	alice.OK("POST", path("invite"), who(bob))
	bob.OK("POST", path("leave"), map[string]string{"reason": "no time"})
	bob.OK("POST", path("leave"), "{}")
	alice.OK("POST", path("invite"), who(bob))
	bob.OK("POST", hstest.Path("join", string(room)), "{}")
	if rooms := bob.OK("GET", hstest.Path("joined_rooms"), nil).Get("joined_rooms"); rooms.Raw != `["`+string(room)+`"]` {
		t.Errorf("bob's rooms: %s", rooms.Raw)
	}
	bob.Refused(400, "M_UNKNOWN", "POST", path("forget"), "{}")
	bob.OK("POST", path("leave"), "{}")
	bob.OK("POST", path("forget"), "{}")
	bob.Refused(403, "M_FORBIDDEN", "GET", path("messages")+"?dir=b", nil)
	if r := bob.RawSync("", "filter="+`{"room":{"include_leave":true}}`); r.Get("rooms.leave").Exists() {
		t.Errorf("a forgotten room is shown: %s", r.Get("rooms").Raw)
	}
	carol.Refused(404, "M_NOT_FOUND", "POST", hstest.Path("rooms", "!nowhere:a.example", "join"), "{}")
	alice.Refused(404, "M_NOT_FOUND", "POST", path("invite"), map[string]string{"user_id": "@nobody:a.example"})
}

func TestPowerLevels(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob, carol := s.User("alice"), s.User("bob"), s.User("carol")
	for _, version := range []string{"10", "12"} {
		room := create(alice, map[string]any{"preset": "public_chat", "room_version": version})
		for _, u := range []*hstest.User{bob, carol} {
			u.OK("POST", hstest.Path("join", string(room)), "{}")
		}
		levels := func(bobs, carols int) map[string]any {
			users := map[string]any{string(bob.UserID): bobs, string(carol.UserID): carols}
			if version != "12" {
				users[string(alice.UserID)] = 100
			}
			return map[string]any{"users": users, "state_default": 50, "events": map[string]any{"m.room.message": 10, "m.room.power_levels": 50}, "ban": 60, "kick": 50, "redact": 50, "invite": 0}
		}
		put := hstest.Path("rooms", string(room), "state", "m.room.power_levels", "")
		bob.Refused(403, "M_FORBIDDEN", "PUT", put, levels(100, 0))
		alice.OK("PUT", put, levels(50, 0))
		carol.Refused(403, "M_FORBIDDEN", "PUT", hstest.Path("rooms", string(room), "send", "m.room.message", "p"+version), text("too weak"))
		bob.OK("PUT", hstest.Path("rooms", string(room), "state", "m.room.topic", ""), map[string]string{"topic": "bob may"})
		bob.OK("PUT", put, levels(50, 40))
		bob.Refused(403, "M_FORBIDDEN", "PUT", put, levels(50, 60)) // more than his own
		bob.Refused(403, "M_FORBIDDEN", "POST", hstest.Path("rooms", string(room), "ban"), map[string]string{"user_id": string(carol.UserID)})
		bob.OK("POST", hstest.Path("rooms", string(room), "kick"), map[string]string{"user_id": string(carol.UserID)})
		bob.OK("PUT", put, levels(20, 0)) // lowers himself
		bob.Refused(403, "M_FORBIDDEN", "PUT", put, levels(50, 0))
		alice.Refused(400, "M_BAD_JSON", "PUT", put, map[string]any{"users": "everybody"})
		if version == "12" {
			bad := levels(0, 0)
			bad["users"].(map[string]any)[string(alice.UserID)] = 100
			alice.Refused(400, "M_INVALID_PARAM", "PUT", put, bad)
		}
	}
}

func TestAliases(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	alias := hstest.Path("directory", "room", "#lobby:a.example")
	bob.OK("PUT", alias, map[string]string{"room_id": string(room)})
	bob.Refused(409, "M_UNKNOWN", "PUT", alias, map[string]string{"room_id": string(room)})
	alice.Refused(400, "M_INVALID_PARAM", "PUT", hstest.Path("directory", "room", "#lobby:b.example"), map[string]string{"room_id": string(room)})
	if got := alice.OK("GET", hstest.Path("rooms", string(room), "aliases"), nil).Get("aliases").Raw; got != `["#lobby:a.example"]` {
		t.Errorf("aliases: %s", got)
	}
	alice.OK("PUT", hstest.Path("rooms", string(room), "state", "m.room.canonical_alias", ""), map[string]string{"alias": "#lobby:a.example"})
	alice.Refused(400, "M_BAD_ALIAS", "PUT", hstest.Path("rooms", string(room), "state", "m.room.canonical_alias", ""), map[string]string{"alias": "#other:a.example"})
	if got := s.User("carol").OK("POST", hstest.Path("join", "#lobby:a.example"), "{}").Get("room_id").Str; got != string(room) {
		t.Errorf("joined %s", got)
	}
	alice.OK("DELETE", alias, nil)
	alice.Refused(404, "M_NOT_FOUND", "GET", alias, nil)
}

func TestRedaction(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob, carol := s.User("alice"), s.User("bob"), s.User("carol")
	for _, version := range []string{"9", "10", "11", "12"} {
		room := create(alice, map[string]any{"preset": "public_chat", "room_version": version})
		bob.OK("POST", hstest.Path("join", string(room)), "{}")
		carol.OK("POST", hstest.Path("join", string(room)), "{}")
		ev := send(bob, room, "r"+version, "oops")
		redact := hstest.Path("rooms", string(room), "redact", ev, "x"+version)
		carol.Refused(403, "M_FORBIDDEN", "PUT", redact, "{}")
		first := alice.OK("PUT", redact, map[string]string{"reason": "不当"}).Get("event_id").Str
		if again := alice.OK("PUT", redact, map[string]string{"reason": "不当"}).Get("event_id").Str; again != first {
			t.Errorf("the same redaction gave %s and %s", first, again)
		}
		e := bob.OK("GET", hstest.Path("rooms", string(room), "event", ev), nil)
		because := e.Get("unsigned.redacted_because")
		if e.Get("content").Raw != "{}" || because.Get("event_id").Str != first || because.Get("content.reason").Str != "不当" {
			t.Errorf("version %s: redacted to %s", version, e.Raw)
		}
		red := bob.OK("GET", hstest.Path("rooms", string(room), "event", first), nil)
		if red.Get("redacts").Str != ev || red.Get("content.redacts").Str != ev {
			t.Errorf("version %s: the redaction is %s", version, red.Raw)
		}
		own := send(bob, room, "own"+version, "mine")
		bob.OK("PUT", hstest.Path("rooms", string(room), "redact", own, "y"+version), "{}")
		bob.Refused(404, "M_NOT_FOUND", "PUT", hstest.Path("rooms", string(room), "redact", "$nothing", "z"+version), "{}")
	}
}

func TestTransactionsRepeat(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	pad := alice.Login("PAD")
	first := send(alice, room, "t1", "once")
	if again := send(alice, room, "t1", "once"); again != first {
		t.Errorf("repeated: %s, first: %s", again, first)
	}
	if other := send(pad, room, "t1", "from the pad"); other == first {
		t.Error("the same transaction on another device gave the same event")
	}
	s.Stop()
	s.Start()
	if again := send(alice, room, "t1", "once"); again != first {
		t.Errorf("repeated after a restart: %s, first: %s", again, first)
	}
	if n := len(texts(bob, room)); n != 2 {
		t.Errorf("%d messages: %v", n, texts(bob, room))
	}
	// Only the device that sent it gets its transaction ID back.
	for u, want := range map[*hstest.User]string{alice: "t1", pad: "", bob: ""} {
		if got := u.OK("GET", hstest.Path("rooms", string(room), "event", first), nil).Get("unsigned.transaction_id").Str; got != want {
			t.Errorf("%s on %s reads the transaction ID %q", u.UserID, u.DeviceID, got)
		}
	}
}

// page reads /messages in one direction until the end.
func page(t *testing.T, u *hstest.User, room id.RoomID, dir, from string, limit int, more string) (ids []string) {
	t.Helper()
	for range 1000 {
		r := u.OK("GET", hstest.Path("rooms", string(room), "messages")+fmt.Sprintf("?dir=%s&limit=%d&from=%s%s", dir, limit, from, more), nil)
		r.Get("chunk").ForEach(func(_, e gjson.Result) bool {
			ids = append(ids, e.Get("event_id").Str)
			return true
		})
		if from = r.Get("end").Str; from == "" {
			return ids
		}
	}
	t.Fatal("/messages never ends")
	return nil
}

func TestMessagesPageByPage(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	var sent []string
	for i := range 47 {
		u := alice
		if i%3 == 0 {
			u = bob
		}
		sent = append(sent, send(u, room, fmt.Sprint("m", i), fmt.Sprint(i)))
	}
	all := page(t, alice, room, "f", "", 1000, "")
	if !slices.Equal(all[len(all)-47:], sent) {
		t.Fatal("forward paging does not give what was sent")
	}
	for _, limit := range []int{1, 7, 10, 50} {
		if got := page(t, alice, room, "f", "", limit, ""); !slices.Equal(got, all) {
			t.Errorf("forward by %d: %d events, want %d", limit, len(got), len(all))
		}
		back := page(t, bob, room, "b", "", limit, "")
		slices.Reverse(back)
		if !slices.Equal(back, all) {
			t.Errorf("backward by %d: %d events, want %d", limit, len(back), len(all))
		}
	}
	filter := "&filter=" + url.QueryEscape(`{"types":["m.room.message"],"senders":["`+string(bob.UserID)+`"]}`)
	if got := page(t, alice, room, "b", "", 5, filter); len(got) != 16 {
		t.Errorf("with a filter for bob's messages: %d", len(got))
	}
	// From a sync on: what came later by /sync, what came before by /messages.
	since := alice.RawSync("").Get("next_batch").Str
	late := send(bob, room, "late", "later")
	before := page(t, alice, room, "b", since, 10, "")
	if slices.Contains(before, late) || len(before) != len(all) {
		t.Errorf("before the token: %d events, want %d", len(before), len(all))
	}
	if after := page(t, alice, room, "f", since, 10, ""); !slices.Equal(after, []string{late}) {
		t.Errorf("after the token: %v", after)
	}
	c := alice.OK("GET", hstest.Path("rooms", string(room), "context", sent[20])+"?limit=6", nil)
	if c.Get("event.event_id").Str != sent[20] || c.Get("events_before.0.event_id").Str != sent[19] || c.Get("events_after.0.event_id").Str != sent[21] {
		t.Errorf("context: %s", c.Raw)
	}
	if got := page(t, alice, room, "b", c.Get("start").Str, 3, ""); got[0] != sent[20-1-int(c.Get("events_before.#").Int())] {
		t.Errorf("going on before the context begins with %s", got[0])
	}
	if got := page(t, alice, room, "f", c.Get("end").Str, 3, ""); got[0] != sent[20+1+int(c.Get("events_after.#").Int())] {
		t.Errorf("going on after the context begins with %s", got[0])
	}
	near := alice.OK("GET", "/_matrix/client/v1/rooms/"+url.PathEscape(string(room))+"/timestamp_to_event?dir=f&ts=0", nil)
	if near.Get("event_id").Str != all[0] {
		t.Errorf("the first event by time is %s", near.Raw)
	}
}

func TestMembersAndState(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob, carol := s.User("alice"), s.User("bob"), s.User("carol")
	setDisplayName(t, bob, "李四")
	room := alice.Room(nil, bob, carol)
	if _, err := carol.LeaveRoom(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	count := func(query string) int64 {
		return alice.OK("GET", hstest.Path("rooms", string(room), "members")+query, nil).Get("chunk.#").Int()
	}
	if n := count(""); n != 3 {
		t.Errorf("%d members", n)
	}
	if n := count("?membership=join"); n != 2 {
		t.Errorf("%d joined members", n)
	}
	if n := count("?not_membership=join"); n != 1 {
		t.Errorf("%d members not joined", n)
	}
	j := alice.OK("GET", hstest.Path("rooms", string(room), "joined_members"), nil).Get("joined")
	if j.Get(gjson.Escape(string(bob.UserID))+".display_name").Str != "李四" || len(j.Map()) != 2 {
		t.Errorf("joined members: %s", j.Raw)
	}
	stranger := s.User("dave")
	stranger.Refused(403, "M_FORBIDDEN", "GET", hstest.Path("rooms", string(room), "members"), nil)
	stranger.Refused(403, "M_FORBIDDEN", "GET", hstest.Path("rooms", string(room), "state"), nil)
	alice.Refused(404, "M_NOT_FOUND", "GET", hstest.Path("rooms", string(room), "state", "m.room.topic", ""), nil)
	// Who has left reads the state of then.
	setState(t, alice, room, "m.room.topic", "", map[string]any{"topic": "after carol"})
	carol.Refused(404, "M_NOT_FOUND", "GET", hstest.Path("rooms", string(room), "state", "m.room.topic", ""), nil)
	setState(t, alice, room, "m.room.name", "", map[string]any{"name": "n"})
	ev := alice.OK("GET", hstest.Path("rooms", string(room), "state", "m.room.name", "")+"?format=event", nil)
	if ev.Get("type").Str != "m.room.name" || ev.Get("content.name").Str != "n" {
		t.Errorf("with format=event: %s", ev.Raw)
	}
}

func TestHistoryVisibility(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice := s.User("alice")
	for _, c := range []struct {
		visibility string
		stranger   int // messages that somebody sees who was never there
		joins      int // of a, b, c said before the invitation, after it and after the join
	}{{"world_readable", 3, 3}, {"shared", -1, 3}, {"invited", -1, 2}, {"joined", -1, 1}} {
		room := create(alice, map[string]any{"preset": "private_chat", "initial_state": []any{
			map[string]any{"type": "m.room.history_visibility", "content": map[string]string{"history_visibility": c.visibility}},
		}})
		bob := s.User("bob-" + c.visibility[:3])
		send(alice, room, "a"+c.visibility, "a")
		alice.OK("POST", hstest.Path("rooms", string(room), "invite"), map[string]string{"user_id": string(bob.UserID)})
		send(alice, room, "b"+c.visibility, "b")
		bob.OK("POST", hstest.Path("join", string(room)), "{}")
		send(alice, room, "c"+c.visibility, "c")
		if got := texts(bob, room); len(got) != c.joins {
			t.Errorf("%s: a member reads %v", c.visibility, got)
		}
		n := 0
		for _, e := range bob.Sync(0).Rooms.Join[room].Timeline.Events {
			if e.Type.Type == "m.room.message" {
				n++
			}
		}
		if n != c.joins {
			t.Errorf("%s: a member syncs %d messages, want %d", c.visibility, n, c.joins)
		}
		bob.OK("POST", hstest.Path("rooms", string(room), "leave"), "{}")
		send(alice, room, "d"+c.visibility, "d")
		stays := c.joins
		if c.visibility == "world_readable" {
			stays = 4
		}
		if got := texts(bob, room); len(got) != stays {
			t.Errorf("%s: after leaving he reads %v", c.visibility, got)
		}
		eve := s.User("eve")
		if c.stranger < 0 {
			eve.Refused(403, "M_FORBIDDEN", "GET", hstest.Path("rooms", string(room), "messages")+"?dir=b", nil)
		} else if got := texts(eve, room); len(got) != 4 {
			t.Errorf("%s: a stranger reads %v", c.visibility, got)
		}
	}
}

func TestRestrictedRooms(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob, carol := s.User("alice"), s.User("bob"), s.User("carol")
	company := alice.Room(nil, bob)
	for _, version := range []string{"8", "10", "12"} {
		room := create(alice, map[string]any{"preset": "private_chat", "room_version": version, "initial_state": []any{
			map[string]any{"type": "m.room.join_rules", "content": map[string]any{
				"join_rule": "restricted", "allow": []any{map[string]any{"type": "m.room_membership", "room_id": company}},
			}},
		}})
		bob.OK("POST", hstest.Path("join", string(room)), "{}")
		carol.Refused(403, "M_FORBIDDEN", "POST", hstest.Path("join", string(room)), "{}")
	}
}

func TestKnocking(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := create(alice, map[string]any{"preset": "private_chat", "name": "door", "initial_state": []any{
		map[string]any{"type": "m.room.join_rules", "content": map[string]string{"join_rule": "knock"}},
	}})
	bob.Refused(403, "M_FORBIDDEN", "POST", hstest.Path("join", string(room)), "{}")
	bob.OK("POST", hstest.Path("knock", string(room)), map[string]string{"reason": "please"})
	bob.SyncUntil("his knock", func(r *mautrix.RespSync) bool {
		k := r.Rooms.Knock[room]
		return k != nil && slices.ContainsFunc(k.State.Events, func(e *event.Event) bool { return e.Type.Type == "m.room.name" })
	})
	alice.OK("POST", hstest.Path("rooms", string(room), "invite"), map[string]string{"user_id": string(bob.UserID)})
	bob.OK("POST", hstest.Path("join", string(room)), "{}")
	private := create(alice, map[string]any{"preset": "private_chat"})
	bob.Refused(403, "M_FORBIDDEN", "POST", hstest.Path("knock", string(private)), "{}")
}

func TestProfilesReachRooms(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	setDisplayName(t, alice, "张三")
	alice.OK("PUT", hstest.Path("profile", string(alice.UserID), "avatar_url"), map[string]string{"avatar_url": "mxc://a.example/face"})
	p := bob.OK("GET", hstest.Path("profile", string(alice.UserID)), nil)
	if p.Get("displayname").Str != "张三" || p.Get("avatar_url").Str != "mxc://a.example/face" {
		t.Errorf("profile: %s", p.Raw)
	}
	s.Eventually("the member event follows", func() bool {
		m := bob.OK("GET", hstest.Path("rooms", string(room), "state", "m.room.member", string(alice.UserID)), nil)
		return m.Get("displayname").Str == "张三" && m.Get("avatar_url").Str == "mxc://a.example/face"
	})
	bob.Refused(403, "M_FORBIDDEN", "PUT", hstest.Path("profile", string(alice.UserID), "displayname"), map[string]string{"displayname": "not me"})
	bob.Refused(404, "M_NOT_FOUND", "GET", hstest.Path("profile", "@nobody:a.example"), nil)
}
