package delayed_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/delayed"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/partstest"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

const (
	alice = partstest.Alice
	bob   = partstest.Bob
	base  = "/_matrix/client/unstable/org.matrix.msc4140/"
)

type world struct {
	*partstest.World
	d *delayed.Delayed

	mu      sync.Mutex
	refused map[matrix.UserID]bool // may not send
}

func newWorld(t *testing.T, db *sqldb.DB, o delayed.Options) *world {
	t.Helper()
	w := &world{refused: map[matrix.UserID]bool{}}
	w.World = partstest.New(t, db, rooms.Options{
		Delay: func(c *httpapi.Call, d rooms.Draft) (any, error) { return w.d.Accept(c, d) },
	})
	o.MaySend = func(u matrix.UserID) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.refused[u] {
			return matrix.Forbidden("not now")
		}
		return nil
	}
	var err error
	if w.d, err = delayed.New(w.Ctx, db, w.Events, w.Rooms, o); err != nil {
		t.Fatal(err)
	}
	w.API.Add(w.Rooms.Routes()...)
	w.API.Add(w.d.Routes()...)
	return w
}

func (w *world) forbid(u matrix.UserID, on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refused[u] = on
}

// later schedules a message and returns its delay ID.
func (w *world) later(room matrix.RoomID, ms int, txn, content string) string {
	w.T.Helper()
	out := w.Want(alice, "PUT", fmt.Sprintf("/_matrix/client/v3/rooms/%s/send/m.test/%s?org.matrix.msc4140.delay=%d", room, txn, ms), content, 200, "")
	return gjson.Get(out, "delay_id").Str
}

func (w *world) list(u matrix.UserID, query string) gjson.Result {
	w.T.Helper()
	return gjson.Parse(w.Want(u, "GET", base+"delayed_events"+query, "", 200, ""))
}

func (w *world) one(id string) gjson.Result {
	w.T.Helper()
	return gjson.Parse(w.Want(alice, "GET", base+"delayed_events/"+id, "", 200, ""))
}

func (w *world) act(id, action string, status int, code string) {
	w.T.Helper()
	w.Want("", "POST", base+"delayed_events/"+id+"/"+action, "{}", status, code)
}

// sent lists the bodies of the test events in a room, in order.
func (w *world) sent(room matrix.RoomID) (out []string) {
	w.T.Helper()
	err := w.DB.Read(w.Ctx, func(tx *sqldb.Tx) error {
		list, err := w.Events.Timeline(tx, room, 0, 1<<60, 1000, true)
		for _, e := range list {
			if e.Type == "m.test" {
				out = append(out, e.ContentString("body"))
			}
		}
		return err
	})
	if err != nil {
		w.T.Fatal(err)
	}
	return out
}

func (w *world) eventually(what string, ok func() bool) {
	w.T.Helper()
	partstest.Eventually(w.T, what, ok)
}

func TestLifeOfADelayedEvent(t *testing.T) {
	w := newWorld(t, sqldbtest.Open(t), delayed.Options{})
	w.Run(w.d.Run)
	room := w.Room(alice, bob)
	if n := w.list(alice, "").Get("delayed_events.#").Int(); n != 0 {
		t.Fatalf("%d events at the beginning", n)
	}
	third := w.later(room, 160, "3", `{"body":"third"}`)
	first := w.later(room, 80, "1", `{"body":"first"}`)
	second := w.later(room, 120, "2", `{"body":"second"}`)
	if again := w.later(room, 80, "1", ``); again != first {
		t.Errorf("the repeated request gave %q, not %q", again, first)
	}
	l := w.list(alice, "")
	if got := l.Get("delayed_events.#.delay_id").String(); got != fmt.Sprintf(`[%q,%q,%q]`, first, second, third) {
		t.Errorf("listed %s", got)
	}
	if e := l.Get("delayed_events.0"); e.Get("content.body").Str != "first" || e.Get("room_id").Str != string(room) || e.Get("delay_ms").Int() != 80 ||
		e.Get("type").Str != "m.test" || e.Get("scheduled_at").Int() == 0 || e.Get("finalised_ts").Exists() || e.Get("state_key").Exists() {
		t.Errorf("listed %s", e)
	}
	if n := w.list(bob, "").Get("delayed_events.#").Int(); n != 0 {
		t.Error("bob sees alice's events")
	}
	w.Want(bob, "GET", base+"delayed_events/"+first, "", 404, "M_NOT_FOUND")
	w.eventually("all to be sent", func() bool { return len(w.sent(room)) == 3 })
	if got := fmt.Sprint(w.sent(room)); got != "[first second third]" {
		t.Errorf("sent %s", got)
	}
	w.eventually("the outcome", func() bool { return w.one(first).Get("finalised_ts").Exists() })
	o := w.one(first)
	if o.Get("finalised_ts").Int() < o.Get("scheduled_at").Int()+80 || o.Get("event_id").Str == "" || o.Get("error").Exists() {
		t.Errorf("the outcome is %s", o)
	}
	w.act(first, "send", 200, "")
	w.act(first, "cancel", 409, "M_UNKNOWN")
	w.act(first, "restart", 409, "M_UNKNOWN")

	e, err := w.Events.ByID(w.Ctx, matrix.EventID(o.Get("event_id").Str))
	if err != nil || e == nil {
		t.Fatal(err)
	}
	for user, want := range map[matrix.UserID]string{alice: first, bob: ""} {
		got := gjson.GetBytes(e.AppendClient(nil, events.ClientFormat{User: user}), `unsigned.org\.matrix\.msc4140\.delay_id`).Str
		if got != want {
			t.Errorf("%s sees the delay ID %q, want %q", user, got, want)
		}
	}
}

