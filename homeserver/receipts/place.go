package receipts

import (
	"context"
	"fmt"
	"sync"
	"unique"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// Place is where an event stands: its position in the log, and the root of the
// thread it is in, or "". Author is the server of its sender, TS its time in
// milliseconds.
type Place struct {
	Room   matrix.RoomID
	Pos    stream.Pos
	Root   matrix.EventID
	Author matrix.ServerName
	TS     int64
}

// placeOf is the place of an event in a thread.
func placeOf(e *events.Event, root matrix.EventID) Place {
	// Few names, over and over, and no reason to keep the senders' whole names.
	author := unique.Make(e.Sender.Server()).Value()
	return Place{Room: e.Room, Pos: e.Pos, Root: root, Author: author, TS: e.TS}
}

// Places finds the places of events. Those of recent events are kept in memory.
type Places struct {
	store *events.Store

	mu         sync.RWMutex
	young, old map[matrix.EventID]Place // when young is full it becomes old
}

const (
	keptPlaces = 20_000 // in each of the two generations
	// maxHops is how many relations are followed from an event to a thread.
	maxHops = 3
)

// NewPlaces prepares a finder that also learns from the log. Call it before the
// log runs.
func NewPlaces(store *events.Store, l *stream.Log) *Places {
	p := &Places{store: store, young: make(map[matrix.EventID]Place)}
	l.Subscribe(p.learn)
	return p
}

func (p *Places) learn(changes []stream.Change) {
	for i := range changes {
		if changes[i].Kind != stream.KindEvent {
			continue
		}
		e, ok := changes[i].Payload.(*events.Event)
		if !ok || e.Pos == 0 {
			continue
		}
		switch {
		case e.RelTo == "":
			p.keep(e.ID, placeOf(e, ""))
		case e.RelType == "m.thread":
			p.keep(e.ID, placeOf(e, e.RelTo))
		default:
			// Only one hop, and only from memory: the rest is found when asked.
			if to, ok := p.kept(e.RelTo); ok {
				p.keep(e.ID, placeOf(e, to.Root))
			}
		}
	}
}

func (p *Places) keep(id matrix.EventID, at Place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.young) >= keptPlaces {
		p.old, p.young = p.young, make(map[matrix.EventID]Place)
	}
	p.young[id] = at
}

func (p *Places) kept(id matrix.EventID) (Place, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if at, ok := p.young[id]; ok {
		return at, true
	}
	at, ok := p.old[id]
	return at, ok
}

// Of finds an event of a room; M_NOT_FOUND when the room's timeline has none of
// this ID.
func (p *Places) Of(ctx context.Context, room matrix.RoomID, id matrix.EventID) (Place, error) {
	at, ok := p.kept(id)
	if !ok {
		err := p.store.DB().Read(ctx, func(tx *sqldb.Tx) (err error) {
			at, err = p.find(tx, id)
			return err
		})
		if err != nil {
			return Place{}, err
		}
		if at.Pos != 0 {
			p.keep(id, at)
		}
	}
	if at.Room != room || at.Pos == 0 {
		return Place{}, matrix.NotFound("room %s has no event %s", room, id)
	}
	return at, nil
}

// find follows an event's relations to the thread it is in.
//
// Spec: client-server-api#threaded-read-receipts
func (p *Places) find(tx *sqldb.Tx, id matrix.EventID) (Place, error) {
	e, err := p.store.Get(tx, id)
	if err != nil {
		return Place{}, fmt.Errorf("finding event: %w", err)
	}
	if e == nil || e.Rejected() {
		return Place{}, nil
	}
	at := placeOf(e, "")
	for hops := 0; e != nil && e.RelTo != "" && hops <= maxHops; hops++ {
		if e.RelType == "m.thread" {
			at.Root = e.RelTo
			break
		}
		if e, err = p.store.Get(tx, e.RelTo); err != nil {
			return Place{}, fmt.Errorf("finding event: %w", err)
		}
	}
	return at, nil
}

// Related reports whether an event relates to another, directly or over few others.
func (p *Places) Related(ctx context.Context, id, to matrix.EventID) (related bool, err error) {
	err = p.store.DB().Read(ctx, func(tx *sqldb.Tx) error {
		related = false
		for range maxHops {
			e, err := p.store.Get(tx, id)
			if err != nil {
				return fmt.Errorf("finding event: %w", err)
			}
			if e == nil || e.RelTo == "" {
				return nil
			}
			if id = e.RelTo; id == to {
				related = true
				return nil
			}
		}
		return nil
	})
	return related, err
}
