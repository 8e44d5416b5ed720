package slidingsync

import (
	"container/list"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/carillon-chat/carillon/homeserver/clientsync"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/push"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	// maxDevice is how many connections a device may have.
	maxDevice = 10
	// maxConns and maxRooms bound the connections of all devices and the rooms
	// that they hold; those that were used last are kept.
	maxConns, maxRooms = 50_000, 2_000_000
	// maxIdle is how long a connection is kept that nobody uses.
	maxIdle = 24 * time.Hour
	// maxMet bounds the members that a connection remembers of a room.
	maxMet = 2000
)

// seat names a device, connKey one of its connections.
type (
	seat struct {
		user   matrix.UserID
		device matrix.DeviceID
	}
	connKey struct {
		seat
		id string
	}
)

// mark is the same for all connections of a device: who is asked for the pos of
// another device says that he does not know it.
func (k connKey) mark() string {
	sum := sha256.Sum256([]byte(string(k.user) + "\x00" + string(k.device)))
	return hex.EncodeToString(sum[:4])
}

func (k connKey) newID() string { return matrix.RandomString(8) + k.mark() }

// names reports whether an ID is of a connection of this device.
func (k connKey) names(id string) bool { return strings.HasSuffix(id, k.mark()) }

// place is where a client is: what it has been told.
type place struct {
	n       int64            // of the answer that brought it there
	token   clientsync.Token // zero at the beginning
	keys    stream.Pos       // device lists are told up to here
	data    stream.Pos       // global account data are told up to here; 0: not at all
	threads stream.Pos       // thread subscriptions are told up to here; 0: not at all
	counts  map[string]int   // of the lists
	otk     string           // what was told of the device's keys
	sent    map[matrix.RoomID]*sent
}

// sent is what a client has been told of a room. It does not change but for met.
type sent struct {
	membership string
	upTo       stream.Pos // everything up to here
	known      int        // so many of the newest events
	whole      bool       // all events there are
	wants      []*want    // state was told by these rules
	unread     push.Count
	dm         bool

	lazy   map[matrix.UserID]struct{} // members told of because they spoke
	met    []matrix.UserID            // to be added to lazy when the client confirms
	forget bool                       // lazy begins anew then

	receipts stream.Pos // 0: none were told
	more     [][]byte   // receipts that did not fit into one event
	data     stream.Pos
	typing   int64
}

// conn is a connection.
type conn struct {
	key    connKey
	id     string // tells it from others of the same name
	elem   *list.Element
	size   int                  // rooms counted for it
	seen   time.Time            // last use
	ended  atomic.Bool          // it was let go of
	active atomic.Pointer[wait] // the request under way, changed under mu

	mu   sync.Mutex
	base place
	next *place // what was answered last, until the client confirms it
	last int64  // number of the last answer

	// Of the user, for making lists; kept up with the log.
	standings map[matrix.RoomID]*rooms.Member // rooms that the user is not joined to
	standAt   stream.Pos
	personal  *personal
}

// connections are those of all clients.
type connections struct {
	mu      sync.Mutex
	byKey   map[connKey]*conn
	devices map[seat]int
	order   list.List // the least recently used first
	rooms   int
	now     matrix.Now
}

func errUnknownPos() error {
	return matrix.NewError(400, "M_UNKNOWN_POS", "this position is not known any more: begin without one")
}

// pos is the token for the client: the place in the log, so that it serves
// /messages too, the number of the answer, and the connection.
func (c *conn) pos(p *place) string {
	return p.token.String() + "_" + strconv.FormatInt(p.n, 10) + "." + c.id
}

// parsePos reads a pos.
func parsePos(s string) (t clientsync.Token, n int64, id string, err error) {
	i := strings.Index(s, "_")
	if i < 0 || len(s) > 200 {
		return t, 0, "", errUnknownPos()
	}
	j := strings.Index(s[i+1:], "_")
	if j < 0 {
		return t, 0, "", errUnknownPos()
	}
	head, tail := s[:i+1+j], s[i+1+j+1:]
	if t, err = clientsync.ParseToken(head); err != nil {
		return t, 0, "", errUnknownPos()
	}
	num, id, ok := strings.Cut(tail, ".")
	if n, err = strconv.ParseInt(num, 10, 64); err != nil || !ok {
		return t, 0, "", errUnknownPos()
	}
	return t, n, id, nil
}

