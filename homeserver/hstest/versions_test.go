package hstest_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// TestVersionsAreTrue holds the server to what each release of the specification
// since v1.13 has brought, beside the endpoints that the walk calls: /versions
// promises all of it.
func TestVersionsAreTrue(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	var versions []string
	for _, v := range w.s.Do("", "GET", "/_matrix/client/versions", nil).Get("versions").Array() {
		versions = append(versions, v.Str)
	}
	has := func(v string, ok bool, what string, args ...any) {
		t.Helper()
		if !slices.Contains(versions, v) {
			t.Errorf("%s is not promised", v)
		}
		if !ok {
			t.Errorf("%s: "+what, append([]any{v}, args...)...)
		}
	}
	room := create(w.alice, map[string]any{"preset": "public_chat", "topic": "what to do"})
	w.bob.OK("POST", hstest.Path("join", string(room)), "{}")
	w.until15(room, has)
	w.until17(has)
	w.until19(room, has)
}

// promise says of a release whether something of it is there.
type promise func(v string, ok bool, what string, args ...any)

func (w *walk) until15(room id.RoomID, has promise) {
	t, s, alice, bob := w.t, w.s, w.alice, w.bob
	suspend := func(on bool) {
		w.chief.OK("PUT", "/_matrix/client/v1/admin/suspend/@bob:a.example", map[string]bool{"suspended": on})
	}

	// v1.13: methods in CORS, suspended users, reports of rooms without a reason.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodOptions, s.URL+hstest.Path("sync"), nil)
	if err != nil {
		t.Fatal(err)
	}
	methods := s.Send(req).Header.Get("Access-Control-Allow-Methods")
	for _, m := range []string{"GET", "POST", "PUT", "DELETE", "OPTIONS"} {
		has("v1.13", strings.Contains(methods, m), "browsers may not %s", m)
	}
	suspend(true)
	a := bob.Do("PUT", hstest.Path("rooms", string(room), "send", "m.room.message", "s"), text("x"))
	has("v1.13", a.Status == 403 && a.Code() == "M_USER_SUSPENDED", "a suspended user who writes: %d %s", a.Status, a.Body)
	has("v1.13", bob.Do("POST", hstest.Path("rooms", string(room), "leave"), "{}").Status == 200, "a suspended user cannot leave")
	suspend(false)
	has("v1.13", bob.Do("POST", hstest.Path("rooms", string(room), "report"), `{"reason":""}`).Status == 200, "a room cannot be reported without a reason")
	bob.OK("POST", hstest.Path("join", string(room)), "{}")

	// v1.14: reports of users.
	has("v1.14", bob.Do("POST", hstest.Path("users", string(alice.UserID), "report"), `{"reason":"x"}`).Status == 200, "a user cannot be reported")

	// v1.15: topics as text blocks, further fields of summaries.
	topic := alice.OK("GET", hstest.Path("rooms", string(room), "state", "m.room.topic", ""), nil)
	has("v1.15", topic.Get(`m\.topic.m\.text.0.body`).Str == "what to do", "the topic is %s", topic.Raw)
	sum := s.Do(alice.AccessToken, "GET", "/_matrix/client/v1/room_summary/"+string(room), nil)
	has("v1.15", sum.Get("room_version").Str == "12" && sum.Get("membership").Str == "join", "the summary is %s", sum.Body)
	restricted := create(alice, map[string]any{"initial_state": []map[string]any{
		{"type": "m.room.join_rules", "content": map[string]any{"join_rule": "restricted", "allow": []map[string]any{{"type": "m.room_membership", "room_id": room}}}},
		{"type": "m.room.encryption", "content": map[string]any{"algorithm": "m.megolm.v1.aes-sha2"}},
	}})
	sum = s.Do(bob.AccessToken, "GET", "/_matrix/client/v1/room_summary/"+string(restricted), nil)
	has("v1.15", sum.Get("allowed_room_ids.0").Str == string(room) && sum.Get("encryption").Str == "m.megolm.v1.aes-sha2", "the summary is %s", sum.Body)
}

