package moderation_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/directory"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/moderation"
	"github.com/carillon-chat/carillon/homeserver/partstest"
	"github.com/carillon-chat/carillon/homeserver/profiles"
	"github.com/carillon-chat/carillon/homeserver/push"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

const (
	alice = partstest.Alice
	bob   = partstest.Bob
	carol = partstest.Carol
	admin = partstest.Admin
	v3    = "/_matrix/client/v3/"
)

type fixture struct {
	*partstest.World
	dir  *directory.Directory
	data *accountdata.Data
	push *push.Push
	mod  *moderation.Moderation
}

// build makes the parts; run starts them.
func build(t testing.TB, db *sqldb.DB) *fixture {
	t.Helper()
	f := &fixture{}
	f.World = partstest.New(t, db, rooms.Options{
		ClaimAlias: func(tx *sqldb.Tx, a matrix.RoomAlias, r matrix.RoomID, u matrix.UserID) error {
			return f.dir.ClaimAlias(tx, a, r, u)
		},
		Publish: func(tx *sqldb.Tx, r matrix.RoomID) error { return f.dir.Publish(tx, r) },
	})
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	acc := f.Accounts()
	var err error
	f.data, err = accountdata.New(f.Ctx, db, f.Log)
	ok(err)
	places := receipts.NewPlaces(f.Events, f.Log)
	rec, err := receipts.New(f.Ctx, db, f.Log, partstest.Here, places, f.Hub, f.data, nil)
	ok(err)
	f.push, err = push.New(f.Ctx, db, f.Log, f.Events, f.Hub, places, rec, push.Options{Data: f.data})
	ok(err)
	prof, err := profiles.New(f.Ctx, db, acc, f.Rooms, profiles.Options{Server: partstest.Here})
	ok(err)
	f.dir, err = directory.New(f.Ctx, db, acc, prof, f.Rooms, f.Hub, directory.Options{Server: partstest.Here, Log: f.Log})
	ok(err)
	f.mod, err = moderation.New(f.Ctx, moderation.Parts{
		DB: db, Log: f.Log, Events: f.Events, Hub: f.Hub, Rooms: f.Rooms, Accounts: acc, Data: f.data, Push: f.push, Directory: f.dir,
	})
	ok(err)
	f.API.Add(f.mod.Routes()...)
	f.API.Add(f.push.Routes()...)
	return f
}

func open(t testing.TB) *fixture {
	t.Helper()
	f := build(t, sqldbtest.Open(t))
	f.Run(f.mod.Run)
	return f
}

// make creates a room of alice.
func (f *fixture) make(request string) matrix.RoomID {
	f.T.Helper()
	var q rooms.CreateRequest
	if err := json.Unmarshal([]byte(request), &q); err != nil {
		f.T.Fatal(err)
	}
	room, err := f.Rooms.Create(f.Ctx, alice, q, 0)
	if err != nil {
		f.T.Fatal(err)
	}
	return room
}

func (f *fixture) upgrade(user matrix.UserID, room matrix.RoomID, body string) matrix.RoomID {
	f.T.Helper()
	got := f.Want(user, "POST", v3+"rooms/"+string(room)+"/upgrade", body, 200, "")
	return matrix.RoomID(gjson.Get(got, "replacement_room").Str)
}

// content is that of a state event, "" if there is none.
func (f *fixture) content(room matrix.RoomID, typ, key string) string {
	f.T.Helper()
	e, err := f.Rooms.State(f.Ctx, room, typ, key)
	if err != nil {
		f.T.Fatal(err)
	}
	if e == nil {
		return ""
	}
	return string(e.Content())
}

