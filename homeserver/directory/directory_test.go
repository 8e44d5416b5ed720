package directory_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/directory"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/partstest"
	"github.com/carillon-chat/carillon/homeserver/profiles"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

const (
	here  = partstest.Here
	alice = partstest.Alice
	bob   = partstest.Bob
	carol = partstest.Carol
	admin = partstest.Admin
)

type fixture struct {
	*partstest.World
	d *directory.Directory
	p *profiles.Profiles
}

type far struct{ query string }

func (f *far) Alias(_ context.Context, alias matrix.RoomAlias) (matrix.RoomID, []matrix.ServerName, error) {
	if alias == "#there:b.example" {
		return "!there", []matrix.ServerName{"b.example"}, nil
	}
	return "", nil, matrix.NotFound("no such alias")
}

func (f *far) PublicRooms(_ context.Context, _ matrix.ServerName, query json.RawMessage) (json.RawMessage, error) {
	f.query = string(query)
	return json.RawMessage(`{"chunk":[]}`), nil
}

func open(t testing.TB, o directory.Options) *fixture {
	t.Helper()
	db := sqldbtest.Open(t)
	f := &fixture{}
	f.World = partstest.New(t, db, rooms.Options{
		Profile: func(_ context.Context, u matrix.UserID) (string, string, error) {
			return f.p.Name(u).DisplayName, "", nil
		},
		ClaimAlias: func(tx *sqldb.Tx, a matrix.RoomAlias, r matrix.RoomID, u matrix.UserID) error {
			return f.d.ClaimAlias(tx, a, r, u)
		},
		Publish: func(tx *sqldb.Tx, r matrix.RoomID) error { return f.d.Publish(tx, r) },
		ResolveAlias: func(ctx context.Context, a matrix.RoomAlias) (matrix.RoomID, []matrix.ServerName, error) {
			return f.d.Resolve(ctx, a)
		},
	})
	acc := f.Accounts()
	var err error
	if f.p, err = profiles.New(f.Ctx, db, acc, f.Rooms, profiles.Options{Server: here}); err != nil {
		t.Fatal(err)
	}
	o.Server, o.Log = here, f.Log
	if f.d, err = directory.New(f.Ctx, db, acc, f.p, f.Rooms, f.Hub, o); err != nil {
		t.Fatal(err)
	}
	f.API.Add(f.d.Routes()...)
	f.Run()
	return f
}

const v3 = "/_matrix/client/v3/"

func alias(a string) string { return v3 + "directory/room/" + url.PathEscape(a) }

