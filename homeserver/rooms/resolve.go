package rooms

import (
	"context"
	"fmt"
	"slices"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
)

// viewBefore is the state before an event whose prev_events are all known:
// resolved between the states after each of them.
func (r *Rooms) viewBefore(ctx context.Context, tx *sqldb.Tx, rm *room, ev *events.Event) (state.View, error) {
	prev, err := r.events.GetMany(tx, ev.PrevEvents())
	if err != nil {
		return state.View{}, err
	}
	var views []state.View
	for _, id := range ev.PrevEvents() {
		p := prev[id]
		if p == nil {
			continue
		}
		v, err := viewAfter(tx, p)
		if err != nil {
			return state.View{}, err
		}
		views = append(views, v)
	}
	return r.merge(ctx, tx, rm, ev, views)
}

// merge is the state before an event, resolved between those after its prev_events.
func (r *Rooms) merge(ctx context.Context, tx *sqldb.Tx, rm *room, ev *events.Event, views []state.View) (state.View, error) {
	if len(views) == 0 {
		return state.View{}, fmt.Errorf("event %s has no known ancestor", ev.ID)
	}
	if len(views) == 1 {
		return views[0], nil
	}
	sets, err := r.resolve(ctx, tx, rm, views, nil)
	if err != nil {
		return state.View{}, err
	}
	return changed(views[0], sets), nil
}

// changed is a view with what resolution changes of it.
func changed(v state.View, sets []resolvedEntry) state.View {
	entries := make(map[state.Key]int64, len(sets))
	for _, s := range sets {
		entries[s.key] = s.nid
	}
	return v.WithAll(entries)
}

// viewAfter is the state after an event that has its place here.
func viewAfter(tx *sqldb.Tx, e *events.Event) (state.View, error) {
	v, err := state.ViewBefore(tx, e.NID, e.Pos)
	if err == nil && e.StateKey != nil && !e.Rejected() {
		v = v.With(keyOf(e), e.NID)
	}
	return v, err
}

// allowedIn authorises an event against a view; the first result says why not.
func (r *Rooms) allowedIn(tx *sqldb.Tx, rm *room, v state.View, ev *events.Event) (verdict, err error) {
	pdu, err := ev.PDU()
	if err != nil {
		return nil, err
	}
	needed := gomatrixserverlib.StateNeededForAuth([]gomatrixserverlib.PDU{pdu})
	var nids []int64
	for _, t := range needed.Tuples() {
		nid, err := v.Get(tx, rm.id, state.Key{Type: t.EventType, StateKey: t.StateKey})
		if err != nil {
			return nil, err
		}
		if nid != 0 {
			nids = append(nids, nid)
		}
	}
	evs, err := r.events.ByNID(tx, nids)
	if err != nil {
		return nil, err
	}
	auth := make([]*events.Event, 0, len(evs))
	for _, e := range evs {
		auth = append(auth, e)
	}
	return allowedBy(ev, auth), nil
}

// resolve finds what the state resolved from views is, as changes to views[0].
// Only entries that differ are looked at, with the auth chains of their events.
// Spec: rooms/v1#state-resolution, rooms/v2#state-resolution, rooms/v12#state-resolution
func (r *Rooms) resolve(_ context.Context, tx *sqldb.Tx, rm *room, views []state.View, extra map[int64]*events.Event) ([]resolvedEntry, error) {
	diff, err := state.Differences(tx, rm.id, views)
	if err != nil || len(diff) == 0 {
		return nil, err
	}
	sets, rows, err := r.conflicting(tx, len(views), diff, extra)
	if err != nil {
		return nil, err
	}
	a := &agreed{r: r, tx: tx, room: rm.id, view: views[0], diff: diff, held: map[state.Key]*events.Event{}}
	var winners map[state.Key]matrix.EventID
	if rm.impl.StateResAlgorithm() == gomatrixserverlib.StateResV1 {
		winners, err = resolve1(sets, a)
	} else {
		winners, err = r.resolve2(tx, rm, sets, a, rows)
	}
	if err != nil {
		return nil, fmt.Errorf("resolving state: %w", err)
	}
	var out []resolvedEntry
	for key, list := range diff {
		nid, membership := int64(0), ""
		if w := winners[key]; w != "" {
			nid, membership = rows[w].nid, rows[w].membership
		}
		if nid != list[0] {
			out = append(out, resolvedEntry{key, nid, membership})
		}
	}
	return out, nil
}

