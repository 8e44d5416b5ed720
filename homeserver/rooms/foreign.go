package rooms

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// foreignState is what another server says of the state before an event: the
// state after each of the prev_events that are not known here, by their names.
// What is known here it has no say in.
type foreignState struct {
	after map[matrix.EventID]map[state.Key]*events.Event
	// whole is in place of that the state before the event itself, where the
	// server cannot say more.
	whole map[state.Key]*events.Event
	// beside says that what the event is built on is known, and this is to be taken
	// besides what is known of the state; since is the newest note of silences at
	// that time.
	beside bool
	since  uint64
}

// foreignState asks origin for the state after those prev_events of ev that are
// missing here.
func (r *Rooms) foreignState(ctx context.Context, origin matrix.ServerName, ev *events.Event, missing []matrix.EventID) (*foreignState, error) {
	f := &foreignState{after: map[matrix.EventID]map[state.Key]*events.Event{}}
	for _, id := range missing {
		after, err := r.foreignAfter(ctx, origin, ev, id)
		if err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			// It may have come past that event itself.
			f.whole, err = r.foreignBefore(ctx, origin, ev, ev.ID, nil)
			return f, err
		}
		f.after[id] = after
	}
	return f, nil
}

// foreignAfter is the state after event id, which has no place here.
func (r *Rooms) foreignAfter(ctx context.Context, origin matrix.ServerName, ev *events.Event, id matrix.EventID) (map[state.Key]*events.Event, error) {
	e, err := r.known(ctx, id)
	if err != nil {
		return nil, err
	}
	if e == nil {
		got := r.each(ctx, origin, ev.Version, []matrix.EventID{id})
		if len(got) == 0 || got[0].Room != ev.Room {
			return nil, matrix.Forbidden("%s cannot be had", id)
		}
		e = got[0]
	}
	after, err := r.foreignBefore(ctx, origin, ev, id, e)
	if err != nil || e.StateKey == nil {
		return after, err
	}
	// One that is not stored by now has failed the checks, and changes nothing.
	if e, err = r.known(ctx, id); err != nil {
		return nil, err
	}
	if e != nil && !e.Rejected() {
		after[keyOf(e)] = e
	}
	return after, nil
}

// foreignBefore is the state before event id as origin has it; what is not known
// here of it is stored, and so is the event itself, if it is given. Where much is
// unknown all of it is asked for at once.
func (r *Rooms) foreignBefore(ctx context.Context, origin matrix.ServerName, ev *events.Event, id matrix.EventID, itself *events.Event) (map[state.Key]*events.Event, error) {
	ids, chain, err := r.o.Remote.StateIDs(ctx, origin, ev.Room, id)
	if err != nil {
		return nil, fmt.Errorf("asking %s for the state before %s: %w", origin, id, err)
	}
	if len(ids)+len(chain) > maxChain {
		return nil, matrix.Forbidden("%d events are too many", len(ids)+len(chain))
	}
	all := unique(slices.Concat(ids, chain))
	have, err := r.many(ctx, all)
	if err != nil {
		return nil, err
	}
	want := slices.DeleteFunc(all, func(id matrix.EventID) bool { return have[id] != nil })
	var unknown []*events.Event
	if len(want) <= maxOneByOne {
		unknown = r.each(ctx, origin, ev.Version, want)
	} else if unknown, err = r.wholeState(ctx, origin, ev, id, want); err != nil {
		return nil, err
	}
	if itself != nil && itself.NID == 0 {
		unknown = append(unknown, itself)
	}
	stored, silent, err := r.storeOutliers(ctx, string(ev.Version), ev.Room, pdusOf(unknown))
	if err != nil {
		return nil, err
	}
	if err := r.noteSilent(ctx, ev.Room, silent); err != nil {
		return nil, err
	}
	before := map[state.Key]*events.Event{}
	for _, id := range ids {
		e := have[id]
		if e == nil {
			e = stored[id]
		}
		if e != nil && e.Room == ev.Room && e.StateKey != nil && !e.Rejected() {
			before[keyOf(e)] = e
		}
	}
	return before, nil
}

// wholeState asks for the state before event id in full, and keeps of it what is
// wanted.
func (r *Rooms) wholeState(ctx context.Context, origin matrix.ServerName, ev *events.Event, id matrix.EventID, want []matrix.EventID) ([]*events.Event, error) {
	st, err := r.o.Remote.State(ctx, origin, ev.Room, id)
	if err != nil {
		return nil, fmt.Errorf("asking %s for the state before %s: %w", origin, id, err)
	}
	var out []*events.Event
	for _, raw := range slices.Concat(st.AuthChain, st.State) {
		e, err := events.Parse(raw, ev.Version)
		if err != nil {
			continue
		}
		if _, wanted := slices.BinarySearch(want, e.ID); wanted { // in order since unique
			out = append(out, e)
		}
	}
	return out, nil
}

// viewBeyond is the state before an event of whose prev_events some are known
// from outside only: resolved between what each of them says.
func (r *Rooms) viewBeyond(ctx context.Context, tx *sqldb.Tx, rm *room, head stream.Pos, ev *events.Event, f *foreignState) (state.View, error) {
	rows, err := state.Current(tx, rm.id)
	if err != nil {
		return state.View{}, err
	}
	if f.beside {
		own, err := r.viewBefore(ctx, tx, rm, ev)
		if err != nil {
			return state.View{}, err
		}
		views := []state.View{own}
		for _, after := range f.after {
			views = append(views, foreignView(rows, head, after))
		}
		if f.whole != nil {
			views = append(views, foreignView(rows, head, f.whole))
		}
		return r.merge(ctx, tx, rm, ev, views)
	}
	if f.whole != nil {
		return foreignView(rows, head, f.whole), nil
	}
	prev, err := r.events.GetMany(tx, ev.PrevEvents())
	if err != nil {
		return state.View{}, err
	}
	var views []state.View
	for _, id := range ev.PrevEvents() {
		if after, ok := f.after[id]; ok {
			views = append(views, foreignView(rows, head, after))
		} else if p := prev[id]; p != nil {
			v, err := viewAfter(tx, p)
			if err != nil {
				return state.View{}, err
			}
			views = append(views, v)
		}
	}
	return r.merge(ctx, tx, rm, ev, views)
}

// foreignView expresses a state that came from outside by how it differs from
// the current one, that at head.
func foreignView(rows []state.Row, head stream.Pos, foreign map[state.Key]*events.Event) state.View {
	v := state.View{Base: head, Delta: map[state.Key]int64{}}
	current := make(map[state.Key]bool, len(rows))
	for _, row := range rows {
		current[row.Key] = true
		switch e := foreign[row.Key]; {
		case e == nil:
			v.Delta[row.Key] = 0
		case e.NID != row.NID:
			v.Delta[row.Key] = e.NID
		}
	}
	for k, e := range foreign {
		if !current[k] {
			v.Delta[k] = e.NID
		}
	}
	return v
}

func pdusOf(list []*events.Event) []json.RawMessage {
	out := make([]json.RawMessage, len(list))
	for i, e := range list {
		out[i] = e.JSON
	}
	return out
}
