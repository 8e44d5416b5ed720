package delayed

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// sweep is how often outcomes that nobody can ask for any more are dropped.
const sweep = time.Hour

// Run sends what is due until ctx ends.
func (d *Delayed) Run(ctx context.Context) error {
	var swept time.Time
	for ctx.Err() == nil {
		if now := time.Now(); now.Sub(swept) >= sweep {
			if err := d.sweep(ctx); err != nil && ctx.Err() == nil {
				log.WithError(err).Warn("outcomes of delayed events are left")
			}
			swept = now
		}
		at, err := d.round(ctx)
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			log.WithError(err).Warn("delayed events could not be sent; trying again")
			at = d.nowMS() + retry.Milliseconds()
		}
		if !d.sleep(ctx, at) {
			break
		}
	}
	return nil
}

// sleep waits until at (ms), or for a nearer event.
func (d *Delayed) sleep(ctx context.Context, at int64) bool {
	at = min(at, d.nowMS()+sweep.Milliseconds())
	d.next.Store(at)
	t := time.NewTimer(time.Duration(at-d.nowMS()) * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
	case <-d.bell:
	case <-ctx.Done():
		return false
	}
	return true
}

// wake tells the loop of an event that is due at a time, if it would sleep longer.
func (d *Delayed) wake(at int64) {
	if at >= d.next.Load() {
		return
	}
	select {
	case d.bell <- struct{}{}:
	default:
	}
}

// round sends what is due and returns when to look again, in ms.
func (d *Delayed) round(ctx context.Context) (int64, error) {
	d.next.Store(1 << 62) // whatever is added from here on rings the bell
	var list []*item
	var next int64
	now := d.nowMS()
	err := d.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		if list, err = sqldb.Select(tx, scan, qDue, now, page); err != nil || len(list) > 0 {
			return err
		}
		return tx.QueryRow(qNext).Scan(&next)
	})
	if err != nil {
		return 0, fmt.Errorf("reading delayed events: %w", err)
	}
	if len(list) == 0 {
		if next == 0 {
			next = 1 << 62
		}
		return next, nil
	}
	slices.SortFunc(list, func(a, b *item) int {
		return cmp.Or(cmp.Compare(a.sendAt, b.sendAt), cmp.Compare(a.id, b.id))
	})
	byRoom := map[matrix.RoomID][]*item{}
	for _, i := range list {
		byRoom[i.room] = append(byRoom[i.room], i)
	}
	slots := gate.NewSemaphore(senders)
	d.pace.forget(now)
	var wg sync.WaitGroup
	var failed atomic.Bool
	for _, items := range byRoom {
		release, err := slots.Acquire(ctx, 1)
		if err != nil {
			break
		}
		wg.Go(func() {
			defer release()
			for _, i := range items {
				if ctx.Err() != nil {
					return
				}
				if err := d.timed(ctx, i, now); err != nil && ctx.Err() == nil {
					log.WithError(err).WithField("room_id", i.room).WithField("user_id", i.user).Warn("a delayed event could not be sent; trying again")
					failed.Store(true)
				}
			}
		})
	}
	wg.Wait()
	if failed.Load() {
		return d.nowMS() + retry.Milliseconds(), ctx.Err()
	}
	return d.nowMS(), ctx.Err() // there may be more
}

// pace spreads the events of users who have too many at once: each gets a slot of
// its own, behind those that the user's earlier events have got.
type pace struct {
	mu    sync.Mutex
	slots map[matrix.UserID]int64 // the last slot of a user, ms
}

