package hstest_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// TestOddTextStopsNobody has people write, here and on another server, what no
// column of a database may hold. It may be refused where it is a name of
// something; what is taken must reach everybody, and nobody that follows the log
// may stumble over it.
func TestOddTextStopsNobody(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob, carol := a.User("alice"), b.User("bob"), a.User("carol")
	room := alice.Room(nil, carol)
	join(bob, room, a)
	a.Eventually("bob is in", func() bool { return membership(alice, room, bob.UserID) == "join" })
	first := send(alice, room, "first", "the first")
	for who, u := range map[string]*hstest.User{"here": alice, "there": bob} {
		n := 0
		for _, odd := range []string{"\x00", "a\x00b", "\ufffe\uffff", "\u202e", "\U0010ffff"} {
			put := func(typ string, content any) {
				n++
				body, err := json.Marshal(content)
				if err != nil {
					t.Fatal(err)
				}
				if a := u.Do("PUT", hstest.Path("rooms", string(room), "send", typ, fmt.Sprint(who, n)), body); a.Status != 200 && a.Status/100 != 4 {
					t.Errorf("%s: %s %s: %d %s", who, typ, body, a.Status, a.Body)
				}
			}
			put("m.room.message", map[string]any{
				"msgtype": "m.text", "body": "odd " + odd, "format": odd, "formatted_body": odd, "filename": odd, "url": odd,
				"m.mentions": map[string]any{"user_ids": []string{odd}}, odd: odd,
			})
			for _, rel := range []string{"m.thread", "m.annotation", "m.replace", "m.reference", odd} {
				for _, target := range []string{first, odd, "$" + odd} {
					put("m.room.message", map[string]any{
						"msgtype": "m.text", "body": odd, "m.new_content": map[string]any{"body": odd},
						"m.relates_to": map[string]any{"rel_type": rel, "event_id": target, "key": odd, "m.in_reply_to": map[string]any{"event_id": odd}},
					})
					put("m.reaction", map[string]any{"m.relates_to": map[string]any{"rel_type": rel, "event_id": target, "key": odd}})
				}
			}
			put("org.example."+"odd", map[string]any{"v": odd})
			put("m.room.redaction", map[string]any{"redacts": odd, "reason": odd})
			for typ, content := range map[string]map[string]any{
				"m.room.name": {"name": odd}, "m.room.topic": {"topic": odd, "m.topic": map[string]any{"m.text": []map[string]any{{"body": odd}}}}, "m.room.avatar": {"url": odd},
				"m.room.pinned_events": {"pinned": []string{odd}}, "m.space.child": {"via": []string{odd}}, "m.room.server_acl": {"allow": []string{"*", odd}},
				"m.room.join_rules": {"join_rule": "public", "allow": []map[string]any{{"type": odd, "room_id": odd}}}, "m.room.canonical_alias": {"alias": odd},
				"m.room.tombstone": {"body": odd, "replacement_room": odd},
			} {
				alice.Do("PUT", hstest.Path("rooms", string(room), "state", typ, ""), content)
			}
			u.Do("PUT", hstest.Path("profile", string(u.UserID), "displayname"), map[string]any{"displayname": odd})
			u.Do("PUT", hstest.Path("presence", string(u.UserID), "status"), map[string]any{"presence": "online", "status_msg": odd})
			u.Do("PUT", hstest.Path("sendToDevice", "m.odd", fmt.Sprint(who, n)), map[string]any{"messages": map[string]any{string(carol.UserID): map[string]any{"*": map[string]any{odd: odd}}}})
			u.Do("POST", hstest.Path("keys", "upload"), map[string]any{"one_time_keys": map[string]any{"signed_curve25519:" + odd: map[string]any{"key": odd}}})
		}
	}
	// Everybody still hears, is told of, and finds what comes after.
	last := bob.Say(room, "carol, look at the penguin")
	carol.Hears(room, "carol, look at the penguin")
	back := alice.Say(room, "seen by bob")
	bob.Hears(room, "seen by bob")
	a.Eventually("carol is told", func() bool {
		return carol.OK("GET", hstest.Path("notifications")+"?limit=5", nil).Get(`notifications.#(event.event_id=="` + string(back) + `")`).Exists()
	})
	for _, u := range []*hstest.User{alice, carol, bob} {
		a.Eventually("the penguin is found by "+string(u.UserID), func() bool {
			r := u.OK("POST", hstest.Path("search"), map[string]any{"search_categories": map[string]any{"room_events": map[string]any{"search_term": "penguin"}}})
			return r.Get("search_categories.room_events.results.0.result.event_id").Str == string(last)
		})
		u.RawSync("")
		u.OK("GET", hstest.Path("rooms", string(room), "messages")+"?dir=b&limit=100", nil)
		u.OK("GET", hstest.Path("publicRooms"), nil)
		sum := u.Do("GET", "/_matrix/client/v1/room_summary/"+string(room), nil)
		if sum.Status != 200 {
			t.Errorf("the summary: %d %s", sum.Status, sum.Body)
		}
	}
	if r := alice.OK("GET", hstest.Path("rooms", string(room), "joined_members"), nil); !gjson.Valid(r.Raw) {
		t.Error("the members are no JSON")
	}
}
