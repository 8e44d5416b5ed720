package federation_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// joined makes a public room on a with alice in it, lets bob of b join, and returns all three.
func joined(t testing.TB, a, b *server, version string) (room matrix.RoomID, alice, bob matrix.UserID) {
	t.Helper()
	alice, bob = a.user("alice"), b.user("bob")
	room = a.room(alice, "public_chat", version)
	ok(t, b.rooms.Join(context.Background(), rooms.MemberChange{Room: room, Sender: bob, Target: bob, Via: []matrix.ServerName{a.name}}))
	until(t, "a sees the join", func() bool { return a.hub.Joined(bob, room) })
	return room, alice, bob
}

func TestJoinAndTalk(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"1", "6", "12"} {
		t.Run("v"+version, func(t *testing.T) {
			t.Parallel()
			a, b := pair(t)
			room, alice, bob := joined(t, a, b, version)
			if !b.hub.Joined(alice, room) || !b.hub.Joined(bob, room) {
				t.Fatal("b does not know the members")
			}
			var want []string
			for i := range 6 {
				want = append(want, fmt.Sprint(i))
				if i%2 == 0 {
					a.send(room, alice, fmt.Sprint(i))
					until(t, "the message on b", func() bool { return slices.Equal(b.texts(room), want) })
				} else {
					b.send(room, bob, fmt.Sprint(i))
					until(t, "the message on a", func() bool { return slices.Equal(a.texts(room), want) })
				}
			}
			ok(t, b.rooms.Leave(context.Background(), rooms.MemberChange{Room: room, Sender: bob, Target: bob}))
			until(t, "the leave on a", func() bool { return !a.hub.Joined(bob, room) })
		})
	}
}

func TestInvite(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	ctx := context.Background()
	alice, bob, carol := a.user("alice"), b.user("bob"), b.user("carol")
	room := a.room(alice, "private_chat", "")
	if err := b.rooms.Join(ctx, rooms.MemberChange{Room: room, Sender: bob, Target: bob, Via: []matrix.ServerName{a.name}}); !matrix.IsCode(err, "M_FORBIDDEN") {
		t.Errorf("joined without an invitation: %v", err)
	}
	for _, u := range []matrix.UserID{bob, carol} {
		ok(t, a.rooms.Invite(ctx, rooms.MemberChange{Room: room, Sender: alice, Target: u}))
		m, err := b.rooms.MembershipOf(ctx, u, room)
		ok(t, err)
		if m == nil || m.Membership != "invite" {
			t.Fatalf("%s is not invited on b: %+v", u, m)
		}
	}
	ok(t, b.rooms.Join(ctx, rooms.MemberChange{Room: room, Sender: bob, Target: bob}))
	until(t, "bob on a", func() bool { return a.hub.Joined(bob, room) })
	// carol declines, and is told when an invitation is taken back.
	ok(t, b.rooms.Leave(ctx, rooms.MemberChange{Room: room, Sender: carol, Target: carol}))
	until(t, "carol's refusal on a", func() bool { m, _ := a.rooms.Membership(ctx, room, carol); return m == "leave" })
	// A stranger to the server cannot be invited.
	if err := a.rooms.Invite(ctx, rooms.MemberChange{Room: room, Sender: alice, Target: "@nobody:b.test"}); !matrix.IsCode(err, "M_NOT_FOUND") {
		t.Errorf("invited nobody: %v", err)
	}
	// A kick reaches the other server.
	ok(t, a.rooms.Kick(ctx, rooms.MemberChange{Room: room, Sender: alice, Target: bob}))
	until(t, "the kick on b", func() bool { return !b.hub.Joined(bob, room) })
}

func TestInvitationTakenBack(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	ctx := context.Background()
	alice, bob := a.user("alice"), b.user("bob")
	room := a.room(alice, "private_chat", "")
	ok(t, a.rooms.Invite(ctx, rooms.MemberChange{Room: room, Sender: alice, Target: bob}))
	ok(t, a.rooms.Kick(ctx, rooms.MemberChange{Room: room, Sender: alice, Target: bob}))
	if m, _ := a.rooms.Membership(ctx, room, bob); m != "leave" {
		t.Fatalf("on a bob is %s", m)
	}
}

