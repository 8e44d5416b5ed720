package hstest_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/rooms"
)

const (
	slidingPath = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
	slidingV4   = "/_matrix/client/v4/sync"
)

type obj = map[string]any

// slider is a client's connection.
type slider struct {
	t    *testing.T
	u    *hstest.User
	body obj
	pos  string
}

func slide(t *testing.T, u *hstest.User, body obj) *slider {
	return &slider{t: t, u: u, body: body}
}

func (c *slider) path(timeout int) string {
	q := url.Values{"timeout": {fmt.Sprint(timeout)}, "set_presence": {"offline"}}
	if c.pos != "" {
		q.Set("pos", c.pos)
	}
	return slidingPath + "?" + q.Encode()
}

// next reads on and confirms.
func (c *slider) next(timeout int) gjson.Result {
	c.t.Helper()
	r := c.u.OK("POST", c.path(timeout), c.body)
	if c.pos = r.Get("pos").Str; c.pos == "" {
		c.t.Fatalf("no pos in %s", r.Raw)
	}
	return r
}

// until reads on until what is at a path exists.
func (c *slider) until(path string) gjson.Result {
	c.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if r := c.next(1000).Get(path); r.Exists() {
			return r
		}
	}
	c.t.Fatalf("%s never came", path)
	return gjson.Result{}
}

func at(room id.RoomID) string { return "rooms." + gjson.Escape(string(room)) }

func allRooms(limit int, to int, state ...[]string) obj {
	if state == nil {
		state = [][]string{}
	}
	return obj{"lists": obj{"all": obj{"ranges": [][]int{{0, to}}, "timeline_limit": limit, "required_state": state}}}
}

func names(r gjson.Result) (out []string) {
	r.Get("rooms").ForEach(func(k, _ gjson.Result) bool {
		out = append(out, k.Str)
		return true
	})
	return out
}

func bodies(list gjson.Result) (out []string) {
	for _, e := range list.Array() {
		if e.Get("type").Str == "m.room.message" {
			out = append(out, e.Get("content.body").Str)
		}
	}
	return out
}

func TestSlidingWindow(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	var all []id.RoomID
	for i := range 6 {
		r := alice.Room(&mautrix.ReqCreateRoom{Preset: "public_chat", Name: fmt.Sprint("room ", i)}, bob)
		all = append(all, r)
	}
	send(bob, all[1], "w", "the newest")
	c := slide(t, alice, allRooms(1, 1, []string{"m.room.create", ""}, []string{"m.room.member", "$ME"}))
	r := c.next(0)
	if got := names(r); !slices.Equal(got, []string{string(all[1]), string(all[5])}) || r.Get("lists.all.count").Int() != 6 {
		t.Fatalf("the window holds %v of %s", got, r.Get("lists").Raw)
	}
	first := r.Get(at(all[1]))
	if !first.Get("initial").Bool() || first.Get("name").Str != "room 1" || first.Get("joined_count").Int() != 2 || first.Get("invited_count").Int() != 0 ||
		!first.Get("limited").Bool() || first.Get("num_live").Int() != 0 || first.Get("notification_count").Int() != 1 || first.Get("heroes").Exists() {
		t.Errorf("the first room: %s", first.Raw)
	}
	if got := keysOf(first.Get("required_state")); !slices.Equal(got, []string{"m.room.create|", "m.room.member|" + string(alice.UserID)}) {
		t.Errorf("its state: %v", got)
	}
	if got := bodies(first.Get("timeline")); !slices.Equal(got, []string{"the newest"}) {
		t.Errorf("its timeline: %v", got)
	}
	if a, b := first.Get("bump_stamp").Int(), r.Get(at(all[5])).Get("bump_stamp").Int(); a <= b || b <= 0 {
		t.Errorf("stamps %d and %d", a, b)
	}
	if m := alice.OK("GET", hstest.Path("rooms", string(all[1]), "messages")+"?dir=b&limit=1&from="+url.QueryEscape(first.Get("prev_batch").Str), nil); m.Get("chunk.#").Int() != 1 ||
		m.Get("chunk.0.event_id").Str == first.Get("timeline.0.event_id").Str {
		t.Errorf("before it: %s", m.Raw)
	}
	// A larger window holds the rest and nothing twice.
	c.body = allRooms(1, 99)
	r = c.next(0)
	if got := names(r); len(got) != 4 || slices.Contains(got, string(all[1])) {
		t.Errorf("the larger window brings %v", got)
	}
	// Nothing more.
	if r = c.next(0); len(names(r)) != 0 || r.Get("lists.all.count").Int() != 6 {
		t.Errorf("nothing happened: %s", r.Raw)
	}
	// What happens comes, and only that.
	ev := send(bob, all[0], "w2", "hello")
	room := c.until(at(all[0]))
	if got := eventIDs(room.Get("timeline")); !slices.Equal(got, []string{ev}) || room.Get("initial").Exists() || room.Get("limited").Exists() ||
		room.Get("num_live").Int() != 1 || room.Get("name").Exists() || room.Get("joined_count").Exists() {
		t.Errorf("a message: %s", room.Raw)
	}
	// What does not fit says so.
	for i := range 3 {
		send(bob, all[0], fmt.Sprint("w3", i), fmt.Sprint(i))
	}
	if room = c.next(0).Get(at(all[0])); !slices.Equal(bodies(room.Get("timeline")), []string{"2"}) || !room.Get("limited").Bool() {
		t.Errorf("three messages: %s", room.Raw)
	}
	// An answer that was lost comes again.
	old := c.pos
	send(bob, all[0], "w4", "once")
	a := c.next(0).Get(at(all[0]))
	c.pos = old
	if b := c.next(0).Get(at(all[0])); len(bodies(a.Get("timeline"))) != 1 || !slices.Equal(bodies(a.Get("timeline")), bodies(b.Get("timeline"))) {
		t.Errorf("repeated: %s and %s", a.Raw, b.Raw)
	}
	c.pos = old
	c.next(0)
	c.next(0)
	c.pos = old
	alice.Refused(400, "M_UNKNOWN_POS", "POST", c.path(0), c.body)
}

