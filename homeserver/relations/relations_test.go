package relations_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/history"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/partstest"
	"github.com/carillon-chat/carillon/homeserver/relations"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

const (
	alice = partstest.Alice
	bob   = partstest.Bob
	carol = partstest.Carol
)

// world relates events and reads their relations.
type world struct{ *partstest.World }

func open(t testing.TB, db *sqldb.DB) (*world, *accountdata.Data) {
	t.Helper()
	w := &world{partstest.New(t, db, rooms.Options{})}
	data, err := accountdata.New(w.Ctx, db, w.Log)
	if err != nil {
		t.Fatal(err)
	}
	rel, err := relations.New(w.Ctx, db, w.Log, w.Events, data, nil)
	if err != nil {
		t.Fatal(err)
	}
	h := history.New(history.Parts{DB: db, Log: w.Log, Events: w.Events, Hub: w.Hub, Rooms: w.Rooms, Data: data, Bundler: rel})
	w.API.Add(h.Routes()...)
	w.API.Add(rel.Routes(h)...)
	w.Run()
	return w, data
}

// event is an event with its bundles.
type event struct {
	ID       matrix.EventID `json:"event_id"`
	Content  map[string]any
	Unsigned struct {
		Relations struct {
			Replace *event `json:"m.replace"`
			Thread  *struct {
				Latest       event `json:"latest_event"`
				Count        int
				Participated bool `json:"current_user_participated"`
			} `json:"m.thread"`
			Reference *struct{ Chunk []event } `json:"m.reference"`
		} `json:"m.relations"`
	}
}

func (w *world) event(user matrix.UserID, room matrix.RoomID, id matrix.EventID) (e event) {
	w.T.Helper()
	out := w.Want(user, "GET", "/_matrix/client/v3/rooms/"+string(room)+"/event/"+string(id), "", 200, "")
	if err := json.Unmarshal([]byte(out), &e); err != nil {
		w.T.Fatal(err)
	}
	return e
}

func (w *world) relate(room matrix.RoomID, user matrix.UserID, typ, rel string, to matrix.EventID, more string) matrix.EventID {
	w.T.Helper()
	return w.Send(room, user, typ, fmt.Sprintf(`{%s"m.relates_to":{"rel_type":%q,"event_id":%q,"key":"x"}}`, more, rel, to))
}

func (w *world) edit(room matrix.RoomID, user matrix.UserID, to matrix.EventID, text string) matrix.EventID {
	w.T.Helper()
	return w.relate(room, user, "m.room.message", "m.replace", to, fmt.Sprintf(`"body":"* %s","m.new_content":{"body":%q},`, text, text))
}

func (w *world) reply(room matrix.RoomID, user matrix.UserID, root matrix.EventID, text string) matrix.EventID {
	w.T.Helper()
	return w.relate(room, user, "m.room.message", "m.thread", root, fmt.Sprintf(`"body":%q,`, text))
}

func TestReplace(t *testing.T) {
	w, _ := open(t, sqldbtest.Open(t))
	room := w.Room(alice, bob)
	id := w.Say(room, alice, "one")
	if e := w.event(bob, room, id); e.Unsigned.Relations.Replace != nil {
		t.Errorf("bundled %+v", e)
	}
	first := w.edit(room, alice, id, "two")
	time.Sleep(2 * time.Millisecond) // of two edits of one millisecond the larger ID would win
	second := w.edit(room, alice, id, "three")
	w.edit(room, bob, id, "not mine")                                                     // another's
	w.relate(room, alice, "m.room.message", "m.replace", id, `"body":"no new content",`)  // incomplete
	w.relate(room, alice, "x.other", "m.replace", id, `"m.new_content":{"body":"type"},`) // another type
	w.edit(room, alice, second, "of an edit")                                             // of an edit
	e := w.event(bob, room, id)
	if r := e.Unsigned.Relations.Replace; r == nil || r.ID != second || e.Content["body"] != "one" {
		t.Errorf("bundled %+v", r)
	}
	if e := w.event(bob, room, second); e.Unsigned.Relations.Replace != nil {
		t.Errorf("an edit is edited: %+v", e)
	}
	w.Redact(room, alice, second)
	if r := w.event(bob, room, id).Unsigned.Relations.Replace; r == nil || r.ID != first {
		t.Errorf("after the redaction %+v", r)
	}
	w.Redact(room, alice, id)
	if r := w.event(bob, room, id).Unsigned.Relations.Replace; r != nil {
		t.Errorf("a redacted event keeps its edit %+v", r)
	}
}

