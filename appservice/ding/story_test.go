package ding_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	log "github.com/sirupsen/logrus"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/ding"
	"github.com/carillon-chat/carillon/appservice/lang"
	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/appservice/readlist"
	"github.com/carillon-chat/carillon/appservice/schemas"
	"github.com/carillon-chat/carillon/bridges/bridge"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

func TestMain(m *testing.M) {
	log.SetLevel(log.ErrorLevel)
	os.Exit(m.Run())
}

const bot = "@carillon:c.cn"

// event is one that the bot has sent.
type event struct {
	id, room, typ, txn string
	content            map[string]any
	raw                json.RawMessage
}

func (e *event) body() string {
	b, _ := e.content["body"].(string)
	return b
}

func (e *event) edits() string {
	rel, _ := e.content["m.relates_to"].(map[string]any)
	if rel["rel_type"] != "m.replace" {
		return ""
	}
	s, _ := rel["event_id"].(string)
	return s
}

// world is the homeserver of a story, which outlives restarts of the service.
type world struct {
	mu     sync.Mutex
	t      testing.TB
	sent   []*event
	byTxn  map[string]*event
	set    *schemas.Set
	unread []string
	read   int
	fail   func(room, txn string) error // before an event is taken
	cut    func(txn string) bool        // after an event is taken: the answer is lost
	held   chan struct{}                // sends wait while not nil
	gone   map[string]bool              // rooms whose homeserver refuses
}

func (w *world) BotID() id.UserID { return bot }

func (w *world) DingRoom(_ context.Context, person string) (id.RoomID, error) {
	return id.RoomID("!" + person), nil
}

func (w *world) DingPerson(room id.RoomID) (string, bool) {
	p := strings.TrimPrefix(string(room), "!")
	return p, p != "hall" && p != string(room)
}

func (w *world) SendEvent(ctx context.Context, room id.RoomID, _ id.UserID, typ string, content any, txn string) (id.EventID, error) {
	w.mu.Lock()
	held := w.held
	w.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if e := w.byTxn[txn]; e != nil {
		return id.EventID(e.id), nil
	}
	if w.fail != nil {
		if err := w.fail(string(room), txn); err != nil {
			return "", err
		}
	}
	e := &event{id: fmt.Sprintf("$s%d", len(w.sent)), room: string(room), typ: typ, txn: txn, raw: content.(json.RawMessage)}
	if err := json.Unmarshal(e.raw, &e.content); err != nil {
		w.t.Errorf("%s: %v", e.raw, err)
	}
	w.check(e)
	w.sent = append(w.sent, e)
	w.byTxn[txn] = e
	if w.cut != nil && w.cut(txn) {
		return "", errors.New("connection cut")
	}
	return id.EventID(e.id), nil
}

// check holds everything that is sent against the schemas.
func (w *world) check(e *event) {
	switch e.typ {
	case "im.carillon.ding", "im.carillon.ding.confirm":
		if err := w.set.Validate(e.typ, e.raw); err != nil {
			w.t.Errorf("%s %s: %v", e.typ, e.raw, err)
		}
	case "m.room.message":
		if c, ok := e.content["im.carillon.ding.card"]; ok {
			b, _ := json.Marshal(c)
			if err := w.set.Validate("im.carillon.ding.card", b); err != nil {
				w.t.Errorf("card %s: %v", b, err)
			}
		}
	}
}

func (w *world) Event(_ context.Context, _ id.UserID, room id.RoomID, ev id.EventID) (*mxclient.Event, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.sent {
		if e.id == string(ev) && e.room == string(room) {
			return &mxclient.Event{ID: e.id, Room: e.room, Sender: bot, Type: e.typ, Content: e.raw}, nil
		}
	}
	return nil, mautrix.RespError{ErrCode: "M_NOT_FOUND", StatusCode: 404}
}

func (w *world) Unread(_ context.Context, v readlist.Viewer, room, ev string) (*readlist.Missing, error) {
	if ev == "$secret" && !v.Admin {
		return nil, matrix.Forbidden("not yours")
	}
	if room != "!hall" {
		return nil, matrix.NotFound("no such message")
	}
	return &readlist.Missing{Users: w.unread, Read: w.read}, nil
}

