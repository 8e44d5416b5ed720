package accountdata_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	alice = matrix.UserID("@alice:example.org")
	bob   = matrix.UserID("@bob:example.org")
	carol = matrix.UserID("@carol:example.org")
	room  = matrix.RoomID("!room:example.org")
)

type server struct {
	t    *testing.T
	url  string
	db   *sqldb.DB
	log  *stream.Log
	data *accountdata.Data
	stop func()
}

func start(t *testing.T) *server {
	t.Helper()
	s := &server{t: t, db: sqldbtest.Open(t)}
	s.open()
	readers := map[string]accountdata.Reader{
		accountdata.TypePushRules: func(context.Context, matrix.UserID) (json.RawMessage, error) {
			return json.RawMessage(`{"global":{}}`), nil
		},
	}
	api := httpapi.New(httpapi.Options{Authenticator: httpapitest.ByToken{}})
	api.Add(s.data.Routes(readers)...)
	web := httptest.NewServer(api)
	t.Cleanup(web.Close)
	s.url = web.URL
	return s
}

// open builds the package on the database, as a start of the server does.
func (s *server) open() {
	s.t.Helper()
	if s.stop != nil {
		s.stop()
	} else {
		s.t.Cleanup(func() { s.stop() })
	}
	var err error
	if s.log, err = stream.Open(s.t.Context(), s.db); err != nil {
		s.t.Fatal(err)
	}
	if s.data, err = accountdata.New(s.t.Context(), s.db, s.log); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	log := s.log
	go func() { defer close(done); _ = log.Run(ctx) }()
	s.stop = func() { cancel(); <-done }
}

const unstable = "/_matrix/client/unstable"

// call sends a request as user and returns status and body.
func (s *server) call(user matrix.UserID, method, path, body string) (int, string) {
	s.t.Helper()
	if !strings.HasPrefix(path, unstable) {
		path = "/_matrix/client/v3" + path
	}
	a := httpapitest.Call(s.t, method, s.url+path, string(user), strings.NewReader(body))
	return a.Status, string(a.Body)
}

// want calls and checks the status and that the body holds a text.
func (s *server) want(status int, text string, user matrix.UserID, method, path, body string) string {
	s.t.Helper()
	got, b := s.call(user, method, path, body)
	if got != status || !strings.Contains(b, text) {
		s.t.Errorf("%s %s %.100s: got %d %.300s, want %d with %s", method, path, body, got, b, status, text)
	}
	return b
}

