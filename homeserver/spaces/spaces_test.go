package spaces_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/directory"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/partstest"
	"github.com/carillon-chat/carillon/homeserver/profiles"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/spaces"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

const (
	alice = partstest.Alice
	bob   = partstest.Bob
	carol = partstest.Carol
	v1    = "/_matrix/client/v1/"
)

// far are the other servers.
type far struct {
	rooms map[matrix.RoomID]string // answers
	mu    sync.Mutex
	asked []string
}

func (f *far) Hierarchy(_ context.Context, server matrix.ServerName, room matrix.RoomID, suggestedOnly bool) (*spaces.Answer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, fmt.Sprintf("%s %s %v", server, room, suggestedOnly))
	raw, ok := f.rooms[room]
	if !ok || server != "b.example" {
		return nil, matrix.NotFound("Room does not exist.")
	}
	a := &spaces.Answer{}
	return a, json.Unmarshal([]byte(raw), a)
}

// signed takes the header for the signature of a server.
type signed struct{}

func (signed) VerifyOrigin(r *http.Request, _ []byte) (matrix.ServerName, error) {
	return matrix.ServerName(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")), nil
}

type fixture struct {
	*partstest.World
	far *far
	now time.Time
	dir *directory.Directory
}

func open(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{far: &far{rooms: map[matrix.RoomID]string{}}, now: time.Now()}
	db := sqldbtest.Open(t)
	f.World = partstest.New(t, db, rooms.Options{
		ClaimAlias: func(tx *sqldb.Tx, a matrix.RoomAlias, r matrix.RoomID, u matrix.UserID) error {
			return f.dir.ClaimAlias(tx, a, r, u)
		},
	})
	acc := f.Accounts()
	prof, err := profiles.New(f.Ctx, db, acc, f.Rooms, profiles.Options{Server: partstest.Here})
	if err != nil {
		t.Fatal(err)
	}
	if f.dir, err = directory.New(f.Ctx, db, acc, prof, f.Rooms, f.Hub, directory.Options{Server: partstest.Here, Log: f.Log}); err != nil {
		t.Fatal(err)
	}
	s := spaces.New(db, f.Rooms, f.Hub, f.dir, spaces.Options{
		Server: partstest.Here, Remote: f.far, Now: func() time.Time { return f.now },
	})
	f.API.SetOriginVerifier(signed{})
	f.API.Add(s.Routes()...)
	f.API.Add(s.FederationRoutes()...)
	f.Run()
	return f
}

// make creates a room of alice; extra are further fields of the request.
func (f *fixture) make(name, extra string) matrix.RoomID {
	f.T.Helper()
	q := rooms.CreateRequest{Name: name}
	if err := json.Unmarshal([]byte("{"+extra+"}"), &q); err != nil {
		f.T.Fatal(err)
	}
	room, err := f.Rooms.Create(f.Ctx, alice, q, 0)
	if err != nil {
		f.T.Fatal(err)
	}
	return room
}

const (
	public  = `"preset":"public_chat"`
	isSpace = `,"creation_content":{"type":"m.space"}`
)

func (f *fixture) child(space, room matrix.RoomID, more string) {
	f.T.Helper()
	f.Set(space, alice, "m.space.child", string(room), `{"via":["a.example"]`+more+`}`)
	time.Sleep(2 * time.Millisecond) // those without an order go by the time they were made
}

// tree reads a hierarchy and gives the names of its rooms.
func (f *fixture) tree(user matrix.UserID, room matrix.RoomID, query string) (names, next string) {
	f.T.Helper()
	body := f.Want(user, "GET", v1+"rooms/"+string(room)+"/hierarchy"+query, "", 200, "")
	var list []string
	for _, r := range gjson.Get(body, "rooms").Array() {
		list = append(list, r.Get("name").Str)
	}
	return strings.Join(list, " "), gjson.Get(body, "next_batch").Str
}

func TestHierarchy(t *testing.T) {
	f := open(t)
	root, sub := f.make("Root", public+isSpace), f.make("Sub", public+isSpace)
	a, b, c, d := f.make("A", public), f.make("B", public), f.make("C", public), f.make("D", public)
	f.child(root, a, `,"suggested":true`)
	f.child(root, sub, ``)
	f.child(root, b, `,"order":"zz","suggested":true`)
	f.child(root, c, `,"order":"\u0001"`) // no valid order
	f.child(sub, d, ``)
	f.child(sub, root, ``) // a loop
	f.child(a, d, ``)      // a room is no space
	f.Set(root, alice, "m.space.child", "!none", `{"via":[]}`)
	f.Set(root, alice, "m.space.child", "not a room", `{"via":["a.example"]}`)

	for query, want := range map[string]string{
		"":                                  "Root B A Sub D C",
		"?max_depth=0":                      "Root",
		"?max_depth=1":                      "Root B A Sub C",
		"?suggested_only=true":              "Root B A",
		"?suggested_only=true&max_depth=50": "Root B A",
	} {
		if got, next := f.tree(bob, root, query); got != want || next != "" {
			t.Errorf("%s: %s (next %q), want %s", query, got, next, want)
		}
	}
	path := v1 + "rooms/" + string(root) + "/hierarchy"
	body := f.Want(alice, "GET", path, "", 200, "")
	first := gjson.Get(body, "rooms.0")
	if first.Get("room_type").Str != "m.space" || first.Get("join_rule").Str != "public" || first.Get("num_joined_members").Int() != 1 ||
		first.Get("room_version").Str != "12" || first.Get("children_state.#").Int() != 4 || first.Get("children_state.0.state_key").Str != string(b) ||
		first.Get("children_state.0.content.order").Str != "zz" || first.Get("children_state.0.origin_server_ts").Int() == 0 ||
		first.Get("children_state.0.sender").Str != string(alice) {
		t.Errorf("the root is %s", first)
	}
	if got := gjson.Get(body, `rooms.#(name=="A").children_state`).Raw; got != "[]" {
		t.Errorf("children of a room: %s", got)
	}

	// Page by page; the same token gives the same page.
	one, next := f.tree(bob, root, "?limit=2")
	two, after := f.tree(bob, root, "?limit=3&from="+next)
	again, _ := f.tree(bob, root, "?limit=3&from="+next)
	three, end := f.tree(bob, root, "?from="+after)
	if one != "Root B" || two != "A Sub D" || again != two || three != "C" || end != "" {
		t.Errorf("pages %q %q %q %q, end %q", one, two, again, three, end)
	}
	for _, q := range []string{
		"?limit=0", "?limit=x", "?max_depth=-1", "?suggested_only=x", "?from=x", "?from=",
		"?from=" + next + "&max_depth=3", "?from=" + next + "&suggested_only=true",
	} {
		f.Want(bob, "GET", path+q, "", 400, "M_INVALID_PARAM")
	}
	f.Want(carol, "GET", path+"?from="+next, "", 400, "M_INVALID_PARAM") // it is bob's
	f.now = f.now.Add(time.Hour)
	f.Want(bob, "GET", path+"?from="+next, "", 400, "M_INVALID_PARAM")
	f.Want(bob, "GET", v1+"rooms/!none/hierarchy", "", 403, "M_FORBIDDEN")
	f.Want(bob, "GET", v1+"rooms/x/hierarchy", "", 400, "M_INVALID_PARAM")
	f.Want("", "GET", path, "", 401, "M_MISSING_TOKEN")
}

func rules(rule string, allow ...matrix.RoomID) string {
	var list []string
	for _, r := range allow {
		list = append(list, fmt.Sprintf(`{"type":"m.room_membership","room_id":%q}`, r))
	}
	return fmt.Sprintf(`,"initial_state":[{"type":"m.room.join_rules","content":{"join_rule":%q,"allow":[%s]}}]`, rule, strings.Join(list, ","))
}

// Who may see a room, by its rules and by his membership.
func TestAccess(t *testing.T) {
	f := open(t)
	root := f.make("Root", public+isSpace)
	f.child(root, f.make("public", public), "")
	private := f.make("private", `"preset":"private_chat"`)
	f.child(root, private, "")
	f.child(root, f.make("knock", public+rules("knock")), "")
	f.child(root, f.make("old-knock", `"room_version":"6","preset":"public_chat"`+rules("knock")), "")
	restricted := f.make("restricted", `"room_version":"8","preset":"public_chat"`+rules("restricted", root))
	f.child(root, restricted, "")
	f.child(root, f.make("knock-restricted", public+rules("knock_restricted", root)), "")
	world := f.make("world", `"preset":"private_chat"`)
	f.Set(world, alice, "m.room.history_visibility", "", `{"history_visibility":"world_readable"}`)
	f.child(root, world, "")
	secret := f.make("secret", `"preset":"private_chat"`+isSpace)
	f.child(root, secret, "")
	f.child(secret, f.make("below", public), "")

	want := func(user matrix.UserID, expect string) {
		t.Helper()
		if got, _ := f.tree(user, root, ""); got != expect {
			t.Errorf("%s sees %s, want %s", user, got, expect)
		}
	}
	want(bob, "Root public knock knock-restricted world")
	f.Join(root, bob)
	want(bob, "Root public knock restricted knock-restricted world")
	if err := f.Rooms.Invite(f.Ctx, rooms.MemberChange{Room: private, Sender: alice, Target: bob}); err != nil {
		t.Fatal(err)
	}
	want(bob, "Root public private knock restricted knock-restricted world")
	if err := f.Rooms.Invite(f.Ctx, rooms.MemberChange{Room: secret, Sender: alice, Target: bob}); err != nil {
		t.Fatal(err)
	}
	want(bob, "Root public private knock restricted knock-restricted world secret below")
	if err := f.Rooms.Ban(f.Ctx, rooms.MemberChange{Room: restricted, Sender: alice, Target: bob}); err != nil {
		t.Fatal(err)
	}
	if err := f.Rooms.Ban(f.Ctx, rooms.MemberChange{Room: secret, Sender: alice, Target: bob}); err != nil {
		t.Fatal(err)
	}
	want(bob, "Root public private knock knock-restricted world")
	f.Want(bob, "GET", v1+"rooms/"+string(secret)+"/hierarchy", "", 403, "M_FORBIDDEN")

	// Other servers see what anybody may join.
	ask := func(server, query string) string {
		t.Helper()
		return f.Want(matrix.UserID(server), "GET", "/_matrix/federation/v1/hierarchy/"+string(root)+query, "", 200, "")
	}
	body := ask("b.example", "")
	var names []string
	for _, c := range gjson.Get(body, "children.#.name").Array() {
		names = append(names, c.Str)
	}
	if got := strings.Join(names, " "); got != "public knock knock-restricted world" || gjson.Get(body, "inaccessible_children.#").Int() != 4 {
		t.Errorf("another server is told %s", body)
	}
	if gjson.Get(body, `children.#(name=="knock-restricted").allowed_room_ids.0`).Str != string(root) || gjson.Get(body, "room.children_state.#").Int() != 8 {
		t.Errorf("another server is told %s", body)
	}
	if got := gjson.Get(ask("b.example", "?suggested_only=true"), "room.children_state").Raw; got != "[]" {
		t.Errorf("suggested %s", got)
	}
	f.Want("b.example", "GET", "/_matrix/federation/v1/hierarchy/"+string(private), "", 404, "M_NOT_FOUND")
	f.Want("b.example", "GET", "/_matrix/federation/v1/hierarchy/!none", "", 404, "M_NOT_FOUND")
	f.Want("b.example", "GET", "/_matrix/federation/v1/hierarchy/x", "", 400, "M_INVALID_PARAM")
	f.Set(root, alice, "m.room.server_acl", "", `{"allow":["*"],"deny":["b.example"]}`)
	f.Want("b.example", "GET", "/_matrix/federation/v1/hierarchy/"+string(root), "", 404, "M_NOT_FOUND")
}

// Rooms of other servers are asked for, once in a while.
func TestFarRooms(t *testing.T) {
	f := open(t)
	root := f.make("Root", public+isSpace)
	f.Set(root, alice, "m.space.child", "!far", `{"via":["nobody.example","b.example"],"order":"1"}`)
	f.Set(root, alice, "m.space.child", "!gone", `{"via":["b.example"],"order":"2"}`)
	f.Set(root, alice, "m.space.child", "!liar", `{"via":["b.example"],"order":"3"}`)
	near := f.make("near", public)
	ts := 0
	child := func(room string) string {
		ts++
		return fmt.Sprintf(`{"type":"m.space.child","state_key":%q,"content":{"via":["b.example"]},"sender":"@x:b.example","origin_server_ts":%d}`, room, ts)
	}
	room := func(id, name, more string) string {
		return fmt.Sprintf(`{"room_id":%q,"name":%q,"num_joined_members":2,"world_readable":false,"guest_can_join":false%s}`, id, name, more)
	}
	f.far.rooms["!far"] = `{"room":` + room("!far", "far", `,"join_rule":"public","room_type":"m.space","children_state":[`+
		strings.Join([]string{child("!open"), child("!closed"), child("!barred"), child(string(near)), child("!members"), `{"type":"x"}`}, ",")+`]`) +
		`,"children":[` + strings.Join([]string{
		room("!open", "open", ""), room("!closed", "closed", `,"join_rule":"invite"`), room(string(near), "not as it is", ""),
		room("!members", "members", fmt.Sprintf(`,"join_rule":"restricted","allowed_room_ids":[%q]`, root)),
	}, ",") + `],"inaccessible_children":["!barred"]}`
	f.far.rooms["!liar"] = `{"room":` + room("!other", "other", "") + `}`

	if got, _ := f.tree(alice, root, ""); got != "Root far open near members" {
		t.Errorf("alice sees %s", got)
	}
	if got, _ := f.tree(bob, root, ""); got != "Root far open near" {
		t.Errorf("bob sees %s", got)
	}
	asked := map[string]int{}
	for _, q := range f.far.asked {
		asked[q]++
	}
	if asked["b.example !far false"] != 1 || asked["b.example !barred false"] != 0 || asked["b.example !open false"] != 0 || asked["b.example !gone false"] != 2 {
		t.Errorf("asked %v", asked)
	}
	f.now = f.now.Add(2 * time.Minute)
	f.tree(bob, root, "")
	if n := strings.Count(strings.Join(f.far.asked, ","), "b.example !far false"); n != 2 {
		t.Errorf("asked %d times", n)
	}
	f.tree(bob, root, "?suggested_only=true")

	// The same for summaries.
	got := f.Want(bob, "GET", v1+"room_summary/!far?via=b.example", "", 200, "")
	if gjson.Get(got, "name").Str != "far" || gjson.Get(got, "membership").Str != "leave" || gjson.Get(got, "children_state").Exists() {
		t.Errorf("summary %s", got)
	}
	f.Want(bob, "GET", v1+"room_summary/!unknown?via=b.example", "", 404, "M_NOT_FOUND")
	f.Want("", "GET", v1+"room_summary/!far?via=b.example", "", 401, "M_MISSING_TOKEN")
}

func TestSummary(t *testing.T) {
	f := open(t)
	hall := f.make("Hall", public+`,"room_alias_name":"hall","topic":"All","initial_state":[{"type":"m.room.encryption","content":{"algorithm":"m.megolm.v1.aes-sha2"}}]`)
	private := f.make("private", `"preset":"private_chat"`)
	members := f.make("members", public+rules("restricted", hall))

	get := func(user matrix.UserID, room string) map[string]any {
		t.Helper()
		var m map[string]any
		json.Unmarshal([]byte(f.Want(user, "GET", v1+"room_summary/"+url.PathEscape(room), "", 200, "")), &m)
		return m
	}
	want := map[string]any{
		"room_id": string(hall), "name": "Hall", "topic": "All", "canonical_alias": "#hall:a.example", "join_rule": "public", "room_version": "12",
		"num_joined_members": 1.0, "world_readable": false, "guest_can_join": false, "encryption": "m.megolm.v1.aes-sha2",
	}
	if got := get("", "#hall:a.example"); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("nobody sees %v", got)
	}
	want["membership"] = "join"
	if got := get(alice, string(hall)); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("alice sees %v", got)
	}
	if got := get(bob, string(hall)); got["membership"] != "leave" {
		t.Errorf("bob sees %v", got)
	}
	if got := get(alice, string(private)); got["allowed_room_ids"] != nil || got["join_rule"] != "invite" {
		t.Errorf("alice sees %v", got)
	}
	f.Want(bob, "GET", v1+"room_summary/"+string(members), "", 404, "M_NOT_FOUND")
	f.Join(hall, bob)
	if got := get(bob, string(members)); fmt.Sprint(got["allowed_room_ids"]) != fmt.Sprint([]any{string(hall)}) {
		t.Errorf("bob sees %v", got)
	}
	if err := f.Rooms.Invite(f.Ctx, rooms.MemberChange{Room: private, Sender: alice, Target: carol}); err != nil {
		t.Fatal(err)
	}
	if got := get(carol, string(private)); got["membership"] != "invite" || got["name"] != "private" {
		t.Errorf("carol sees %v", got)
	}
	f.Want("", "GET", "/_matrix/client/unstable/im.nheko.summary/summary/"+string(hall), "", 200, "")
	f.Want("", "GET", "/_matrix/client/unstable/im.nheko.summary/rooms/"+string(hall)+"/summary", "", 200, "")
	for _, c := range []struct {
		user   matrix.UserID
		room   string
		status int
		code   string
	}{
		{bob, string(private), 404, "M_NOT_FOUND"},
		{"", string(private), 404, "M_NOT_FOUND"},
		{"", string(members), 404, "M_NOT_FOUND"},
		{bob, "!none", 404, "M_NOT_FOUND"},
		{bob, "#none:a.example", 404, "M_NOT_FOUND"},
		{"", "#x:b.example", 401, "M_MISSING_TOKEN"},
		{bob, "none", 400, "M_INVALID_PARAM"},
		{bob, "#x", 400, "M_INVALID_PARAM"},
	} {
		f.Want(c.user, "GET", v1+"room_summary/"+url.PathEscape(c.room), "", c.status, c.code)
	}
}

// What came with an invitation is the summary where nobody tells more.
func TestSummaryOfInvitation(t *testing.T) {
	f := open(t)
	room := f.make("Office", `"preset":"private_chat"`)
	if err := f.Rooms.Invite(f.Ctx, rooms.MemberChange{Room: room, Sender: alice, Target: bob}); err != nil {
		t.Fatal(err)
	}
	if err := f.Rooms.Leave(f.Ctx, rooms.MemberChange{Room: room, Sender: alice, Target: alice}); err != nil {
		t.Fatal(err)
	}
	got := f.Want(bob, "GET", v1+"room_summary/"+string(room), "", 200, "")
	if gjson.Get(got, "name").Str != "Office" || gjson.Get(got, "membership").Str != "invite" {
		t.Errorf("summary %s", got)
	}
	f.Want(carol, "GET", v1+"room_summary/"+string(room), "", 404, "M_NOT_FOUND")
}
