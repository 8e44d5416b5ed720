package hstest_test

import (
	"fmt"
	"testing"
	"time"

	"maunium.net/go/mautrix"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// A server that is killed while delayed events become due loses none and sends
// none twice.
func TestDelayedEventsSurviveKills(t *testing.T) {
	t.Parallel()
	v := newVictim(t)
	v.start()
	token := v.register("alice")
	room := v.ok(token, "POST", hstest.Path("createRoom"), map[string]string{"preset": "public_chat"}).Get("room_id").Str
	const n = 60
	for i := range n {
		v.ok(token, "PUT", hstest.Path("rooms", room, "send", "m.test", fmt.Sprint(i))+
			fmt.Sprintf("?org.matrix.msc4140.delay=%d", 600+10*i), map[string]int{"n": i})
	}
	for range 4 { // right in between
		time.Sleep(250 * time.Millisecond)
		v.kill()
		v.start()
	}
	end := time.Now().Add(20 * time.Second)
	for v.ok(token, "GET", msc4140+"delayed_events", nil).Get("delayed_events.#").Int() > 0 {
		if time.Now().After(end) {
			t.Fatal("some are never sent")
		}
		time.Sleep(50 * time.Millisecond)
	}
	var order []int64
	for from := ""; ; {
		p := v.ok(token, "GET", hstest.Path("rooms", room, "messages")+`?dir=f&limit=50&filter={"types":["m.test"]}&from=`+from, nil)
		for _, e := range p.Get("chunk").Array() {
			order = append(order, e.Get("content.n").Int())
		}
		if from = p.Get("end").Str; from == "" {
			break
		}
	}
	if len(order) != n {
		t.Fatalf("%d events were sent, not %d: %v", len(order), n, order)
	}
	for i, got := range order {
		if got != int64(i) {
			t.Fatalf("out of order: %v", order)
		}
	}
}

// A sticky event that came too late, when its sender had been removed, is shown
// once he is in again: all servers have to agree on what is sticky.
func TestStickyEventIsCheckedAgain(t *testing.T) {
	t.Parallel()
	a, b := hstest.Pair(t)
	alice, bob := a.User("alice"), b.User("bob")
	room := alice.Room(&mautrix.ReqCreateRoom{Preset: "public_chat"})
	joinVia(t, bob, room, a)
	a.Cut()
	late := stick(bob, room, "1", "late", 600_000)
	alice.OK("POST", hstest.Path("rooms", string(room), "kick"), map[string]string{"user_id": string(bob.UserID)})
	b.Eventually("the removal", func() bool {
		return bob.Do("GET", hstest.Path("rooms", string(room), "joined_members"), nil).Status == 403
	})
	a.Heal()
	seen := func() bool {
		r := alice.RawSync("", `filter={"room":{"timeline":{"limit":50}}}`)
		for _, id := range append(stuck(r, room), eventIDs(r.Get(in("join", room)+".timeline.events"))...) {
			if id == late {
				return true
			}
		}
		return false
	}
	a.Eventually("the event to come and be soft-failed", func() (soft bool) {
		_ = a.DB().Read(t.Context(), func(tx *sqldb.Tx) error {
			var flags int
			err := tx.QueryRow(`SELECT flags FROM events WHERE event_id = $1`, late).Scan(&flags)
			soft = err == nil && flags&events.FlagSoftFailed != 0
			return err
		})
		return soft
	})
	if seen() {
		t.Fatal("shown though its sender was removed")
	}
	joinVia(t, bob, room, a)
	a.Eventually("the sticky event", seen)
	alice.Say(room, "hello")
	if r := alice.RawSync("", `filter={"room":{"timeline":{"limit":1}}}`); len(stuck(r, room)) != 1 {
		t.Errorf("sticky: %s", r.Get(in("join", room)+".msc4354_sticky"))
	}
}
