package hstest_test

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// in is the path of a room's part in an answer to /sync.
func in(kind string, room id.RoomID) string {
	return "rooms." + kind + "." + gjson.Escape(string(room))
}

// eventIDs lists the events of a list.
func eventIDs(list gjson.Result) (out []string) {
	list.ForEach(func(_, e gjson.Result) bool {
		out = append(out, e.Get("event_id").Str)
		return true
	})
	return out
}

// keysOf lists "type|state_key" of state events, sorted.
func keysOf(list gjson.Result) (out []string) {
	list.ForEach(func(_, e gjson.Result) bool {
		out = append(out, e.Get("type").Str+"|"+e.Get("state_key").Str)
		return true
	})
	slices.Sort(out)
	return out
}

func TestLimitedTimelineLosesNothing(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	filter := `filter={"room":{"timeline":{"limit":5}}}`
	r := bob.RawSync("", filter)
	have := eventIDs(r.Get(in("join", room) + ".timeline.events"))
	if len(have) != 5 || !r.Get(in("join", room)+".timeline.limited").Bool() {
		t.Fatalf("the first sync holds %d events, limited %s", len(have), r.Get(in("join", room)+".timeline.limited").Raw)
	}
	var all []string
	collect := func(since string, r gjson.Result) {
		tl := r.Get(in("join", room) + ".timeline")
		page := eventIDs(tl.Get("events"))
		if tl.Get("limited").Bool() {
			var gap []string
			from := tl.Get("prev_batch").Str
			for from != "" {
				m := bob.OK("GET", hstest.Path("rooms", string(room), "messages")+fmt.Sprintf("?dir=b&limit=3&from=%s&to=%s", from, since), nil)
				gap = append(gap, eventIDs(m.Get("chunk"))...)
				from = m.Get("end").Str
			}
			slices.Reverse(gap)
			all = append(all, gap...)
		}
		all = append(all, page...)
	}
	collect("", r)
	since := r.Get("next_batch").Str
	for round := range 6 {
		for i := range 1 + round*3 {
			send(alice, room, fmt.Sprintf("r%d-%d", round, i), fmt.Sprint(i))
		}
		r := bob.RawSync(since, filter)
		collect(since, r)
		since = r.Get("next_batch").Str
	}
	if want := page(t, alice, room, "f", "", 100, ""); !slices.Equal(all, want) {
		t.Errorf("pieced together %d events, the room has %d", len(all), len(want))
	}
}

func TestStateOfGappySyncs(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	since := bob.RawSync("").Get("next_batch").Str
	setState(t, alice, room, "m.room.topic", "", map[string]any{"topic": "one"})
	setState(t, alice, room, "m.room.name", "", map[string]any{"name": "early"})
	for i := range 6 {
		send(alice, room, fmt.Sprint("g", i), fmt.Sprint(i))
	}
	setState(t, alice, room, "m.room.topic", "", map[string]any{"topic": "two"})
	limit := `filter={"room":{"timeline":{"limit":3}}}`
	// The state before the timeline: what changed in the gap.
	r := bob.RawSync(since, limit).Get(in("join", room))
	topic := r.Get(`state.events.#(type=="m.room.topic").content.topic`).Str
	if topic != "one" || !slices.Equal(keysOf(r.Get("state.events")), []string{"m.room.name|", "m.room.topic|"}) {
		t.Errorf("the state before is %v, topic %q", keysOf(r.Get("state.events")), topic)
	}
	// The state after it, for clients that ask for that.
	r = bob.RawSync(since, limit, "use_state_after=true").Get(in("join", room))
	if topic := r.Get(`state_after.events.#(type=="m.room.topic").content.topic`).Str; topic != "two" || r.Get("state").Exists() {
		t.Errorf("the state after is %s", r.Raw)
	}
	// Clients from before the specification had it ask under another name, and read that name.
	r = bob.RawSync(since, limit, "org.matrix.msc4222.use_state_after=true").Get(in("join", room))
	if topic := r.Get(`org\.matrix\.msc4222\.state_after.events.#(type=="m.room.topic").content.topic`).Str; topic != "two" || r.Get("state").Exists() || r.Get("state_after").Exists() {
		t.Errorf("under the unstable name the state after is %s", r.Raw)
	}
	// And where nothing is left out.
	since = bob.RawSync("").Get("next_batch").Str
	setState(t, alice, room, "m.room.topic", "", map[string]any{"topic": "three"})
	r = bob.RawSync(since, "use_state_after=true").Get(in("join", room))
	if got := keysOf(r.Get("state_after.events")); !slices.Equal(got, []string{"m.room.topic|"}) || r.Get("timeline.events.#").Int() != 1 {
		t.Errorf("without a gap the state after is %s", r.Raw)
	}
	r = bob.RawSync(since).Get(in("join", room))
	if n := r.Get("state.events.#").Int(); n != 0 {
		t.Errorf("without a gap the state before is %s", r.Raw)
	}
	// Everything on demand.
	full := bob.RawSync(since, "full_state=true").Get(in("join", room))
	if got := keysOf(full.Get("state.events")); !slices.Contains(got, "m.room.create|") || !slices.Contains(got, "m.room.member|"+string(alice.UserID)) {
		t.Errorf("full_state gives %v", got)
	}
}