func (s *server) since(user matrix.UserID, from, to stream.Pos) (global []accountdata.Entry, rooms map[matrix.RoomID][]accountdata.Entry) {
	s.t.Helper()
	err := s.db.Read(s.t.Context(), func(tx *sqldb.Tx) (err error) {
		global, rooms, err = s.data.Since(s.t.Context(), tx, user, from, to)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return global, rooms
}

func userPath(user matrix.UserID) string { return "/user/" + url.PathEscape(string(user)) }

func TestValues(t *testing.T) {
	s := start(t)
	global := userPath(alice) + "/account_data/"
	inRoom := userPath(alice) + "/rooms/" + url.PathEscape(string(room)) + "/account_data/"

	s.want(404, "M_NOT_FOUND", alice, "GET", global+"org.x", "")
	s.want(200, "{}", alice, "PUT", global+"org.x", `{"a":1}`)
	s.want(200, `{"a":1}`, alice, "GET", global+"org.x", "")
	s.want(404, "M_NOT_FOUND", alice, "GET", inRoom+"org.x", "") // no inheritance
	s.want(200, "{}", alice, "PUT", inRoom+"org.x", `{"b":"é"}`)
	s.want(200, `{"b":"é"}`, alice, "GET", inRoom+"org.x", "")
	mark := s.log.Head()
	s.want(200, "{}", alice, "PUT", global+"org.x", `{"a":2}`)

	for _, base := range []string{global, inRoom} {
		for _, typ := range []string{"m.fully_read", "m.push_rules"} {
			s.want(405, "M_BAD_JSON", alice, "PUT", base+typ, `{}`)
		}
		s.want(400, "M_NOT_JSON", alice, "PUT", base+"org.x", `{`)
		s.want(400, "M_NOT_JSON", alice, "PUT", base+"org.x", ``)
		s.want(400, "M_BAD_JSON", alice, "PUT", base+"org.x", `[]`)
		s.want(400, "M_BAD_JSON", alice, "PUT", base+"org.x", `"text"`)
		s.want(403, "M_FORBIDDEN", bob, "PUT", base+"org.x", `{}`)
		s.want(403, "M_FORBIDDEN", bob, "GET", base+"org.x", "")
		s.want(413, "M_TOO_LARGE", alice, "PUT", base+"org.x", `{"a":"`+strings.Repeat("x", 600<<10)+`"}`)
		s.want(400, "M_INVALID_PARAM", alice, "PUT", base+strings.Repeat("t", 300), `{}`)
		s.want(400, "M_INVALID_PARAM", alice, "PUT", base+"a%00b", `{}`)
		s.want(400, "M_INVALID_PARAM", alice, "GET", base+"a%ffb", "")
	}
	s.want(400, "M_INVALID_PARAM", alice, "PUT", userPath(alice)+"/rooms/"+url.PathEscape("@not:room")+"/account_data/org.x", `{}`)
	s.want(400, "M_INVALID_PARAM", alice, "GET", userPath(alice)+"/rooms/"+url.PathEscape("@not:room")+"/account_data/org.x", "")
	s.want(200, `{"global":{}}`, alice, "GET", global+"m.push_rules", "")

	all, rooms := s.since(alice, 0, s.log.Head())
	if len(all) != 1 || string(all[0].Content) != `{"a":2}` || len(rooms[room]) != 1 {
		t.Errorf("since the beginning: %+v %+v", all, rooms)
	}
	all, rooms = s.since(alice, mark, s.log.Head())
	if len(all) != 1 || all[0].Type != "org.x" || len(rooms) != 0 {
		t.Errorf("since the mark: %+v %+v", all, rooms)
	}
	if all, rooms = s.since(bob, 0, s.log.Head()); len(all)+len(rooms) != 0 {
		t.Errorf("another user sees %+v %+v", all, rooms)
	}
}

func TestOwnersWriteGuardedTypes(t *testing.T) {
	s := start(t)
	if err := s.data.Put(t.Context(), alice, room, accountdata.TypeFullyRead, json.RawMessage(`{"event_id":"$e"}`)); err != nil {
		t.Fatal(err)
	}
	s.want(200, "$e", alice, "GET", userPath(alice)+"/rooms/"+url.PathEscape(string(room))+"/account_data/m.fully_read", "")
	if err := s.data.Put(t.Context(), alice, "", accountdata.TypePushRules, json.RawMessage(`{"global":{"x":[]}}`)); err != nil {
		t.Fatal(err)
	}
	s.want(200, `{"global":{"x":[]}}`, alice, "GET", userPath(alice)+"/account_data/m.push_rules", "")
}

func TestPayload(t *testing.T) {
	db := sqldbtest.Open(t)
	log, err := stream.Open(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	data, err := accountdata.New(t.Context(), db, log)
	if err != nil {
		t.Fatal(err)
	}
	var got []stream.Change
	log.Subscribe(func(cs []stream.Change) { got = append(got, cs...) })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = log.Run(ctx) }()
	if err := data.Put(t.Context(), alice, room, "org.x", json.RawMessage(`{"a":1}`)); err != nil {
		t.Error(err)
	}
	cancel()
	<-done
	if len(got) != 1 || got[0].Kind != stream.KindAccountData || got[0].User != alice || got[0].Room != room {
		t.Fatalf("changes: %+v", got)
	}
	if e, ok := got[0].Payload.(*accountdata.Entry); !ok || e.Type != "org.x" || string(e.Content) != `{"a":1}` || e.Pos != got[0].Pos {
		t.Errorf("payload: %+v", got[0].Payload)
	}
}

func TestTags(t *testing.T) {
	s := start(t)
	tags := userPath(alice) + "/rooms/" + url.PathEscape(string(room)) + "/tags"
	s.want(200, `{"tags":{}}`, alice, "GET", tags, "")
	s.want(200, "{}", alice, "PUT", tags+"/m.favourite", `{"order":0.5}`)
	s.want(200, "{}", alice, "PUT", tags+"/u.%E5%B7%A5%E4%BD%9C", `{}`)
	s.want(200, `"m.favourite":{"order":0.5}`, alice, "GET", tags, "")
	s.want(200, `"u.工作":{}`, alice, "GET", tags, "")
	s.want(400, "M_BAD_JSON", alice, "PUT", tags+"/u.a", `{"order":"first"}`)
	s.want(400, "M_INVALID_PARAM", alice, "PUT", tags+"/u.a", `{"order":2}`)
	s.want(400, "M_INVALID_PARAM", alice, "PUT", tags+"/u."+strings.Repeat("a", 254), `{}`)
	s.want(403, "M_FORBIDDEN", bob, "PUT", tags+"/u.a", `{}`)
	s.want(403, "M_FORBIDDEN", bob, "GET", tags, "")
	s.want(200, "{}", alice, "DELETE", tags+"/m.favourite", "")
	before := s.log.Head()
	s.want(200, "{}", alice, "DELETE", tags+"/never.set", "")
	if s.log.Head() != before {
		t.Error("deleting a tag that is not there told everybody")
	}
	if b := s.want(200, "u.工作", alice, "GET", tags, ""); strings.Contains(b, "favourite") {
		t.Errorf("tag still there: %s", b)
	}

	// Tags set at the same time all stay.
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if status, b := s.call(alice, "PUT", fmt.Sprintf("%s/u.%d", tags, i), `{}`); status != 200 {
				t.Errorf("%d %s", status, b)
			}
		})
	}
	wg.Wait()
	var got struct {
		Tags map[string]any `json:"tags"`
	}
	if err := json.Unmarshal([]byte(s.want(200, "", alice, "GET", tags, "")), &got); err != nil || len(got.Tags) != 21 {
		t.Errorf("%d tags, %v", len(got.Tags), err)
	}
	_, rooms := s.since(alice, 0, s.log.Head())
	if len(rooms[room]) != 1 || rooms[room][0].Type != "m.tag" {
		t.Errorf("in sync: %+v", rooms)
	}
}

