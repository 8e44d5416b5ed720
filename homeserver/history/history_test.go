package history_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/history"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/partstest"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

const (
	alice = partstest.Alice
	bob   = partstest.Bob
	carol = partstest.Carol
)

// world reads the history.
type world struct{ *partstest.World }

func open(t testing.TB, db *sqldb.DB) (*world, *accountdata.Data) {
	t.Helper()
	w := &world{partstest.New(t, db, rooms.Options{})}
	data, err := accountdata.New(w.Ctx, db, w.Log)
	if err != nil {
		t.Fatal(err)
	}
	h := history.New(history.Parts{DB: db, Log: w.Log, Events: w.Events, Hub: w.Hub, Rooms: w.Rooms, Data: data})
	w.API.Add(h.Routes()...)
	w.Run()
	return w, data
}

type event struct {
	ID       matrix.EventID `json:"event_id"`
	Room     matrix.RoomID  `json:"room_id"`
	Type     string
	Sender   matrix.UserID
	StateKey *string `json:"state_key"`
	Content  map[string]any
}

type page struct {
	Start, End   string
	Chunk, State []event
}

func (w *world) path(room matrix.RoomID, rest string) string {
	return "/_matrix/client/v3/rooms/" + string(room) + "/" + rest
}

func (w *world) messages(user matrix.UserID, room matrix.RoomID, query string) (p page) {
	w.T.Helper()
	if err := json.Unmarshal([]byte(w.Want(user, "GET", w.path(room, "messages?"+query), "", 200, "")), &p); err != nil {
		w.T.Fatal(err)
	}
	return p
}

// all pages through the whole room.
func (w *world) all(user matrix.UserID, room matrix.RoomID, dir, query string) (ids []matrix.EventID) {
	w.T.Helper()
	from := ""
	for range 1000 {
		p := w.messages(user, room, "dir="+dir+query+from)
		for _, e := range p.Chunk {
			ids = append(ids, e.ID)
		}
		if p.End == "" {
			return ids
		}
		from = "&from=" + p.End
	}
	w.T.Fatal("the pages do not end")
	return nil
}

func bodies(list []event) string {
	var s []string
	for _, e := range list {
		if b, ok := e.Content["body"].(string); ok {
			s = append(s, b)
		}
	}
	return strings.Join(s, " ")
}

