// Package typing tells the members of a room who is typing in it. It lives in
// memory and is lost with the process, as its subject is.
//
// It owns no tables. Changes get numbers from the hub's Ephemeral sequence,
// which is the second half of a /sync token.
//
// Spec: client-server-api#typing-notifications, server-server-api#typing-notifications
//
// Invariants: a user types in a room only while a member of it, and no longer
// than the timeout; the list of a room is always sent whole.
package typing

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// Bounds of how long a user is said to type after one request.
const (
	defaultTimeout = 20 * time.Second
	maxTimeout     = 2 * time.Minute
	remoteTimeout  = time.Minute // other servers repeat what lasts
)

// Update says that a local user types, or has stopped.
type Update struct {
	Room   matrix.RoomID
	User   matrix.UserID
	Typing bool
}

// Typing is the module.
type Typing struct {
	hub   *hub.Hub
	local matrix.ServerName
	now   matrix.Now

	mu        sync.RWMutex
	active    map[matrix.RoomID]*room
	changed   chan struct{} // capacity one: a nearer deadline may have come; full is as good
	listeners []func(Update)
}

type room struct {
	until   map[matrix.UserID]time.Time
	seq     int64
	content []byte
}

// New prepares the module. Call it before the log runs.
func New(l *stream.Log, h *hub.Hub, server matrix.ServerName, now matrix.Now) *Typing {
	if now == nil {
		now = time.Now
	}
	t := &Typing{
		hub: h, local: server, now: now,
		active: make(map[matrix.RoomID]*room), changed: make(chan struct{}, 1),
	}
	l.Subscribe(t.hear)
	return t
}

// Subscribe registers fn for what local users do, repeats included, so that
// other servers and application services can be told. Register before serving;
// fn must not block.
func (t *Typing) Subscribe(fn func(Update)) { t.listeners = append(t.listeners, fn) }

// Set says that a user types for this long, or has stopped.
func (t *Typing) Set(user matrix.UserID, id matrix.RoomID, typing bool, timeout time.Duration) {
	if seq := t.set(user, id, typing, timeout); seq != 0 {
		t.hub.WakeTyping(id, seq)
	}
	if user.Server() == t.local {
		t.tell(Update{id, user, typing})
	}
}

func (t *Typing) tell(u Update) {
	for _, fn := range t.listeners {
		fn(u)
	}
}

// set returns the room's new number if its list has changed, else 0.
func (t *Typing) set(user matrix.UserID, id matrix.RoomID, typing bool, timeout time.Duration) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.active[id]
	if r == nil {
		if !typing {
			return 0
		}
		r = &room{until: make(map[matrix.UserID]time.Time)}
		t.active[id] = r
	}
	_, was := r.until[user]
	if typing {
		r.until[user] = t.now().Add(timeout)
		select {
		case t.changed <- struct{}{}:
		default:
		}
	} else {
		delete(r.until, user)
	}
	if was == typing {
		return 0
	}
	t.update(r)
	return r.seq
}

// update gives a changed room a new number and content.
func (t *Typing) update(r *room) {
	r.seq = t.hub.NextEphemeral()
	users := make([]matrix.UserID, 0, len(r.until))
	for u := range r.until {
		users = append(users, u)
	}
	slices.Sort(users)
	r.content, _ = json.Marshal(map[string]any{"user_ids": users}) // strings always encode
}

// Since is the content of the room's m.typing event if it has changed after
// seq, else nil. Do not change it.
func (t *Typing) Since(id matrix.RoomID, seq int64) []byte {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if r := t.active[id]; r != nil && r.seq > seq {
		return r.content
	}
	return nil
}

// Users lists who types in a room.
func (t *Typing) Users(id matrix.RoomID) []matrix.UserID {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var users []matrix.UserID
	if r := t.active[id]; r != nil {
		for u := range r.until {
			users = append(users, u)
		}
	}
	slices.Sort(users)
	return users
}

// Run ends what nobody has renewed.
func (t *Typing) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(t.expire())
		select {
		case <-timer.C:
		case <-t.changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// emptyFor is how long the last, empty list of a room is kept for clients that
// have not read it yet.
const emptyFor = 10 * time.Minute

// expire drops what has timed out and returns the time to the next deadline.
func (t *Typing) expire() time.Duration {
	now, next := t.now(), time.Hour
	var stopped []Update
	ended := make(map[matrix.RoomID]int64)
	t.mu.Lock()
	for id, r := range t.active {
		n := len(stopped)
		for u, until := range r.until {
			if d := until.Sub(now); d > 0 {
				next = min(next, d)
				continue
			}
			delete(r.until, u)
			stopped = append(stopped, Update{id, u, false})
		}
		if len(stopped) > n {
			t.update(r)
			ended[id] = r.seq
		}
		if len(r.until) == 0 && now.UnixMilli()-r.seq > emptyFor.Milliseconds() {
			delete(t.active, id)
		}
	}
	t.mu.Unlock()
	for id, seq := range ended {
		t.hub.WakeTyping(id, seq)
	}
	for _, u := range stopped {
		if u.User.Server() == t.local {
			t.tell(u)
		}
	}
	return max(next, 10*time.Millisecond)
}

// hear stops users who have sent what they typed, or have left.
func (t *Typing) hear(changes []stream.Change) {
	for i := range changes {
		e, ok := changes[i].Payload.(*events.Event)
		if !ok || changes[i].Kind != stream.KindEvent {
			continue
		}
		user := e.Sender
		if e.IsState() {
			if e.Type != "m.room.member" || e.Membership == "join" {
				continue
			}
			user = matrix.UserID(e.Key())
		}
		t.mu.RLock()
		r := t.active[e.Room]
		types := r != nil && len(r.until) > 0
		t.mu.RUnlock()
		if !types {
			continue
		}
		if seq := t.set(user, e.Room, false, 0); seq != 0 {
			t.hub.WakeTyping(e.Room, seq)
		}
	}
}

// Receive takes the content of an m.typing EDU. What does not fit its origin is
// dropped.
//
// Spec: server-server-api#typing-notifications
func (t *Typing) Receive(_ context.Context, origin matrix.ServerName, edu json.RawMessage) error {
	var c struct {
		Room   matrix.RoomID `json:"room_id"`
		User   matrix.UserID `json:"user_id"`
		Typing bool          `json:"typing"`
	}
	if err := json.Unmarshal(edu, &c); err != nil {
		return matrix.BadJSON("the typing notification is malformed")
	}
	if c.User.Server() != origin {
		return nil
	}
	if t.hub.Joined(c.User, c.Room) {
		t.Set(c.User, c.Room, c.Typing, remoteTimeout)
	}
	return nil
}
