package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// TestHangingServersHoldUpNobody: fifteen sites, one of which takes connections and never answers, as do more
// servers than are sent to at a time.
func TestHangingServersHoldUpNobody(t *testing.T) {
	t.Parallel()
	f := &far{news: make(chan struct{}, 1)}
	f.hang = func(s matrix.ServerName) bool { return strings.HasPrefix(string(s), "hangs") }
	q, _ := startQueue(t, sqldbtest.Open(t), f)
	put := func(rows []row) {
		t.Helper()
		if err := q.put(t.Context(), rows, nil); err != nil {
			t.Fatal(err)
		}
	}
	sites := make([]matrix.ServerName, 15)
	for i := range sites {
		sites[i] = matrix.ServerName(fmt.Sprintf("site%d.test", i))
	}
	sites[7] = "hangs.test"
	var rows []row
	for _, s := range sites {
		rows = append(rows, row{server: s, event: "$first"})
	}
	put(rows)
	f.wait(t, "what all but one have taken", func(got []delivery) bool { return pduCount(got) == 14 })
	rows = nil
	for i := range 2 * senders {
		rows = append(rows, row{server: matrix.ServerName(fmt.Sprintf("hangs%d.test", i)), event: "$first"})
	}
	put(rows)
	for i := range 20 {
		rows = nil
		for _, s := range sites {
			rows = append(rows, row{server: s, event: matrix.EventID(fmt.Sprint("$", i)), room: "!r"})
		}
		put(rows)
	}
	got := f.wait(t, "what the others have been sent", func(got []delivery) bool { return pduCount(got) == 14+14*20 })
	next := map[matrix.ServerName]int{}
	for _, d := range got {
		for _, p := range d.PDUs {
			if i := next[d.server]; i > 0 && string(p) != fmt.Sprintf(`{"id":"$%d"}`, i-1) {
				t.Fatalf("%s got %s as number %d", d.server, p, i)
			}
			next[d.server]++
		}
	}
}

