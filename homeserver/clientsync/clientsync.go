// Package clientsync answers GET /sync: what happened for a user since a token.
//
// A waiting client costs a parked connection (see httpapi.Held). When it is woken, the hub
// says which of its rooms have changed; the newest events of a room are at hand
// in memory, and their encoding is shared by all clients that are equally far
// and use the same filter. Only what is not at hand is read from the database,
// in one snapshot. A client for whom nothing happened causes no query.
//
// It owns no tables. Spec: client-server-api#syncing. The token is
// "s<position>_<ephemeral>", with "_<position>" for to-device messages where
// they are behind; its first part is the token of /messages too.
//
// Invariants: the waiter is registered before anything is read; a token never
// runs ahead of what its answer holds.
package clientsync

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/e2ee"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/presence"
	"github.com/carillon-chat/carillon/homeserver/push"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
	"github.com/carillon-chat/carillon/homeserver/typing"
)

const (
	// maxTimeout bounds how long a client may wait.
	maxTimeout = 5 * time.Minute
	// defaultLimit and maxLimit bound the timeline of a room.
	defaultLimit = 20
	maxLimit     = 1000
	// mostScanned is how many events are looked at for the timeline of a room.
	mostScanned = 5000
	// maxToDevice is how many to-device messages go into one answer.
	maxToDevice = 100
)

// Parts are the features that an answer is made of.
type Parts struct {
	DB       *sqldb.DB
	Hub      *hub.Hub
	Events   *events.Store
	Rooms    *rooms.Rooms
	Data     *accountdata.Data
	Keys     *e2ee.Keys
	Receipts *receipts.Receipts
	Typing   *typing.Typing
	Presence *presence.Presence
	Push     *push.Push
	Bundler  Bundler // may be nil
	// InviteBlocked reports whether a user does not want an invitation by this
	// sender; nil blocks none.
	InviteBlocked func(sender, target matrix.UserID) bool
	Now           matrix.Now
}

// Bundler gives the aggregated relations of events, for unsigned.m.relations.
type Bundler interface {
	Bundle(ctx context.Context, tx *sqldb.Tx, user matrix.UserID, list []*events.Event) (map[matrix.EventID]json.RawMessage, error)
}

// Sync answers /sync.
type Sync struct {
	Parts
	shared   sharedCache
	speakers speakers

	mu      sync.Mutex
	waiting map[seat][]*wait // syncs under way, the oldest first
}

// New makes it of its parts.
func New(p Parts) *Sync {
	if p.Now == nil {
		p.Now = time.Now
	}
	return &Sync{Parts: p, shared: sharedCache{entries: map[sharedKey]*shared{}}, speakers: speakers{entries: map[speaker]face{}}, waiting: map[seat][]*wait{}}
}

// Routes is GET /sync.
func (s *Sync) Routes() []httpapi.Route {
	return []httpapi.Route{{
		Method: "GET", Path: "/_matrix/client/v3/sync", Auth: httpapi.AuthUser, AllowSuspended: true, AllowGuest: true, Holds: true, Handler: s.get,
	}}
}

// Token is a place in the log and in what lives in memory.
type Token struct {
	Pos      stream.Pos
	Eph      int64
	ToDevice stream.Pos // 0: as Pos
}

// String is the token as clients get it.
func (t Token) String() string {
	s := "s" + strconv.FormatInt(int64(t.Pos), 10) + "_" + strconv.FormatInt(t.Eph, 10)
	if t.ToDevice != 0 && t.ToDevice != t.Pos {
		s += "_" + strconv.FormatInt(int64(t.ToDevice), 10)
	}
	return s
}

// ParseToken reads a token.
func ParseToken(s string) (t Token, err error) {
	rest, ok := strings.CutPrefix(s, "s")
	ok = ok && len(s) <= 80
	nums := [3]int64{}
	for i := range nums {
		var part string
		more := false
		part, rest, more = strings.Cut(rest, "_")
		if nums[i], err = strconv.ParseInt(part, 10, 64); err != nil || nums[i] < 0 {
			ok = false
		}
		if !more {
			break
		}
		ok = ok && i < len(nums)-1
	}
	if !ok {
		return t, matrix.InvalidParam("%q is not a token of this server's /sync", s)
	}
	t = Token{stream.Pos(nums[0]), nums[1], stream.Pos(nums[2])}
	if t.ToDevice == 0 {
		t.ToDevice = t.Pos
	}
	return t, nil
}

// request is one call of /sync.
type request struct {
	user       matrix.UserID
	device     matrix.DeviceID
	since      Token
	initial    bool
	full       bool   // full_state
	stateAfter string // the name under which the client wants the state after the timeline, "" for that before it
	timeout    time.Duration
	filter     *accountdata.Filter
	ignored    accountdata.Ignored
}

