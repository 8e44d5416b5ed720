package rooms

import (
	"context"
	"fmt"
	"slices"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	// holeRoom is how many positions the log leaves free before an event of which
	// not all is known that comes right before it. History is put there when
	// somebody reads that far; what does not fit is not shown.
	holeRoom = 10_000
	// holeEdge is how many events from a hole on are looked at for what is missing.
	holeEdge = 20
)

// apart is how many positions are left free before the first of a list.
func apart(list []*built) stream.Pos {
	if len(list) > 0 && list[0].ev.Gap() {
		return holeRoom
	}
	return 0
}

// Hole finds the event at or above a position behind which history is missing:
// the next one, if it is one, and if anything older is known. nil if there is none.
func (r *Rooms) Hole(tx *sqldb.Tx, id matrix.RoomID, pos stream.Pos) (*events.Event, error) {
	next, err := r.events.Timeline(tx, id, pos, state.Open-1, 1, true)
	if err != nil || len(next) == 0 || !next[0].Gap() {
		return nil, err
	}
	older, err := r.events.Timeline(tx, id, stream.Pos(-1<<62), next[0].Pos-1, 1, false)
	if err != nil || len(older) == 0 {
		return nil, err // that is the beginning of what is known; see Fetch
	}
	return next[0], nil
}

// Fill asks other servers for what is missing before an event, and stores it right
// there. It reports whether anything has changed: then the hole is smaller, gone,
// or further down.
//
// Spec: server-server-api#backfilling-and-retrieving-missing-events
func (r *Rooms) Fill(ctx context.Context, at *events.Event, limit int) (bool, error) {
	if r.o.Remote == nil || !r.participates(at.Room) {
		return false, nil
	}
	unlock, err := r.filling.LockContext(ctx, at.Room)
	if err != nil {
		return false, err
	}
	defer unlock()
	var near []*events.Event
	var room stream.Pos
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		if near, err = r.events.Timeline(tx, at.Room, at.Pos-1, state.Open-1, holeEdge, true); err != nil {
			return err
		}
		older, err := r.events.Timeline(tx, at.Room, stream.Pos(-1<<62), at.Pos-1, 1, false)
		if len(older) > 0 {
			room = at.Pos - older[0].Pos - 1
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("reading a hole: %w", err)
	}
	if len(near) == 0 || !near[0].Gap() {
		return true, nil // somebody else has filled it
	}
	from, _, err := r.missing(ctx, at.Room, unique(prevsOf(near)))
	if err != nil {
		return false, err
	}
	if len(from) == 0 {
		return true, r.placeHistory(ctx, near[0], nil, false)
	}
	if room <= 0 {
		return false, nil
	}
	list, err := r.backfill(ctx, at.Room, string(at.Version), from, min(limit, int(room)))
	if err != nil || len(list) == 0 {
		return false, err
	}
	list = inHole(list, from)
	list = list[max(len(list)-int(room), 0):]
	have := map[matrix.EventID]bool{}
	for _, e := range list {
		have[e.ID] = true
	}
	open, _, err := r.missing(ctx, at.Room, unique(prevsOf(append(list, near...))))
	if err != nil {
		return false, err
	}
	more := false
	for _, id := range open {
		more = more || !have[id]
	}
	return true, r.placeHistory(ctx, near[0], list, more)
}

// inHole keeps of a list what leads back from the lower rim of a hole without passing
// anything that is known: servers go on beyond, into what another hole may miss.
func inHole(list []*events.Event, from []matrix.EventID) []*events.Event {
	byID, in := map[matrix.EventID]*events.Event{}, map[matrix.EventID]bool{}
	for _, e := range list {
		byID[e.ID] = e
	}
	for len(from) > 0 {
		id := from[len(from)-1]
		from = from[:len(from)-1]
		if e := byID[id]; e != nil && !in[id] {
			in[id] = true
			from = append(from, e.PrevEvents()...)
		}
	}
	return slices.DeleteFunc(list, func(e *events.Event) bool { return !in[e.ID] })
}

func prevsOf(list []*events.Event) (out []matrix.EventID) {
	for _, e := range list {
		out = append(out, e.PrevEvents()...)
	}
	return out
}

// backfill asks servers, one after another, for history from some events on, until
// one has something new: that, the oldest first.
func (r *Rooms) backfill(ctx context.Context, id matrix.RoomID, version string, from []matrix.EventID, limit int) ([]*events.Event, error) {
	for _, s := range r.hub.Servers(id) {
		if s == r.o.Signer.Server {
			continue
		}
		raws, err := r.o.Remote.Backfill(ctx, s, id, from, limit)
		if err != nil || len(raws) == 0 {
			continue
		}
		list, err := r.newHistory(ctx, id, version, raws)
		if err != nil || len(list) > 0 {
			return list, err
		}
	}
	return nil, ctx.Err()
}

// placeHistory stores a list right before an event, and moves the mark of the hole
// to where it is now: before the list if there is more, else nowhere.
func (r *Rooms) placeHistory(ctx context.Context, at *events.Event, list []*events.Event, more bool) error {
	err := r.db.Write(ctx, func(tx *sqldb.Tx) error {
		nid, err := r.events.Lower(tx, len(list))
		if err != nil {
			return err
		}
		for i, e := range list {
			flags := events.FlagBackfilled
			if i == 0 && more {
				flags |= events.FlagGap
			}
			if err := r.putHistory(tx, e, nid+int64(i), at.Pos-stream.Pos(len(list)-i), flags); err != nil {
				return err
			}
		}
		p := at.Placed(at.NID, at.Pos, at.Replaces)
		p.Flags &^= events.FlagGap
		return r.events.Promote(tx, p)
	})
	if err != nil {
		return fmt.Errorf("storing history: %w", err)
	}
	return nil
}

// putHistory gives an event a place in the timeline, and a row where it has none.
func (r *Rooms) putHistory(tx *sqldb.Tx, e *events.Event, row int64, pos stream.Pos, flags int) error {
	if e.NID != 0 {
		row = e.NID
	}
	p := e.Placed(row, pos, 0)
	p.Flags = p.Flags&^events.FlagOutlier | flags
	if e.NID != 0 {
		return r.events.Promote(tx, p)
	}
	return r.events.Insert(tx, p)
}
