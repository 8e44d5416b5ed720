package push

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// savePosition is how often the place in the log is stored; after a crash what
// was sent since is sent again, which gateways recognise by the event's ID.
const savePosition = 5 * time.Second

// dispatcher reads the log for users with pushers.
type dispatcher struct {
	ctx     context.Context //nolint:containedctx // that of Run
	sending chan struct{}   // capacity maxSending; full: deliveries wait
	wg      sync.WaitGroup
	pos     stream.Pos // read up to here
	saved   stream.Pos
	began   stream.Pos // before it only pushers that were failing are served
}

// Run delivers notifications until ctx ends.
func (p *Push) Run(ctx context.Context) error {
	d := &p.dispatch
	d.ctx, d.sending = ctx, make(chan struct{}, maxSending)
	defer d.wg.Wait()
	if err := p.startPosition(ctx); err != nil {
		return err
	}
	if p.opts.Email != nil {
		d.wg.Go(func() { p.runMail(ctx) })
	}
	tick := time.NewTicker(savePosition)
	defer tick.Stop()
	pause := firstPause
	for ctx.Err() == nil {
		if err := p.read(ctx); err != nil {
			if ctx.Err() != nil {
				break
			}
			log.WithError(err).Warn("reading the log for pushers; trying again")
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			pause = min(2*pause, time.Minute)
			continue
		}
		pause = firstPause
		select {
		case <-p.pushers.bell:
		case <-tick.C:
			p.savePosition(ctx)
		case <-ctx.Done():
		}
	}
	p.savePosition(context.WithoutCancel(ctx))
	return nil
}

// startPosition is where delivery ended last time, or earlier where a pusher
// was failing then.
func (p *Push) startPosition(ctx context.Context) error {
	d := &p.dispatch
	d.pos = p.log.Head()
	err := p.db.Read(ctx, func(tx *sqldb.Tx) error {
		var pos int64
		err := tx.QueryRow(qPosition).Scan(&pos)
		if err == nil {
			d.pos = min(p.log.Head(), stream.Pos(pos))
		} else if errors.Is(err, sqldb.ErrNoRows) {
			err = nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("reading the position of pushers: %w", err)
	}
	d.saved, d.began = d.pos, d.pos
	for _, list := range p.pushers.byUser {
		for _, s := range list {
			if s.isFailing() {
				d.pos = min(d.pos, s.pusher.LastPos)
			}
		}
	}
	return nil
}

func (p *Push) savePosition(ctx context.Context) {
	d := &p.dispatch
	pos := d.pos
	p.pushers.mu.RLock()
	for _, list := range p.pushers.byUser {
		for _, s := range list {
			if oldest, ok := s.oldest(); ok {
				pos = min(pos, oldest-1)
			}
		}
	}
	p.pushers.mu.RUnlock()
	if pos <= d.saved {
		return
	}
	err := p.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qSavePosition, int64(pos))
		return err
	})
	if err != nil {
		log.WithError(err).Warn("storing the position of pushers")
		return
	}
	d.saved = pos
}

// read goes through the log to its head.
func (p *Push) read(ctx context.Context) error {
	d := &p.dispatch
	for head := p.log.Head(); d.pos < head; head = p.log.Head() {
		if p.pushers.empty() {
			d.pos = head
			return nil
		}
		const page = 1000
		changes, err := p.log.Changes(ctx, d.pos, head, page)
		if err != nil {
			return err
		}
		for _, c := range changes {
			switch c.Kind {
			case stream.KindEvent:
				err = p.event(ctx, c)
			case stream.KindReceipt:
				p.badge(c)
			}
			if err != nil {
				return err
			}
			d.pos = c.Pos
		}
		if len(changes) < page {
			d.pos = head
		}
	}
	return nil
}

// badge lets the phones of a user who has read show the new number.
func (p *Push) badge(c stream.Change) {
	for _, s := range p.sendersOf(c.User) {
		if c.Pos > p.dispatch.began && s.pusher.Kind != "email" {
			s.enqueue(job{pos: c.Pos, since: p.opts.Now()}, p.dispatch.wg.Go)
		}
	}
}