func TestReceiptsTypingPresence(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	ctx := context.Background()
	room, alice, bob := joined(t, a, b, "12")
	id := a.send(room, alice, "hello")
	until(t, "the message", func() bool { return len(b.texts(room)) == 1 })
	ok(t, b.receipts.Mark(ctx, bob, room, receipts.Read, id, ""))
	ok(t, b.receipts.Mark(ctx, bob, room, receipts.ReadPrivate, id, ""))
	until(t, "the receipt", func() bool {
		list, err := a.receipts.Between(ctx, 0, a.log.Head())
		ok(t, err)
		return len(list) > 0 && list[0].User == bob && list[0].Event == id
	})
	b.typing.Set(bob, room, true, time.Minute)
	until(t, "typing", func() bool { return slices.Contains(a.typing.Users(room), bob) })
	b.typing.Set(bob, room, false, 0)
	until(t, "the end of typing", func() bool { return len(a.typing.Users(room)) == 0 })
	b.presence.Set(bob, "unavailable", "at lunch")
	until(t, "presence", func() bool { s, _ := a.presence.Of(bob); return s.Status == "at lunch" && s.Presence == "unavailable" })
	list, err := a.receipts.Between(ctx, 0, a.log.Head())
	ok(t, err)
	for _, r := range list {
		if r.Type == receipts.ReadPrivate {
			t.Error("a private receipt has left its server")
		}
	}
}

// TestOutage cuts a server off while much is said, restarts the sender, and expects everything once, in order.
func TestOutage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	diskA := newDisk(t)
	a, b := w.start("a.test", diskA), w.start("b.test", newDisk(t))
	room, alice, _ := joined(t, a, b, "12")
	w.mu.Lock()
	addr := w.addrs["b.test:8448"]
	delete(w.addrs, "b.test:8448")
	w.mu.Unlock()
	b.client.Close()
	var want []string
	say := func(n int) {
		for range n {
			want = append(want, fmt.Sprint(len(want)))
			a.send(room, alice, want[len(want)-1])
		}
	}
	say(70)
	a.stop()
	a = w.start("a.test", diskA)
	say(70)
	w.mu.Lock()
	w.addrs["b.test:8448"] = addr
	w.mu.Unlock()
	a.fed.Alive("b.test")
	until(t, "all messages on b", func() bool { return len(b.texts(room)) >= len(want) })
	if got := b.texts(room); !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

// TestLongOutage: after an outage in which much has happened a server is sent the newest event alone, and asks for
// the others before it.
func TestLongOutage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.start("a.test", newDisk(t)), w.start("b.test", newDisk(t))
	room, alice, _ := joined(t, a, b, "12")
	w.mu.Lock()
	addr := w.addrs["b.test:8448"]
	delete(w.addrs, "b.test:8448")
	w.mu.Unlock()
	a.client.Close() // its open connections
	var want []string
	for i := range 2200 {
		want = append(want, fmt.Sprint(i))
		a.send(room, alice, want[i])
	}
	count := func(query string) (n int) {
		ok(t, a.db.Read(t.Context(), func(tx *sqldb.Tx) error { return tx.QueryRow(query).Scan(&n) }))
		return n
	}
	until(t, "the rest is left out", func() bool {
		a.fed.Alive("b.test")
		return count(`SELECT count(*) FROM fed_behind`) == 1 && count(`SELECT count(*) FROM fed_queue`) <= 50
	})
	a.send(room, alice, "last")
	want = append(want, "last")
	w.mu.Lock()
	w.addrs["b.test:8448"] = addr
	w.mu.Unlock()
	a.fed.Alive("b.test")
	// The first transaction was on its way already. Of the others b asks for the newest at once, and for the rest
	// when somebody wants to read it.
	until(t, "the newest messages on b", func() bool { return slices.Contains(b.texts(room), "last") })
	got := b.texts(room)
	first := 0
	for first < len(got) && got[first] == want[first] {
		first++
	}
	if n := len(got) - first; first < 1 || n < 500 || n > 650 || !slices.Equal(got[first:], want[len(want)-n:]) {
		t.Errorf("got %d: %v", n, got)
	}
	until(t, "nothing waits any more", func() bool {
		return count(`SELECT (SELECT count(*) FROM fed_queue) + (SELECT count(*) FROM fed_behind)`) == 0
	})
}