func TestLazyMembers(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice := s.User("alice")
	room := alice.Room(nil)
	var others []*hstest.User
	for i := range 8 {
		u := s.User(fmt.Sprint("user", i))
		u.OK("POST", hstest.Path("join", string(room)), "{}")
		others = append(others, u)
	}
	for i := range 3 {
		send(others[i], room, fmt.Sprint("l", i), "hello")
	}
	lazy := `filter={"room":{"timeline":{"limit":3},"state":{"lazy_load_members":true}}}`
	r := alice.RawSync("", lazy)
	var members []string
	for _, k := range keysOf(r.Get(in("join", room) + ".state.events")) {
		if m, ok := strings.CutPrefix(k, "m.room.member|"); ok {
			members = append(members, m)
		}
	}
	for _, u := range []*hstest.User{alice, others[0], others[1], others[2]} {
		if !slices.Contains(members, string(u.UserID)) {
			t.Errorf("%s speaks and is not in %v", u.UserID, members)
		}
	}
	sum := r.Get(in("join", room) + ".summary")
	if sum.Get(`m\.joined_member_count`).Int() != 9 || sum.Get(`m\.heroes.#`).Int() != 5 {
		t.Errorf("summary: %s", sum.Raw)
	}
	for _, h := range sum.Get(`m\.heroes`).Array() {
		if !slices.Contains(members, h.Str) {
			t.Errorf("the hero %s is not among the members", h.Str)
		}
	}
	if len(members) == 9 {
		t.Error("nothing was left out")
	}
	// Somebody speaks who was not told of yet.
	since := r.Get("next_batch").Str
	send(others[7], room, "l7", "now me")
	r = alice.RawSync(since, lazy)
	if got := keysOf(r.Get(in("join", room) + ".state.events")); !slices.Contains(got, "m.room.member|"+string(others[7].UserID)) {
		t.Errorf("the new speaker is not in %v", got)
	}
	m := alice.OK("GET", hstest.Path("rooms", string(room), "messages")+"?dir=b&limit=3&filter="+url.QueryEscape(`{"lazy_load_members":true}`), nil)
	if got := keysOf(m.Get("state")); !slices.Contains(got, "m.room.member|"+string(others[7].UserID)) || slices.Contains(got, "m.room.member|"+string(others[5].UserID)) {
		t.Errorf("/messages gives the state %v", got)
	}
}

