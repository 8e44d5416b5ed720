package hstest_test

import (
	"fmt"
	"net/url"
	"slices"
	"testing"

	"maunium.net/go/mautrix"

	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// history reads back from a place to the beginning of the room: the texts, the oldest first.
func history(t *testing.T, u *hstest.User, room, from string, limit int) (texts []string) {
	t.Helper()
	for range 200 {
		q := url.Values{"dir": {"b"}, "limit": {fmt.Sprint(limit)}}
		if from != "" {
			q.Set("from", from)
		}
		p := u.OK("GET", hstest.Path("rooms", room, "messages")+"?"+q.Encode(), nil)
		for _, e := range p.Get("chunk").Array() {
			if e.Get("type").Str == "m.room.message" {
				texts = append(texts, e.Get("content.body").Str)
			}
		}
		if from = p.Get("end").Str; from == "" {
			slices.Reverse(texts)
			return texts
		}
	}
	t.Fatal("history has no end")
	return nil
}

// What was said while nobody of this server was in the room is fetched when somebody reads that far, and is where it
// belongs.
func TestHistoryOfAnAbsence(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{7, 100, 1000} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			a, b := hstest.Pair(t)
			alice, bob := a.User("alice"), b.User("bob")
			room := alice.Room(&mautrix.ReqCreateRoom{Preset: "public_chat"})
			var want []string
			say := func(u *hstest.User, text string) {
				u.Say(room, text)
				want = append(want, text)
			}
			enter := func() {
				if _, err := bob.JoinRoom(t.Context(), string(room), &mautrix.ReqJoinRoom{Via: []string{string(a.Name)}}); err != nil {
					t.Fatal(err)
				}
				a.Eventually("bob is in", func() bool { return isIn(a, bob, string(room)) })
			}
			say(alice, "before")
			for stay := range 3 {
				enter()
				say(bob, fmt.Sprintf("bob %d", stay))
				alice.Hears(room, fmt.Sprintf("bob %d", stay))
				if stay == 2 {
					break
				}
				if _, err := bob.LeaveRoom(t.Context(), room); err != nil {
					t.Fatal(err)
				}
				a.Eventually("bob is out", func() bool { return !isIn(a, bob, string(room)) })
				for i := range 130 {
					say(alice, fmt.Sprintf("%d in his absence %d", i, stay))
				}
			}
			since := bob.RawSync("", `filter={"room":{"timeline":{"limit":1}}}`)
			from := since.Get(in("join", room) + ".timeline.prev_batch").Str
			if from == "" {
				t.Fatalf("no token: %s", since.Raw)
			}
			for _, place := range []string{from, ""} { // the second reads what was stored by the first
				got := history(t, bob, string(room), place, limit)
				if place == from {
					got = append(got, "bob 2")
				}
				if !slices.Equal(got, want) {
					t.Fatalf("from %q: %d texts of %d: %s", place, len(got), len(want), got)
				}
			}
			b.Cut()
			if got := history(t, bob, string(room), "", limit); !slices.Equal(got, want) {
				t.Errorf("cut off: %d texts of %d", len(got), len(want))
			}
		})
	}
}

func isIn(s *hstest.Server, u *hstest.User, room string) bool {
	for _, m := range s.Rooms().JoinedMembers(matrix.RoomID(room)) {
		if string(m) == string(u.UserID) {
			return true
		}
	}
	return false
}
