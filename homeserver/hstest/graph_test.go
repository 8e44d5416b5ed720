package hstest_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
)

const graphPath = "/_matrix/client/unstable/event_relationships"

// answerTo says something that relates to an event by m.relationship.
func answerTo(u *hstest.User, room id.RoomID, parent, text string) string {
	content := obj{"msgtype": "m.text", "body": text}
	if parent != "" {
		content["m.relationship"] = obj{"rel_type": "m.reference", "event_id": parent}
	}
	return u.OK("PUT", hstest.Path("rooms", string(room), "send", "m.room.message", "g"+text), content).Get("event_id").Str
}

// related asks for what relates to an event, by the texts of the events.
func related(u *hstest.User, event string, more obj) (texts []string, r gjson.Result) {
	q := obj{"event_id": event}
	for k, v := range more {
		q[k] = v
	}
	r = u.OK("POST", graphPath, q)
	r.Get("events").ForEach(func(_, e gjson.Result) bool {
		texts = append(texts, e.Get("content.body").Str)
		return true
	})
	return texts, r
}

func wantTexts(t *testing.T, what string, got []string, want string) {
	t.Helper()
	if strings.Join(got, " ") != want {
		t.Errorf("%s: %v, want %s", what, got, want)
	}
}

func TestRelationships(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob, eve := a.User("alice"), b.User("bob"), a.User("eve")
	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "public_chat"})
	// A tree: A; B under it; C, D under B; E under D; F, G, H under E.
	ids := map[string]string{}
	for _, e := range []string{"A", "BA", "CB", "DB", "ED", "FE", "GE", "HE"} {
		ids[e[:1]] = answerTo(alice, room, ids[e[1:]], e[:1])
	}
	old := obj{"recent_first": false}
	got, r := related(alice, ids["A"], old)
	wantTexts(t, "down, broadly", got, "A B C D E")
	if r.Get("limited").Bool() {
		t.Error("depth is no limit")
	}
	got, _ = related(alice, ids["A"], obj{"recent_first": false, "depth_first": true, "max_depth": -1})
	wantTexts(t, "down, deeply", got, "A B C D E F G H")
	got, _ = related(alice, ids["E"], nil)
	wantTexts(t, "the newest first", got, "E H G F")
	got, _ = related(alice, ids["E"], obj{"recent_first": false, "max_breadth": 2})
	wantTexts(t, "two children", got, "E F G")
	got, r = related(alice, ids["E"], obj{"recent_first": false, "limit": 3})
	wantTexts(t, "three events", got, "E F G")
	if !r.Get("limited").Bool() {
		t.Error("it is limited")
	}
	got, _ = related(alice, ids["E"], obj{"direction": "up", "max_depth": 10})
	wantTexts(t, "up", got, "E D B A")
	got, _ = related(alice, ids["D"], obj{"recent_first": false, "include_parent": true, "include_children": true, "max_depth": 0})
	wantTexts(t, "parent and children", got, "D B E")
	_, r = related(alice, ids["E"], nil)
	if u := r.Get("events.0.unsigned"); u.Get(`children.m\.reference`).Int() != 3 || len(u.Get("children_hash").Str) != 43 {
		t.Errorf("%s", u.Raw)
	}
	// It is no relation of the other kind.
	if l := alice.OK("GET", "/_matrix/client/v1/rooms/"+string(room)+"/relations/"+ids["E"], nil).Get("chunk").Array(); len(l) != 0 {
		t.Errorf("%v", l)
	}
	// What cannot be.
	alice.Refused(400, "M_INVALID_PARAM", "PUT", hstest.Path("rooms", string(room), "send", "m.room.message", "x"), obj{"body": "x", "m.relationship": obj{"rel_type": "m.reference", "event_id": "$nothing"}})
	alice.Refused(400, "M_INVALID_PARAM", "POST", graphPath, obj{"event_id": ids["A"], "direction": "sideways"})
	alice.Refused(404, "M_NOT_FOUND", "POST", graphPath, obj{"event_id": "$nothing"})
	alice.Refused(404, "M_NOT_FOUND", "POST", graphPath, obj{"event_id": "$nothing", "room_id": room})
	other := eve.Room(nil)
	secret := answerTo(eve, other, "", "secret")
	alice.Refused(404, "M_NOT_FOUND", "POST", graphPath, obj{"event_id": secret})
	alice.Refused(404, "M_NOT_FOUND", "POST", graphPath, obj{"event_id": "$nothing", "room_id": other})
	alice.Refused(400, "M_INVALID_PARAM", "PUT", hstest.Path("rooms", string(room), "send", "m.room.message", "y"), obj{"body": "x", "m.relationship": obj{"rel_type": "m.reference", "event_id": secret}})

	// Who comes later sees what his server never had, and is told how much there is.
	join(bob, room, a)
	got, r = related(bob, ids["D"], obj{"room_id": room, "include_parent": true, "max_depth": 0})
	wantTexts(t, "from afar", got, "D B")
	if n := r.Get(`events.1.unsigned.children.m\.reference`).Int(); n != 2 {
		t.Errorf("B has %d children", n)
	}
	got, _ = related(bob, ids["B"], obj{"recent_first": false, "include_parent": true})
	wantTexts(t, "the rest from afar", got, "B A C D E F G H")
	got, _ = related(bob, ids["H"], obj{"direction": "up", "max_depth": 10})
	wantTexts(t, "up again", got, "H E D B A")
	// A cut line changes nothing of what is known.
	a.Cut()
	got, _ = related(bob, ids["E"], old)
	wantTexts(t, "alone", got, "E F G H")
	a.Heal()
	// An event that answers itself over others is met once.
	redacted := answerTo(bob, room, ids["H"], "gone")
	got, _ = related(bob, ids["H"], old)
	wantTexts(t, "an answer", got, "H gone")
	bob.OK("PUT", hstest.Path("rooms", string(room), "redact", redacted, "t"), "{}")
	if got, _ = related(bob, ids["H"], old); !slices.Equal(got, []string{"H"}) {
		t.Errorf("after a redaction: %v", got)
	}
}