func (w *walk) until17(has promise) {
	s, alice, bob := w.s, w.alice, w.bob
	// v1.16: room version 12 and its creators, stripped state, free profile fields.
	create(alice, map[string]any{"preset": "trusted_private_chat", "invite": []string{string(bob.UserID)}})
	var trusted gjson.Result
	bob.RawSync("").Get("rooms.invite").ForEach(func(_, r gjson.Result) bool {
		trusted = r.Get(`invite_state.events.#(type=="m.room.create")`)
		return false
	})
	has("v1.16", trusted.Get("content.additional_creators.0").Str == string(bob.UserID), "the create event of an invitation is %s", trusted.Raw)
	caps := alice.OK("GET", hstest.Path("capabilities"), nil).Get("capabilities")
	has("v1.16", caps.Get(`m\.profile_fields.enabled`).Bool() && caps.Get(`m\.room_versions.default`).Str == "12", "the capabilities are %s", caps.Raw)
	knocked := create(alice, map[string]any{"initial_state": []map[string]any{{"type": "m.room.join_rules", "content": map[string]string{"join_rule": "knock"}}}})
	bob.OK("POST", hstest.Path("knock", string(knocked)), "{}")
	k := bob.RawSync("").Get("rooms.knock." + escape(string(knocked)) + `.knock_state.events.#(type=="m.room.create")`)
	has("v1.16", k.Exists(), "who knocks is not shown the create event")

	// v1.17: application services act as devices, and manage them.
	put := s.Do("as-secret", "PUT", hstest.Path("devices", "BRIDGE")+"?user_id=@irc_bot:a.example", map[string]string{"display_name": "bridge"})
	has("v1.17", put.Status == 201, "a device is made with %d %s", put.Status, put.Body)
	who := s.Do("as-secret", "GET", hstest.Path("account", "whoami")+"?user_id=@irc_bot:a.example&device_id=BRIDGE", nil)
	has("v1.17", who.Get("device_id").Str == "BRIDGE", "a service acts as %s", who.Body)
	rule := func(kind string) string { return hstest.Path("pushrules", "global", kind, "twin") }
	alice.OK("PUT", rule("override"), map[string]any{"conditions": []any{}, "actions": []string{}})
	alice.OK("PUT", rule("underride"), map[string]any{"conditions": []any{}, "actions": []string{}})
}

func (w *walk) until19(room id.RoomID, has promise) {
	alice, bob := w.alice, w.bob
	// v1.18: redactions like other events, locked users, reports of what is not there.
	gone := send(alice, room, "r", "to go")
	r := alice.Do("PUT", hstest.Path("rooms", string(room), "send", "m.room.redaction", "r"), map[string]string{"redacts": gone})
	has("v1.18", r.Status == 200, "a redaction by /send: %d %s", r.Status, r.Body)
	has("v1.18", alice.OK("GET", hstest.Path("rooms", string(room), "event", gone), nil).Get("unsigned.redacted_because").Exists(), "it does not redact")
	mod := w.chief.OK("GET", hstest.Path("capabilities"), nil).Get(`capabilities.m\.account_moderation`)
	has("v1.18", mod.Get("lock").Bool() && mod.Get("suspend").Bool(), "an administrator's capability is %s", mod.Raw)
	w.chief.OK("PUT", "/_matrix/client/v1/admin/lock/@carol:a.example", map[string]bool{"locked": true})
	locked := w.carol.Do("GET", hstest.Path("account", "whoami"), nil)
	has("v1.18", locked.Status == 401 && locked.Code() == "M_USER_LOCKED" && locked.Get("soft_logout").Bool(), "a locked user: %d %s", locked.Status, locked.Body)
	alice.OK("PUT", hstest.Path("user", string(alice.UserID), "account_data", "m.invite_permission_config"), map[string]string{"default_action": "block"})
	blocked := bob.Do("POST", hstest.Path("rooms", string(create(bob, map[string]any{})), "invite"), map[string]string{"user_id": string(alice.UserID)})
	has("v1.18", blocked.Status == 403 && blocked.Code() == "M_INVITE_BLOCKED", "who wants no invitations gets one: %d %s", blocked.Status, blocked.Body)

	// v1.19: what an event of the state replaces, rooms in common.
	one := alice.OK("PUT", hstest.Path("rooms", string(room), "state", "m.room.name", ""), map[string]string{"name": "one"}).Get("event_id").Str
	two := alice.OK("PUT", hstest.Path("rooms", string(room), "state", "m.room.name", ""), map[string]string{"name": "two"}).Get("event_id").Str
	ev := alice.OK("GET", hstest.Path("rooms", string(room), "event", two), nil)
	has("v1.19", ev.Get("unsigned.replaces_state").Str == one, "the event is %s", ev.Raw)
	mutual := alice.OK("GET", "/_matrix/client/v1/mutual_rooms?user_id=@bob:a.example", nil)
	has("v1.19", strings.Contains(mutual.Get("joined").Raw, string(room)), "the rooms in common are %s", mutual.Raw)
	c := alice.OK("GET", hstest.Path("rooms", string(room), "context", two)+"?limit=0", nil)
	for dir, token := range map[string]string{"b": c.Get("start").Str, "f": c.Get("end").Str} {
		page := alice.OK("GET", fmt.Sprintf("%s?dir=%s&from=%s&limit=100", hstest.Path("rooms", string(room), "messages"), dir, token), nil)
		has("v1.19", !strings.Contains(page.Get("chunk").Raw, `"event_id":"`+two), "%s of the context holds its event again", dir)
	}
}
