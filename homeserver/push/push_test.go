package push_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/history"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/partstest"
	"github.com/carillon-chat/carillon/homeserver/push"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/homeserver/subscriptions"
)

const (
	here  = partstest.Here
	alice = partstest.Alice
	bob   = partstest.Bob
	carol = partstest.Carol
)

type fixture struct {
	*partstest.World
	p    *push.Push
	r    *receipts.Receipts
	data *accountdata.Data

	threadRules bool
}

func open(t testing.TB, db *sqldb.DB) *fixture {
	t.Helper()
	return openWith(t, db, push.Options{})
}

func openWith(t testing.TB, db *sqldb.DB, opts push.Options) *fixture {
	t.Helper()
	w := partstest.New(t, db, rooms.Options{})
	data, err := accountdata.New(w.Ctx, db, w.Log)
	if err != nil {
		t.Fatal(err)
	}
	places := receipts.NewPlaces(w.Events, w.Log)
	r, err := receipts.New(w.Ctx, db, w.Log, here, places, w.Hub, data, nil)
	if err != nil {
		t.Fatal(err)
	}
	opts.AllowInsecure, opts.Data = true, data
	if opts.Threads, err = subscriptions.New(w.Ctx, db, w.Log, places); err != nil {
		t.Fatal(err)
	}
	p, err := push.New(w.Ctx, db, w.Log, w.Events, w.Hub, places, r, opts)
	if err != nil {
		t.Fatal(err)
	}
	w.API.Add(p.Routes()...)
	w.API.Add(opts.Threads.Routes(history.New(history.Parts{DB: db, Log: w.Log, Events: w.Events, Hub: w.Hub, Rooms: w.Rooms, Data: data}))...)
	w.Run(r.Run, p.Run)
	return &fixture{w, p, r, data, opts.ThreadRules}
}

func (f *fixture) unread(room matrix.RoomID, user matrix.UserID) push.Unread {
	f.T.Helper()
	u, err := f.p.Counts(f.Ctx, room, user)
	if err != nil {
		f.T.Fatal(err)
	}
	return u
}

// read marks everything in a room as read.
func (f *fixture) read(room matrix.RoomID, user matrix.UserID) {
	f.T.Helper()
	list, _ := f.Hub.Recent(room, 0, f.Log.Head())
	f.mark(room, user, list[len(list)-1].ID, "")
}

func (f *fixture) mark(room matrix.RoomID, user matrix.UserID, id matrix.EventID, thread string) {
	f.T.Helper()
	if err := f.r.Mark(f.Ctx, user, room, "m.read", id, thread); err != nil {
		f.T.Fatal(err)
	}
}

func (f *fixture) check(room matrix.RoomID, user matrix.UserID, want string) {
	f.T.Helper()
	u := f.unread(room, user)
	got := fmt.Sprintf("%d/%d", u.Main.Notify, u.Main.Highlight)
	var threads []string
	for root, c := range u.Threads {
		threads = append(threads, fmt.Sprintf(" %s %d/%d", root[:4], c.Notify, c.Highlight))
	}
	slices.Sort(threads)
	got += strings.Join(threads, "")
	if got != want {
		f.T.Helper()
		f.T.Errorf("%s has %s, want %s", user, got, want)
	}
}

// custom gives a user a rule that never matches: the counts are then worked out
// event by event and have to be the same.
func (f *fixture) custom(user matrix.UserID) {
	f.T.Helper()
	f.Want(user, "PUT", rule("override", "never"), `{"actions":["notify"],"conditions":[{"kind":"moon"}]}`, 200, "")
}

