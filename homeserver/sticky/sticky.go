// Package sticky knows which events are sticky: those that clients and servers
// must hear of for a while though newer events have pushed them out of the
// timeline, such as who is in a call.
//
// The events of an hour at most are kept in memory, so that a reader who has
// nothing to hear of makes no query. What an event says of itself is in package
// events; rooms stores it, clientsync and federation read.
//
// Tables: sticky_events. Spec: MSC4354.
//
// Invariants: the memory follows the log, so it never shows what is not
// committed; of one sender in one room at most maxOfSender events are sticky, the
// others are ordinary events, so that nobody can fill the answers of others.
package sticky

import (
	"context"
	"embed"
	"fmt"
	"slices"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

//go:embed schema
var schema embed.FS

const (
	// maxOfSender bounds the sticky events of one sender in one room.
	maxOfSender = 100
	// sweep is how often what has ended is dropped.
	sweep = time.Minute
)

const (
	qPut = `INSERT INTO sticky_events (nid, ends) VALUES ($1, $2)
		ON CONFLICT (nid) DO UPDATE SET ends = excluded.ends`
	qLive  = `SELECT nid, ends FROM sticky_events WHERE ends > $1 AND nid > $2 ORDER BY nid LIMIT 500`
	qEnded = `DELETE FROM sticky_events WHERE ends <= $1`
)

// Entry is a sticky event.
type Entry struct {
	NID    int64
	Pos    stream.Pos
	ID     matrix.EventID
	Sender matrix.UserID
	Ends   int64 // ms
	Soft   bool  // not shown, as the current state does not allow it
}

// Store is all sticky events.
type Store struct {
	db  *sqldb.DB
	now matrix.Now

	mu    sync.RWMutex
	rooms map[matrix.RoomID][]Entry // in order of position
}

// New reads what is still sticky and follows the log. Call it before the log runs.
func New(ctx context.Context, db *sqldb.DB, l *stream.Log, ev *events.Store, now matrix.Now) (*Store, error) {
	if err := db.Migrate(ctx, "sticky", schema); err != nil {
		return nil, err
	}
	s := &Store{db: db, now: now, rooms: map[matrix.RoomID][]Entry{}}
	if err := s.seed(ctx, ev); err != nil {
		return nil, fmt.Errorf("reading sticky events: %w", err)
	}
	l.Subscribe(s.hear)
	return s, nil
}

func (s *Store) seed(ctx context.Context, ev *events.Store) error {
	type row struct{ nid, ends int64 }
	now := s.now().UnixMilli()
	return s.db.Read(ctx, func(tx *sqldb.Tx) error {
		for last := int64(-1) << 62; ; {
			rows, err := sqldb.Select(tx, func(r *sqldb.Rows) (x row, err error) {
				err = r.Scan(&x.nid, &x.ends)
				return x, err
			}, qLive, now, last)
			if err != nil || len(rows) == 0 {
				return err
			}
			nids := make([]int64, len(rows))
			for i, x := range rows {
				nids[i] = x.nid
			}
			last = nids[len(nids)-1]
			list, err := ev.ByNID(tx, nids)
			if err != nil {
				return err
			}
			for _, x := range rows {
				if e := list[x.nid]; e != nil && e.Sticky > 0 { // else it has been redacted since
					s.add(e, x.ends)
				}
			}
		}
	})
}

// Put notes a sticky event in the transaction that stores it; others are left
// alone. received is when it came to this server.
func (s *Store) Put(tx *sqldb.Tx, e *events.Event, received time.Time) error {
	if !counts(e) {
		return nil
	}
	_, err := tx.Exec(qPut, e.NID, ends(e, received))
	return err
}

// counts reports whether an event is sticky here. What a policy server has not
// let through is not, nor is what is rejected.
func counts(e *events.Event) bool {
	return e.Sticky > 0 && !e.Rejected() && e.Flags&events.FlagPolicy == 0
}

// ends is when an event is no longer sticky: times of sending in the future do
// not count.
func ends(e *events.Event, received time.Time) int64 {
	return min(e.TS, received.UnixMilli()) + e.Sticky
}

// hear follows the log.
func (s *Store) hear(changes []stream.Change) {
	for i := range changes {
		e, ok := changes[i].Payload.(*events.Event)
		if !ok || e.Sticky == 0 && e.Target == nil || e.Pos <= 0 {
			continue
		}
		if t := e.Target; t != nil {
			s.drop(t.Room, func(o Entry) bool { return o.ID == t.ID })
			continue
		}
		if counts(e) {
			s.add(e, ends(e, s.now()))
		}
	}
}

func (s *Store) add(e *events.Event, ends int64) {
	now := s.now().UnixMilli()
	if ends <= now {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fresh := make([]Entry, 0, len(s.rooms[e.Room])+1) // readers may hold the old list
	same, first := 0, -1
	for _, o := range s.rooms[e.Room] {
		if o.Ends <= now || o.NID == e.NID {
			continue
		}
		if o.Sender == e.Sender {
			if same++; first < 0 {
				first = len(fresh)
			}
		}
		fresh = append(fresh, o)
	}
	if same >= maxOfSender {
		fresh = slices.Delete(fresh, first, first+1)
	}
	fresh = append(fresh, Entry{e.NID, e.Pos, e.ID, e.Sender, ends, e.Hidden()})
	if n := len(fresh); n > 1 && fresh[n-1].Pos < fresh[n-2].Pos { // only while the memory is filled
		slices.SortFunc(fresh, func(a, b Entry) int { return int(min(max(a.Pos-b.Pos, -1), 1)) })
	}
	s.rooms[e.Room] = fresh
}

func (s *Store) drop(room matrix.RoomID, gone func(Entry) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.rooms[room]
	if !slices.ContainsFunc(list, gone) {
		return
	}
	list = slices.DeleteFunc(slices.Clone(list), gone)
	if len(list) == 0 {
		delete(s.rooms, room)
		return
	}
	s.rooms[room] = list
}

func (s *Store) pick(room matrix.RoomID, want func(Entry) bool) (out []Entry) {
	s.mu.RLock()
	list := s.rooms[room]
	s.mu.RUnlock()
	if len(list) == 0 {
		return nil
	}
	now := s.now().UnixMilli()
	for _, e := range list {
		if e.Ends > now && want(e) {
			out = append(out, e)
		}
	}
	return out
}

// In lists what is sticky in a room with from < Pos <= to, in that order; its
// readers need not have been able to see it by history visibility. It makes no
// query.
func (s *Store) In(room matrix.RoomID, from, to stream.Pos) []Entry {
	return s.pick(room, func(e Entry) bool { return !e.Soft && e.Pos > from && e.Pos <= to })
}

// OfServer lists what users of a server have made sticky in a room.
func (s *Store) OfServer(room matrix.RoomID, server matrix.ServerName) []Entry {
	return s.pick(room, func(e Entry) bool { return !e.Soft && e.Sender.Server() == server })
}

// Soft lists what a user would have made sticky in a room, had the current state
// allowed it.
func (s *Store) Soft(room matrix.RoomID, user matrix.UserID) []Entry {
	return s.pick(room, func(e Entry) bool { return e.Soft && e.Sender == user })
}

// Run drops what has ended until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(sweep)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if err := s.Sweep(ctx); err != nil && ctx.Err() == nil {
			log.WithError(err).Warn("sticky events that have ended are left")
		}
	}
}

// Sweep drops what has ended.
func (s *Store) Sweep(ctx context.Context) error {
	now := s.now().UnixMilli()
	s.mu.RLock()
	var ended []matrix.RoomID
	for room, list := range s.rooms {
		if slices.ContainsFunc(list, func(e Entry) bool { return e.Ends <= now }) {
			ended = append(ended, room)
		}
	}
	s.mu.RUnlock()
	for _, room := range ended {
		s.drop(room, func(e Entry) bool { return e.Ends <= now })
	}
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qEnded, now)
		return err
	})
	if err != nil {
		return fmt.Errorf("dropping sticky events: %w", err)
	}
	return nil
}
