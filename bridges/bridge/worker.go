package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

const (
	// fetch is how many due items are read at a time.
	fetch = 256
	// recordBatch is how many results share a transaction.
	recordBatch = 256
)

// worker serves one channel.
type worker struct {
	out    *Outbox
	ch     Channel
	bounds Bounds
	bell   chan struct{} // capacity one: a ring that was not heard yet stands for all that follow

	mu    sync.Mutex
	taken map[int64]bool // read from the table and not recorded yet
}

type result struct {
	it      Item
	receipt Receipt
	err     error
	skipped bool // recalled before it was tried
}

func newWorker(o *Outbox, ch Channel) *worker {
	b := ch.Bounds()
	if b.Concurrency <= 0 {
		b.Concurrency = 16
	}
	if b.Attempts <= 0 {
		b.Attempts = 10
	}
	if b.MinWait <= 0 {
		b.MinWait = time.Second
	}
	if b.MaxWait <= 0 {
		b.MaxWait = 5 * time.Minute
	}
	if b.Timeout <= 0 {
		b.Timeout = 2 * time.Minute
	}
	return &worker{out: o, ch: ch, bounds: b, bell: make(chan struct{}, 1), taken: map[int64]bool{}}
}

func (w *worker) poke() {
	select {
	case w.bell <- struct{}{}:
	default:
	}
}

// run reads due items and hands them to senders; a recorder writes down what became of them.
func (w *worker) run(ctx context.Context) {
	items := make(chan Item)                    // unbuffered: what is not being sent stays in the table
	results := make(chan result, 2*recordBatch) // full: senders wait for the database
	var senders, recorder sync.WaitGroup
	for range w.bounds.Concurrency {
		senders.Go(func() {
			for it := range items {
				results <- w.send(ctx, it)
			}
		})
	}
	recorder.Go(func() { w.record(ctx, results) })
	w.feed(ctx, items)
	close(items)
	senders.Wait()
	close(results)
	recorder.Wait()
}

func (w *worker) feed(ctx context.Context, items chan<- Item) {
	failures := gate.Backoff{Min: 200 * time.Millisecond, Max: 30 * time.Second}
	for ctx.Err() == nil {
		due, next, err := w.due(ctx)
		if err != nil {
			logFailure(ctx, err, "reading the outbox")
			if failures.Wait(ctx) != nil {
				return
			}
			continue
		}
		failures.Reset()
		for i := range due {
			select {
			case items <- due[i]:
			case <-ctx.Done():
				return
			}
		}
		if len(due) == 0 && !w.sleep(ctx, next) {
			return
		}
	}
}

// sleep waits for the bell or until next (0: for the bell alone).
func (w *worker) sleep(ctx context.Context, next int64) bool {
	var due <-chan time.Time
	if next > 0 {
		t := time.NewTimer(max(time.Duration(next-matrix.Millis(w.out.now()))*time.Millisecond, time.Millisecond))
		defer t.Stop()
		due = t.C
	}
	select {
	case <-w.bell:
		return true
	case <-due:
		return true
	case <-ctx.Done():
		return false
	}
}

// due takes the items that can go now, or says when the next one can.
func (w *worker) due(ctx context.Context) (items []Item, next int64, err error) {
	w.mu.Lock()
	taken := make([]int64, 0, len(w.taken))
	for id := range w.taken {
		taken = append(taken, id)
	}
	w.mu.Unlock()
	now := matrix.Millis(w.out.now())
	err = w.out.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		items, err = sqldb.Select(tx, scanItem, qDue, w.ch.Name(), now, taken, int64(fetch))
		if err == nil && len(items) == 0 {
			err = tx.QueryRow(qNextDue, w.ch.Name(), taken).Scan(&next)
		}
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	w.mu.Lock()
	for i := range items {
		w.taken[items[i].ID] = true
	}
	w.mu.Unlock()
	return items, next, nil
}

// send tries one item, unless it was recalled or expired while it waited for its turn.
func (w *worker) send(ctx context.Context, it Item) (r result) {
	r.it = it
	defer func() {
		if p := recover(); p != nil {
			r.err = fmt.Errorf("panic in channel %s: %v", w.ch.Name(), p)
		}
	}()
	if it.ExpiresAt > 0 && it.ExpiresAt <= matrix.Millis(w.out.now()) {
		r.err = errExpired
		return r
	}
	var state State
	if r.err = w.out.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qState, it.ID).Scan(&state) }); r.err != nil {
		return r
	}
	if state != Queued {
		r.skipped = true
		return r
	}
	tctx, cancel := context.WithTimeout(ctx, w.bounds.Timeout)
	defer cancel()
	r.receipt, r.err = w.ch.Send(tctx, &it)
	return r
}

var errExpired = errors.New("expired before it could be sent")

