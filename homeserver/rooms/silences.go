package rooms

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	// lookAgain is how often a room's events are the occasion to look for keys, and
	// lookedAt of how many servers at a time.
	lookAgain = 10 * time.Second
	lookedAt  = 20
	// A room in which nobody speaks is looked at after soonest, and then less and
	// less often.
	soonest = 5 * time.Second
	latest  = 10 * time.Minute
	// askedOf is how many servers are asked for the state of such a room.
	askedOf = 5
	// mostSilent bounds the servers that are remembered for a room.
	mostSilent = 1000

	qSilences = `SELECT room_id, server_name FROM silences`
	qSilent   = `INSERT INTO silences (room_id, server_name) VALUES ($1, $2) ON CONFLICT (room_id, server_name) DO NOTHING`
	qHeard    = `DELETE FROM silences WHERE room_id = $1 AND server_name = $2`
)

// errStateLacks says that the state here may lack what authorises an event.
var errStateLacks = errors.New("the state lacks what authorises the event")

// silences are the rooms whose state here may lack something: it was taken from
// another server while some that have a part in it were cut off, and had not been met
// before, so that their signatures could not be judged.
//
// Such a room is usable without them. As soon as their keys can be had, the next event
// that comes brings the state along again; where none comes, one of our own does. What
// is built on the room as it was before that, and would be refused by what is missing
// there, brings its state along, too.
type silences struct {
	woken chan struct{} // there is a new one

	mu    sync.Mutex
	notes uint64
	rooms map[matrix.RoomID]*silence
}

type silence struct {
	servers map[matrix.ServerName]uint64 // with the newest note of each
	looked  time.Time                    // when an event was the occasion
	next    time.Time                    // when the room is looked at without one
	wait    time.Duration
}

func (r *Rooms) loadSilences(ctx context.Context) error {
	r.silences = silences{woken: make(chan struct{}, 1), rooms: map[matrix.RoomID]*silence{}}
	type row struct {
		room   matrix.RoomID
		server matrix.ServerName
	}
	return r.db.Read(ctx, func(tx *sqldb.Tx) error {
		list, err := sqldb.Select(tx, func(rows *sqldb.Rows) (x row, err error) {
			err = rows.Scan(&x.room, &x.server)
			return x, err
		}, qSilences)
		for _, x := range list {
			r.silences.add(x.room, []matrix.ServerName{x.server}, r.o.Now())
		}
		return err
	})
}

// add notes servers and gives those that are new for the room.
func (s *silences) add(room matrix.RoomID, servers []matrix.ServerName, now time.Time) (fresh []matrix.ServerName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.rooms[room]
	if in == nil {
		in = &silence{servers: map[matrix.ServerName]uint64{}, next: now.Add(soonest), wait: soonest}
		s.rooms[room] = in
	}
	s.notes++
	for _, server := range servers {
		if _, ok := in.servers[server]; !ok {
			if len(in.servers) >= mostSilent {
				continue
			}
			fresh = append(fresh, server)
		}
		in.servers[server] = s.notes
	}
	select {
	case s.woken <- struct{}{}:
	default:
	}
	return fresh
}

// now is the number of the newest note.
func (s *silences) now() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.notes
}

// due reports whether an event is the occasion to look at its room.
func (s *silences) due(room matrix.RoomID, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.rooms[room]
	return in != nil && now.Sub(in.looked) >= lookAgain
}