func thread(root matrix.EventID) string {
	return fmt.Sprintf(`{"msgtype":"m.text","body":"in","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, root)
}

func TestCounts(t *testing.T) {
	for _, how := range []string{"default", "custom"} {
		t.Run(how, func(t *testing.T) { testCounts(t, how == "custom") })
	}
}

func testCounts(t *testing.T, custom bool) {
	db := sqldbtest.Open(t)
	f := open(t, db)
	if custom {
		f.custom(bob)
	}
	room := f.Room(alice)
	f.Say(room, alice, "before bob came")
	f.Join(room, bob)
	f.check(room, bob, "0/0")
	one := f.Say(room, alice, "one")
	f.Send(room, alice, "m.room.encrypted", `{"algorithm":"x"}`)
	f.Send(room, alice, "m.room.message", `{"msgtype":"m.notice","body":"notice"}`)
	f.Send(room, alice, "m.reaction", fmt.Sprintf(`{"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":"x"}}`, one))
	f.Send(room, alice, "m.room.message", fmt.Sprintf(`{"body":"edit","m.relates_to":{"rel_type":"m.replace","event_id":%q}}`, one))
	f.Set(room, alice, "m.room.topic", "", `{"topic":"t"}`)
	f.Join(room, carol)
	f.check(room, bob, "2/0")
	f.check(room, alice, "0/0")
	f.check(room, carol, "0/0")

	mention := f.Send(room, alice, "m.room.message", `{"msgtype":"m.text","body":"hey","m.mentions":{"user_ids":["@bob:a.example"]}}`)
	f.check(room, bob, "3/1")
	f.check(room, carol, "1/0")
	// A mention notifies by whatever event; the room's mention by those who may.
	extra := f.Send(room, alice, "x.y", `{"m.mentions":{"user_ids":["@bob:a.example"]}}`)
	f.check(room, bob, "4/2")
	f.check(room, carol, "1/0")
	all := f.Send(room, alice, "m.room.message", `{"body":"all","m.mentions":{"room":true}}`)
	f.check(room, bob, "5/3")
	f.check(room, carol, "2/1")
	f.Send(room, carol, "m.room.message", `{"body":"all","m.mentions":{"room":true}}`)
	f.check(room, bob, "6/3")
	f.check(room, carol, "0/0") // she has spoken

	for _, id := range []matrix.EventID{mention, extra, all} {
		f.Redact(room, alice, id)
	}
	f.check(room, bob, "3/0")
	f.mark(room, bob, one, "")
	f.check(room, bob, "2/0")
	// The same after a restart.
	f.Stop()
	f = open(t, db)
	f.check(room, bob, "2/0")
	f.check(room, carol, "0/0")
	f.Say(room, bob, "mine")
	f.check(room, bob, "0/0")
	f.Say(room, alice, "more")
	f.check(room, bob, "1/0")
	f.Set(room, alice, "m.room.tombstone", "", `{"body":"moved","replacement_room":"!x:y"}`)
	f.check(room, bob, "2/1")
	if err := f.Rooms.Leave(f.Ctx, rooms.MemberChange{Room: room, Sender: bob, Target: bob}); err != nil {
		t.Fatal(err)
	}
	f.check(room, bob, "0/0")
	f.Join(room, bob)
	f.check(room, bob, "0/0")
	f.Say(room, alice, "welcome back")
	f.check(room, bob, "1/0")
}

func TestThreadCounts(t *testing.T) {
	for _, how := range []string{"default", "custom"} {
		t.Run(how, func(t *testing.T) { testThreadCounts(t, how == "custom") })
	}
}

func testThreadCounts(t *testing.T, custom bool) {
	db := sqldbtest.Open(t)
	f := open(t, db)
	if custom {
		f.custom(bob)
	}
	room := f.Room(alice, bob)
	a, b := f.Say(room, alice, "A"), f.Say(room, alice, "B")
	c := f.Send(room, alice, "m.room.message", thread(a))
	d := f.Send(room, alice, "m.room.message", thread(b))
	e := f.Send(room, alice, "m.room.message", thread(a))
	i := f.Say(room, alice, "I")
	name := func(id matrix.EventID) string { return string(id[:4]) }
	sorted := func(x, y string) string {
		if x > y {
			x, y = y, x
		}
		return x + y
	}
	f.check(room, bob, "3/0"+sorted(" "+name(a)+" 2/0", " "+name(b)+" 1/0"))
	if n := f.unread(room, bob).Total().Notify; n != 6 {
		t.Errorf("total %d", n)
	}
	f.mark(room, bob, c, string(a))
	f.check(room, bob, "3/0"+sorted(" "+name(a)+" 1/0", " "+name(b)+" 1/0"))
	f.mark(room, bob, b, "main")
	f.check(room, bob, "1/0"+sorted(" "+name(a)+" 1/0", " "+name(b)+" 1/0"))
	f.mark(room, bob, d, "")
	f.check(room, bob, "1/0 "+name(a)+" 1/0")
	f.mark(room, bob, i, "main")
	f.check(room, bob, "0/0 "+name(a)+" 1/0")
	f.Stop()
	f = open(t, db)
	f.check(room, bob, "0/0 "+name(a)+" 1/0")
	f.mark(room, bob, e, string(a))
	f.check(room, bob, "0/0")
	// An event that relates to one of a thread belongs to it; a message of one's
	// own there marks that thread alone.
	f.Send(room, alice, "m.room.message", fmt.Sprintf(`{"body":"ref","m.relates_to":{"rel_type":"m.reference","event_id":%q}}`, e))
	f.Say(room, alice, "main")
	f.check(room, bob, "1/0 "+name(a)+" 1/0")
	f.Send(room, bob, "m.room.message", thread(a))
	f.check(room, bob, "1/0")
}

// The counts of a long backlog, read in pieces after a restart.
func TestLongTail(t *testing.T) {
	db := sqldbtest.Open(t)
	f := open(t, db)
	room := f.Room(alice, bob, carol)
	var ids []matrix.EventID
	for i := range 700 {
		if i%10 == 9 {
			f.Send(room, alice, "m.room.message", thread(ids[0]))
			continue
		}
		ids = append(ids, f.Say(room, alice, "x"))
	}
	f.Stop()
	f = open(t, db)
	f.mark(room, bob, ids[len(ids)-5], "main")
	f.check(room, bob, "4/0 "+string(ids[0][:4])+" 50/0") // threads as far as is read
	u := f.unread(room, carol)
	if u.Main.Notify != 630 || u.Threads[ids[0]].Notify != 70 {
		t.Errorf("carol has %+v", u)
	}
}

// What the default rules say at once for everybody is what they say one by one:
// rules that change nothing are worked out the long way.
func TestClassify(t *testing.T) {
	f := open(t, sqldbtest.Open(t))
	f.custom(carol)
	room := f.Room(alice, bob, carol)
	for _, x := range []struct{ typ, content string }{
		{"m.room.message", `{"body":"x"}`},
		{"M.ROOM.Message", `{"body":"x"}`},
		{"m.room.message", `{"msgtype":"M.NOTICE","m.mentions":{"room":true}}`},
		{"m.room.message", `{"msgtype":5,"m.mentions":{"room":"true"}}`},
		{"m.room.message", `{"m.mentions":5}`},
		{"m.room.message", `{"m.mentions":{"user_ids":"@bob:a.example"}}`},
		{"m.room.message", `{"m.mentions":{"user_ids":["@bob:a.example",7,"@carol:a.example","@bob:a.example"]}}`},
		{"m.room.message", `{"m.mentions":{"room":true,"user_ids":["@bob:a.example","@carol:a.example"]}}`},
		{"m.reaction", `{"m.mentions":{"user_ids":["@bob:a.example","@carol:a.example"]}}`},
		{"m.reaction", `{}`},
		{"m.room.encrypted", `{"m.relates_to":{"rel_type":"m.replace","event_id":"$x"}}`},
		{"m.room.message", `{"m.relates_to":{"rel_type":"m.replace"},"m.mentions":{"user_ids":["@bob:a.example","@carol:a.example"]}}`},
		{"m.call.invite", `{}`},
		{"m.room.tombstone", `{}`},
		{"m.room.server_acl", `{}`},
		{"m.sticker", `{}`},
	} {
		f.Send(room, alice, x.typ, x.content)
		if b, c := f.unread(room, bob), f.unread(room, carol); b.Total() != c.Total() {
			t.Errorf("%s %s: at once %+v, one by one %+v", x.typ, x.content, b.Total(), c.Total())
		}
	}
	if b := f.unread(room, bob).Total(); b.Notify == 0 || b.Highlight == 0 {
		t.Errorf("nothing counted: %+v", b)
	}
}

// Rules change what is unread at once.
func TestMute(t *testing.T) {
	f := open(t, sqldbtest.Open(t))
	room := f.Room(alice, bob)
	f.Say(room, alice, "one")
	f.check(room, bob, "1/0")
	f.Want(bob, "PUT", rule("room", string(room)), `{"actions":[]}`, 200, "")
	f.check(room, bob, "0/0")
	f.Send(room, alice, "m.room.message", `{"body":"x","m.mentions":{"user_ids":["@bob:a.example"]}}`)
	f.check(room, bob, "1/1")
	f.Want(bob, "DELETE", rule("room", string(room)), ``, 200, "")
	f.check(room, bob, "2/1")
	f.Want(bob, "PUT", rule("sender", string(alice)), `{"actions":[]}`, 200, "")
	f.check(room, bob, "1/1")
	f.Want(bob, "PUT", rule("override", ".m.rule.master")+"/enabled", `{"enabled":true}`, 200, "")
	f.check(room, bob, "0/0")
}

// Ignored users do not count, from the moment they are ignored and as long.
func TestIgnored(t *testing.T) {
	f := open(t, sqldbtest.Open(t))
	room := f.Room(alice, bob, carol)
	f.Say(room, alice, "one")
	f.Say(room, carol, "two")
	f.check(room, bob, "2/0")
	ignore := func(list string) {
		t.Helper()
		if err := f.data.Put(f.Ctx, bob, "", "m.ignored_user_list", json.RawMessage(`{"ignored_users":`+list+`}`)); err != nil {
			t.Fatal(err)
		}
	}
	ignore(`{"@alice:a.example":{}}`)
	f.check(room, bob, "1/0")
	f.Say(room, alice, "three")
	f.check(room, bob, "1/0")
	if out := f.Want(bob, "GET", "/_matrix/client/v3/notifications", "", 200, ""); strings.Contains(out, `"sender":"@alice`) {
		t.Errorf("notifications %s", out)
	}
	ignore(`{}`)
	f.check(room, bob, "3/0")
}