func TestActions(t *testing.T) {
	w := newWorld(t, sqldbtest.Open(t), delayed.Options{})
	w.Run(w.d.Run)
	room := w.Room(alice, bob)
	state := func(key, body string, ms int) string {
		out := w.Want(alice, "PUT", fmt.Sprintf("/_matrix/client/v3/rooms/%s/state/m.test/%s?org.matrix.msc4140.delay=%d", room, key, ms), body, 200, "")
		return gjson.Get(out, "delay_id").Str
	}
	now := func(key string) string {
		e, err := w.Rooms.State(w.Ctx, room, "m.test", key)
		if err != nil {
			t.Fatal(err)
		}
		if e == nil {
			return ""
		}
		return e.ContentString("body")
	}
	a := state("a", `{"body":"sent"}`, 60_000)
	w.Want(bob, "POST", base+"delayed_events/"+a+"/send", "{}", 404, "M_NOT_FOUND")
	w.act(a, "send", 200, "")
	w.act(a, "send", 200, "")
	if now("a") != "sent" || w.one(a).Get("state_key").Str != "a" {
		t.Errorf("the state is %q", now("a"))
	}
	if o := w.one(a); o.Get("finalised_ts").Int() >= o.Get("scheduled_at").Int()+60_000 {
		t.Errorf("looks as if sent by the clock: %s", o)
	}
	b := state("b", `{"body":"cancelled"}`, 60_000)
	w.Want(alice, "POST", base+"delayed_events/"+b+"/cancel", "", 200, "")
	w.act(b, "cancel", 200, "")
	w.act(b, "send", 409, "M_UNKNOWN")
	w.act(b, "restart", 409, "M_UNKNOWN")
	if o := w.one(b); !o.Get("finalised_ts").Exists() || o.Get("event_id").Exists() || o.Get("error").Exists() {
		t.Errorf("the outcome is %s", o)
	}
	c := state("c", `{"body":"restarted"}`, 400)
	began := time.Now()
	for range 4 {
		time.Sleep(150 * time.Millisecond)
		w.act(c, "restart", 200, "")
	}
	if now("c") != "" {
		t.Error("sent though it was restarted in time")
	}
	w.eventually("c to be sent", func() bool { return now("c") == "restarted" })
	if took := time.Since(began); took < time.Second {
		t.Errorf("sent after %s", took)
	}
	w.Want(alice, "POST", base+"delayed_events/"+c, `{"action":"send"}`, 200, "")
	w.Want("", "POST", base+"delayed_events/"+c, `{}`, 400, "M_MISSING_PARAM")
	w.Want("", "POST", base+"delayed_events/"+c, `{"action":"oops"}`, 400, "M_INVALID_PARAM")
	w.act(c, "oops", 404, "M_UNRECOGNIZED")
	for _, action := range []string{"send", "cancel", "restart"} {
		w.act("nothing", action, 404, "M_NOT_FOUND")
	}
	w.Want("", "GET", base+"delayed_events", "", 401, "M_MISSING_TOKEN")
}

