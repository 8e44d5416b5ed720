// Package oldsync answers what clients asked before there was /sync: the events
// since a token, and the rooms as they stand. One use of it is alive: looking
// into a room whose history is open to the world without joining it, as guests
// do.
//
// It owns no tables. Spec: get_matrixclientv3events, get_matrixclientv3initialsync,
// get_matrixclientv3roomsroomidinitialsync, client-server-api#room-previews
//
// The tokens are those of /messages and /sync. As the specification has it, the
// events are those of rooms; typing, receipts and presence come by /sync alone.
//
// Invariants: the waiter is registered before anything is read; a token never
// runs ahead of what its answer holds.
package oldsync

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/history"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/presence"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	// defaultTimeout and maxTimeout bound how long a client waits.
	defaultTimeout = 30 * time.Second
	maxTimeout     = 5 * time.Minute
	// mostEvents is how many events go into one answer of /events.
	mostEvents = 100
	// defaultLimit and maxLimit bound the messages of a room.
	defaultLimit = 10
	maxLimit     = 100
	// mostScanned is how many events are read for the messages of a room when
	// what the user may see turns most of them away.
	mostScanned = 1000
	// mostWaiting is how many waiting requests a user may have; the oldest is
	// answered.
	mostWaiting = 10
)

// Parts is what the module is built of.
type Parts struct {
	DB       *sqldb.DB
	Log      *stream.Log
	Hub      *hub.Hub
	Events   *events.Store
	Rooms    *rooms.Rooms
	Data     *accountdata.Data
	Presence *presence.Presence
	History  *history.History
	// Published reports whether a room is in the directory.
	Published func(ctx context.Context, room matrix.RoomID) (bool, error)
	// InviteBlocked reports whether a user does not want an invitation by this
	// sender; nil blocks none.
	InviteBlocked func(sender, target matrix.UserID) bool
	Now           matrix.Now
}

// OldSync is the module.
type OldSync struct {
	Parts
	onlookers onlookers

	mu      sync.Mutex
	waiting map[matrix.UserID][]chan struct{} // requests under way, the oldest first
}

// New prepares the module. Call it before the log runs.
func New(p Parts) *OldSync {
	if p.Now == nil {
		p.Now = time.Now
	}
	s := &OldSync{Parts: p, waiting: map[matrix.UserID][]chan struct{}{}}
	s.onlookers.rooms = map[matrix.RoomID][]chan struct{}{}
	p.Log.Subscribe(s.onlookers.hear)
	p.Log.Ring(s.onlookers.ring)
	return s
}

// Routes are the endpoints of the module.
func (s *OldSync) Routes() []httpapi.Route {
	get := func(path string, guest bool, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: http.MethodGet, Path: "/_matrix/client/v3" + path, Auth: httpapi.AuthUser, AllowSuspended: true, AllowGuest: guest, Handler: h}
	}
	return []httpapi.Route{
		get("/events", true, s.getEvents),
		get("/events/{eventId}", false, s.getEvent),
		get("/initialSync", false, s.getAll),
		get("/rooms/{roomId}/initialSync", true, s.getRoom),
	}
}

// enter bounds the waiting requests of a user.
func (s *OldSync) enter(user matrix.UserID) (done func(), replaced chan struct{}) {
	replaced = make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	list := append(s.waiting[user], replaced)
	if len(list) > mostWaiting {
		close(list[0])
		list = list[1:]
	}
	s.waiting[user] = list
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		list := slices.DeleteFunc(s.waiting[user], func(c chan struct{}) bool { return c == replaced })
		if s.waiting[user] = list; len(list) == 0 {
			delete(s.waiting, user)
		}
	}, replaced
}

// onlookers wait for events of a room that they need not be in.
type onlookers struct {
	mu    sync.Mutex
	rooms map[matrix.RoomID][]chan struct{}
	moved []matrix.RoomID // rooms with onlookers in the commit under way
}

// watch registers an onlooker. The channel has a capacity of one and says only
// "read again".
func (o *onlookers) watch(room matrix.RoomID) (c chan struct{}, end func()) {
	c = make(chan struct{}, 1)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rooms[room] = append(o.rooms[room], c)
	return c, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		list := slices.DeleteFunc(o.rooms[room], func(x chan struct{}) bool { return x == c })
		if o.rooms[room] = list; len(list) == 0 {
			delete(o.rooms, room)
		}
	}
}

func (o *onlookers) hear(changes []stream.Change) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.rooms) == 0 {
		return
	}
	for i := range changes {
		if c := &changes[i]; c.Kind == stream.KindEvent && o.rooms[c.Room] != nil {
			o.moved = append(o.moved, c.Room)
		}
	}
}

// ring wakes the onlookers once what they wait for can be read.
func (o *onlookers) ring() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, room := range o.moved {
		for _, c := range o.rooms[room] {
			select {
			case c <- struct{}{}:
			default: // it has been told already
			}
		}
	}
	o.moved = o.moved[:0]
}