// noteSilent notes that the state of a room could not be had in full.
func (r *Rooms) noteSilent(ctx context.Context, room matrix.RoomID, servers []matrix.ServerName) error {
	if len(servers) == 0 {
		return nil
	}
	fresh := r.silences.add(room, servers, r.o.Now())
	if len(fresh) == 0 {
		return nil
	}
	log.WithFields(log.Fields{"room_id": room, "servers": fresh}).Warn("the state of a room may lack what these servers have said: their keys cannot be had")
	err := r.db.Write(ctx, func(tx *sqldb.Tx) error {
		for _, s := range fresh {
			if _, err := tx.Exec(qSilent, string(room), string(s)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("noting silent servers: %w", err)
	}
	return nil
}

// heard forgets the servers of a room that no note since has named.
func (r *Rooms) heard(ctx context.Context, room matrix.RoomID, since uint64) error {
	var list []matrix.ServerName
	r.silences.mu.Lock()
	if in := r.silences.rooms[room]; in != nil {
		for server, note := range in.servers {
			if note <= since {
				list = append(list, server)
				delete(in.servers, server)
			}
		}
		if len(in.servers) == 0 {
			delete(r.silences.rooms, room)
		}
	}
	r.silences.mu.Unlock()
	if len(list) == 0 {
		return nil
	}
	err := r.db.Write(ctx, func(tx *sqldb.Tx) error {
		for _, s := range list {
			if _, err := tx.Exec(qHeard, string(room), string(s)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forgetting silent servers: %w", err)
	}
	return nil
}

// audible reports whether the keys of one of a room's silent servers are there, or can
// be had, if ask says to try. Of many servers it looks at some, others the next time.
func (r *Rooms) audible(ctx context.Context, room matrix.RoomID, ask bool) (bool, error) {
	list := r.silences.some(room, r.o.Now())
	had, errs := make([]bool, len(list)), make([]error, len(list))
	var wg sync.WaitGroup
	for i, s := range list {
		wg.Go(func() { had[i], errs[i] = r.o.Remote.HasKeys(ctx, s, ask) })
	}
	wg.Wait()
	return slices.Contains(had, true), errors.Join(errs...)
}

// some are silent servers of a room, in no order, and notes that it was looked at.
func (s *silences) some(room matrix.RoomID, now time.Time) (out []matrix.ServerName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.rooms[room]
	if in == nil {
		return nil
	}
	in.looked = now
	for server := range in.servers {
		if out = append(out, server); len(out) == lookedAt {
			break
		}
	}
	return out
}

// stateDue gives the state before an event as its origin has it, where the state here
// may lack something that can be had by now; nil elsewhere, and where it cannot be had.
func (r *Rooms) stateDue(ctx context.Context, origin matrix.ServerName, ev *events.Event) (*foreignState, error) {
	if !r.silences.due(ev.Room, r.o.Now()) {
		return nil, nil
	}
	if ok, err := r.audible(ctx, ev.Room, false); !ok || err != nil {
		return nil, err
	}
	f, err := r.stateBeside(ctx, origin, ev)
	if err != nil && ctx.Err() == nil {
		return nil, nil
	}
	return f, err
}

// stateBeside gives the state before an event as its origin has it, besides what is
// known here.
func (r *Rooms) stateBeside(ctx context.Context, origin matrix.ServerName, ev *events.Event) (*foreignState, error) {
	since := r.silences.now()
	whole, err := r.foreignBefore(ctx, origin, ev, ev.ID, nil)
	if err != nil {
		return nil, err
	}
	return &foreignState{whole: whole, beside: true, since: since}, nil
}

// unplaced reports whether one of the events that authorise another has no place here:
// then the state here may lack it, see silences.
func unplaced(auth []*events.Event) bool {
	return slices.ContainsFunc(auth, func(e *events.Event) bool { return e.Flags&events.FlagOutlier != 0 && !e.Rejected() })
}

// RunSilences brings the state of rooms in order in which nobody speaks, until ctx ends.
func (r *Rooms) RunSilences(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-r.silences.woken:
		case <-timer.C:
			for _, room := range r.silences.waiting(r.o.Now()) {
				if err := r.breakSilence(ctx, room); err != nil && ctx.Err() == nil {
					log.WithError(err).WithField("room_id", room).Debug("the state of a room could not be brought in order")
				}
			}
		case <-ctx.Done():
			return nil
		}
		timer.Reset(r.silences.sleep(r.o.Now()))
	}
}

// waiting lists the rooms to be looked at, and puts each off.
func (s *silences) waiting(now time.Time) (out []matrix.RoomID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for room, in := range s.rooms {
		if !in.next.After(now) {
			out = append(out, room)
			in.wait = min(2*in.wait, latest)
			in.next = now.Add(in.wait)
		}
	}
	return out
}

func (s *silences) sleep(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := latest
	for _, in := range s.rooms {
		next = min(next, max(in.next.Sub(now), 0))
	}
	return next
}

// breakSilence sends an event that says nothing but brings along the state that
// another server has, if more can be known of it by now, and a local user may send it.
func (r *Rooms) breakSilence(ctx context.Context, id matrix.RoomID) error {
	if !r.participates(id) {
		return r.heard(ctx, id, r.silences.now())
	}
	if ok, err := r.audible(ctx, id, true); !ok || err != nil {
		return err
	}
	rm, err := r.settled(ctx, id)
	if err != nil {
		return err
	}
	tips := slices.Clone(rm.tips)
	sender, err := r.speaker(ctx, rm)
	rm.mu.Unlock()
	if err != nil || sender == "" {
		return err
	}
	since := r.silences.now()
	others := slices.DeleteFunc(slices.Clone(r.hub.Servers(id)), func(s matrix.ServerName) bool { return s == r.o.Signer.Server })
	for _, s := range others[:min(len(others), askedOf)] {
		foreign := &foreignState{after: map[matrix.EventID]map[state.Key]*events.Event{}, beside: true, since: since}
		for _, tip := range tips {
			at, err := r.known(ctx, tip)
			if err != nil || at == nil {
				return err
			}
			after, err := r.foreignAfter(ctx, s, at, tip)
			if err != nil {
				break // it may be away itself, or not know that event yet
			}
			foreign.after[tip] = after
		}
		if len(foreign.after) == len(tips) {
			return r.sendBeside(ctx, Draft{Room: id, Sender: sender, Type: events.Dummy, Content: []byte("{}")}, foreign)
		}
	}
	return ctx.Err()
}

// sendBeside sends an event before which the room's state is resolved with a foreign
// one.
func (r *Rooms) sendBeside(ctx context.Context, d Draft, foreign *foreignState) error {
	for attempt := 0; ; attempt++ {
		rm, err := r.settled(ctx, d.Room)
		if err != nil {
			return err
		}
		var b *built
		err = rm.guarded(func() (err error) {
			rm.dry = true
			b, err = r.build(ctx, rm, d)
			rm.dry = false
			return err
		})
		rm.mu.Unlock()
		if err != nil {
			return err
		}
		_, err = r.acceptOnce(ctx, b.ev, nil, foreign, false)
		if attempt < maxAttempts && errors.Is(err, errRoomMoved) {
			continue
		}
		return err
	}
}

// allowedWith authorises an event against the current state, that at head, as it is once
// what the event brings along has been added.
func (r *Rooms) allowedWith(ctx context.Context, tx *sqldb.Tx, rm *room, head stream.Pos, before state.View, ev *events.Event) (verdict, err error) {
	v, err := r.merge(ctx, tx, rm, ev, []state.View{{Base: head}, before})
	if err != nil {
		return nil, err
	}
	return r.allowedIn(tx, rm, v, ev)
}