func TestSlidingSubscription(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	for i := range 5 {
		send(bob, room, fmt.Sprint("s", i), fmt.Sprint(i))
	}
	c := slide(t, alice, allRooms(1, 9, []string{"m.room.create", ""}))
	c.next(0)
	// More of the timeline, and state that was not asked for before.
	c.body["room_subscriptions"] = obj{string(room): obj{"timeline_limit": 4, "required_state": [][]string{{"m.room.create", ""}, {"m.room.power_levels", ""}, {"m.room.member", "$LAZY"}}}}
	r := c.next(0).Get(at(room))
	if got := bodies(r.Get("timeline")); !slices.Equal(got, []string{"1", "2", "3", "4"}) || !r.Get("unstable_expanded_timeline").Bool() || r.Get("initial").Exists() || r.Get("num_live").Int() != 0 {
		t.Errorf("the longer timeline: %s", r.Raw)
	}
	if got := keysOf(r.Get("required_state")); !slices.Equal(got, []string{"m.room.member|" + string(bob.UserID), "m.room.power_levels|"}) {
		t.Errorf("the added state: %v", got)
	}
	if r := c.next(0); len(names(r)) != 0 {
		t.Errorf("again: %s", r.Raw)
	}
	// The waiting request is woken; bob is known by now.
	go func() {
		time.Sleep(50 * time.Millisecond)
		_, _ = bob.SendText(t.Context(), room, "wake up")
	}()
	began := time.Now()
	r = c.next(9000).Get(at(room))
	if !slices.Equal(bodies(r.Get("timeline")), []string{"wake up"}) || time.Since(began) > 5*time.Second || r.Get("required_state").Exists() {
		t.Errorf("after %s: %s", time.Since(began), r.Raw)
	}
	// State changes show in both places; a removed name is null.
	setState(t, alice, room, "m.room.power_levels", "", obj{"state_default": 50, "events_default": 0, "invite": 50})
	if r = c.until(at(room)); !slices.Equal(keysOf(r.Get("required_state")), []string{"m.room.member|" + string(alice.UserID), "m.room.power_levels|"}) {
		t.Errorf("new levels: %s", r.Raw)
	}
	setState(t, alice, room, "m.room.name", "", obj{"name": "named"})
	if r = c.until(at(room)); r.Get("name").Str != "named" || r.Get("heroes").Exists() {
		t.Errorf("a name: %s", r.Raw)
	}
	setState(t, alice, room, "m.room.name", "", obj{})
	if r = c.until(at(room)); r.Get("name").Type != gjson.Null || !r.Get("name").Exists() || r.Get("heroes.0.user_id").Str != string(bob.UserID) {
		t.Errorf("no name: %s", r.Raw)
	}
	// A room of others stays closed.
	secret := bob.Room(&mautrix.ReqCreateRoom{Preset: "private_chat"})
	c.body["room_subscriptions"] = obj{string(secret): obj{"timeline_limit": 4, "required_state": [][]string{{"*", "*"}}}}
	if r := c.next(0); r.Get(at(secret)).Exists() {
		t.Errorf("somebody else's room: %s", r.Raw)
	}
}