// The member who speaks is kept for those who load members lazily, and what is kept is what holds at the time.
func TestSpeakersStayTrue(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	for _, section := range []string{"state", "state_after"} {
		lazy := []string{`filter={"room":{"state":{"lazy_load_members":true}}}`, "use_state_after=" + strconv.FormatBool(section == "state_after")}
		since := alice.RawSync("", lazy...).Get("next_batch").Str
		said := func(text string) gjson.Result { // bob's member event as it comes with what he says
			t.Helper()
			send(bob, room, text+section, text)
			r := alice.RawSync(since, lazy...)
			since = r.Get("next_batch").Str
			list := r.Get(in("join", room) + "." + section + ".events").Array()
			if len(list) != 1 || list[0].Get("state_key").Str != string(bob.UserID) {
				t.Fatalf("%s %s: the state is %v", section, text, list)
			}
			return list[0]
		}
		said("one")
		first := said("two")
		setState(t, bob, room, "m.room.member", string(bob.UserID), map[string]any{"membership": "join", "displayname": "Bobby"})
		since = alice.RawSync(since, lazy...).Get("next_batch").Str
		said("three")
		if got := said("four"); got.Get("content.displayname").Str != "Bobby" || got.Get("event_id").Str == first.Get("event_id").Str {
			t.Errorf("%s: after a new name: %s", section, got.Raw)
		}
		alice.OK("PUT", hstest.Path("rooms", string(room), "redact", said("five").Get("event_id").Str, "r"+section), map[string]any{})
		since = alice.RawSync(since, lazy...).Get("next_batch").Str
		said("six")
		if got := said("seven"); got.Get("content.displayname").Exists() || !got.Get("unsigned.redacted_because").Exists() {
			t.Errorf("%s: after the redaction: %s", section, got.Raw)
		}
	}
}

func TestSummaries(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob, carol := s.User("alice"), s.User("bob"), s.User("carol")
	room := alice.Room(nil, bob)
	heroes := func(r gjson.Result) string { return r.Get(in("join", room) + `.summary.m\.heroes`).Raw }
	r := alice.RawSync("")
	if got := heroes(r); got != `["`+string(bob.UserID)+`"]` {
		t.Errorf("heroes: %s", got)
	}
	since := r.Get("next_batch").Str
	alice.OK("POST", hstest.Path("rooms", string(room), "invite"), map[string]string{"user_id": string(carol.UserID)})
	r = alice.RawSync(since)
	sum := r.Get(in("join", room) + ".summary")
	if sum.Get(`m\.invited_member_count`).Int() != 1 || sum.Get(`m\.joined_member_count`).Int() != 2 {
		t.Errorf("after an invitation: %s", r.Get(in("join", room)).Raw)
	}
	since = r.Get("next_batch").Str
	send(alice, room, "s1", "no change of members")
	if r = alice.RawSync(since); r.Get(in("join", room)+".summary").Exists() && r.Get(in("join", room)+`.summary.m\.joined_member_count`).Int() != 2 {
		t.Errorf("after a message: %s", r.Get(in("join", room)).Raw)
	}
	setState(t, alice, room, "m.room.name", "", map[string]any{"name": "named"})
	if r := bob.RawSync(""); r.Get(in("join", room) + `.summary.m\.heroes`).Exists() {
		t.Errorf("a named room has heroes: %s", heroes(r))
	}
}

