package applications

import (
	"context"
	"fmt"
	"time"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	keptMatches = 50_000
	// maxWitnesses is how many of the present members are looked up one by one before all members are read.
	maxWitnesses = 8
	aliasesKept  = time.Second // how long it is believed that a room has no alias of interest
)

// interest decides what a service hears of. It is used by the service's goroutine alone.
type interest struct {
	s     *service
	users map[matrix.UserID]bool // results of matching the namespaces
	// members names for a room one user of the service who is joined to it at the place of the log that is being
	// read, "" if there is none.
	members map[matrix.RoomID]matrix.UserID
	aliases map[matrix.RoomID]time.Time // rooms without an alias of interest, and until when that is believed
}

func newInterest(s *service) *interest {
	return &interest{
		s: s, users: map[matrix.UserID]bool{}, members: map[matrix.RoomID]matrix.UserID{}, aliases: map[matrix.RoomID]time.Time{},
	}
}

// user reports whether a user is the service's own or in its namespaces.
func (n *interest) user(u matrix.UserID) bool {
	if ok, known := n.users[u]; known {
		return ok
	}
	if len(n.users) >= keptMatches {
		clear(n.users)
	}
	ok := n.s.ownsUser(u)
	n.users[u] = ok
	return ok
}

// event reports whether the service has to hear of an event, and learns from it.
//
// Spec: application-service-api#registration
func (n *interest) event(ctx context.Context, e *events.Event) (bool, error) {
	member := e.Type == "m.room.member" && e.IsState()
	subject := member && n.user(matrix.UserID(e.Key()))
	if outside(e) {
		return subject, nil
	}
	room, err := n.room(ctx, e.Room, e.Pos)
	if err != nil {
		return false, err
	}
	if user := matrix.UserID(e.Key()); subject {
		switch known := n.members[e.Room]; {
		case e.Membership == "join" && known == "":
			n.members[e.Room] = user
		case e.Membership != "join" && known == user:
			delete(n.members, e.Room) // another is looked for when it matters
		}
	}
	return room || subject || n.user(e.Sender), nil
}

// room reports whether the service is interested in all that happens in a room, just before pos.
func (n *interest) room(ctx context.Context, room matrix.RoomID, pos stream.Pos) (bool, error) {
	in, known := n.members[room]
	if !known {
		var err error
		if in, err = n.joined(ctx, room, pos); err != nil {
			return false, err
		}
		if len(n.members) >= keptMatches {
			clear(n.members)
		}
		n.members[room] = in
	}
	if in != "" || n.s.reg.OwnsRoom(room) {
		return true, nil
	}
	return n.alias(ctx, room)
}

// joined finds a user of the service who is in a room just before pos. The hub knows who is there now; where the
// log is read behind it, the state of that time decides.
func (n *interest) joined(ctx context.Context, room matrix.RoomID, pos stream.Pos) (matrix.UserID, error) {
	var now []matrix.UserID
	src := n.s.a.src.Hub
	for _, u := range src.Members(room) {
		if n.user(u) {
			if now = append(now, u); len(now) == maxWitnesses {
				break
			}
		}
	}
	if src.LastEvent(room) <= pos {
		if len(now) > 0 {
			return now[0], nil
		}
		return "", nil
	}
	var found matrix.UserID
	err := n.s.a.db.Read(ctx, func(tx *sqldb.Tx) error {
		for _, u := range now { // most likely they were there then, too
			row, ok, err := state.KeyAt(tx, room, state.Key{Type: "m.room.member", StateKey: string(u)}, pos-1)
			if err != nil {
				return err
			}
			if ok && row.Membership == "join" {
				found = u
				return nil
			}
		}
		rows, err := state.TypeAt(tx, room, "m.room.member", pos-1)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if u := matrix.UserID(r.StateKey); r.Membership == "join" && n.user(u) {
				found = u
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("reading the members of a room: %w", err)
	}
	return found, nil
}

func (n *interest) alias(ctx context.Context, room matrix.RoomID) (bool, error) {
	aliases := n.s.a.src.Aliases
	if aliases == nil || len(n.s.reg.Namespaces.Aliases) == 0 {
		return false, nil
	}
	now := n.s.a.opts.Now()
	if now.Before(n.aliases[room]) {
		return false, nil
	}
	list, err := aliases.Aliases(ctx, room)
	if err != nil {
		return false, fmt.Errorf("reading the aliases of a room: %w", err)
	}
	for _, a := range list {
		if n.s.reg.OwnsAlias(a) {
			return true, nil
		}
	}
	if len(n.aliases) >= keptMatches {
		clear(n.aliases)
	}
	n.aliases[room] = now.Add(aliasesKept)
	return false, nil
}
