package directory_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/directory"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
)

// The list is kept: what changes is seen at once, and a request for what has not
// changed asks no database.
func TestTheListIsKeptAndTrue(t *testing.T) {
	t.Parallel()
	f := open(t, directory.Options{})
	list := func() (l directory.List) {
		t.Helper()
		if err := json.Unmarshal([]byte(f.Want(bob, "GET", v3+"publicRooms?limit=5", "", 200, "")), &l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	first := func() directory.Entry {
		t.Helper()
		l := list()
		if len(l.Chunk) == 0 {
			t.Fatal("the list is empty")
		}
		return l.Chunk[0]
	}
	if l := list(); len(l.Chunk) != 0 || l.Total != 0 {
		t.Fatalf("it begins with %+v", l)
	}
	// A room that is published with its making.
	room, err := f.Rooms.Create(f.Ctx, alice, rooms.CreateRequest{Preset: "public_chat", Visibility: "public", Name: "one"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if e := first(); e.Room != room || e.Name != "one" || e.Members != 1 {
		t.Errorf("a room just made: %+v", e)
	}
	before := f.DB.Statements()
	for range 5 {
		first()
	}
	if n := f.DB.Statements() - before; n != 0 {
		t.Errorf("a list that has not changed costs %d statements", n)
	}
	f.Join(room, bob)
	if e := first(); e.Members != 2 {
		t.Errorf("after a join: %+v", e)
	}
	f.Set(room, alice, "m.room.name", "", `{"name":"two"}`)
	if e := first(); e.Name != "two" {
		t.Errorf("after a new name: %+v", e)
	}
	f.Want(alice, "PUT", v3+"directory/list/room/"+string(room), `{"visibility":"private"}`, 200, "")
	if l := list(); len(l.Chunk) != 0 {
		t.Errorf("a room taken off: %+v", l)
	}
	f.Set(room, alice, "m.room.name", "", `{"name":"three"}`)
	f.Want(alice, "PUT", v3+"directory/list/room/"+string(room), `{"visibility":"public"}`, 200, "")
	if e := first(); e.Name != "three" {
		t.Errorf("a room put back: %+v", e)
	}
}

// Pages hold each entry once, and as many as there are.
func TestPagesOfTheList(t *testing.T) {
	t.Parallel()
	f := open(t, directory.Options{})
	for i := range 13 {
		if _, err := f.Rooms.Create(f.Ctx, alice, rooms.CreateRequest{Preset: "public_chat", Visibility: "public", Name: fmt.Sprint("room ", i)}, 0); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[matrix.RoomID]bool{}
	for since := ""; ; {
		var l directory.List
		if err := json.Unmarshal([]byte(f.Want(bob, "GET", v3+"publicRooms?limit=5&since="+since, "", 200, "")), &l); err != nil {
			t.Fatal(err)
		}
		if l.Total != 13 {
			t.Errorf("there are %d", l.Total)
		}
		for _, e := range l.Chunk {
			if seen[e.Room] {
				t.Errorf("%s comes twice", e.Room)
			}
			seen[e.Room] = true
		}
		if since = l.Next; since == "" {
			break
		}
	}
	if len(seen) != 13 {
		t.Errorf("%d rooms of 13", len(seen))
	}
}