func TestInvitesAndLeavesInSync(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := create(alice, map[string]any{"preset": "private_chat", "name": "r"})
	since := bob.RawSync("").Get("next_batch").Str
	alice.OK("POST", hstest.Path("rooms", string(room), "invite"), map[string]string{"user_id": string(bob.UserID)})
	r := bob.RawSync(since)
	if got := keysOf(r.Get(in("invite", room) + ".invite_state.events")); !slices.Contains(got, "m.room.name|") || !slices.Contains(got, "m.room.member|"+string(bob.UserID)) {
		t.Errorf("invited: %s", r.Raw)
	}
	if !bob.RawSync("").Get(in("invite", room)).Exists() {
		t.Error("the invitation is not in a first sync")
	}
	since = r.Get("next_batch").Str
	bob.OK("POST", hstest.Path("join", string(room)), "{}")
	r = bob.RawSync(since)
	if got := r.Get(in("join", room)); got.Get("timeline.events.#").Int() == 0 || r.Get(in("invite", room)).Exists() {
		t.Errorf("joined: %s", r.Raw)
	}
	since = r.Get("next_batch").Str
	send(alice, room, "1", "before")
	bob.OK("POST", hstest.Path("rooms", string(room), "leave"), "{}")
	send(alice, room, "2", "behind his back")
	r = bob.RawSync(since)
	bodies := r.Get(in("leave", room) + ".timeline.events.#.content.body").Raw
	if bodies != `["before"]` || r.Get(in("join", room)).Exists() {
		t.Errorf("left: %s", r.Raw)
	}
	if r := bob.RawSync(r.Get("next_batch").Str); r.Get("rooms").Exists() {
		t.Errorf("after leaving: %s", r.Raw)
	}
	if bob.RawSync("").Get("rooms.leave").Exists() {
		t.Error("a left room is in a first sync")
	}
	r = bob.RawSync("", `filter={"room":{"include_leave":true}}`)
	tl := r.Get(in("leave", room) + ".timeline.events")
	if n := tl.Get("#").Int(); n == 0 || tl.Get(fmt.Sprintf("%d.content.membership", n-1)).Str != "leave" {
		t.Errorf("with include_leave: %s", r.Raw)
	}
	// Two changes between two syncs: only the last shows.
	since = bob.RawSync("").Get("next_batch").Str
	alice.OK("POST", hstest.Path("rooms", string(room), "invite"), map[string]string{"user_id": string(bob.UserID)})
	bob.OK("POST", hstest.Path("join", string(room)), "{}")
	send(alice, room, "3", "welcome back")
	r = bob.RawSync(since)
	if r.Get(in("invite", room)).Exists() || !r.Get(in("join", room)).Exists() || !strings.Contains(r.Get(in("join", room)).Raw, "welcome back") {
		t.Errorf("back: %s", r.Raw)
	}
	// Leave and come back unseen.
	since = r.Get("next_batch").Str
	bob.OK("POST", hstest.Path("rooms", string(room), "leave"), "{}")
	alice.OK("POST", hstest.Path("rooms", string(room), "invite"), map[string]string{"user_id": string(bob.UserID)})
	bob.OK("POST", hstest.Path("join", string(room)), "{}")
	r = bob.RawSync(since)
	if r.Get(in("leave", room)).Exists() || !r.Get(in("join", room)).Exists() {
		t.Errorf("left and back: %s", r.Raw)
	}
}

func TestSyncFilters(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	one, two := alice.Room(nil, bob), alice.Room(nil, bob)
	for i, room := range []id.RoomID{one, two} {
		send(alice, room, fmt.Sprint("f", i), "from alice")
		bob.OK("PUT", hstest.Path("rooms", string(room), "send", "im.carillon.test", fmt.Sprint("x", i)), `{"url":"mxc://x/y"}`)
	}
	stored := alice.OK("POST", hstest.Path("user", string(alice.UserID), "filter"), map[string]any{
		"room": map[string]any{"rooms": []id.RoomID{one}, "timeline": map[string]any{"types": []string{"m.room.message"}}},
	}).Get("filter_id").Str
	if got := alice.OK("GET", hstest.Path("user", string(alice.UserID), "filter", stored), nil).Get("room.rooms.0").Str; got != string(one) {
		t.Errorf("the stored filter is for %q", got)
	}
	r := alice.RawSync("", "filter="+stored)
	if r.Get(in("join", two)).Exists() || r.Get(in("join", one)+".timeline.events.#").Int() != 1 {
		t.Errorf("with the stored filter: %s", r.Get("rooms.join").Raw)
	}
	for _, c := range []struct {
		filter string
		check  func(room gjson.Result) bool
	}{
		{`{"room":{"timeline":{"not_types":["m.room.*"]}}}`, func(r gjson.Result) bool { return r.Get("timeline.events.#.type").Raw == `["im.carillon.test"]` }},
		{`{"room":{"timeline":{"senders":["` + string(bob.UserID) + `"],"types":["im.*"]}}}`, func(r gjson.Result) bool { return r.Get("timeline.events.#").Int() == 1 }},
		{`{"room":{"timeline":{"not_senders":["` + string(bob.UserID) + `"],"types":["im.*"]}}}`, func(r gjson.Result) bool { return r.Get("timeline.events.#").Int() == 0 }},
		{`{"room":{"timeline":{"contains_url":true}}}`, func(r gjson.Result) bool { return r.Get("timeline.events.#.type").Raw == `["im.carillon.test"]` }},
		{`{"room":{"timeline":{"limit":0}}}`, func(r gjson.Result) bool { return r.Get("timeline.events.#").Int() <= 1 }},
		{`{"room":{"state":{"types":[]}}}`, func(r gjson.Result) bool { return r.Get("state.events.#").Int() == 0 }},
		{`{"event_fields":["content.body"],"room":{"timeline":{"types":["m.room.message"]}}}`, func(r gjson.Result) bool {
			e := r.Get("timeline.events.0")
			return e.Get("content.body").Str == "from alice" && !e.Get("sender").Exists()
		}},
		{`{"event_format":"federation"}`, func(r gjson.Result) bool { return r.Get("timeline.events.0.auth_events").Exists() }},
	} {
		if r := alice.RawSync("", "filter="+c.filter).Get(in("join", one)); !c.check(r) {
			t.Errorf("filter %s gives %s", c.filter, r.Raw)
		}
	}
	alice.Refused(400, "M_INVALID_PARAM", "GET", hstest.Path("sync")+"?since=nonsense", nil)
	if a := alice.Do("GET", hstest.Path("sync")+"?filter=%7Bbad", nil); a.Status != 400 {
		t.Errorf("a bad filter: %d %s", a.Status, a.Body)
	}
}