func (s *Sync) get(c *httpapi.Call) (any, error) {
	q, err := s.parse(c)
	if err != nil {
		return nil, err
	}
	if !q.initial && q.device != "" {
		if err := s.Keys.AckToDevice(c.Ctx(), q.user, q.device, q.since.ToDevice); err != nil {
			return nil, err
		}
	}
	return httpapi.Held{Wait: &wait{s: s, q: q, presence: c.Query("set_presence")}, Timeout: q.timeout}, nil
}

// wait is a client that waits.
type wait struct {
	s        *Sync
	q        *request
	presence string

	waiter   *hub.Waiter
	wake     func()
	replaced atomic.Bool // a newer sync of the device took its place
	offline  func()
	body     []byte
}

// Begin implements httpapi.Wait.
func (w *wait) Begin(wake func()) {
	s := w.s
	w.wake = wake
	if s.Presence.Enabled() {
		w.offline = s.Presence.Connect(w.q.user, w.presence)
	}
	s.enter(w)
	w.waiter = s.Hub.Notify(w.q.user, wake)
}

// Answer implements httpapi.Wait.
func (w *wait) Answer(ctx context.Context, last bool) (any, error) {
	body, some, err := w.s.answer(ctx, w.q)
	switch {
	case err != nil:
		return nil, err
	case some || w.q.initial || w.q.full:
		w.body = body
	case last || w.replaced.Load():
		w.body = w.s.empty(w.q)
	default:
		return nil, nil //nolint:nilnil // nothing to say yet
	}
	return httpapi.Raw(w.body), nil
}

// End implements httpapi.Wait.
func (w *wait) End() {
	w.waiter.Close()
	w.s.leave(w)
	if w.offline != nil {
		w.offline()
	}
	if body := w.body; body != nil {
		bodies.Put(&body)
	}
}

func (s *Sync) parse(c *httpapi.Call) (*request, error) {
	q := &request{user: c.Caller.User, device: c.Caller.Device}
	var err error
	if v := c.Query("since"); v == "" {
		q.initial = true
	} else if q.since, err = ParseToken(v); err != nil {
		return nil, err
	}
	if q.full, err = c.Bool("full_state"); err != nil {
		return nil, err
	}
	for _, prefix := range [...]string{"org.matrix.msc4222.", ""} { // who asks for both understands the stable one
		after, err := c.Bool(prefix + "use_state_after")
		if err != nil {
			return nil, err
		}
		if after {
			q.stateAfter = prefix + "state_after"
		}
	}
	ms, err := c.QueryInt("timeout", 0, 0, int(maxTimeout/time.Millisecond))
	if err != nil {
		return nil, err
	}
	q.timeout = time.Duration(ms) * time.Millisecond
	switch c.Query("set_presence") {
	case "", "online", "offline", "unavailable":
	default:
		return nil, matrix.InvalidParam("set_presence must be online, offline or unavailable")
	}
	if q.filter, err = s.Data.ResolveFilter(c.Ctx(), q.user, c.Query("filter")); err != nil {
		return nil, err
	}
	q.ignored = s.Data.Ignored(q.user)
	if head := s.Hub.Head(); q.since.Pos > head {
		q.since.Pos, q.since.ToDevice = head, head // of a database that was set back
	}
	return q, nil
}

// maxWaiting is how many waiting syncs a device may have; the oldest is answered.
const maxWaiting = 10

// seat names a device.
type seat struct {
	user   matrix.UserID
	device matrix.DeviceID
}

// enter bounds the waiting syncs of a device.
func (s *Sync) enter(w *wait) {
	key := seat{w.q.user, w.q.device}
	s.mu.Lock()
	list := append(s.waiting[key], w)
	var oldest *wait
	if len(list) > maxWaiting {
		oldest, list = list[0], list[1:]
	}
	s.waiting[key] = list
	s.mu.Unlock()
	if oldest != nil {
		oldest.replaced.Store(true)
		oldest.wake()
	}
}

func (s *Sync) leave(w *wait) {
	key := seat{w.q.user, w.q.device}
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.waiting[key]
	if i := slices.Index(list, w); i >= 0 {
		list = slices.Delete(list, i, i+1)
	}
	if len(list) == 0 {
		delete(s.waiting, key)
		return
	}
	s.waiting[key] = list
}

// bodies are buffers for answers.
var bodies = sync.Pool{New: func() any { b := make([]byte, 0, 4096); return &b }}

func buffer() []byte { return (*bodies.Get().(*[]byte))[:0] }

// empty is the answer when nothing happened in the time that the client waits.
func (s *Sync) empty(q *request) []byte {
	b := append(buffer(), `{"next_batch":"`...)
	b = append(b, q.since.String()...)
	b = append(b, '"')
	b = s.AppendKeyCounts(b, q.user, q.device)
	return append(b, '}')
}
