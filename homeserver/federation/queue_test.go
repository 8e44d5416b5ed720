package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

// far stands for all other servers.
type far struct {
	mu   sync.Mutex
	down bool
	slow chan struct{} // when set, each delivery takes one
	hang func(matrix.ServerName) bool
	got  []delivery
	news chan struct{}
}

type delivery struct {
	server matrix.ServerName
	txn    string
	PDUs   []json.RawMessage `json:"pdus"`
	EDUs   []edu             `json:"edus"`
}

func (f *far) SendTransaction(ctx context.Context, server matrix.ServerName, txn string, body json.RawMessage) (map[matrix.EventID]string, error) {
	if f.hang != nil && f.hang(server) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if f.slow != nil {
		select {
		case <-f.slow:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	d := delivery{server: server, txn: txn}
	if err := json.Unmarshal(body, &d); err != nil {
		return nil, err
	}
	f.got = append(f.got, d)
	select {
	case f.news <- struct{}{}:
	default:
	}
	if f.down {
		return nil, errors.New("down")
	}
	return nil, nil
}

func (f *far) wait(t *testing.T, what string, ok func(got []delivery) bool) []delivery {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		f.mu.Lock()
		got := append([]delivery(nil), f.got...)
		f.mu.Unlock()
		if ok(got) {
			return got
		}
		select {
		case <-f.news:
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			t.Fatalf("%s: never happened; got %d transactions", what, len(got))
		}
	}
}

func startQueue(t *testing.T, db *sqldb.DB, f *far) (q *queue, stop func()) {
	t.Helper()
	if err := db.Migrate(t.Context(), "federation", schemaFS); err != nil {
		t.Fatal(err)
	}
	q = newQueue(db, "here.test", f, time.Now, nil)
	q.content = func(_ context.Context, ids []matrix.EventID) (map[matrix.EventID][]byte, error) {
		out := map[matrix.EventID][]byte{}
		for _, id := range ids {
			out[id] = fmt.Appendf(nil, `{"id":%q}`, string(id))
		}
		return out, nil
	}
	if err := q.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { q.run(ctx); close(done) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return q, stop
}

func pduCount(got []delivery) (n int) {
	for _, d := range got {
		n += len(d.PDUs)
	}
	return n
}

func TestQueueOrderAndLimits(t *testing.T) {
	t.Parallel()
	db := sqldbtest.Open(t)
	f := &far{news: make(chan struct{}, 1), slow: make(chan struct{})}
	q, _ := startQueue(t, db, f)
	var rows []row
	for i := range 230 {
		rows = append(rows, row{server: "a.test", event: matrix.EventID(fmt.Sprintf("$%03d", i))})
		rows = append(rows, row{server: "a.test", edu: newEDU("m.direct_to_device", map[string]any{"n": i})})
	}
	for len(rows) > 0 {
		n := min(len(rows), 37)
		if err := q.put(t.Context(), rows[:n], nil); err != nil {
			t.Fatal(err)
		}
		rows = rows[n:]
	}
	close(f.slow)
	got := f.wait(t, "230 events", func(got []delivery) bool { return pduCount(got) == 230 })
	next, edus := 0, 0
	seen := map[string]bool{}
	for _, d := range got {
		if len(d.PDUs) > maxPDUs || len(d.EDUs) > maxEDUs {
			t.Errorf("%d PDUs and %d EDUs in one transaction", len(d.PDUs), len(d.EDUs))
		}
		if seen[d.txn] {
			t.Errorf("transaction ID %s used twice", d.txn)
		}
		seen[d.txn] = true
		edus += len(d.EDUs)
		for _, p := range d.PDUs {
			if want := fmt.Sprintf(`{"id":"$%03d"}`, next); string(p) != want {
				t.Fatalf("got %s, want %s", p, want)
			}
			next++
		}
	}
	if edus != 230 {
		t.Errorf("%d EDUs arrived", edus)
	}
	if len(got) > 8 {
		t.Errorf("%d transactions for 230 events", len(got))
	}
}

func TestQueueSurvivesRestart(t *testing.T) {
	t.Parallel()
	db := sqldbtest.Open(t)
	f := &far{news: make(chan struct{}, 1), down: true}
	q, stop := startQueue(t, db, f)
	for i := range 3 {
		if err := q.put(t.Context(), []row{{server: "a.test", event: matrix.EventID(fmt.Sprintf("$%d", i))}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	first := f.wait(t, "an attempt", func(got []delivery) bool { return len(got) > 0 })[0]
	stop()
	f.mu.Lock()
	f.down, f.got = false, nil
	f.mu.Unlock()
	q, _ = startQueue(t, db, f)
	q.alive("a.test") // heard of: no need to wait
	got := f.wait(t, "all events", func(got []delivery) bool { return pduCount(got) == 3 })
	if got[0].txn != first.txn || len(got[0].PDUs) != len(first.PDUs) {
		t.Errorf("the transaction came back as %s with %d events, was %s with %d", got[0].txn, len(got[0].PDUs), first.txn, len(first.PDUs))
	}
	// Nothing is left, and nothing comes again.
	deadline := time.Now().Add(5 * time.Second)
	for {
		var n int
		if err := db.Read(t.Context(), func(tx *sqldb.Tx) error {
			return tx.QueryRow(`SELECT (SELECT count(*) FROM fed_queue) + (SELECT count(*) FROM fed_destinations)`).Scan(&n)
		}); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d rows are left", n)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestQueueOneServerDoesNotHoldUpAnother(t *testing.T) {
	t.Parallel()
	f := &far{news: make(chan struct{}, 1)}
	q, _ := startQueue(t, sqldbtest.Open(t), f)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s := matrix.ServerName(fmt.Sprintf("s%d.test", i%4))
			if err := q.put(t.Context(), []row{{server: s, event: matrix.EventID(fmt.Sprintf("$%d", i))}}, nil); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	f.wait(t, "40 events", func(got []delivery) bool { return pduCount(got) == 40 })
	deadline := time.Now().Add(5 * time.Second)
	for {
		q.mu.Lock()
		n := len(q.dests)
		q.mu.Unlock()
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d idle destinations are kept", n)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestReceiptsAreMerged(t *testing.T) {
	t.Parallel()
	f := &far{news: make(chan struct{}, 1), slow: make(chan struct{})}
	q, _ := startQueue(t, sqldbtest.Open(t), f)
	put := func(user, thread, event string) {
		var m receiptMerge
		e := receiptEntry{EventIDs: []matrix.EventID{matrix.EventID(event)}}
		e.Data.Thread = thread
		m.put("!r", "m.read", matrix.UserID(user), e)
		if err := q.put(t.Context(), []row{{server: "a.test", edu: m.edus()[0], merges: true}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	put("@first:here.test", "", "$0") // holds the worker while the rest gathers
	begun(q, "a.test")
	for i := range 150 {
		put(fmt.Sprintf("@u%d:here.test", i%30), "", fmt.Sprintf("$%d", i))
	}
	put("@u0:here.test", "$thread", "$t")
	close(f.slow)
	got := f.wait(t, "the receipts", func(got []delivery) bool { return len(got) == 2 })
	if n := len(got[1].EDUs); n != 2 {
		t.Fatalf("%d EDUs", n)
	}
	var c receiptContent
	if err := json.Unmarshal(got[1].EDUs[0].Content, &c); err != nil {
		t.Fatal(err)
	}
	if users := c["!r"]["m.read"]; len(users) != 30 || users["@u29:here.test"].EventIDs[0] != "$149" {
		t.Errorf("%d users, the last at %v", len(users), users["@u29:here.test"].EventIDs)
	}
	if !strings.Contains(string(got[1].EDUs[1].Content), `"thread_id":"$thread"`) {
		t.Errorf("the thread's receipt is %s", got[1].EDUs[1].Content)
	}
}

func TestAuthorizationHeader(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		header string
		want   credential
		ok     bool
	}{
		{`X-Matrix origin="a.test",destination="b.test",key="ed25519:1",sig="abc"`, credential{"a.test", "b.test", "ed25519:1", "abc"}, true},
		{`x-matrix  ORIGIN=a.test:8448 , key=ed25519:1 ,	sig="a\"b"`, credential{"a.test:8448", "", "ed25519:1", `a"b`}, true},
		{`X-Matrix origin=a.test,key=k,sig=s,unknown="x,y"`, credential{"a.test", "", "k", "s"}, true},
		{`X-Matrix origin="a.test",key="k"`, credential{}, false},
		{`X-Matrix origin="a.test,key="k",sig="s"`, credential{}, false},
		{`X-Matrix origin="a.test",origin="b.test",key="k",sig="s"`, credential{}, false},
		{`X-Matrix origin="not a name",key="k",sig="s"`, credential{}, false},
		{`X-Matrix`, credential{}, false},
		{`Bearer abc`, credential{}, false},
		{`X-Matrix sig="abc\`, credential{}, false},
	} {
		got, err := credentials([]string{tt.header})
		if (err == nil) != tt.ok || tt.ok && got[0] != tt.want {
			t.Errorf("%s: %+v, %v", tt.header, got, err)
		}
	}
}

func FuzzAuthorizationHeader(f *testing.F) {
	f.Add(`X-Matrix origin="a.test",destination="b.test",key="ed25519:1",sig="abc"`)
	f.Add(`X-Matrix a=\"`)
	f.Fuzz(func(t *testing.T, h string) {
		if c, err := credentials([]string{h}); err == nil && len(c) == 0 {
			t.Error("no error and no credential")
		}
	})
}

// TestHeardOfDuringAnAttempt: a server that is heard of while an attempt to reach it fails is tried again at once, and
// not after the wait that its many failures would bring.
func TestHeardOfDuringAnAttempt(t *testing.T) {
	t.Parallel()
	f := &far{news: make(chan struct{}, 1), down: true, slow: make(chan struct{})}
	q, _ := startQueue(t, sqldbtest.Open(t), f)
	if err := q.put(t.Context(), []row{{server: "a.test", event: "$1"}}, nil); err != nil {
		t.Fatal(err)
	}
	q.mu.Lock()
	q.dests["a.test"].failures = 12 // the next wait would be an hour
	q.mu.Unlock()
	begun(q, "a.test")
	q.alive("a.test")
	f.slow <- struct{}{} // now the attempt fails
	f.wait(t, "the failure", func(got []delivery) bool { return len(got) == 1 })
	f.mu.Lock()
	f.down = false
	f.mu.Unlock()
	close(f.slow)
	f.wait(t, "the next attempt", func(got []delivery) bool { return len(got) == 2 })
}

// TestQueueOfAServerThatIsAway: what waits for a server that does not answer stays small, over a restart too, and it
// hears the newest of each room and every EDU when it is back.
func TestQueueOfAServerThatIsAway(t *testing.T) {
	t.Parallel()
	db := sqldbtest.Open(t)
	f := &far{news: make(chan struct{}, 1), down: true}
	q, stop := startQueue(t, db, f)
	ev := func(room string, i int) row {
		return row{server: "a.test", event: matrix.EventID(fmt.Sprintf("$%s-%04d", room, i)), room: matrix.RoomID("!" + room)}
	}
	put := func(rows ...row) {
		t.Helper()
		if err := q.put(t.Context(), rows, nil); err != nil {
			t.Fatal(err)
		}
	}
	count := func(query string) (n int) {
		t.Helper()
		if err := db.Read(t.Context(), func(tx *sqldb.Tx) error { return tx.QueryRow(query).Scan(&n) }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	put(ev("x", 0), row{server: "a.test", event: "$kept"})
	f.wait(t, "an attempt", func(got []delivery) bool { return len(got) > 0 })
	var rows []row
	for i := 1; i <= 1500; i++ {
		if rows = append(rows, ev("x", i), ev("y", i)); i <= 600 {
			rows = append(rows, row{server: "a.test", edu: newEDU("m.direct_to_device", map[string]any{"n": i})})
		}
		if i%100 == 0 {
			put(rows...)
			rows = nil
		}
	}
	tries := 1
	behind := func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.dests["a.test"].behind
	}
	for !behind() {
		q.alive("a.test") // heard of, but still it does not take anything
		tries++
		f.wait(t, "another attempt", func(got []delivery) bool { return len(got) >= tries || behind() })
	}
	put(ev("x", 1501), ev("z", 1), row{server: "a.test", event: "$also-kept"})
	for count(`SELECT count(*) FROM fed_behind`) != 3 {
		time.Sleep(5 * time.Millisecond)
	}
	if n := count(`SELECT count(*) FROM fed_queue WHERE event_id <> ''`); n > maxPDUs+2 {
		t.Errorf("%d events wait in the queue", n)
	}
	stop()
	f.mu.Lock()
	f.down, f.got = false, nil
	f.mu.Unlock()
	q, _ = startQueue(t, db, f)
	q.alive("a.test")
	newest := map[string]bool{"$x-1501": true, "$y-1500": true, "$z-0001": true, "$also-kept": true, "$kept": true}
	got := f.wait(t, "the newest events and all EDUs", func(got []delivery) bool {
		edus, seen := 0, 0
		for _, d := range got {
			edus += len(d.EDUs)
			for _, p := range d.PDUs {
				var e struct{ ID string }
				if json.Unmarshal(p, &e) == nil && newest[e.ID] {
					seen++
				}
			}
		}
		return edus == 600 && seen == len(newest)
	})
	if n := pduCount(got); n > maxPDUs+10 {
		t.Errorf("%d events were sent", n)
	}
	for count(`SELECT (SELECT count(*) FROM fed_queue) + (SELECT count(*) FROM fed_behind) + (SELECT count(*) FROM fed_destinations)`) != 0 {
		time.Sleep(5 * time.Millisecond)
	}
	put(ev("x", 1502)) // as ever
	f.wait(t, "what comes later", func(got []delivery) bool {
		last := got[len(got)-1].PDUs
		return len(last) == 1 && strings.Contains(string(last[0]), "$x-1502")
	})
}
