package clientsync

import (
	"slices"
	"sync"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// maxSpeakers bounds the member events kept.
const maxSpeakers = 4096

// speaker names a member of a room.
type speaker struct {
	room matrix.RoomID
	user matrix.UserID
}

// face is his member event, and how far the room's state had come when it was read.
type face struct {
	event *events.Event
	state stream.Pos
}

// speakers keeps the member events of those who spoke last, which go with what they say to each client that loads
// members lazily. One holds as long as nothing of its room's state has changed.
type speakers struct {
	mu      sync.RWMutex
	entries map[speaker]face
}

// of finds the members who sent list; all is false where one is not at hand.
func (s *speakers) of(r *hub.RoomState, list []*events.Event) (found []*events.Event, all bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for i, e := range list {
		if slices.ContainsFunc(list[:i], func(o *events.Event) bool { return o.Sender == e.Sender }) {
			continue
		}
		f, ok := s.entries[speaker{r.ID, e.Sender}]
		if !ok || f.state != r.LastState {
			return nil, false
		}
		found = append(found, f.event)
	}
	return found, true
}

// keep remembers the members of a room as they are since its state changed last.
func (s *speakers) keep(r *hub.RoomState, members []*events.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range members {
		key := speaker{r.ID, matrix.UserID(e.Key())}
		for old := range s.entries {
			if len(s.entries) < maxSpeakers {
				break
			}
			delete(s.entries, old) // any: whoever speaks again is read again
		}
		s.entries[key] = face{e, r.LastState}
	}
}

// lean reports whether the state that goes with the recent events of a room is nothing but the members who sent them.
func (w *work) lean(r *hub.RoomState, list []*events.Event) bool {
	q := w.q
	return q.filter.LazyMembers() && q.filter.State().MatchesAll() && q.filter.Timeline().MatchesAll() && len(q.ignored) == 0 &&
		r.LastState <= q.since.Pos && len(list) <= q.filter.Timeline().Limit(defaultLimit, maxLimit) &&
		!slices.ContainsFunc(list, func(e *events.Event) bool { return e.Gap() || e.Hidden() })
}