func TestUpgrade(t *testing.T) {
	f := open(t)
	old := f.make(`{"preset":"public_chat","visibility":"public","room_version":"9","room_alias_name":"hall","name":"Hall","topic":"All","creation_content":{"type":"m.space","m.federate":false}}`)
	f.Join(old, bob)
	f.Join(old, carol)
	f.Set(old, alice, "m.room.history_visibility", "", `{"history_visibility":"joined"}`)
	f.Set(old, alice, "m.room.server_acl", "", `{"allow":["*"],"deny":["evil.example"]}`)
	f.Set(old, alice, "m.room.avatar", "", `{"url":"mxc://a.example/x"}`)
	f.Set(old, alice, "m.room.encryption", "", `{"algorithm":"m.megolm.v1.aes-sha2"}`)
	f.Set(old, alice, "m.space.child", "!child", `{"via":["a.example"]}`)
	f.Set(old, alice, "m.space.child", "!gone", `{}`)
	f.Set(old, alice, "org.example.own", "", `{"x":1}`)
	f.Set(old, alice, "m.room.canonical_alias", "", `{"alias":"#hall:a.example","alt_aliases":["#hall:b.example"]}`)
	f.Set(old, alice, "m.room.power_levels", "", `{"users":{"@alice:a.example":"100","@bob:a.example":60},"ban":40,"events":{"m.room.topic":70,"m.room.tombstone":100}}`)
	if err := f.Rooms.Ban(f.Ctx, rooms.MemberChange{Room: old, Sender: alice, Target: carol, Reason: "noise"}); err != nil {
		t.Fatal(err)
	}
	f.Want(bob, "POST", v3+"rooms/"+string(old)+"/upgrade", `{"new_version":"11"}`, 403, "M_FORBIDDEN")
	last := f.Say(old, bob, "last")

	to := f.upgrade(alice, old, `{"new_version":"11","additional_creators":["@bob:a.example"]}`)
	for _, c := range []struct{ typ, key, want string }{
		{"m.room.create", "", fmt.Sprintf(`{"m.federate":false,"predecessor":{"event_id":%q,"room_id":%q},"room_version":"11","type":"m.space"}`, last, old)},
		{"m.room.name", "", `{"name":"Hall"}`},
		{"m.room.avatar", "", `{"url":"mxc://a.example/x"}`},
		{"m.room.history_visibility", "", `{"history_visibility":"joined"}`},
		{"m.room.join_rules", "", `{"join_rule":"public"}`},
		{"m.room.guest_access", "", `{"guest_access":"forbidden"}`},
		{"m.room.server_acl", "", `{"allow":["*"],"deny":["evil.example"]}`},
		{"m.room.encryption", "", `{"algorithm":"m.megolm.v1.aes-sha2"}`},
		{"m.room.canonical_alias", "", `{"alias":"#hall:a.example"}`},
		{"m.space.child", "!child", `{"via":["a.example"]}`},
		{"m.space.child", "!gone", ``},
		{"org.example.own", "", ``},
		{"m.room.member", string(carol), `{"displayname":"carol","membership":"ban","reason":"noise"}`},
		{"m.room.member", string(bob), ``},
		{"m.room.power_levels", "", `{"ban":40,"events":{"m.room.tombstone":100,"m.room.topic":70},"events_default":0,"invite":0,"kick":50,"notifications":{"room":50},"redact":50,"state_default":50,"users":{"@alice:a.example":100,"@bob:a.example":60},"users_default":0}`},
	} {
		got := f.content(to, c.typ, c.key)
		if c.typ == "m.room.member" { // a ban may hold the profile or not
			got, c.want = gjson.Get(got, "membership").Str+gjson.Get(got, "reason").Str, gjson.Get(c.want, "membership").Str+gjson.Get(c.want, "reason").Str
		}
		if got != c.want {
			t.Errorf("%s %s: %s, want %s", c.typ, c.key, got, c.want)
		}
	}
	if got := gjson.Get(f.content(to, "m.room.topic", ""), "topic").Str; got != "All" {
		t.Errorf("topic %s", got)
	}
	for _, c := range []struct{ typ, want string }{
		{"m.room.tombstone", fmt.Sprintf(`{"body":"This room has been replaced","replacement_room":%q}`, to)},
		{"m.room.canonical_alias", `{"alt_aliases":["#hall:b.example"]}`},
		{"m.room.power_levels", `{"ban":40,"events":{"m.room.tombstone":100,"m.room.topic":70},"events_default":50,"invite":50,"users":{"@alice:a.example":"100","@bob:a.example":60}}`},
	} {
		if got := f.content(old, c.typ, ""); got != c.want {
			t.Errorf("old room, %s: %s, want %s", c.typ, got, c.want)
		}
	}
	if room, _, err := f.dir.Resolve(f.Ctx, "#hall:a.example"); room != to || err != nil {
		t.Errorf("the alias points to %s, %v", room, err)
	}
	was, _ := f.dir.Published(f.Ctx, old)
	if is, err := f.dir.Published(f.Ctx, to); was || !is || err != nil {
		t.Errorf("published: old %v, new %v, %v", was, is, err)
	}
	if v, err := f.Rooms.Version(f.Ctx, to); v != "11" || err != nil {
		t.Errorf("version %s, %v", v, err)
	}
	// The same again is the same room, another version another one.
	if again := f.upgrade(alice, old, `{"new_version":"11"}`); again != to {
		t.Errorf("again: %s, want %s", again, to)
	}
	if other := f.upgrade(alice, old, `{"new_version":"12"}`); other == to {
		t.Error("version 12 is the same room")
	}
}

