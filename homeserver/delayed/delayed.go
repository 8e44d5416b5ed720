// Package delayed keeps events that a user wants sent later, and sends them when
// their time has come: reminders, and the hanging-up of a call whose client has
// gone silent, which the client puts off again and again while it is there.
//
// The table is the truth, so a stop of the server loses nothing: what was missed
// is sent at the next start, in order. An event is sent as a transaction of its
// own, named by its delay ID, so it is sent once however often it is tried.
// Whether its sender may send it is decided when it is sent.
//
// Tables: delayed_events. Spec: MSC4140.
//
// Invariants: what happens to one delayed event happens under its lock; an event
// of which the outcome is stored is never sent; within a room events are sent in
// the order of their times.
package delayed

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

//go:embed schema
var schema embed.FS

const (
	// keep and keepOfUser bound how long outcomes can be asked for.
	keep       = 7 * 24 * time.Hour
	keepOfUser = 1000
	// maxContent is the largest content, in bytes: no event can be larger.
	maxContent = 65536
	maxName    = 255 // of types and state keys, in bytes
	// page is how many events one look takes, senders how many rooms are sent to
	// at a time.
	page    = 200
	senders = 8
	// patience bounds the sending of one event, retry is when it is tried again
	// after the server itself has failed.
	patience = time.Minute
	retry    = 5 * time.Second
)

// Options is what Delayed is built of. The zero value is usable.
type Options struct {
	MaxDelay     time.Duration // 0: a day
	MaxScheduled int           // of one user at a time; 0: 100, below 0: none may be scheduled
	// PerSecond and Burst slow down the sending of one user's events; 0: not.
	PerSecond float64
	Burst     int
	// MaySend is asked before an event is sent; nil allows all.
	MaySend func(user matrix.UserID) error
	Now     matrix.Now
}

// Delayed is all delayed events of the server.
type Delayed struct {
	o      Options
	db     *sqldb.DB
	events *events.Store
	rooms  *rooms.Rooms

	locks   gate.Keyed[string]        // by delay ID
	users   gate.Keyed[matrix.UserID] // held while events are counted and one is added
	limiter *gate.Limiter[matrix.UserID]
	pace    pace

	next atomic.Int64  // when the loop looks again, ms
	bell chan struct{} // capacity one: full means that it will look anyway
}

const columns = `delay_id, user_id, room_id, type, state_key, content, sticky, ts, unlimited, delay, scheduled_at, send_at, due, finalised_at, event_id, error`

const (
	qInsert = `INSERT INTO delayed_events (delay_id, user_id, room_id, type, state_key, content, sticky, ts, unlimited, txn, delay, scheduled_at, send_at, due, finalised_at, event_id, error)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, 0, '', '')`
	qByTxn = `SELECT delay_id FROM delayed_events WHERE user_id = $1 AND txn = $2 AND txn <> ''`
	qCount = `SELECT count(*), coalesce(min(send_at), 0) FROM delayed_events WHERE user_id = $1 AND finalised_at = 0`
	qGet   = `SELECT ` + columns + ` FROM delayed_events WHERE delay_id = $1`
	qList  = `SELECT ` + columns + ` FROM delayed_events
		WHERE user_id = $1 AND finalised_at = 0 AND (send_at, delay_id) > ($2, $3) ORDER BY send_at, delay_id LIMIT $4`
	qDue     = `SELECT ` + columns + ` FROM delayed_events WHERE finalised_at = 0 AND due <= $1 ORDER BY due, send_at, delay_id LIMIT $2`
	qNext    = `SELECT coalesce(min(due), 0) FROM delayed_events WHERE finalised_at = 0`
	qLater   = `UPDATE delayed_events SET due = $2 WHERE delay_id = $1 AND finalised_at = 0`
	qRestart = `UPDATE delayed_events SET scheduled_at = $2, send_at = $3, due = $3 WHERE delay_id = $1 AND finalised_at = 0`
	qFinal   = `UPDATE delayed_events SET finalised_at = $2, event_id = $3, error = $4 WHERE delay_id = $1 AND finalised_at = 0`
	qSweep   = `DELETE FROM delayed_events WHERE finalised_at > 0 AND finalised_at < $1`
	qMany    = `SELECT user_id FROM delayed_events WHERE finalised_at > 0 GROUP BY user_id HAVING count(*) > $1`
	qTrim    = `DELETE FROM delayed_events WHERE user_id = $1 AND finalised_at > 0 AND finalised_at <=
		(SELECT finalised_at FROM delayed_events WHERE user_id = $1 AND finalised_at > 0 ORDER BY finalised_at DESC LIMIT 1 OFFSET $2)`
	qDeleteUser = `DELETE FROM delayed_events WHERE user_id = $1`
)

