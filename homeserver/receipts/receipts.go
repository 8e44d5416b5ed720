// Package receipts keeps what each user has read: m.read and m.read.private
// receipts, for a whole room or one thread, and the door to the m.fully_read
// marker, which lives in room account data.
//
// Table: receipts, one row for each room, user, type and thread, with the
// position of the event it points at and its own position in the log.
//
// The receipts of a room that somebody asks about are held in memory and kept
// true by the log, so that an answer to /sync or an unread count costs no query.
//
// Spec: client-server-api#receipts, client-server-api#read-and-unread-markers
//
// Invariants: a receipt of a local user never moves back, one of another server's
// user never to an earlier time; a private receipt is shown to its own
// user alone and never leaves the server.
package receipts

import (
	"context"
	"embed"
	"fmt"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// The types of receipts.
const (
	Read        = "m.read"
	ReadPrivate = "m.read.private"
	fullyRead   = "m.fully_read"
)

// MainThread is the thread ID of what is in no thread.
const MainThread = "main"

// Receipt says that a user has read a room, or one thread of it, up to an event.
type Receipt struct {
	Room     matrix.RoomID
	User     matrix.UserID
	Type     string
	Event    matrix.EventID
	Thread   string // "" unthreaded, "main", or the ID of a thread's root
	TS       int64
	EventPos stream.Pos // where the event stands in the log
	Pos      stream.Pos // where the receipt stands in the log

	// Of a receipt that was just made here: the server of the event's sender, and
	// the event's time in milliseconds.
	Author  matrix.ServerName
	EventTS int64

	far bool // came from another server
}

// Receipts is the module.
type Receipts struct {
	db     *sqldb.DB
	log    *stream.Log
	server matrix.ServerName
	places *Places
	hub    *hub.Hub
	data   *accountdata.Data
	now    matrix.Now

	mu    sync.RWMutex
	inUse map[matrix.RoomID]*room

	parkedMu    sync.Mutex
	parked      map[matrix.EventID][]*Receipt // of other servers, for events that have not arrived yet
	parkedCount int                           // receipts in parked
	arrived     []*Receipt                    // no more than was parked: their events are there
	bell        chan struct{}                 // capacity one: full means that arrived will be looked at anyway
}

//go:embed schema
var schema embed.FS

// New prepares the module. Call it before the log runs.
func New(ctx context.Context, db *sqldb.DB, l *stream.Log, server matrix.ServerName, places *Places, h *hub.Hub, data *accountdata.Data, now matrix.Now) (*Receipts, error) {
	if err := db.Migrate(ctx, "receipts", schema); err != nil {
		return nil, err
	}
	if now == nil {
		now = time.Now
	}
	r := &Receipts{
		db: db, log: l, server: server, places: places, hub: h, data: data, now: now,
		inUse:  make(map[matrix.RoomID]*room),
		parked: make(map[matrix.EventID][]*Receipt), bell: make(chan struct{}, 1),
	}
	l.Subscribe(r.apply)
	return r, nil
}

// Run stores receipts of other servers that came before their events.
func (r *Receipts) Run(ctx context.Context) error {
	for {
		select {
		case <-r.bell:
			r.parkedMu.Lock()
			list := r.arrived
			r.arrived = nil
			r.parkedMu.Unlock()
			if err := r.place(ctx, list); err != nil && ctx.Err() == nil {
				log.WithError(err).Warn("storing receipts that had waited for their event")
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// Mark moves a user's receipt to an event. thread is "", "main" or a root.
// A receipt that would move back is ignored.
func (r *Receipts) Mark(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string, event matrix.EventID, thread string) error {
	p, err := r.places.Of(ctx, room, event)
	if err != nil {
		return err
	}
	if !fits(event, p, thread) {
		// Clients mark a thread as read up to the newest event that they show with
		// it, such as a reaction to an answer to the root, which is in the main timeline.
		related := false
		if thread != MainThread {
			if related, err = r.places.Related(ctx, event, matrix.EventID(thread)); err != nil {
				return err
			}
		}
		if !related {
			return matrix.InvalidParam("event %s is not related to thread %s", event, thread)
		}
	}
	return r.store(ctx, []*Receipt{{
		Room: room, User: user, Type: typ, Event: event, Thread: thread,
		TS: matrix.Millis(r.now()), EventPos: p.Pos, Author: p.Author, EventTS: p.TS,
	}})
}

// fits says whether the event belongs to the thread. A root belongs to the
// main timeline and to its own thread.
//
// Spec: client-server-api#threaded-read-receipts
func fits(event matrix.EventID, p Place, thread string) bool {
	return thread == "" || thread == MainThread && p.Root == "" || thread == string(p.Root) || thread == string(event)
}

// store writes receipts that are ahead of what is stored. They are one append.
func (r *Receipts) store(ctx context.Context, list []*Receipt) error {
	fresh := list[:0:0]
	for _, x := range list {
		if !r.behind(x) {
			fresh = append(fresh, x)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	_, err := r.log.Append(ctx, len(fresh), func(tx *sqldb.Tx, first stream.Pos) ([]stream.Change, error) {
		changes := make([]stream.Change, 0, len(fresh))
		for i, x := range fresh {
			c := *x
			c.Pos = first + stream.Pos(i)
			upsert := qUpsert
			if c.far {
				upsert = qUpsertFar
			}
			n, err := tx.Exec(upsert, string(c.Room), string(c.User), c.Type, c.Thread, string(c.Event), int64(c.EventPos), c.TS, int64(c.Pos))
			if err != nil {
				return nil, err
			}
			if n == 0 { // a newer one got there first
				continue
			}
			changes = append(changes, stream.Change{Pos: c.Pos, Kind: stream.KindReceipt, Room: c.Room, User: c.User, Payload: &c})
		}
		return changes, nil
	})
	if err != nil {
		return fmt.Errorf("storing receipts: %w", err)
	}
	return nil
}

// behind reports whether the receipt is known, from memory alone, not to move
// anything forward.
func (r *Receipts) behind(x *Receipt) bool {
	r.mu.RLock()
	rm := r.inUse[x.Room]
	r.mu.RUnlock()
	return rm != nil && rm.behind(x)
}

// apply is told of every commit.
func (r *Receipts) apply(changes []stream.Change) {
	for i := range changes {
		if e, ok := changes[i].Payload.(*events.Event); ok {
			r.arrivedEvent(e.ID)
			continue
		}
		x, ok := changes[i].Payload.(*Receipt)
		if !ok {
			continue
		}
		r.mu.RLock()
		rm := r.inUse[x.Room]
		r.mu.RUnlock()
		if rm != nil {
			rm.add(x)
		}
	}
}

// Outbound lists the public receipts of local users with positions in
// (from, to], in order: what other servers and application services may see.
func (r *Receipts) Outbound(ctx context.Context, from, to stream.Pos) ([]*Receipt, error) {
	all, err := r.Between(ctx, from, to)
	return r.outbound(all), err
}

// OutboundPage is Outbound for the first of very many: it looks at no more than
// limit receipts, and says up to where.
func (r *Receipts) OutboundPage(ctx context.Context, from, to stream.Pos, limit int) (list []*Receipt, upTo stream.Pos, err error) {
	err = r.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		list, err = sqldb.Select(tx, scan, qPage, int64(from), int64(to), limit)
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("reading receipts: %w", err)
	}
	if upTo = to; len(list) == limit {
		upTo = list[limit-1].Pos
	}
	return r.outbound(list), upTo, nil
}

// outbound keeps the receipts that may leave the server.
func (r *Receipts) outbound(all []*Receipt) []*Receipt {
	out := all[:0]
	for _, x := range all {
		if x.Type == Read && x.User.Server() == r.server {
			out = append(out, x)
		}
	}
	return out
}

// Between lists all receipts with positions in (from, to], private ones
// included: it is for application services, which see the private receipts of
// their own users.
func (r *Receipts) Between(ctx context.Context, from, to stream.Pos) ([]*Receipt, error) {
	var all []*Receipt
	err := r.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		all, err = sqldb.Select(tx, scan, qBetween, int64(from), int64(to))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading receipts: %w", err)
	}
	return all, nil
}