func (p *Push) sendersOf(user matrix.UserID) []*sender {
	p.pushers.mu.RLock()
	defer p.pushers.mu.RUnlock()
	return p.pushers.byUser[user]
}

// event evaluates an event for the users with pushers in its room, and for the
// invited user.
func (p *Push) event(ctx context.Context, c stream.Change) error {
	e, err := p.at(ctx, c.Room, c.Pos)
	if err != nil || e == nil || e.Hidden() || e.Redacted() {
		return err
	}
	age := p.opts.Now().Sub(time.UnixMilli(e.TS))
	if age > giveUpAfter {
		return nil
	}
	users := p.candidates(e)
	if len(users) == 0 {
		return nil
	}
	t, err := p.tail(ctx, e.Room)
	if err != nil {
		return err
	}
	subject, room := subjectOf(e), p.roomNow(ctx, e.Room, t)
	var about *about
	for _, user := range users {
		if p.ignored(user).Has(e.Sender) || p.hides(e, user) {
			continue
		}
		set := p.defaults
		if u := p.userRules(user); u != nil {
			set = u.set
		}
		res := set.Evaluate(subject, user, room)
		if !res.Notify {
			continue
		}
		if about == nil {
			if about, err = p.about(ctx, e); err != nil {
				return err
			}
		}
		for _, s := range p.sendersOf(user) {
			if s.pusher.Kind == "email" {
				p.noteMail(ctx, s, c.Pos)
				continue
			}
			if c.Pos > p.dispatch.began || s.isFailing() && c.Pos > s.pusher.LastPos {
				s.enqueue(job{pos: c.Pos, event: e, result: res, about: about, since: p.opts.Now()}, p.dispatch.wg.Go)
			}
		}
	}
	return nil
}

// at reads the event of a position.
func (p *Push) at(ctx context.Context, room matrix.RoomID, pos stream.Pos) (*events.Event, error) {
	list, complete := p.hub.Recent(room, pos-1, pos)
	if !complete || len(list) == 0 {
		err := p.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
			list, err = p.store.Timeline(tx, room, pos-1, pos, 1, true)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("reading event: %w", err)
		}
	}
	if len(list) == 0 {
		return nil, nil
	}
	return list[0], nil
}

// candidates are the users with pushers whom an event may notify.
func (p *Push) candidates(e *events.Event) []matrix.UserID {
	var users []matrix.UserID
	p.pushers.mu.RLock()
	defer p.pushers.mu.RUnlock()
	if e.Type == "m.room.member" && e.Membership == "invite" && e.StateKey != nil {
		if u := matrix.UserID(*e.StateKey); p.pushers.byUser[u] != nil {
			users = append(users, u)
		}
	}
	if p.hub.LocalCount(e.Room) < len(p.pushers.byUser) {
		for _, u := range p.hub.LocalMembers(e.Room) {
			if u != e.Sender && p.pushers.byUser[u] != nil {
				users = append(users, u)
			}
		}
		return users
	}
	for u := range p.pushers.byUser {
		if u != e.Sender && p.hub.Joined(u, e.Room) {
			users = append(users, u)
		}
	}
	return users
}

// about reads the names that a notification shows.
func (p *Push) about(ctx context.Context, e *events.Event) (*about, error) {
	a := &about{}
	err := p.db.Read(ctx, func(tx *sqldb.Tx) error {
		for _, x := range []struct {
			typ, key, field string
			to              *string
		}{
			{"m.room.member", string(e.Sender), "displayname", &a.senderName},
			{"m.room.name", "", "name", &a.roomName},
			{"m.room.canonical_alias", "", "alias", &a.roomAlias},
		} {
			s, err := p.stateNow(tx, e.Room, x.typ, x.key)
			if err != nil {
				return err
			}
			if s != nil {
				*x.to = s.ContentString(x.field)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading names for a notification: %w", err)
	}
	return a, nil
}

// farthest is after every position.
const farthest = stream.Pos(math.MaxInt64)
