package profiles_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

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
	admin = partstest.Admin
)

// far is another server with one user.
type far struct{ asked int }

func (f *far) Profile(_ context.Context, user matrix.UserID, field string) (map[string]json.RawMessage, error) {
	f.asked++
	if user != "@zoe:b.example" {
		return nil, matrix.NotFound("no such user")
	}
	if field == "" || field == "displayname" {
		return map[string]json.RawMessage{"displayname": json.RawMessage(`"Zoe"`)}, nil
	}
	return nil, matrix.NotFound("no such field")
}

// world reads what the members of a room are called.
type world struct{ *partstest.World }

func open(t testing.TB, db *sqldb.DB, o profiles.Options, run bool) (*world, *profiles.Profiles) {
	t.Helper()
	var p *profiles.Profiles
	w := &world{partstest.New(t, db, rooms.Options{Profile: func(_ context.Context, u matrix.UserID) (string, string, error) {
		n := p.Name(u)
		return n.DisplayName, n.AvatarURL, nil
	}})}
	o.Server = here
	var err error
	if p, err = profiles.New(w.Ctx, db, w.Accounts(), w.Rooms, o); err != nil {
		t.Fatal(err)
	}
	w.API.Add(p.Routes()...)
	if run {
		w.Run(p.Run)
	} else {
		w.Run()
	}
	return w, p
}

const base = "/_matrix/client/v3/profile/"

func field(u matrix.UserID, f string) string { return base + string(u) + "/" + f }

func TestProfile(t *testing.T) {
	db := sqldbtest.Open(t)
	w, _ := open(t, db, profiles.Options{}, true)
	if got := w.Want("", "GET", base+string(alice), "", 200, ""); got != `{}` {
		t.Errorf("empty profile %s", got)
	}
	w.Want(alice, "PUT", field(alice, "displayname"), `{"displayname":"爱丽丝"}`, 200, "")
	w.Want(alice, "PUT", field(alice, "avatar_url"), `{"avatar_url":"mxc://a.example/abc"}`, 200, "")
	w.Want(alice, "PUT", field(alice, "m.tz"), `{"m.tz":"Asia/Shanghai"}`, 200, "")
	w.Want(alice, "PUT", field(alice, "org.example.desk"), `{"org.example.desk":{"floor": 3}}`, 200, "")
	w.Want(alice, "PUT", field(alice, "org.example.null"), `{"org.example.null":null}`, 200, "")
	want := `{"avatar_url":"mxc://a.example/abc","displayname":"爱丽丝","m.tz":"Asia/Shanghai","org.example.desk":{"floor":3},"org.example.null":null}`
	if got := w.Want("", "GET", base+string(alice), "", 200, ""); got != want {
		t.Errorf("profile %s", got)
	}
	if got := w.Want(bob, "GET", field(alice, "org.example.desk"), "", 200, ""); got != `{"org.example.desk":{"floor":3}}` {
		t.Errorf("field %s", got)
	}
	w.Want(alice, "DELETE", field(alice, "org.example.desk"), "", 200, "")
	w.Want(alice, "DELETE", field(alice, "org.example.desk"), "", 200, "")
	w.Want(alice, "GET", field(alice, "org.example.desk"), "", 404, "M_NOT_FOUND")
	w.Stop()
	w, p := open(t, db, profiles.Options{}, true)
	if n := p.Name(alice); n.DisplayName != "爱丽丝" || n.AvatarURL != "mxc://a.example/abc" {
		t.Errorf("after a restart %+v", n)
	}
	w.Want(alice, "PUT", field(alice, "displayname"), `{"displayname":""}`, 200, "")
	w.Want(alice, "GET", field(alice, "displayname"), "", 404, "M_NOT_FOUND")
	if err := p.Delete(w.Ctx, alice); err != nil {
		t.Fatal(err)
	}
	if got := w.Want("", "GET", base+string(alice), "", 200, ""); got != `{}` {
		t.Errorf("deleted profile %s", got)
	}
}

