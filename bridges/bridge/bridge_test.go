package bridge_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/bridges/bridge"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

// post is a channel whose behaviour a test decides.
type post struct {
	mu      sync.Mutex
	answer  func(it *bridge.Item, try int) (bridge.Receipt, error)
	tries   map[string]int
	bounds  bridge.Bounds
	now     atomic.Int32
	highest atomic.Int32
}

func (p *post) Name() string          { return "post" }
func (p *post) Bounds() bridge.Bounds { return p.bounds }

func (p *post) Send(_ context.Context, it *bridge.Item) (bridge.Receipt, error) {
	n := p.now.Add(1)
	defer p.now.Add(-1)
	for h := p.highest.Load(); n > h && !p.highest.CompareAndSwap(h, n); h = p.highest.Load() {
	}
	p.mu.Lock()
	p.tries[it.Key]++
	try := p.tries[it.Key]
	answer := p.answer
	p.mu.Unlock()
	if answer == nil {
		return bridge.Receipt{ProviderID: "p-" + it.Key}, nil
	}
	return answer(it, try)
}

func (p *post) count(key string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tries[key]
}

func fast() bridge.Bounds {
	return bridge.Bounds{Concurrency: 4, Attempts: 4, MinWait: time.Millisecond, MaxWait: 5 * time.Millisecond}
}

type fixture struct {
	*bridge.Outbox
	results chan bridge.Item
	stop    func()
}