// begun waits until a server's first transaction is on its way.
func begun(q *queue, server matrix.ServerName) {
	for {
		q.mu.Lock()
		d := q.dests[server]
		taken := d != nil && len(d.batches) > 0 && d.batches[0].taken
		q.mu.Unlock()
		if taken {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// TestReceiptsOfManyThreads: what does not fit into one transaction goes in several.
func TestReceiptsOfManyThreads(t *testing.T) {
	t.Parallel()
	f := &far{news: make(chan struct{}, 1), slow: make(chan struct{})}
	q, _ := startQueue(t, sqldbtest.Open(t), f)
	if err := q.put(t.Context(), []row{{server: "a.test", event: "$holds-the-worker"}}, nil); err != nil {
		t.Fatal(err)
	}
	begun(q, "a.test")
	var list []*receipts.Receipt
	for i := range 150 {
		list = append(list, &receipts.Receipt{Room: "!r", User: "@u:here.test", Event: "$e", Thread: fmt.Sprint("$", i), Pos: stream.Pos(i + 1)})
	}
	rows := receiptRows("a.test", list, 1)
	if len(rows) != 150 {
		t.Fatalf("%d rows", len(rows))
	}
	if err := q.put(t.Context(), rows, nil); err != nil {
		t.Fatal(err)
	}
	close(f.slow)
	threads, ids := map[string]int{}, map[string]bool{}
	f.wait(t, "150 threads", func(got []delivery) bool {
		clear(threads)
		for _, d := range got {
			ids[d.txn] = true
			if len(d.EDUs) > maxEDUs {
				t.Fatalf("%d EDUs in one transaction", len(d.EDUs))
			}
			for _, e := range d.EDUs {
				var c receiptContent
				if json.Unmarshal(e.Content, &c) == nil {
					threads[c["!r"]["m.read"]["@u:here.test"].Data.Thread]++
				}
			}
		}
		return len(threads) == 150
	})
	if len(ids) != 3 {
		t.Errorf("%d transactions", len(ids))
	}
	for thread, n := range threads {
		if n != 1 {
			t.Errorf("thread %s went %d times", thread, n)
		}
	}
}

// TestLargeEDUsAreSplit: a transaction stays of a size that other servers take.
func TestLargeEDUsAreSplit(t *testing.T) {
	t.Parallel()
	f := &far{news: make(chan struct{}, 1), slow: make(chan struct{})}
	q, _ := startQueue(t, sqldbtest.Open(t), f)
	large := newEDU("m.direct_to_device", map[string]string{"x": strings.Repeat("x", 1<<20)})
	for range 11 {
		if err := q.put(t.Context(), []row{{server: "a.test", edu: large}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	close(f.slow)
	got := f.wait(t, "eleven EDUs", func(got []delivery) bool {
		n := 0
		for _, d := range got {
			n += len(d.EDUs)
		}
		return n == 11
	})
	for _, d := range got {
		if len(d.EDUs) > 4 {
			t.Errorf("%d MiB in one transaction", len(d.EDUs))
		}
	}
}

func TestReceiptsWaitForOthers(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_000_000, 0)
	servers := make([]matrix.ServerName, 15)
	for i := range servers {
		servers[i] = matrix.ServerName(fmt.Sprintf("s%02d.test", i))
	}
	read := func(user int, age time.Duration, author matrix.ServerName) *receipts.Receipt {
		return &receipts.Receipt{
			Room: "!r", User: matrix.UserID(fmt.Sprint("@", user)), Event: "$e", Pos: stream.Pos(user + 1), Author: author, EventTS: matrix.Millis(now.Add(-age)),
		}
	}
	h := newHolding("here.test")
	if n := h.add(read(0, time.Second, "s03.test"), servers, now); n != 0 || len(h.ready(now, nil)) != 15 {
		t.Errorf("the first waits for %d servers", n)
	}
	h.gone(h.ready(now, nil), now)
	for i := 1; i <= 100; i++ {
		h.add(read(i, time.Second, "s03.test"), servers, now)
		h.add(read(i, time.Second, "s03.test"), servers, now) // again
	}
	if ready := h.ready(now, nil); len(ready) != 1 || ready[0] != "s03.test" {
		t.Errorf("at once it goes to %v, not to the sender's server alone", ready)
	}
	if first := h.first(h.ready(now, nil)); first != 2 {
		t.Errorf("the first that waits stands at %d", first)
	}
	if ready := h.ready(now, map[matrix.ServerName]bool{"s09.test": true}); len(ready) != 2 || ready[1] != "s09.test" {
		t.Errorf("with something else it goes to %v", ready)
	}
	if w := h.wait(now.Add(time.Millisecond)); w != 0 { // the sender's server is due
		t.Errorf("waits %v", w)
	}
	h.gone([]matrix.ServerName{"s03.test"}, now)
	if w := h.wait(now); w != 15*time.Second/receiptRate {
		t.Errorf("waits %v", w)
	}
	rows := h.rows("s00.test")
	if len(rows) != 1 || strings.Count(string(rows[0].edu), "event_ids") != 100 || rows[0].from != 2 || rows[0].to != 101 {
		t.Errorf("%d rows: %.200s", len(rows), rows[0].edu)
	}
	now = now.Add(15 * time.Second / receiptRate)
	if n := len(h.ready(now, nil)); n != 14 {
		t.Errorf("in time it goes to %d servers", n)
	}
	h.gone(h.ready(now, nil), now)
	h.add(read(101, time.Second, ""), servers, now.Add(time.Millisecond))
	if w := h.wait(now); w != 15*time.Second/receiptRate {
		t.Errorf("after that the next waits %v", w)
	}
	many := make([]matrix.ServerName, 3000) // a minute's worth
	for i := range many {
		many[i] = matrix.ServerName(fmt.Sprintf("m%d.test", i))
	}
	h = newHolding("here.test")
	h.add(read(0, time.Hour, ""), many, now)
	h.gone(h.ready(now, nil), now)
	h.add(read(1, time.Hour, ""), many, now)
	if w := h.wait(now); w != oldWait {
		t.Errorf("an old event's receipt waits %v", w)
	}
	h.add(read(2, time.Second, ""), many, now)
	if w := h.wait(now); w != youngWait {
		t.Errorf("a young event's receipt waits %v", w)
	}
	h = newHolding("here.test")
	for i := range 10 {
		h.add(read(i, time.Hour, ""), many[:smallRoom], now)
	}
	if n := len(h.ready(now, nil)); n != smallRoom {
		t.Errorf("of a small room %d servers hear at once", n)
	}
	h = newHolding("here.test")
	h.add(read(0, time.Hour, ""), many[:100], now)
	h.gone(h.ready(now, nil), now)
	for i := range heldReceipts + 1 {
		h.add(read(i, time.Hour, ""), many[:100], now)
	}
	if n := len(h.ready(now, nil)); n != 100 {
		t.Errorf("with too many waiting %d servers are sent to", n)
	}
}

func TestCrowd(t *testing.T) {
	t.Parallel()
	turned := 0
	c := newCrowd(1, 3, func() { turned++ })
	leave, err := c.enter(t.Context(), "greedy.test")
	if err != nil {
		t.Fatal(err)
	}
	ctx, giveUp := context.WithCancel(t.Context())
	order := make(chan int, 3)
	var wg sync.WaitGroup
	waiting := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.servers["greedy.test"].n
	}
	for i := range 3 {
		wg.Go(func() {
			with := t.Context()
			if i == 1 {
				with = ctx
			}
			leave, err := c.enter(with, "greedy.test")
			if i == 1 {
				if !errors.Is(err, context.Canceled) {
					t.Errorf("who gave up got in: %v", err)
				}
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			order <- i
			leave()
		})
		for waiting() != i+2 {
			time.Sleep(time.Millisecond)
		}
	}
	var me *matrix.Error
	if _, err := c.enter(t.Context(), "greedy.test"); !errors.As(err, &me) || me.Status != http.StatusTooManyRequests || turned != 1 {
		t.Errorf("one too many: %v, %d", err, turned)
	}
	other, err := c.enter(t.Context(), "other.test")
	if err != nil {
		t.Fatal(err)
	}
	other()
	giveUp()
	for waiting() != 3 {
		time.Sleep(time.Millisecond)
	}
	leave()
	wg.Wait()
	if a, b := <-order, <-order; a != 0 || b != 2 {
		t.Errorf("they came in as %d, %d", a, b)
	}
	if len(c.servers) != 0 {
		t.Errorf("%d servers are remembered", len(c.servers))
	}
}

// TestOldNewsOfDevicesAreDropped: of what waits about a user's devices for a server that is away only the newest is
// kept, however long that lasts; messages to devices are all kept.
func TestOldNewsOfDevicesAreDropped(t *testing.T) {
	t.Parallel()
	db := sqldbtest.Open(t)
	f := &far{news: make(chan struct{}, 1), down: true}
	q, _ := startQueue(t, db, f)
	put := func(first int) {
		t.Helper()
		var rows []row
		for i := range 3000 {
			user := fmt.Sprintf("@u%d:here.test", i%3)
			rows = append(rows, row{server: "a.test", topic: "m.device_list_update " + user, edu: newEDU("m.device_list_update", map[string]any{"user_id": user, "stream_id": first + i})})
			if i%1000 == 0 {
				rows = append(rows, row{server: "a.test", edu: newEDU("m.direct_to_device", map[string]any{"n": first + i})})
			}
		}
		if err := q.put(t.Context(), rows, nil); err != nil {
			t.Fatal(err)
		}
	}
	waits := func(query string) (n int) {
		t.Helper()
		if err := db.Read(t.Context(), func(tx *sqldb.Tx) error { return tx.QueryRow(query).Scan(&n) }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for round := range 2 {
		put(round * 3000)
		for end := time.Now().Add(20 * time.Second); waits(`SELECT count(*) FROM fed_queue`) > roomEDUs+3+6; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d rows wait", waits(`SELECT count(*) FROM fed_queue`))
			}
			q.alive("a.test")
		}
	}
	if n := waits(`SELECT count(*) FROM fed_queue WHERE topic = ''`); n != 6 {
		t.Errorf("%d messages to devices wait", n)
	}
	n := waits(`SELECT count(*) FROM fed_queue`)
	list, sum := q.sights()
	for end := time.Now().Add(20 * time.Second); sum.items != n && time.Now().Before(end); list, sum = q.sights() {
		time.Sleep(time.Millisecond)
	}
	if len(list) != 1 || list[0].items != n || sum.items != n || sum.behind != 1 || sum.failing != 1 {
		t.Errorf("seen are %+v, %+v; %d rows wait", list, sum, n)
	}
	f.mu.Lock()
	f.down, f.got = false, nil
	f.mu.Unlock()
	newest := map[string]int{}
	messages := 0
	q.alive("a.test")
	f.wait(t, "the newest of each user", func(got []delivery) bool {
		messages = 0
		for _, d := range got {
			for _, e := range d.EDUs {
				var c struct {
					User   string `json:"user_id"`
					Stream int    `json:"stream_id"`
				}
				if json.Unmarshal(e.Content, &c) != nil || e.Type == "m.direct_to_device" {
					messages++
				} else {
					newest[c.User] = c.Stream
				}
			}
		}
		return messages == 6 && newest["@u0:here.test"] == 5997 && newest["@u1:here.test"] == 5998 && newest["@u2:here.test"] == 5999
	})
}
