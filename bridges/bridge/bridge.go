// Package bridge holds what every bridge shares: the outbox, through which all that leaves the service goes.
//
// An item is put in the same transaction as the change that wants it sent, so a restart neither loses nor doubles it:
// it is handed to its channel at least once, always with the same idempotency key, until the channel has taken it, has
// refused it for good, or it has expired or been recalled. Channels are Matrix (App) and later SMS and voice.
//
// It owns the table as_outbox. Invariants: a key exists once; a state only moves queued -> sent -> delivered, or to
// failed, expired, recalled; an item that went out is recorded as sent even if it was recalled meanwhile; an idle
// outbox asks the database nothing, it waits for the next due time or for Wake.
package bridge

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

//go:embed schema/*.sql
var schemaFS embed.FS

// State is how far an item has come.
type State string

// The states of an item.
const (
	Queued    State = "queued"
	Sent      State = "sent"
	Delivered State = "delivered"
	Failed    State = "failed"
	Expired   State = "expired"
	Recalled  State = "recalled"
)

// New is what somebody wants sent.
type New struct {
	Key       string          // idempotency key, passed to the channel; at most 200 bytes
	Channel   string          // name of the channel
	Group     string          // items that are cancelled and listed together; may be empty
	Priority  int             // lower goes first
	Payload   json.RawMessage // the channel's own
	NotBefore time.Time       // zero: at once
	Expires   time.Time       // zero: never
}

// Item is a row of the outbox.
type Item struct {
	ID         int64
	Key        string
	Channel    string
	Group      string
	Payload    json.RawMessage
	State      State
	Attempts   int
	NextAt     int64 // milliseconds, like all times here
	ExpiresAt  int64
	CreatedAt  int64
	UpdatedAt  int64
	ProviderID string          // the channel's name for what it sent
	Detail     json.RawMessage // what else the channel said of it
	Reason     string          // why it failed
}

// Receipt is a channel's word that it has taken an item.
type Receipt struct {
	ProviderID string
	Detail     any  // kept as JSON
	Delivered  bool // it has arrived already; otherwise a Report may say so later
}

// Bounds are the limits of a channel. Zero fields take the defaults in brackets.
type Bounds struct {
	Concurrency int           // items under way at a time [16]
	Attempts    int           // tries before an item fails [10]
	MinWait     time.Duration // wait after the first failure [1 s]
	MaxWait     time.Duration // longest wait [5 min]
	Timeout     time.Duration // of one try [2 min]
}

// Channel carries items to the outside. Send may be called again with an item that went out before, for instance after
// a power cut: it passes Item.Key on as the idempotency key. An error is tried again unless it is Permanent.
type Channel interface {
	Name() string
	Bounds() Bounds
	Send(ctx context.Context, it *Item) (Receipt, error)
}

// Permanent marks an error that no further try can mend.
func Permanent(err error) error { return &failure{err: err, permanent: true} }

// RetryAfter marks an error with the time the other side asked to wait. It does not count as an attempt.
func RetryAfter(err error, wait time.Duration) error { return &failure{err: err, wait: wait} }

