package hstest_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// messagesOf is a page of a room as a user sees it, by event ID.
func messagesOf(u *hstest.User, room id.RoomID) map[string]gjson.Result {
	m := map[string]gjson.Result{}
	for _, e := range u.OK("GET", hstest.Path("rooms", string(room), "messages")+"?dir=b&limit=50", nil).Get("chunk").Array() {
		m[e.Get("event_id").Str] = e
	}
	return m
}

func TestErasedContentIsGoneForNewcomers(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := bob.Room(&mautrix.ReqCreateRoom{Preset: "public_chat", Name: "讨论"}, alice)
	alice.OK("PUT", hstest.Path("profile", string(alice.UserID), "displayname"), obj{"displayname": "爱丽丝"})
	secret := alice.Say(room, "秘密计划")
	root := bob.Say(room, "讨论串")
	reply := alice.OK("PUT", hstest.Path("rooms", string(room), "send", "m.room.message", "r1"), obj{
		"msgtype": "m.text", "body": "秘密回复", "m.relates_to": obj{"rel_type": "m.thread", "event_id": root},
	}).Get("event_id").Str
	edit := obj{"msgtype": "m.text", "body": "* 秘密改动", "m.new_content": obj{"msgtype": "m.text", "body": "秘密改动"}, "m.relates_to": obj{"rel_type": "m.replace", "event_id": secret}}
	alice.OK("PUT", hstest.Path("rooms", string(room), "send", "m.room.message", "e1"), edit)
	others := bob.Say(room, "秘密是别人的话")
	carol := s.User("carol")
	if _, err := carol.JoinRoomByID(t.Context(), room); err != nil { // before the erasure
		t.Fatal(err)
	}
	alice.OK("POST", hstest.Path("account", "deactivate"), obj{"erase": true, "auth": passwordOf(alice, "")})
	s.Eventually("alice leaves", func() bool {
		return bob.OK("GET", hstest.Path("rooms", string(room), "state", "m.room.member", string(alice.UserID)), nil).Get("membership").Str == "leave"
	})
	dave := s.User("dave")
	if _, err := dave.JoinRoomByID(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	check := func(stage string) {
		for _, u := range []*hstest.User{bob, carol} { // they have seen it, or could have
			if got := messagesOf(u, room)[string(secret)]; got.Get("content.body").Str != "秘密计划" {
				t.Errorf("%s: %s sees %s", stage, u.UserID, got)
			}
		}
		if got := messagesOf(dave, room); got[string(secret)].Get("content").Raw != "{}" || got[string(others)].Get("content.body").Str != "秘密是别人的话" {
			t.Errorf("%s: dave sees %s and %s", stage, got[string(secret)], got[string(others)])
		}
		for what, path := range map[string]string{
			"event":     hstest.Path("rooms", string(room), "event", string(secret)),
			"reply":     hstest.Path("rooms", string(room), "event", reply),
			"root":      hstest.Path("rooms", string(room), "event", string(root)),
			"context":   hstest.Path("rooms", string(room), "context", string(others)),
			"relations": "/_matrix/client/v1/rooms/" + url.PathEscape(string(room)) + "/relations/" + url.PathEscape(string(root)),
			"threads":   "/_matrix/client/v1/rooms/" + url.PathEscape(string(room)) + "/threads",
			"messages":  hstest.Path("rooms", string(room), "messages") + "?dir=b&limit=50",
			"initial":   hstest.Path("rooms", string(room), "initialSync"),
		} {
			got := dave.OK("GET", path, nil).Raw
			for _, never := range []string{"秘密计划", "秘密改动", "秘密回复", "爱丽丝"} {
				if strings.Contains(got, never) {
					t.Errorf("%s: dave sees %s of %s in %s", stage, never, what, got)
				}
			}
		}
		if got := dave.RawSync(""); strings.Contains(got.Raw, "秘密计划") || !strings.Contains(got.Raw, "秘密是别人的话") {
			t.Errorf("%s: dave's sync: %s", stage, got.Get("rooms"))
		}
		sliding := obj{"lists": obj{"all": obj{"ranges": [][]int{{0, 9}}, "timeline_limit": 20, "required_state": [][]string{}}}}
		if got := dave.OK("POST", "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync", sliding); strings.Contains(got.Raw, "秘密计划") || !strings.Contains(got.Raw, "秘密是别人的话") {
			t.Errorf("%s: dave's sliding sync: %s", stage, got)
		}
		if got := bob.RawSync(""); !strings.Contains(got.Raw, "秘密计划") {
			t.Errorf("%s: bob's sync: %s", stage, got.Get("rooms"))
		}
		find := obj{"search_categories": obj{"room_events": obj{"search_term": "秘密", "event_context": obj{"before_limit": 5, "after_limit": 5}}}}
		s.Eventually(stage+": the index", func() bool {
			return bob.OK("POST", hstest.Path("search"), find).Get("search_categories.room_events.results.#").Int() >= 3
		})
		if got := dave.OK("POST", hstest.Path("search"), find).Raw; strings.Contains(got, "秘密计划") || strings.Contains(got, "秘密回复") || !strings.Contains(got, "秘密是别人的话") {
			t.Errorf("%s: dave finds %s", stage, got)
		}
	}
	check("at once")
	s.Stop()
	s.Start()
	check("after a restart")
}

// Of a closed account nothing is left: not in the rooms, not in the data.
func TestAClosedAccountIsEmptied(t *testing.T) {
	t.Parallel()
	p, opts := withPost(t)
	s := hstest.New(t, opts...)
	alice, bob := s.User("alice"), s.User("bob")
	rooms := []id.RoomID{bob.Room(nil, alice), bob.Room(nil, alice), alice.Room(nil, bob)}
	p.addEmail(t, s, alice, "alice@mail.example")
	alice.OK("PUT", hstest.Path("profile", string(alice.UserID), "displayname"), obj{"displayname": "爱丽丝"})
	alice.OK("PUT", hstest.Path("user", string(alice.UserID), "account_data", "org.example.x"), obj{"a": 1})
	alice.OK("POST", hstest.Path("pushers", "set"), obj{
		"kind": "http", "app_id": "x", "pushkey": "k", "app_display_name": "x", "device_display_name": "x", "lang": "zh",
		"data": obj{"url": "https://push.example/_matrix/push/v1/notify"},
	})
	second := alice.Login("PHONE")
	session := alice.Do("POST", hstest.Path("account", "deactivate"), nil).Get("session").Str
	alice.OK("POST", hstest.Path("account", "deactivate"), obj{"auth": passwordOf(alice, session)})
	for _, u := range []*hstest.User{alice, second} {
		u.Refused(401, "M_UNKNOWN_TOKEN", "GET", hstest.Path("account", "whoami"), nil)
	}
	want(t, "log-in", login(s, "alice", "password of alice"), 403, "M_USER_DEACTIVATED")
	want(t, "log-in by address", s.Do("", "POST", hstest.Path("login"), obj{
		"type": "m.login.password", "password": "password of alice", "identifier": obj{"type": "m.id.thirdparty", "medium": "email", "address": "alice@mail.example"},
	}), 403, "M_FORBIDDEN")
	want(t, "the name", s.Do("", "POST", hstest.Path("register"), obj{"username": "alice", "password": "something long", "auth": obj{"type": "m.login.dummy"}}), 400, "M_USER_IN_USE")
	if a := bob.Do("GET", hstest.Path("profile", string(alice.UserID)), nil); a.Get("displayname").Exists() {
		t.Errorf("profile: %s", a.Body)
	}
	// The address is free again.
	p.addEmail(t, s, bob, "alice@mail.example")
	s.Eventually("alice leaves all rooms", func() bool {
		for _, r := range rooms {
			if bob.OK("GET", hstest.Path("rooms", string(r), "state", "m.room.member", string(alice.UserID)), nil).Get("membership").Str != "leave" {
				return false
			}
		}
		return true
	})
}

func TestErasedContentIsGoneForNewServers(t *testing.T) {
	t.Parallel()
	a, b, c := hstest.Trio(t)
	alice, host, early, late := a.User("alice"), a.User("host"), b.User("early"), c.User("late")
	room := host.Room(&mautrix.ReqCreateRoom{Preset: "public_chat"}, alice)
	via := func(u *hstest.User) {
		u.OK("POST", hstest.Path("join", string(room))+"?via="+url.QueryEscape(string(a.Name)), obj{})
	}
	secret := alice.Say(room, "秘密计划")
	via(early)
	alice.OK("POST", hstest.Path("account", "deactivate"), obj{"erase": true, "auth": passwordOf(alice, "")})
	a.Eventually("alice leaves", func() bool {
		return host.OK("GET", hstest.Path("rooms", string(room), "state", "m.room.member", string(alice.UserID)), nil).Get("membership").Str == "leave"
	})
	b.Cut() // it keeps what it has, and would give it to who asks
	via(late)
	for u, want := range map[*hstest.User]string{early: "秘密计划", late: ""} {
		var got gjson.Result
		a.Eventually("history", func() bool {
			got = messagesOf(u, room)[string(secret)]
			return got.Exists()
		})
		if got.Get("content.body").Str != want {
			t.Errorf("%s sees %s", u.UserID, got)
		}
	}
}