func start(t testing.TB, db *sqldb.DB, ch ...bridge.Channel) *fixture {
	t.Helper()
	o, err := bridge.NewOutbox(t.Context(), db, nil, ch...)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{Outbox: o, results: make(chan bridge.Item, 20000)}
	o.OnResult(func(_ context.Context, items []bridge.Item) {
		for _, it := range items {
			f.results <- it
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); o.Run(ctx) }()
	f.stop = func() { cancel(); <-done }
	t.Cleanup(f.stop)
	return f
}

func (f *fixture) next(t *testing.T) bridge.Item {
	t.Helper()
	select {
	case it := <-f.results:
		return it
	case <-time.After(10 * time.Second):
		t.Fatal("no result")
		return bridge.Item{}
	}
}

func item(key string) bridge.New {
	return bridge.New{Key: key, Channel: "post", Group: "g", Payload: json.RawMessage(`{"a":1}`)}
}

func TestSentOnce(t *testing.T) {
	p := &post{tries: map[string]int{}, bounds: fast()}
	f := start(t, sqldbtest.Open(t), p)
	for range 3 {
		if err := f.Add(t.Context(), item("one")); err != nil {
			t.Fatal(err)
		}
	}
	it := f.next(t)
	if it.State != bridge.Sent || it.ProviderID != "p-one" || it.Attempts != 1 {
		t.Fatalf("%+v", it)
	}
	kept, err := f.ByKey(t.Context(), "one")
	if err != nil || kept.State != bridge.Sent || string(kept.Payload) != `{"a":1}` {
		t.Fatalf("%+v %v", kept, err)
	}
	if p.count("one") != 1 {
		t.Fatalf("sent %d times", p.count("one"))
	}
}

func TestOutcomes(t *testing.T) {
	p := &post{tries: map[string]int{}, bounds: fast()}
	p.answer = func(it *bridge.Item, try int) (bridge.Receipt, error) {
		switch it.Key {
		case "third":
			if try < 3 {
				return bridge.Receipt{}, errors.New("line is busy")
			}
		case "never":
			return bridge.Receipt{}, errors.New("line is busy")
		case "refused":
			return bridge.Receipt{}, fmt.Errorf("told: %w", bridge.Permanent(errors.New("no such number")))
		case "patient":
			if try < 9 { // more often than Attempts
				return bridge.Receipt{}, bridge.RetryAfter(errors.New("slow down"), time.Millisecond)
			}
			return bridge.Receipt{Delivered: true}, nil
		case "panics":
			panic("broken channel")
		}
		return bridge.Receipt{}, nil
	}
	want := map[string]struct {
		state    bridge.State
		attempts int
	}{
		"third": {bridge.Sent, 3}, "never": {bridge.Failed, 4}, "refused": {bridge.Failed, 1},
		"patient": {bridge.Delivered, 1}, "panics": {bridge.Failed, 4}, "late": {bridge.Expired, 0},
	}
	f := start(t, sqldbtest.Open(t), p)
	for key := range want {
		n := item(key)
		if key == "late" {
			n.Expires = time.Now().Add(-time.Second)
		}
		if err := f.Add(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	for range want {
		it := f.next(t)
		if w := want[it.Key]; it.State != w.state || it.Attempts != w.attempts {
			t.Errorf("%s: %s after %d attempts, want %s after %d", it.Key, it.State, it.Attempts, w.state, w.attempts)
		}
		kept, err := f.ByKey(t.Context(), it.Key)
		if err != nil || kept.State != it.State || kept.Attempts != it.Attempts {
			t.Errorf("%s: kept as %+v %v", it.Key, kept, err)
		}
	}
}

func TestBackoffEndsWithExpiry(t *testing.T) {
	p := &post{tries: map[string]int{}, bounds: bridge.Bounds{MinWait: time.Hour, MaxWait: time.Hour}}
	p.answer = func(*bridge.Item, int) (bridge.Receipt, error) { return bridge.Receipt{}, errors.New("down") }
	f := start(t, sqldbtest.Open(t), p)
	n := item("x")
	n.Expires = time.Now().Add(10 * time.Minute)
	if err := f.Add(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if it := f.next(t); it.State != bridge.Expired {
		t.Fatalf("%+v", it)
	}
}

func TestNotBeforeAndPriority(t *testing.T) {
	var order []string
	p := &post{tries: map[string]int{}, bounds: bridge.Bounds{Concurrency: 1}}
	p.answer = func(it *bridge.Item, _ int) (bridge.Receipt, error) {
		order = append(order, it.Key)
		return bridge.Receipt{}, nil
	}
	f := start(t, sqldbtest.Open(t), p)
	low, later := item("low"), item("later")
	low.Priority = 9
	later.NotBefore = time.Now().Add(150 * time.Millisecond)
	if err := f.Add(t.Context(), low, item("high"), later); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for range 3 {
		f.next(t)
	}
	if fmt.Sprint(order) != "[high low later]" {
		t.Errorf("sent in the order %v", order)
	}
	if time.Since(began) < 100*time.Millisecond {
		t.Error("the item did not wait for its time")
	}
}

func TestCancelGroup(t *testing.T) {
	p := &post{tries: map[string]int{}, bounds: bridge.Bounds{Concurrency: 1}}
	hold, entered := make(chan struct{}), make(chan struct{}, 1)
	p.answer = func(it *bridge.Item, _ int) (bridge.Receipt, error) {
		entered <- struct{}{}
		<-hold
		return bridge.Receipt{ProviderID: "out"}, nil
	}
	db := sqldbtest.Open(t)
	f := start(t, db, p)
	if err := f.Add(t.Context(), item("1"), item("2"), item("3")); err != nil {
		t.Fatal(err)
	}
	<-entered // 1 is on its way
	err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
		n, err := f.CancelGroup(tx, "g")
		if n != 3 {
			return fmt.Errorf("cancelled %d: %w", n, err)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	close(hold)
	if it := f.next(t); it.Key != "1" || it.State != bridge.Sent {
		t.Fatalf("what went out must be known: %+v", it)
	}
	f.stop()
	items, err := f.Group(t.Context(), "g")
	if err != nil || len(items) != 3 {
		t.Fatal(items, err)
	}
	for i, want := range []bridge.State{bridge.Sent, bridge.Recalled, bridge.Recalled} {
		if items[i].State != want {
			t.Errorf("%s is %s, want %s", items[i].Key, items[i].State, want)
		}
	}
	if p.count("2")+p.count("3") != 0 {
		t.Error("a recalled item was sent")
	}
}

func TestRestartSendsWithTheSameKey(t *testing.T) {
	dsn := sqldbtest.DSN(t)
	db, err := sqldb.Open(dsn)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 10)
	p := &post{tries: map[string]int{}, bounds: fast()}
	ctx, cancel := context.WithCancel(t.Context())
	p.answer = func(it *bridge.Item, try int) (bridge.Receipt, error) {
		seen <- it.Key
		if try == 1 { // it has gone out, and the process dies before that is written down
			cancel()
			return bridge.Receipt{}, errors.New("cut")
		}
		return bridge.Receipt{ProviderID: "x"}, nil
	}
	o, err := bridge.NewOutbox(ctx, db, nil, p)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Add(ctx, item("k")); err != nil {
		t.Fatal(err)
	}
	o.Run(ctx)
	db.Close()
	for range 200 { // a PostgreSQL server takes a moment to notice that its client has gone
		if db, err = sqldb.Open(dsn); !errors.Is(err, sqldb.ErrInUse) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	f := start(t, db, p)
	if it := f.next(t); it.State != bridge.Sent || it.Attempts != 1 {
		t.Fatalf("%+v", it)
	}
	if a, b := <-seen, <-seen; a != "k" || b != "k" {
		t.Fatal(a, b)
	}
	f.stop()
}

func TestReport(t *testing.T) {
	p := &post{tries: map[string]int{}, bounds: fast()}
	f := start(t, sqldbtest.Open(t), p)
	if err := f.Add(t.Context(), item("1")); err != nil {
		t.Fatal(err)
	}
	f.next(t)
	for range 2 { // providers repeat themselves
		if err := f.Report(t.Context(), "post", "p-1", bridge.Delivered, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Report(t.Context(), "post", "unknown", bridge.Failed, "?"); err != nil {
		t.Fatal(err)
	}
	if it := f.next(t); it.State != bridge.Delivered {
		t.Fatalf("%+v", it)
	}
	if len(f.results) != 0 {
		t.Error("a repeated report was told twice")
	}
	if err := f.Report(t.Context(), "post", "p-1", bridge.Queued, ""); err == nil {
		t.Error("a report cannot queue")
	}
}

func TestBoundedConcurrency(t *testing.T) {
	p := &post{tries: map[string]int{}, bounds: fast()}
	p.answer = func(*bridge.Item, int) (bridge.Receipt, error) {
		time.Sleep(time.Millisecond)
		return bridge.Receipt{}, nil
	}
	f := start(t, sqldbtest.Open(t), p)
	var items []bridge.New
	for i := range 600 {
		items = append(items, item(fmt.Sprint(i)))
	}
	if err := f.Add(t.Context(), items...); err != nil {
		t.Fatal(err)
	}
	for range items {
		f.next(t)
	}
	if h := p.highest.Load(); h > 4 || h < 2 {
		t.Errorf("%d at a time, want at most 4", h)
	}
}

func TestRefusesBadItems(t *testing.T) {
	f := start(t, sqldbtest.Open(t), &post{tries: map[string]int{}})
	n := item("1")
	n.Channel = "pigeon"
	if err := f.Add(t.Context(), n); !errors.Is(err, bridge.ErrNoChannel) {
		t.Error(err)
	}
	if err := f.Add(t.Context(), item("")); err == nil {
		t.Error("an item without a key")
	}
}

// matrixRooms is a homeserver of which the app channel needs two calls.
type matrixRooms struct {
	mu   sync.Mutex
	sent map[string]string // transaction -> content
	fail error
}

func (m *matrixRooms) DingRoom(_ context.Context, person string) (id.RoomID, error) {
	return id.RoomID("!" + person), nil
}

func (m *matrixRooms) SendEvent(_ context.Context, room id.RoomID, _ id.UserID, typ string, content any, txn string) (id.EventID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return "", m.fail
	}
	m.sent[txn] = string(room) + " " + typ + " " + string(content.(json.RawMessage))
	return id.EventID("$" + txn), nil
}

func TestAppChannel(t *testing.T) {
	m := &matrixRooms{sent: map[string]string{}}
	f := start(t, sqldbtest.Open(t), bridge.NewApp(m, m, fast()))
	payload, _ := json.Marshal(bridge.AppMessage{Person: "7", Events: []bridge.AppEvent{
		{Type: "im.carillon.ding", Content: json.RawMessage(`{"id":"d"}`)},
		{Type: "m.room.message", Content: json.RawMessage(` {"body":"x"} `), Reference: true},
		{Type: "m.room.message", Content: json.RawMessage(`{}`), Reference: true},
	}})
	if err := f.Add(t.Context(), bridge.New{Key: "k", Channel: "app", Payload: payload}); err != nil {
		t.Fatal(err)
	}
	it := f.next(t)
	var d bridge.AppDetail
	if err := json.Unmarshal(it.Detail, &d); err != nil || d.Room != "!7" || len(d.Events) != 3 || it.ProviderID != "$k/2" {
		t.Fatalf("%+v %v", it, err)
	}
	const relation = `"m.relates_to":{"event_id":"$k/0","rel_type":"m.reference"}`
	for txn, want := range map[string]string{
		"k/0": `!7 im.carillon.ding {"id":"d"}`,
		"k/1": `!7 m.room.message {` + relation + `,"body":"x"}`,
		"k/2": `!7 m.room.message {` + relation + `}`,
	} {
		if m.sent[txn] != want {
			t.Errorf("%s is %s, want %s", txn, m.sent[txn], want)
		}
	}
}

func TestAppChannelRefused(t *testing.T) {
	m := &matrixRooms{sent: map[string]string{}, fail: mautrix.RespError{ErrCode: "M_FORBIDDEN", StatusCode: 403}}
	b := fast()
	b.Attempts = 50
	f := start(t, sqldbtest.Open(t), bridge.NewApp(m, m, b))
	good := json.RawMessage(`{"room":"!r","events":[{"type":"m.room.message","content":{}}]}`)
	for key, payload := range map[string]json.RawMessage{"refused": good, "empty": []byte(`{}`), "garbage": []byte(`[]`)} {
		if err := f.Add(t.Context(), bridge.New{Key: key, Channel: "app", Payload: payload}); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		it := f.next(t)
		want := 1
		if it.Key == "refused" {
			want = 5
		}
		if it.State != bridge.Failed || it.Attempts != want {
			t.Errorf("%s: %s after %d", it.Key, it.State, it.Attempts)
		}
	}
}

func BenchmarkOutbox(b *testing.B) {
	p := &post{tries: map[string]int{}, bounds: bridge.Bounds{Concurrency: 16}}
	f := start(b, sqldbtest.Open(b), p)
	items := make([]bridge.New, 0, b.N)
	for i := range b.N {
		items = append(items, item(fmt.Sprint(i)))
	}
	go func() {
		for len(items) > 0 {
			n := min(len(items), 7000)
			if err := f.Add(context.Background(), items[:n]...); err != nil {
				b.Error(err)
			}
			items = items[n:]
		}
	}()
	for range b.N {
		<-f.results
	}
}