func TestSlidingMembership(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob, carol := s.User("alice"), s.User("bob"), s.User("carol")
	c := slide(t, bob, allRooms(10, 9, []string{"m.room.member", "$LAZY"}))
	if r := c.next(0); r.Get("lists.all.count").Int() != 0 || len(names(r)) != 0 {
		t.Fatalf("nothing yet: %s", r.Raw)
	}
	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "private_chat", Name: "secret"})
	send(alice, room, "before", "before")
	invite := func(r id.RoomID) {
		alice.OK("POST", hstest.Path("rooms", string(r), "invite"), obj{"user_id": bob.UserID})
	}
	invite(room)
	r := c.until(at(room))
	if r.Get(`invite_state.#(type=="m.room.name").content.name`).Str != "secret" || r.Get("timeline").Exists() || r.Get("required_state").Exists() ||
		r.Get("membership").Str != "invite" || !r.Get("initial").Bool() || r.Get("name").Exists() {
		t.Errorf("the invitation: %s", r.Raw)
	}
	if r := c.next(0); len(names(r)) != 0 || r.Get("lists.all.count").Int() != 1 {
		t.Errorf("the invitation again: %s", r.Raw)
	}
	bob.OK("POST", hstest.Path("join", string(room)), obj{})
	r = c.until(at(room))
	if !r.Get("initial").Bool() || r.Get("name").Str != "secret" || r.Get("invite_state").Exists() || r.Get("joined_count").Int() != 2 || !slices.Contains(bodies(r.Get("timeline")), "before") {
		t.Errorf("joined: %s", r.Raw)
	}
	if got := keysOf(r.Get("required_state")); !slices.Equal(got, []string{"m.room.member|" + string(alice.UserID), "m.room.member|" + string(bob.UserID)}) {
		t.Errorf("lazy members: %v", got)
	}
	alice.OK("POST", hstest.Path("rooms", string(room), "invite"), obj{"user_id": carol.UserID})
	r = c.until(at(room))
	if r.Get("invited_count").Int() != 1 || !slices.Contains(keysOf(r.Get("required_state")), "m.room.member|"+string(carol.UserID)) {
		t.Errorf("carol is invited: %s", r.Raw)
	}
	// Put out of the room, bob hears of it and of nothing later.
	send(alice, room, "last", "last words")
	alice.OK("POST", hstest.Path("rooms", string(room), "kick"), obj{"user_id": bob.UserID})
	send(alice, room, "after", "not for bob")
	r = c.until(at(room))
	for end := time.Now().Add(5 * time.Second); r.Get("membership").Str == "join" && time.Now().Before(end); {
		r = c.until(at(room))
	}
	if r.Get("membership").Str != "leave" || strings.Contains(r.Raw, "not for bob") ||
		r.Get(`required_state.#(state_key=="`+string(bob.UserID)+`").content.membership`).Str != "leave" {
		t.Errorf("put out: %s", r.Raw)
	}
	if r := c.next(0); len(names(r)) != 0 {
		t.Errorf("put out again: %s", r.Raw)
	}
	// A new connection hears of that room too, but not of one that bob left himself.
	other := alice.Room(nil, bob)
	bob.OK("POST", hstest.Path("rooms", string(other), "leave"), obj{})
	d := slide(t, bob, allRooms(10, 9))
	d.body["conn_id"] = "second"
	r = d.next(0)
	if got := names(r); !slices.Equal(got, []string{string(room)}) || strings.Contains(r.Raw, "not for bob") || !strings.Contains(r.Raw, "last words") {
		t.Errorf("afterwards: %s", r.Raw)
	}
	// An invitation that is declined.
	third := alice.Room(&mautrix.ReqCreateRoom{Preset: "private_chat"})
	invite(third)
	d.until(at(third))
	bob.OK("POST", hstest.Path("rooms", string(third), "leave"), obj{})
	if r = d.until(at(third)); r.Get("membership").Str != "leave" || r.Get("required_state.0.content.membership").Str != "leave" {
		t.Errorf("declined: %s", r.Raw)
	}
}

