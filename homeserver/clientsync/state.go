package clientsync

import (
	"maps"
	"slices"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// stateOf fills in the state that goes with a timeline: what changed between
// from and its start (or its end, for clients that want it so), everything for a
// room that is new to the client, with lazy loading members only of those who
// speak.
// Spec: client-server-api#lazy-loading-room-members
func (w *work) stateOf(tx *sqldb.Tx, t *timeline, id matrix.RoomID, from, to stream.Pos, all bool) error {
	t.after = w.q.stateAfter
	end := t.start
	if t.after != "" {
		end = to
	}
	var rows []state.Row
	var err error
	switch {
	case all:
		if t.after == "" && !t.limited {
			end = 0 // the timeline reaches back to the beginning
			if len(t.list) > 0 {
				end = t.list[0].Pos - 1
			}
		}
		if w.q.filter.LazyMembers() && end > 0 {
			rows, err = state.ButAt(tx, id, "m.room.member", end) // lazyRows adds who is needed of the members
		} else {
			rows, err = state.At(tx, id, end)
		}
	case end > from:
		rows, err = state.Delta(tx, id, from, end)
	}
	if err != nil {
		return err
	}
	if all {
		from = end
	}
	if (t.forked && !all || t.hides) && t.after == "" {
		if rows, err = untold(tx, t, id, from, to, rows); err != nil {
			return err
		}
	}
	lazy := w.q.filter.LazyMembers()
	if lazy {
		if rows, err = w.lazyRows(tx, t, id, rows, end, all); err != nil {
			return err
		}
	}
	if t.state, err = w.s.Rooms.EventsOf(tx, rows); err != nil {
		return err
	}
	if f := w.q.filter.State(); !f.MatchesAll() {
		t.state = slices.DeleteFunc(t.state, func(e *events.Event) bool {
			return !f.MatchEvent(id, e.Type, e.Sender, contentFor(f, e))
		})
	}
	if err := w.s.Events.Complete(tx, t.state); err != nil {
		return err
	}
	erased, err := w.s.Rooms.Erased(tx, w.q.user, t.state)
	if w.erased == nil {
		w.erased = erased
	} else {
		maps.Copy(w.erased, erased)
	}
	return err
}

// untold adds to the state before a timeline what has changed since without an event
// of the timeline that says so: by state resolution, by events that the user may not
// see, as from before he came, or does not want in the timeline. Without it the client
// would never hear of that.
func untold(tx *sqldb.Tx, t *timeline, id matrix.RoomID, from, to stream.Pos, rows []state.Row) ([]state.Row, error) {
	changed, err := state.Delta(tx, id, from, to)
	if err != nil {
		return nil, err
	}
	for _, r := range changed {
		of := func(e *events.Event) bool { return e.StateKey != nil && e.Type == r.Type && *e.StateKey == r.StateKey }
		if !t.hides && int64(r.From) == r.NID || slices.ContainsFunc(t.list, of) { // an event at its own place
			continue
		}
		if i := slices.IndexFunc(rows, func(o state.Row) bool { return o.Key == r.Key }); i >= 0 {
			rows[i] = r
		} else {
			rows = append(rows, r)
		}
	}
	return rows, nil
}

// lazyRows adds to the rest of the state the members who speak in the timeline, and to
// what changed the ones who speak and did not change. A change of a member is never left
// out: whoever has loaded the members keeps them up to date by this.
func (w *work) lazyRows(tx *sqldb.Tx, t *timeline, id matrix.RoomID, rows []state.Row, end stream.Pos, all bool) ([]state.Row, error) {
	need, told := map[string]bool{}, map[string]bool{}
	for _, e := range t.list {
		if e.Type == "m.room.member" && e.StateKey != nil {
			if t.after == "" {
				told[*e.StateKey] = true // by the timeline, from here on
			} else {
				need[*e.StateKey] = true // the client takes no state from the timeline
			}
		}
		if sender := string(e.Sender); !told[sender] {
			need[sender] = true
		}
	}
	if all {
		need[string(w.q.user)] = true
		heroes, err := w.heroes(tx, id)
		if err != nil {
			return nil, err
		}
		for _, h := range heroes {
			need[string(h)] = true
		}
	}
	rows = slices.DeleteFunc(rows, func(r state.Row) bool {
		if r.Type != "m.room.member" {
			return false
		}
		unasked := all && !need[r.StateKey] // untold found it
		delete(need, r.StateKey)
		return unasked
	})
	if end == 0 || len(need) == 0 {
		return rows, nil
	}
	members, err := state.KeysAt(tx, id, "m.room.member", slices.Sorted(maps.Keys(need)), end)
	if err != nil {
		return nil, err
	}
	return append(rows, members...), nil
}
