package readlist_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	log "github.com/sirupsen/logrus"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/readlist"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

const (
	room = "!room"
	bot  = "@carillon:c.cn"
)

// company is the people and the homeserver of a test.
type company struct {
	mu      sync.Mutex
	people  map[string]readlist.Person
	members []string
	asked   int
	levels  string
	said    []string
	down    bool
}

func (c *company) PersonOf(user string) (readlist.Person, bool) {
	p, ok := c.people[user]
	return p, ok
}

func (c *company) BotID() id.UserID { return bot }

func (c *company) JoinedMembers(_ context.Context, as id.UserID, _ id.RoomID) (map[id.UserID]mxclient.Member, error) {
	if c.down {
		return nil, fmt.Errorf("no route to host")
	}
	if as == "" {
		return nil, mautrix.RespError{ErrCode: "M_FORBIDDEN", StatusCode: 403} // the bot is not in people's own rooms
	}
	c.asked++
	out := map[id.UserID]mxclient.Member{}
	for _, m := range c.members {
		out[id.UserID(m)] = mxclient.Member{}
	}
	return out, nil
}

func (c *company) State(_ context.Context, _ id.UserID, _ id.RoomID, _, _ string, out any) error {
	if c.levels == "" {
		return mautrix.RespError{ErrCode: "M_NOT_FOUND", StatusCode: 404}
	}
	return json.Unmarshal([]byte(c.levels), out)
}

func (c *company) StateAll(context.Context, id.UserID, id.RoomID) ([]*mxclient.Event, error) {
	key := ""
	return []*mxclient.Event{{Type: "m.room.create", StateKey: &key, Sender: "@founder:c.cn", Content: []byte(`{}`)}}, nil
}

func (c *company) DingRoom(_ context.Context, person string) (id.RoomID, error) {
	return id.RoomID("!ding-" + person), nil
}

func (c *company) SendEvent(_ context.Context, room id.RoomID, _ id.UserID, _ string, content any, _ string) (id.EventID, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var m struct{ Body string }
	if err := json.Unmarshal(content.(json.RawMessage), &m); err != nil {
		return "", err
	}
	c.said = append(c.said, string(room)+" "+m.Body)
	return "$said", nil
}

// story drives read lists with the events of one room.
type story struct {
	t    testing.TB
	c    *company
	db   *sqldb.DB
	dsn  string
	opts readlist.Options
	*readlist.Lists
	now time.Time
	n   int
}

func TestMain(m *testing.M) {
	log.SetLevel(log.WarnLevel)
	os.Exit(m.Run())
}

func user(name string) string { return "@" + name + ":c.cn" }

func tell(t testing.TB, names ...string) *story {
	t.Helper()
	s := &story{t: t, c: &company{people: map[string]readlist.Person{}}, dsn: sqldbtest.DSN(t), now: time.UnixMilli(1_700_000_000_000)}
	s.opts = readlist.Options{Roster: s.c, Homeserver: s.c, Bots: []string{user("robot")}, Now: func() time.Time { return s.now }}
	s.open()
	s.state("m.room.create", user("founder"), "", `{"room_version":"12"}`)
	for _, n := range append([]string{"founder", "robot"}, names...) {
		s.c.people[user(n)] = readlist.Person{ID: "p-" + n, Name: strings.ToUpper(n), Unit: "研发部"}
		s.member(n, "join", "")
	}
	return s
}

