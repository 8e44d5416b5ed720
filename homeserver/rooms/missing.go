package rooms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/matrix-org/gomatrixserverlib"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// ancestors sees to it that what an event builds on is known: the events between
// are asked for, if ask says so, else the state before it.
func (r *Rooms) ancestors(ctx context.Context, origin matrix.ServerName, ev *events.Event, ask bool) (*foreignState, error) {
	missing, alien, err := r.missing(ctx, ev.Room, ev.PrevEvents())
	if err == nil && alien != "" {
		err = matrix.Forbidden("%s is built on %s, which is of another room", ev.ID, alien)
	}
	if err != nil || len(missing) == 0 {
		return nil, err
	}
	if ask {
		unjudged, err := r.fillGap(ctx, origin, ev)
		if err != nil {
			return nil, err
		}
		if missing, _, err = r.missing(ctx, ev.Room, ev.PrevEvents()); err != nil || len(missing) == 0 {
			return nil, err
		}
		// Who sends an event has what it builds on. A state in place of that is taken
		// only for what lies behind, and where it cannot be judged now; see silences.
		if slices.ContainsFunc(missing, func(id matrix.EventID) bool { return !slices.Contains(unjudged, id) }) {
			return nil, matrix.Forbidden("what %s builds on cannot be had", ev.ID)
		}
	}
	return r.foreignState(ctx, origin, ev, missing)
}

// authEvents gives the events that authorise ev, fetching its chain where one is
// not known.
func (r *Rooms) authEvents(ctx context.Context, origin matrix.ServerName, ev *events.Event) ([]*events.Event, error) {
	ids := ev.AuthEvents()
	have, err := r.many(ctx, ids)
	if err != nil {
		return nil, err
	}
	if len(have) < len(unique(ids)) {
		chain, err := r.o.Remote.EventAuth(ctx, origin, ev.Room, ev.ID)
		if err != nil {
			if chain, err = r.oneByOne(ctx, origin, ev, ids); err != nil {
				return nil, err
			}
		}
		if _, _, err := r.storeOutliers(ctx, string(ev.Version), ev.Room, chain); err != nil {
			return nil, err
		}
		if have, err = r.many(ctx, ids); err != nil {
			return nil, err
		}
	}
	out := make([]*events.Event, 0, len(ids))
	for _, id := range ids {
		e := have[id]
		if e == nil {
			return nil, matrix.Forbidden("%s is authorised by %s, which cannot be had", ev.ID, id)
		}
		out = append(out, e)
	}
	return out, nil
}

// oneByOne asks for events and for what authorises them, each by itself. Those
// that cannot be had are left out.
func (r *Rooms) oneByOne(ctx context.Context, origin matrix.ServerName, ev *events.Event, ids []matrix.EventID) ([]json.RawMessage, error) {
	var out []json.RawMessage
	asked := map[matrix.EventID]bool{}
	for next := ids; len(next) > 0; {
		have, err := r.many(ctx, next)
		if err != nil {
			return nil, err
		}
		var want []matrix.EventID
		for _, id := range next {
			if have[id] == nil && !asked[id] && len(asked) < maxOneByOne {
				asked[id] = true
				want = append(want, id)
			}
		}
		next = nil
		for _, e := range r.each(ctx, origin, ev.Version, want) {
			out, next = append(out, e.JSON), append(next, e.AuthEvents()...)
		}
	}
	return out, ctx.Err()
}

// each asks for events by their names, a few at a time. Those that cannot be had
// are left out; nothing but their names has been checked.
func (r *Rooms) each(ctx context.Context, origin matrix.ServerName, version gomatrixserverlib.RoomVersion, ids []matrix.EventID) []*events.Event {
	got := make([]*events.Event, len(ids))
	var wg sync.WaitGroup
	slots := make(chan struct{}, eventsAtOnce) // full: the next request waits for its turn
	for i, id := range ids {
		wg.Add(1)
		slots <- struct{}{}
		go func() {
			defer func() { <-slots; wg.Done() }()
			raw, err := r.o.Remote.Event(ctx, origin, id)
			if err != nil {
				return
			}
			if e, err := events.Parse(raw, version); err == nil && e.ID == id {
				got[i] = e
			}
		}()
	}
	wg.Wait()
	return slices.DeleteFunc(got, func(e *events.Event) bool { return e == nil })
}

