package clientsync

import (
	"encoding/json"
	"slices"
	"sync"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// maxHeroes is how many members stand for a room without a name.
const maxHeroes = 5

// heroes lists the first members beside the user, if the room has no name.
// Spec: client-server-api#calculating-the-display-name-for-a-room
func (w *work) heroes(tx *sqldb.Tx, id matrix.RoomID) ([]matrix.UserID, error) {
	for _, typ := range []string{"m.room.name", "m.room.canonical_alias"} {
		row, ok, err := state.KeyAt(tx, id, state.Key{Type: typ}, w.to)
		if err != nil {
			return nil, err
		}
		if ok {
			e, err := w.s.Rooms.EventsOf(tx, []state.Row{row})
			if err != nil {
				return nil, err
			}
			if len(e) == 1 && (e[0].ContentString("name") != "" || e[0].ContentString("alias") != "") {
				return nil, nil
			}
		}
	}
	return Heroes(tx, id, w.q.user, w.to)
}

// Heroes lists the first members of a room beside the user right after to: those
// who are there, or else those who were.
func Heroes(tx *sqldb.Tx, id matrix.RoomID, user matrix.UserID, to stream.Pos) ([]matrix.UserID, error) {
	rows, err := state.TypeAt(tx, id, "m.room.member", to)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(rows, func(a, b state.Row) int { return int(min(max(a.From-b.From, -1), 1)) })
	var present, gone []matrix.UserID
	for _, r := range rows {
		if r.StateKey == string(user) {
			continue
		}
		switch r.Membership {
		case "join", "invite":
			present = append(present, matrix.UserID(r.StateKey))
		case "leave", "ban":
			gone = append(gone, matrix.UserID(r.StateKey))
		}
		if len(present) == maxHeroes {
			break
		}
	}
	if len(present) == 0 {
		present = gone
	}
	return present[:min(len(present), maxHeroes)], nil
}

// appendSummary writes the counts of members, and the heroes where the room has
// no name. Without a transaction only the counts are at hand, which then have
// changed alone.
func (w *work) appendSummary(tx *sqldb.Tx, b []byte, id matrix.RoomID, changed bool) ([]byte, error) {
	if !changed {
		return b, nil
	}
	f := w.facts[id]
	if f == nil {
		return b, nil
	}
	if len(b) > 0 {
		b = w.comma(b)
	}
	b = append(b, `"summary":{"m.joined_member_count":`...)
	b = appendInt(b, f.summary.Joined)
	b = append(b, `,"m.invited_member_count":`...)
	b = appendInt(b, f.summary.Invited)
	if tx != nil && !f.summary.Named {
		heroes, err := w.heroes(tx, id)
		if err != nil {
			return b, err
		}
		if heroes != nil {
			j, err := json.Marshal(heroes)
			if err != nil {
				return b, err
			}
			b = append(append(b, `,"m.heroes":`...), j...)
		}
	}
	return append(b, '}'), nil
}

// sharedKey names an encoding that serves all clients with the same place and
// filter.
type sharedKey struct {
	room     matrix.RoomID
	from, to stream.Pos
	filter   *accountdata.Filter
	after    string
}

func (w *work) sharedKey(id matrix.RoomID) sharedKey {
	return sharedKey{id, w.q.since.Pos, w.to, w.q.filter, w.q.stateAfter}
}

// shared is one encoding, made by one client for all; ok and b are read once
// done is closed.
type shared struct {
	done chan struct{}
	b    []byte
	ok   bool
}

// maxShared bounds the encodings kept.
const maxShared = 512

// sharedCache keeps the newest encodings of rooms' changes.
type sharedCache struct {
	mu      sync.Mutex
	entries map[sharedKey]*shared
	order   []sharedKey
}

// claim gives the encoding for k; mine says that the caller is to make it and
// finish it. It is nil where another is making it and the caller will not wait.
func (c *sharedCache) claim(k sharedKey, wait bool) (s *shared, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.entries[k]; s != nil {
		if !wait {
			select {
			case <-s.done:
			default:
				return nil, false
			}
		}
		return s, false
	}
	for len(c.order) >= maxShared {
		delete(c.entries, c.order[0])
		c.order = c.order[1:]
	}
	s = &shared{done: make(chan struct{})}
	c.entries[k] = s
	c.order = append(c.order, k)
	return s, true
}

// finish ends a claim; one that failed is forgotten, so that others make their
// own.
func (c *sharedCache) finish(k sharedKey, s *shared, b []byte, ok bool) {
	s.b, s.ok = b, ok
	if !ok {
		c.mu.Lock()
		if c.entries[k] == s {
			delete(c.entries, k)
		}
		c.mu.Unlock()
	}
	close(s.done)
}
