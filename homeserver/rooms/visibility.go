package rooms

import (
	"context"
	"fmt"

	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// Sight is what a user may see of a room's history: the stretches of visibility
// and those of his own membership.
type Sight struct {
	visibility []stretch
	membership []stretch
	now        string // his membership now
}

type stretch struct {
	from, to stream.Pos
	value    string
}

// Sight reads what a user may see of a room.
// Spec: client-server-api#room-history-visibility
func (r *Rooms) Sight(tx *sqldb.Tx, user matrix.UserID, id matrix.RoomID) (*Sight, error) {
	all, err := r.Sights(tx, user, []matrix.RoomID{id})
	return all[id], err
}

// Sights reads what a user may see of several rooms.
func (r *Rooms) Sights(tx *sqldb.Tx, user matrix.UserID, ids []matrix.RoomID) (map[matrix.RoomID]*Sight, error) {
	all, names := make(map[matrix.RoomID]*Sight, len(ids)), make([]string, len(ids))
	for i, id := range ids {
		all[id], names[i] = &Sight{}, string(id)
	}
	rows, err := state.Histories(tx, names, state.Key{Type: spec.MRoomHistoryVisibility})
	if err != nil {
		return nil, err
	}
	nids := make([]int64, len(rows))
	for i, row := range rows {
		nids[i] = row.NID
	}
	evs, err := r.events.ByNID(tx, nids)
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		s := all[row.Room]
		s.visibility = append(s.visibility, stretch{row.From, row.To, visibilityIn(evs[row.NID])})
	}
	if rows, err = state.Histories(tx, names, memberKey(user)); err != nil {
		return nil, err
	}
	for _, row := range rows {
		s := all[row.Room]
		s.membership = append(s.membership, stretch{row.From, row.To, row.Membership})
		if row.To == state.Open {
			s.now = row.Membership
		}
	}
	return all, nil
}

func at(list []stretch, pos stream.Pos, none string) string {
	for _, s := range list {
		if s.from <= pos && pos < s.to {
			return s.value
		}
	}
	return none
}

// before is the value right before pos: state events are judged by the state
// before and after them.
func (s *Sight) sees(pos stream.Pos, own bool) bool {
	visibility, membership := at(s.visibility, pos, "shared"), at(s.membership, pos, "")
	if pos < 0 {
		// History from before this server joined: nobody of ours was there.
		if len(s.visibility) > 0 {
			visibility = s.visibility[0].value
		}
		membership = ""
	}
	if membership == spec.Join || own {
		return true
	}
	switch visibility {
	case "world_readable":
		return true
	case "shared":
		return s.joinedAfter(pos)
	case "invited":
		return membership == spec.Invite && s.joinedAfter(pos)
	}
	return false
}

// joinedAfter reports whether the user was joined at any time after pos.
func (s *Sight) joinedAfter(pos stream.Pos) bool {
	for _, m := range s.membership {
		if m.value == spec.Join && m.to > pos {
			return true
		}
	}
	return false
}

// Sees reports whether the user may see an event.
func (s *Sight) Sees(user matrix.UserID, e *events.Event) bool {
	if e.Hidden() {
		return false
	}
	own := e.Type == spec.MRoomMember && e.StateKey != nil && *e.StateKey == string(user)
	if s.sees(e.Pos, own) {
		return true
	}
	if e.Type == spec.MRoomHistoryVisibility || e.Type == spec.MRoomMember {
		return s.sees(e.Pos-1, own) // the more generous of before and after
	}
	return false
}

// Membership is the user's membership right after a position, "leave" if he had
// none.
func (s *Sight) Membership(pos stream.Pos) string { return at(s.membership, pos, spec.Leave) }

// Everything reports that no event of the room needs to be looked at: the
// history is open to members and the user is one.
func (s *Sight) Everything() bool {
	if s.now != spec.Join {
		return false
	}
	for _, v := range s.visibility {
		if v.value != "shared" && v.value != "world_readable" {
			return false
		}
	}
	return true
}

// Visible filters events of one room by what the user may see.
func (r *Rooms) Visible(ctx context.Context, user matrix.UserID, id matrix.RoomID, list []*events.Event) (out []*events.Event, err error) {
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		out, err = r.VisibleTx(tx, user, id, list)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("history visibility: %w", err)
	}
	return out, nil
}

// VisibleTx is Visible in a transaction under way.
func (r *Rooms) VisibleTx(tx *sqldb.Tx, user matrix.UserID, id matrix.RoomID, list []*events.Event) ([]*events.Event, error) {
	s, err := r.Sight(tx, user, id)
	if err != nil {
		return nil, err
	}
	out := make([]*events.Event, 0, len(list))
	all := s.Everything()
	for _, e := range list {
		if all && !e.Hidden() || s.Sees(user, e) {
			out = append(out, e)
		}
	}
	return out, nil
}