func TestQueries(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	ctx := context.Background()
	alice := a.user("alice")
	b.user("bob")
	room, err := a.rooms.Create(ctx, alice, rooms.CreateRequest{Preset: "public_chat", AliasName: "hall", Visibility: "public", Name: "Hall"}, 0)
	ok(t, err)
	p, err := b.profiles.Get(ctx, alice, "displayname")
	ok(t, err)
	if string(p["displayname"]) != `"alice"` {
		t.Errorf("profile %s", p)
	}
	if _, err := b.profiles.Get(ctx, "@nobody:a.test", ""); !matrix.IsCode(err, "M_NOT_FOUND") {
		t.Errorf("profile of nobody: %v", err)
	}
	got, servers, err := b.dir.Resolve(ctx, "#hall:a.test")
	ok(t, err)
	if got != room || !slices.Contains(servers, a.name) {
		t.Errorf("alias: %s %v", got, servers)
	}
	if _, _, err := b.dir.Resolve(ctx, "#none:a.test"); !matrix.IsCode(err, "M_NOT_FOUND") {
		t.Errorf("alias of nothing: %v", err)
	}
	for _, r := range []fedclient.Request{
		{Method: "GET", Path: fedclient.Path("_matrix", "federation", "v1", "publicRooms")},
		{Method: "POST", Path: fedclient.Path("_matrix", "federation", "v1", "publicRooms"), Body: map[string]any{"filter": map[string]any{"generic_search_term": "hall"}}},
	} {
		r.Server = a.name
		var out struct {
			Chunk []struct {
				Room matrix.RoomID `json:"room_id"`
			} `json:"chunk"`
		}
		ok(t, b.client.JSON(ctx, r, &out))
		if len(out.Chunk) != 1 || out.Chunk[0].Room != room {
			t.Errorf("%s publicRooms: %+v", r.Method, out)
		}
	}
	if name, version, err := b.client.Version(ctx, a.name); err != nil || name != "Carillon" || version != "test" {
		t.Errorf("version: %s %s %v", name, version, err)
	}
}

func TestKeysAndDevices(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	ctx := context.Background()
	_, alice, bob := joined(t, a, b, "12")
	ok(t, a.devices.Create(ctx, alice, "DEVA", "phone", "", time.Now()))
	ok(t, b.devices.Create(ctx, bob, "DEVB", "phone", "", time.Now()))
	changed := func() bool {
		var list []matrix.UserID
		ok(t, b.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
			list, err = b.keys.DeviceListChanges(ctx, tx, bob, 0, b.log.Head())
			return err
		}))
		return slices.Contains(list, alice)
	}
	a.call(alice, "DEVA", "POST", "/_matrix/client/v3/keys/upload", fmt.Sprintf(`{
		"device_keys": {"user_id": %q, "device_id": "DEVA", "algorithms": ["m.megolm.v1.aes-sha2"],
			"keys": {"curve25519:DEVA": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "ed25519:DEVA": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},
			"signatures": {%q: {"ed25519:DEVA": "sig"}}},
		"one_time_keys": {"signed_curve25519:AAA": {"key": "k", "signatures": {}}}}`, alice, alice))
	until(t, "b hears of alice's device", changed)
	if got := b.call(bob, "DEVB", "POST", "/_matrix/client/v3/keys/query", fmt.Sprintf(`{"device_keys":{%q:[]}}`, alice)); !strings.Contains(got, "curve25519:DEVA") {
		t.Errorf("keys/query: %s", got)
	}
	claim := fmt.Sprintf(`{"one_time_keys":{%q:{"DEVA":"signed_curve25519"}}}`, alice)
	if got := b.call(bob, "DEVB", "POST", "/_matrix/client/v3/keys/claim", claim); !strings.Contains(got, "signed_curve25519:AAA") {
		t.Errorf("keys/claim: %s", got)
	}
	if got := b.call(bob, "DEVB", "POST", "/_matrix/client/v3/keys/claim", claim); strings.Contains(got, "signed_curve25519:AAA") {
		t.Errorf("a one-time key was handed out twice: %s", got)
	}
	msg := fmt.Sprintf(`{"messages":{%q:{"DEVA":{"n":1}}}}`, alice)
	b.call(bob, "DEVB", "PUT", "/_matrix/client/v3/sendToDevice/m.test/t1", msg)
	b.call(bob, "DEVB", "PUT", "/_matrix/client/v3/sendToDevice/m.test/t1", msg) // a repetition
	b.call(bob, "DEVB", "PUT", "/_matrix/client/v3/sendToDevice/m.test/t2", strings.Replace(msg, "1", "2", 1))
	var got []json.RawMessage
	until(t, "two messages on alice's device", func() bool {
		ok(t, a.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
			got, _, err = a.keys.ToDevice(ctx, tx, alice, "DEVA", 0, a.log.Head(), 10)
			return err
		}))
		return len(got) >= 2
	})
	if len(got) != 2 || !strings.Contains(string(got[0]), `{"n":1}`) || !strings.Contains(string(got[1]), `{"n":2}`) {
		t.Errorf("messages: %s", got)
	}
	var list struct {
		User    matrix.UserID `json:"user_id"`
		Devices []any         `json:"devices"`
	}
	ok(t, b.client.JSON(ctx, fedclient.Request{
		Method: http.MethodGet, Server: a.name, Path: fedclient.Path("_matrix", "federation", "v1", "user", "devices", string(alice)),
	}, &list))
	if list.User != alice || len(list.Devices) != 1 {
		t.Errorf("devices: %+v", list)
	}
}