// storedRow is where an event is found and what it says of a membership.
type storedRow struct {
	nid        int64
	membership string
}

// conflicting reads the entries in which views differ, for each view.
func (r *Rooms) conflicting(tx *sqldb.Tx, views int, diff map[state.Key][]int64, extra map[int64]*events.Event) ([][]*events.Event, map[matrix.EventID]storedRow, error) {
	var nids []int64
	for _, list := range diff {
		for _, nid := range list {
			if nid != 0 && extra[nid] == nil {
				nids = append(nids, nid)
			}
		}
	}
	byNID, err := r.events.ByNID(tx, nids)
	if err != nil {
		return nil, nil, err
	}
	for nid, e := range extra {
		byNID[nid] = e
	}
	sets, rows := make([][]*events.Event, views), map[matrix.EventID]storedRow{}
	for _, list := range diff {
		for i, nid := range list {
			if e := byNID[nid]; e != nil {
				sets[i] = append(sets[i], e)
				rows[e.ID] = storedRow{nid, e.Membership}
			}
		}
	}
	return sets, rows, nil
}

// agreed is the part of the state that all views share, read as it is needed.
type agreed struct {
	r    *Rooms
	tx   *sqldb.Tx
	room matrix.RoomID
	view state.View
	diff map[state.Key][]int64
	held map[state.Key]*events.Event
}

// at reads an entry; nil if the views do not agree on one.
func (a *agreed) at(key state.Key) (*events.Event, error) {
	if e, ok := a.held[key]; ok || a.diff[key] != nil {
		return e, nil
	}
	nid, err := a.view.Get(a.tx, a.room, key)
	if err != nil {
		return nil, err
	}
	if nid != 0 {
		evs, err := a.r.events.ByNID(a.tx, []int64{nid})
		if err != nil {
			return nil, err
		}
		a.held[key] = evs[nid]
	} else {
		a.held[key] = nil
	}
	return a.held[key], nil
}

// without takes out of list what belongs to the shared state or authorises any
// of it, directly or not: that is in the auth chain of every view.
func (a *agreed) without(list []*events.Event) ([]*events.Event, error) {
	var rest []*events.Event
	for _, e := range list {
		held, err := a.at(keyOf(e))
		if err != nil {
			return nil, err
		}
		if held == nil || held.ID != e.ID {
			rest = append(rest, e)
		}
	}
	if len(rest) == 0 {
		return nil, nil
	}
	// Most of what is left are earlier power levels: those that hold now tell, without
	// the state of the whole room.
	if levels, err := a.at(state.Key{Type: spec.MRoomPowerLevels}); err != nil {
		return nil, err
	} else if levels != nil {
		if rest, err = a.notBehind(rest, []int64{levels.NID}); err != nil || len(rest) == 0 {
			return nil, err
		}
	}
	all, err := a.view.All(a.tx, a.room)
	if err != nil {
		return nil, err
	}
	var nids []int64
	for key, nid := range all {
		if a.diff[key] == nil {
			nids = append(nids, nid)
		}
	}
	return a.notBehind(rest, nids)
}

// notBehind takes out of list what authorises the events of some rows.
func (a *agreed) notBehind(list []*events.Event, nids []int64) ([]*events.Event, error) {
	wanted := make(map[matrix.EventID]bool, len(list))
	for _, e := range list {
		wanted[e.ID] = true
	}
	found, err := a.r.authorising(a.tx, nids, wanted)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list, func(e *events.Event) bool { return found[e.ID] }), nil
}

// resolve2 runs the algorithm of room versions 2 to 11, or that of 12 on. Events
// of the auth chains can win, too; where they are stored is added to rows.
func (r *Rooms) resolve2(tx *sqldb.Tx, rm *room, sets [][]*events.Event, a *agreed, rows map[matrix.EventID]storedRow) (map[state.Key]matrix.EventID, error) {
	list := slices.Concat(sets...)
	levels, err := a.at(state.Key{Type: spec.MRoomPowerLevels})
	if err != nil {
		return nil, err
	}
	if levels != nil { // its ancestors are the mainline
		list = append(list, levels)
	}
	chain, err := r.authChain(tx, list)
	if err != nil {
		return nil, err
	}
	for id, e := range chain {
		if _, ok := rows[id]; !ok {
			rows[id] = storedRow{e.NID, e.Membership}
		}
	}
	run := newResolver(rm.version, rm.impl.StateResAlgorithm() == gomatrixserverlib.StateResV2_1, a, chain)
	return run.resolve(sets)
}
