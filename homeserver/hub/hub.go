// Package hub is the read model that /sync waits on: who is in which room, the
// newest changes of each room with their events at hand, and the clients that
// wait. It is fed by the log alone, on the log's own goroutine, so what it shows
// is never ahead of a commit and never behind one that has been acknowledged.
//
// It owns no tables. After a restart it is seeded with the memberships; the
// recent events begin empty, and readers that ask for more go to the database.
//
// Invariants: Room.Recent holds every event after its floor; a waiter that was
// registered before a change was published is told of it.
package hub

import (
	"slices"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	// recentTotal bounds the events kept at hand, over all rooms.
	recentTotal = 16384
	// gather is how long receipts, typing and presence are collected before
	// clients are woken for them.
	gather = 80 * time.Millisecond
	// echo is by how much a sender's own clients are woken later than others: some
	// take a message for lost that comes by /sync before the answer to their /send.
	echo = 5 * time.Millisecond
)

// Hub is the read model.
type Hub struct {
	server matrix.ServerName

	mu    sync.RWMutex
	rooms map[matrix.RoomID]*Room
	users map[matrix.UserID]*User // local users, and remote ones while they are joined
	order []*Room                 // rooms of the recent events, the oldest first (a ring)
	next  int
	fire  []func() // of ring

	start stream.Pos // the head when the hub began
	head  stream.Pos // the head up to which everybody in the process is told
	woken []*User    // to be woken when the head has moved
	later []*User    // a little after that

	ephMu   sync.Mutex
	eph     int64              // newest sequence number of what lives in memory only
	taken   map[int64]struct{} // numbers whose changes nobody can see yet
	pending map[*Room]struct{} // rooms with gathered changes
	timer   *time.Timer
}

// Room is what the hub knows of a room. Its fields are read with View.
type Room struct {
	ID          matrix.RoomID
	LastEvent   stream.Pos // newest event
	LastReceipt stream.Pos // newest receipt
	LastState   stream.Pos // newest state event, or redaction of one
	Typing      int64      // Ephemeral sequence of the newest typing change

	members []*User         // joined users, in no order
	local   int             // how many of them are ours
	recent  []*events.Event // in order of position
	floor   stream.Pos      // recent holds all events after it
}

// seat is a user's place in a room: since when he is joined, and where in its
// list of members he stands. The list is walked for each event.
type seat struct {
	since stream.Pos
	at    int
}

// User is what the hub knows of a user.
type User struct {
	ID    matrix.UserID
	Local bool

	rooms   map[*Room]seat // joined
	last    [stream.Kinds]stream.Pos
	member  stream.Pos // newest change of a membership of this user
	waiters []*Waiter
	woken   bool
	// Presence is the Ephemeral sequence of the newest presence change that
	// concerns this user.
	presence int64
}

// New makes the hub and subscribes it to the log.
func New(l *stream.Log, server matrix.ServerName) *Hub {
	h := &Hub{
		server: server, rooms: map[matrix.RoomID]*Room{}, users: map[matrix.UserID]*User{},
		order: make([]*Room, recentTotal), pending: map[*Room]struct{}{},
	}
	h.start = l.Head()
	h.head = h.start
	h.eph, h.taken = time.Now().UnixMilli(), map[int64]struct{}{}
	l.Subscribe(h.publish)
	l.Ring(func() { h.ring(l.Head()) })
	return h
}

// Seed tells the hub of a membership that was there before it began.
func (h *Hub) Seed(room matrix.RoomID, user matrix.UserID, pos stream.Pos) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.join(h.room(room), h.user(user), pos)
}

// SeedHead tells the hub where a room's timeline and receipts stand.
func (h *Hub) SeedHead(room matrix.RoomID, event, receipt stream.Pos) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.room(room)
	r.LastEvent, r.LastReceipt = max(r.LastEvent, event), max(r.LastReceipt, receipt)
	r.LastState = r.LastEvent
	r.floor = max(r.floor, event)
}

func (h *Hub) room(id matrix.RoomID) *Room {
	r := h.rooms[id]
	if r == nil {
		r = &Room{ID: id}
		h.rooms[id] = r
	}
	return r
}

func (h *Hub) user(id matrix.UserID) *User {
	u := h.users[id]
	if u == nil {
		u = &User{ID: id, Local: id.Server() == h.server, rooms: map[*Room]seat{}}
		h.users[id] = u
	}
	return u
}

func (h *Hub) join(r *Room, u *User, pos stream.Pos) {
	if _, ok := u.rooms[r]; ok {
		return
	}
	u.rooms[r] = seat{pos, len(r.members)}
	r.members = append(r.members, u)
	if u.Local {
		r.local++
	}
}