// New opens the delayed events.
func New(ctx context.Context, db *sqldb.DB, ev *events.Store, r *rooms.Rooms, o Options) (*Delayed, error) {
	if err := db.Migrate(ctx, "delayed", schema); err != nil {
		return nil, err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxDelay <= 0 {
		o.MaxDelay = 24 * time.Hour
	}
	if o.MaxScheduled == 0 {
		o.MaxScheduled = 100
	}
	d := &Delayed{o: o, db: db, events: ev, rooms: r, bell: make(chan struct{}, 1), pace: pace{slots: map[matrix.UserID]int64{}}}
	if o.PerSecond > 0 {
		d.limiter = gate.NewLimiter[matrix.UserID](o.PerSecond, o.Burst, 50_000, o.Now)
	}
	return d, nil
}

// Limits are the longest delay, and how many events a user may have scheduled.
func (d *Delayed) Limits() (maxDelay time.Duration, maxScheduled int) {
	return d.o.MaxDelay, max(d.o.MaxScheduled, 0)
}

// item is a delayed event.
type item struct {
	id        string
	user      matrix.UserID
	room      matrix.RoomID
	typ       string
	stateKey  *string
	content   string
	sticky    *int64
	ts        int64
	unlimited bool // its sender is not slowed down
	delay     int64
	scheduled int64
	sendAt    int64
	due       int64 // when it is tried next
	final     int64 // 0 while it is scheduled
	event     matrix.EventID
	failure   string // the error's body
}

func scan(r *sqldb.Rows) (*item, error) {
	i := &item{}
	err := r.Scan(&i.id, &i.user, &i.room, &i.typ, &i.stateKey, &i.content, &i.sticky, &i.ts, &i.unlimited, &i.delay, &i.scheduled,
		&i.sendAt, &i.due, &i.final, &i.event, &i.failure)
	return i, err
}

func (d *Delayed) nowMS() int64 { return d.o.Now().UnixMilli() }

// find reads a delayed event; owner, if not "", must be its user.
func (d *Delayed) find(ctx context.Context, id string, owner matrix.UserID) (*item, error) {
	var list []*item
	err := d.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		list, err = sqldb.Select(tx, scan, qGet, id)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading delayed event: %w", err)
	}
	if len(list) == 0 || owner != "" && list[0].user != owner {
		return nil, matrix.NotFound("there is no such delayed event")
	}
	return list[0], nil
}