func (s *story) open() {
	s.t.Helper()
	db, err := sqldb.Open(s.dsn)
	for n := 0; errors.Is(err, sqldb.ErrInUse) && n < 200; n++ { // a PostgreSQL server takes a moment to notice that its client has gone
		time.Sleep(10 * time.Millisecond)
		db, err = sqldb.Open(s.dsn)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.db = db
	s.t.Cleanup(func() { db.Close() })
	if s.Lists, err = readlist.New(s.t.Context(), db, s.opts); err != nil {
		s.t.Fatal(err)
	}
}

// restart forgets everything that is not in the database.
func (s *story) restart() {
	s.db.Close()
	s.open()
}

func (s *story) event(typ, sender string, stateKey *string, content, unsigned string) string {
	s.t.Helper()
	s.n++
	s.now = s.now.Add(time.Second)
	ev := &mxclient.Event{
		ID: fmt.Sprintf("$e%d", s.n), Room: room, Sender: sender, Type: typ, StateKey: stateKey, TS: s.now.UnixMilli(),
		Content: json.RawMessage(content), Unsigned: json.RawMessage(unsigned),
	}
	if err := s.OnEvent(s.t.Context(), ev); err != nil {
		s.t.Fatal(err)
	}
	return ev.ID
}

func (s *story) state(typ, sender, key, content string) string {
	s.t.Helper()
	return s.event(typ, sender, &key, content, "")
}

func (s *story) member(name, membership, before string) string {
	s.t.Helper()
	key, unsigned := user(name), ""
	if before != "" {
		unsigned = `{"prev_content":{"membership":"` + before + `"}}`
	}
	return s.event("m.room.member", key, &key, `{"membership":"`+membership+`"}`, unsigned)
}

func (s *story) says(name, relation string) string {
	s.t.Helper()
	content := `{"msgtype":"m.text","body":"x"}`
	if relation != "" {
		content = `{"msgtype":"m.text","body":"x","m.relates_to":` + relation + `}`
	}
	return s.event("m.room.message", user(name), nil, content, "")
}

func (s *story) reads(name, event, thread string) {
	s.t.Helper()
	s.now = s.now.Add(time.Second)
	if err := s.OnReceipt(s.t.Context(), room, user(name), event, thread, s.now.UnixMilli(), "m.read"); err != nil {
		s.t.Fatal(err)
	}
}

func (s *story) list(event, state string) (*readlist.Page, string) {
	s.t.Helper()
	p, err := s.Readers(s.t.Context(), readlist.Viewer{User: user("boss"), Admin: true}, readlist.Query{Room: room, Event: event, State: state})
	if err != nil {
		s.t.Fatal(err)
	}
	var names []string
	for _, r := range p.Readers {
		names = append(names, strings.TrimSuffix(strings.TrimPrefix(r.User, "@"), ":c.cn"))
	}
	return p, strings.Join(names, " ")
}

func (s *story) want(event, read, unread, left string) {
	s.t.Helper()
	for state, want := range map[string]string{readlist.Read: read, readlist.Unread: unread, readlist.Left: left} {
		p, got := s.list(event, state)
		if got != want {
			s.t.Errorf("%s of %s: %q, want %q", state, event, got, want)
		}
		total := map[string]int{readlist.Read: p.TotalRead, readlist.Unread: p.TotalUnread, readlist.Left: p.TotalLeft}[state]
		if n := len(strings.Fields(want)); total != n {
			s.t.Errorf("%s of %s counts %d, want %d", state, event, total, n)
		}
	}
}

func TestReadUnreadLeft(t *testing.T) {
	s := tell(t, "ann", "bob", "eve", "kim")
	m := s.says("ann", "")
	s.want(m, "", "founder bob eve kim", "")
	s.member("late", "join", "")
	m2 := s.says("ann", "")
	s.reads("bob", m2, "")
	s.reads("late", m2, "")
	s.reads("robot", m2, "")
	s.member("eve", "leave", "join")
	s.reads("kim", m, "")
	s.member("kim", "leave", "join") // has read before leaving
	s.want(m, "bob kim", "founder", "eve")
	s.want(m2, "bob late", "founder", "eve kim")
	s.member("eve", "join", "leave") // back, and the message can be read again
	s.want(m, "bob kim", "founder eve", "")
	m3 := s.says("bob", "")
	s.want(m3, "", "founder ann eve late", "")
	s.c.people[user("founder")] = readlist.Person{ID: "p-founder", Name: "F", Gone: true}
	s.want(m3, "", "ann eve late", "founder")
	s.restart()
	s.want(m, "bob kim", "eve", "founder")
	s.want(m2, "bob late", "eve", "founder kim")
}

func TestTimesOfReading(t *testing.T) {
	s := tell(t, "ann", "bob")
	m := s.says("ann", "")
	sent := s.now.UnixMilli()
	for _, c := range []struct{ ts, want int64 }{
		{sent + 5000, sent + 5000}, {sent - 9000, sent + 5000}, {sent + 1<<40, sent + 5000},
	} { // the first reading stands, whatever comes after
		s.now = time.UnixMilli(sent + 6000)
		if err := s.OnReceipt(t.Context(), room, user("bob"), m, "", c.ts, "m.read"); err != nil {
			t.Fatal(err)
		}
		if p, _ := s.list(m, "read"); p.Readers[0].ReadAt != c.want || p.Readers[0].Implied {
			t.Errorf("read at %d, want %d", p.Readers[0].ReadAt-sent, c.want-sent)
		}
	}
	for _, c := range []struct{ ts, want int64 }{{-1 << 50, 0}, {1 << 60, 500}} { // clocks that lie
		m := s.says("ann", "")
		sent := s.now.UnixMilli()
		s.now = s.now.Add(500 * time.Millisecond)
		if err := s.OnReceipt(t.Context(), room, user("bob"), m, "", c.ts, "m.read"); err != nil {
			t.Fatal(err)
		}
		if p, _ := s.list(m, "read"); p.Readers[0].ReadAt != sent+c.want {
			t.Errorf("a receipt of %d was read at %+d ms", c.ts, p.Readers[0].ReadAt-sent)
		}
	}
	m = s.says("ann", "")
	s.says("bob", "")
	if p, _ := s.list(m, "read"); p.TotalRead != 1 || !p.Readers[0].Implied || p.Readers[0].ReadAt != s.now.UnixMilli() {
		t.Errorf("writing after a message implies reading it: %+v", p)
	}
	s.reads("bob", m, "")
	s.restart()
	if p, _ := s.list(m, "read"); !p.Readers[0].Implied {
		t.Error("a receipt behind the mark changed something")
	}
}

func TestPrivateReceipts(t *testing.T) {
	for _, policy := range []bool{false, true} {
		s := tell(t, "ann", "bob")
		s.opts.CountPrivate = policy
		s.restart()
		m := s.says("ann", "")
		if err := s.OnReceipt(t.Context(), room, user("bob"), m, "", s.now.UnixMilli(), "m.read.private"); err != nil {
			t.Fatal(err)
		}
		if p, _ := s.list(m, "read"); (p.TotalRead == 1) != policy {
			t.Errorf("policy %v: %d read", policy, p.TotalRead)
		}
	}
}

func TestThreads(t *testing.T) {
	s := tell(t, "ann", "bob", "eve", "kim")
	root := s.says("ann", "")
	in := `{"rel_type":"m.thread","event_id":"` + root + `"}`
	inThread := s.says("ann", in)
	after := s.says("ann", "")
	s.reads("bob", after, "main")
	s.reads("eve", inThread, root)
	s.reads("kim", after, "")
	s.reads("founder", inThread, "$unknown-thread")
	s.want(root, "bob kim", "founder eve", "")
	s.want(inThread, "eve kim", "founder bob", "")
	s.want(after, "bob kim", "founder eve", "")
	s.says("bob", in) // implies the thread
	s.says("eve", "") // implies the main timeline
	s.restart()
	s.want(inThread, "bob eve kim", "founder", "")
	s.want(after, "bob eve kim", "founder", "")
}

func TestEditsAndReactions(t *testing.T) {
	s := tell(t, "ann", "bob", "eve")
	m := s.says("ann", "")
	s.reads("bob", m, "")
	edit := s.says("ann", `{"rel_type":"m.replace","event_id":"`+m+`"}`)
	reaction := s.event("m.reaction", user("eve"), nil, `{"m.relates_to":{"rel_type":"m.annotation","event_id":"`+m+`","key":"❤"}}`, "")
	s.want(m, "bob", "founder eve", "") // a reaction does not imply reading
	s.says("eve", `{"rel_type":"m.replace","event_id":"`+m+`"}`)
	s.reads("founder", edit, "")
	s.restart()
	p, _ := s.list(m, "read")
	if p.EditedAt == 0 || len(p.Readers) != 2 {
		t.Fatalf("%+v", p)
	}
	for _, r := range p.Readers {
		if want := r.User == user("bob"); r.BeforeEdit != want {
			t.Errorf("%s before the edit: %v", r.User, r.BeforeEdit)
		}
	}
	q := readlist.Query{Room: room, Event: m, FromEdit: true}
	if p, err := s.Readers(t.Context(), readlist.Viewer{User: user("ann")}, q); err != nil || p.TotalRead != 1 || p.Readers[0].User != user("founder") {
		t.Errorf("counted from the edit: %+v %v", p, err)
	}
	for _, id := range []string{edit, reaction, "$nothing", "$e1"} {
		q := readlist.Query{Room: room, Event: id}
		if _, err := s.Readers(t.Context(), readlist.Viewer{Admin: true}, q); !matrix.IsCode(err, "M_NOT_FOUND") {
			t.Errorf("%s is no message: %v", id, err)
		}
	}
}

func TestRedactedIsFrozen(t *testing.T) {
	s := tell(t, "ann", "bob", "eve", "kim")
	m := s.says("ann", "")
	s.reads("bob", m, "")
	s.member("kim", "leave", "join")
	if err := s.OnEvent(t.Context(), &mxclient.Event{ID: "$r", Room: room, Sender: user("ann"), Type: "m.room.redaction", Redacts: m, Content: []byte(`{}`)}); err != nil {
		t.Fatal(err)
	}
	s.reads("eve", s.says("ann", ""), "")
	s.member("founder", "leave", "join")
	s.want(m, "bob", "founder eve", "kim")
	s.restart()
	s.want(m, "bob", "founder eve", "kim")
	_, err := s.Readers(t.Context(), readlist.Viewer{User: user("ann")}, readlist.Query{Room: room, Event: m})
	if !matrix.IsCode(err, "M_FORBIDDEN") {
		t.Errorf("the list of a redacted message is for auditors: %v", err)
	}
}

func TestReceiptBeforeItsEvent(t *testing.T) {
	s := tell(t, "ann", "bob", "eve")
	m := s.says("ann", "")
	next := fmt.Sprintf("$e%d", s.n+1)
	s.reads("bob", next, "")
	s.reads("stranger", next, "")
	s.want(m, "", "founder bob eve", "")
	s.restart()
	if got := s.says("ann", ""); got != next {
		t.Fatal(got)
	}
	s.want(m, "bob", "founder eve", "")
	s.want(next, "bob", "founder eve", "")
}

func TestRepeatedTransaction(t *testing.T) {
	s := tell(t, "ann", "bob")
	key := user("bob")
	evs := []*mxclient.Event{
		{ID: "$a", Room: room, Sender: user("ann"), Type: "m.room.message", Content: []byte(`{}`)},
		{ID: "$b", Room: room, Sender: key, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"leave"}`)},
		{ID: "$a", Room: room, Sender: user("ann"), Type: "m.room.message", Content: []byte(`{}`)},
		{ID: "$odd", Room: room, Sender: user("ann"), Type: "m.room.message", Content: []byte(`[]`)},
		{}, // nothing
	}
	for range 3 {
		if err := s.OnEvents(t.Context(), evs); err != nil {
			t.Fatal(err)
		}
		s.restart()
	}
	s.want("$a", "", "founder", "bob")
	s.want("$odd", "", "founder", "")
}

// A room that is older than the service: its members are asked for once, and may be ahead of the events to come.
func TestFirstSight(t *testing.T) {
	s := tell(t)
	s.c.members = []string{user("ann"), user("bob"), user("soon"), bot}
	s.c.down = true
	say := func(id string, typ, sender, key, content, unsigned string) error {
		ev := &mxclient.Event{ID: id, Room: "!old", Sender: sender, Type: typ, Content: []byte(content), Unsigned: []byte(unsigned)}
		if key != "" {
			ev.StateKey = &key
		}
		return s.OnEvent(t.Context(), ev)
	}
	if err := say("$1", "m.room.message", user("ann"), "", `{}`, ""); err == nil {
		t.Fatal("the transaction must be tried again while the members are unknown")
	}
	s.c.down = false
	for _, err := range []error{
		say("$1", "m.room.message", user("ann"), "", `{}`, ""),
		say("$2", "m.room.member", user("gone"), user("gone"), `{"membership":"leave"}`, `{"prev_content":{"membership":"join"}}`),
		say("$3", "m.room.member", user("bob"), user("bob"), `{"membership":"join"}`, `{"prev_content":{"membership":"join"}}`),
		say("$4", "m.room.member", user("soon"), user("soon"), `{"membership":"join"}`, `{"prev_content":{"membership":"invite"}}`),
		say("$5", "m.room.message", user("ann"), "", `{}`, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s.restart()
	for event, want := range map[string]string{"$1": "@bob:c.cn ", "$5": "@bob:c.cn @soon:c.cn "} {
		p, err := s.Readers(t.Context(), readlist.Viewer{User: user("ann")}, readlist.Query{Room: "!old", Event: event, State: "unread"})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, r := range p.Readers {
			got += r.User + " "
		}
		if got != want {
			t.Errorf("%s is unread by %s, want %s", event, got, want)
		}
		if left := map[string]int{"$1": 1, "$5": 0}[event]; p.TotalLeft != left {
			t.Errorf("%s: %d left, want %d", event, p.TotalLeft, left)
		}
	}
	if s.c.asked != 1 {
		t.Errorf("the members were asked for %d times", s.c.asked)
	}
}

func TestOldTimesComeFromTheDatabase(t *testing.T) {
	s := tell(t, "ann", "bob")
	m := s.says("ann", "")
	s.reads("bob", m, "")
	first := s.now.UnixMilli()
	for range 200 {
		s.reads("bob", s.says("ann", ""), "main")
	}
	for range 2 {
		if p, _ := s.list(m, "read"); p.Readers[0].ReadAt != first {
			t.Errorf("read at %d, want %d", p.Readers[0].ReadAt, first)
		}
		s.restart()
	}
	s.now = s.now.Add(91 * 24 * time.Hour)
	if err := s.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.restart()
	if p, _ := s.list(m, "read"); p.TotalRead != 1 || p.Readers[0].ReadAt != 0 {
		t.Errorf("read stays read when its time is forgotten: %+v", p)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	s := tell(t, "ann", "bob")
	s.opts.Budget = 1 // every other room is thrown out at once
	s.restart()
	m := s.says("ann", "")
	for i := range 50 {
		key := user("bob")
		for _, ev := range []*mxclient.Event{
			{ID: fmt.Sprintf("$c%d", i), Room: fmt.Sprintf("!r%d", i), Sender: key, Type: "m.room.create", StateKey: new(string), Content: []byte(`{}`)},
			{ID: fmt.Sprintf("$j%d", i), Room: fmt.Sprintf("!r%d", i), Sender: key, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"join"}`)},
		} {
			if err := s.OnEvent(t.Context(), ev); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.reads("bob", m, "")
	s.want(m, "bob", "founder", "")
}

