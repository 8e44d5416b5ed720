package federation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/e2ee"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
	log "github.com/sirupsen/logrus"
)

const (
	// keptEntries bounds what waits in memory; beyond it the log is read from the database.
	keptEntries = 20_000
	// receiptsPerEDU bounds one EDU.
	receiptsPerEDU = 500
	// savePosition is how often the position is stored while nothing concerns other servers.
	savePosition = time.Minute
	catchUpPage  = 500
)

const (
	qPosition     = `SELECT pos FROM fed_position WHERE id = 1`
	qSavePosition = `INSERT INTO fed_position (id, pos) VALUES (1, $1) ON CONFLICT (id) DO UPDATE SET pos = excluded.pos`
	// The second is up to where receipts are in the queue, while some wait; 0: no other than the first.
	qReceipts     = `SELECT pos FROM fed_position WHERE id = 2`
	qSaveReceipts = `INSERT INTO fed_position (id, pos) VALUES (2, $1) ON CONFLICT (id) DO UPDATE SET pos = excluded.pos`
)

// reader follows the log and puts what concerns other servers into the queue.
type reader struct {
	own      matrix.ServerName
	db       *sqldb.DB
	log      *stream.Log
	queue    *queue
	servers  *roomServers
	events   *events.Store
	rooms    *rooms.Rooms
	receipts *receipts.Receipts
	keys     *e2ee.Service

	bell chan struct{} // capacity one: full means that it will look anyway

	mu      sync.Mutex
	entries []entry
	head    stream.Pos // everything up to it is in entries, or concerns nobody
	lost    bool       // entries were dropped: the database has to be read

	// Used by run alone.
	pos  stream.Pos // stored: all up to it is in the queue, or in held
	held *holding
	from stream.Pos // stored: receipts up to it are in the queue; 0: no other than pos
	now  matrix.Now
}

// entry is one change that other servers have to hear of.
type entry struct {
	pos     stream.Pos
	event   matrix.EventID
	room    matrix.RoomID // see row
	receipt *receipts.Receipt
	lists   bool          // somebody's devices or keys have changed
	joined  matrix.UserID // who has met servers that may not know their devices
	parcel  bool          // a to-device message waits
	servers []matrix.ServerName
}