// gateway is a push gateway that remembers what it was sent.
type gateway struct {
	*httptest.Server
	mu     sync.Mutex
	status int
	reject []string
	got    []map[string]any
}

func newGateway(t *testing.T) *gateway {
	g := &gateway{status: 200}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		var m struct{ Notification map[string]any }
		json.Unmarshal(b, &m)
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.status == 200 {
			g.got = append(g.got, m.Notification)
		}
		w.WriteHeader(g.status)
		json.NewEncoder(w).Encode(map[string]any{"rejected": g.reject})
	}))
	t.Cleanup(g.Close)
	return g
}

func (g *gateway) set(status int, reject ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.status, g.reject = status, reject
}

func (g *gateway) events() []map[string]any {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []map[string]any
	for _, n := range g.got {
		if n["event_id"] != nil {
			list = append(list, n)
		}
	}
	return list
}

func (g *gateway) pusher(key, format string) string {
	return fmt.Sprintf(`{"kind":"http","app_id":"app","pushkey":%q,"app_display_name":"App","device_display_name":"Phone","lang":"zh","data":{"url":"%s/_matrix/push/v1/notify","format":%q,"x":1}}`, key, g.URL, format)
}

func TestPushers(t *testing.T) {
	db := sqldbtest.Open(t)
	f := open(t, db)
	g := newGateway(t)
	room := f.Room(alice, bob)
	f.Set(room, alice, "m.room.name", "", `{"name":"Office"}`)
	const set = "/_matrix/client/v3/pushers/set"
	f.Want(bob, "POST", set, g.pusher("k1", ""), 200, "")
	f.Want(alice, "POST", set, g.pusher("k2", "event_id_only"), 200, "")
	if got := f.Want(bob, "GET", "/_matrix/client/v3/pushers", "", 200, ""); !strings.Contains(got, `"pushkey":"k1"`) || strings.Contains(got, "k2") {
		t.Errorf("pushers %s", got)
	}
	id := f.Send(room, alice, "m.room.message", `{"body":"hi","m.mentions":{"user_ids":["@bob:a.example"]}}`)
	partstest.Eventually(t, "a notification", func() bool { return len(g.events()) == 1 })
	n := g.events()[0]
	dev := n["devices"].([]any)[0].(map[string]any)
	if n["event_id"] != string(id) || n["room_name"] != "Office" || n["sender_display_name"] != "alice" || n["prio"] != "high" ||
		n["counts"].(map[string]any)["unread"] != 1.0 || n["content"].(map[string]any)["body"] != "hi" ||
		dev["pushkey"] != "k1" || dev["tweaks"].(map[string]any)["highlight"] != true || dev["data"].(map[string]any)["x"] != 1.0 ||
		dev["data"].(map[string]any)["url"] != nil {
		t.Errorf("notification %v", n)
	}
	f.Say(room, bob, "hello")
	partstest.Eventually(t, "a second notification", func() bool { return len(g.events()) == 2 })
	if n := g.events()[1]; n["content"] != nil || n["sender"] != nil || n["event_id"] == nil {
		t.Errorf("event_id_only has %v", n)
	}
	// Reading shows the phone the new number.
	f.Say(room, alice, "again")
	partstest.Eventually(t, "a third notification", func() bool { return len(g.events()) == 3 })
	f.read(room, bob)
	partstest.Eventually(t, "a badge", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		last := g.got[len(g.got)-1]
		return last["event_id"] == nil && len(last["counts"].(map[string]any)) == 0
	})
	// What a gateway that is down misses comes later, also after a restart.
	g.set(500)
	late := f.Say(room, alice, "late")
	partstest.Eventually(t, "the failure to be noted", func() bool {
		var n int64
		db.Read(t.Context(), func(tx *sqldb.Tx) error {
			return tx.QueryRow(`SELECT count(*) FROM pushers WHERE failing_since > 0`).Scan(&n)
		})
		return n == 1
	})
	f.Stop()
	g.set(200)
	f = open(t, db)
	partstest.Eventually(t, "the late notification", func() bool { l := g.events(); return l[len(l)-1]["event_id"] == string(late) })
	if n := len(g.events()); n != 4 {
		t.Errorf("%d notifications", n)
	}
	// A rejected key is gone.
	g.set(200, "k1")
	f.Say(room, alice, "last")
	partstest.Eventually(t, "the pusher to go", func() bool {
		_, out := f.Do(bob, "GET", "/_matrix/client/v3/pushers", "")
		return out == `{"pushers":[]}`
	})
	// The same key for another user replaces the first one's, unless appended.
	g.set(200)
	f.Want(bob, "POST", set, g.pusher("k2", ""), 200, "")
	if got := f.Want(alice, "GET", "/_matrix/client/v3/pushers", "", 200, ""); got != `{"pushers":[]}` {
		t.Errorf("alice keeps %s", got)
	}
	f.Want(alice, "POST", set, strings.Replace(g.pusher("k2", ""), `{`, `{"append":true,`, 1), 200, "")
	f.Want(bob, "POST", set, `{"kind":null,"app_id":"app","pushkey":"k2"}`, 200, "")
	if got := f.Want(alice, "GET", "/_matrix/client/v3/pushers", "", 200, ""); !strings.Contains(got, "k2") {
		t.Errorf("alice has %s", got)
	}
}