func unique(ids []matrix.EventID) []matrix.EventID {
	s := slices.Clone(ids)
	slices.Sort(s)
	return slices.Compact(s)
}

func (r *Rooms) many(ctx context.Context, ids []matrix.EventID) (m map[matrix.EventID]*events.Event, err error) {
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		m, err = r.events.GetMany(tx, ids)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading events: %w", err)
	}
	return m, nil
}

// storeOutliers checks events that are known only as part of a state or a chain,
// and stores those that are new: ancestors first, each authorised by its own
// auth_events. Those that fail are left out; silent are the servers because of which
// it cannot be told of some.
func (r *Rooms) storeOutliers(ctx context.Context, version string, room matrix.RoomID, raws []json.RawMessage) (all map[matrix.EventID]*events.Event, silent []matrix.ServerName, err error) {
	if len(raws) > maxChain {
		return nil, nil, matrix.Forbidden("%d events are too many", len(raws))
	}
	all, fresh, silent, err := r.outliers(ctx, version, room, raws)
	if err != nil || len(fresh) == 0 {
		return all, silent, err
	}
	err = r.db.Write(ctx, func(tx *sqldb.Tx) error { return r.insertOutliers(tx, fresh) })
	if err != nil {
		return nil, nil, fmt.Errorf("storing outliers: %w", err)
	}
	all, err = r.merged(ctx, all, fresh)
	return all, silent, err
}

// merged reads back what was stored, so that row numbers are known.
func (r *Rooms) merged(ctx context.Context, all map[matrix.EventID]*events.Event, fresh []*events.Event) (map[matrix.EventID]*events.Event, error) {
	ids := make([]matrix.EventID, len(fresh))
	for i, e := range fresh {
		ids[i] = e.ID
	}
	stored, err := r.many(ctx, ids)
	if err != nil {
		return nil, err
	}
	for id, e := range stored {
		all[id] = e
	}
	return all, nil
}

func (r *Rooms) insertOutliers(tx *sqldb.Tx, fresh []*events.Event) error {
	ids := make([]matrix.EventID, len(fresh))
	for i, e := range fresh {
		ids[i] = e.ID
	}
	have, err := r.events.GetMany(tx, ids)
	if err != nil {
		return err
	}
	nid, err := r.events.Lower(tx, len(fresh))
	if err != nil {
		return err
	}
	for i, e := range fresh {
		if have[e.ID] != nil {
			continue // somebody else was faster
		}
		p := e.Placed(nid+int64(i), 0, 0)
		p.Flags |= events.FlagOutlier
		if err := r.events.Insert(tx, p); err != nil {
			return err
		}
	}
	return nil
}

// outliers parses, verifies and authorises raws; all holds those that are good,
// known ones included, fresh those to be stored, ancestors first; silent are the
// servers whose keys are missing for others.
func (r *Rooms) outliers(ctx context.Context, version string, room matrix.RoomID, raws []json.RawMessage) (all map[matrix.EventID]*events.Event, fresh []*events.Event, silent []matrix.ServerName, err error) {
	var parsed []*events.Event
	var ids []matrix.EventID
	for _, raw := range raws {
		e, err := events.Parse(raw, gomatrixserverlib.RoomVersion(version))
		if err != nil || e.Room != room {
			continue
		}
		parsed, ids = append(parsed, e), append(ids, e.ID)
	}
	if all, err = r.many(ctx, ids); err != nil {
		return nil, nil, nil, err
	}
	var unknown []*events.Event
	var pdus []json.RawMessage
	for _, e := range parsed {
		if all[e.ID] == nil {
			unknown, pdus = append(unknown, e), append(pdus, e.JSON)
		}
	}
	good := map[matrix.EventID]*events.Event{}
	if len(pdus) > 0 {
		for i, err := range r.o.Remote.Verify(ctx, version, pdus) {
			if err == nil {
				good[unknown[i].ID] = unknown[i]
			} else if key := (*matrix.KeyError)(nil); errors.As(err, &key) && !slices.Contains(silent, key.Server) {
				silent = append(silent, key.Server)
			}
		}
	}
	// Auth events outside the list may be known already.
	var outside []matrix.EventID
	for _, e := range good {
		for _, id := range e.AuthEvents() {
			if good[id] == nil && all[id] == nil {
				outside = append(outside, id)
			}
		}
	}
	more, err := r.many(ctx, unique(outside))
	if err != nil {
		return nil, nil, nil, err
	}
	for id, e := range more {
		all[id] = e
	}
	return all, authorised(good, all), silent, nil
}