func TestReference(t *testing.T) {
	w, data := open(t, sqldbtest.Open(t))
	room := w.Room(alice, bob)
	id := w.Say(room, alice, "one")
	a := w.relate(room, alice, "m.room.message", "m.reference", id, "")
	b := w.relate(room, bob, "m.room.message", "m.reference", id, "")
	w.relate(room, bob, "m.reaction", "m.annotation", id, "")
	r := w.event(bob, room, id).Unsigned.Relations.Reference
	if r == nil || len(r.Chunk) != 2 || r.Chunk[0].ID != a || r.Chunk[1].ID != b {
		t.Errorf("bundled %+v", r)
	}
	ignore(t, w, data, alice, bob)
	if r := w.event(alice, room, id).Unsigned.Relations.Reference; r == nil || len(r.Chunk) != 1 || r.Chunk[0].ID != a {
		t.Errorf("with bob ignored %+v", r)
	}
}

func ignore(t *testing.T, w *world, data *accountdata.Data, user, whom matrix.UserID) {
	t.Helper()
	if err := data.Put(w.Ctx, user, "", "m.ignored_user_list", json.RawMessage(fmt.Sprintf(`{"ignored_users":{%q:{}}}`, whom))); err != nil {
		t.Fatal(err)
	}
}

func TestThread(t *testing.T) {
	db := sqldbtest.Open(t)
	w, _ := open(t, db)
	room := w.Room(alice, bob, carol)
	root := w.Say(room, alice, "root")
	w.reply(room, bob, root, "a")
	last := w.reply(room, bob, root, "b")
	edit := w.edit(room, bob, last, "B")
	check := func(user matrix.UserID, count int, latest matrix.EventID, participated bool) {
		t.Helper()
		th := w.event(user, room, root).Unsigned.Relations.Thread
		if th == nil || th.Count != count || th.Latest.ID != latest || th.Participated != participated {
			t.Errorf("%s sees %+v, want %d %s %v", user, th, count, latest, participated)
		}
	}
	check(alice, 2, last, true)
	check(bob, 2, last, true)
	check(carol, 2, last, false)
	if r := w.event(bob, room, root).Unsigned.Relations.Thread.Latest.Unsigned.Relations.Replace; r == nil || r.ID != edit {
		t.Errorf("the latest event's edit %+v", r)
	}
	more := w.reply(room, carol, root, "c")
	check(carol, 3, more, true)
	w.Redact(room, carol, more)
	check(carol, 2, last, false)
	w.Stop()
	var data *accountdata.Data
	w, data = open(t, db)
	check(alice, 2, last, true)
	other := w.reply(room, carol, root, "d")
	check(alice, 3, other, true)
	ignore(t, w, data, alice, carol)
	check(alice, 2, last, true)
	check(bob, 3, other, true)
	// Pages of messages bundle too.
	out := w.Want(bob, "GET", "/_matrix/client/v3/rooms/"+string(room)+"/messages?dir=f&limit=100", "", 200, "")
	if strings.Count(out, `"m.thread":{"latest_event"`) != 1 {
		t.Errorf("messages %s", out)
	}
}

type page struct {
	Chunk []event
	Next  string `json:"next_batch"`
	Prev  string `json:"prev_batch"`
	Depth *int   `json:"recursion_depth"`
}

func (w *world) page(user matrix.UserID, path string) (p page) {
	w.T.Helper()
	if err := json.Unmarshal([]byte(w.Want(user, "GET", path, "", 200, "")), &p); err != nil {
		w.T.Fatal(err)
	}
	return p
}

func ids(list []event) (s string) {
	for _, e := range list {
		s += string(e.ID) + " "
	}
	return s
}

func joined(list ...matrix.EventID) (s string) {
	for _, id := range list {
		s += string(id) + " "
	}
	return s
}