// Who upgrades with less power than some of the room's state needs has it only
// as long as the upgrade lasts; bans of the mighty come along.
func TestUpgradeByTheWeak(t *testing.T) {
	f := open(t)
	old := f.make(`{"preset":"public_chat","room_version":"10"}`)
	f.Join(old, bob)
	f.Join(old, carol)
	f.Set(old, alice, "m.room.server_acl", "", `{"allow":["*"]}`)
	if err := f.Rooms.Ban(f.Ctx, rooms.MemberChange{Room: old, Sender: alice, Target: carol}); err != nil {
		t.Fatal(err)
	}
	f.Set(old, alice, "m.room.power_levels", "",
		`{"users":{"@alice:a.example":100,"@bob:a.example":50,"@carol:a.example":90},"events":{"m.room.tombstone":50,"m.room.server_acl":100}}`)
	to := f.upgrade(bob, old, `{"new_version":"10"}`)
	if got := gjson.Get(f.content(to, "m.room.power_levels", ""), "users").Raw; got != `{"@alice:a.example":100,"@bob:a.example":50,"@carol:a.example":90}` {
		t.Errorf("users %s", got)
	}
	if f.content(to, "m.room.server_acl", "") == "" || gjson.Get(f.content(to, "m.room.member", string(carol)), "membership").Str != "ban" {
		t.Error("the ACL or the ban is missing")
	}
	// He may not change the old room's power levels so far; that does not matter.
	if got := gjson.Get(f.content(old, "m.room.tombstone", ""), "replacement_room").Str; got != string(to) {
		t.Errorf("the tombstone names %s", got)
	}
}