// authorised walks good in the order of authorisation, adds what is allowed to
// all, and returns it.
func authorised(good, all map[matrix.EventID]*events.Event) []*events.Event {
	var fresh []*events.Event
	const visiting, done = 1, 2
	mark := map[matrix.EventID]int{}
	var visit func(e *events.Event, depth int)
	visit = func(e *events.Event, depth int) {
		if mark[e.ID] != 0 || depth > 2000 {
			return
		}
		mark[e.ID] = visiting
		auth := make([]*events.Event, 0, 4)
		complete := true
		for _, id := range e.AuthEvents() {
			if g := good[id]; g != nil {
				visit(g, depth+1)
			}
			if a := all[id]; a != nil {
				auth = append(auth, a)
			} else {
				complete = false
			}
		}
		mark[e.ID] = done
		if !complete {
			return
		}
		if err := authorisedBy(e, auth); err != nil {
			if !matrix.IsCode(err, "M_FORBIDDEN") {
				return
			}
			e.Flags |= events.FlagRejected // kept, so that what it authorises is known to be rejected too
		}
		all[e.ID] = e
		fresh = append(fresh, e)
	}
	for _, e := range good {
		visit(e, 0)
	}
	return fresh
}

// fillGap asks origin for the events between what is known here and ev, on and
// on until they meet or it has no more. unjudged are those that it gave whose signers'
// keys cannot be had.
// Spec: server-server-api#retrieving-missing-events
func (r *Rooms) fillGap(ctx context.Context, origin matrix.ServerName, ev *events.Event) (unjudged []matrix.EventID, err error) {
	// What is said to be here must be found here when the answer has come.
	rm, err := r.settled(ctx, ev.Room)
	if err != nil {
		return nil, err
	}
	tips := slices.Clone(rm.tips)
	rm.mu.Unlock()
	got := map[matrix.EventID]*events.Event{}
	latest := []matrix.EventID{ev.ID}
	for round := 0; round < maxRounds && len(latest) > 0; round++ {
		raws, err := r.o.Remote.MissingEvents(ctx, origin, ev.Room, tips, latest, maxMissing)
		if err != nil {
			break // the state is asked for instead
		}
		var fresh []*events.Event
		list, keyless := r.inspect(ctx, origin, ev.Room, raws)
		unjudged = append(unjudged, keyless...)
		for _, e := range list {
			// What claims to be built on the event cannot lie before it.
			if e != nil && got[e.ID] == nil && e.ID != ev.ID && !slices.Contains(e.PrevEvents(), ev.ID) {
				got[e.ID] = e
				fresh = append(fresh, e)
			}
		}
		if len(raws) < fewMissing {
			break // the state is asked for where they do not meet
		}
		if latest, err = r.loose(ctx, got, fresh); err != nil {
			return nil, err
		}
	}
	list := slices.SortedFunc(maps.Values(got), func(a, b *events.Event) int { return int(a.Depth - b.Depth) })
	for len(list) > 0 {
		n, err := r.acceptRun(ctx, ev.Room, list)
		if err == nil && n > 0 {
			list = list[n:]
			continue
		}
		// A rejected one is stored; one whose ancestors are missing takes its
		// state from origin.
		if _, err := r.accept(ctx, origin, list[0], between); err != nil && ctx.Err() != nil {
			return nil, err
		}
		list = list[1:]
	}
	return unjudged, nil
}

// loose lists those of list that build on events neither got nor known.
func (r *Rooms) loose(ctx context.Context, got map[matrix.EventID]*events.Event, list []*events.Event) ([]matrix.EventID, error) {
	var out []matrix.EventID
	for _, e := range list {
		open := slices.DeleteFunc(e.PrevEvents(), func(id matrix.EventID) bool { return got[id] != nil })
		missing, _, err := r.missing(ctx, e.Room, open)
		if err != nil {
			return nil, err
		}
		if len(missing) > 0 {
			out = append(out, e.ID)
		}
	}
	return out, nil
}