// record writes results down in batches and tells the listeners.
func (w *worker) record(ctx context.Context, results <-chan result) {
	for r := range results {
		batch := []result{r}
	gather:
		for len(batch) < recordBatch {
			select {
			case r, ok := <-results:
				if !ok {
					break gather
				}
				batch = append(batch, r)
			default:
				break gather
			}
		}
		w.settle(ctx, batch)
	}
}

// settle makes a batch durable. At shutdown, results are still recorded: what went out need not go out again.
func (w *worker) settle(ctx context.Context, batch []result) {
	changed := make([]Item, 0, len(batch))
	for i := range batch {
		if w.judge(ctx, &batch[i]) {
			changed = append(changed, batch[i].it)
		}
	}
	wait := gate.Backoff{Min: 50 * time.Millisecond, Max: 10 * time.Second}
	for {
		err := w.out.db.Write(context.WithoutCancel(ctx), func(tx *sqldb.Tx) error {
			for i := range batch {
				if err := batch[i].write(tx); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			break
		}
		log.WithError(err).WithField("channel", w.ch.Name()).Error("Recording what was sent failed")
		if wait.Wait(ctx) != nil {
			return // sent again after the restart, with the same key
		}
	}
	w.mu.Lock()
	for i := range batch {
		delete(w.taken, batch[i].it.ID)
	}
	w.mu.Unlock()
	w.out.tell(ctx, changed)
	w.poke()
}

// judge decides what a result means for its item, and reports whether its state has changed.
func (w *worker) judge(ctx context.Context, r *result) bool {
	now := matrix.Millis(w.out.now())
	r.it.UpdatedAt = now
	if r.skipped {
		return false
	}
	if r.err == nil {
		r.it.State, r.it.ProviderID, r.it.Reason = Sent, r.receipt.ProviderID, ""
		r.it.Attempts++
		if r.receipt.Delivered {
			r.it.State = Delivered
		}
		if r.receipt.Detail != nil {
			b, err := json.Marshal(r.receipt.Detail)
			if err != nil {
				log.WithError(err).WithField("channel", w.ch.Name()).Error("A channel's detail cannot be kept")
			}
			r.it.Detail = b
		}
		return true
	}
	if errors.Is(r.err, errExpired) {
		r.it.State, r.it.Reason = Expired, r.err.Error()
		return true
	}
	if ctx.Err() != nil {
		r.skipped = true // cut off by the shutdown, not by the other side
		return false
	}
	var f *failure
	errors.As(r.err, &f)
	r.it.Reason = clip(r.err.Error())
	wait := time.Duration(0)
	if f != nil && f.wait > 0 {
		wait = f.wait
	} else {
		r.it.Attempts++
		wait = gate.Spread(gate.Delay(r.it.Attempts-1, w.bounds.MinWait, w.bounds.MaxWait, 2), 0.3)
	}
	r.it.NextAt = now + max(wait.Milliseconds(), 1)
	switch {
	case f != nil && f.permanent, r.it.Attempts >= w.bounds.Attempts:
		r.it.State = Failed
	case r.it.ExpiresAt > 0 && r.it.NextAt >= r.it.ExpiresAt:
		r.it.State = Expired
	default:
		log.WithFields(log.Fields{"channel": w.ch.Name(), "key": r.it.Key, "attempt": r.it.Attempts}).WithError(r.err).
			Debug("Sending failed, will be tried again")
		return false
	}
	log.WithFields(log.Fields{"channel": w.ch.Name(), "key": r.it.Key, "state": r.it.State}).WithError(r.err).Warn("Not sent")
	return true
}

func (r *result) write(tx *sqldb.Tx) (err error) {
	it := &r.it
	switch {
	case r.skipped:
	case it.State == Sent || it.State == Delivered:
		_, err = tx.Exec(qSent, it.ID, string(it.State), it.ProviderID, string(it.Detail), it.UpdatedAt)
	case it.State == Queued:
		_, err = tx.Exec(qRetry, it.ID, int64(r.tries()), it.NextAt, it.Reason, it.UpdatedAt)
	default:
		_, err = tx.Exec(qEnd, it.ID, string(it.State), int64(r.tries()), it.Reason, it.UpdatedAt)
	}
	return err
}

// tries is how many attempts this result counts for.
func (r *result) tries() int {
	var f *failure
	if errors.As(r.err, &f) && f.wait > 0 || errors.Is(r.err, errExpired) {
		return 0
	}
	return 1
}

func clip(s string) string {
	const most = 300
	if len(s) > most {
		s = s[:most]
	}
	return strings.ToValidUTF8(s, "")
}

func logFailure(ctx context.Context, err error, what string) {
	if err != nil && ctx.Err() == nil {
		log.WithError(err).Error("Failed: " + what)
	}
}