func TestAccountDataTagsAndDirectRooms(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	me := string(alice.UserID)
	since := alice.RawSync("").Get("next_batch").Str
	alice.OK("PUT", hstest.Path("user", me, "account_data", "m.direct"), map[string]any{string(bob.UserID): []id.RoomID{room}})
	alice.OK("PUT", hstest.Path("user", me, "rooms", string(room), "account_data", "im.carillon.note"), map[string]string{"note": "ask bob"})
	alice.OK("PUT", hstest.Path("user", me, "rooms", string(room), "tags", "m.favourite"), map[string]float64{"order": 0.25})
	r := alice.RawSync(since)
	if got := r.Get(`account_data.events.#(type=="m.direct").content`).Raw; !strings.Contains(got, string(room)) {
		t.Errorf("global account data: %s", r.Raw)
	}
	data := r.Get(in("join", room) + ".account_data.events")
	if data.Get(`#(type=="m.tag").content.tags.m\.favourite.order`).Num != 0.25 || data.Get(`#(type=="im.carillon.note").content.note`).Str != "ask bob" {
		t.Errorf("room account data: %s", r.Raw)
	}
	if alice.RawSync(r.Get("next_batch").Str).Get("account_data").Exists() {
		t.Error("account data is told twice")
	}
	if got := alice.RawSync("").Get(`account_data.events.#(type=="m.push_rules").content.global`); !got.Exists() {
		t.Error("the push rules are not in a first sync")
	}
	if got := alice.OK("GET", hstest.Path("user", me, "account_data", "m.direct"), nil); !got.Get(gjson.Escape(string(bob.UserID))).Exists() {
		t.Errorf("m.direct is %s", got.Raw)
	}
	alice.OK("DELETE", hstest.Path("user", me, "rooms", string(room), "tags", "m.favourite"), nil)
	if got := alice.OK("GET", hstest.Path("user", me, "rooms", string(room), "tags"), nil).Get("tags").Raw; got != "{}" {
		t.Errorf("tags: %s", got)
	}
	if r := alice.RawSync(since); r.Get(in("join", room)+`.account_data.events.#(type=="m.tag").content.tags`).Raw != "{}" {
		t.Errorf("the end of a tag: %s", r.Get(in("join", room)).Raw)
	}
	bob.Refused(403, "M_FORBIDDEN", "GET", hstest.Path("user", me, "account_data", "m.direct"), nil)
	alice.Refused(404, "M_NOT_FOUND", "GET", hstest.Path("user", me, "account_data", "none"), nil)
	alice.Refused(405, "M_BAD_JSON", "PUT", hstest.Path("user", me, "account_data", "m.push_rules"), "{}")
}