type failure struct {
	err       error
	permanent bool
	wait      time.Duration
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// ErrNoChannel says that an item names a channel nobody serves.
var ErrNoChannel = errors.New("no such channel")

// Outbox keeps items until their channels have taken them. Its methods may be called concurrently.
type Outbox struct {
	db       *sqldb.DB
	now      matrix.Now
	channels map[string]*worker

	mu        sync.Mutex
	listeners []func(ctx context.Context, items []Item)
}

// Keep is how long items that have come to an end are kept.
const Keep = 90 * 24 * time.Hour

// NewOutbox opens the outbox on db. now may be nil.
func NewOutbox(ctx context.Context, db *sqldb.DB, now matrix.Now, channels ...Channel) (*Outbox, error) {
	if err := db.Migrate(ctx, "bridge", schemaFS); err != nil {
		return nil, err
	}
	if now == nil {
		now = time.Now
	}
	o := &Outbox{db: db, now: now, channels: map[string]*worker{}}
	for _, ch := range channels {
		if o.channels[ch.Name()] != nil {
			return nil, fmt.Errorf("two channels are called %s", ch.Name())
		}
		o.channels[ch.Name()] = newWorker(o, ch)
	}
	return o, nil
}

// OnResult registers fn, which is told of every item that has changed its state, after the change is durable and in
// batches. It may be told twice after a restart of the process, and not at all of what happened just before one: a
// listener that keeps state compares with Group when it starts. Register before Run.
func (o *Outbox) OnResult(fn func(ctx context.Context, items []Item)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.listeners = append(o.listeners, fn)
}

func (o *Outbox) tell(ctx context.Context, items []Item) {
	if len(items) == 0 {
		return
	}
	o.mu.Lock()
	fns := o.listeners
	o.mu.Unlock()
	for _, fn := range fns {
		fn(ctx, items)
	}
}

// Put adds items in the caller's transaction; keys that exist already are left alone. Call Wake after the commit.
func (o *Outbox) Put(tx *sqldb.Tx, items ...New) error {
	now := matrix.Millis(o.now())
	for i := range items {
		it := &items[i]
		if o.channels[it.Channel] == nil {
			return fmt.Errorf("putting %q: %w", it.Channel, ErrNoChannel)
		}
		if it.Key == "" || len(it.Key) > 200 {
			return fmt.Errorf("the idempotency key %q is empty or too long", it.Key)
		}
		next := now
		if !it.NotBefore.IsZero() {
			next = matrix.Millis(it.NotBefore)
		}
		expires := int64(0)
		if !it.Expires.IsZero() {
			expires = matrix.Millis(it.Expires)
		}
		if _, err := tx.Exec(qInsert, it.Key, it.Channel, it.Group, int64(it.Priority), string(it.Payload), next, expires, now); err != nil {
			return fmt.Errorf("putting into the outbox: %w", err)
		}
	}
	return nil
}

// Add puts items in a transaction of its own and wakes their channels.
func (o *Outbox) Add(ctx context.Context, items ...New) error {
	if err := o.db.Write(ctx, func(tx *sqldb.Tx) error { return o.Put(tx, items...) }); err != nil {
		return err
	}
	o.Wake()
	return nil
}

// Wake makes every channel look for due items.
func (o *Outbox) Wake() {
	for _, w := range o.channels {
		w.poke()
	}
}

// CancelGroup recalls the queued items of a group in the caller's transaction. What is being sent at this moment may
// still go out and is then reported as sent.
func (o *Outbox) CancelGroup(tx *sqldb.Tx, group string) (int64, error) {
	return tx.Exec(qCancelGroup, group, matrix.Millis(o.now()))
}

// Group lists the items of a group in the order they were put.
func (o *Outbox) Group(ctx context.Context, group string) (items []Item, err error) {
	err = o.db.Read(ctx, func(tx *sqldb.Tx) error {
		items, err = sqldb.Select(tx, scanItem, qGroup, group)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the outbox: %w", err)
	}
	return items, nil
}

// ByKey is one item, or nil.
func (o *Outbox) ByKey(ctx context.Context, key string) (*Item, error) {
	var found []Item
	err := o.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		found, err = sqldb.Select(tx, scanItem, qByKey, key)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the outbox: %w", err)
	}
	if len(found) == 0 {
		return nil, nil
	}
	return &found[0], nil
}

// Report records what the other side said later of something a channel sent: Delivered, Failed or Expired. Reports of
// unknown things and repeated reports change nothing.
func (o *Outbox) Report(ctx context.Context, channel, providerID string, state State, reason string) error {
	if state != Delivered && state != Failed && state != Expired {
		return fmt.Errorf("a report cannot make an item %s", state)
	}
	var changed []Item
	err := o.db.Write(ctx, func(tx *sqldb.Tx) (err error) {
		changed, err = sqldb.Select(tx, scanItem, qReport, channel, providerID, string(state), reason, matrix.Millis(o.now()))
		return err
	})
	if err != nil {
		return fmt.Errorf("recording a delivery report: %w", err)
	}
	o.tell(ctx, changed)
	return nil
}

// Run sends until ctx ends, then waits for what is under way.
func (o *Outbox) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, w := range o.channels {
		wg.Go(func() { w.run(ctx) })
	}
	wg.Go(func() { o.sweep(ctx) })
	wg.Wait()
	return nil
}

// sweep forgets old items, once at the start and then daily.
func (o *Outbox) sweep(ctx context.Context) {
	for {
		before := matrix.Millis(o.now().Add(-Keep))
		err := o.db.Write(ctx, func(tx *sqldb.Tx) error {
			_, err := tx.Exec(qSweep, before)
			return err
		})
		logFailure(ctx, err, "clearing the outbox of old items")
		t := time.NewTimer(24 * time.Hour)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}
