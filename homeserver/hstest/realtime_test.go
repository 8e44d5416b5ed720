package hstest_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/hstest"
)

const msc4140 = "/_matrix/client/unstable/org.matrix.msc4140/"

// stick sends a sticky event.
func stick(u *hstest.User, room id.RoomID, txn, body string, ms int) string {
	return u.OK("PUT", hstest.Path("rooms", string(room), "send", "m.test", txn)+fmt.Sprintf("?org.matrix.msc4354.sticky_duration_ms=%d", ms),
		map[string]string{"body": body}).Get("event_id").Str
}

// stuck lists what is sticky in a room's part of an answer to /sync.
func stuck(r gjson.Result, room id.RoomID) []string {
	return eventIDs(r.Get(in("join", room) + ".msc4354_sticky.events"))
}

func TestCallsAreAnnounced(t *testing.T) {
	t.Parallel()
	transport := `{"livekit_service_url":"https://rtc.a.example/livekit/jwt","type":"livekit"}`
	s := hstest.New(t, func(o *homeserver.Options) {
		o.Realtime.Transports = []json.RawMessage{json.RawMessage(transport)}
		o.PublicURL = "https://chat.a.example"
	})
	alice := s.User("alice")
	got := alice.OK("GET", "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports", nil)
	if got.Get("rtc_transports").Raw != "["+transport+"]" {
		t.Errorf("transports: %s", got)
	}
	if a := s.Do("", "GET", "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports", nil); a.Status != 401 || a.Code() != "M_MISSING_TOKEN" {
		t.Errorf("without a token: %d %s", a.Status, a.Body)
	}
	if w := s.Do("", "GET", "/.well-known/matrix/client", nil); w.Get(`org\.matrix\.msc4143\.rtc_foci`).Raw != "["+transport+"]" {
		t.Errorf("well-known: %s", w.Body)
	}
	v := s.Do("", "GET", "/_matrix/client/versions", nil)
	for _, f := range []string{"org.matrix.msc4140", "org.matrix.msc4143", "org.matrix.msc4354"} {
		if !v.Get("unstable_features." + gjson.Escape(f)).Bool() {
			t.Errorf("%s is not offered", f)
		}
	}
	c := alice.OK("GET", hstest.V3+"/capabilities", nil).Get(`capabilities.org\.matrix\.msc4140\.delayed_events`)
	if c.Get("max_delay_ms").Int() != 86400000 || c.Get("max_scheduled").Int() != 100 {
		t.Errorf("the limits are %s", c)
	}
}

func TestStickyEventsReachClients(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob, carol := s.User("alice"), s.User("bob"), s.User("carol")
	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "public_chat", InitialState: nil}, bob)
	alice.OK("PUT", hstest.Path("rooms", string(room), "state", "m.room.history_visibility", ""), map[string]string{"history_visibility": "joined"})
	since := bob.RawSync("").Get("next_batch").Str
	one := stick(alice, room, "1", "one", 600_000)
	r := bob.RawSync(since)
	e := r.Get(in("join", room) + ".timeline.events.0")
	if e.Get("event_id").Str != one || e.Get("msc4354_sticky.duration_ms").Int() != 600_000 {
		t.Fatalf("the timeline holds %s", e)
	}
	if ttl := e.Get("unsigned.msc4354_sticky_duration_ttl_ms").Int(); ttl <= 590_000 || ttl > 600_000 {
		t.Errorf("it lasts for %d ms", ttl)
	}
	if got := stuck(r, room); got != nil {
		t.Errorf("sticky though in the timeline: %v", got)
	}
	// More follows than a timeline holds.
	two := stick(alice, room, "2", "two", 300_000)
	short := stick(alice, room, "3", "short", 1)
	for i := range 30 {
		alice.Say(room, fmt.Sprint("m", i))
	}
	const filter = `filter={"room":{"timeline":{"limit":3}}}`
	for _, params := range [][]string{{filter}, {filter, "full_state=true"}, {`filter={"room":{"timeline":{"limit":3,"lazy_load_members":true},"state":{"lazy_load_members":true}}}`}} {
		if got := fmt.Sprint(stuck(bob.RawSync(since, params...), room)); got != fmt.Sprintf("[%s %s]", one, two) {
			t.Errorf("%v: sticky are %s, want %s and %s but not %s", params, got, one, two, short)
		}
	}
	if got := fmt.Sprint(stuck(bob.RawSync(since, `filter={"room":{"timeline":{"types":["m.room.name"]}}}`), room)); got != fmt.Sprintf("[%s %s]", one, two) {
		t.Errorf("with a filter that leaves them out of the timeline: %s", got)
	}
	next := bob.RawSync(since, filter).Get("next_batch").Str
	if got := stuck(bob.RawSync(next, filter), room); got != nil {
		t.Errorf("heard twice: %v", got)
	}
	// Whoever joins hears of them though he may not see what was before.
	if _, err := carol.JoinRoomByID(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(stuck(carol.RawSync(""), room)); got != fmt.Sprintf("[%s %s]", one, two) {
		t.Errorf("the newcomer hears of %s", got)
	}
	alice.OK("PUT", hstest.Path("rooms", string(room), "redact", two, "r"), map[string]string{})
	s.Stop()
	s.Start()
	if got := fmt.Sprint(stuck(carol.RawSync("", filter), room)); got != fmt.Sprintf("[%s]", one) {
		t.Errorf("after a restart and a redaction: %s", got)
	}
	for _, bad := range []string{"-1", "3600001", "x", "1.5"} {
		alice.Refused(400, "M_INVALID_PARAM", "PUT", hstest.Path("rooms", string(room), "send", "m.test", "bad")+"?org.matrix.msc4354.sticky_duration_ms="+bad, map[string]string{})
	}
}

