package hstest_test

import (
	"testing"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// Whatever the keys of an event are, the other server takes the request, the
// signature, the hash and the ID for good: in the state that a join brings, in
// a transaction, and back.
func TestFederationOfAwkwardKeys(t *testing.T) {
	t.Parallel()
	const content = `{"\u0001":1,"\\":{"q\"x":[{"\n":"<&>\u2028"}]},"body":"x","q\"x":2}`
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	for _, version := range []string{"1", "6", "12"} {
		room := alice.Room(&mautrix.ReqCreateRoom{
			Preset: "public_chat", RoomVersion: id.RoomVersion(version),
			CreationContent: map[string]any{"q\"x": 1, "\\": "\u0001", "\u0001": map[string]any{"\"": true}},
		})
		bob.OK("POST", hstest.Path("join", string(room))+"?server_name="+string(a.Name), map[string]any{})
		create := bob.OK("GET", hstest.Path("rooms", string(room), "state", "m.room.create", ""), nil)
		if create.Get(`q"x`).Int() != 1 {
			t.Errorf("version %s: the create event is %s", version, create.Raw)
		}
		for _, pair := range [][2]*hstest.User{{alice, bob}, {bob, alice}} {
			from, to := pair[0], pair[1]
			sent := from.OK("PUT", hstest.Path("rooms", string(room), "send", "m.room.message", "t"+version), []byte(content)).Get("event_id").Str
			to.SyncUntil("the event with awkward keys", func(*mautrix.RespSync) bool {
				return to.Do("GET", hstest.Path("rooms", string(room), "event", sent), nil).Status == 200
			})
			got := to.OK("GET", hstest.Path("rooms", string(room), "event", sent), nil).Get("content").Raw
			if want := from.OK("GET", hstest.Path("rooms", string(room), "event", sent), nil).Get("content").Raw; got != want || got == "{}" {
				t.Errorf("version %s: sent %s, arrived %s", version, want, got)
			}
		}
	}
}