func TestIgnored(t *testing.T) {
	s := start(t)
	path := userPath(alice) + "/account_data/m.ignored_user_list"
	if s.data.Ignored(alice).Has(bob) {
		t.Error("ignored before anything was set")
	}
	s.want(200, "{}", alice, "PUT", path, `{"ignored_users":{"@bob:example.org":{},"@alice:example.org":{},"nonsense":{}}}`)
	if !s.data.Ignored(alice).Has(bob) || s.data.Ignored(alice).Has(alice) || s.data.Ignored(bob).Has(alice) {
		t.Errorf("ignored: %v", s.data.Ignored(alice))
	}
	s.open() // a restart
	if !s.data.Ignored(alice).Has(bob) {
		t.Error("forgotten at restart")
	}
	if err := s.data.Put(t.Context(), alice, "", accountdata.TypeIgnored, json.RawMessage(`{"ignored_users":[1]}`)); err != nil {
		t.Fatal(err)
	}
	if s.data.Ignored(alice).Has(bob) {
		t.Error("a malformed list ignores somebody")
	}
}

func TestFilterEndpoints(t *testing.T) {
	s := start(t)
	path := userPath(alice) + "/filter"
	var a, b struct {
		ID string `json:"filter_id"`
	}
	define := func(v any, body string) {
		t.Helper()
		if err := json.Unmarshal([]byte(s.want(200, "filter_id", alice, "POST", path, body)), v); err != nil {
			t.Fatal(err)
		}
	}
	define(&a, `{"room":{"timeline":{"limit":7}}}`)
	define(&b, ` { "room" : {"timeline":{"limit":7}}} `)
	if a.ID == "" || a.ID != b.ID || strings.HasPrefix(a.ID, "{") {
		t.Errorf("IDs %q and %q", a.ID, b.ID)
	}
	s.want(200, `{"room":{"timeline":{"limit":7}}}`, alice, "GET", path+"/"+a.ID, "")
	s.want(404, "M_NOT_FOUND", alice, "GET", path+"/99", "")
	s.want(404, "M_NOT_FOUND", alice, "GET", path+"/nonsense", "")
	s.want(403, "M_FORBIDDEN", bob, "GET", path+"/"+a.ID, "")
	s.want(403, "M_FORBIDDEN", bob, "POST", path, `{}`)
	s.want(400, "M_NOT_JSON", alice, "POST", path, `{`)
	for _, bad := range badFilters {
		s.want(400, "M_BAD_JSON", alice, "POST", path, bad)
	}
	f, err := s.data.ResolveFilter(t.Context(), alice, a.ID)
	if err != nil || f.Timeline().Limit(10, 100) != 7 {
		t.Errorf("resolved %+v, %v", f, err)
	}
	again, err := s.data.Filter(t.Context(), alice, a.ID)
	if err != nil || again != f {
		t.Error("not cached")
	}
	if f, err = s.data.ResolveFilter(t.Context(), alice, ""); f != nil || err != nil {
		t.Errorf("no filter: %+v, %v", f, err)
	}
	if f, err = s.data.ResolveFilter(t.Context(), alice, `{"room":{"include_leave":true}}`); err != nil || !f.IncludeLeave() {
		t.Errorf("inline: %+v, %v", f, err)
	}
	if _, err = s.data.ResolveFilter(t.Context(), alice, "77"); !matrix.IsCode(err, "M_INVALID_PARAM") {
		t.Errorf("unknown ID: %v", err)
	}
	if _, err = s.data.ResolveFilter(t.Context(), alice, "{"); !matrix.IsCode(err, "M_NOT_JSON") {
		t.Errorf("inline that is no JSON: %v", err)
	}

	// Filters defined at the same time have different IDs.
	ids := make([]string, 20)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			id, err := s.data.DefineFilter(context.Background(), alice, fmt.Appendf(nil, `{"room":{"timeline":{"limit":%d}}}`, 100+i))
			if err != nil {
				t.Error(err)
			}
			ids[i] = id
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, id := range ids {
		if seen[id] {
			t.Errorf("ID %s twice", id)
		}
		seen[id] = true
	}
}