func TestSlidingFilters(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	me := url.PathEscape(string(alice.UserID))
	plain := alice.Room(nil)
	encrypted := create(alice, obj{"initial_state": []obj{{"type": "m.room.encryption", "content": obj{"algorithm": "m.megolm.v1.aes-sha2"}}}})
	space := create(alice, obj{"creation_content": obj{"type": "m.space"}})
	setState(t, alice, space, "m.space.child", string(plain), obj{"via": []string{string(s.Name)}})
	setState(t, alice, space, "m.space.child", string(encrypted), obj{})
	alice.OK("PUT", hstest.V3+"/user/"+me+"/account_data/m.direct", obj{string(bob.UserID): []string{string(encrypted)}})
	alice.OK("PUT", hstest.V3+"/user/"+me+"/rooms/"+url.PathEscape(string(plain))+"/tags/m.favourite", obj{})
	invited := bob.Room(&mautrix.ReqCreateRoom{Preset: "private_chat", Invite: []id.UserID{alice.UserID}})
	all := []id.RoomID{plain, encrypted, space, invited}
	for _, c := range []struct {
		filter obj
		want   []id.RoomID
	}{
		{obj{}, all},
		{obj{"is_dm": true}, []id.RoomID{encrypted}},
		{obj{"is_dm": false, "is_invite": false}, []id.RoomID{plain, space}},
		{obj{"is_encrypted": true}, []id.RoomID{encrypted}},
		{obj{"is_encrypted": false, "is_invited": false}, []id.RoomID{plain, space}},
		{obj{"is_invite": true}, []id.RoomID{invited}},
		{obj{"room_types": []any{"m.space"}}, []id.RoomID{space}},
		{obj{"room_types": []any{nil}}, []id.RoomID{plain, encrypted, invited}},
		{obj{"room_types": []any{nil, "m.space"}, "not_room_types": []any{"m.space"}}, []id.RoomID{plain, encrypted, invited}},
		{obj{"tags": []string{"m.favourite"}}, []id.RoomID{plain}},
		{obj{"not_tags": []string{"m.favourite"}}, []id.RoomID{encrypted, space, invited}},
		{obj{"spaces": []string{string(space)}}, []id.RoomID{plain}},
		{obj{"spaces": []string{"!nowhere:a.example"}}, nil},
	} {
		r := slide(t, alice, obj{"lists": obj{"l": obj{"timeline_limit": 1, "filters": c.filter}}}).next(0)
		var want []string
		for _, id := range c.want {
			want = append(want, string(id))
		}
		got := names(r)
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) || int(r.Get("lists.l.count").Int()) != len(want) {
			t.Errorf("%v gives %v", c.filter, got)
		}
	}
	// A list follows what it filters by.
	c := slide(t, alice, obj{"lists": obj{"l": obj{"timeline_limit": 1, "filters": obj{"is_dm": true}}}})
	if r := c.next(0); !r.Get(at(encrypted) + ".is_dm").Bool() {
		t.Errorf("direct: %s", r.Raw)
	}
	alice.OK("PUT", hstest.V3+"/user/"+me+"/account_data/m.direct", obj{string(bob.UserID): []string{string(encrypted), string(plain)}})
	c.until(at(plain))
}

