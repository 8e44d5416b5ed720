package rooms

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
)

// maxHeroes is how many members name a room that has no name.
// Spec: get_matrixclientv3sync, m.heroes
const maxHeroes = 5

// leanStateBefore is the state before a join without the members that the server
// which asks can do without, and of the auth chain what is not in it.
//
// Spec: put_matrixfederationv2send_joinroomideventid, omit_members
func (r *Rooms) leanStateBefore(ctx context.Context, ev *events.Event) (st, chain []json.RawMessage, err error) {
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		v, err := state.ViewBefore(tx, ev.NID, ev.Pos)
		if err != nil {
			return err
		}
		all, err := v.All(tx, ev.Room)
		if err != nil {
			return err
		}
		named := all[state.Key{Type: spec.MRoomName}] != 0 || all[state.Key{Type: spec.MRoomCanonicalAlias}] != 0
		var members []int64
		nids := make([]int64, 0, 32)
		for key, nid := range all {
			switch {
			case key.Type != spec.MRoomMember:
				nids = append(nids, nid)
			case !named && key.StateKey != ev.Key():
				members = append(members, nid)
			}
		}
		slices.Sort(members)
		heroes, err := r.heroes(tx, members)
		if err != nil {
			return err
		}
		evs, err := r.events.ByNID(tx, append(nids, heroes...))
		if err != nil {
			return err
		}
		st, chain = nil, nil
		list, in := []*events.Event{ev}, map[matrix.EventID]bool{}
		for _, e := range evs {
			list, in[e.ID] = append(list, e), true
			st = append(st, e.JSON)
		}
		auth, err := r.authChain(tx, list)
		if err != nil {
			return err
		}
		for id, e := range auth {
			if !in[id] {
				chain = append(chain, e.JSON)
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("reading the state before %s: %w", ev.ID, err)
	}
	return st, chain, nil
}

// heroes picks of member rows, the oldest first, those who name the room: who is
// joined or invited, and if there is nobody, who was.
func (r *Rooms) heroes(tx *sqldb.Tx, members []int64) ([]int64, error) {
	var heroes, gone []int64
	for part := range slices.Chunk(members, 50) {
		evs, err := r.events.ByNID(tx, part)
		if err != nil {
			return nil, err
		}
		for _, nid := range part {
			e := evs[nid]
			switch {
			case e == nil:
			case e.Membership == spec.Join || e.Membership == spec.Invite:
				heroes = append(heroes, nid)
			case len(gone) < maxHeroes:
				gone = append(gone, nid)
			}
		}
		if len(heroes) >= maxHeroes {
			return heroes[:maxHeroes], nil
		}
	}
	if len(heroes) == 0 {
		return gone, nil
	}
	return heroes, nil
}
