package readlist

import (
	"sync"
)

// Numbers of threads that are none.
const (
	unthreaded int32 = 0
	mainThread int32 = 1
)

// What events are.
const (
	kindOther   = 0
	kindMessage = 1
)

// Bounds of what a room keeps in memory.
const (
	recentEvents = 128 // events that can be found without the database
	recentMoves  = 64  // moves of a person
	loadMoves    = 64  // moves to the last so many events are loaded with a room
)

// never marks a person known in the room who was not seen joined.
const never int32 = -1

// span is an interval of membership in the order of events: from the join to the leave (0: still in).
type span struct{ from, to int32 }

// covers reports whether the person was in when event pos was sent.
func (s span) covers(pos int32) bool {
	return s.from != never && s.from < pos && (s.to == 0 || s.to > pos)
}

// move is a forward step of a mark.
type move struct {
	pos, thread int32
	ts          int64
	implied     bool
}

// mark is how far a person has read without threads and in the main timeline.
type mark struct{ any, main int32 }

// event is what is known of one event.
type event struct {
	id       string
	pos      int32
	kind     int32
	thread   int32
	sender   string
	ts       int64
	editedAt int32 // order number of the last edit
	editedTS int64
	redacted int32  // order number of the redaction
	frozen   []byte // a bit a member: had read it then
}

// room is the model of one room. Slices are indexed by the dense number of a user.
type room struct {
	mu  sync.RWMutex
	nid int64
	id  string

	next     int32 // order number of the next event
	users    []string
	index    map[string]int32
	bot      []bool
	spans    []span
	older    map[int32][]span
	marks    []mark
	threads  map[string]int32
	inside   map[int64]int32 // marks in threads, by threadKey
	moves    [][]move
	lo       []int32 // all moves beyond this order number are in memory
	parked   map[string]bool
	power    *power // nil: ask
	creators []string

	recent map[string]*event
	ring   []string
	at     int

	touched int64 // guarded by Lists.mu, as is counted
	counted int
}

func newRoom(nid int64, id string) *room {
	return &room{nid: nid, id: id, next: 1, index: map[string]int32{}, recent: map[string]*event{}}
}

// size is about how many bytes the room takes.
func (r *room) size() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	n := 600 + 190*len(r.users) + 200*len(r.recent) + 40*len(r.inside) + 100*len(r.parked)
	for i := range r.moves {
		n += 24 * cap(r.moves[i])
	}
	return n
}

func threadKey(thread, idx int32) int64 { return int64(thread)<<32 | int64(idx) }

// add gives a user a number. joined is the membership to begin with.
func (r *room) add(user string, s span, isBot bool, lo int32) int32 {
	idx := int32(len(r.users))
	r.users = append(r.users, user)
	r.index[user] = idx
	r.bot = append(r.bot, isBot)
	r.spans = append(r.spans, s)
	r.marks = append(r.marks, mark{})
	r.moves = append(r.moves, nil)
	r.lo = append(r.lo, lo)
	return idx
}

func (r *room) isIn(idx int32) bool { return r.spans[idx].from != never && r.spans[idx].to == 0 }

// joined reports whether a user is in the room now.
func (r *room) joined(user string) bool {
	idx, ok := r.index[user]
	return ok && r.isIn(idx)
}

// spanAt is the interval in which the person was in when event pos was sent.
func (r *room) spanAt(idx, pos int32) (span, bool) {
	if s := r.spans[idx]; s.covers(pos) {
		return s, true
	}
	for _, s := range r.older[idx] {
		if s.covers(pos) {
			return s, true
		}
	}
	return span{}, false
}

// markOf is how far the mark of a thread has come.
func (r *room) markOf(idx, thread int32) int32 {
	switch thread {
	case unthreaded:
		return r.marks[idx].any
	case mainThread:
		return r.marks[idx].main
	}
	return r.inside[threadKey(thread, idx)]
}

func (r *room) setMark(idx, thread, pos int32) {
	switch thread {
	case unthreaded:
		r.marks[idx].any = pos
	case mainThread:
		r.marks[idx].main = pos
	default:
		if r.inside == nil {
			r.inside = map[int64]int32{}
		}
		r.inside[threadKey(thread, idx)] = pos
	}
}

// hasRead reports whether the person's marks cover order number pos in a thread.
func (r *room) hasRead(idx, thread, pos int32) bool {
	m := r.marks[idx]
	if m.any >= pos {
		return true
	}
	if thread == mainThread {
		return m.main >= pos
	}
	return r.inside[threadKey(thread, idx)] >= pos
}

// step moves a mark forward, unless what it would cover is covered.
func (r *room) step(idx int32, m move) bool {
	if r.marks[idx].any >= m.pos || r.markOf(idx, m.thread) >= m.pos {
		return false
	}
	r.setMark(idx, m.thread, m.pos)
	r.keepMove(idx, m)
	return true
}

func (r *room) keepMove(idx int32, m move) {
	list := r.moves[idx]
	if len(list) >= recentMoves {
		drop := recentMoves / 4
		for _, old := range list[:drop] {
			r.lo[idx] = max(r.lo[idx], old.pos)
		}
		list = list[:copy(list, list[drop:])]
	}
	r.moves[idx] = append(list, m)
}

// firstMove is the first move by which the person reached pos in a thread. known is false when it is not in memory.
func (r *room) firstMove(idx, thread, pos int32) (m move, found, known bool) {
	for _, c := range r.moves[idx] {
		if c.pos >= pos && (c.thread == unthreaded || c.thread == thread) && (!found || c.ts < m.ts) {
			m, found = c, true
		}
	}
	return m, found, pos > r.lo[idx]
}

// remember keeps an event findable without the database.
func (r *room) remember(e *event) {
	if len(r.ring) < recentEvents {
		r.ring = append(r.ring, e.id)
	} else {
		delete(r.recent, r.ring[r.at])
		r.ring[r.at] = e.id
		r.at = (r.at + 1) % recentEvents
	}
	r.recent[e.id] = e
}

// readers is a bit for each member who has read e now.
func (r *room) readers(e *event) []byte {
	bits := make([]byte, (len(r.users)+7)/8)
	for i := range r.users {
		if r.hasRead(int32(i), e.thread, e.pos) {
			bits[i/8] |= 1 << (i % 8)
		}
	}
	return bits
}

func bit(bits []byte, i int32) bool {
	return int(i/8) < len(bits) && bits[i/8]&(1<<(i%8)) != 0
}