func TestSlidingExtensions(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	ev := send(bob, room, "x", "read me")
	me := url.PathEscape(string(alice.UserID))
	on := obj{"enabled": true}
	c := slide(t, alice, allRooms(1, 9))
	c.body["extensions"] = obj{"to_device": on, "e2ee": on, "account_data": on, "receipts": on, "typing": on}
	r := c.next(0)
	x := r.Get("extensions")
	if !x.Get("to_device.next_batch").Exists() || x.Get("to_device.events.#").Int() != 0 || !x.Get("e2ee.device_one_time_keys_count").Exists() ||
		!x.Get("e2ee.device_unused_fallback_key_types").IsArray() || x.Get("e2ee.device_lists").Exists() ||
		!strings.Contains(x.Get("account_data.global").Raw, "m.push_rules") || x.Get("typing").Exists() {
		t.Errorf("the first answer: %s", x.Raw)
	}
	// To-device messages come until they are confirmed, and then no more.
	bob.OK("PUT", hstest.V3+"/sendToDevice/m.test/t1", obj{"messages": obj{string(alice.UserID): obj{string(alice.DeviceID): obj{"n": 1}}}})
	msg := c.until("extensions.to_device.events.0")
	if msg.Get("content.n").Int() != 1 || msg.Get("sender").Str != string(bob.UserID) {
		t.Errorf("to device: %s", msg.Raw)
	}
	if r = c.next(0); r.Get("extensions.to_device.events.#").Int() != 1 {
		t.Errorf("without a token it comes again: %s", r.Raw)
	}
	c.body["extensions"].(obj)["to_device"] = obj{"enabled": true, "since": r.Get("extensions.to_device.next_batch").Str}
	if r = c.next(0); r.Get("extensions.to_device.events.#").Int() != 0 {
		t.Errorf("confirmed: %s", r.Raw)
	}
	c.body["extensions"].(obj)["to_device"] = on
	if r = c.next(0); r.Get("extensions.to_device.events.#").Int() != 0 {
		t.Errorf("confirmed for good: %s", r.Raw)
	}
	// Receipts.
	bob.OK("POST", hstest.Path("rooms", string(room), "receipt", "m.read", ev), obj{})
	path := "extensions.receipts.rooms." + gjson.Escape(string(room))
	rec := c.until(path)
	if rec.Get("type").Str != "m.receipt" || !rec.Get("content."+gjson.Escape(ev)+`.m\.read.`+gjson.Escape(string(bob.UserID))).Exists() {
		t.Errorf("receipt: %s", rec.Raw)
	}
	if r = c.next(0); r.Get("extensions.receipts").Exists() {
		t.Errorf("the receipt again: %s", r.Raw)
	}
	alice.OK("POST", hstest.Path("rooms", string(room), "receipt", "m.read", ev), obj{})
	if r := c.until(at(room)); r.Get("notification_count").Int() != 0 || r.Get("timeline").Exists() {
		t.Errorf("read: %s", r.Raw)
	}
	d := slide(t, alice, allRooms(1, 9))
	d.body["conn_id"], d.body["extensions"] = "d", obj{"receipts": on}
	if r = d.next(0); len(r.Get(path+".content."+gjson.Escape(ev)+`.m\.read`).Map()) != 2 {
		t.Errorf("receipts of the beginning: %s", r.Raw)
	}
	// Typing.
	bob.OK("PUT", hstest.Path("rooms", string(room), "typing", string(bob.UserID)), obj{"typing": true, "timeout": 20000})
	if r := c.until("extensions.typing.rooms." + gjson.Escape(string(room))); r.Get("type").Str != "m.typing" || r.Get("content.user_ids.0").Str != string(bob.UserID) {
		t.Errorf("typing: %s", r.Raw)
	}
	bob.OK("PUT", hstest.Path("rooms", string(room), "typing", string(bob.UserID)), obj{"typing": false})
	if r := c.until("extensions.typing.rooms." + gjson.Escape(string(room))); r.Get("content.user_ids.#").Int() != 0 {
		t.Errorf("no more typing: %s", r.Raw)
	}
	// Account data.
	alice.OK("PUT", hstest.V3+"/user/"+me+"/account_data/org.example", obj{"a": 1})
	if r := c.until("extensions.account_data.global.0"); r.Get("type").Str != "org.example" || r.Get("content.a").Int() != 1 {
		t.Errorf("account data: %s", r.Raw)
	}
	alice.OK("PUT", hstest.V3+"/user/"+me+"/rooms/"+url.PathEscape(string(room))+"/account_data/org.example", obj{"b": 1})
	if r := c.until("extensions.account_data.rooms." + gjson.Escape(string(room))); r.Get("0.content.b").Int() != 1 || r.Get("#").Int() != 1 {
		t.Errorf("account data of a room: %s", r.Raw)
	}
	// Devices.
	bob.Login("NEWDEVICE")
	bob.OK("POST", hstest.V3+"/keys/upload", obj{"device_keys": obj{
		"user_id": bob.UserID, "device_id": bob.DeviceID, "algorithms": []string{}, "keys": obj{}, "signatures": obj{},
	}})
	if r := c.until("extensions.e2ee.device_lists.changed.0"); r.Str != string(bob.UserID) {
		t.Errorf("device lists: %s", r.Raw)
	}
}