func TestOpenID(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	alice := a.user("alice")
	var given struct {
		Token  string            `json:"access_token"`
		Server matrix.ServerName `json:"matrix_server_name"`
		Type   string            `json:"token_type"`
		Lasts  int               `json:"expires_in"`
	}
	ok(t, json.Unmarshal([]byte(a.call(alice, "D", "POST", "/_matrix/client/v3/user/"+string(alice)+"/openid/request_token", "{}")), &given))
	if given.Server != a.name || given.Type != "Bearer" || given.Lasts <= 0 {
		t.Errorf("given %+v", given)
	}
	ask := func(token string) (string, error) {
		b, err := b.client.Do(context.Background(), fedclient.Request{
			Method: "GET", Server: a.name, Path: fedclient.Path("_matrix", "federation", "v1", "openid", "userinfo"),
			Query: map[string][]string{"access_token": {token}}, Unsigned: true,
		})
		return string(b), err
	}
	if got, err := ask(given.Token); err != nil || !strings.Contains(got, `"sub":"@alice:a.test"`) {
		t.Errorf("userinfo %s, %v", got, err)
	}
	for token, code := range map[string]string{"": "M_MISSING_TOKEN", "wrong": "M_UNKNOWN_TOKEN"} {
		var fe *fedclient.Error
		if _, err := ask(token); !errors.As(err, &fe) || fe.Status != 401 || fe.Code != code {
			t.Errorf("token %q: %v", token, err)
		}
	}
}