func TestDelete(t *testing.T) {
	s := start(t)
	for _, r := range []matrix.RoomID{"", room, "!other:x"} {
		if err := s.data.Put(t.Context(), alice, r, "org.x", json.RawMessage(`{}`)); err != nil {
			t.Fatal(err)
		}
	}
	forget := func(fn func(tx *sqldb.Tx) error) {
		t.Helper()
		if err := s.db.Write(t.Context(), fn); err != nil {
			t.Fatal(err)
		}
	}
	forget(func(tx *sqldb.Tx) error { return s.data.ForgetRoom(tx, alice, room) })
	if global, rooms := s.since(alice, 0, s.log.Head()); len(global) != 1 || len(rooms) != 1 {
		t.Errorf("after forgetting a room: %+v %+v", global, rooms)
	}
	forget(func(tx *sqldb.Tx) error { return s.data.DeleteUser(tx, alice) })
	if global, rooms := s.since(alice, 0, s.log.Head()); len(global)+len(rooms) != 0 {
		t.Errorf("after deletion: %+v %+v", global, rooms)
	}
}

func TestCompactJSONOfProject(t *testing.T) {
	f, err := accountdata.ParseFilter([]byte(`{"event_fields":["type","content.body","content.a\\.b","unsigned.x.y"]}`))
	if err != nil {
		t.Fatal(err)
	}
	got := f.Project([]byte(`{"type":"m.x","sender":"@a:b","content":{"body":"hi","more":1,"a.b":[2]},"unsigned":{"x":{"z":1}}}`))
	var a, b any
	if json.Unmarshal(got, &a) != nil || json.Unmarshal([]byte(`{"type":"m.x","content":{"body":"hi","a.b":[2]}}`), &b) != nil {
		t.Fatal("no JSON")
	}
	if x, _ := json.Marshal(a); !bytes.Equal(x, mustJSON(b)) {
		t.Errorf("projected: %s", got)
	}
	var none *accountdata.Filter
	if string(none.Project([]byte(`{"a":1}`))) != `{"a":1}` {
		t.Error("no filter changed the event")
	}
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func TestBlockedInvitations(t *testing.T) {
	s := start(t)
	path := userPath(alice) + "/account_data/m.invite_permission_config"
	for _, c := range []struct {
		content string
		blocked bool
	}{
		{`{"default_action":"block"}`, true},
		{`{"default_action":"allow"}`, false},
		{`{"default_action":"block","more":1}`, true},
		{`{"default_action":["block"]}`, false},
		{`{"default_action":"block"}`, true},
	} {
		s.want(200, "{}", alice, "PUT", path, c.content)
		if got := s.data.Invites(carol, alice) == accountdata.Block; got != c.blocked || s.data.Invites(carol, bob) != accountdata.Allow {
			t.Errorf("%s: %v", c.content, got)
		}
	}
	s.open() // a restart
	if s.data.Invites(carol, alice) != accountdata.Block {
		t.Error("forgotten at restart")
	}
	if err := s.data.Put(t.Context(), alice, "", accountdata.TypeInvites, json.RawMessage(`{}`)); err != nil {
		t.Fatal(err)
	}
	if s.data.Invites(carol, alice) != accountdata.Allow {
		t.Error("still blocked")
	}
}

func TestFilteredInvitations(t *testing.T) {
	s := start(t)
	path := userPath(alice) + "/account_data/org.matrix.msc4155.invite_permission_config"
	for _, c := range []struct {
		content, sender string
		want            accountdata.Verdict
	}{
		{`{}`, "@x:one.example", accountdata.Allow},
		{`{"blocked_users":["@x:one.example"]}`, "@x:one.example", accountdata.Block},
		{`{"blocked_users":["@x:one.example"]}`, "@y:one.example", accountdata.Allow},
		{`{"blocked_users":["@x:one.example"],"enabled":false}`, "@x:one.example", accountdata.Allow},
		{`{"ignored_users":["@x?*"]}`, "@xy:one.example", accountdata.Ignore},
		{`{"ignored_users":["@x?:*"]}`, "@x:one.example", accountdata.Allow},
		{`{"blocked_servers":["one.example"]}`, "@x:one.example:8448", accountdata.Block},
		{`{"blocked_servers":["*"],"allowed_servers":["ONE.example"]}`, "@x:one.example", accountdata.Allow},
		{`{"blocked_servers":["*"],"allowed_servers":["one.example"]}`, "@x:two.example", accountdata.Block},
		{`{"blocked_servers":["*"],"allowed_servers":["one.example"],"ignored_users":["@x:*"]}`, "@x:one.example", accountdata.Ignore},
		{`{"blocked_users":["@x:*"],"ignored_users":["@x:*"],"allowed_users":["@x:*"]}`, "@x:one.example", accountdata.Allow},
		{`{"blocked_servers":["[::1]"]}`, "@x:[::1]:8448", accountdata.Block},
		{`{"allowed_users":null,"blocked_users":null}`, "@x:one.example", accountdata.Allow},
		{`{"blocked_users":["@x:one.example"],"blocked_servers":[1]}`, "@x:one.example", accountdata.Allow},
		{`{"blocked_users":"@x:one.example"}`, "@x:one.example", accountdata.Allow},
	} {
		s.want(200, "{}", alice, "PUT", path, c.content)
		if got := s.data.Invites(matrix.UserID(c.sender), alice); got != c.want {
			t.Errorf("%s, %s: %d, want %d", c.content, c.sender, got, c.want)
		}
	}
	s.want(200, "{}", alice, "PUT", path, `{"ignored_servers":["*"]}`)
	s.want(200, "{}", alice, "PUT", userPath(alice)+"/account_data/m.invite_permission_config", `{"default_action":"block"}`)
	if s.data.Invites(carol, alice) != accountdata.Block {
		t.Error("the strictest of both does not count")
	}
	s.want(200, "{}", alice, "PUT", userPath(alice)+"/account_data/m.invite_permission_config", `{}`)
	s.open() // a restart
	if s.data.Invites(carol, alice) != accountdata.Ignore {
		t.Error("forgotten at restart")
	}
}

func TestDeletion(t *testing.T) {
	s := start(t)
	const room = "!r:a.example"
	gone := unstable + "/org.matrix.msc3391/user/" + string(alice)
	for _, c := range []struct{ path, del string }{
		{userPath(alice) + "/account_data/x.y", gone + "/account_data/x.y"},
		{userPath(alice) + "/rooms/" + room + "/account_data/x.y", gone + "/rooms/" + room + "/account_data/x.y"},
	} {
		s.want(200, "{}", alice, "DELETE", c.del, "") // there is nothing yet
		for _, how := range [][2]string{{"DELETE", ""}, {"PUT", "{}"}, {"PUT", " {\n} "}} {
			s.want(200, "{}", alice, "PUT", c.path, `{"a":1}`)
			s.want(200, `{"a":1}`, alice, "GET", c.path, "")
			path := c.path
			if how[0] == "DELETE" {
				path = c.del
			}
			s.want(200, "{}", alice, how[0], path, how[1])
			s.want(404, "M_NOT_FOUND", alice, "GET", c.path, "")
		}
	}
	s.want(405, "M_BAD_JSON", alice, "DELETE", gone+"/account_data/m.push_rules", "")
	s.want(403, "M_FORBIDDEN", bob, "DELETE", gone+"/account_data/x.y", "")
	s.want(200, "{}", alice, "PUT", userPath(alice)+"/account_data/org.matrix.msc3890.local_notification_settings.DEV", `{"is_silenced":true}`)
	if err := s.data.DeleteDevice(t.Context(), alice, "DEV"); err != nil {
		t.Fatal(err)
	}
	s.want(404, "M_NOT_FOUND", alice, "GET", userPath(alice)+"/account_data/org.matrix.msc3890.local_notification_settings.DEV", "")
}