func TestIgnoredUsers(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	send(bob, room, "0", "before")
	alice.OK("PUT", hstest.Path("user", string(alice.UserID), "account_data", "m.ignored_user_list"), map[string]any{"ignored_users": map[string]any{string(bob.UserID): map[string]any{}}})
	since := alice.RawSync("").Get("next_batch").Str
	send(bob, room, "1", "ignored")
	setState(t, alice, room, "m.room.topic", "", map[string]any{"topic": "x"})
	r := alice.RawSync(since)
	if strings.Contains(r.Raw, "ignored\"") || r.Get(in("join", room)+".unread_notifications.notification_count").Int() != 0 {
		t.Errorf("what an ignored user says is told: %s", r.Raw)
	}
	invitation := create(bob, map[string]any{"preset": "private_chat", "invite": []string{string(alice.UserID)}})
	if alice.RawSync(since).Get(in("invite", invitation)).Exists() {
		t.Error("an ignored user's invitation is shown")
	}
	alice.OK("PUT", hstest.Path("user", string(alice.UserID), "account_data", "m.ignored_user_list"), map[string]any{"ignored_users": map[string]any{}})
	if r := alice.RawSync(""); !strings.Contains(r.Raw, `"ignored"`) || !r.Get(in("invite", invitation)).Exists() {
		t.Error("no longer ignored, bob is not heard")
	}
}

// counts are the unread counts of a room by /sync.
func counts(u *hstest.User, room id.RoomID, params ...string) (notify, highlight int64, threads gjson.Result) {
	r := u.RawSync("", params...).Get(in("join", room))
	return r.Get("unread_notifications.notification_count").Int(), r.Get("unread_notifications.highlight_count").Int(), r.Get("unread_thread_notifications")
}

func TestUnreadCounts(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	check := func(what string, wantN, wantH int64) {
		t.Helper()
		if n, h, _ := counts(bob, room); n != wantN || h != wantH {
			t.Errorf("%s: %d unread, %d highlighted; want %d and %d", what, n, h, wantN, wantH)
		}
	}
	check("at first", 0, 0)
	root := send(alice, room, "1", "one")
	send(alice, room, "2", "two")
	check("two messages", 2, 0)
	mention := alice.OK("PUT", hstest.Path("rooms", string(room), "send", "m.room.message", "3"), map[string]any{
		"msgtype": "m.text", "body": "bob?", "m.mentions": map[string]any{"user_ids": []id.UserID{bob.UserID}},
	}).Get("event_id").Str
	check("a mention", 3, 1)
	setState(t, alice, room, "m.room.topic", "", map[string]any{"topic": "quiet"})
	check("a topic", 3, 1)
	alice.OK("PUT", hstest.Path("rooms", string(room), "redact", mention, "r"), "{}")
	check("the mention is redacted", 2, 0)
	for i := range 3 {
		alice.OK("PUT", hstest.Path("rooms", string(room), "send", "m.room.message", fmt.Sprint("t", i)), map[string]any{
			"msgtype": "m.text", "body": "in the thread", "m.relates_to": map[string]string{"rel_type": "m.thread", "event_id": root},
		})
	}
	check("with a thread", 5, 0)
	byThread := `filter={"room":{"timeline":{"unread_thread_notifications":true}}}`
	n, _, threads := counts(bob, room, byThread)
	if n != 2 || threads.Get(gjson.Escape(root)+".notification_count").Int() != 3 {
		t.Errorf("by thread: %d and %s", n, threads.Raw)
	}
	last := page(t, bob, room, "b", "", 1, "")[0]
	bob.OK("POST", hstest.Path("rooms", string(room), "receipt", "m.read", last), map[string]string{"thread_id": root})
	if n, _, threads := counts(bob, room, byThread); n != 2 || threads.Exists() {
		t.Errorf("the thread read: %d and %s", n, threads.Raw)
	}
	bob.OK("POST", hstest.Path("rooms", string(room), "receipt", "m.read.private", last), "{}")
	check("all read", 0, 0)
	send(bob, room, "b1", "mine")
	check("own message", 0, 0)
	send(alice, room, "4", "four")
	check("one more", 1, 0)
	s.Stop()
	s.Start()
	check("after a restart", 1, 0)
	bob.OK("PUT", hstest.Path("pushrules", "global", "room", string(room)), map[string]any{"actions": []string{}})
	send(alice, room, "5", "five")
	check("the room is silenced", 0, 0)
}