// caller authenticates tests by the user ID in the token.
type caller struct{}

func (caller) Authenticate(r *http.Request) (*httpapi.Caller, error) {
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if token == "" {
		return nil, matrix.MissingToken()
	}
	return &httpapi.Caller{User: matrix.UserID(token), Admin: token == user("chief")}, nil
}

func TestWhoMaySee(t *testing.T) {
	s := tell(t, "ann", "bob", "eve", "manager", "left")
	s.opts.Auditors = []string{user("auditor")}
	s.restart()
	s.c.levels = `{"users":{"@manager:c.cn":50},"users_default":0}`
	m := s.says("ann", "")
	s.member("left", "leave", "join")
	api := httpapi.New(httpapi.Options{Authenticator: caller{}})
	api.Add(s.Routes()...)
	path := "/_carillon/v1/messages/" + url.PathEscape(room) + "/" + url.PathEscape(m) + "/readers"
	get := func(who, query string) (int, map[string]any) {
		req := httptest.NewRequest("GET", path+query, nil)
		if who != "" {
			req.Header.Set("Authorization", "Bearer "+user(who))
		}
		w := httptest.NewRecorder()
		api.ServeHTTP(w, req)
		var body map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
			t.Fatal(err)
		}
		return w.Code, body
	}
	for _, c := range []struct {
		who           string
		names, counts int
	}{
		{"ann", 200, 200},
		{"manager", 200, 200},
		{"founder", 200, 200},
		{"auditor", 200, 200},
		{"chief", 200, 200},
		{"bob", 403, 200},
		{"left", 404, 404},
		{"stranger", 404, 404},
		{"", 401, 401},
	} {
		if code, _ := get(c.who, ""); code != c.names {
			t.Errorf("%s gets %d for names, want %d", c.who, code, c.names)
		}
		if code, body := get(c.who, "?counts=true"); code != c.counts || code == 200 && (body["total_unread"] != 4.0 || len(body["readers"].([]any)) != 0) {
			t.Errorf("%s gets %d for counts, want %d: %v", c.who, code, c.counts, body)
		}
	}
	for query, code := range map[string]int{
		"?state=seen": 400, "?limit=0": 400, "?limit=x": 400, "?limit=100000": 200, "?cursor=x": 400, "?cursor=-1": 400, "?counts=maybe": 400,
		"?from_edit=2": 400, "?state=unread&cursor=99999": 200,
	} {
		if got, body := get("ann", query); got != code {
			t.Errorf("%s gives %d, want %d: %v", query, got, code, body)
		}
	}
	s.c.levels = `{"users":{"@bob:c.cn":60}}`
	s.state("m.room.power_levels", user("founder"), "", s.c.levels)
	if code, body := get("bob", "?state=unread&limit=2"); code != 200 || body["next_cursor"] == nil ||
		body["readers"].([]any)[0].(map[string]any)["person"].(map[string]any)["name"] != "FOUNDER" {
		t.Errorf("a new manager gets %d %v", code, body)
	}
}

func TestConversationOfTwo(t *testing.T) {
	s := tell(t)
	for i, ev := range []string{"m.room.create", "ann", "bob", bot} {
		key, typ := "", ev
		if i > 0 {
			if key, typ = user(ev), "m.room.member"; i == 3 {
				key = bot
			}
		}
		err := s.OnEvent(t.Context(), &mxclient.Event{ID: "$t" + ev, Room: "!two", Sender: user("ann"), Type: typ, StateKey: &key, Content: []byte(`{"membership":"join"}`)})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.OnEvent(t.Context(), &mxclient.Event{ID: "$hi", Room: "!two", Sender: user("ann"), Type: "m.room.encrypted", Content: []byte(`{}`)}); err != nil {
		t.Fatal(err)
	}
	if p, err := s.Readers(t.Context(), readlist.Viewer{User: user("bob")}, readlist.Query{Room: "!two", Event: "$hi"}); err != nil || p.TotalUnread != 1 {
		t.Errorf("both sides may see: %v %v", p, err)
	}
}
