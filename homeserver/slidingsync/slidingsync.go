// Package slidingsync answers POST /sync, where the client says which of its
// rooms it wants to hear of: those in a window of a list sorted by activity, and
// single ones. It stands beside clientsync and reads the same parts the same way:
// a waiting client costs a parked connection, and one for whom nothing has
// happened causes no query.
//
// It owns no tables. What a client has been sent is kept in memory for each of
// its connections, within bounds; a client whose connection is not known any more
// gets M_UNKNOWN_POS and begins anew, but for one that wants no rooms: its pos
// says all.
//
// Spec: MSC4186 (simplified sliding sync), with the extensions of MSC3884
// (encryption), MSC3885 (to-device messages), MSC3959 (account data), MSC3960
// (receipts), MSC3961 (typing), MSC4308 (thread subscriptions) and MSC4480 (sticky
// events). The unstable path speaks the form that clients use today, /v4/sync that
// of the proposal as accepted.
//
// Invariants: the waiter is registered before anything is read; what was sent
// counts as received only when the client comes back with its pos.
package slidingsync

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/carillon-chat/carillon/homeserver/clientsync"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
	"github.com/carillon-chat/carillon/homeserver/subscriptions"
)

// Sync answers sliding sync.
type Sync struct {
	*parts
	threads *subscriptions.Subscriptions
	conns   connections
	faces   faces
}

// parts are those of clientsync, with what it reads in common.
type parts = clientsync.Sync

// New makes it beside the older /sync, whose parts it uses.
func New(c *clientsync.Sync, threads *subscriptions.Subscriptions) *Sync {
	return &Sync{
		parts: c, threads: threads, faces: faces{m: map[faceKey]*face{}},
		conns: connections{byKey: map[connKey]*conn{}, devices: map[seat]int{}, now: c.Now},
	}
}

// Routes are the endpoint in its two forms.
func (s *Sync) Routes() []httpapi.Route {
	route := func(path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: "POST", Path: path, Auth: httpapi.AuthUser, AllowSuspended: true, AllowGuest: true, Holds: true, Handler: h}
	}
	return []httpapi.Route{
		route("/_matrix/client/unstable/org.matrix.simplified_msc3575/sync", s.postUnstable),
		route("/_matrix/client/v4/sync", s.post),
	}
}

func (s *Sync) postUnstable(c *httpapi.Call) (any, error) { return s.answer(c, true) }

func (s *Sync) post(c *httpapi.Call) (any, error) { return s.answer(c, false) }

func (s *Sync) answer(c *httpapi.Call, unstable bool) (any, error) {
	q, err := s.parse(c, unstable)
	if err != nil {
		return nil, err
	}
	if q.ext.toDevice != nil && q.device != "" && q.ext.toDevice.since > 0 {
		if err := s.Keys.AckToDevice(c.Ctx(), q.user, q.device, q.ext.toDevice.since); err != nil {
			return nil, err
		}
	}
	h := &wait{s: s, q: q}
	if h.c, err = s.enter(q, h); err != nil {
		return nil, err
	}
	return httpapi.Held{Wait: h, Timeout: q.timeout}, nil
}

// wait is a client that waits.
type wait struct {
	s *Sync
	q *request
	c *conn

	wake     atomic.Pointer[func()]
	replaced atomic.Bool // the client has asked again and does not listen any more
	waiter   *hub.Waiter
	offline  func()

	last *work // the answer as it would be
	snap hub.Snapshot
}

// ring makes the wait end if replaced or the connection's ended is set.
func (h *wait) ring() {
	if wake := h.wake.Load(); wake != nil {
		(*wake)()
	}
}

// Begin implements httpapi.Wait.
func (h *wait) Begin(wake func()) {
	h.wake.Store(&wake)
	if h.s.Presence.Enabled() {
		h.offline = h.s.Presence.Connect(h.q.user, h.q.presence)
	}
	h.waiter = h.s.Hub.Notify(h.q.user, wake)
}

// Answer implements httpapi.Wait.
func (h *wait) Answer(ctx context.Context, last bool) (any, error) {
	over := last || h.replaced.Load() || h.c.ended.Load()
	if h.last == nil || !over && !h.s.quiet(h.q, h.last, &h.snap) {
		w, err := h.s.make(ctx, h.q, h.c, h)
		if err != nil {
			return nil, err
		}
		h.last = w
	}
	if !over && !h.last.some && h.q.pos != "" {
		return nil, nil //nolint:nilnil // nothing to say yet
	}
	return httpapi.Raw(h.c.issue(h.last, h)), nil
}

// End implements httpapi.Wait.
func (h *wait) End() {
	h.waiter.Close()
	h.c.leave(h)
	if h.offline != nil {
		h.offline()
	}
}

// quiet reports, from memory alone, that nothing has happened for the user since
// the answer w was made.
func (s *Sync) quiet(q *request, w *work, snap *hub.Snapshot) bool {
	s.Hub.Snapshot(q.user, w.to, w.eph, snap)
	if len(snap.Rooms) > 0 || snap.Member > w.to {
		return false
	}
	for _, last := range snap.Last {
		if last > w.to {
			return false
		}
	}
	return true
}