// list reads scheduled events of a user after a time and an ID, in that order.
func (d *Delayed) list(ctx context.Context, user matrix.UserID, at int64, after string, limit int) (list []*item, err error) {
	err = d.db.Read(ctx, func(tx *sqldb.Tx) error {
		list, err = sqldb.Select(tx, scan, qList, string(user), at, after, limit)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing delayed events: %w", err)
	}
	return list, nil
}

// byTxn finds what a repeated request has scheduled before, "" for nothing.
func (d *Delayed) byTxn(ctx context.Context, user matrix.UserID, txn string) (id string, err error) {
	err = d.db.Read(ctx, func(tx *sqldb.Tx) error {
		err := tx.QueryRow(qByTxn, string(user), txn).Scan(&id)
		if errors.Is(err, sqldb.ErrNoRows) {
			return nil
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("looking for a repeated delayed event: %w", err)
	}
	return id, nil
}

// schedule stores a delayed event. i has no ID and no times yet.
func (d *Delayed) schedule(ctx context.Context, i *item, txn string) error {
	unlock, err := d.users.LockContext(ctx, i.user)
	if err != nil {
		return err
	}
	defer unlock()
	now := d.nowMS()
	// Whoever has the ID may act on the event: it is as hard to guess as a token.
	i.id, i.scheduled, i.sendAt = matrix.RandomString(32), now, now+i.delay
	err = d.db.Write(ctx, func(tx *sqldb.Tx) error {
		var n int
		var first int64
		if err := tx.QueryRow(qCount, string(i.user)).Scan(&n, &first); err != nil {
			return err
		}
		if n >= d.o.MaxScheduled {
			return tooMany(time.Duration(max(first-now, 1)) * time.Millisecond)
		}
		_, err := tx.Exec(qInsert, i.id, string(i.user), string(i.room), i.typ, i.stateKey, i.content, i.sticky, i.ts, i.unlimited, txn,
			i.delay, i.scheduled, i.sendAt, i.sendAt)
		return err
	})
	var refused *matrix.Error
	switch {
	case errors.As(err, &refused):
		return refused
	case errors.Is(err, sqldb.ErrExists) && txn != "": // the same request twice at once
		if i.id, err = d.byTxn(ctx, i.user, txn); err == nil && i.id == "" {
			err = errors.New("a stored delayed event is missing")
		}
		return err
	case err != nil:
		return fmt.Errorf("storing delayed event: %w", err)
	}
	d.wake(i.sendAt)
	return nil
}

// tooMany is what the user hears who has scheduled all that he may.
func tooMany(wait time.Duration) *matrix.Error {
	return matrix.NewError(429, "M_LIMIT_EXCEEDED", "you have scheduled as many delayed events as you may").
		With("retry_after_ms", max(wait.Milliseconds(), 1)).
		With("org.matrix.msc4140.errcode", "M_MAX_DELAYED_EVENTS_EXCEEDED")
}

// Cancel ends a delayed event without sending it. owner, if not "", must be its
// user.
func (d *Delayed) Cancel(ctx context.Context, id string, owner matrix.UserID) error {
	return d.act(ctx, id, owner, func(i *item) error {
		sent, err := d.sent(ctx, i)
		switch {
		case err != nil:
			return err
		case i.final != 0 && i.event == "":
			return nil
		case i.final != 0:
			return conflict("has been sent")
		case sent != "": // the server stopped before it could note that
			if err := d.finalise(ctx, i, sent, nil); err != nil {
				return err
			}
			return conflict("has been sent")
		}
		return d.finalise(ctx, i, "", nil)
	})
}

// Restart puts a delayed event off: its delay begins anew.
func (d *Delayed) Restart(ctx context.Context, id string, owner matrix.UserID) error {
	return d.act(ctx, id, owner, func(i *item) error {
		if i.final != 0 && i.event == "" {
			return conflict("has been cancelled")
		}
		if i.final != 0 {
			return conflict("has been sent")
		}
		now := d.nowMS()
		if i.sendAt <= now { // it may have been sent right before the server stopped
			sent, err := d.sent(ctx, i)
			if err != nil {
				return err
			}
			if sent != "" {
				if err := d.finalise(ctx, i, sent, nil); err != nil {
					return err
				}
				return conflict("has been sent")
			}
		}
		err := d.db.Write(ctx, func(tx *sqldb.Tx) error {
			_, err := tx.Exec(qRestart, i.id, now, now+i.delay)
			return err
		})
		if err != nil {
			return fmt.Errorf("restarting delayed event: %w", err)
		}
		d.wake(now + i.delay)
		return nil
	})
}

// Send sends a delayed event now. If that fails it stays scheduled.
func (d *Delayed) Send(ctx context.Context, id string, owner matrix.UserID) error {
	return d.act(ctx, id, owner, func(i *item) error {
		switch {
		case i.final != 0 && i.event == "":
			return conflict("has been cancelled")
		case i.final != 0:
			return nil
		}
		if d.limiter != nil && !i.unlimited {
			if ok, wait := d.limiter.Allow(i.user); !ok {
				return matrix.LimitExceeded(wait)
			}
		}
		event, err := d.deliver(ctx, i)
		if err != nil {
			return err
		}
		return d.finalise(context.WithoutCancel(ctx), i, event, nil)
	})
}

func conflict(what string) *matrix.Error {
	return matrix.NewError(409, "M_UNKNOWN", "the delayed event %s already", what)
}

// act does something with a delayed event under its lock.
func (d *Delayed) act(ctx context.Context, id string, owner matrix.UserID, fn func(*item) error) error {
	if _, err := d.find(ctx, id, owner); err != nil { // before the lock: any string may be asked for
		return err
	}
	unlock, err := d.locks.LockContext(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	i, err := d.find(ctx, id, owner)
	if err != nil {
		return err
	}
	return fn(i)
}

// finalise stores an outcome: the event that it became, why it became none, or
// neither if it was cancelled.
func (d *Delayed) finalise(ctx context.Context, i *item, event matrix.EventID, failure *matrix.Error) error {
	body := ""
	if failure != nil {
		b, err := failure.MarshalJSON()
		if err != nil {
			return err
		}
		body = string(b)
	}
	err := d.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qFinal, i.id, d.nowMS(), string(event), body)
		return err
	})
	if err != nil {
		return fmt.Errorf("storing the outcome of a delayed event: %w", err)
	}
	return nil
}

// DeleteUser forgets the delayed events of a user, as when his account is closed.
func (d *Delayed) DeleteUser(ctx context.Context, user matrix.UserID) error {
	err := d.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qDeleteUser, string(user))
		return err
	})
	if err != nil {
		return fmt.Errorf("deleting delayed events: %w", err)
	}
	return nil
}