// find returns what was sent to a room, of a type, whose body contains text.
func (w *world) find(room, typ, text string) (out []*event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.sent {
		if (room == "" || e.room == room) && e.typ == typ && strings.Contains(e.body(), text) {
			out = append(out, e)
		}
	}
	return out
}

// story is a company with its DINGs.
type story struct {
	t    testing.TB
	w    *world
	dsn  string
	opts ding.Options
	db   *sqldb.DB
	org  *org.Store
	*ding.Dings
	outbox *bridge.Outbox
	stop   func()
	n      int

	clock sync.Mutex
	ahead time.Duration
}

func (s *story) now() time.Time {
	s.clock.Lock()
	defer s.clock.Unlock()
	return time.Now().Add(s.ahead)
}

func (s *story) wait(d time.Duration) {
	s.clock.Lock()
	defer s.clock.Unlock()
	s.ahead += d
}

// company: chief administers; mei manages 技术部, in which are zhang and, below in 前端组, li, who is also in 市场部
// with wang. zhao has left, qian begins later, sun is suspended, two are called 张伟.
func company() *org.Import {
	post := func(unit string) []org.Post { return []org.Post{{Unit: unit, Main: true}} }
	return &org.Import{
		HasUnits: true, HasPeople: true,
		Units: []*org.Unit{
			{ID: "hq", Name: "总部"},
			{ID: "tech", ParentID: "hq", Name: "技术部", Managers: []string{"mei"}},
			{ID: "web", ParentID: "tech", Name: "前端组"},
			{ID: "sales", ParentID: "hq", Name: "市场部"},
		},
		People: []*org.Person{
			{ID: "chief", Name: "总管", Posts: post("hq"), Admin: true},
			{ID: "mei", Name: "梅主管", Posts: post("tech")},
			{ID: "zhang", Name: "张三", Posts: post("tech")},
			{ID: "li", Name: "李四", Posts: []org.Post{{Unit: "web", Main: true}, {Unit: "sales"}}},
			{ID: "wang", Name: "王五", Posts: post("sales")},
			{ID: "zhao", Name: "赵六", Posts: post("sales"), Left: "2020-01-01", Status: org.StatusLeft},
			{ID: "qian", Name: "钱七", Posts: post("sales"), Hired: "2099-01-01"},
			{ID: "sun", Name: "孙八", Posts: post("sales"), Status: org.StatusSuspended},
			{ID: "w1", Name: "张伟", Posts: post("sales")},
			{ID: "w2", Name: "张伟", Posts: post("hq")},
		},
	}
}

func tell(t testing.TB) *story {
	t.Helper()
	return tellWith(t, company(), ding.Options{})
}

func tellWith(t testing.TB, imp *org.Import, opts ding.Options) *story {
	t.Helper()
	set, err := schemas.Load()
	if err != nil {
		t.Fatal(err)
	}
	s := &story{t: t, dsn: sqldbtest.DSN(t), opts: opts, w: &world{t: t, byTxn: map[string]*event{}, set: set, gone: map[string]bool{}}}
	s.start()
	s.apply(imp)
	return s
}

func (s *story) apply(imp *org.Import) {
	s.t.Helper()
	plan, problems := s.org.PlanWith(imp, org.PlanOptions{Force: true})
	if plan == nil {
		s.t.Fatal(problems)
	}
	if _, err := s.org.Apply(s.t.Context(), plan, "test"); err != nil {
		s.t.Fatal(err)
	}
}

// open builds the service on its database without running it.
func (s *story) open() {
	s.t.Helper()
	ctx := s.t.Context()
	var err error
	must := func() {
		if err != nil {
			s.t.Fatal(err)
		}
	}
	for range 200 { // a PostgreSQL server takes a moment to notice that its client has gone
		if s.db, err = sqldb.Open(s.dsn); !errors.Is(err, sqldb.ErrInUse) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	must()
	s.org, err = org.NewStore(ctx, s.db)
	must()
	s.outbox, err = bridge.NewOutbox(ctx, s.db, s.now, bridge.NewApp(s.w, s.w, bridge.Bounds{MinWait: 5 * time.Millisecond, MaxWait: 20 * time.Millisecond}))
	must()
	book, err := lang.New(ctx, s.db, "zh")
	if err != nil {
		s.t.Fatal(err)
	}
	o := s.opts
	o.Tree, o.Outbox, o.Matrix, o.Rooms, o.Unread, o.Lang, o.ServerName, o.Now = s.org.Tree, s.outbox, s.w, s.w, s.w, book, "c.cn", s.now
	s.Dings, err = ding.New(ctx, s.db, o)
	must()
}

func (s *story) start() {
	s.t.Helper()
	s.open()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.outbox.Run(ctx) })
	wg.Go(func() { s.Run(ctx) })
	var once sync.Once
	db := s.db
	s.stop = func() { once.Do(func() { cancel(); wg.Wait(); db.Close() }) }
	s.t.Cleanup(s.stop)
}