// errNeedsDB ends an attempt to make an answer from memory.
var errNeedsDB = errors.New("the database is needed")

// either runs fn without the database, and again with it when that is not enough.
func (s *Sync) either(ctx context.Context, fn func(tx *sqldb.Tx) error) error {
	err := fn(nil)
	if errors.Is(err, errNeedsDB) {
		err = s.DB.Read(ctx, fn)
	}
	return err
}

// work is an answer being made.
type work struct {
	s    *Sync
	q    *request
	c    *conn
	ctx  context.Context //nolint:containedctx // lives as long as the request
	snap hub.Snapshot
	to   stream.Pos
	eph  int64

	base place // where the client is
	out  place // where it will be

	entries map[matrix.RoomID]*entry // where rooms are named
	wanted  []*entry                 // rooms that the request matches, the most active first
	// concerned are the joined rooms that a list or a subscription is of, whatever
	// the windows; for sticky events.
	concerned []*entry
	shown     map[matrix.EventID]bool // events in timelines of the answer, for the same

	sights map[matrix.RoomID]*rooms.Sight // of rooms that are read from the database

	b    []byte
	some bool // there is something to tell
}

// snapshots are lists of a user's rooms, to be filled again.
var snapshots = sync.Pool{New: func() any { return &[]hub.RoomState{} }}

// make makes an answer from where the client is; the connection is not changed.
func (s *Sync) make(ctx context.Context, q *request, cn *conn, h *wait) (*work, error) {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if cn.active.Load() != h {
		return &work{some: true, b: []byte(`{"pos":"`), base: cn.base}, nil // nobody listens any more
	}
	w := &work{s: s, q: q, c: cn, ctx: ctx, eph: s.Hub.Ephemeral(), base: cn.base}
	spare := snapshots.Get().(*[]hub.RoomState)
	w.snap.Rooms = *spare
	s.Hub.Snapshot(q.user, -1, -1, &w.snap)
	defer func() {
		*spare, w.snap.Rooms, w.entries, w.wanted = w.snap.Rooms, nil, nil, nil
		w.concerned, w.shown, w.sights = nil, nil, nil
		snapshots.Put(spare)
	}()
	w.to = w.snap.Head
	if err := s.either(ctx, w.survey); err != nil {
		return nil, err
	}
	if err := w.gather(); err != nil {
		return nil, err
	}
	if err := s.either(ctx, w.write); err != nil {
		return nil, err
	}
	return w, nil
}

// write makes the body, but for its pos, which comes when it is sent.
func (w *work) write(tx *sqldb.Tx) error {
	w.out = place{
		token: clientsync.Token{Pos: w.to, Eph: w.eph}, keys: w.base.keys, data: w.base.data, threads: w.base.threads,
		sent: map[matrix.RoomID]*sent{},
	}
	w.some, w.shown, w.sights = false, nil, nil
	w.b = append(w.b[:0], '{')
	if w.q.txn != "" {
		w.b = matrix.AppendJSONString(append(w.b, `"txn_id":`...), w.q.txn)
		w.b = append(w.b, ',')
	}
	w.lists()
	w.b = append(w.b, `"rooms":{`...)
	first := true
	for _, e := range w.wanted {
		mark := len(w.b)
		if !first {
			w.b = append(w.b, ',')
		}
		w.b = append(matrix.AppendJSONString(w.b, string(e.id)), ':')
		some, err := w.room(tx, e)
		if err != nil {
			return err
		}
		if !some {
			w.b = w.b[:mark]
			continue
		}
		first, w.some = false, true
	}
	w.b = append(w.b, `},"extensions":{`...)
	if err := w.extensions(tx); err != nil {
		return err
	}
	w.b = append(w.b, `},"pos":"`...)
	return nil
}

// lists writes how long the lists are.
func (w *work) lists() {
	w.out.counts = make(map[string]int, len(w.q.lists))
	w.b = append(w.b, `"lists":{`...)
	for i, l := range w.q.lists {
		if i > 0 {
			w.b = append(w.b, ',')
		}
		w.b = matrix.AppendJSONString(w.b, l.name)
		w.b = append(strconv.AppendInt(append(w.b, `:{"count":`...), int64(l.count), 10), '}')
		w.out.counts[l.name] = l.count
		if n, ok := w.base.counts[l.name]; !ok || n != l.count {
			w.some = true
		}
	}
	w.b = append(w.b, `},`...)
}

// edit gives what will have been sent of a room, to be changed.
func (w *work) edit(e *entry) *sent {
	if st := w.out.sent[e.id]; st != nil {
		return st
	}
	st := &sent{}
	if e.st != nil {
		*st = *e.st
		st.met, st.forget = nil, false
	}
	w.out.sent[e.id] = st
	return st
}