func TestErrors(t *testing.T) {
	w, _ := open(t, sqldbtest.Open(t), profiles.Options{}, true)
	big := strings.Repeat("x", 40<<10)
	w.Want(alice, "PUT", field(alice, "org.example.a"), `{"org.example.a":"`+big+`"}`, 200, "")
	long := "a." + strings.Repeat("b", 255)
	for _, c := range []struct {
		user               matrix.UserID
		method, path, body string
		status             int
		code               string
	}{
		{alice, "PUT", field(alice, "org.example.b"), `{"org.example.b":"` + big + `"}`, 400, "M_PROFILE_TOO_LARGE"},
		{alice, "PUT", field(alice, long), `{}`, 400, "M_KEY_TOO_LARGE"},
		{alice, "PUT", field(alice, "nodots"), `{"nodots":1}`, 400, "M_INVALID_PARAM"},
		{alice, "PUT", field(alice, "Org.Example"), `{"Org.Example":1}`, 400, "M_INVALID_PARAM"},
		{alice, "PUT", field(alice, "displayname"), `{"name":"x"}`, 400, "M_MISSING_PARAM"},
		{alice, "PUT", field(alice, "displayname"), `{"displayname":5}`, 400, "M_BAD_JSON"},
		{alice, "PUT", field(alice, "displayname"), `{"displayname":"` + strings.Repeat("é", 257) + `"}`, 400, "M_INVALID_PARAM"},
		{alice, "PUT", field(alice, "displayname"), `{`, 400, "M_NOT_JSON"},
		{alice, "PUT", field(alice, "avatar_url"), `{"avatar_url":"https://x/y"}`, 400, "M_INVALID_PARAM"},
		{alice, "PUT", field(alice, "m.tz"), `{"m.tz":"Mid dle/Earth"}`, 400, "M_INVALID_PARAM"},
		{bob, "PUT", field(alice, "displayname"), `{"displayname":"x"}`, 403, "M_FORBIDDEN"},
		{bob, "DELETE", field(alice, "displayname"), ``, 403, "M_FORBIDDEN"},
		{"", "PUT", field(alice, "displayname"), `{"displayname":"x"}`, 401, "M_MISSING_TOKEN"},
		{bob, "GET", base + "@nobody:a.example", ``, 404, "M_NOT_FOUND"},
		{bob, "GET", base + "@zoe:b.example", ``, 404, "M_NOT_FOUND"},
		{bob, "GET", base + "nobody", ``, 400, "M_INVALID_PARAM"},
		{bob, "GET", field(alice, "nodots"), ``, 400, "M_INVALID_PARAM"},
	} {
		w.Want(c.user, c.method, c.path, c.body, c.status, c.code)
	}
	w.Want(admin, "PUT", field(alice, "displayname"), `{"displayname":"by the office"}`, 200, "")
}

func (w *world) name(room matrix.RoomID, u matrix.UserID) string {
	w.T.Helper()
	e, err := w.Rooms.State(w.Ctx, room, "m.room.member", string(u))
	if err != nil {
		w.T.Fatal(err)
	}
	return e.ContentString("displayname") + e.ContentString("avatar_url")
}

// A new name reaches every room, also when the server stops in between.
func TestSpread(t *testing.T) {
	db := sqldbtest.Open(t)
	w, _ := open(t, db, profiles.Options{}, true)
	var list []matrix.RoomID
	for range 5 {
		list = append(list, w.Room(alice, bob))
	}
	w.Want(bob, "PUT", field(bob, "displayname"), `{"displayname":"Robert"}`, 200, "")
	for _, room := range list {
		partstest.Eventually(t, "the name in "+string(room), func() bool { return w.name(room, bob) == "Robert" })
	}
	w.Stop()
	w, _ = open(t, db, profiles.Options{}, false) // nobody spreads
	w.Want(bob, "PUT", field(bob, "avatar_url"), `{"avatar_url":"mxc://a.example/b"}`, 200, "")
	if got := w.name(list[0], bob); got != "Robert" {
		t.Errorf("bob is %s already", got)
	}
	w.Stop()
	w, _ = open(t, db, profiles.Options{}, true)
	for _, room := range list {
		partstest.Eventually(t, "the picture in "+string(room), func() bool { return w.name(room, bob) == "Robertmxc://a.example/b" })
	}
	var n int64
	partstest.Eventually(t, "the end of the work", func() bool {
		db.Read(t.Context(), func(tx *sqldb.Tx) error { return tx.QueryRow(`SELECT count(*) FROM profile_spreads`).Scan(&n) })
		return n == 0
	})
	// A new room has the name from the beginning.
	if got := w.name(w.Room(bob), bob); got != "Robertmxc://a.example/b" {
		t.Errorf("in a new room bob is %s", got)
	}
}

func TestOptions(t *testing.T) {
	f := &far{}
	w, _ := open(t, sqldbtest.Open(t), profiles.Options{Remote: f, RequireAuth: true, FixedNames: true}, true)
	w.Want("", "GET", base+string(alice), "", 401, "M_MISSING_TOKEN")
	w.Want(alice, "PUT", field(alice, "displayname"), `{"displayname":"x"}`, 403, "M_FORBIDDEN")
	w.Want(alice, "PUT", field(alice, "org.example.x"), `{"org.example.x":1}`, 200, "")
	for range 2 {
		if got := w.Want(alice, "GET", base+"@zoe:b.example", "", 200, ""); got != `{"displayname":"Zoe"}` {
			t.Errorf("zoe is %s", got)
		}
	}
	if f.asked != 1 {
		t.Errorf("asked %d times", f.asked)
	}
	w.Want(alice, "GET", field("@zoe:b.example", "avatar_url"), "", 404, "M_NOT_FOUND")
	w.Want(alice, "GET", base+"@yan:b.example", "", 404, "M_NOT_FOUND")
}
