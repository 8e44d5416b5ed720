package rooms

import (
	"context"
	"fmt"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
)

// Members is how many users a room has.
type Members struct{ Joined, Invited int }

// smallRoom is up to how many members a room is counted in the database and not
// taken into memory for it: to count the members of a large room again and again
// costs more.
const smallRoom = 200

// Members counts the members of several rooms. Those that nobody has used since
// the start are counted together.
func (r *Rooms) Members(ctx context.Context, ids []matrix.RoomID) (map[matrix.RoomID]Members, error) {
	out := make(map[matrix.RoomID]Members, len(ids))
	var small []string
	for _, id := range ids {
		if joined := r.hub.MemberCount(id); joined > 0 && joined <= smallRoom && !r.used(id) {
			out[id] = Members{Joined: joined}
			small = append(small, string(id))
			continue
		}
		s, err := r.Summary(ctx, id)
		if err != nil {
			return nil, err
		}
		out[id] = Members{s.Joined, s.Invited}
	}
	if len(small) == 0 {
		return out, nil
	}
	err := r.db.Read(ctx, func(tx *sqldb.Tx) error {
		invited, err := state.Invited(tx, small)
		for id, n := range invited {
			m := out[id]
			m.Invited = n
			out[id] = m
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("counting members: %w", err)
	}
	return out, nil
}

// used reports whether a room is in memory.
func (r *Rooms) used(id matrix.RoomID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cached[id] != nil
}