func TestNewEndpointAndLimits(t *testing.T) {
	w := newWorld(t, sqldbtest.Open(t), delayed.Options{MaxDelay: time.Hour, MaxScheduled: 5})
	w.Run(w.d.Run)
	room := w.Room(alice)
	put := base + "rooms/" + string(room) + "/delayed_event/m.test/"
	out := w.Want(alice, "PUT", put+"1", `{"delay_ms":3600000,"content":{"body":"x"},"state_key":"k"}`, 200, "")
	if again := w.Want(alice, "PUT", put+"1", `{"delay_ms":3600000,"content":{"body":"x"},"state_key":"k"}`, 200, ""); again != out {
		t.Errorf("the repeated request gave %s, not %s", again, out)
	}
	if e := w.list(alice, "").Get("delayed_events.0"); e.Get("state_key").Str != "k" || e.Get("content").Raw != `{"body":"x"}` {
		t.Errorf("listed %s", e)
	}
	old := fmt.Sprintf("/_matrix/client/v3/rooms/%s/send/m.test/", room)
	for _, q := range []struct {
		path, body, code string
		status           int
	}{
		{put + "2", `{"content":{}}`, "M_MISSING_PARAM", 400},
		{put + "2", `{"delay_ms":0,"content":{}}`, "M_INVALID_PARAM", 400},
		{put + "2", `{"delay_ms":-1,"content":{}}`, "M_INVALID_PARAM", 400},
		{put + "2", `{"delay_ms":1.5,"content":{}}`, "M_BAD_JSON", 400},
		{put + "2", `{"delay_ms":"5","content":{}}`, "M_BAD_JSON", 400},
		{put + "2", `{"delay_ms":5}`, "M_MISSING_PARAM", 400},
		{put + "2", `{"delay_ms":5,"content":[]}`, "M_BAD_JSON", 400},
		{put + "2", `{"delay_ms":5,"content":{},"state_key":1}`, "M_BAD_JSON", 400},
		{put + "2", `{"delay_ms":3600001,"content":{}}`, "M_FORBIDDEN", 403},
		{put + "2", `{`, "M_NOT_JSON", 400},
		{old + "9?org.matrix.msc4140.delay=x", `{}`, "M_INVALID_PARAM", 400},
		{old + "9?org.matrix.msc4140.delay=0", `{}`, "M_INVALID_PARAM", 400},
		{old + "9?org.matrix.msc4140.delay=9", `[]`, "M_BAD_JSON", 400},
		{old + "9?org.matrix.msc4140.delay=3600001", `{}`, "M_UNKNOWN", 400},
	} {
		w.Want(alice, "PUT", q.path, q.body, q.status, q.code)
	}
	_, body := w.Do(alice, "PUT", old+"9?org.matrix.msc4140.delay=3600001", `{}`)
	if g := gjson.Parse(body); g.Get(`org\.matrix\.msc4140\.errcode`).Str != "M_MAX_DELAY_EXCEEDED" || g.Get(`org\.matrix\.msc4140\.max_delay`).Int() != 3600000 {
		t.Errorf("too long a delay: %s", body)
	}
	for i := range 4 {
		w.later(room, 1_000_000+i, fmt.Sprint("n", i), `{}`)
	}
	full := w.Want(alice, "PUT", put+"7", `{"delay_ms":100,"content":{}}`, 429, "M_LIMIT_EXCEEDED")
	if ms := gjson.Get(full, "retry_after_ms").Int(); ms < 900_000 || ms > 1_000_000 {
		t.Errorf("there is a place again after %d ms", ms)
	}
	var ids []string
	from := ""
	for {
		l := w.list(alice, "?limit=2&from="+from)
		for _, e := range l.Get("delayed_events").Array() {
			ids = append(ids, e.Get("delay_id").Str)
		}
		if from = l.Get("next_batch").Str; from == "" {
			break
		}
	}
	if all := w.list(alice, "").Get("delayed_events.#.delay_id").String(); len(ids) != 5 || fmt.Sprintf("[%q,%q,%q,%q,%q]", ids[0], ids[1], ids[2], ids[3], ids[4]) != all {
		t.Errorf("pages give %v, all at once %s", ids, all)
	}
	w.Want(alice, "GET", base+"delayed_events?from=x", "", 400, "M_INVALID_PARAM")

	none := newWorld(t, sqldbtest.Open(t), delayed.Options{MaxScheduled: -1})
	none.Run(none.d.Run)
	none.Want(alice, "PUT", put+"1", `{"delay_ms":100,"content":{}}`, 403, "M_FORBIDDEN")
}