func TestAliases(t *testing.T) {
	f := open(t, directory.Options{Remote: &far{}})
	room := f.Room(alice, bob)
	body := fmt.Sprintf(`{"room_id":%q}`, room)
	f.Want(alice, "PUT", alias("#one:a.example"), body, 200, "")
	f.Want(bob, "PUT", alias("#two:a.example"), body, 200, "")
	f.Want(bob, "PUT", alias("#one:a.example"), body, 409, "M_UNKNOWN")
	if got := f.Want("", "GET", alias("#one:a.example"), "", 200, ""); got != fmt.Sprintf(`{"room_id":%q,"servers":["a.example"]}`, room) {
		t.Errorf("resolved %s", got)
	}
	if got := f.Want("", "GET", alias("#there:b.example"), "", 200, ""); got != `{"room_id":"!there","servers":["b.example"]}` {
		t.Errorf("resolved %s", got)
	}
	aliases := v3 + "rooms/" + string(room) + "/aliases"
	if got := f.Want(bob, "GET", aliases, "", 200, ""); got != `{"aliases":["#one:a.example","#two:a.example"]}` {
		t.Errorf("aliases %s", got)
	}
	f.Want(carol, "GET", aliases, "", 403, "M_FORBIDDEN")
	f.Set(room, alice, "m.room.canonical_alias", "", `{"alias":"#one:a.example","alt_aliases":["#two:a.example"]}`)
	f.Want(bob, "DELETE", alias("#one:a.example"), "", 403, "M_FORBIDDEN")
	f.Want(bob, "DELETE", alias("#two:a.example"), "", 200, "") // his own
	f.Want(alice, "DELETE", alias("#one:a.example"), "", 200, "")
	f.Want(alice, "DELETE", alias("#one:a.example"), "", 404, "M_NOT_FOUND")
	if e, _ := f.Rooms.State(f.Ctx, room, "m.room.canonical_alias", ""); e.ContentString("alias") != "" {
		t.Errorf("canonical alias %s", e.Content())
	}
	for _, c := range []struct {
		user               matrix.UserID
		method, path, body string
		status             int
		code               string
	}{
		{"", "GET", alias("#none:a.example"), ``, 404, "M_NOT_FOUND"},
		{"", "GET", alias("#none:b.example"), ``, 404, "M_NOT_FOUND"},
		{"", "GET", alias("none"), ``, 400, "M_INVALID_PARAM"},
		{alice, "PUT", alias("#x:b.example"), body, 400, "M_INVALID_PARAM"},
		{alice, "PUT", alias("#x:a.example"), `{}`, 400, "M_MISSING_PARAM"},
		{alice, "PUT", alias("#x:a.example"), `{"room_id":"x"}`, 400, "M_INVALID_PARAM"},
		{alice, "PUT", alias("#x:a.example"), `{"room_id":5}`, 400, "M_BAD_JSON"},
		{carol, "PUT", alias("#x:a.example"), body, 403, "M_FORBIDDEN"},
		{admin, "PUT", alias("#x:a.example"), `{"room_id":"!none"}`, 404, "M_NOT_FOUND"},
		{"", "PUT", alias("#x:a.example"), body, 401, "M_MISSING_TOKEN"},
	} {
		f.Want(c.user, c.method, c.path, c.body, c.status, c.code)
	}
}

