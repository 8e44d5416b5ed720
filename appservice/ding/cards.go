package ding

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	log "github.com/sirupsen/logrus"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/bridges/bridge"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// cardEvery is how often a card is edited at most.
const cardEvery = time.Second

// noCard stands for the event of a card that could not be sent.
const noCard = "-"

// cardSent learns where the card of a DING stands.
func (d *Dings) cardSent(ctx context.Context, l *live, it *bridge.Item) error {
	room, event := "", noCard
	var detail bridge.AppDetail
	if it.State == bridge.Sent || it.State == bridge.Delivered {
		if json.Unmarshal(it.Detail, &detail) == nil && len(detail.Events) > 0 {
			room, event = string(detail.Room), string(detail.Events[len(detail.Events)-1])
		}
	}
	d.mu.Lock()
	known := l.cardEvent == event
	d.mu.Unlock()
	if known {
		return nil
	}
	err := d.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qCard, l.ID, event, room)
		return err
	})
	if err != nil {
		return fmt.Errorf("storing a card: %w", err)
	}
	d.mu.Lock()
	l.cardEvent, l.cardRoom = event, room
	d.cards[event] = l.ID
	d.touch(l)
	d.mu.Unlock()
	return nil
}

// showCards edits the cards whose DINGs have changed, each at most once in cardEvery.
func (d *Dings) showCards(ctx context.Context) {
	for {
		next := d.editDue(ctx)
		var alarm <-chan time.Time
		var t *time.Timer
		if next > 0 {
			t = time.NewTimer(next)
			alarm = t.C
		}
		select {
		case <-ctx.Done():
		case <-d.cardRun:
		case <-alarm:
		}
		if t != nil {
			t.Stop()
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// editDue edits the cards that may be edited now and says how long to wait for the next, 0 if there is none.
func (d *Dings) editDue(ctx context.Context) (next time.Duration) {
	now := time.Now()
	d.mu.Lock()
	var due []*live
	for id := range d.dirty {
		l := d.live[id]
		if l == nil || l.cardEvent == "" {
			if l == nil {
				delete(d.dirty, id)
			}
			continue // it is touched again when the card is out
		}
		pause := cardEvery
		if l.failures > 0 {
			pause = min(time.Duration(1<<min(l.failures, 8))*time.Second, 5*time.Minute)
		}
		if wait := l.edited.Add(pause).Sub(now); wait > 0 {
			if next == 0 || wait < next {
				next = wait
			}
			continue
		}
		due = append(due, l)
	}
	d.mu.Unlock()
	for _, l := range due {
		if ctx.Err() != nil {
			return 0
		}
		if err := d.editCard(ctx, l); err != nil && ctx.Err() == nil {
			log.WithError(err).WithField("ding", l.ID).Warn("A DING's card could not be edited, will be tried again")
			ring(d.cardRun)
		}
	}
	return next
}

// editCard shows the present state on a card, if it does not yet.
func (d *Dings) editCard(ctx context.Context, l *live) error {
	if l.Origin != "" {
		return d.closeCopy(ctx, l)
	}
	d.mu.Lock()
	delete(d.dirty, l.ID) // a change from now on makes it dirty again
	c := d.card(l)
	rev, room, event, over := l.cardRev+1, l.cardRoom, l.cardEvent, l.State.over()
	// A DING that is over while deliveries are under way is shown once more when they are out.
	final := over && l.n.Queued == 0
	same, done := l.cardShown == c.shown, l.cardDone
	if !same {
		l.edited = time.Now()
	}
	d.mu.Unlock()
	lost := event == noCard
	if same && done == final || lost && done {
		return nil
	}
	if !same && !lost {
		// The mark is part of the transaction ID: an edit repeated after a cut shows once, one with new figures shows.
		txn := "ding/" + l.ID + "/edit/" + strconv.FormatInt(rev, 10) + "/" + c.shown
		_, err := d.opts.Matrix.SendEvent(ctx, id.RoomID(room), "", typeMessage, json.RawMessage(mustJSON(edit(event, c.content))), txn)
		if mxclient.IsPermanent(err) && !mxclient.IsCode(err, "M_LIMIT_EXCEEDED") {
			log.WithError(err).WithField("ding", l.ID).Warn("A DING's card can no longer be edited")
			lost = true
		} else if err != nil {
			d.mu.Lock()
			l.failures++
			d.dirty[l.ID] = true
			d.mu.Unlock()
			return fmt.Errorf("editing a card: %w", err)
		}
	} else {
		rev--
	}
	final = final || lost && over
	err := d.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qShown, l.ID, rev, c.shown, final)
		return err
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		l.failures++
		d.dirty[l.ID] = true
		return fmt.Errorf("storing what a card shows: %w", err)
	}
	l.failures, l.cardRev, l.cardShown = 0, rev, c.shown
	if lost {
		l.cardEvent = noCard
	}
	l.cardDone = final && !d.dirty[l.ID]
	return nil
}