func TestAccess(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	ctx := context.Background()
	alice := a.user("alice")
	room := a.room(alice, "private_chat", "")
	id := a.send(room, alice, "secret")
	ask := func(method string, body any, segments ...string) error {
		path := fedclient.Path(append([]string{"_matrix", "federation"}, segments...)...)
		r := fedclient.Request{Method: method, Server: a.name, Path: path, Body: body}
		if p, q, found := strings.Cut(segments[len(segments)-1], "?"); found {
			r.Path = fedclient.Path(append(append([]string{"_matrix", "federation"}, segments[:len(segments)-1]...), p)...)
			r.Query = map[string][]string{}
			for _, kv := range strings.Split(q, "&") {
				k, v, _ := strings.Cut(kv, "=")
				r.Query[k] = append(r.Query[k], v)
			}
		}
		_, err := b.client.Do(ctx, r)
		return err
	}
	for name, tt := range map[string]struct {
		err  error
		code string
	}{
		"event of a room one is not in":     {ask("GET", nil, "v1", "event", string(id)), "M_FORBIDDEN"},
		"state of a room one is not in":     {ask("GET", nil, "v1", "state", string(room)+"?event_id="+string(id)), "M_FORBIDDEN"},
		"state_ids of a room one is not in": {ask("GET", nil, "v1", "state_ids", string(room)+"?event_id="+string(id)), "M_FORBIDDEN"},
		"backfill of a room one is not in":  {ask("GET", nil, "v1", "backfill", string(room)+"?limit=1&v="+string(id)), "M_FORBIDDEN"},
		"auth chain":                        {ask("GET", nil, "v1", "event_auth", string(room), string(id)), "M_FORBIDDEN"},
		"missing events":                    {ask("POST", map[string]any{"earliest_events": []string{}, "latest_events": []string{string(id)}}, "v1", "get_missing_events", string(room)), "M_FORBIDDEN"},
		"unknown event":                     {ask("GET", nil, "v1", "event", "$nothing"), "M_NOT_FOUND"},
		"a join for somebody else's user":   {ask("GET", nil, "v1", "make_join", string(room), "@eve:c.test?ver=12"), "M_FORBIDDEN"},
		"a join without an invitation":      {ask("GET", nil, "v1", "make_join", string(room), "@bob:b.test?ver=12"), "M_FORBIDDEN"},
		"a version one does not know":       {ask("GET", nil, "v1", "make_join", string(room), "@bob:b.test?ver=5"), "M_INCOMPATIBLE_ROOM_VERSION"},
		"a room that is not here":           {ask("GET", nil, "v1", "make_join", "!none:a.test", "@bob:b.test?ver=12"), "M_NOT_FOUND"},
		"a transaction without pdus":        {ask("PUT", map[string]any{}, "v1", "send", "x"), "M_BAD_JSON"},
		"too many events":                   {ask("PUT", map[string]any{"pdus": make([]struct{}, 51)}, "v1", "send", "y"), "M_BAD_JSON"},
		"an unknown query":                  {ask("GET", nil, "v1", "query", "weather"), "M_UNRECOGNIZED"},
		"a malformed user":                  {ask("GET", nil, "v1", "user", "devices", "bob"), "M_INVALID_PARAM"},
	} {
		var fe *fedclient.Error
		if !errors.As(tt.err, &fe) || fe.Code != tt.code {
			t.Errorf("%s: %v, want %s", name, tt.err, tt.code)
		}
	}
	// Without a signature, or with one for another server, nothing is answered.
	_, err := b.client.Do(ctx, fedclient.Request{Method: "GET", Server: a.name, Path: fedclient.Path("_matrix", "federation", "v1", "event", string(id)), Unsigned: true})
	var fe *fedclient.Error
	if !errors.As(err, &fe) || fe.Status != 401 {
		t.Errorf("unsigned: %v", err)
	}
}

func TestACL(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	ctx := context.Background()
	room, alice, bob := joined(t, a, b, "12")
	empty := ""
	_, err := a.rooms.Send(ctx, rooms.Draft{
		Room: room, Sender: alice, Type: "m.room.server_acl", StateKey: &empty, Content: json.RawMessage(`{"allow":["*"],"deny":["b.test"]}`),
	})
	ok(t, err)
	// b is told of the list, but says something that has not heard of it yet.
	b.send(room, bob, "shut out")
	b.typing.Set(bob, room, true, time.Minute)
	a.send(room, alice, "after")
	until(t, "a's message on b", func() bool { return slices.Contains(b.texts(room), "after") })
	time.Sleep(100 * time.Millisecond)
	if got := a.texts(room); slices.Contains(got, "shut out") {
		t.Errorf("a took %v", got)
	}
	if got := a.typing.Users(room); len(got) > 0 {
		t.Errorf("typing from a server that is shut out: %v", got)
	}
}

