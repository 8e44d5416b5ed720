package rooms

import (
	"bytes"
	"cmp"
	"crypto/sha1" //nolint:gosec // the algorithm breaks ties with it
	"slices"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/state"
)

// resolver1 is one run of the state resolution of room version 1. The library's takes
// kept invitations for something that decides over other events.
//
// Spec: rooms/v1#state-resolution
type resolver1 struct {
	agreed *agreed
	pdus   pdus
	values map[state.Key][]*events.Event // that differ, each the oldest first
	result map[state.Key]*events.Event
}

// resolve1 finds the winners. An entry that only some states have is no conflict.
func resolve1(sets [][]*events.Event, a *agreed) (map[state.Key]matrix.EventID, error) {
	r := &resolver1{agreed: a, pdus: pdus{}, values: map[state.Key][]*events.Event{}, result: map[state.Key]*events.Event{}}
	for _, e := range slices.Concat(sets...) {
		key := keyOf(e)
		if !slices.ContainsFunc(r.values[key], func(o *events.Event) bool { return o.ID == e.ID }) {
			r.values[key] = append(r.values[key], e)
		}
	}
	for key, list := range r.values {
		if len(list) == 1 {
			r.result[key] = list[0]
			delete(r.values, key)
		}
		slices.SortFunc(list, func(a, b *events.Event) int {
			if c := cmp.Compare(a.Depth, b.Depth); c != 0 {
				return c
			}
			x, y := sha1.Sum([]byte(a.ID)), sha1.Sum([]byte(b.ID)) //nolint:gosec // see above
			return bytes.Compare(y[:], x[:])
		})
	}
	for _, typ := range []string{spec.MRoomPowerLevels, spec.MRoomJoinRules, spec.MRoomMember} {
		if err := r.pass(func(k state.Key) bool { return k.Type == typ && (typ == spec.MRoomMember || k.StateKey == "") }, r.ascend); err != nil {
			return nil, err
		}
	}
	if err := r.pass(func(state.Key) bool { return true }, r.newest); err != nil {
		return nil, err
	}
	out := make(map[state.Key]matrix.EventID, len(r.result))
	for k, e := range r.result {
		out[k] = e.ID
	}
	return out, nil
}

// pass decides over some of the conflicts, none of which has a say in the others.
func (r *resolver1) pass(of func(state.Key) bool, choose func(state.Key, []*events.Event) (*events.Event, error)) error {
	won := map[state.Key]*events.Event{}
	for key, list := range r.values {
		if !of(key) {
			continue
		}
		e, err := choose(key, list)
		if err != nil {
			return err
		}
		won[key] = e
	}
	for key, e := range won {
		r.result[key] = e
		delete(r.values, key)
	}
	return nil
}

// ascend takes the oldest and goes on to newer ones as long as each is allowed by the
// one before it.
func (r *resolver1) ascend(key state.Key, list []*events.Event) (*events.Event, error) {
	defer delete(r.result, key)
	won := list[0]
	for _, e := range list[1:] {
		r.result[key] = won
		ok, err := r.allowed(e)
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		won = e
	}
	return won, nil
}

// newest takes the newest that is allowed, else the oldest.
func (r *resolver1) newest(_ state.Key, list []*events.Event) (*events.Event, error) {
	for _, e := range slices.Backward(list[1:]) {
		if ok, err := r.allowed(e); ok || err != nil {
			return e, err
		}
	}
	return list[0], nil
}

// allowed judges an event by the state so far, in which what is yet to be decided over
// is absent.
func (r *resolver1) allowed(e *events.Event) (bool, error) {
	p, err := r.pdus.of(e)
	if err != nil {
		return false, err
	}
	var auth []*events.Event
	for _, t := range gomatrixserverlib.StateNeededForAuth([]gomatrixserverlib.PDU{p}).Tuples() {
		key := state.Key{Type: t.EventType, StateKey: t.StateKey}
		held := r.result[key]
		if held == nil && r.agreed.diff[key] == nil {
			if held, err = r.agreed.at(key); err != nil {
				return false, err
			}
		}
		if held != nil {
			auth = append(auth, held)
		}
	}
	err = allowedByParsed(e, auth, r.pdus.of)
	if matrix.IsCode(err, "M_FORBIDDEN") {
		return false, nil
	}
	return err == nil, err
}