func TestPusherErrors(t *testing.T) {
	f := open(t, sqldbtest.Open(t))
	g := newGateway(t)
	good := g.pusher("k", "")
	for _, c := range []struct{ old, new, code string }{
		{`"kind":"http",`, ``, "M_MISSING_PARAM"},
		{`"pushkey":"k",`, ``, "M_MISSING_PARAM"},
		{`"lang":"zh",`, ``, "M_MISSING_PARAM"},
		{`"kind":"http"`, `"kind":"email"`, "M_INVALID_PARAM"},
		{`"kind":"http"`, `"kind":"fax"`, "M_INVALID_PARAM"},
		{`"kind":"http"`, `"kind":5`, "M_BAD_JSON"},
		{`/_matrix/push/v1/notify`, `/elsewhere`, "M_INVALID_PARAM"},
		{`http://`, `ftp://`, "M_INVALID_PARAM"},
		{`"url"`, `"uri"`, "M_MISSING_PARAM"},
		{`"app"`, `"` + strings.Repeat("a", 65) + `"`, "M_INVALID_PARAM"},
		{`"k"`, `"` + strings.Repeat("a", 513) + `"`, "M_INVALID_PARAM"},
	} {
		f.Want(bob, "POST", "/_matrix/client/v3/pushers/set", strings.Replace(good, c.old, c.new, 1), 400, c.code)
	}
}

