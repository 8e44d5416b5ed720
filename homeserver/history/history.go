// Package history reads rooms: pages of messages, single events and what stands
// around them, the state and the members, now or at another time.
//
// It owns no tables: events are in package events, the state over time in
// package state, and what a user may see is decided by rooms.
//
// Spec: client-server-api#getting-events-for-a-room,
// client-server-api#event-context, client-server-api#room-history-visibility
//
// Pages are in the order of the log, which has no ties, so that nothing is lost
// or doubled at their edges; history fetched from other servers has negative
// positions. A token of /sync is a token here, and the reverse.
package history

import (
	"context"
	"encoding/json"
	"maps"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// Bundler gives the aggregated relations of events, for unsigned.m.relations.
type Bundler interface {
	Bundle(ctx context.Context, tx *sqldb.Tx, user matrix.UserID, list []*events.Event) (map[matrix.EventID]json.RawMessage, error)
}

// Parts is what a History is built of. Bundler may be nil.
type Parts struct {
	DB      *sqldb.DB
	Log     *stream.Log
	Events  *events.Store
	Hub     *hub.Hub
	Rooms   *rooms.Rooms
	Data    *accountdata.Data
	Bundler Bundler
	Now     matrix.Now
}

// History is the module.
type History struct {
	Parts
	members memberCache
}

// New prepares the module. Call it before the log runs.
func New(p Parts) *History {
	if p.Now == nil {
		p.Now = time.Now
	}
	h := &History{Parts: p}
	h.members.init()
	p.Log.Subscribe(h.members.hear)
	return h
}

// The ends of the log.
const (
	first = stream.Pos(math.MinInt64 + 1)
	last  = stream.Pos(math.MaxInt64 - 1)
)

// Token names the place right after a position.
func Token(pos stream.Pos) string { return "s" + strconv.FormatInt(int64(pos), 10) + "_0" }

// ParseToken reads a token of this package or of /sync, whose first part is a
// position.
func ParseToken(s string) (stream.Pos, error) {
	rest, ok := strings.CutPrefix(s, "s")
	if ok {
		rest, _, _ = strings.Cut(rest, "_")
		if n, err := strconv.ParseInt(rest, 10, 64); err == nil {
			return stream.Pos(n), nil
		}
	}
	return 0, matrix.InvalidParam("%q is not a token of this server", s)
}

// Access is what a user may read of a room.
type Access struct {
	user   matrix.UserID
	device matrix.DeviceID
	room   matrix.RoomID
	joined bool
	upTo   stream.Pos // nothing after it: the user has left
}

// Room is the room that is read.
func (a Access) Room() matrix.RoomID { return a.room }

// UpTo is the position after which the user may read nothing.
func (a Access) UpTo() stream.Pos { return a.upTo }

// Standing is what a membership gives to read: all of a joined room, and of one
// that was left what came before.
func Standing(m rooms.Member, device matrix.DeviceID) Access {
	a := Access{user: m.User, device: device, room: m.Room, joined: m.Membership == "join", upTo: last}
	if !a.joined {
		a.upTo = m.Pos
	}
	return a
}

// Open decides whether a user may read a room at all. It makes queries of its
// own: call it outside a transaction.
//
// Spec: client-server-api#room-history-visibility
func (h *History) Open(ctx context.Context, user matrix.UserID, device matrix.DeviceID, room matrix.RoomID) (Access, error) {
	a := Access{user: user, device: device, room: room, upTo: last}
	if h.Hub.Joined(user, room) {
		a.joined = true
		return a, nil
	}
	m, err := h.Rooms.MembershipOf(ctx, user, room)
	if err != nil {
		return a, err
	}
	visibility, err := h.Rooms.State(ctx, room, "m.room.history_visibility", "")
	if err != nil && !matrix.IsCode(err, "M_NOT_FOUND") {
		return a, err
	}
	if visibility != nil && visibility.ContentString("history_visibility") == "world_readable" {
		return a, nil
	}
	if m != nil && m.WasJoined && !m.Forgotten {
		a.upTo = m.Pos
		return a, nil
	}
	return a, matrix.Forbidden("you are not in room %s", room)
}

// Reader filters and encodes the events of one answer.
type Reader struct {
	h       *History
	a       Access
	sight   *rooms.Sight
	all     bool
	ignored accountdata.Ignored
	filter  *accountdata.EventFilter
	bundles map[matrix.EventID]json.RawMessage
	erased  map[matrix.EventID]*events.Event // the redacted forms of what is erased for this reader
	now     time.Time
}

// Reader begins the reading of one answer.
func (h *History) Reader(tx *sqldb.Tx, a Access, filter *accountdata.EventFilter) (*Reader, error) {
	sight, err := h.Rooms.Sight(tx, a.user, a.room)
	if err != nil {
		return nil, err
	}
	return &Reader{
		h: h, a: a, sight: sight, all: sight.Everything(), ignored: h.Data.Ignored(a.user), filter: filter, now: h.Now(),
	}, nil
}

// Sees reports whether the user may see the event.
func (r *Reader) Sees(e *events.Event) bool {
	return r.all && !e.Hidden() || r.sight.Sees(r.a.user, e)
}

// Wants is Sees with the filter and the users that the reader ignores.
func (r *Reader) Wants(e *events.Event) bool {
	if !r.Sees(e) || !e.IsState() && r.ignored.Has(e.Sender) {
		return false
	}
	return r.filter == nil || r.filter.Match(e.Type, e.Sender) && r.filter.MatchRoom(e.Room) &&
		(!r.filter.NeedsContent() || r.filter.MatchContent(e.Content()))
}

// CompleteState is Complete without aggregations, for lists of state.
func (r *Reader) CompleteState(tx *sqldb.Tx, list []*events.Event) error {
	if err := r.h.Events.Complete(tx, list); err != nil {
		return err
	}
	erased, err := r.h.Rooms.Erased(tx, r.a.user, list)
	if err != nil {
		return err
	}
	if r.erased == nil {
		r.erased = erased
	} else {
		maps.Copy(r.erased, erased)
	}
	return nil
}

// Complete loads what the client form of the events needs.
func (r *Reader) Complete(ctx context.Context, tx *sqldb.Tx, list []*events.Event) error {
	if err := r.CompleteState(tx, list); err != nil {
		return err
	}
	if r.h.Bundler == nil {
		return nil
	}
	bundles, err := r.h.Bundler.Bundle(ctx, tx, r.a.user, list)
	if err != nil {
		return err
	}
	if r.bundles == nil {
		r.bundles = bundles
		return nil
	}
	for id, b := range bundles {
		r.bundles[id] = b
	}
	return nil
}

// Append adds an event in the form that clients get.
func (r *Reader) Append(b []byte, e *events.Event) []byte {
	if redacted := r.erased[e.ID]; redacted != nil {
		e = redacted
	}
	f := events.ClientFormat{User: r.a.user, Device: r.a.device, Now: r.now, Relations: r.bundles[e.ID]}
	if r.sight != nil && e.Pos != 0 { // of what is known as part of a state only nobody can say when it was
		f.ReaderMembership = r.sight.Membership(e.Pos)
	}
	return e.AppendClient(b, f)
}

// AppendList writes a JSON array of events.
func (r *Reader) AppendList(b []byte, list []*events.Event) []byte {
	b = append(b, '[')
	for i, e := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = r.Append(b, e)
	}
	return append(b, ']')
}