// hear is told of each commit, in order, so that an event goes to the servers that were in the room just then.
func (r *reader) hear(changes []stream.Change) {
	var fresh []entry
	var entered matrix.RoomID // just now, through another server, which passes the join on
	for i := range changes {
		c := &changes[i]
		switch c.Kind {
		case stream.KindEvent:
			switch e := c.Payload.(type) {
			case *events.Event:
				r.welcome(e)
				passedOn := e.Room == entered
				entered = ""
				if to := r.destinations(e); len(to) > 0 && !passedOn {
					fresh = append(fresh, entry{pos: c.Pos, event: e.ID, room: e.Room, servers: to})
				}
				if to := r.strangers(e); len(to) > 0 {
					fresh = append(fresh, entry{pos: c.Pos, joined: e.Sender, servers: to})
				}
			case hub.Seeded:
				r.servers.forget(c.Room)
				entered = c.Room
			}
		case stream.KindReceipt:
			if x, ok := c.Payload.(*receipts.Receipt); ok && x.Type == receipts.Read && x.User.Server() == r.own {
				if to := r.servers.of(x.Room); len(to) > 0 {
					fresh = append(fresh, entry{pos: c.Pos, receipt: x, servers: to})
				}
			}
		case stream.KindDeviceList:
			if l, ok := c.Payload.(*e2ee.ListChange); c.User.Server() == r.own && (!ok || l.Viewer == "") {
				fresh = append(fresh, entry{pos: c.Pos, lists: true})
			}
		case stream.KindToDevice:
			if c.User.Server() != r.own {
				fresh = append(fresh, entry{pos: c.Pos, parcel: true})
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(changes); n > 0 {
		r.head = changes[n-1].Pos
	}
	if len(fresh) == 0 {
		return
	}
	if len(r.entries)+len(fresh) > keptEntries {
		r.entries, r.lost = nil, true
	} else {
		r.entries = append(r.entries, fresh...)
	}
	select {
	case r.bell <- struct{}{}:
	default:
	}
}

// destinations lists the servers that an event has to be sent to, in the order of the log.
func (r *reader) destinations(e *events.Event) []matrix.ServerName {
	var to []matrix.ServerName
	if e.Sender.Server() == r.own && e.Pos > 0 && !e.Dead() {
		to = r.withSubject(e, r.servers.of(e.Room))
	}
	if e.Pos > 0 {
		r.servers.apply(e)
	}
	return to
}

// strangers lists the servers that a local user meets by a join, and with whom no other room was shared before: they
// have not been told of the user's devices.
//
// Spec: server-server-api#device-management
func (r *reader) strangers(e *events.Event) []matrix.ServerName {
	if !r.entry(e) {
		return nil
	}
	there := r.servers.of(e.Room)
	if len(there) == 0 {
		return nil
	}
	known := map[matrix.ServerName]bool{}
	for _, room := range r.servers.hub.RoomsOf(e.Sender) {
		if room != e.Room {
			for _, s := range r.servers.of(room) {
				known[s] = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(there), func(s matrix.ServerName) bool { return known[s] })
}

// entry reports whether an event brings a local user into a room.
func (r *reader) entry(e *events.Event) bool {
	return e.Membership == "join" && e.Sender.Server() == r.own && e.Pos > 0 && !e.Hidden() &&
		(e.Replaces == 0 || e.Replaced != nil && e.Replaced.Membership != "join")
}

// withSubject adds the server of somebody who is removed: it has to hear of it, also if the user was only invited.
func (r *reader) withSubject(e *events.Event, to []matrix.ServerName) []matrix.ServerName {
	if e.Type != "m.room.member" || !e.IsState() || e.Membership == "invite" {
		return to
	}
	if s := matrix.UserID(e.Key()).Server(); s != r.own && s != "" && !slices.Contains(to, s) {
		return append(slices.Clone(to), s)
	}
	return to
}

// run queues until ctx ends.
func (r *reader) run(ctx context.Context) error {
	pos, err := r.position(ctx)
	if err != nil {
		return err
	}
	if err := r.waited(ctx, pos); err != nil {
		return err
	}
	if err := r.catchUp(ctx, pos); err != nil {
		return err
	}
	due := time.NewTimer(0)
	defer due.Stop()
	tick := time.NewTicker(savePosition)
	defer tick.Stop()
	back := gate.Backoff{Min: 100 * time.Millisecond, Max: 30 * time.Second}
	for {
		save := false
		select {
		case <-r.bell:
		case <-due.C:
		case <-tick.C:
			save = true
		case <-ctx.Done():
			return nil
		}
		for {
			err := r.flush(ctx, save)
			if err == nil {
				back.Reset()
				break
			}
			if ctx.Err() != nil {
				return nil
			}
			log.WithError(err).Warn("queueing for other servers failed; trying again")
			if back.Wait(ctx) != nil {
				return nil
			}
		}
		due.Reset(r.held.wait(r.now()))
	}
}

// waited takes up the receipts that were held back when the server last ended.
func (r *reader) waited(ctx context.Context, to stream.Pos) error {
	err := r.db.Read(ctx, func(tx *sqldb.Tx) error {
		err := tx.QueryRow(qReceipts).Scan(&r.from)
		if errors.Is(err, sqldb.ErrNoRows) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("reading the position of receipts: %w", err)
	}
	if r.from == 0 || r.from >= to {
		return nil
	}
	list, err := r.receipts.Outbound(ctx, r.from, to)
	if err != nil {
		return err
	}
	for _, x := range list {
		if there := r.servers.of(x.Room); len(there) > 0 {
			r.held.add(x, there, r.now())
		}
	}
	return nil
}

func (r *reader) position(ctx context.Context) (stream.Pos, error) {
	pos := int64(-1)
	err := r.db.Read(ctx, func(tx *sqldb.Tx) error {
		err := tx.QueryRow(qPosition).Scan(&pos)
		if errors.Is(err, sqldb.ErrNoRows) {
			return nil
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("reading the position of federation: %w", err)
	}
	if pos < 0 { // the first start
		r.mu.Lock()
		pos = int64(r.head)
		r.mu.Unlock()
	}
	return stream.Pos(pos), nil
}

// flush queues what has gathered. save stores the position even if nothing has.
func (r *reader) flush(ctx context.Context, save bool) error {
	r.mu.Lock()
	list, head, lost := r.entries, r.head, r.lost
	save = save && head != r.pos
	r.mu.Unlock()
	if lost {
		pos, err := r.position(ctx)
		if err != nil {
			return err
		}
		r.mu.Lock()
		r.entries, r.lost = nil, false
		r.mu.Unlock()
		if err := r.catchUp(ctx, pos); err != nil {
			r.mu.Lock()
			r.lost = true
			r.mu.Unlock()
			return err
		}
		return nil
	}
	if len(list) == 0 && !save && r.held.wait(r.now()) > 0 {
		return nil
	}
	if err := r.store(ctx, list, r.pos, head); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.lost {
		r.entries = r.entries[len(list):]
	}
	return nil
}

// store queues entries, all that concerns others in (from, head], and moves the position to head, in one
// transaction.
func (r *reader) store(ctx context.Context, list []entry, from, head stream.Pos) error {
	var rows []row
	now := r.now()
	lists, parcels := false, false
	for _, e := range list {
		lists, parcels = lists || e.lists, parcels || e.parcel
		if e.joined != "" {
			more, err := r.introduce(ctx, e)
			if err != nil {
				return err
			}
			rows = append(rows, more...)
			continue
		}
		if e.receipt != nil {
			r.queue.meters.receiptsHeld.Add(float64(r.held.add(e.receipt, e.servers, now)))
			continue
		}
		if e.event == "" {
			continue
		}
		for _, s := range e.servers {
			rows = append(rows, row{server: s, event: e.event, room: e.room})
		}
	}
	if lists {
		more, err := r.listRows(ctx, from, head)
		if err != nil {
			return err
		}
		rows = append(rows, more...)
	}
	if parcels {
		out, err := r.keys.Outgoing(ctx, 0, head)
		if err != nil {
			return err
		}
		for _, p := range out {
			rows = append(rows, row{server: p.Server, edu: newEDU("m.direct_to_device", p.Content)})
		}
	}
	rows, going := r.withReceipts(rows, now)
	first := max(r.held.first(going)-1, 0)
	err := r.queue.put(ctx, rows, func(tx *sqldb.Tx) error {
		if first != r.from {
			if _, err := tx.Exec(qSaveReceipts, int64(first)); err != nil {
				return err
			}
		}
		if parcels {
			if err := r.keys.DropOutgoing(tx, head); err != nil {
				return err
			}
		}
		_, err := tx.Exec(qSavePosition, int64(head))
		return err
	})
	if err == nil {
		r.pos, r.from = head, first
		r.held.gone(going, now)
	}
	return err
}

// withReceipts adds the receipts that go now to rows, and says to which servers.
func (r *reader) withReceipts(rows []row, now time.Time) (all []row, going []matrix.ServerName) {
	with := map[matrix.ServerName]bool{}
	for i := range rows {
		with[rows[i].server] = true
	}
	going = r.held.ready(now, with)
	for _, s := range going {
		rows = append(rows, r.held.rows(s)...)
	}
	return rows, going
}

// introduce tells servers of the devices of a user whom they meet.
func (r *reader) introduce(ctx context.Context, e entry) ([]row, error) {
	content, err := r.keys.Introduction(ctx, e.joined)
	if err != nil || content == nil {
		return nil, err
	}
	edu := newEDU("m.device_list_update", content)
	rows := make([]row, len(e.servers))
	for i, s := range e.servers {
		rows[i] = row{server: s, edu: edu, topic: "m.device_list_update " + string(e.joined)}
	}
	return rows, nil
}

// listRows tells the servers that share a room with a user of a change of the user's devices.
func (r *reader) listRows(ctx context.Context, from, to stream.Pos) ([]row, error) {
	updates, err := r.keys.ListUpdates(ctx, from, to)
	if err != nil {
		return nil, fmt.Errorf("describing changes of devices: %w", err)
	}
	var rows []row
	for _, u := range updates {
		raw := newEDU(u.Type, u.Content)
		for _, s := range r.servers.sharing(u.User) {
			rows = append(rows, row{server: s, edu: raw, topic: u.Type + " " + string(u.User)})
		}
	}
	return rows, nil
}

// receiptRows makes rows of receipts, which are in the order of the log. from is the place of the first; 0 if they
// are to be queued in any case.
func receiptRows(server matrix.ServerName, list []*receipts.Receipt, from stream.Pos) []row {
	var rows []row
	for part := range slices.Chunk(list, receiptsPerEDU) {
		var m receiptMerge
		for _, x := range part {
			var e receiptEntry
			e.Data.TS, e.Data.Thread, e.EventIDs = x.TS, x.Thread, []matrix.EventID{x.Event}
			m.put(x.Room, receipts.Read, x.User, e)
		}
		for _, raw := range m.edus() {
			rows = append(rows, row{server: server, edu: raw, merges: true, from: from, to: list[len(list)-1].Pos})
		}
	}
	return rows
}

// catchUp reads the log from the database: after a restart, or when too much has gathered.
func (r *reader) catchUp(ctx context.Context, pos stream.Pos) error {
	r.mu.Lock()
	end := r.head
	if n := len(r.entries); n > 0 {
		end = min(end, r.entries[0].pos-1)
	}
	r.mu.Unlock()
	r.pos = pos
	for pos < end {
		changes, err := r.log.Changes(ctx, pos, end, catchUpPage)
		if err != nil {
			return err
		}
		next := end
		if len(changes) == catchUpPage {
			next = changes[len(changes)-1].Pos
		}
		list, err := r.entriesOf(ctx, changes, pos, next)
		if err != nil {
			return err
		}
		if err := r.store(ctx, list, pos, next); err != nil {
			return err
		}
		pos = next
	}
	return nil
}

// entriesOf makes entries of changes that come without payloads.
func (r *reader) entriesOf(ctx context.Context, changes []stream.Change, from, to stream.Pos) ([]entry, error) {
	var list []entry
	reads := false
	err := r.db.Read(ctx, func(tx *sqldb.Tx) error {
		list = nil
		for i, c := range changes {
			switch c.Kind {
			case stream.KindReceipt:
				reads = true
			case stream.KindDeviceList:
				list = append(list, entry{pos: c.Pos, lists: true})
			case stream.KindToDevice:
				list = append(list, entry{pos: c.Pos, parcel: c.User.Server() != r.own})
			case stream.KindEvent:
				evs, err := r.events.Timeline(tx, c.Room, c.Pos-1, c.Pos, 1, true)
				if err == nil {
					err = r.events.Complete(tx, evs)
				}
				if err != nil {
					return err
				}
				// The join by which this server came into the room has been passed on by another.
				passedOn := i > 0 && changes[i-1].Kind == stream.KindEvent && changes[i-1].Room == c.Room && changes[i-1].User == ""
				for _, e := range evs {
					if e.Sender.Server() != r.own || e.Dead() {
						more, err := r.missedWelcome(tx, e)
						if err != nil {
							return err
						}
						list = append(list, more...)
						continue
					}
					in, err := r.rooms.ServersAt(tx, e.Room, e.Pos)
					if err != nil {
						return err
					}
					in = slices.DeleteFunc(in, func(s matrix.ServerName) bool { return s == r.own })
					if !passedOn {
						list = append(list, entry{pos: c.Pos, event: e.ID, room: e.Room, servers: r.withSubject(e, in)})
					}
					if r.entry(e) { // whom else the user shared a room with at that time is not known any more
						list = append(list, entry{pos: c.Pos, joined: e.Sender, servers: in})
					}
				}
			}
		}
		return nil
	})
	if err != nil || !reads {
		return list, err
	}
	rs, err := r.receipts.Outbound(ctx, from, to)
	if err != nil {
		return nil, err
	}
	for _, x := range rs {
		if to := r.servers.of(x.Room); len(to) > 0 {
			list = append(list, entry{pos: x.Pos, receipt: x, servers: to})
		}
	}
	return list, nil
}