func (h *Hub) leave(r *Room, u *User) {
	s, ok := u.rooms[r]
	if !ok {
		return
	}
	last := len(r.members) - 1
	moved := r.members[last]
	r.members[s.at], r.members[last] = moved, nil
	r.members = r.members[:last]
	moved.rooms[r] = seat{moved.rooms[r].since, s.at}
	delete(u.rooms, r)
	if u.Local {
		r.local--
	} else if len(u.rooms) == 0 {
		delete(h.users, u.ID)
	}
}

// ring moves the head and wakes those whom the commit concerns.
func (h *Hub) ring(head stream.Pos) {
	h.mu.Lock()
	h.head = head
	for i, u := range h.woken {
		u.woken = false
		h.fire = u.wake(h.fire)
		h.woken[i] = nil
	}
	h.woken = h.woken[:0]
	if len(h.later) > 0 {
		later := h.later
		h.later = nil
		time.AfterFunc(echo, func() { h.wakeAll(later) })
	}
	h.mu.Unlock()
	for i, wake := range h.fire { // those who wake read at once, so without the lock
		wake()
		h.fire[i] = nil
	}
	h.fire = h.fire[:0]
}

// wakeAll wakes users now.
func (h *Hub) wakeAll(users []*User) {
	var fire []func()
	h.mu.Lock()
	for _, u := range users {
		fire = u.wake(fire)
	}
	h.mu.Unlock()
	for _, wake := range fire {
		wake()
	}
}

// wakeAtRing notes a user to be woken when the head has moved.
func (h *Hub) wakeAtRing(u *User) {
	if len(u.waiters) > 0 && !u.woken {
		u.woken = true
		h.woken = append(h.woken, u)
	}
}

// publish takes in a commit's changes and notes whom they concern.
func (h *Hub) publish(changes []stream.Change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range changes {
		c := &changes[i]
		switch c.Kind {
		case stream.KindEvent:
			switch p := c.Payload.(type) {
			case *events.Event:
				h.event(p, c.Pos)
			case Seeded:
				h.seeded(h.room(c.Room), p.Members, c.Pos)
			}
		case stream.KindReceipt:
			r := h.room(c.Room)
			r.LastReceipt = c.Pos
			h.wakeLater(r)
		case stream.KindDeviceList:
			h.deviceList(c)
		default:
			if u := h.users[c.User]; u != nil {
				u.last[c.Kind] = c.Pos
				h.wakeAtRing(u)
			}
		}
	}
}

// deviceList tells everybody who shares a room with the user, and the user.
func (h *Hub) deviceList(c *stream.Change) {
	u := h.user(c.User)
	u.last[c.Kind] = c.Pos
	h.wakeAtRing(u)
	for r := range u.rooms {
		if len(r.members) > 1000 {
			// Those who merely share a very large room read it at their next wake-up.
			for _, m := range r.members {
				m.last[c.Kind] = c.Pos
			}
			continue
		}
		for _, m := range r.members {
			if m.Local {
				m.last[c.Kind] = c.Pos
				h.wakeAtRing(m)
			}
		}
	}
}

// Seeded is the payload of the change that brings in the state of a room joined
// over federation: who was in it already.
type Seeded struct{ Members []matrix.UserID }

// seeded makes list the members of a room; who was known before, from a time
// when this server was in the room, may have left since.
func (h *Hub) seeded(r *Room, list []matrix.UserID, pos stream.Pos) {
	in := make(map[matrix.UserID]bool, len(list))
	for _, u := range list {
		in[u] = true
		h.join(r, h.user(u), pos)
	}
	for _, u := range slices.Clone(r.members) { // leave changes the list
		if !in[u.ID] {
			h.leave(r, u)
		}
	}
}

func (h *Hub) event(e *events.Event, pos stream.Pos) {
	if e.Flags&events.FlagOutlier != 0 { // an invitation to a room that is elsewhere, or its end
		if u := h.users[matrix.UserID(e.Key())]; u != nil {
			u.member = pos
			h.wakeAtRing(u)
		}
		return
	}
	if e.Pos <= 0 { // history from before: nobody is told
		return
	}
	r := h.room(e.Room)
	r.LastEvent = e.Pos
	if e.StateKey != nil || e.Resolved != nil {
		r.LastState = e.Pos
	}
	h.remember(r, e)
	if t := e.Target; t != nil {
		r.replace(t)
		if t.StateKey != nil {
			r.LastState = e.Pos
		}
	}
	for user, membership := range e.Moves {
		h.membership(r, user, membership, e.Pos)
	}
	var sender *User
	if e.Txn != "" && e.StateKey == nil {
		if sender = h.users[e.Sender]; sender != nil && len(sender.waiters) > 0 {
			h.later = append(h.later, sender)
		}
	}
	for _, u := range r.members {
		if u != sender {
			h.wakeAtRing(u)
		}
	}
}