func TestSlidingRestart(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	alice.Room(nil, bob)
	c := slide(t, alice, allRooms(1, 9))
	c.next(0)
	keys := slide(t, alice, obj{"conn_id": "encryption", "extensions": obj{"e2ee": obj{"enabled": true}}})
	keys.next(0)
	s.Stop()
	s.Start()
	alice.Refused(400, "M_UNKNOWN_POS", "POST", c.path(0), c.body)
	c.pos = ""
	if r := c.next(0); len(names(r)) != 1 {
		t.Errorf("anew: %s", r.Raw)
	}
	// Whoever wants no rooms goes on, and misses no change of devices.
	bob.OK("POST", hstest.V3+"/keys/upload", obj{"device_keys": obj{
		"user_id": bob.UserID, "device_id": bob.DeviceID, "algorithms": []string{}, "keys": obj{}, "signatures": obj{},
	}})
	if r := keys.until("extensions.e2ee.device_lists.changed"); !strings.Contains(r.Raw, string(bob.UserID)) {
		t.Errorf("device lists: %s", r.Raw)
	}
}

// A device has so many connections; the one that was used least lately goes.
func TestSlidingConnections(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice := s.User("alice")
	alice.Room(nil)
	var list []*slider
	for i := range 10 {
		c := slide(t, alice, allRooms(1, 9))
		c.body["conn_id"] = fmt.Sprint(i)
		c.next(0)
		list = append(list, c)
	}
	list[0].next(0)
	more := slide(t, alice, allRooms(1, 9))
	more.next(0)
	alice.Refused(400, "M_UNKNOWN_POS", "POST", list[1].path(0), list[1].body)
	list[0].next(0)
	list[2].next(0)
	// Another connection's place is no place of this one, and another device has its own.
	list[2].body["conn_id"] = "3"
	alice.Refused(400, "M_UNKNOWN_POS", "POST", list[2].path(0), list[2].body)
	other := slide(t, alice.Login("OTHER"), allRooms(1, 9))
	other.pos = more.pos
	other.u.Refused(400, "M_UNKNOWN_POS", "POST", other.path(0), other.body)
	other.pos = ""
	if r := other.next(0); len(names(r)) != 1 {
		t.Errorf("the other device: %s", r.Raw)
	}
}

func TestSlidingAccepted(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "public_chat", Topic: "of the day"}, bob)
	invited := bob.Room(&mautrix.ReqCreateRoom{Preset: "private_chat", Invite: []id.UserID{alice.UserID}})
	send(bob, room, "a", "hello")
	body := obj{"set_presence": "offline", "lists": obj{"main": obj{"range": []int{0, 9}, "timeline_limit": 1, "required_state": obj{
		"include": []obj{{}}, "exclude": []obj{{"type": "m.room.create", "state_key": ""}}, "lazy_members": true,
	}}}}
	r := alice.OK("POST", slidingV4, body)
	got := r.Get(at(room))
	state := keysOf(got.Get("required_state"))
	if slices.Contains(state, "m.room.create|") || !slices.Contains(state, "m.room.topic|") || !slices.Contains(state, "m.room.member|"+string(bob.UserID)) ||
		slices.Contains(state, "m.room.member|"+string(alice.UserID)) {
		t.Errorf("state: %v", state)
	}
	if !slices.Equal(bodies(got.Get("timeline_events")), []string{"hello"}) || got.Get("lists.0").Str != "main" || got.Get("membership").Str != "join" {
		t.Errorf("room: %s", got.Raw)
	}
	if inv := r.Get(at(invited)); !inv.Get("stripped_state").IsArray() || inv.Get("invite_state").Exists() {
		t.Errorf("invitation: %s", inv.Raw)
	}
	body["pos"], body["timeout"] = r.Get("pos").Str, 5000
	ev := send(bob, room, "b", "again")
	if r = alice.OK("POST", slidingV4, body); !slices.Equal(eventIDs(r.Get(at(room)+".timeline_events")), []string{ev}) {
		t.Errorf("on: %s", r.Raw)
	}
	// Every pos serves /messages.
	if m := alice.OK("GET", hstest.Path("rooms", string(room), "messages")+"?dir=b&limit=1&from="+url.QueryEscape(r.Get("pos").Str), nil); m.Get("chunk.0.event_id").Str != ev {
		t.Errorf("messages: %s", m.Raw)
	}
	for _, bad := range []obj{
		{"lists": obj{"x": obj{"range": []int{5, 2}, "timeline_limit": 1}}},
		{"lists": obj{"x": obj{"range": []int{-1, 2}, "timeline_limit": 1}}},
		{"lists": obj{"x": obj{"timeline_limit": -1}}},
		{"room_subscriptions": obj{"nonsense": obj{"timeline_limit": 1}}},
		{"set_presence": "asleep"},
		{"timeout": -1},
		{"conn_id": strings.Repeat("x", 300)},
		{"extensions": obj{"to_device": obj{"enabled": true, "since": "what"}}},
		{"extensions": obj{"to_device": obj{"enabled": true, "limit": 0}}},
	} {
		alice.Refused(400, "M_INVALID_PARAM", "POST", slidingV4, bad)
	}
	for _, bad := range []obj{
		{"lists": 5},
		{"lists": obj{"x": obj{"timeline_limit": 1, "required_state": 5}}},
		{"lists": obj{"x": obj{"timeline_limit": 1, "required_state": [][]string{{"one"}}}}},
	} {
		alice.Refused(400, "M_BAD_JSON", "POST", slidingV4, bad)
	}
	alice.Refused(400, "M_UNKNOWN_POS", "POST", slidingV4, obj{"pos": "nonsense"})
	alice.Refused(400, "M_UNKNOWN_POS", "POST", slidingV4, obj{"pos": "s999999999_5_1.abc"})
}