// Creators stand above all levels from version 12 on, and have one before.
func TestUpgradeCreators(t *testing.T) {
	f := open(t)
	old := f.make(`{"preset":"private_chat","room_version":"11","initial_state":[{"type":"m.room.join_rules","content":{"join_rule":"knock_restricted","allow":[]}}]}`)
	f.Set(old, alice, "m.room.power_levels", "", `{"users":{"@alice:a.example":100,"@bob:a.example":100,"@carol:a.example":50}}`)
	to := f.upgrade(alice, old, `{"new_version":"12","additional_creators":["@alice:a.example","@carol:a.example","@carol:a.example"]}`)
	if got := f.content(to, "m.room.create", ""); got != fmt.Sprintf(`{"additional_creators":["@carol:a.example"],"predecessor":{"room_id":%q},"room_version":"12"}`, old) {
		t.Errorf("create %s", got)
	}
	levels := f.content(to, "m.room.power_levels", "")
	if got := gjson.Get(levels, "users").Raw; got != `{"@bob:a.example":100}` || gjson.Get(levels, `events.m\.room\.tombstone`).Int() != 150 {
		t.Errorf("levels %s", levels)
	}
	down := f.upgrade(alice, to, `{"new_version":"9"}`)
	levels = f.content(down, "m.room.power_levels", "")
	if got := gjson.Get(levels, "users").Raw; got != `{"@alice:a.example":150,"@bob:a.example":100,"@carol:a.example":150}` {
		t.Errorf("users of version 9: %s", got)
	}
	if got := f.content(down, "m.room.join_rules", ""); got != `{"join_rule":"invite"}` { // it does not know knock_restricted
		t.Errorf("join rules of version 9: %s", got)
	}
	for _, c := range []struct {
		user       matrix.UserID
		room, body string
		status     int
		code       string
	}{
		{alice, string(down), `{}`, 400, "M_MISSING_PARAM"},
		{alice, string(down), `{"new_version":"99"}`, 400, "M_UNSUPPORTED_ROOM_VERSION"},
		{alice, string(down), `{"new_version":5}`, 400, "M_BAD_JSON"},
		{alice, string(down), `x`, 400, "M_NOT_JSON"},
		{alice, string(down), `{"new_version":"12","additional_creators":["x"]}`, 400, "M_INVALID_PARAM"},
		{alice, string(down), `{"new_version":"12","additional_creators":"x"}`, 400, "M_BAD_JSON"},
		{alice, "!none", `{"new_version":"12"}`, 403, "M_FORBIDDEN"},
		{bob, string(down), `{"new_version":"12"}`, 403, "M_FORBIDDEN"},
		{alice, "none", `{"new_version":"12"}`, 400, "M_INVALID_PARAM"},
		{"", string(down), `{"new_version":"12"}`, 401, "M_MISSING_TOKEN"},
	} {
		f.Want(c.user, "POST", v3+"rooms/"+c.room+"/upgrade", c.body, c.status, c.code)
	}
}

// get is the content of account data, "" for none.
func (f *fixture) get(user matrix.UserID, room matrix.RoomID, typ string) string {
	f.T.Helper()
	c, err := f.data.Get(f.Ctx, user, room, typ)
	if err != nil && !matrix.IsCode(err, "M_NOT_FOUND") {
		f.T.Fatal(err)
	}
	return string(c)
}

func (f *fixture) personalise(user matrix.UserID, room matrix.RoomID) {
	f.T.Helper()
	f.Want(user, "PUT", v3+"pushrules/global/room/"+url.PathEscape(string(room)), `{"actions":[]}`, 200, "")
	for _, d := range []struct{ room, typ, content string }{
		{string(room), "m.tag", `{"tags":{"m.favourite":{"order":0.5}}}`},
		{"", "m.direct", fmt.Sprintf(`{"@x:a.example":[%q],"@y:a.example":["!other"],"odd":5}`, room)},
	} {
		if err := f.data.Put(f.Ctx, user, matrix.RoomID(d.room), d.typ, json.RawMessage(d.content)); err != nil {
			f.T.Fatal(err)
		}
	}
}

func (f *fixture) carried(user matrix.UserID, from, to matrix.RoomID) bool {
	f.T.Helper()
	return strings.Contains(string(f.push.Rules(user)), string(to)) &&
		f.get(user, to, "m.tag") == `{"tags":{"m.favourite":{"order":0.5}}}` &&
		f.get(user, "", "m.direct") == fmt.Sprintf(`{"@x:a.example":[%q,%q],"@y:a.example":["!other"],"odd":5}`, from, to)
}