func (h *Hub) membership(r *Room, user matrix.UserID, membership string, pos stream.Pos) {
	u := h.user(user)
	if membership == "join" {
		h.join(r, u, pos)
	} else {
		h.leave(r, u)
	}
	if u.Local {
		u.member = pos
		h.wakeAtRing(u)
	}
}

// remember keeps e at hand and lets go of the oldest event of the server.
func (h *Hub) remember(r *Room, e *events.Event) {
	if old := h.order[h.next]; old != nil {
		old.floor = old.recent[0].Pos
		old.recent[0] = nil
		old.recent = old.recent[1:]
	}
	h.order[h.next] = r
	h.next = (h.next + 1) % len(h.order)
	r.recent = append(r.recent, e)
}

func (r *Room) replace(t *events.Event) {
	for i := len(r.recent) - 1; i >= 0; i-- {
		if r.recent[i].ID == t.ID {
			// A new slice: readers may hold the old one.
			fresh := append([]*events.Event(nil), r.recent...)
			fresh[i] = t
			r.recent = fresh
			return
		}
	}
}

// wakeLater wakes the room's members after the gathering time.
func (h *Hub) wakeLater(r *Room) {
	h.pending[r] = struct{}{}
	if h.timer == nil {
		h.timer = time.AfterFunc(gather, h.flush)
	}
}

func (h *Hub) flush() {
	h.mu.Lock()
	h.timer = nil
	var users []*User
	for r := range h.pending {
		users = append(users, r.members...)
	}
	clear(h.pending)
	h.mu.Unlock()
	h.wakeAll(users)
}

// wake adds those to be woken for the user.
func (u *User) wake(fire []func()) []func() {
	for _, w := range u.waiters {
		fire = append(fire, w.wake)
	}
	return fire
}

// Waiter is one waiting client. C has a capacity of one and carries no data,
// only "read again"; it is nil when a function is called instead.
type Waiter struct {
	C    chan struct{}
	wake func()
	h    *Hub
	u    *User
}

// Wait registers a waiter; register before reading, else a change in between is
// missed.
func (h *Hub) Wait(user matrix.UserID) *Waiter {
	c := make(chan struct{}, 1)
	w := h.Notify(user, func() {
		select {
		case c <- struct{}{}:
		default: // it has been told already
		}
	})
	w.C = c
	return w
}

// Notify registers a waiter as Wait does; wake is called, and must not block. It
// may be called once more after Close.
func (h *Hub) Notify(user matrix.UserID, wake func()) *Waiter {
	h.mu.Lock()
	defer h.mu.Unlock()
	u := h.user(user)
	w := &Waiter{wake: wake, h: h, u: u}
	u.waiters = append(u.waiters, w)
	return w
}

// Close ends the wait.
func (w *Waiter) Close() {
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	for i, o := range w.u.waiters {
		if o == w {
			last := len(w.u.waiters) - 1
			w.u.waiters[i] = w.u.waiters[last]
			w.u.waiters[last] = nil
			w.u.waiters = w.u.waiters[:last]
			return
		}
	}
}

// Ephemeral is the sequence number up to which all changes of what lives in
// memory only (typing, presence) can be seen. It grows over restarts.
func (h *Hub) Ephemeral() int64 {
	h.ephMu.Lock()
	defer h.ephMu.Unlock()
	seq := h.eph
	for n := range h.taken {
		seq = min(seq, n-1)
	}
	return seq
}

// NextEphemeral takes a sequence number. It has to be given back with WakeTyping
// or MarkPresence when the change can be read.
func (h *Hub) NextEphemeral() int64 {
	h.ephMu.Lock()
	defer h.ephMu.Unlock()
	h.eph++
	h.taken[h.eph] = struct{}{}
	return h.eph
}

func (h *Hub) published(seq int64) {
	h.ephMu.Lock()
	defer h.ephMu.Unlock()
	delete(h.taken, seq)
}

// WakeTyping notes a change of who is typing in a room, and wakes its members
// soon.
func (h *Hub) WakeTyping(room matrix.RoomID, seq int64) {
	defer h.published(seq)
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.room(room)
	r.Typing = max(r.Typing, seq)
	h.wakeLater(r)
}

// MarkPresence notes a change of a user's presence for those who share a room
// with him. They are woken by WakePresence.
func (h *Hub) MarkPresence(user matrix.UserID, seq int64) {
	defer h.published(seq)
	h.mu.Lock()
	defer h.mu.Unlock()
	u := h.users[user]
	if u == nil {
		return
	}
	u.presence = seq
	for r := range u.rooms {
		for _, m := range r.members {
			m.presence = max(m.presence, seq)
		}
	}
}

// WakePresence wakes, soon, those who share a room with a user.
func (h *Hub) WakePresence(user matrix.UserID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if u := h.users[user]; u != nil {
		for r := range u.rooms {
			h.wakeLater(r)
		}
	}
}