func TestSlidingIgnoredAndReplaced(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob, carol := s.User("alice"), s.User("bob"), s.User("carol")
	room := alice.Room(nil, bob, carol)
	alice.OK("PUT", hstest.V3+"/user/"+url.PathEscape(string(alice.UserID))+"/account_data/m.ignored_user_list", obj{"ignored_users": obj{string(bob.UserID): obj{}}})
	c := slide(t, alice, allRooms(5, 9))
	c.next(0)
	send(bob, room, "i", "nobody reads this")
	send(carol, room, "j", "but this")
	if r := c.until(at(room)); !slices.Equal(bodies(r.Get("timeline")), []string{"but this"}) {
		t.Errorf("with somebody ignored: %s", r.Raw)
	}
	// A second request of the same connection ends the first, and gets what comes.
	done := make(chan hstest.Answer)
	path := c.path(8000)
	go func() { done <- alice.Do("POST", path, c.body) }()
	time.Sleep(100 * time.Millisecond)
	go func() { time.Sleep(200 * time.Millisecond); _, _ = carol.SendText(t.Context(), room, "for the second") }()
	if r := c.next(8000).Get(at(room)); !slices.Equal(bodies(r.Get("timeline")), []string{"for the second"}) {
		t.Errorf("the second: %s", r.Raw)
	}
	if a := <-done; a.Status != 200 || len(a.Get("rooms").Map()) != 0 {
		t.Errorf("the first: %d %s", a.Status, a.Body)
	}
	send(carol, room, "k", "and on")
	if r := c.until(at(room)); !slices.Equal(bodies(r.Get("timeline")), []string{"and on"}) {
		t.Errorf("afterwards: %s", r.Raw)
	}
}

// A sync that finds nothing asks the database nothing, whatever its lists filter
// by; a message costs each client at most a few statements.
func TestSlidingQueries(t *testing.T) {
	t.Parallel()
	const clients = 10
	c := newCrowd(t, 30)
	pos := make([]string, clients)
	body := func() string {
		b, _ := json.Marshal(obj{
			"lists": obj{"all": obj{
				"ranges": [][]int{{0, 19}}, "timeline_limit": 1, "required_state": [][]string{{"m.room.member", "$LAZY"}, {"m.room.name", ""}},
				"filters": obj{"not_room_types": []string{"m.space"}, "is_dm": false},
			}},
			"extensions": obj{"account_data": obj{"enabled": true}, "receipts": obj{"enabled": true}, "typing": obj{"enabled": true}},
		})
		return string(b)
	}()
	turn := func(i int) gjson.Result {
		r := gjson.ParseBytes(c.call(t, "POST", slidingPath+"?set_presence=offline&pos="+url.QueryEscape(pos[i]), i, body))
		pos[i] = r.Get("pos").Str
		return r
	}
	for range 3 {
		for i := range clients {
			turn(i)
		}
	}
	c.say(t)
	for i := range clients {
		if n := len(names(turn(i))); n != 1 {
			t.Fatalf("client %d hears of %d rooms", i, n)
		}
	}
	c.settle(t)
	idle := c.fewest(func() {
		for range 5 {
			for i := range clients {
				if r := turn(i); len(names(r)) != 0 || r.Get("lists.all.count").Int() != 1 {
					t.Fatalf("nothing happened, and client %d hears %s", i, r.Raw)
				}
			}
		}
	})
	if idle != 0 {
		t.Errorf("idle syncs ran %d statements", idle)
	}
	// The speaker is known by now: a further message is all in memory.
	_, err := c.s.Rooms().Send(t.Context(), rooms.Draft{Room: c.room, Sender: c.users[0], Type: "m.room.message", Content: json.RawMessage(`{"msgtype":"m.text","body":"again"}`)})
	if err != nil {
		t.Fatal(err)
	}
	c.settle(t)
	before := c.s.DB().Statements()
	for i := range clients {
		if n := len(names(turn(i))); n != 1 {
			t.Fatalf("client %d hears of %d rooms", i, n)
		}
	}
	if n := c.s.DB().Statements() - before; n > 12 {
		t.Errorf("%d clients hearing of one message ran %d statements", clients, n)
	}
}