func TestReceiptsAndMarkers(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob, carol := s.User("alice"), s.User("bob"), s.User("carol")
	room := alice.Room(nil, bob, carol)
	ev := send(alice, room, "1", "read me")
	since := alice.RawSync("").Get("next_batch").Str
	bob.OK("POST", hstest.Path("rooms", string(room), "receipt", "m.read", ev), "{}")
	carol.OK("POST", hstest.Path("rooms", string(room), "receipt", "m.read.private", ev), "{}")
	receipts := func(u *hstest.User, since string) gjson.Result {
		return u.RawSync(since).Get(in("join", room) + `.ephemeral.events.#(type=="m.receipt").content.` + gjson.Escape(ev))
	}
	got := receipts(alice, since)
	if got.Get(`m\.read.`+gjson.Escape(string(bob.UserID))+".ts").Int() == 0 || got.Get(`m\.read\.private`).Exists() {
		t.Errorf("alice sees the receipts %s", got.Raw)
	}
	if got := receipts(carol, since); !got.Get(`m\.read\.private.` + gjson.Escape(string(carol.UserID))).Exists() {
		t.Errorf("carol sees the receipts %s", got.Raw)
	}
	threaded := send(alice, room, "2", "again")
	bob.OK("POST", hstest.Path("rooms", string(room), "receipt", "m.read", threaded), map[string]string{"thread_id": "main"})
	if th := alice.RawSync(since).Get(in("join", room) + `.ephemeral.events.#(type=="m.receipt").content.` + gjson.Escape(threaded) + `.m\.read.` + gjson.Escape(string(bob.UserID)) + ".thread_id"); th.Str != "main" {
		t.Errorf("the thread of the receipt is %s", th.Raw)
	}
	carol.OK("POST", hstest.Path("rooms", string(room), "read_markers"), map[string]string{"m.fully_read": threaded, "m.read": threaded})
	if got := carol.RawSync(since).Get(in("join", room) + `.account_data.events.#(type=="m.fully_read").content.event_id`).Str; got != threaded {
		t.Errorf("the marker is at %q", got)
	}
	bob.Refused(400, "M_INVALID_PARAM", "POST", hstest.Path("rooms", string(room), "receipt", "m.odd", ev), "{}")
	s.User("dave").Refused(403, "M_FORBIDDEN", "POST", hstest.Path("rooms", string(room), "receipt", "m.read", ev), "{}")
}

func TestTypingAndPresence(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	typing := func(since string) gjson.Result {
		return alice.RawSync(since, "timeout=2000").Get(in("join", room) + `.ephemeral.events.#(type=="m.typing").content.user_ids`)
	}
	since := alice.RawSync("").Get("next_batch").Str
	path := hstest.Path("rooms", string(room), "typing", string(bob.UserID))
	bob.OK("PUT", path, map[string]any{"typing": true, "timeout": 400})
	if got := typing(since); got.Raw != `["`+string(bob.UserID)+`"]` {
		t.Errorf("typing: %s", got.Raw)
	}
	s.Eventually("he stops by himself", func() bool { return typing(since).Raw == "[]" })
	alice.Refused(403, "M_FORBIDDEN", "PUT", path, map[string]any{"typing": true})
	s.User("carol").Refused(403, "M_FORBIDDEN", "PUT", hstest.Path("rooms", string(room), "typing", "@carol:a.example"), map[string]any{"typing": true})

	since = alice.RawSync("").Get("next_batch").Str
	status := hstest.Path("presence", string(bob.UserID), "status")
	bob.OK("PUT", status, map[string]string{"presence": "unavailable", "status_msg": "开会"})
	if got := alice.OK("GET", status, nil); got.Get("presence").Str != "unavailable" || got.Get("status_msg").Str != "开会" {
		t.Errorf("presence: %s", got.Raw)
	}
	r := alice.RawSync(since, "timeout=2000")
	if got := r.Get(`presence.events.#(sender=="` + string(bob.UserID) + `").content`); got.Get("status_msg").Str != "开会" {
		t.Errorf("presence by sync: %s", r.Raw)
	}
	alice.Refused(403, "M_FORBIDDEN", "PUT", status, map[string]string{"presence": "online"})
	bob.Refused(400, "M_INVALID_PARAM", "PUT", status, map[string]string{"presence": "asleep"})
}

