package hub

import (
	"slices"
	"sort"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// RoomState is one joined room as a /sync sees it.
type RoomState struct {
	ID          matrix.RoomID
	Joined      stream.Pos // since when the user is in it, 0 if since before the start
	LastEvent   stream.Pos
	LastState   stream.Pos
	LastReceipt stream.Pos
	Typing      int64
}

// Snapshot is what concerns one user right now.
type Snapshot struct {
	Rooms    []RoomState
	Last     [stream.Kinds]stream.Pos // newest change of each kind for this user
	Member   stream.Pos               // newest change of one of his memberships
	Start    stream.Pos               // changes up to here are not in Last and Member
	Head     stream.Pos               // the snapshot's position
	Presence int64
}

// Snapshot reads, without any query, what has changed last for a user. Rooms in
// which nothing is newer than since and eph are left out.
func (h *Hub) Snapshot(user matrix.UserID, since stream.Pos, eph int64, s *Snapshot) {
	s.Rooms = s.Rooms[:0]
	h.mu.RLock()
	defer h.mu.RUnlock()
	s.Start, s.Head = h.start, h.head
	u := h.users[user]
	if u == nil {
		s.Last, s.Member, s.Presence = [stream.Kinds]stream.Pos{}, 0, 0
		return
	}
	s.Last, s.Member, s.Presence = u.last, u.member, u.presence
	for r, in := range u.rooms {
		joined := in.since
		if r.LastEvent > since || r.LastReceipt > since || r.Typing > eph || joined > since {
			s.Rooms = append(s.Rooms, RoomState{r.ID, joined, r.LastEvent, r.LastState, r.LastReceipt, r.Typing})
		}
	}
}

// Recent returns the events of a room with from < Pos <= to, the oldest first,
// and whether all of them are at hand. The slice must not be changed.
func (h *Hub) Recent(room matrix.RoomID, from, to stream.Pos) (list []*events.Event, complete bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	r := h.rooms[room]
	if r == nil {
		return nil, false
	}
	lo := sort.Search(len(r.recent), func(i int) bool { return r.recent[i].Pos > from })
	hi := sort.Search(len(r.recent), func(i int) bool { return r.recent[i].Pos > to })
	if lo > hi {
		lo = hi
	}
	return slices.Clip(r.recent[lo:hi]), r.floor <= from
}

// Head is the position up to which everybody in the process has been told.
func (h *Hub) Head() stream.Pos {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.head
}

// LastEvent is the newest position in a room's timeline.
func (h *Hub) LastEvent(room matrix.RoomID) stream.Pos {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if r := h.rooms[room]; r != nil {
		return r.LastEvent
	}
	return 0
}

// Joined reports whether the user is joined to the room.
func (h *Hub) Joined(user matrix.UserID, room matrix.RoomID) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	u, r := h.users[user], h.rooms[room]
	if u == nil || r == nil {
		return false
	}
	_, ok := u.rooms[r]
	return ok
}

// RoomsOf lists the rooms that the user is joined to, in the order of joining.
func (h *Hub) RoomsOf(user matrix.UserID) []matrix.RoomID {
	h.mu.RLock()
	defer h.mu.RUnlock()
	u := h.users[user]
	if u == nil {
		return nil
	}
	type at struct {
		id  matrix.RoomID
		pos stream.Pos
	}
	list := make([]at, 0, len(u.rooms))
	for r, in := range u.rooms {
		list = append(list, at{r.ID, in.since})
	}
	slices.SortFunc(list, func(a, b at) int {
		if a.pos != b.pos {
			return int(min(max(a.pos-b.pos, -1), 1))
		}
		return compare(a.id, b.id)
	})
	out := make([]matrix.RoomID, len(list))
	for i, a := range list {
		out[i] = a.id
	}
	return out
}

func compare(a, b matrix.RoomID) int {
	if a < b {
		return -1
	}
	return 1
}

// Members lists the joined users of a room, in no order.
func (h *Hub) Members(room matrix.RoomID) []matrix.UserID {
	return h.members(room, func(*User) bool { return true })
}

// LocalMembers lists the joined users of a room that belong to this server.
func (h *Hub) LocalMembers(room matrix.RoomID) []matrix.UserID {
	return h.members(room, func(u *User) bool { return u.Local })
}

func (h *Hub) members(room matrix.RoomID, want func(*User) bool) []matrix.UserID {
	h.mu.RLock()
	defer h.mu.RUnlock()
	r := h.rooms[room]
	if r == nil {
		return nil
	}
	out := make([]matrix.UserID, 0, len(r.members))
	for _, u := range r.members {
		if want(u) {
			out = append(out, u.ID)
		}
	}
	return out
}

// MemberCount is how many users are joined to a room.
func (h *Hub) MemberCount(room matrix.RoomID) int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if r := h.rooms[room]; r != nil {
		return len(r.members)
	}
	return 0
}

// LocalCount is how many users of this server are joined to a room.
func (h *Hub) LocalCount(room matrix.RoomID) int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if r := h.rooms[room]; r != nil {
		return r.local
	}
	return 0
}

// Servers lists the servers that have users joined to a room, this one too.
func (h *Hub) Servers(room matrix.RoomID) []matrix.ServerName {
	h.mu.RLock()
	defer h.mu.RUnlock()
	r := h.rooms[room]
	if r == nil {
		return nil
	}
	seen := map[matrix.ServerName]bool{}
	if r.local > 0 {
		seen[h.server] = true
	}
	if len(r.members) > r.local {
		for _, u := range r.members {
			if !u.Local {
				seen[u.ID.Server()] = true
			}
		}
	}
	out := make([]matrix.ServerName, 0, len(seen))
	for s := range seen {
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

// SharesRoom reports whether two users are joined to a common room; everybody
// shares with himself.
func (h *Hub) SharesRoom(a, b matrix.UserID) bool {
	if a == b {
		return true
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	ua, ub := h.users[a], h.users[b]
	if ua == nil || ub == nil {
		return false
	}
	if len(ua.rooms) > len(ub.rooms) {
		ua, ub = ub, ua
	}
	for r := range ua.rooms {
		if _, ok := ub.rooms[r]; ok {
			return true
		}
	}
	return false
}

// SharedWith lists all users who are joined to a room with this one.
func (h *Hub) SharedWith(user matrix.UserID) map[matrix.UserID]bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	out := map[matrix.UserID]bool{}
	if u := h.users[user]; u != nil {
		for r := range u.rooms {
			for _, m := range r.members {
				out[m.ID] = true
			}
		}
	}
	return out
}