func TestNotifications(t *testing.T) {
	f := open(t, sqldbtest.Open(t))
	room := f.Room(alice)
	f.Say(room, alice, "before")
	f.Join(room, bob)
	one := f.Say(room, alice, "one")
	f.Send(room, alice, "m.reaction", `{}`)
	high := f.Send(room, alice, "m.room.message", `{"body":"x","m.mentions":{"user_ids":["@bob:a.example"]}}`)
	f.mark(room, bob, one, "")
	type answer struct {
		Next          string `json:"next_token"`
		Notifications []struct {
			Read  bool
			Room  matrix.RoomID `json:"room_id"`
			Event struct {
				ID   matrix.EventID `json:"event_id"`
				Room string         `json:"room_id"`
			}
			Actions []any
		}
	}
	get := func(query string) (a answer) {
		t.Helper()
		json.Unmarshal([]byte(f.Want(bob, "GET", "/_matrix/client/v3/notifications"+query, "", 200, "")), &a)
		return a
	}
	a := get("")
	if len(a.Notifications) != 2 || a.Next != "" || a.Notifications[0].Event.ID != high || a.Notifications[0].Read ||
		a.Notifications[1].Event.ID != one || !a.Notifications[1].Read || a.Notifications[0].Room != room || a.Notifications[0].Event.Room != "" {
		t.Errorf("%+v", a)
	}
	if a := get("?only=highlight"); len(a.Notifications) != 1 || a.Notifications[0].Event.ID != high {
		t.Errorf("%+v", a)
	}
	a = get("?limit=1")
	if len(a.Notifications) != 1 || a.Next == "" {
		t.Fatalf("%+v", a)
	}
	if a = get("?limit=1&from=" + a.Next); len(a.Notifications) != 1 || a.Notifications[0].Event.ID != one {
		t.Errorf("%+v", a)
	}
	f.Want(bob, "GET", "/_matrix/client/v3/notifications?from=x", "", 400, "M_INVALID_PARAM")
	f.Want(bob, "GET", "/_matrix/client/v3/notifications?limit=0", "", 400, "M_INVALID_PARAM")
}