// A call whose client goes silent ends by itself: the leave is delayed, sticky,
// and put off while the client lives.
func TestDelayedStickyEvent(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice, bob := s.User("alice"), s.User("bob")
	room := alice.Room(nil, bob)
	since := bob.RawSync("").Get("next_batch").Str
	delay := alice.OK("PUT", hstest.Path("rooms", string(room), "send", "org.matrix.msc4143.rtc.member", "leave")+
		"?org.matrix.msc4354.sticky_duration_ms=60000&org.matrix.msc4140.delay=300", map[string]string{"msc4354_sticky_key": "x"}).Get("delay_id").Str
	for range 3 {
		time.Sleep(150 * time.Millisecond)
		if a := s.Do("", "POST", msc4140+"delayed_events/"+delay+"/restart", "{}"); a.Status != 200 {
			t.Fatalf("restart: %d %s", a.Status, a.Body)
		}
	}
	if n := bob.RawSync(since).Get(in("join", room) + ".timeline.events.#").Int(); n != 0 {
		t.Fatal("the call ended though its client lives")
	}
	e := bob.RawSync(since, "timeout=10000").Get(in("join", room) + ".timeline.events.0")
	if e.Get("type").Str != "org.matrix.msc4143.rtc.member" || e.Get("msc4354_sticky.duration_ms").Int() != 60000 || e.Get("unsigned").Get(`org\.matrix\.msc4140\.delay_id`).Exists() {
		t.Errorf("bob hears %s", e)
	}
	mine := alice.RawSync("").Get(in("join", room) + ".timeline.events.@reverse.0")
	if got := mine.Get("unsigned").Get(`org\.matrix\.msc4140\.delay_id`).Str; got != delay {
		t.Errorf("alice sees the delay ID %q", got)
	}
}

// A server that comes into a room hears of what is sticky there, though it was
// sent before, and from both servers that are in it.
func TestStickyEventsReachNewServers(t *testing.T) {
	t.Parallel()
	a, b, c := hstest.Trio(t)
	alice, bob, carol := a.User("alice"), b.User("bob"), c.User("carol")
	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "public_chat"})
	alice.OK("PUT", hstest.Path("rooms", string(room), "state", "m.room.history_visibility", ""), map[string]string{"history_visibility": "joined"})
	joinVia(t, bob, room, a)
	want := map[string]bool{stick(alice, room, "1", "of alice", 600_000): true, stick(bob, room, "1", "of bob", 600_000): true}
	for i := range 30 {
		alice.Say(room, fmt.Sprint("m", i))
	}
	bob.Hears(room, "m29")
	joinVia(t, carol, room, a)
	since := ""
	c.Eventually("both sticky events", func() bool {
		r := carol.RawSync(since)
		since = r.Get("next_batch").Str
		for _, id := range append(stuck(r, room), eventIDs(r.Get(in("join", room)+".timeline.events"))...) {
			delete(want, id)
		}
		return len(want) == 0
	})
}

// joinVia joins a room through a server.
func joinVia(t *testing.T, u *hstest.User, room id.RoomID, via *hstest.Server) {
	t.Helper()
	u.OK("POST", hstest.Path("join", string(room))+"?via="+string(via.Name), map[string]string{})
}

