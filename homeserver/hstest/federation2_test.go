package hstest_test

import (
	"fmt"
	"net/url"
	"slices"
	"sync"
	"testing"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

func TestFederatedHistory(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	room := alice.Room(nil)
	var want []string
	for i := range 150 {
		send(alice, room, fmt.Sprint("h", i), fmt.Sprint(i))
		want = append(want, fmt.Sprint(i))
	}
	join(bob, room, a)
	send(alice, room, "last", "after the join")
	bob.Hears(room, "after the join")
	var got []string
	for from, n := bob.RawSync("").Get(in("join", room)+".timeline.prev_batch").Str, 0; from != "" && n < 100; n++ {
		m := bob.OK("GET", hstest.Path("rooms", string(room), "messages")+"?dir=b&limit=20&from="+from, nil)
		m.Get("chunk").ForEach(func(_, e gjson.Result) bool {
			if e.Get("type").Str == "m.room.message" {
				got = append(got, e.Get("content.body").Str)
			}
			return true
		})
		from = m.Get("end").Str
	}
	slices.Reverse(got)
	if !slices.Equal(got, want) {
		t.Errorf("bob reads %d older messages, %d were sent: %v", len(got), len(want), got)
	}
	if all := page(t, bob, room, "f", "", 30, ""); !slices.Equal(all, page(t, alice, room, "f", "", 30, "")) {
		t.Error("from the beginning both read something else")
	}
}

func TestManyJoinAtOnceOverFederation(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice := a.User("alice")
	room := alice.Room(nil)
	var users []*hstest.User
	for i := range 8 {
		users = append(users, b.User(fmt.Sprint("u", i)))
	}
	var wg sync.WaitGroup
	for _, u := range users {
		wg.Go(func() {
			if r := u.Do("POST", hstest.Path("join", string(room))+"?via="+url.QueryEscape(string(a.Name)), "{}"); r.Status != 200 {
				t.Errorf("%s: %d %s", u.UserID, r.Status, r.Body)
			}
		})
	}
	wg.Wait()
	for _, u := range users {
		u.Say(room, "I am "+u.UserID.Localpart())
	}
	for _, u := range users {
		alice.Hears(room, "I am "+u.UserID.Localpart())
		users[0].Hears(room, "I am "+u.UserID.Localpart())
	}
	alice.Say(room, "welcome")
	users[0].Hears(room, "welcome")
	sameState(t, alice, users[0], room)
	if n := len(b.Hub().Members(roomID(room))); n != 9 {
		t.Errorf("b counts %d members", n)
	}
	// All leave but one, at once.
	for _, u := range users[1:] {
		wg.Go(func() { u.OK("POST", hstest.Path("rooms", string(room), "leave"), "{}") })
	}
	wg.Wait()
	a.Eventually("all but one leave", func() bool { return len(a.Hub().Members(roomID(room))) == 2 })
	users[0].OK("POST", hstest.Path("rooms", string(room), "leave"), "{}")
	a.Eventually("the last leaves", func() bool { return len(a.Hub().Members(roomID(room))) == 1 })
	join(users[3], room, a)
	alice.Say(room, "again")
	users[3].Hears(room, "again")
	sameState(t, alice, users[3], room)
}

func TestFederatedNamesAndPresence(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	room := alice.Room(nil)
	join(bob, room, a)
	setDisplayName(t, bob, "鲍勃")
	a.Eventually("the new name arrives", func() bool {
		return alice.OK("GET", hstest.Path("rooms", string(room), "state", "m.room.member", string(bob.UserID)), nil).Get("displayname").Str == "鲍勃"
	})
	bob.OK("PUT", hstest.Path("presence", string(bob.UserID), "status"), map[string]string{"presence": "unavailable", "status_msg": "出差"})
	alice.SyncUntil("bob's presence", func(r *mautrix.RespSync) bool {
		for _, e := range r.Presence.Events {
			if e.Sender == bob.UserID && e.Content.Raw["status_msg"] == "出差" {
				return true
			}
		}
		return false
	})
}

// TestStrangersAreRefused sends requests without and with wrong signatures.
func TestStrangersAreRefused(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	room := alice.Room(nil)
	join(bob, room, a)
	for _, path := range []string{
		"/_matrix/federation/v1/state/" + url.PathEscape(string(room)) + "?event_id=$x", "/_matrix/federation/v1/make_join/" + url.PathEscape(string(room)) + "/@x:y",
		"/_matrix/federation/v1/query/profile?user_id=" + url.QueryEscape(string(alice.UserID)), "/_matrix/federation/v1/user/devices/" + string(alice.UserID),
	} {
		want(t, path, a.Do("", "GET", path, nil), 401, "M_UNAUTHORIZED")
		want(t, path+" with a client's token", a.Do(alice.AccessToken, "GET", path, nil), 401, "M_UNAUTHORIZED")
	}
	if k := a.Do("", "GET", "/_matrix/key/v2/server", nil); k.Get("server_name").Str != string(a.Name) || len(k.Get("verify_keys").Map()) != 1 || !k.Get("signatures").Exists() {
		t.Errorf("the keys are %s", k.Body)
	}
	if v := a.Do("", "GET", "/_matrix/federation/v1/version", nil); v.Get("server.name").Str == "" {
		t.Errorf("the version is %s", v.Body)
	}
}
