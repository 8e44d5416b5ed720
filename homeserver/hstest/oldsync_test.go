package hstest_test

import (
	"fmt"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// stream reads /events until nothing is left and gives the IDs in their order.
func stream(u *hstest.User, from *string, params string) (ids []string) {
	for {
		r := u.OK("GET", hstest.Path("events")+"?timeout=0&from="+*from+params, nil)
		*from = r.Get("end").Str
		list := r.Get("chunk").Array()
		if len(list) == 0 {
			return ids
		}
		for _, e := range list {
			ids = append(ids, e.Get("event_id").Str)
		}
	}
}

func TestOldEventsComeCompleteAndInOrder(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	one, two := alice.Room(nil, bob), alice.Room(nil, bob)
	from := bob.OK("GET", hstest.Path("initialSync")+"?limit=1", nil).Get("end").Str
	var sent []string
	for i := range 130 {
		sent = append(sent, send(alice, one, fmt.Sprint(i), "one"))
		if i%2 == 0 {
			sent = append(sent, send(alice, two, fmt.Sprint(i), "two"))
		}
	}
	got := stream(bob, &from, "")
	if !slices.Equal(got, sent) {
		t.Fatalf("%d events of %d, or in another order", len(got), len(sent))
	}

	// An invitation, what follows on it, and being sent away.
	secret := create(alice, map[string]any{"preset": "private_chat", "invite": []string{string(bob.UserID)}})
	if got = stream(bob, &from, ""); len(got) != 1 {
		t.Errorf("the invitation comes as %v", got)
	}
	bob.OK("POST", hstest.Path("join", string(secret)), "{}")
	last := send(alice, secret, "last", "the last that bob sees")
	alice.OK("POST", hstest.Path("rooms", string(secret), "kick"), map[string]string{"user_id": string(bob.UserID)})
	after := send(alice, secret, "after", "bob is gone")
	if got = stream(bob, &from, ""); !slices.Contains(got, last) || slices.Contains(got, after) || len(got) != 3 {
		t.Errorf("joining, a message and being sent away are %v", got)
	}
	list := bob.OK("GET", hstest.Path("initialSync")+"?archived=true", nil).Get("rooms")
	if m := list.Get(`#(room_id=="` + string(secret) + `").membership`).Str; m != "leave" {
		t.Errorf("the room left is %q", m)
	}
	if bob.OK("GET", hstest.Path("initialSync"), nil).Get(`rooms.#(room_id=="` + string(secret) + `")`).Exists() {
		t.Error("a room left is shown without being asked for")
	}
}

func TestOldEventsWait(t *testing.T) {
	t.Parallel()
	s := hstest.New(t, func(o *homeserver.Options) { o.Registration.Guests = true })
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	open := create(alice, map[string]any{"preset": "private_chat", "initial_state": []map[string]any{
		{"type": "m.room.history_visibility", "content": map[string]string{"history_visibility": "world_readable"}},
	}})
	guest := s.Do("", "POST", hstest.Path("register")+"?kind=guest", "{}").Get("access_token").Str
	for _, c := range []struct{ token, params, room string }{
		{bob.AccessToken, "", string(room)},
		{bob.AccessToken, "&room_id=" + url.QueryEscape(string(open)), string(open)},
		{guest, "&room_id=" + url.QueryEscape(string(open)), string(open)},
	} {
		answer := make(chan gjson.Result, 1)
		begin := time.Now()
		go func() {
			answer <- gjson.ParseBytes(s.Do(c.token, "GET", hstest.Path("events")+"?timeout=20000"+c.params, nil).Body)
		}()
		time.Sleep(50 * time.Millisecond)
		id := alice.OK("PUT", hstest.Path("rooms", c.room, "send", "m.room.message", c.token+c.params), text("wake up")).Get("event_id").Str
		if r := <-answer; r.Get("chunk.0.event_id").Str != id {
			t.Errorf("%s: woken with %s", c.params, r.Raw)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("%s: woken after %s", c.params, took)
		}
	}
	// The room is closed while the guest waits.
	answer := make(chan hstest.Answer, 1)
	go func() {
		answer <- s.Do(guest, "GET", hstest.Path("events")+"?timeout=20000&room_id="+url.QueryEscape(string(open)), nil)
	}()
	time.Sleep(50 * time.Millisecond)
	alice.OK("PUT", hstest.Path("rooms", string(open), "state", "m.room.history_visibility", ""), map[string]string{"history_visibility": "joined"})
	want(t, "after the room was closed", <-answer, 403, "M_FORBIDDEN")
}