// People's settings follow them, whether they join before the old room is closed
// or after, and also when the process was away meanwhile.
func TestSettingsFollow(t *testing.T) {
	db := sqldbtest.Open(t)
	f := build(t, db)
	f.Run(f.mod.Run)
	old := f.Room(alice, bob, carol)
	for _, u := range []matrix.UserID{alice, bob, carol} {
		f.personalise(u, old)
	}
	to := f.upgrade(alice, old, `{"new_version":"11"}`)
	partstest.Eventually(t, "alice's settings", func() bool { return f.carried(alice, old, to) })
	f.Join(to, bob)
	partstest.Eventually(t, "bob's settings", func() bool { return f.carried(bob, old, to) })

	// A change of his profile is no join: what he has undone stays undone.
	if err := f.data.Put(f.Ctx, bob, "", "m.direct", json.RawMessage(`{"@x:a.example":["`+string(old)+`"]}`)); err != nil {
		t.Fatal(err)
	}
	f.Set(to, bob, "m.room.member", string(bob), `{"membership":"join","displayname":"Robert"}`)

	// A room that names another as its predecessor without its consent gets nothing.
	impostor := f.make(fmt.Sprintf(`{"preset":"public_chat","creation_content":{"predecessor":{"room_id":%q}}}`, old))
	f.Join(impostor, carol)
	f.Stop()

	g := build(t, db)
	stop := make(chan struct{})
	g.Run(func(context.Context) error { <-stop; return nil }) // moderation is not running
	g.Join(to, carol)
	close(stop)
	g.Stop()

	h := build(t, db)
	h.Run(h.mod.Run)
	partstest.Eventually(t, "carol's settings", func() bool { return h.carried(carol, old, to) })
	if got := h.get(bob, "", "m.direct"); strings.Contains(got, string(to)) {
		t.Errorf("bob's direct chats: %s", got)
	}
	if strings.Contains(string(h.push.Rules(carol)), string(impostor)) {
		t.Error("the false room has carol's rules")
	}
}