// Nothing is lost or doubled, whatever the size of the pages and however the
// events came.
func TestPages(t *testing.T) {
	w, _ := open(t, sqldbtest.Open(t))
	room := w.Room(alice, bob)
	var wg sync.WaitGroup
	var mu sync.Mutex
	sent := map[matrix.EventID]bool{}
	for i := range 8 {
		wg.Go(func() {
			for j := range 20 {
				id := w.Say(room, alice, fmt.Sprint(i, j))
				mu.Lock()
				sent[id] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	back := w.all(bob, room, "b", "&limit=7")
	for _, query := range []string{"&limit=1000", "&limit=1", "&limit=100"} {
		if again := w.all(bob, room, "b", query); !slices.Equal(again, back) {
			t.Errorf("%s: %d events, with pages of 7 %d", query, len(again), len(back))
		}
		forward := w.all(bob, room, "f", query)
		slices.Reverse(forward)
		if !slices.Equal(forward, back) {
			t.Errorf("forward %s: %d events, backward %d", query, len(forward), len(back))
		}
	}
	seen := map[matrix.EventID]bool{}
	for _, id := range back {
		if seen[id] {
			t.Errorf("%s comes twice", id)
		}
		seen[id] = true
	}
	for id := range sent {
		if !seen[id] {
			t.Errorf("%s is missing", id)
		}
	}
}

func TestTokens(t *testing.T) {
	w, _ := open(t, sqldbtest.Open(t))
	room := w.Room(alice, bob)
	w.Say(room, alice, "one")
	mid := fmt.Sprintf("s%d_1700000000000_5", w.Log.Head()) // as /sync gives them
	w.Say(room, alice, "two")
	end := fmt.Sprintf("s%d_0", w.Log.Head())
	w.Say(room, alice, "three")
	if got := bodies(w.messages(bob, room, "dir=f&from="+mid).Chunk); got != "two three" {
		t.Errorf("forward from the middle %s", got)
	}
	if got := bodies(w.messages(bob, room, "dir=f&from="+mid+"&to="+end).Chunk); got != "two" {
		t.Errorf("forward between %s", got)
	}
	if got := bodies(w.messages(bob, room, "dir=b&from="+end+"&to="+mid).Chunk); got != "two" {
		t.Errorf("backward between %s", got)
	}
	p := w.messages(bob, room, "dir=b&limit=1")
	if bodies(p.Chunk) != "three" || p.Start == "" {
		t.Errorf("%+v", p)
	}
	if got := bodies(w.messages(bob, room, "dir=f&from="+p.End).Chunk); got != "three" {
		t.Errorf("there and back %s", got)
	}
	p = w.messages(bob, room, "dir=f&from="+end)
	if p = w.messages(bob, room, "dir=f&from="+p.End); len(p.Chunk) != 0 || p.End != "" {
		t.Errorf("at the newest event %+v", p)
	}
	for _, c := range []struct{ query, code string }{
		{"", "M_MISSING_PARAM"},
		{"dir=x", "M_INVALID_PARAM"},
		{"dir=b&from=x", "M_INVALID_PARAM"},
		{"dir=b&to=sx_1", "M_INVALID_PARAM"},
		{"dir=b&limit=-1", "M_INVALID_PARAM"},
		{"dir=b&limit=x", "M_INVALID_PARAM"},
		{"dir=b&filter=" + url.QueryEscape(`{"types":5}`), "M_BAD_JSON"},
		{"dir=b&filter=x", "M_NOT_JSON"},
	} {
		w.Want(bob, "GET", w.path(room, "messages?"+c.query), "", 400, c.code)
	}
}

func TestFilter(t *testing.T) {
	w, data := open(t, sqldbtest.Open(t))
	room := w.Room(alice, bob)
	for i := range 150 {
		w.Send(room, alice, "x.noise", `{}`)
		if i%50 == 0 {
			w.Say(room, alice, fmt.Sprint("m", i))
		}
	}
	only := "&filter=" + url.QueryEscape(`{"types":["m.room.message"],"lazy_load_members":true}`)
	p := w.messages(bob, room, "dir=b&limit=2"+only)
	if bodies(p.Chunk) != "m100 m50" || len(p.State) != 1 || *p.State[0].StateKey != string(alice) {
		t.Errorf("%+v", p)
	}
	p = w.messages(bob, room, "dir=b&limit=2&from="+p.End+only)
	if bodies(p.Chunk) != "m0" || p.End == "" {
		t.Errorf("%+v", p)
	}
	if p = w.messages(bob, room, "dir=b&limit=2&from="+p.End+only); len(p.Chunk) != 0 || p.End != "" {
		t.Errorf("beyond the beginning: %+v", p)
	}
	if ids := w.all(bob, room, "f", "&limit=1"+only); len(ids) != 3 {
		t.Errorf("forward %v", ids)
	}
	// Whom the reader ignores is not shown.
	if err := data.Put(w.Ctx, bob, "", "m.ignored_user_list", json.RawMessage(`{"ignored_users":{"@alice:a.example":{}}}`)); err != nil {
		t.Fatal(err)
	}
	if ids := w.all(bob, room, "b", only); len(ids) != 0 {
		t.Errorf("ignored: %v", ids)
	}
}

func TestVisibility(t *testing.T) {
	w, _ := open(t, sqldbtest.Open(t))
	room := w.Room(alice)
	w.Say(room, alice, "before")
	w.Join(room, bob)
	w.Say(room, alice, "during")
	secret := w.Set(room, alice, "x.state", "k", `{"v":1}`)
	if err := w.Rooms.Leave(w.Ctx, rooms.MemberChange{Room: room, Sender: bob, Target: bob}); err != nil {
		t.Fatal(err)
	}
	after := w.Say(room, alice, "after")
	w.Set(room, alice, "x.state", "k", `{"v":2}`)
	if got := bodies(w.messages(bob, room, "dir=b&limit=100").Chunk); got != "during before" {
		t.Errorf("bob has left and sees %s", got)
	}
	if got := bodies(w.messages(bob, room, "dir=f&limit=100").Chunk); got != "before during" {
		t.Errorf("bob has left and sees %s", got)
	}
	w.Want(bob, "GET", w.path(room, "event/"+string(after)), "", 404, "M_NOT_FOUND")
	w.Want(bob, "GET", w.path(room, "context/"+string(after)), "", 404, "M_NOT_FOUND")
	w.Want(bob, "GET", w.path(room, "event/"+string(secret)), "", 200, "")
	if got := w.Want(bob, "GET", w.path(room, "state/x.state/k"), "", 200, ""); got != `{"v":1}` {
		t.Errorf("bob has left and sees the state %s", got)
	}
	if got := w.Want(alice, "GET", w.path(room, "state/x.state/k"), "", 200, ""); got != `{"v":2}` {
		t.Errorf("alice sees the state %s", got)
	}
	w.Want(bob, "GET", w.path(room, "joined_members"), "", 403, "M_FORBIDDEN")
	for _, path := range []string{"messages?dir=b", "state", "state/m.room.create/", "members", "context/" + string(after), "joined_members"} {
		w.Want(carol, "GET", w.path(room, path), "", 403, "M_FORBIDDEN")
	}
	w.Want(carol, "GET", w.path(room, "event/"+string(after)), "", 404, "M_NOT_FOUND")
	w.Want(carol, "GET", w.path("!nowhere:a.example", "messages?dir=b"), "", 403, "M_FORBIDDEN")
	// Only since joining.
	w.Set(room, alice, "m.room.history_visibility", "", `{"history_visibility":"joined"}`)
	w.Say(room, alice, "closed")
	w.Join(room, carol)
	w.Say(room, alice, "open")
	if got := bodies(w.messages(carol, room, "dir=b&limit=100").Chunk); got != "open after during before" {
		t.Errorf("carol sees %s", got)
	}
	// Everybody may look in.
	w.Set(room, alice, "m.room.history_visibility", "", `{"history_visibility":"world_readable"}`)
	w.Say(room, alice, "public")
	if got := bodies(w.messages("@zoe:a.example", room, "dir=b&limit=100").Chunk); !strings.HasPrefix(got, "public") || strings.Contains(got, "closed") {
		t.Errorf("zoe sees %s", got)
	}
}

func TestContext(t *testing.T) {
	w, _ := open(t, sqldbtest.Open(t))
	room := w.Room(alice, bob)
	var ids []matrix.EventID
	for i := range 9 {
		ids = append(ids, w.Say(room, alice, fmt.Sprint(i)))
	}
	var x struct {
		Start, End    string
		Event         event
		Before, After []event
		State         []event
	}
	get := func(query string) {
		t.Helper()
		x.State = nil
		out := w.Want(bob, "GET", w.path(room, "context/"+string(ids[4])+query), "", 200, "")
		out = strings.NewReplacer(`"events_before"`, `"before"`, `"events_after"`, `"after"`).Replace(out)
		if err := json.Unmarshal([]byte(out), &x); err != nil {
			t.Fatal(err)
		}
	}
	get("?limit=4")
	if x.Event.ID != ids[4] || bodies(x.Before) != "3 2" || bodies(x.After) != "5 6" || len(x.State) != 6 || x.Event.Room != room {
		t.Errorf("%+v", x)
	}
	if got := bodies(w.messages(bob, room, "dir=b&limit=2&from="+x.Start).Chunk); got != "1 0" {
		t.Errorf("before the context %s", got)
	}
	if got := bodies(w.messages(bob, room, "dir=f&limit=2&from="+x.End).Chunk); got != "7 8" {
		t.Errorf("after the context %s", got)
	}
	get("?limit=3&filter=" + url.QueryEscape(`{"lazy_load_members":true}`))
	members := 0
	for _, e := range x.State {
		if e.Type == "m.room.member" {
			members++
		}
	}
	if members != 1 || bodies(x.Before) != "3" || bodies(x.After) != "5 6" {
		t.Errorf("lazy: %d members, %s, %s", members, bodies(x.Before), bodies(x.After))
	}
	get("?limit=0")
	if len(x.Before)+len(x.After) != 0 {
		t.Errorf("%+v", x)
	}
}

func TestState(t *testing.T) {
	w, _ := open(t, sqldbtest.Open(t))
	room := w.Room(alice, bob)
	id := w.Set(room, alice, "m.room.name", "", `{"name":"Büro"}`)
	if got := w.Want(bob, "GET", w.path(room, "state/m.room.name"), "", 200, ""); got != `{"name":"Büro"}` {
		t.Errorf("content %s", got)
	}
	var e event
	json.Unmarshal([]byte(w.Want(bob, "GET", w.path(room, "state/m.room.name/?format=event"), "", 200, "")), &e)
	if e.ID != id || e.Room != room || *e.StateKey != "" {
		t.Errorf("event %+v", e)
	}
	w.Want(bob, "GET", w.path(room, "state/m.room.name/x"), "", 404, "M_NOT_FOUND")
	w.Want(bob, "GET", w.path(room, "state/m.room.name?format=xml"), "", 400, "M_INVALID_PARAM")
	var list []event
	json.Unmarshal([]byte(w.Want(bob, "GET", w.path(room, "state"), "", 200, "")), &list)
	if !slices.ContainsFunc(list, func(x event) bool { return x.ID == id }) || len(list) < 7 {
		t.Errorf("state %+v", list)
	}
	var one event
	json.Unmarshal([]byte(w.Want(bob, "GET", w.path(room, "event/"+string(id)), "", 200, "")), &one)
	if one.ID != id {
		t.Errorf("event %+v", one)
	}
	w.Want(bob, "GET", w.path(room, "event/$nowhere"), "", 404, "M_NOT_FOUND")
}

func TestMembers(t *testing.T) {
	w, _ := open(t, sqldbtest.Open(t))
	room := w.Room(alice, bob)
	early := fmt.Sprintf("s%d_0", w.Log.Head())
	w.Join(room, carol)
	if err := w.Rooms.Leave(w.Ctx, rooms.MemberChange{Room: room, Sender: bob, Target: bob}); err != nil {
		t.Fatal(err)
	}
	now := fmt.Sprintf("s%d_0", w.Log.Head())
	get := func(user matrix.UserID, query string) string {
		t.Helper()
		var p page
		json.Unmarshal([]byte(w.Want(user, "GET", w.path(room, "members"+query), "", 200, "")), &p)
		var s []string
		for _, e := range p.Chunk {
			s = append(s, matrix.UserID(*e.StateKey).Localpart()+"="+e.Content["membership"].(string))
		}
		slices.Sort(s)
		return strings.Join(s, " ")
	}
	for range 2 { // from the database, then from memory
		for query, want := range map[string]string{
			"":                                "alice=join bob=leave carol=join",
			"?membership=join":                "alice=join carol=join",
			"?not_membership=leave":           "alice=join carol=join",
			"?not_membership=leave&at=" + now: "alice=join carol=join",
			"?at=" + early:                    "alice=join bob=join",
			"?membership=leave":               "bob=leave",
		} {
			if got := get(alice, query); got != want {
				t.Errorf("%s: %s, want %s", query, got, want)
			}
		}
	}
	if got := get(bob, ""); got != "alice=join bob=leave carol=join" {
		t.Errorf("bob sees %s", got)
	}
	want := `{"joined":{"@alice:a.example":{"display_name":"alice","avatar_url":null},"@carol:a.example":{"display_name":"carol","avatar_url":null}}}`
	if got := w.Want(alice, "GET", w.path(room, "joined_members"), "", 200, ""); got != want {
		t.Errorf("joined %s", got)
	}
	w.Join(room, bob) // drops what was kept
	if got := get(alice, "?membership=join"); got != "alice=join bob=join carol=join" {
		t.Errorf("after bob's return %s", got)
	}
	w.Want(alice, "GET", w.path(room, "members?membership=x"), "", 400, "M_INVALID_PARAM")
	w.Want(alice, "GET", w.path(room, "members?at=x"), "", 400, "M_INVALID_PARAM")
}

func TestTimestamp(t *testing.T) {
	w, _ := open(t, sqldbtest.Open(t))
	room := w.Room(alice, bob)
	at := func(ts int64, body string) matrix.EventID {
		id, err := w.Rooms.Send(w.Ctx, rooms.Draft{Room: room, Sender: alice, Type: "m.room.message", TS: ts, Content: json.RawMessage(`{"body":"` + body + `"}`)})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	const far = 5_000_000_000_000
	one, two := at(far, "one"), at(far+1000, "two")
	path := "/_matrix/client/v1/rooms/" + string(room) + "/timestamp_to_event?"
	get := func(query string) string { return w.Want(bob, "GET", path+query, "", 200, "") }
	if got := get(fmt.Sprintf("dir=f&ts=%d", far+1)); got != fmt.Sprintf(`{"event_id":%q,"origin_server_ts":%d}`, two, far+1000) {
		t.Errorf("forward %s", got)
	}
	if got := get(fmt.Sprintf("dir=b&ts=%d", far+1)); got != fmt.Sprintf(`{"event_id":%q,"origin_server_ts":%d}`, one, far) {
		t.Errorf("backward %s", got)
	}
	w.Want(bob, "GET", path+fmt.Sprintf("dir=f&ts=%d", far+5000), "", 404, "M_NOT_FOUND")
	w.Want(bob, "GET", path+"dir=f", "", 400, "M_MISSING_PARAM")
	w.Want(bob, "GET", path+"dir=f&ts=x", "", 400, "M_INVALID_PARAM")
	w.Want(bob, "GET", path+"dir=x&ts=1", "", 400, "M_INVALID_PARAM")
	w.Want(carol, "GET", path+"dir=f&ts=1", "", 403, "M_FORBIDDEN")
}

func BenchmarkMessages(b *testing.B) {
	w, _ := open(b, sqldbtest.Open(b))
	room := w.Room(alice, bob)
	for range 500 {
		w.Say(room, alice, "a message of some length, as people write them in a chat")
	}
	for b.Loop() {
		w.Do(bob, "GET", w.path(room, "messages?dir=b&limit=100"), "")
	}
	b.ReportMetric(100*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
