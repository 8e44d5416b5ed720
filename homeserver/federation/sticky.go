package federation

import (
	"slices"
	"time"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sticky"
)

// settling is what a server that has just been let into a room gets to read the
// state that came with the answer to its join, before more comes.
const settling = 2 * time.Second

// welcome sends a server that comes into a room what is sticky there and from
// here: it is no part of the state that the server gets.
// Spec: MSC4354
func (r *reader) welcome(e *events.Event) {
	if e.Pos <= 0 || e.Type != "m.room.member" && e.Resolved == nil {
		return
	}
	if e.Resolved == nil && e.Replaces != 0 && (e.Replaced == nil || e.Replaced.Membership == "join") {
		return // no more than a name or a picture
	}
	list := r.rooms.Sticky().OfServer(e.Room, r.own)
	if len(list) == 0 {
		return
	}
	joins := map[matrix.ServerName]int{}
	for user, membership := range e.Moves {
		if s := user.Server(); membership == "join" && s != r.own {
			joins[s]++
		}
	}
	var fresh []matrix.ServerName
	for s, n := range joins {
		if r.servers.count(e.Room, s) <= n { // the hub has them already
			fresh = append(fresh, s)
		}
	}
	if len(fresh) == 0 {
		return
	}
	time.AfterFunc(settling, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.lost || len(r.entries)+len(list) > keptEntries {
			return // the log is read from the database, and these joins with it
		}
		for _, s := range list {
			r.entries = append(r.entries, entry{pos: r.head, event: s.ID, servers: fresh})
		}
		select {
		case r.bell <- struct{}{}:
		default:
		}
	})
}

// missedWelcome is what welcome sends, for a join that is read from the database.
func (r *reader) missedWelcome(tx *sqldb.Tx, e *events.Event) ([]entry, error) {
	s := matrix.UserID(e.Key()).Server()
	if e.Hidden() || e.Membership != "join" || s == r.own {
		return nil, nil
	}
	older := slices.DeleteFunc(r.rooms.Sticky().OfServer(e.Room, r.own), func(x sticky.Entry) bool { return x.Pos > e.Pos })
	if len(older) == 0 {
		return nil, nil
	}
	in, err := r.rooms.ServersAt(tx, e.Room, e.Pos-1)
	if err != nil || slices.Contains(in, s) {
		return nil, err
	}
	list := make([]entry, len(older))
	for i, x := range older {
		list[i] = entry{pos: e.Pos, event: x.ID, servers: []matrix.ServerName{s}}
	}
	return list, nil
}