func TestReports(t *testing.T) {
	f := open(t)
	room := f.Room(alice, bob)
	said := f.Say(room, alice, "rude")
	f.Set(room, alice, "m.room.history_visibility", "", `{"history_visibility":"joined"}`)
	hidden := f.Say(room, alice, "before carol")
	f.Join(room, carol)
	roomPath, userPath := v3+"rooms/"+string(room)+"/report", v3+"users/"+string(alice)+"/report"
	f.Want(bob, "POST", roomPath+"/"+string(said), `{"reason":"rude","score":-100}`, 200, "")
	f.Want(bob, "POST", roomPath+"/"+string(said), `{"reason":"very rude"}`, 200, "") // takes the place of the first
	f.Want(carol, "POST", roomPath, `{"reason":""}`, 200, "")
	f.Want(carol, "POST", userPath, `{"reason":"spam"}`, 200, "")
	f.Want(carol, "POST", v3+"users/@far:b.example/report", `{"reason":"spam"}`, 200, "")
	// What does not exist is not told, and not kept.
	f.Want(carol, "POST", v3+"rooms/!none/report", `{"reason":"x"}`, 200, "")
	f.Want(carol, "POST", v3+"users/@nobody:a.example/report", `{"reason":"x"}`, 200, "")
	long := `{"reason":"` + strings.Repeat("x", 4001) + `"}`
	for _, c := range []struct {
		user       matrix.UserID
		path, body string
		status     int
		code       string
	}{
		{bob, roomPath, `{}`, 400, "M_MISSING_PARAM"},
		{bob, userPath, `{}`, 400, "M_MISSING_PARAM"},
		{bob, roomPath, `{"reason":5}`, 400, "M_BAD_JSON"},
		{bob, roomPath, long, 400, "M_INVALID_PARAM"},
		{bob, roomPath + "/" + string(said), long, 400, "M_INVALID_PARAM"},
		{bob, roomPath, `{"reason":"` + strings.Repeat("x", 70_000) + `"}`, 413, "M_TOO_LARGE"},
		{bob, v3 + "rooms/x/report", `{"reason":""}`, 400, "M_INVALID_PARAM"},
		{bob, v3 + "users/x/report", `{"reason":""}`, 400, "M_INVALID_PARAM"},
		{bob, roomPath + "/$none", `{}`, 404, "M_NOT_FOUND"},
		{carol, roomPath + "/" + string(hidden), `{}`, 404, "M_NOT_FOUND"},
		{admin, roomPath + "/" + string(said), `{}`, 404, "M_NOT_FOUND"}, // not in the room
		{bob, v3 + "rooms/" + string(f.Room(bob)) + "/report/" + string(said), `{}`, 404, "M_NOT_FOUND"},
		{"", roomPath, `{"reason":""}`, 401, "M_MISSING_TOKEN"},
	} {
		f.Want(c.user, "POST", c.path, c.body, c.status, c.code)
	}

	const list = "/_carillon/admin/v1/reports"
	f.Want(bob, "GET", list, "", 403, "M_FORBIDDEN")
	all := f.Want(admin, "GET", list, "", 200, "")
	var got []string
	gjson.Get(all, "reports").ForEach(func(_, r gjson.Result) bool {
		got = append(got, fmt.Sprintf("%s %s %s %s %s", r.Get("kind").Str, r.Get("reporter").Str, r.Get("event_id").Str, r.Get("user_id").Str, r.Get("reason").Str))
		return true
	})
	want := []string{
		"user @carol:a.example  @far:b.example spam", "user @carol:a.example  @alice:a.example spam", "room @carol:a.example   ",
		fmt.Sprintf("event @bob:a.example %s @alice:a.example very rude", said),
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("reports %s", strings.Join(got, "\n"))
	}
	page := f.Want(admin, "GET", list+"?limit=3", "", 200, "")
	rest := f.Want(admin, "GET", list+"?limit=3&from="+gjson.Get(page, "next_batch").Str, "", 200, "")
	if gjson.Get(page, "reports.#").Int() != 3 || gjson.Get(rest, "reports.#").Int() != 1 || gjson.Get(rest, "next_batch").Exists() {
		t.Errorf("pages %s %s", page, rest)
	}
	one := list + "/" + gjson.Get(rest, "reports.0.id").Raw
	if shown := f.Want(admin, "GET", one, "", 200, ""); gjson.Get(shown, "event.content.body").Str != "rude" || gjson.Get(shown, "reason").Str != "very rude" {
		t.Errorf("shown %s", shown)
	}
	if done := f.Want(admin, "PUT", one, `{"handled":true}`, 200, ""); gjson.Get(done, "handled_by").Str != string(admin) {
		t.Errorf("handled %s", done)
	}
	count := func(query string) int64 {
		t.Helper()
		return gjson.Get(f.Want(admin, "GET", list+query, "", 200, ""), "reports.#").Int()
	}
	if a, b, c := count(""), count("?handled=true"), count("?handled=false"); a != 4 || b != 1 || c != 3 {
		t.Errorf("%d, %d handled, %d open", a, b, c)
	}
	f.Want(bob, "POST", roomPath+"/"+string(said), `{"reason":"again"}`, 200, "") // open again
	if n := count("?handled=true"); n != 0 {
		t.Errorf("%d handled", n)
	}
	f.Want(admin, "PUT", one, `{}`, 400, "M_MISSING_PARAM")
	f.Want(admin, "PUT", list+"/999", `{"handled":true}`, 404, "M_NOT_FOUND")
	f.Want(admin, "GET", list+"/x", "", 404, "M_NOT_FOUND")
	f.Want(admin, "GET", list+"?from=x", "", 400, "M_INVALID_PARAM")
	f.Want(admin, "GET", list+"?handled=x", "", 400, "M_INVALID_PARAM")
}