func BenchmarkCounts(b *testing.B) {
	f := open(b, sqldbtest.Open(b))
	room := f.Room(alice, bob, carol)
	var ids []matrix.EventID
	for range 500 {
		ids = append(ids, f.Say(room, alice, "x"))
	}
	f.mark(room, bob, ids[450], "main")
	f.custom(carol)
	for name, u := range map[string]matrix.UserID{"default": bob, "custom": carol} {
		f.unread(room, u)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				f.p.Counts(f.Ctx, room, u)
			}
		})
	}
}

// The rules of a room follow people to the room that replaces it.
func TestCopyRoomRules(t *testing.T) {
	f := open(t, sqldbtest.Open(t))
	const from, to = "!from", "!to"
	f.Want(bob, "PUT", rule("room", from), `{"actions":[]}`, 200, "")
	f.Want(bob, "PUT", rule("room", "!other"), `{"actions":[]}`, 200, "")
	f.Want(bob, "PUT", rule("override", from), `{"actions":[],"conditions":[{"kind":"event_match","key":"room_id","pattern":"!from"}]}`, 200, "")
	f.Want(bob, "PUT", rule("underride", "mine"),
		`{"actions":["notify"],"conditions":[{"kind":"contains_display_name"},{"pattern":"!from","kind":"event_match","key":"room_id"}]}`, 200, "")
	f.Want(bob, "PUT", rule("override", from)+"/enabled", `{"enabled":false}`, 200, "")
	for range 2 {
		if err := f.p.CopyRoomRules(f.Ctx, bob, from, to); err != nil {
			t.Fatal(err)
		}
	}
	f.Want(bob, "GET", rule("room", from), "", 200, "")
	f.Want(bob, "GET", rule("room", to), "", 200, "")
	got := f.Want(bob, "GET", rule("override", to), "", 200, "")
	if !strings.Contains(got, `"pattern":"!to"`) || !strings.Contains(got, `"enabled":false`) {
		t.Errorf("override %s", got)
	}
	got = f.Want(bob, "GET", rule("underride", "mine|!to"), "", 200, "")
	if !strings.Contains(got, `"pattern":"!to"`) || !strings.Contains(got, "contains_display_name") {
		t.Errorf("underride %s", got)
	}
	if n := strings.Count(string(f.p.Rules(bob)), "!to"); n != 5 {
		t.Errorf("%d places name the new room", n)
	}
	head := f.Log.Head()
	if err := f.p.CopyRoomRules(f.Ctx, alice, from, to); err != nil || f.Log.Head() != head {
		t.Errorf("alice has no rules: %v", err)
	}
}