func TestTransactionsAreIdempotent(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	ctx := context.Background()
	room, _, bob := joined(t, a, b, "12")
	edu := map[string]any{"edu_type": "m.typing", "content": map[string]any{"room_id": room, "user_id": bob, "typing": true}}
	body := map[string]any{"origin": b.name, "origin_server_ts": 1, "pdus": []any{}, "edus": []any{edu}}
	send := func(txn string) {
		t.Helper()
		raw, _ := json.Marshal(body)
		if _, err := b.client.SendTransaction(ctx, a.name, txn, raw); err != nil {
			t.Fatal(err)
		}
	}
	send("one")
	if len(a.typing.Users(room)) != 1 {
		t.Fatal("the EDU was not taken")
	}
	a.typing.Set(bob, room, false, 0)
	send("one")
	if len(a.typing.Users(room)) != 0 {
		t.Error("a repeated transaction was processed again")
	}
	send("two")
	if len(a.typing.Users(room)) != 1 {
		t.Error("a new transaction was not processed")
	}
	// EDUs that speak for another server are dropped.
	edu["content"] = map[string]any{"room_id": room, "user_id": "@alice:a.test", "typing": true}
	send("three")
	if slices.Contains(a.typing.Users(room), "@alice:a.test") {
		t.Error("b spoke for alice")
	}
}

func TestThreeServers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b, c := w.start("a.test", newDisk(t)), w.start("b.test", newDisk(t)), w.start("c.test", newDisk(t))
	ctx := context.Background()
	room, alice, bob := joined(t, a, b, "12")
	carol := c.user("carol")
	// carol joins through a; b hears of it from a.
	ok(t, c.rooms.Join(ctx, rooms.MemberChange{Room: room, Sender: carol, Target: carol, Via: []matrix.ServerName{a.name}}))
	until(t, "carol on b", func() bool { return b.hub.Joined(carol, room) })
	b.send(room, bob, "from b")
	until(t, "b's message on c", func() bool { return slices.Contains(c.texts(room), "from b") })
	c.send(room, carol, "from c")
	for _, s := range []*server{a, b} {
		until(t, "c's message", func() bool { return slices.Contains(s.texts(room), "from c") })
	}
	// Two messages at the same time fork the room; all servers end with the same state and both messages.
	a.send(room, alice, "x")
	b.send(room, bob, "y")
	for _, s := range []*server{a, b, c} {
		until(t, "both", func() bool { got := s.texts(room); return slices.Contains(got, "x") && slices.Contains(got, "y") })
	}
}

// TestBothTalkAtOnce forks the room again and again: in the end both servers have every message once, and the same
// members, topic and names.
func TestBothTalkAtOnce(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"10", "12"} {
		t.Run("v"+version, func(t *testing.T) {
			t.Parallel()
			bothTalk(t, version)
		})
	}
}

func bothTalk(t *testing.T, version string) {
	a, b := pair(t)
	ctx := context.Background()
	room, alice, bob := joined(t, a, b, version)
	const n = 30
	done := make(chan error, 2)
	talk := func(s *server, user matrix.UserID) {
		for i := range n {
			if _, err := s.rooms.Send(ctx, message(room, user, fmt.Sprintf("%s %d", user.Localpart(), i))); err != nil {
				done <- err
				return
			}
			if i%10 == 5 {
				u := matrix.NewUserID(fmt.Sprintf("%s%d", user.Localpart(), i), s.name)
				if err := s.rooms.Join(ctx, rooms.MemberChange{Room: room, Sender: u, Target: u}); err != nil {
					done <- err
					return
				}
			}
		}
		done <- nil
	}
	go talk(a, alice)
	go talk(b, bob)
	ok(t, <-done)
	ok(t, <-done)
	for _, s := range []*server{a, b} {
		until(t, "all messages", func() bool { return len(s.texts(room)) >= 2*n })
		got := s.texts(room)
		slices.Sort(got)
		if len(slices.Compact(slices.Clone(got))) != 2*n || len(got) != 2*n {
			t.Errorf("%s has %d messages, %d different", s.name, len(got), len(slices.Compact(got)))
		}
	}
	members := func(s *server) []string {
		var out []string
		list, err := s.rooms.CurrentState(ctx, room)
		ok(t, err)
		for _, e := range list {
			out = append(out, fmt.Sprintf("%s %s %s", e.Type, e.Key(), e.ID))
		}
		slices.Sort(out)
		return out
	}
	until(t, "the same state", func() bool { return slices.Equal(members(a), members(b)) })
	hubA, hubB := a.hub.Members(room), b.hub.Members(room)
	slices.Sort(hubA)
	slices.Sort(hubB)
	if !slices.Equal(hubA, hubB) || len(hubA) != 8 {
		t.Errorf("members on a %v, on b %v", hubA, hubB)
	}
}