func TestSyncWaitsForEverything(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	s.Eventually("quiet", func() bool {
		return alice.RawSync(alice.RawSync("").Get("next_batch").Str, "timeout=100").Get("rooms").Raw == ""
	})
	for what, do := range map[string]func(){
		"a message": func() { send(bob, room, "w", "x") },
		"a receipt": func() {
			bob.OK("POST", hstest.Path("rooms", string(room), "receipt", "m.read", page(t, bob, room, "b", "", 1, "")[0]), "{}")
		},
		"typing": func() {
			bob.OK("PUT", hstest.Path("rooms", string(room), "typing", string(bob.UserID)), `{"typing":true,"timeout":30000}`)
		},
		"account data":  func() { alice.OK("PUT", hstest.Path("user", string(alice.UserID), "account_data", "x"), "{}") },
		"an invitation": func() { create(bob, map[string]any{"invite": []id.UserID{alice.UserID}}) },
		"a device list": func() { uploadKeys(t, bob, 0) },
		"a push rule": func() {
			alice.OK("PUT", hstest.Path("pushrules", "global", "override", "mine"), `{"actions":["notify"],"conditions":[]}`)
		},
		"to-device": func() {
			bob.OK("PUT", hstest.Path("sendToDevice", "x.y", "w"), map[string]any{"messages": map[string]any{string(alice.UserID): map[string]any{"*": map[string]any{}}}})
		},
		"one-time keys":   func() { uploadKeys(t, alice, 3) },
		"another's leave": func() { bob.OK("POST", hstest.Path("rooms", string(alice.Room(nil, bob)), "leave"), "{}") },
	} {
		since := alice.RawSync("").Get("next_batch").Str
		done := make(chan gjson.Result, 1)
		start := time.Now()
		go func() { done <- alice.RawSync(since, "timeout=30000") }()
		time.Sleep(20 * time.Millisecond)
		do()
		r := <-done
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("%s woke alice after %v: %s", what, took, r.Raw)
		}
	}
}

func TestOldTokensStillWork(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	since := bob.RawSync("").Get("next_batch").Str
	var sent []string
	for i := range 5 {
		sent = append(sent, send(alice, room, fmt.Sprint("a", i), fmt.Sprint(i)))
	}
	setState(t, alice, room, "m.room.topic", "", map[string]any{"topic": "t"})
	bob.OK("PUT", hstest.Path("user", string(bob.UserID), "account_data", "x"), "{}")
	s.Stop()
	s.Start()
	sent = append(sent, send(alice, room, "b", "after the restart"))
	r := bob.RawSync(since)
	got := eventIDs(r.Get(in("join", room) + ".timeline.events"))
	if len(got) != 7 || !slices.Equal(got[:5], sent[:5]) || got[6] != sent[5] {
		t.Errorf("from a token of before the restart: %s", r.Raw)
	}
	if !r.Get(`account_data.events.#(type=="x")`).Exists() {
		t.Error("account data of before the restart is lost")
	}
	if again := bob.RawSync(since); !slices.Equal(eventIDs(again.Get(in("join", room)+".timeline.events")), got) {
		t.Error("the same token gives another answer")
	}
}
