package receipts_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/partstest"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	here  = partstest.Here
	alice = partstest.Alice
	bob   = partstest.Bob
	carol = partstest.Carol
)

type fixture struct {
	*partstest.World
	r    *receipts.Receipts
	data *accountdata.Data
}

func open(t testing.TB, db *sqldb.DB) *fixture {
	t.Helper()
	w := partstest.New(t, db, rooms.Options{})
	data, err := accountdata.New(w.Ctx, db, w.Log)
	if err != nil {
		t.Fatal(err)
	}
	r, err := receipts.New(w.Ctx, db, w.Log, here, receipts.NewPlaces(w.Events, w.Log), w.Hub, data, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.API.Add(r.Routes()...)
	w.Run(r.Run)
	return &fixture{w, r, data}
}

const v3 = "/_matrix/client/v3/rooms/"

func path(room matrix.RoomID, typ string, id matrix.EventID) string {
	return v3 + string(room) + "/receipt/" + typ + "/" + string(id)
}

func (f *fixture) content(user matrix.UserID, room matrix.RoomID, from stream.Pos) string {
	f.T.Helper()
	list, err := f.r.Content(f.Ctx, user, room, from, f.Log.Head())
	if err != nil {
		f.T.Fatal(err)
	}
	var parts []string
	for _, b := range list {
		if !json.Valid(b) {
			f.T.Fatalf("not JSON: %s", b)
		}
		parts = append(parts, string(b))
	}
	return strings.Join(parts, " | ")
}

func TestMark(t *testing.T) {
	db := sqldbtest.Open(t)
	f := open(t, db)
	room := f.Room(alice, bob)
	one, two := f.Say(room, alice, "one"), f.Say(room, alice, "two")
	before := f.Log.Head()

	f.Want(bob, "POST", path(room, "m.read", two), `{}`, 200, "")
	got := f.content(alice, room, before)
	if !strings.HasPrefix(got, fmt.Sprintf(`{"%s":{"m.read":{"@bob:a.example":{"ts":`, two)) {
		t.Errorf("content %s", got)
	}
	head := f.Log.Head()
	f.Want(bob, "POST", path(room, "m.read", one), ``, 200, "") // behind: ignored
	f.Want(bob, "POST", path(room, "m.read", two), ``, 200, "") // the same: ignored
	if got := f.content(alice, room, head); got != "" {
		t.Errorf("a receipt moved back: %s", got)
	}
	mark, _ := f.r.ReadUpTo(f.Ctx, room, bob)
	if mark.Unthreaded == 0 || mark.Main != 0 {
		t.Errorf("mark %+v", mark)
	}
	// The same after a restart.
	f.Stop()
	g := open(t, db)
	again, _ := g.r.ReadUpTo(g.Ctx, room, bob)
	if again.Unthreaded != mark.Unthreaded {
		t.Errorf("mark after a restart %+v, was %+v", again, mark)
	}
	if again := g.content(alice, room, 0); again != got {
		t.Errorf("content after a restart %s, was %s", again, got)
	}
	if out, _ := g.r.Outbound(g.Ctx, 0, g.Log.Head()); len(out) != 1 || out[0].Event != two {
		t.Errorf("outbound %v", out)
	}
}

func TestPrivate(t *testing.T) {
	f := open(t, sqldbtest.Open(t))
	room := f.Room(alice, bob)
	one, two := f.Say(room, alice, "one"), f.Say(room, alice, "two")
	before := f.Log.Head()
	f.Want(bob, "POST", path(room, "m.read.private", two), `{}`, 200, "")
	f.Want(bob, "POST", path(room, "m.read", one), `{}`, 200, "")
	if got := f.content(alice, room, before); strings.Contains(got, "private") || !strings.Contains(got, string(one)) {
		t.Errorf("alice sees %s", got)
	}
	if got := f.content(bob, room, before); !strings.Contains(got, `"m.read.private":{"@bob`) {
		t.Errorf("bob sees %s", got)
	}
	if got := f.content(alice, room, before); strings.Contains(got, "private") {
		t.Errorf("alice sees %s after bob has asked", got)
	}
	if out, _ := f.r.Outbound(f.Ctx, 0, f.Log.Head()); len(out) != 1 || out[0].Type != "m.read" {
		t.Errorf("outbound %v", out)
	}
	mark, _ := f.r.ReadUpTo(f.Ctx, room, bob)
	p, _ := f.r.Since(f.Ctx, bob, room, 0, f.Log.Head())
	if len(p) != 2 || mark.Unthreaded != max(p[0].EventPos, p[1].EventPos) {
		t.Errorf("mark %+v of %v", mark, p)
	}
}

func TestThreads(t *testing.T) {
	f := open(t, sqldbtest.Open(t))
	room := f.Room(alice, bob)
	root := f.Say(room, alice, "root")
	other := f.Say(room, alice, "other")
	reply := f.Send(room, alice, "m.room.message", fmt.Sprintf(`{"body":"in","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, root))
	reaction := f.Send(room, alice, "m.reaction", fmt.Sprintf(`{"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":"x"}}`, reply))
	near := f.Send(room, alice, "m.room.message", fmt.Sprintf(`{"body":"of it","m.relates_to":{"rel_type":"m.reference","event_id":%q}}`, root))
	far := f.Send(room, alice, "m.reaction", fmt.Sprintf(`{"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":"x"}}`, near))
	for _, c := range []struct {
		id     matrix.EventID
		typ    string
		body   string
		status int
		code   string
	}{
		{other, "m.read", `{"thread_id":"main"}`, 200, ""},
		{root, "m.read", `{"thread_id":"main"}`, 200, ""},
		{root, "m.read", fmt.Sprintf(`{"thread_id":%q}`, root), 200, ""},
		{reply, "m.read", fmt.Sprintf(`{"thread_id":%q}`, root), 200, ""},
		{reaction, "m.read", fmt.Sprintf(`{"thread_id":%q}`, root), 200, ""},
		{far, "m.read", fmt.Sprintf(`{"thread_id":%q}`, root), 200, ""},
		{far, "m.read", fmt.Sprintf(`{"thread_id":%q}`, other), 400, "M_INVALID_PARAM"},
		{reply, "m.read", `{}`, 200, ""},
		{reply, "m.read", `{"thread_id":"main"}`, 400, "M_INVALID_PARAM"},
		{other, "m.read", fmt.Sprintf(`{"thread_id":%q}`, root), 400, "M_INVALID_PARAM"},
		{other, "m.read", `{"thread_id":""}`, 400, "M_INVALID_PARAM"},
		{other, "m.read", `{"thread_id":5}`, 400, "M_INVALID_PARAM"},
		{other, "m.read", `{"thread_id":null}`, 400, "M_INVALID_PARAM"},
		{other, "m.fully_read", `{"thread_id":"main"}`, 400, "M_INVALID_PARAM"},
		{other, "m.unread", `{}`, 400, "M_INVALID_PARAM"},
		{"$nowhere", "m.read", `{}`, 404, "M_NOT_FOUND"},
		{other, "m.read", `[]`, 400, "M_BAD_JSON"},
		{other, "m.read", `{`, 400, "M_NOT_JSON"},
	} {
		f.Want(bob, "POST", path(room, c.typ, c.id), c.body, c.status, c.code)
	}
	f.Want(carol, "POST", path(room, "m.read", other), `{}`, 403, "M_FORBIDDEN")
	mark, _ := f.r.ReadUpTo(f.Ctx, room, bob)
	if !(mark.Main > 0 && mark.Threads[root] > mark.Unthreaded && mark.Unthreaded > mark.Main) {
		t.Errorf("mark %+v", mark)
	}
	// Two receipts of one user at one event need two events.
	last := f.Say(room, alice, "last")
	before := f.Log.Head()
	f.Want(bob, "POST", path(room, "m.read", last), `{"thread_id":"main"}`, 200, "")
	f.Want(bob, "POST", path(room, "m.read", last), `{}`, 200, "")
	list, _ := f.r.Content(f.Ctx, alice, room, before, f.Log.Head())
	if len(list) != 2 || !strings.Contains(string(list[0])+string(list[1]), `"thread_id":"main"`) {
		t.Errorf("contents %s", list)
	}
}

func TestMarkers(t *testing.T) {
	f := open(t, sqldbtest.Open(t))
	room := f.Room(alice, bob)
	one, two := f.Say(room, alice, "one"), f.Say(room, alice, "two")
	markers := v3 + string(room) + "/read_markers"
	f.Want(bob, "POST", markers, fmt.Sprintf(`{"m.fully_read":%q,"m.read":%q,"m.read.private":%q}`, one, one, two), 200, "")
	got, err := f.data.Get(f.Ctx, bob, room, "m.fully_read")
	if err != nil || string(got) != fmt.Sprintf(`{"event_id":%q}`, one) {
		t.Errorf("fully read %s %v", got, err)
	}
	list, _ := f.r.Since(f.Ctx, bob, room, 0, f.Log.Head())
	if len(list) != 2 {
		t.Errorf("receipts %v", list)
	}
	f.Want(bob, "POST", path(room, "m.fully_read", two), `{}`, 200, "")
	if got, _ := f.data.Get(f.Ctx, bob, room, "m.fully_read"); string(got) != fmt.Sprintf(`{"event_id":%q}`, two) {
		t.Errorf("fully read %s", got)
	}
	f.Want(bob, "POST", markers, `{}`, 200, "")
	f.Want(bob, "POST", markers, `{"m.fully_read":"$nowhere"}`, 404, "M_NOT_FOUND")
	f.Want(bob, "POST", markers, `{"m.read":7}`, 400, "M_INVALID_PARAM")
	f.Want(carol, "POST", markers, `{}`, 403, "M_FORBIDDEN")
}

// Receipts of other servers are taken for their own users in the room, and wait
// for events that are late.
func TestReceive(t *testing.T) {
	f := open(t, sqldbtest.Open(t))
	room := f.Room(alice, bob)
	one := f.Say(room, alice, "one")
	edu := func(id matrix.EventID) json.RawMessage {
		return json.RawMessage(fmt.Sprintf(`{%q:{"m.read":{"@bob:a.example":{"event_ids":[%q],"data":{"ts":99999999999999}},"@zoe:b.example":{"event_ids":[%q],"data":{"ts":5}}}}}`, room, id, id))
	}
	if err := f.r.Receive(f.Ctx, "b.example", edu(one)); err != nil {
		t.Fatal(err)
	}
	if got := f.content(alice, room, 0); got != "" {
		t.Errorf("took %s from a server of others", got)
	}
	// This server's own name stands in for another one here.
	if err := f.r.Receive(f.Ctx, here, edu("$late")); err != nil {
		t.Fatal(err)
	}
	if err := f.r.Receive(f.Ctx, here, edu(one)); err != nil {
		t.Fatal(err)
	}
	if got := f.content(alice, room, 0); !strings.Contains(got, "@bob") || strings.Contains(got, "99999999999999") {
		t.Errorf("got %s", got)
	}
	if err := f.r.Receive(f.Ctx, here, json.RawMessage(`[]`)); !matrix.IsCode(err, "M_BAD_JSON") {
		t.Errorf("malformed: %v", err)
	}
}

// Two servers may have the same events in different orders: what counts of another server's user is what that server
// says last, whatever comes first here.
func TestOtherOrderElsewhere(t *testing.T) {
	f := open(t, sqldbtest.Open(t))
	room := f.Room(alice, bob)
	one, two := f.Say(room, alice, "one"), f.Say(room, alice, "two")
	tell := func(id matrix.EventID, ts int) {
		t.Helper()
		edu := fmt.Sprintf(`{%q: {"m.read": {%q: {"event_ids": [%q], "data": {"ts": %d}}}}}`, room, bob, id, ts)
		if err := f.r.Receive(f.Ctx, here, json.RawMessage(edu)); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range []struct {
		id, want matrix.EventID
		ts       int
	}{{two, two, 1000}, {one, one, 2000}, {two, one, 1500}, {two, two, 2000}} {
		if tell(c.id, c.ts); !strings.Contains(f.content(alice, room, 0), string(c.want)) {
			t.Errorf("after receipt %d: %s, want %s", i, f.content(alice, room, 0), c.want)
		}
	}
}

// Readers that ask while receipts come see each change once, at most.
func TestConcurrent(t *testing.T) {
	f := open(t, sqldbtest.Open(t))
	users := []matrix.UserID{bob, carol, "@dave:a.example", "@erin:a.example"}
	room := f.Room(alice, users...)
	ids := make([]matrix.EventID, 20)
	for i := range ids {
		ids[i] = f.Say(room, alice, "x")
	}
	done := make(chan struct{})
	for _, u := range users {
		go func() {
			for _, id := range ids {
				f.Do(u, "POST", path(room, "m.read", id), `{}`)
			}
			done <- struct{}{}
		}()
	}
	var pos stream.Pos
	newest := map[matrix.UserID]stream.Pos{}
	read := func() {
		to := f.Log.Head()
		list, err := f.r.Since(f.Ctx, alice, room, pos, to)
		if err != nil {
			t.Error(err)
		}
		for _, x := range list {
			if x.EventPos <= newest[x.User] {
				t.Errorf("%s went back", x.User)
			}
			newest[x.User] = x.EventPos
		}
		pos = to
	}
	for left := len(users); left > 0; {
		select {
		case <-done:
			left--
		default:
			read()
		}
	}
	read()
	for _, u := range users {
		if newest[u] != newest[users[0]] || newest[u] == 0 {
			t.Errorf("%s ends at %d", u, newest[u])
		}
	}
}

func BenchmarkPost(b *testing.B) {
	f := open(b, sqldbtest.Open(b))
	room := f.Room(alice, bob)
	ids := make([]matrix.EventID, b.N)
	for i := range ids {
		ids[i] = f.Say(room, alice, "x")
	}
	f.content(alice, room, 0)
	b.ResetTimer()
	for _, id := range ids {
		f.Do(bob, "POST", path(room, "m.read", id), `{}`)
	}
}