// restart ends the service as a crash does, as far as its memory goes, and starts it again.
func (s *story) restart() {
	s.t.Helper()
	s.stop()
	s.start()
}

func user(person string) string { return "@" + person + ":c.cn" }

func as(person string) ding.Caller { return ding.Caller{User: user(person)} }

func to(persons ...string) ding.Receivers { return ding.Receivers{Persons: persons} }

func (s *story) ding(sender, body string, r ding.Receivers) string {
	s.t.Helper()
	id, _, err := s.Create(s.t.Context(), as(sender), ding.Request{Body: body, Receivers: r})
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// event gives the service an event of a person.
func (s *story) event(typ, person, room, content string) *mxclient.Event {
	s.t.Helper()
	s.n++
	ev := &mxclient.Event{
		ID: fmt.Sprintf("$u%d-%p", s.n, s.Dings), Room: room, Sender: user(person), Type: typ, TS: s.now().UnixMilli(), Content: json.RawMessage(content),
	}
	s.take(ev)
	return ev
}

func (s *story) take(evs ...*mxclient.Event) {
	s.t.Helper()
	if err := s.OnEvents(s.t.Context(), evs); err != nil {
		s.t.Fatal(err)
	}
}

func (s *story) says(person, room, text, replyTo string) *mxclient.Event {
	s.t.Helper()
	c := map[string]any{"msgtype": "m.text", "body": text}
	if replyTo != "" {
		c["m.relates_to"] = map[string]any{"m.in_reply_to": map[string]any{"event_id": replyTo}}
	}
	b, _ := json.Marshal(c)
	return s.event("m.room.message", person, room, string(b))
}

func (s *story) reacts(person, event, key string) *mxclient.Event {
	s.t.Helper()
	return s.event("m.reaction", person, "!"+person, `{"m.relates_to":{"rel_type":"m.annotation","event_id":"`+event+`","key":"`+key+`"}}`)
}

// eventually waits for what the background does.
func (s *story) eventually(what string, ok func() bool) {
	s.t.Helper()
	for range 6000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	for _, e := range s.w.sent {
		s.t.Logf("%s %s %s", e.room, e.typ, e.body())
	}
	s.t.Fatalf("it never happened that %s", what)
}

// notice waits for the message of a DING in a person's room.
func (s *story) notice(person, text string) *event {
	s.t.Helper()
	var e *event
	s.eventually(person+" has received "+text, func() bool {
		for _, f := range s.w.find("!"+person, "m.room.message", text) {
			if f.content["im.carillon.ding"] != nil && f.edits() == "" {
				e = f
				return true
			}
		}
		return false
	})
	return e
}

// told waits for words of the bot to a person.
func (s *story) told(person, text string) {
	s.t.Helper()
	s.eventually("the bot told "+person+" "+text, func() bool { return len(s.w.find("!"+person, "m.room.message", text)) > 0 })
}

// card is what the last edit of the sender's card shows.
func (s *story) card(person string) string {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	last := ""
	for _, e := range s.w.sent {
		if e.room == "!"+person && e.content["im.carillon.ding.card"] != nil {
			last = strings.TrimPrefix(e.body(), "* ")
		}
	}
	return last
}

func (s *story) cardShows(person string, parts ...string) {
	s.t.Helper()
	s.eventually(fmt.Sprintf("the card of %s shows %q", person, parts), func() bool {
		c := s.card(person)
		for _, p := range parts {
			if !strings.Contains(c, p) {
				return false
			}
		}
		return true
	})
}

func (s *story) code(err error, code string) {
	s.t.Helper()
	if !matrix.IsCode(err, code) {
		s.t.Errorf("%v, want %s", err, code)
	}
}
