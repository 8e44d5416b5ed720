package federation

import (
	"slices"
	"sync"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// roomServers knows which other servers are in which room. A room is read from the hub when it is first asked for,
// and kept true by the member events of the log from then on.
type roomServers struct {
	own matrix.ServerName
	hub *hub.Hub

	mu    sync.Mutex
	rooms map[matrix.RoomID]*remoteMembers
}

// remoteMembers are the joined users of other servers in one room.
type remoteMembers struct {
	users  map[matrix.UserID]struct{}
	counts map[matrix.ServerName]int
	list   []matrix.ServerName // sorted; never changed, only replaced
}

// of lists the other servers in a room. The slice must not be changed.
func (s *roomServers) of(room matrix.RoomID) []matrix.ServerName {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.room(room).list
}

// count is how many users of a server are in a room.
func (s *roomServers) count(room matrix.RoomID, server matrix.ServerName) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.room(room).counts[server]
}

func (s *roomServers) room(id matrix.RoomID) *remoteMembers {
	r := s.rooms[id]
	remote := s.hub.MemberCount(id) - s.hub.LocalCount(id)
	if r != nil && len(r.users) == remote { // else state resolution has changed a membership without an event
		return r
	}
	r = &remoteMembers{}
	s.rooms[id] = r
	if remote > 0 {
		for _, u := range s.hub.Members(id) {
			if u.Server() != s.own {
				r.join(u)
			}
		}
		r.sort()
	}
	return r
}

// apply takes in the changes of membership that an event of the log brings.
func (s *roomServers) apply(e *events.Event) {
	for user, membership := range e.Moves {
		if user.Server() != s.own {
			s.move(e.Room, user, membership == "join")
		}
	}
}

func (s *roomServers) move(room matrix.RoomID, user matrix.UserID, joined bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.room(room)
	before := len(r.counts)
	if joined {
		r.join(user)
	} else {
		r.leave(user)
	}
	if len(r.counts) != before {
		r.sort()
	}
}

// forget has a room read again from the hub: this server has joined it, maybe after an absence.
func (s *roomServers) forget(room matrix.RoomID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.rooms, room)
}

func (r *remoteMembers) join(u matrix.UserID) {
	if _, ok := r.users[u]; ok {
		return
	}
	if r.users == nil {
		r.users, r.counts = map[matrix.UserID]struct{}{}, map[matrix.ServerName]int{}
	}
	r.users[u] = struct{}{}
	r.counts[u.Server()]++
}

func (r *remoteMembers) leave(u matrix.UserID) {
	if _, ok := r.users[u]; !ok {
		return
	}
	delete(r.users, u)
	if s := u.Server(); r.counts[s] > 1 {
		r.counts[s]--
	} else {
		delete(r.counts, s)
	}
}

func (r *remoteMembers) sort() {
	list := make([]matrix.ServerName, 0, len(r.counts))
	for s := range r.counts {
		list = append(list, s)
	}
	slices.Sort(list)
	r.list = list
}

// sharing lists the other servers that are in a room with a user.
func (s *roomServers) sharing(user matrix.UserID) []matrix.ServerName {
	seen := map[matrix.ServerName]bool{}
	for _, room := range s.hub.RoomsOf(user) {
		for _, srv := range s.of(room) {
			seen[srv] = true
		}
	}
	out := make([]matrix.ServerName, 0, len(seen))
	for srv := range seen {
		out = append(out, srv)
	}
	slices.Sort(out)
	return out
}
