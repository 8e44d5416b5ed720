package ding

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/bridges/bridge"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// recallWatch is for how long a recalled DING is looked at again at a start: a message may have been on its way.
const recallWatch = 24 * time.Hour

// resume takes up the DINGs that were under way when the process ended.
func (d *Dings) resume(ctx context.Context) error {
	var busy []*live
	err := d.db.Read(ctx, func(tx *sqldb.Tx) error {
		busy = nil
		ids, err := sqldb.Select(tx, scanString, qBusy, d.millis()-recallWatch.Milliseconds())
		if err != nil {
			return err
		}
		for _, id := range ids {
			l, err := readLive(tx, id)
			if err != nil {
				return err
			}
			busy = append(busy, l)
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.mu.Lock()
	for _, l := range busy {
		d.hold(l)
		d.touch(l)
	}
	d.mu.Unlock()
	for _, l := range busy {
		if err := d.reconcile(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// reconcile learns from the outbox what was sent just before the process ended.
func (d *Dings) reconcile(ctx context.Context, l *live) error {
	d.mu.Lock()
	open := l.cardEvent == "" || l.n.Queued > 0 || l.n.Recalled > 0
	d.mu.Unlock()
	if !open {
		return nil
	}
	for _, g := range []string{group(l.ID), group(l.ID) + "/after"} {
		items, err := d.opts.Outbox.Group(ctx, g)
		if err != nil {
			return err
		}
		var done []bridge.Item
		for i := range items {
			if items[i].State != bridge.Queued && items[i].State != bridge.Recalled {
				done = append(done, items[i])
			}
		}
		if err := d.takeResults(ctx, done); err != nil {
			return err
		}
	}
	return nil
}

// schedule waits for the next DING to fire or to end.
func (d *Dings) schedule(ctx context.Context) {
	failures := gate.Backoff{Min: time.Second, Max: time.Minute}
	for ctx.Err() == nil {
		due, next := d.due()
		failed := false
		for _, l := range due {
			if err := d.turn(ctx, l); err != nil && ctx.Err() == nil {
				log.WithError(err).WithField("ding", l.ID).Error("A DING could not be fired or ended, will be tried again")
				failed = true
			}
		}
		if failed {
			if failures.Wait(ctx) != nil {
				return
			}
			continue
		}
		failures.Reset()
		if len(due) > 0 {
			continue
		}
		var alarm <-chan time.Time
		var t *time.Timer
		if next > 0 {
			t = time.NewTimer(max(time.Duration(next-d.millis())*time.Millisecond, time.Millisecond))
			alarm = t.C
		}
		select {
		case <-ctx.Done():
		case <-d.wakeup:
		case <-alarm:
		}
		if t != nil {
			t.Stop()
		}
	}
}

// due are the DINGs whose time has come, or else the time of the next.
func (d *Dings) due() (due []*live, next int64) {
	now := d.millis()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.live {
		at := int64(0)
		switch l.State {
		case Scheduled:
			at = l.FireAt
		case Open:
			at = l.ExpiresAt
		default:
			continue
		}
		if at <= now {
			due = append(due, l)
		} else if next == 0 || at < next {
			next = at
		}
	}
	return due, next
}

// turn fires or ends a DING whose time has come.
func (d *Dings) turn(ctx context.Context, l *live) error {
	d.mu.Lock()
	state, fireAt := l.State, l.FireAt
	d.mu.Unlock()
	switch state {
	case Open:
		return d.end(ctx, l, Open, Expired, "", "")
	case Scheduled:
		if d.millis() > fireAt+d.opts.Grace.Milliseconds() {
			return d.end(ctx, l, Scheduled, Missed, "missed", "")
		}
		return d.fire(ctx, l)
	}
	return nil
}

// fire sends a scheduled DING to whom it is for now.
func (d *Dings) fire(ctx context.Context, l *live) error {
	d.mu.Lock()
	g := l.Ding
	d.mu.Unlock()
	sender := d.opts.Tree().Person(g.Sender)
	if sender == nil || sender.Status == org.StatusLeft && d.opts.SenderLeft != "send" {
		return d.end(ctx, l, Scheduled, Cancelled, "sender_left", "")
	}
	to, err := d.resolve(ctx, &g, sender, sender.Admin || d.opts.IsAdmin(g.SenderUser))
	var refusal *matrix.Error
	if errors.As(err, &refusal) {
		return d.end(ctx, l, Scheduled, Refused, refusal.Msg, "")
	}
	if err != nil {
		return fmt.Errorf("finding the receivers: %w", err)
	}
	now := d.millis()
	fired := &live{Ding: g}
	fired.ExpiresAt += max(now-g.FireAt, 0) // people get the whole time
	to.into(fired, now)
	items := d.outgoing(fired)
	err = d.db.Write(ctx, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(qFired, g.ID, now, mustJSON(nonNil(fired.Skipped)), int64(fired.AlreadyRead), fired.ExpiresAt)
		if err != nil {
			return err
		}
		if n == 0 {
			return errMoved
		}
		if err := insertDeliveries(tx, fired); err != nil {
			return err
		}
		if err := d.opts.Outbox.Put(tx, items...); err != nil {
			return err
		}
		if err := d.sendAbroad(tx, fired); err != nil {
			return err
		}
		return journal(tx, g.ID, now, "", "fired", "")
	})
	if errors.Is(err, errMoved) {
		return nil // recalled meanwhile
	}
	if err != nil {
		return fmt.Errorf("firing a DING: %w", err)
	}
	d.mu.Lock()
	l.to, l.Skipped, l.AlreadyRead, l.State, l.FiredAt, l.ExpiresAt = fired.to, fired.Skipped, fired.AlreadyRead, Open, now, fired.ExpiresAt
	d.hold(l)
	d.touch(l)
	d.mu.Unlock()
	d.opts.Outbox.Wake()
	log.WithFields(log.Fields{"ding": g.ID, "receivers": len(fired.to)}).Info("Scheduled DING fired")
	return nil
}

// errMoved says that a DING is no longer in the state it was seen in.
var errMoved = errors.New("the DING has moved on")

// end brings a DING to an end, unless it has moved on from the state it was in.
func (d *Dings) end(ctx context.Context, l *live, from, to State, reason, actor string) error {
	now := d.millis()
	var moved bool
	err := d.db.Write(ctx, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(qEnd, l.ID, string(to), reason, now, string(from))
		if err != nil {
			return err
		}
		if moved = n == 0; moved {
			return nil
		}
		if l.held && to == Expired { // nobody has got it
			if _, err := tx.Exec(qExpireHeld, l.ID); err != nil {
				return err
			}
		}
		return journal(tx, l.ID, now, actor, string(to), reason)
	})
	if err != nil {
		return fmt.Errorf("ending a DING: %w", err)
	}
	if moved {
		return nil
	}
	d.mu.Lock()
	l.State, l.Reason, l.EndedAt, l.cardDone = to, reason, now, false
	if l.held && to == Expired {
		for i := range l.to {
			if t := &l.to[i]; t.State == Queued {
				l.n.add(t, -1)
				t.State = Expired
				l.n.add(t, 1)
			}
		}
	}
	d.touch(l)
	d.mu.Unlock()
	log.WithFields(log.Fields{"ding": l.ID, "state": to, "reason": reason}).Info("DING over")
	return nil
}

// onResults is told by the outbox what became of items. It tries for a while to store it: what is lost here would only
// be learned again at the next start.
func (d *Dings) onResults(ctx context.Context, items []bridge.Item) {
	ctx = context.WithoutCancel(ctx)
	wait := gate.Backoff{Min: 50 * time.Millisecond, Max: 2 * time.Second}
	for {
		err := d.takeResults(ctx, items)
		if err == nil {
			return
		}
		if wait.Attempts() > 6 || errors.Is(err, sqldb.ErrClosed) {
			log.WithError(err).Error("Storing deliveries of DINGs failed")
			return
		}
		if wait.Wait(ctx) != nil {
			return
		}
	}
}

// outcome is the result of one delivery.
type outcome struct {
	l      *live
	i      int
	state  State // Sent, Failed or Expired
	reason string
	room   string
	event  string
	record string
	at     int64
}

// takeResults stores what became of deliveries and cards. Repeating it changes nothing.
func (d *Dings) takeResults(ctx context.Context, items []bridge.Item) error {
	var outs []outcome
	for i := range items {
		it := &items[i]
		dingID, what, person, ok := splitKey(it.Key)
		if !ok || what != itemDelivery && what != itemCard {
			continue
		}
		l, err := d.get(ctx, dingID)
		if err != nil {
			return err
		}
		if l == nil {
			continue
		}
		if what == itemCard {
			if err := d.cardSent(ctx, l, it); err != nil {
				return err
			}
			continue
		}
		d.mu.Lock()
		n, ok := l.index[person]
		d.mu.Unlock()
		if ok {
			outs = append(outs, resultOf(l, n, it))
		}
	}
	return d.apply(ctx, outs)
}

func resultOf(l *live, i int, it *bridge.Item) outcome {
	o := outcome{l: l, i: i, reason: it.Reason, at: it.UpdatedAt}
	switch it.State {
	case bridge.Sent, bridge.Delivered:
		o.state = Sent
		var detail bridge.AppDetail
		if json.Unmarshal(it.Detail, &detail) == nil && len(detail.Events) == 2 {
			o.room, o.record, o.event = string(detail.Room), string(detail.Events[0]), string(detail.Events[1])
		}
	case bridge.Expired:
		o.state = Expired
	default:
		o.state = Failed
	}
	return o
}

// apply stores outcomes; what went out of a recalled DING is retracted in the same transaction.
func (d *Dings) apply(ctx context.Context, outs []outcome) error {
	if len(outs) == 0 {
		return nil
	}
	var retract []bridge.New
	d.mu.Lock()
	for _, o := range outs {
		if o.state == Sent && o.event != "" && o.l.State == Recalled {
			t := o.l.to[o.i]
			t.Event = o.event
			retract = append(retract, d.retraction(o.l, &t))
		}
	}
	d.mu.Unlock()
	err := d.db.Write(ctx, func(tx *sqldb.Tx) error {
		for _, o := range outs {
			var err error
			if o.state == Sent {
				_, err = tx.Exec(qWentOut, o.l.ID, int64(o.i), o.room, o.event, o.record, o.at, o.l.Origin == "")
			} else {
				_, err = tx.Exec(qNotSent, o.l.ID, int64(o.i), string(o.state), o.reason, o.l.Origin == "")
			}
			if err != nil {
				return err
			}
		}
		return d.opts.Outbox.Put(tx, retract...)
	})
	if err != nil {
		return fmt.Errorf("storing deliveries: %w", err)
	}
	if len(retract) > 0 {
		d.opts.Outbox.Wake()
	}
	return d.applied(ctx, outs)
}

// applied brings memory to what apply has stored.
func (d *Dings) applied(ctx context.Context, outs []outcome) error {
	changed := map[*live]bool{}
	var retract []bridge.New // recalled while the outcome was being stored
	d.mu.Lock()
	for _, o := range outs {
		t := &o.l.to[o.i]
		o.l.n.add(t, -1)
		switch {
		case o.state == Sent:
			t.Room, t.Event, t.Record = o.room, o.event, o.record
			if t.SentAt == 0 {
				t.SentAt = o.at
			}
			if t.State == Queued {
				t.State = Sent
			}
			if o.event != "" {
				d.events[o.event] = ref{o.l, o.i}
				if o.l.State == Recalled {
					retract = append(retract, d.retraction(o.l, t))
				}
			}
		case t.State == Queued:
			t.State, t.Reason = o.state, o.reason
		}
		o.l.n.add(t, 1)
		changed[o.l] = true
	}
	for l := range changed {
		if l.State.over() {
			l.cardDone = false
		}
		d.touch(l)
	}
	d.mu.Unlock()
	if len(retract) > 0 {
		if err := d.opts.Outbox.Add(ctx, retract...); err != nil {
			return fmt.Errorf("retracting: %w", err)
		}
	}
	for l := range changed {
		if err := d.maybeConfirmed(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// maybeConfirmed ends a DING that everybody whom it reached has confirmed.
func (d *Dings) maybeConfirmed(ctx context.Context, l *live) error {
	d.mu.Lock()
	all := l.State == Open && l.n.Confirmed > 0 && l.n.Confirmed+l.n.Failed == l.n.Total
	d.mu.Unlock()
	if !all {
		return nil
	}
	return d.end(ctx, l, Open, Confirmed, "", "")
}
