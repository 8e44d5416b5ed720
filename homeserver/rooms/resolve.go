package rooms

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
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
		v, err := state.ViewBefore(tx, p.NID, p.Pos)
		if err != nil {
			return state.View{}, err
		}
		if p.StateKey != nil && !p.Rejected() {
			v = v.With(state.Key{Type: p.Type, StateKey: *p.StateKey}, p.NID)
		}
		views = append(views, v)
	}
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
	v := views[0]
	for _, s := range sets {
		v = v.With(s.key, s.nid)
	}
	return v, nil
}

// foreignView expresses a state that came from outside by how it differs from
// the current one.
func (r *Rooms) foreignView(tx *sqldb.Tx, rm *room, head stream.Pos, f *foreignState) (state.View, error) {
	v := state.View{Base: head, Delta: map[state.Key]int64{}}
	rows, err := state.Current(tx, rm.id)
	if err != nil {
		return v, err
	}
	for _, row := range rows {
		switch e := f.state[row.Key]; {
		case e == nil:
			v.Delta[row.Key] = 0
		case e.NID != row.NID:
			v.Delta[row.Key] = e.NID
		}
		delete(f.state, row.Key)
	}
	for k, e := range f.state {
		v.Delta[k] = e.NID
	}
	return v, nil
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
// Spec: rooms/v2#state-resolution, rooms/v12#state-resolution
func (r *Rooms) resolve(_ context.Context, tx *sqldb.Tx, rm *room, views []state.View, extra map[int64]*events.Event) ([]resolvedEntry, error) {
	diff, err := state.Differences(tx, rm.id, views)
	if err != nil || len(diff) == 0 {
		return nil, err
	}
	byNID := map[int64]*events.Event{}
	var nids []int64
	for _, list := range diff {
		for _, nid := range list {
			if e := extra[nid]; e != nil {
				byNID[nid] = e
			} else if nid != 0 {
				nids = append(nids, nid)
			}
		}
	}
	loaded, err := r.events.ByNID(tx, nids)
	if err != nil {
		return nil, err
	}
	for nid, e := range loaded {
		byNID[nid] = e
	}
	common, err := r.commonAuth(tx, rm, views[0], diff, byNID)
	if err != nil {
		return nil, err
	}
	conflicted := make([]*events.Event, 0, len(byNID)+len(common))
	for _, e := range byNID {
		conflicted = append(conflicted, e)
	}
	chain, err := r.authChain(tx, append(conflicted, common...))
	if err != nil {
		return nil, err
	}
	winners, err := runResolution(rm.version, views, diff, byNID, common, chain)
	if err != nil {
		return nil, err
	}
	var out []resolvedEntry
	for key, list := range diff {
		nid, membership := int64(0), ""
		if w := winners[key]; w != "" {
			for n, e := range byNID {
				if e.ID == w {
					nid, membership = n, e.Membership
				}
			}
		}
		if nid != list[0] {
			out = append(out, resolvedEntry{key, nid, membership})
		}
	}
	return out, nil
}

// commonAuth reads the entries that all views share and that authorisation of
// the conflicted events needs.
func (r *Rooms) commonAuth(tx *sqldb.Tx, rm *room, v state.View, diff map[state.Key][]int64, byNID map[int64]*events.Event) ([]*events.Event, error) {
	pdus := make([]gomatrixserverlib.PDU, 0, len(byNID))
	for _, e := range byNID {
		p, err := e.PDU()
		if err != nil {
			return nil, err
		}
		pdus = append(pdus, p)
	}
	keys := []state.Key{{Type: spec.MRoomCreate}, {Type: spec.MRoomPowerLevels}, {Type: spec.MRoomJoinRules}}
	for _, t := range gomatrixserverlib.StateNeededForAuth(pdus).Tuples() {
		keys = append(keys, state.Key{Type: t.EventType, StateKey: t.StateKey})
	}
	seen := map[state.Key]bool{}
	var nids []int64
	for _, k := range keys {
		if seen[k] || diff[k] != nil {
			continue
		}
		seen[k] = true
		nid, err := v.Get(tx, rm.id, k)
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
	out := make([]*events.Event, 0, len(evs))
	for _, e := range evs {
		out = append(out, e)
	}
	return out, nil
}

// authChain reads all events that authorise list, directly or not.
func (r *Rooms) authChain(tx *sqldb.Tx, list []*events.Event) (map[matrix.EventID]*events.Event, error) {
	chain := map[matrix.EventID]*events.Event{}
	next := list
	for len(next) > 0 {
		var ids []matrix.EventID
		asked := map[matrix.EventID]bool{}
		for _, e := range next {
			for _, id := range e.AuthEvents() {
				if chain[id] == nil && !asked[id] {
					asked[id] = true
					ids = append(ids, id)
				}
			}
		}
		got, err := r.events.GetMany(tx, ids)
		if err != nil {
			return nil, err
		}
		next = next[:0:0]
		for id, e := range got {
			chain[id] = e
			next = append(next, e)
		}
		if len(chain) > maxChain {
			return nil, errors.New("an auth chain is too long")
		}
	}
	return chain, nil
}

// runResolution hands the sets to the library and returns the winner of each
// entry that differs.
func runResolution(version gomatrixserverlib.RoomVersion, views []state.View, diff map[state.Key][]int64,
	byNID map[int64]*events.Event, common []*events.Event, chain map[matrix.EventID]*events.Event,
) (map[state.Key]matrix.EventID, error) {
	if v, err := gomatrixserverlib.GetRoomVersion(version); err == nil && v.StateResAlgorithm() == gomatrixserverlib.StateResV2_1 {
		// The library's own form of it does not find authorising events outside the state.
		sets := make([][]*events.Event, len(views))
		for i := range views {
			sets[i] = slices.Clone(common)
			for _, list := range diff {
				if e := byNID[list[i]]; e != nil {
					sets[i] = append(sets[i], e)
				}
			}
		}
		return resolve21(version, sets, chain)
	}
	pdus := map[matrix.EventID]gomatrixserverlib.PDU{}
	pduOf := func(e *events.Event) (gomatrixserverlib.PDU, error) {
		if p := pdus[e.ID]; p != nil {
			return p, nil
		}
		p, err := e.PDU()
		if err == nil {
			pdus[e.ID] = p
		}
		return p, err
	}
	sets := make([][]gomatrixserverlib.PDU, len(views))
	for i := range views {
		for _, e := range common {
			p, err := pduOf(e)
			if err != nil {
				return nil, err
			}
			sets[i] = append(sets[i], p)
		}
		for _, list := range diff {
			if e := byNID[list[i]]; e != nil {
				p, err := pduOf(e)
				if err != nil {
					return nil, err
				}
				sets[i] = append(sets[i], p)
			}
		}
	}
	auth := make([]gomatrixserverlib.PDU, 0, len(chain))
	rejected := map[string]bool{}
	for _, e := range chain {
		p, err := pduOf(e)
		if err != nil {
			return nil, err
		}
		auth = append(auth, p)
		rejected[string(e.ID)] = e.Rejected()
	}
	resolved, err := gomatrixserverlib.ResolveConflictsNew(version, sets, auth, userIDForSender,
		func(id string) bool { return rejected[id] })
	if err != nil {
		return nil, fmt.Errorf("resolving state: %w", err)
	}
	winners := map[state.Key]matrix.EventID{}
	for _, p := range resolved {
		if p.StateKey() != nil {
			winners[state.Key{Type: p.Type(), StateKey: *p.StateKey()}] = matrix.EventID(p.EventID())
		}
	}
	return winners, nil
}