// A room is created with its alias in one commit; a taken alias takes no room.
func TestCreate(t *testing.T) {
	f := open(t, directory.Options{})
	room, err := f.Rooms.Create(f.Ctx, alice, rooms.CreateRequest{AliasName: "hall", Visibility: "public", Name: "Hall"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := f.d.Resolve(f.Ctx, "#hall:a.example"); got != room || err != nil {
		t.Errorf("resolved %s %v", got, err)
	}
	if on, _ := f.d.Published(f.Ctx, room); !on {
		t.Error("not published")
	}
	if _, err := f.Rooms.Create(f.Ctx, alice, rooms.CreateRequest{AliasName: "hall"}, 0); !matrix.IsCode(err, "M_ROOM_IN_USE") {
		t.Errorf("taken alias: %v", err)
	}
}

func TestPublicRooms(t *testing.T) {
	remote := &far{}
	f := open(t, directory.Options{Remote: remote})
	small, large, space := f.Room(alice), f.Room(alice, bob, carol), matrix.RoomID("")
	var err error
	if space, err = f.Rooms.Create(f.Ctx, bob, rooms.CreateRequest{Preset: "public_chat", Name: "Space", CreationContent: json.RawMessage(`{"type":"m.space"}`)}, 0); err != nil {
		t.Fatal(err)
	}
	f.Set(small, alice, "m.room.name", "", `{"name":"北京办事处"}`)
	f.Set(large, alice, "m.room.topic", "", `{"topic":"old","m.topic":{"m.text":[{"mimetype":"text/html","body":"<b>x</b>"},{"body":"Everything"}]}}`)
	f.Set(large, alice, "m.room.history_visibility", "", `{"history_visibility":"world_readable"}`)
	list := func(room matrix.RoomID) string { return v3 + "directory/list/room/" + string(room) }
	f.Want(alice, "PUT", list(small), `{"visibility":"public"}`, 200, "")
	f.Want(alice, "PUT", list(large), `{}`, 200, "")
	f.Want(bob, "PUT", list(space), `{"visibility":"public"}`, 200, "")
	f.Want(bob, "PUT", list(large), `{"visibility":"private"}`, 403, "M_FORBIDDEN")
	f.Want(alice, "PUT", list(large), `{"visibility":"secret"}`, 400, "M_INVALID_PARAM")
	f.Want(alice, "PUT", list("!none"), `{}`, 404, "M_NOT_FOUND")
	f.Want("", "GET", list("!none"), ``, 404, "M_NOT_FOUND")
	if got := f.Want("", "GET", list(large), ``, 200, ""); got != `{"visibility":"public"}` {
		t.Errorf("visibility %s", got)
	}
	get := func(user matrix.UserID, method, query, body string) (l directory.List) {
		t.Helper()
		json.Unmarshal([]byte(f.Want(user, method, v3+"publicRooms"+query, body, 200, "")), &l)
		return l
	}
	ids := func(l directory.List) string {
		var s []string
		for _, e := range l.Chunk {
			s = append(s, map[matrix.RoomID]string{small: "small", large: "large", space: "space"}[e.Room])
		}
		return strings.Join(s, " ")
	}
	l := get("", "GET", "", "")
	if !strings.HasPrefix(ids(l), "large ") || len(l.Chunk) != 3 || l.Total != 3 || l.Chunk[0].Topic != "Everything" ||
		!l.Chunk[0].WorldReadable || l.Chunk[0].Members != 3 || l.Chunk[0].JoinRule != "public" {
		t.Errorf("%+v", l)
	}
	first := get("", "GET", "?limit=2", "")
	second := get("", "GET", "?limit=2&since="+first.Next, "")
	if len(first.Chunk) != 2 || len(second.Chunk) != 1 || second.Next != "" || second.Prev == "" {
		t.Errorf("%+v %+v", first, second)
	}
	if back := get("", "GET", "?limit=2&since="+second.Prev, ""); ids(back) != ids(first) {
		t.Errorf("back %+v", back)
	}
	for body, want := range map[string]string{
		`{"filter":{"generic_search_term":"北京"}}`:                           "small",
		`{"filter":{"generic_search_term":"everyTHING"}}`:                   "large",
		`{"filter":{"room_types":["m.space"]}}`:                             "space",
		`{"filter":{"room_types":[null],"generic_search_term":"space"}}`:    "",
		`{"include_all_networks":true,"filter":{"room_types":["m.space"]}}`: "space",
		`{"third_party_instance_id":"irc"}`:                                 "",
	} {
		if got := ids(get(bob, "POST", "", body)); got != want {
			t.Errorf("%s: %s, want %s", body, got, want)
		}
	}
	f.Want(bob, "GET", v3+"publicRooms?since=x", "", 400, "M_INVALID_PARAM")
	f.Want(bob, "POST", v3+"publicRooms", `{"limit":-1}`, 400, "M_INVALID_PARAM")
	f.Want(bob, "POST", v3+"publicRooms", `{"limit":"x"}`, 400, "M_BAD_JSON")
	f.Want("", "GET", v3+"publicRooms?server=b.example", "", 401, "M_MISSING_TOKEN")
	f.Want(bob, "POST", v3+"publicRooms?server=b.example", `{"limit":5,"filter":{"generic_search_term":"x"}}`, 200, "")
	if remote.query != `{"filter":{"generic_search_term":"x"},"limit":5}` {
		t.Errorf("asked %s", remote.query)
	}
	f.Want(bob, "GET", v3+"publicRooms?server=b..!", "", 400, "M_INVALID_PARAM")
	f.Want(alice, "PUT", list(large), `{"visibility":"private"}`, 200, "")
	if got := get("", "GET", "", ""); len(got.Chunk) != 2 {
		t.Errorf("after hiding %+v", got)
	}
}

func TestSearch(t *testing.T) {
	for _, all := range []bool{true, false} {
		f := open(t, directory.Options{AllUsers: all})
		for u, name := range map[matrix.UserID]string{alice: "张伟", bob: "Bob Weaver", carol: "李张丽"} {
			if err := f.p.Set(f.Ctx, u, "displayname", json.RawMessage(fmt.Sprintf("%q", name))); err != nil {
				t.Fatal(err)
			}
		}
		f.Room(admin, alice)
		find := func(user matrix.UserID, body string) string {
			t.Helper()
			var r struct {
				Results []directory.Found
				Limited bool
			}
			json.Unmarshal([]byte(f.Want(user, "POST", v3+"user_directory/search", body, 200, "")), &r)
			var s []string
			for _, x := range r.Results {
				s = append(s, x.User.Localpart())
			}
			if r.Limited {
				s = append(s, "…")
			}
			return strings.Join(s, " ")
		}
		for _, c := range []struct{ term, all, some string }{
			{"张", "alice carol", "alice"},
			{"weav", "bob", ""},
			{"BOB", "bob", ""},
			{"@bob", "bob", ""},
			{"bob weaver", "bob", ""},
			{"bob nobody", "", ""},
			{"张伟", "alice", "alice"},
			{"carol", "carol", ""},
			{" ", "", ""},
		} {
			want := c.all
			if !all {
				want = c.some
			}
			if got := find(admin, fmt.Sprintf(`{"search_term":%q}`, c.term)); got != want {
				t.Errorf("all users %v, %q: %s, want %s", all, c.term, got, want)
			}
		}
		if got := find(alice, `{"search_term":"张"}`); strings.Contains(got, "alice") {
			t.Errorf("alice finds herself: %s", got)
		}
		if all {
			if got := find(admin, `{"search_term":"example","limit":1}`); !strings.HasSuffix(got, "…") {
				t.Errorf("limited: %s", got)
			}
		}
		path := v3 + "user_directory/search"
		f.Want(admin, "POST", path, `{}`, 400, "M_MISSING_PARAM")
		f.Want(admin, "POST", path, `{"search_term":5}`, 400, "M_BAD_JSON")
		f.Want(admin, "POST", path, `{"search_term":"x","limit":0}`, 400, "M_INVALID_PARAM")
		f.Want("", "POST", path, `{"search_term":"x"}`, 401, "M_MISSING_TOKEN")
	}
}

func TestMutualRooms(t *testing.T) {
	f := open(t, directory.Options{})
	var both []matrix.RoomID
	for range 101 {
		both = append(both, f.Room(alice, bob))
	}
	f.Room(alice)
	f.Room(bob, carol)
	const path = "/_matrix/client/v1/mutual_rooms?user_id="
	var page struct {
		Joined []matrix.RoomID
		Count  int
		Next   string `json:"next_batch"`
	}
	json.Unmarshal([]byte(f.Want(alice, "GET", path+string(bob), "", 200, "")), &page)
	seen := map[matrix.RoomID]bool{}
	for _, r := range page.Joined {
		seen[r] = true
	}
	if len(page.Joined) != 100 || page.Count != 101 || page.Next == "" {
		t.Fatalf("%d of %d, next %q", len(page.Joined), page.Count, page.Next)
	}
	next := page.Next
	page.Next = ""
	json.Unmarshal([]byte(f.Want(alice, "GET", path+string(bob)+"&from="+url.QueryEscape(next), "", 200, "")), &page)
	for _, r := range page.Joined {
		seen[r] = true
	}
	for _, r := range both {
		if !seen[r] {
			t.Errorf("%s is missing", r)
		}
	}
	if len(page.Joined) != 1 || page.Next != "" || len(seen) != 101 {
		t.Errorf("second page %+v", page)
	}
	if got := f.Want(alice, "GET", path+string(carol), "", 200, ""); got != `{"count":0,"joined":[]}` {
		t.Errorf("alice and carol: %s", got)
	}
	for _, q := range []string{"/_matrix/client/v1/mutual_rooms", path + "bob", path + string(alice), path + string(bob) + "&from=x"} {
		f.Want(alice, "GET", q, "", 400, "M_INVALID_PARAM")
	}
}