// Two servers, the second of which judges the events of a room.
func TestPolicyServer(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t, func(o *homeserver.Options) {
		o.PolicyServer = homeserver.PolicyServer{Enabled: true, DenyTexts: []string{"casino"}}
	})
	alice, bob := a.User("alice"), b.User("bob")
	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "public_chat"})
	joinVia(t, bob, room, a)
	keys := b.Do("", "GET", "/.well-known/matrix/policy_server", nil)
	alice.OK("PUT", hstest.Path("rooms", string(room), "state", "m.room.policy", ""),
		map[string]any{"via": b.Name, "public_keys": json.RawMessage(keys.Get("public_keys").Raw)})
	b.Eventually("the second server to know", func() bool {
		return bob.Do("GET", hstest.Path("rooms", string(room), "state", "m.room.policy", ""), nil).Status == 200
	})
	alice.Say(room, "good morning")
	e := bob.Hears(room, "good morning")
	bob.Say(room, "good evening") // signed by the same server with both keys
	alice.Hears(room, "good evening")
	alice.Refused(400, "M_FORBIDDEN", "PUT", hstest.Path("rooms", string(room), "send", "m.room.message", "x"), map[string]string{"msgtype": "m.text", "body": "Casino"})
	if e.ID == "" {
		t.Error("no event")
	}
	carol := a.User("carol") // members are judged too, and come in
	if _, err := carol.JoinRoomByID(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	alice.OK("POST", hstest.Path("rooms", string(room), "invite"), map[string]string{"user_id": string(b.User("dave").UserID)})
	if _, err := b.User("dave").JoinRoomByID(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	b.User("dave").Say(room, "here I am")
	carol.Hears(room, "here I am")

	// Where it does not answer, nothing is sent; the room can dismiss it.
	b.Cut()
	if r := alice.Do("PUT", hstest.Path("rooms", string(room), "send", "m.room.message", "y"), map[string]string{"msgtype": "m.text", "body": "lost"}); r.Status != 502 {
		t.Errorf("without its policy server: %d %s", r.Status, r.Body)
	}
	alice.OK("PUT", hstest.Path("rooms", string(room), "state", "m.room.policy", ""), map[string]any{})
	alice.Say(room, "on our own")
	b.Heal()
	bob.Hears(room, "on our own")
}

// A server that does not ask: what it sends is hidden, unless the policy server
// signs it when it is asked by the receiver.
func TestEventsWithoutSignatureAreHidden(t *testing.T) {
	t.Parallel()
	judge, quiet := hstest.Pair(t, func(o *homeserver.Options) {
		o.PolicyServer = homeserver.PolicyServer{Enabled: true, DenyTexts: []string{"casino"}}
	})
	alice, bob := judge.User("alice"), quiet.User("bob")
	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "public_chat"})
	joinVia(t, bob, room, judge)
	// bob's server does not hear of the policy server in time, and asks nobody.
	quiet.Cut()
	keys := judge.Do("", "GET", "/.well-known/matrix/policy_server", nil)
	alice.OK("PUT", hstest.Path("rooms", string(room), "state", "m.room.policy", ""),
		map[string]any{"via": judge.Name, "public_keys": json.RawMessage(keys.Get("public_keys").Raw)})
	spam := bob.Say(room, "come to my casino")
	bob.Say(room, "sorry")
	alice.Hears(room, "sorry") // asked for by the receiver, and signed
	if r := alice.Do("GET", hstest.Path("rooms", string(room), "event", string(spam)), nil); r.Status != 404 {
		t.Errorf("the event without a signature: %d %s", r.Status, r.Body)
	}
	for _, id := range eventIDs(alice.RawSync("", `filter={"room":{"timeline":{"limit":50}}}`).Get(in("join", room) + ".timeline.events")) {
		if id == string(spam) {
			t.Error("the event without a signature is shown")
		}
	}
	quiet.Heal()
	bob.SyncUntil("the policy server's name", func(*mautrix.RespSync) bool {
		return bob.Do("GET", hstest.Path("rooms", string(room), "state", "m.room.policy", ""), nil).Status == 200
	})
	alice.Say(room, "on we go")
	bob.Hears(room, "on we go")
	bob.Say(room, "yes")
	alice.Hears(room, "yes")
}