// enter finds the connection of a request, at the place where the client is, and
// takes it over from an older request that still waits.
func (s *Sync) enter(q *request, h *wait) (*conn, error) {
	key := connKey{seat{q.user, q.device}, q.conn}
	if q.pos == "" {
		c := s.conns.open(key)
		c.active.Store(h)
		return c, nil
	}
	token, n, id, err := parsePos(q.pos)
	if err != nil {
		return nil, err
	}
	if c := s.conns.find(key, id); c != nil && c.take(n, h) {
		s.conns.count(c)
		return c, nil
	}
	if len(q.lists) > 0 || len(q.subs) > 0 || token.Pos > s.Hub.Head() || token.Pos == 0 || !key.names(id) {
		return nil, errUnknownPos()
	}
	// Without rooms the place in the log is all there is to know.
	c := s.conns.open(key)
	c.active.Store(h)
	c.base = place{token: token, keys: token.Pos, data: token.Pos, threads: token.Pos}
	return c, nil
}

// take moves to the place that the client names. It reports false when that place
// is neither where the client was nor where the last answer brought it.
func (c *conn) take(n int64, h *wait) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.next != nil && c.next.n == n:
		c.confirm()
	case c.base.n != n || n == 0:
		return false
	}
	c.next = nil
	if old := c.active.Swap(h); old != nil {
		old.replaced.Store(true)
		old.ring()
	}
	return true
}

// confirm makes the last answer the place where the client is.
func (c *conn) confirm() {
	sentRooms := c.base.sent
	if sentRooms == nil {
		sentRooms = make(map[matrix.RoomID]*sent, len(c.next.sent))
	}
	for id, st := range c.next.sent {
		if st.forget || len(st.lazy)+len(st.met) > maxMet {
			st.lazy = nil
		}
		if st.lazy == nil && len(st.met) > 0 {
			st.lazy = make(map[matrix.UserID]struct{}, len(st.met))
		}
		for _, u := range st.met {
			st.lazy[u] = struct{}{}
		}
		st.met, st.forget = nil, false
		sentRooms[id] = st
	}
	c.base = *c.next
	c.base.sent = sentRooms
}

// leave ends a request.
func (c *conn) leave(h *wait) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.active.CompareAndSwap(h, nil)
}

// issue finishes an answer. When another request has taken over, nobody will read
// it, and it changes nothing.
func (c *conn) issue(w *work, h *wait) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	place := &w.base
	if c.active.Load() == h {
		c.last++
		w.out.n = c.last
		c.next = &w.out
		place = c.next
	}
	w.b = append(w.b, c.pos(place)...)
	return append(w.b, `"}`...)
}

// find gives a connection that is in use.
func (cs *connections) find(key connKey, id string) *conn {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.byKey[key]
	if c == nil || c.id != id {
		return nil
	}
	c.seen = cs.now()
	cs.order.MoveToBack(c.elem)
	return c
}

// open begins a connection, in place of an older one of the same name.
func (cs *connections) open(key connKey) *conn {
	c := &conn{key: key, id: key.newID(), seen: cs.now()}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if old := cs.byKey[key]; old != nil {
		cs.drop(old)
	}
	if cs.devices[key.seat] >= maxDevice {
		for e := cs.order.Front(); e != nil; e = e.Next() {
			if old := e.Value.(*conn); old.key.seat == key.seat {
				cs.drop(old)
				break
			}
		}
	}
	c.elem = cs.order.PushBack(c)
	cs.byKey[key] = c
	cs.devices[key.seat]++
	cs.sweep()
	return c
}

// count notes how much a connection holds.
func (cs *connections) count(c *conn) {
	c.mu.Lock()
	n := len(c.base.sent)
	c.mu.Unlock()
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.byKey[c.key] != c {
		return
	}
	cs.rooms += n - c.size
	c.size = n
	cs.sweep()
}

// sweep lets go of what has not been used for long, or is too much.
func (cs *connections) sweep() {
	for e := cs.order.Front(); e != nil && cs.order.Len() > 1; e = cs.order.Front() {
		c := e.Value.(*conn)
		if cs.order.Len() <= maxConns && cs.rooms <= maxRooms && cs.now().Sub(c.seen) < maxIdle {
			return
		}
		cs.drop(c)
	}
}

func (cs *connections) drop(c *conn) {
	c.ended.Store(true)
	if h := c.active.Load(); h != nil {
		h.ring()
	}
	delete(cs.byKey, c.key)
	cs.order.Remove(c.elem)
	cs.rooms -= c.size
	if cs.devices[c.key.seat]--; cs.devices[c.key.seat] == 0 {
		delete(cs.devices, c.key.seat)
	}
}