// BenchmarkSlidingWake is what one client costs that is told of one message: one
// of the rooms of its list.
func BenchmarkSlidingWake(b *testing.B) {
	const clients = 8 // connections of one device
	c := newCrowd(b, 200)
	for i := range 300 {
		if _, err := c.s.Rooms().Create(b.Context(), c.users[1], rooms.CreateRequest{Name: fmt.Sprint("room ", i)}, 0); err != nil {
			b.Fatal(err)
		}
	}
	body := `{"lists":{"all":{"ranges":[[0,99]],"timeline_limit":1,"required_state":[["m.room.member","$LAZY"],["m.room.name",""]],
		"filters":{"not_room_types":["m.space"]}}},"extensions":{"account_data":{"enabled":true},"receipts":{"enabled":true},"typing":{"enabled":true}}}`
	for _, user := range []int{2, 1} {
		b.Run(fmt.Sprintf("rooms=%d", []int{301, 1}[user-1]), func(b *testing.B) {
			pos := make([]string, clients)
			turn := func(i int) {
				r := c.call(b, "POST", fmt.Sprintf("%s?set_presence=offline&pos=%s", slidingPath, url.QueryEscape(pos[i])), user, strings.Replace(body, "{", fmt.Sprintf(`{"conn_id":"%d",`, i), 1))
				pos[i] = gjson.GetBytes(r, "pos").Str
			}
			for i := range clients {
				turn(i)
			}
			for b.Loop() {
				b.StopTimer()
				c.say(b)
				b.StartTimer()
				for i := range clients {
					turn(i)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/clients, "ns/client")
		})
	}
}

func TestSlidingFederation(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	c := slide(t, bob, allRooms(10, 9, []string{"*", "*"}, []string{"m.room.member", "$LAZY"}))
	c.body["extensions"] = obj{"e2ee": obj{"enabled": true}}
	c.next(0)
	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "private_chat", Name: "far away", Invite: []id.UserID{bob.UserID}})
	if r := c.until(at(room)); r.Get("membership").Str != "invite" || r.Get(`invite_state.#(type=="m.room.name").content.name`).Str != "far away" {
		t.Errorf("invited from afar: %s", r.Raw)
	}
	join(bob, room, a)
	var r, lists gjson.Result
	for end := time.Now().Add(10 * time.Second); (r.Get("membership").Str != "join" || !lists.Exists()) && time.Now().Before(end); {
		answer := c.next(1000)
		if next := answer.Get(at(room)); next.Exists() {
			r = next
		}
		if l := answer.Get("extensions.e2ee.device_lists.changed"); l.Exists() {
			lists = l
		}
	}
	if r.Get("name").Str != "far away" || r.Get("joined_count").Int() != 2 || r.Get("bump_stamp").Int() <= 0 || !slices.Contains(keysOf(r.Get("required_state")), "m.room.create|") {
		t.Errorf("joined afar: %s", r.Raw)
	}
	if !strings.Contains(lists.Raw, string(alice.UserID)) {
		t.Errorf("whose keys to read: %s", lists.Raw)
	}
	alice.Say(room, "welcome")
	if r := c.until(at(room)); !slices.Equal(bodies(r.Get("timeline")), []string{"welcome"}) ||
		!slices.Contains(keysOf(r.Get("required_state")), "m.room.member|"+string(alice.UserID)) {
		t.Errorf("from afar: %s", r.Raw)
	}
}