func TestRefusedAtTheTime(t *testing.T) {
	w := newWorld(t, sqldbtest.Open(t), delayed.Options{})
	w.Run(w.d.Run)
	room := w.Room(alice, bob)
	out := w.Want(bob, "PUT", fmt.Sprintf("/_matrix/client/v3/rooms/%s/state/m.room.name?org.matrix.msc4140.delay=30", room), `{"name":"x"}`, 200, "")
	id := gjson.Get(out, "delay_id").Str
	get := func() gjson.Result { return gjson.Parse(w.Want(bob, "GET", base+"delayed_events/"+id, "", 200, "")) }
	w.eventually("the outcome", func() bool { return get().Get("finalised_ts").Exists() })
	if o := get(); o.Get("error.errcode").Str != "M_FORBIDDEN" || o.Get("event_id").Exists() {
		t.Errorf("the outcome is %s", o)
	}
	w.act(id, "send", 409, "M_UNKNOWN")

	// Sent by hand, it stays scheduled for when it may be sent.
	w.forbid(alice, true)
	id = w.later(room, 200, "t", `{"body":"at last"}`)
	w.act(id, "send", 403, "M_FORBIDDEN")
	w.forbid(alice, false)
	w.eventually("the event", func() bool { return len(w.sent(room)) == 1 })

	// Member events go through the door of their membership.
	w.Want(bob, "PUT", fmt.Sprintf("/_matrix/client/v3/rooms/%s/state/m.room.member/%s?org.matrix.msc4140.delay=30", room, bob), `{"membership":"leave"}`, 200, "")
	w.eventually("bob to leave", func() bool { return !w.Hub.Joined(bob, room) })
}

func TestAfterAStop(t *testing.T) {
	db := sqldbtest.Open(t)
	w := newWorld(t, db, delayed.Options{})
	w.Run()
	room := w.Room(alice)
	w.later(room, 30, "2", `{"body":"b"}`)
	w.later(room, 10, "1", `{"body":"a"}`)
	done := w.later(room, 20, "3", `{"body":"done"}`)
	far := w.later(room, 60_000, "4", `{"body":"far"}`)
	// One had been sent when the server died, before that was noted.
	if _, err := w.Rooms.Put(w.Ctx, rooms.Draft{Room: room, Sender: alice, Type: "m.test", Content: json.RawMessage(`{"body":"done"}`), Txn: events.DelayTxn(done)}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	w.Stop()

	w = newWorld(t, db, delayed.Options{})
	w.Run(w.d.Run)
	w.act(done, "cancel", 409, "M_UNKNOWN")
	w.eventually("what was missed", func() bool { return len(w.sent(room)) == 3 })
	time.Sleep(50 * time.Millisecond)
	if got := fmt.Sprint(w.sent(room)); got != "[done a b]" {
		t.Errorf("sent %s", got)
	}
	if l := w.list(alice, ""); l.Get("delayed_events.#").Int() != 1 || l.Get("delayed_events.0.delay_id").Str != far {
		t.Errorf("still scheduled: %s", l)
	}
	if err := w.d.DeleteUser(w.Ctx, alice); err != nil {
		t.Fatal(err)
	}
	w.act(far, "restart", 404, "M_NOT_FOUND")
}

func TestManyAtOnceAreSlowedDown(t *testing.T) {
	w := newWorld(t, sqldbtest.Open(t), delayed.Options{PerSecond: 20, Burst: 2})
	w.Run(w.d.Run)
	room := w.Room(alice)
	began := time.Now()
	for i := range 8 {
		w.later(room, 50+2*i, fmt.Sprint(i), fmt.Sprintf(`{"body":"%d"}`, i))
	}
	w.eventually("all", func() bool { return len(w.sent(room)) == 8 })
	if took := time.Since(began); took < 250*time.Millisecond {
		t.Errorf("eight events at 20 a second were sent within %s", took)
	}
	if got := fmt.Sprint(w.sent(room)); got != "[0 1 2 3 4 5 6 7]" {
		t.Errorf("sent %s", got)
	}
}

// Cancelling, restarting and sending at the moment of the clock: never twice, and
// an outcome is true.
func TestRaces(t *testing.T) {
	w := newWorld(t, sqldbtest.Open(t), delayed.Options{MaxScheduled: 1000})
	w.Run(w.d.Run)
	room := w.Room(alice)
	var wg sync.WaitGroup
	ids := make([]string, 30)
	for i := range ids {
		ids[i] = w.later(room, 40, fmt.Sprint(i), fmt.Sprintf(`{"body":"%d"}`, i))
		wg.Go(func() {
			time.Sleep(time.Duration(20+i) * time.Millisecond)
			action := []string{"send", "cancel", "restart"}[i%3]
			code, body := w.Do("", "POST", base+"delayed_events/"+ids[i]+"/"+action, "{}")
			if code != http.StatusOK && code != http.StatusConflict {
				t.Errorf("%s: %d %s", action, code, body)
			}
		})
	}
	wg.Wait()
	w.eventually("all outcomes", func() bool { return w.list(alice, "").Get("delayed_events.#").Int() == 0 })
	count := map[string]int{}
	for _, b := range w.sent(room) {
		count[b]++
	}
	for i, id := range ids {
		want := 0
		if w.one(id).Get("event_id").Exists() {
			want = 1
		}
		if count[fmt.Sprint(i)] != want {
			t.Errorf("event %d was sent %d times, its outcome is %s", i, count[fmt.Sprint(i)], w.one(id))
		}
	}
}