// The device that waits for the next log-in: others encrypt to it, the new device
// reads what they wrote, and there is one at most.
func TestDehydratedDevice(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	joinVia(t, bob, alice.Room(&mautrix.ReqCreateRoom{Preset: "public_chat"}), a)
	const base = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"
	alice.Refused(404, "M_NOT_FOUND", "GET", base, nil)
	alice.Refused(404, "M_NOT_FOUND", "DELETE", base, nil)
	alice.Refused(403, "M_FORBIDDEN", "GET", base+"/DRY/events", nil)
	body := func(device string) map[string]any {
		return map[string]any{
			"device_id": device, "device_data": map[string]any{"algorithm": "org.matrix.msc3814.v2", "device_pickle": "secret"},
			"initial_device_display_name": "Dehydrated",
			"device_keys": map[string]any{
				"user_id": alice.UserID, "device_id": device, "dehydrated": true, "algorithms": []string{"m.olm.v1.curve25519-aes-sha2"},
				"keys":       map[string]string{"curve25519:" + device: "c", "ed25519:" + device: "e"},
				"signatures": map[string]any{string(alice.UserID): map[string]string{"ed25519:" + device: "s"}},
			},
			"one_time_keys": map[string]any{"signed_curve25519:one": map[string]any{"key": "k1"}},
			"fallback_keys": map[string]any{"signed_curve25519:fall": map[string]any{"key": "k2", "fallback": true}},
		}
	}
	for _, c := range []struct {
		field string
		value any
		code  string
	}{
		{"device_id", nil, "M_MISSING_PARAM"},
		{"device_data", nil, "M_MISSING_PARAM"},
		{"device_keys", nil, "M_MISSING_PARAM"},
		{"device_id", "OTHER", "M_BAD_JSON"},
		{"device_id", 1, "M_BAD_JSON"},
		{"device_data", map[string]any{}, "M_BAD_JSON"},
		{"device_data", "x", "M_BAD_JSON"},
	} {
		q := body("DRY")
		q[c.field] = c.value
		if c.value == nil {
			delete(q, c.field)
		}
		alice.Refused(400, c.code, "PUT", base, q)
	}
	alice.Refused(400, "M_INVALID_PARAM", "PUT", base, body(string(alice.DeviceID)))
	alice.OK("PUT", base, body("DRY"))
	if got := alice.OK("GET", base, nil); got.Get("device_id").Str != "DRY" || got.Get("device_data.device_pickle").Str != "secret" {
		t.Errorf("stored: %s", got)
	}
	keys := map[string]any{"device_keys": map[string]any{string(alice.UserID): []string{}}}
	at := "device_keys." + gjson.Escape(string(alice.UserID))
	if got := bob.OK("POST", hstest.V3+"/keys/query", keys).Get(at + ".DRY"); !got.Get("dehydrated").Bool() {
		t.Errorf("another server sees %s", got)
	}
	claim := map[string]any{"one_time_keys": map[string]any{string(alice.UserID): map[string]string{"DRY": "signed_curve25519"}}}
	for _, want := range []string{"one", "fall", "fall"} {
		got := bob.OK("POST", hstest.V3+"/keys/claim", claim)
		if !got.Get("one_time_keys." + gjson.Escape(string(alice.UserID)) + ".DRY." + gjson.Escape("signed_curve25519:"+want)).Exists() {
			t.Errorf("claimed %s, want %s", got, want)
		}
	}
	for i := range 130 {
		bob.OK("PUT", hstest.V3+fmt.Sprintf("/sendToDevice/m.test/%d", i), map[string]any{"messages": map[string]any{string(alice.UserID): map[string]any{"DRY": map[string]int{"n": i}}}})
	}
	all := func(path string) (n int64) {
		for from := ""; ; {
			r := alice.OK("GET", path+"?from="+from, nil)
			n += r.Get("events.#").Int()
			if from = r.Get("next_batch").Str; from == "" {
				return n
			}
		}
	}
	a.Eventually("the messages", func() bool { return all(base+"/DRY/events") == 130 })
	n, next := int64(0), ""
	for rounds := 0; rounds < 10; rounds++ {
		q := map[string]string{}
		if next != "" {
			q["next_batch"] = next
		}
		r := alice.OK("POST", base+"/DRY/events", q)
		if r.Get("events.#").Int() == 0 {
			break
		}
		n, next = n+r.Get("events.#").Int(), r.Get("next_batch").Str
	}
	if n != 130 {
		t.Errorf("clients of the earlier text get %d messages", n)
	}
	alice.Refused(400, "M_INVALID_PARAM", "GET", base+"/DRY/events?from=x", nil)
	alice.Refused(403, "M_FORBIDDEN", "GET", base+"/OTHER/events", nil)
	if got := alice.RawSync("").Get("to_device.events.#").Int(); got != 0 {
		t.Errorf("another device gets %d of the messages", got)
	}
	alice.OK("PUT", base, body("WET"))
	if got := bob.OK("POST", hstest.V3+"/keys/query", keys).Get(at); got.Get("DRY").Exists() {
		b.Eventually("the old device to be gone", func() bool {
			got := bob.OK("POST", hstest.V3+"/keys/query", keys).Get(at)
			return !got.Get("DRY").Exists() && got.Get("WET").Exists()
		})
	}
	if all(base+"/WET/events") != 0 {
		t.Error("the new one has the old one's messages")
	}
	if got := alice.OK("DELETE", base, nil); got.Get("device_id").Str != "WET" {
		t.Errorf("deleted %s", got)
	}
	alice.Refused(404, "M_NOT_FOUND", "GET", base, nil)
	for _, d := range alice.OK("GET", hstest.V3+"/devices", nil).Get("devices.#.device_id").Array() {
		if d.Str != string(alice.DeviceID) {
			t.Errorf("the device %s is left", d.Str)
		}
	}
}