func TestRelations(t *testing.T) {
	w, _ := open(t, sqldbtest.Open(t))
	room := w.Room(alice, bob)
	id := w.Say(room, alice, "one")
	a := w.relate(room, bob, "m.reaction", "m.annotation", id, "")
	b := w.reply(room, bob, id, "b")
	c := w.edit(room, alice, id, "c")
	d := w.relate(room, alice, "m.reaction", "m.annotation", b, "")
	e := w.relate(room, alice, "x.y", "m.reference", d, "")
	w.Say(room, alice, "unrelated")
	base := "/_matrix/client/v1/rooms/" + string(room) + "/relations/"
	for _, x := range []struct {
		rest string
		want string
	}{
		{"", joined(c, b, a)},
		{"?dir=f", joined(a, b, c)},
		{"/m.annotation", joined(a)},
		{"/m.thread/m.room.message", joined(b)},
		{"/m.thread/x.y", ""},
		{"?recurse=true", joined(e, d, c, b, a)},
		{"?recurse=true&dir=f", joined(a, b, c, d, e)},
		{"/m.annotation?recurse=true", joined(d, a)},
		{"/m.reference/x.y?recurse=true", joined(e)},
	} {
		p := w.page(bob, base+string(id)+x.rest)
		if ids(p.Chunk) != x.want {
			t.Errorf("%s: %s, want %s", x.rest, ids(p.Chunk), x.want)
		}
		if strings.Contains(x.rest, "recurse") != (p.Depth != nil) {
			t.Errorf("%s: depth %v", x.rest, p.Depth)
		}
	}
	for _, query := range []string{"?limit=1", "?limit=1&dir=f", "?limit=2&recurse=true"} {
		var got string
		p := w.page(bob, base+string(id)+query)
		for {
			got += ids(p.Chunk)
			if p.Next == "" {
				break
			}
			from := p.Next
			if p = w.page(bob, base+string(id)+query+"&from="+from); p.Prev != from {
				t.Errorf("prev_batch %s", p.Prev)
			}
		}
		want := joined(c, b, a)
		switch query {
		case "?limit=1&dir=f":
			want = joined(a, b, c)
		case "?limit=2&recurse=true":
			want = joined(e, d, c, b, a)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
	w.Redact(room, bob, a)
	if p := w.page(bob, base+string(id)+"/m.annotation"); len(p.Chunk) != 0 {
		t.Errorf("redacted: %+v", p)
	}
	w.Want(bob, "GET", base+"$nowhere", "", 404, "M_NOT_FOUND")
	w.Want(carol, "GET", base+string(id), "", 404, "M_NOT_FOUND")
	w.Want(bob, "GET", base+string(id)+"?dir=x", "", 400, "M_INVALID_PARAM")
	w.Want(bob, "GET", base+string(id)+"?from=x", "", 400, "M_INVALID_PARAM")
	w.Want(bob, "GET", base+string(id)+"?recurse=1", "", 400, "M_INVALID_PARAM")
	w.Want(bob, "GET", base+string(id)+"?limit=0", "", 400, "M_INVALID_PARAM")
}

func TestThreads(t *testing.T) {
	w, data := open(t, sqldbtest.Open(t))
	room := w.Room(alice, bob)
	a, b, c := w.Say(room, alice, "a"), w.Say(room, bob, "b"), w.Say(room, alice, "c")
	w.reply(room, alice, c, "1")
	w.reply(room, alice, b, "2")
	w.reply(room, alice, a, "3")
	w.reply(room, alice, c, "4")
	path := "/_matrix/client/v1/rooms/" + string(room) + "/threads"
	p := w.page(bob, path)
	if ids(p.Chunk) != joined(c, a, b) || p.Next != "" || p.Chunk[0].Unsigned.Relations.Thread == nil || p.Chunk[0].Unsigned.Relations.Thread.Count != 2 {
		t.Errorf("threads %+v", p)
	}
	if p := w.page(bob, path+"?include=participated"); ids(p.Chunk) != joined(b) {
		t.Errorf("participated %+v", p)
	}
	got, from := "", ""
	for {
		p := w.page(bob, path+"?limit=1"+from)
		got += ids(p.Chunk)
		if p.Next == "" {
			break
		}
		from = "&from=" + p.Next
	}
	if got != joined(c, a, b) {
		t.Errorf("pages %s", got)
	}
	w.reply(room, bob, a, "5")
	if p := w.page(bob, path+"?include=participated"); ids(p.Chunk) != joined(a, b) {
		t.Errorf("participated %+v", p)
	}
	ignore(t, w, data, bob, alice)
	p = w.page(bob, path)
	for _, e := range p.Chunk {
		if e.ID != b && len(e.Content) != 0 {
			t.Errorf("the root of an ignored user: %+v", e)
		}
	}
	w.Want(carol, "GET", path, "", 403, "M_FORBIDDEN")
	w.Want(bob, "GET", path+"?include=x", "", 400, "M_INVALID_PARAM")
	w.Want(bob, "GET", path+"?from=x", "", 400, "M_INVALID_PARAM")
}