// slot is the time, in ms, for which an event has to wait, 0 for none. now is that
// of the round: whose slot is over by then is in it, and comes first.
func (d *Delayed) slot(i *item, now int64) int64 {
	if d.limiter == nil || i.unlimited {
		return 0
	}
	ok, wait := d.limiter.Allow(i.user)
	if i.due > i.sendAt { // this is its slot
		return 0
	}
	d.pace.mu.Lock()
	defer d.pace.mu.Unlock()
	slot, behind := d.pace.slots[i.user]
	switch {
	case behind && slot > now:
		slot += int64(1000/d.o.PerSecond) + 1
	case ok:
		return 0
	default:
		slot = d.nowMS() + max(wait.Milliseconds(), 1)
	}
	d.pace.slots[i.user] = slot
	return slot
}

// forget drops the slots that are over by now.
func (p *pace) forget(now int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.slots, func(_ matrix.UserID, slot int64) bool { return slot <= now })
}

// timed sends an event whose time has come.
func (d *Delayed) timed(ctx context.Context, i *item, now int64) error {
	unlock, err := d.locks.LockContext(ctx, i.id)
	if err != nil {
		return err
	}
	defer unlock()
	if i, err = d.find(ctx, i.id, ""); err != nil {
		if matrix.IsCode(err, "M_NOT_FOUND") {
			return nil // its user is gone
		}
		return err
	}
	if i.final != 0 || i.sendAt > d.nowMS() {
		return nil // somebody was faster
	}
	if at := d.slot(i, now); at > 0 {
		return d.later(ctx, i, at)
	}
	sendCtx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	event, err := d.deliver(sendCtx, i)
	var refused *matrix.Error
	if err != nil && !errors.As(err, &refused) {
		if ctx.Err() != nil {
			return err // the next start sends it
		}
		return errors.Join(err, d.later(ctx, i, d.nowMS()+retry.Milliseconds()))
	}
	return d.finalise(context.WithoutCancel(ctx), i, event, refused)
}

// later has an event tried at a time, in ms.
func (d *Delayed) later(ctx context.Context, i *item, at int64) error {
	err := d.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qLater, i.id, at)
		return err
	})
	if err != nil {
		return fmt.Errorf("putting a delayed event off: %w", err)
	}
	return nil
}

// sent finds the event that a delayed event has become, "" if it has not.
func (d *Delayed) sent(ctx context.Context, i *item) (id matrix.EventID, err error) {
	err = d.db.Read(ctx, func(tx *sqldb.Tx) error {
		id, err = d.events.ByTxn(tx, i.room, i.user, events.DelayTxn(i.id))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("looking for a sent event: %w", err)
	}
	return id, nil
}

// deliver sends an event, unless that has been done before.
func (d *Delayed) deliver(ctx context.Context, i *item) (matrix.EventID, error) {
	if id, err := d.sent(ctx, i); err != nil || id != "" {
		return id, err
	}
	if d.o.MaySend != nil {
		if err := d.o.MaySend(i.user); err != nil {
			return "", err
		}
	}
	return d.rooms.Put(ctx, rooms.Draft{
		Room: i.room, Sender: i.user, Type: i.typ, StateKey: i.stateKey, Content: []byte(i.content), Sticky: i.sticky, TS: i.ts,
		Txn: events.DelayTxn(i.id), Always: true,
	})
}

// sweep drops outcomes that are old, or too many.
func (d *Delayed) sweep(ctx context.Context) error {
	var users []string
	err := d.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		users, err = sqldb.Select(tx, func(r *sqldb.Rows) (s string, err error) {
			err = r.Scan(&s)
			return s, err
		}, qMany, keepOfUser)
		return err
	})
	if err != nil {
		return fmt.Errorf("counting outcomes of delayed events: %w", err)
	}
	err = d.db.Write(ctx, func(tx *sqldb.Tx) error {
		for _, u := range users {
			if _, err := tx.Exec(qTrim, u, keepOfUser); err != nil {
				return err
			}
		}
		_, err := tx.Exec(qSweep, d.nowMS()-keep.Milliseconds())
		return err
	})
	if err != nil {
		return fmt.Errorf("dropping outcomes of delayed events: %w", err)
	}
	return nil
}
