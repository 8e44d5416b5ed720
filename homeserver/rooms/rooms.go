// Package rooms is the only door through which a room changes: creation, sending,
// membership, and what other servers send. It builds or checks events, authorises
// them against the state, and appends them to the log.
//
// A room that is in use is kept in memory with its tips, its state and its next
// sequence number. An event is built on the newest tip, committed or not, and
// handed to the log under the room's lock; the log commits many at once. The
// room's row carries the sequence number, each commit checks it, and whoever
// finds that the room has moved builds again: memory can be wrong, the database
// cannot.
//
// Tables: rooms, memberships (of local users), erasures, built_on, silences. The state over
// time is in package state, the events in package events.
//
// Spec: server-server-api#pdus, client-server-api#rooms
//
// Invariants: one lock order, room then database; nothing waits on the network
// with a room locked.
package rooms

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/matrix-org/gomatrixserverlib"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/sticky"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

//go:embed schema
var schema embed.FS

// Options is what Rooms is built of.
type Options struct {
	Signer         events.Signer
	Now            matrix.Now
	DefaultVersion string // "" is 12
	// Remote reaches other servers; nil on a server that does not federate.
	Remote Remote
	// Profile gives a local user's name and avatar for member events.
	Profile func(ctx context.Context, user matrix.UserID) (name, avatar string, err error)
	// Exists reports whether a local user is known; invitations to others fail.
	Exists func(ctx context.Context, user matrix.UserID) (bool, error)
	// InviteBlocked reports whether a local user does not want an invitation by
	// this sender; nil blocks none.
	InviteBlocked func(sender, target matrix.UserID) bool
	// MayLeave refuses to let a local user out of a room, or to decline an
	// invitation; nil lets everybody out.
	MayLeave func(ctx context.Context, user matrix.UserID, room matrix.RoomID) error
	// IsGuest reports whether a local user is a guest, and Guests lists them; nil
	// where there are none.
	IsGuest func(matrix.UserID) bool
	Guests  func() []matrix.UserID
	// ClaimAlias makes alias point to a room that is being created, in the same
	// transaction.
	ClaimAlias func(tx *sqldb.Tx, alias matrix.RoomAlias, room matrix.RoomID, creator matrix.UserID) error
	// Publish lists a room in the directory, in the same transaction.
	Publish func(tx *sqldb.Tx, room matrix.RoomID) error
	// ResolveAlias finds the room of an alias and servers that know it.
	ResolveAlias func(ctx context.Context, alias matrix.RoomAlias) (matrix.RoomID, []matrix.ServerName, error)
	// AskPolicy shows an event to a policy server and returns its signatures; nil
	// where none can be reached.
	AskPolicy func(ctx context.Context, server matrix.ServerName, pdu json.RawMessage) (json.RawMessage, error)
	// Quiet is for how long a room that has many ends is to be quiet before they are
	// brought together; 0 is DefaultQuiet.
	Quiet time.Duration
	// Delay takes an event that a client wants sent later, without its content;
	// nil on a server that delays nothing.
	Delay func(c *httpapi.Call, d Draft) (any, error)
}

// Rooms is all rooms of the server.
type Rooms struct {
	o      Options
	db     *sqldb.DB
	log    *stream.Log
	events *events.Store
	hub    *hub.Hub
	sticky *sticky.Store

	silent   resting // policy servers
	guests   guests
	ends     ends
	silences silences
	entering gate.Keyed[matrix.RoomID] // joins that bring a room to this server
	filling  gate.Keyed[matrix.RoomID] // holes in its history
	identity Identity                  // nil: no identity servers are used
	erased   atomic.Pointer[erasures]
	founded  atomic.Int64 // time of the newest create event, ms

	mu     sync.Mutex
	cached map[matrix.RoomID]*room
	weight int // held in memory, see maxWeight
	edges  edges
}

// maxWeight bounds what is held of all rooms in memory, counted in members;
// another state entry, which is kept with its event, weighs as much as
// eventWeight of them (some 200 bytes a member).
const (
	maxWeight   = 300_000
	eventWeight = 12
)

const (
	qRoom       = `SELECT version, seq, tips, depth FROM rooms WHERE room_id = $1`
	qInsertRoom = `INSERT INTO rooms (room_id, version, seq, tips, depth) VALUES ($1, $2, $3, $4, $5)`
	qMoveRoom   = `UPDATE rooms SET seq = $3, tips = $4, depth = $5 WHERE room_id = $1 AND seq = $2`
	qMember     = `INSERT INTO memberships (user_id, room_id, membership, sender, event_id, pos, forgotten, stripped, was_joined)
		VALUES ($1, $2, $3, $4, $5, $6, FALSE, $7, $8)
		ON CONFLICT (user_id, room_id) DO UPDATE SET membership = excluded.membership, sender = excluded.sender, event_id = excluded.event_id,
		pos = excluded.pos, forgotten = FALSE, stripped = excluded.stripped, was_joined = memberships.was_joined OR excluded.was_joined`
	qForget      = `UPDATE memberships SET forgotten = TRUE WHERE user_id = $1 AND room_id = $2 AND NOT forgotten AND membership IN ('leave', 'ban')`
	qMembership  = `SELECT user_id, room_id, membership, sender, event_id, pos, forgotten, stripped, was_joined FROM memberships WHERE user_id = $1 AND room_id = $2`
	qMemberships = `SELECT user_id, room_id, membership, sender, event_id, pos, forgotten, stripped, was_joined FROM memberships WHERE user_id = $1`
	qMemberSince = `SELECT user_id, room_id, membership, sender, event_id, pos, forgotten, stripped, was_joined FROM memberships WHERE user_id = $1 AND pos > $2 AND pos <= $3`
	qSeed        = `SELECT room_id, state_key, from_pos FROM room_state WHERE type = 'm.room.member' AND membership = 'join' AND to_pos = 9223372036854775807`
)

// errRoomMoved says that the room is no longer what an event was built on.
var errRoomMoved = errors.New("the room has moved")

// New opens the rooms and seeds the hub with who is where.
func New(ctx context.Context, db *sqldb.DB, l *stream.Log, ev *events.Store, h *hub.Hub, o Options) (*Rooms, error) {
	if err := state.Migrate(ctx, db); err != nil {
		return nil, err
	}
	if err := db.Migrate(ctx, "rooms", schema); err != nil {
		return nil, err
	}
	if o.DefaultVersion == "" {
		o.DefaultVersion = "12"
	}
	if o.Quiet == 0 {
		o.Quiet = DefaultQuiet
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	st, err := sticky.New(ctx, db, l, ev, o.Now)
	if err != nil {
		return nil, err
	}
	r := &Rooms{o: o, db: db, log: l, events: ev, hub: h, sticky: st, cached: map[matrix.RoomID]*room{}}
	if err := errors.Join(r.loadErasures(ctx), r.loadSilences(ctx)); err != nil {
		return nil, err
	}
	r.ends = ends{crowded: make(chan matrix.RoomID, mostCrowded)}
	r.guests = guests{review: make(chan matrix.RoomID, mostReviews), all: make(chan struct{}, 1)}
	if o.IsGuest != nil {
		l.Subscribe(r.guests.hear)
	}
	if err := r.seed(ctx); err != nil {
		return nil, fmt.Errorf("reading memberships: %w", err)
	}
	return r, nil
}

func (r *Rooms) seed(ctx context.Context) error {
	return r.db.Read(ctx, func(tx *sqldb.Tx) error {
		heads, err := r.events.Heads(tx)
		if err != nil {
			return err
		}
		for room, pos := range heads {
			r.hub.SeedHead(room, pos, 0)
		}
		rows, err := tx.Query(qSeed)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var room matrix.RoomID
			var user matrix.UserID
			var pos int64
			if err := rows.Scan(&room, &user, &pos); err != nil {
				return err
			}
			r.hub.Seed(room, user, stream.Pos(pos))
		}
		return rows.Err()
	})
}

// Supported reports whether a room version can be created and joined.
func Supported(version string) bool { return slices.Contains(joinable(), version) }

// Versions lists the room versions of the specification, all of which are supported.
func Versions() []string {
	return []string{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"}
}

// UnstableVersions lists the room versions of proposals that are supported besides.
func UnstableVersions() []string {
	return []string{string(events.VersionOwned10), string(events.VersionOwned11), string(events.VersionFree10), string(events.VersionFree11)}
}

// joinable lists the versions of rooms that can be joined.
func joinable() []string { return append(Versions(), UnstableVersions()...) }

// DefaultVersion is the version of rooms that are created without one.
func (r *Rooms) DefaultVersion() string { return r.o.DefaultVersion }

// Sticky is what is sticky in the rooms.
func (r *Rooms) Sticky() *sticky.Store { return r.sticky }

// Server is this server's name.
func (r *Rooms) Server() matrix.ServerName { return r.o.Signer.Server }

func (r *Rooms) isLocal(u matrix.UserID) bool { return u.Server() == r.o.Signer.Server }

// get returns the room's memory, which may not be loaded yet.
func (r *Rooms) get(id matrix.RoomID) *room {
	r.mu.Lock()
	defer r.mu.Unlock()
	rm := r.cached[id]
	if rm == nil {
		rm = &room{id: id}
		r.cached[id] = rm
	}
	rm.used = r.o.Now().UnixNano()
	return rm
}

// locked returns the room loaded and locked; M_NOT_FOUND if it is not known.
func (r *Rooms) locked(ctx context.Context, id matrix.RoomID) (*room, error) {
	for {
		rm := r.get(id)
		rm.mu.Lock()
		if rm.gone { // let go of while we waited for it
			rm.mu.Unlock()
			continue
		}
		if err := r.load(ctx, rm); err != nil {
			r.drop(rm)
			rm.mu.Unlock()
			return nil, err
		}
		return rm, nil
	}
}

// drop lets go of a room that could not be loaded: unknown rooms that somebody
// asks for must not fill the memory. The room is locked.
func (r *Rooms) drop(rm *room) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cached[rm.id] == rm && rm.flying == 0 {
		delete(r.cached, rm.id)
		r.weight -= rm.weight
		rm.weight, rm.gone = 0, true
	}
}

// settled is locked with nothing on its way into the log: what other servers
// are told to build on must be there.
func (r *Rooms) settled(ctx context.Context, id matrix.RoomID) (*room, error) {
	rm, err := r.locked(ctx, id)
	if err != nil || rm.flying == 0 {
		return rm, err
	}
	if _, err := rm.last.Wait(); err != nil {
		rm.loaded = false
		if err := r.load(ctx, rm); err != nil {
			rm.mu.Unlock()
			return nil, err
		}
	}
	return rm, nil
}

// load fills rm, which the caller has locked.
func (r *Rooms) load(ctx context.Context, rm *room) error {
	if rm.loaded {
		return nil
	}
	if rm.flying > 0 && rm.last != nil {
		rm.last.Wait() // what is on its way must be in what is read; its caller hears of errors
	}
	var rows []state.Row
	var evs map[int64]*events.Event
	var tips string
	err := r.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		var version string
		if err = tx.QueryRow(qRoom, string(rm.id)).Scan(&version, &rm.seq, &tips, &rm.depth); err != nil {
			return err
		}
		rm.version = gomatrixserverlib.RoomVersion(version)
		if rows, err = state.Current(tx, rm.id); err != nil {
			return err
		}
		var nids []int64
		for _, row := range rows {
			if row.Type != "m.room.member" {
				nids = append(nids, row.NID)
			}
		}
		evs, err = r.events.ByNID(tx, nids)
		return err
	})
	if errors.Is(err, sqldb.ErrNoRows) {
		return matrix.NotFound("this server does not know the room %s", rm.id)
	}
	if err != nil {
		return fmt.Errorf("loading room: %w", err)
	}
	if rm.impl, err = events.RoomVersion(rm.version); err != nil {
		return matrix.UnsupportedRoomVersion(string(rm.version))
	}
	if err := json.Unmarshal([]byte(tips), &rm.tips); err != nil {
		return fmt.Errorf("loading room: tips: %w", err)
	}
	if len(rm.tips) > fewTips {
		r.ends.note(rm.id)
	}
	rm.state = make(map[state.Key]*entry, len(rows))
	rm.joined, rm.invited, rm.kept = 0, 0, 0
	rm.policyServer, rm.policyRead, rm.dry = nil, false, false
	for _, row := range rows {
		e := &entry{nid: row.NID, membership: row.Membership, ev: evs[row.NID]}
		if e.ev != nil {
			e.id = e.ev.ID
		}
		rm.set(row.Key, e)
	}
	rm.levels = nil
	rm.loaded = true
	rm.gen++
	r.weigh(rm, len(rows)+eventWeight*len(evs))
	return nil
}

// weigh counts what a loaded room holds and lets go of the rooms used longest
// ago when too many are held.
func (r *Rooms) weigh(rm *room, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.weight += n - rm.weight
	rm.weight = n
	if r.weight <= maxWeight {
		return
	}
	limit := r.median()
	for id, o := range r.cached {
		if o != rm && o.used <= limit && o.mu.TryLock() {
			if o.flying == 0 {
				delete(r.cached, id)
				r.weight -= o.weight
				o.weight, o.loaded, o.gone = 0, false, true
			}
			o.mu.Unlock()
		}
	}
}

// median estimates when half of the rooms were used last.
func (r *Rooms) median() int64 {
	lo, hi := int64(1<<62), int64(0)
	for _, o := range r.cached {
		lo, hi = min(lo, o.used), max(hi, o.used)
	}
	return lo + (hi-lo)/2
}

// State is a current state event of a room; nil if there is none.
func (r *Rooms) State(ctx context.Context, id matrix.RoomID, typ, key string) (*events.Event, error) {
	rm, err := r.locked(ctx, id)
	if err != nil {
		return nil, err
	}
	defer rm.mu.Unlock()
	e := rm.state[state.Key{Type: typ, StateKey: key}]
	if e == nil {
		return nil, nil
	}
	return r.event(ctx, e)
}

// event gives the event of a state entry, reading it where it is not at hand.
// The room is locked.
func (r *Rooms) event(ctx context.Context, e *entry) (*events.Event, error) {
	if e.ev != nil {
		return e.ev, nil
	}
	var list map[int64]*events.Event
	err := r.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		list, err = r.events.ByNID(tx, []int64{e.nid})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading state event: %w", err)
	}
	ev := list[e.nid]
	if ev == nil {
		return nil, fmt.Errorf("state event of row %d is missing", e.nid)
	}
	e.id = ev.ID
	return ev, nil
}

// CurrentState is all current state events of a room.
func (r *Rooms) CurrentState(ctx context.Context, id matrix.RoomID) (list []*events.Event, err error) {
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		rows, err := state.Current(tx, id)
		if err != nil {
			return err
		}
		list, err = r.EventsOf(tx, rows)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading state: %w", err)
	}
	return list, nil
}

// EventsOf reads the events of state rows, in the order of the rows.
func (r *Rooms) EventsOf(tx *sqldb.Tx, rows []state.Row) ([]*events.Event, error) {
	nids := make([]int64, len(rows))
	for i, row := range rows {
		nids[i] = row.NID
	}
	evs, err := r.events.ByNID(tx, nids)
	if err != nil {
		return nil, err
	}
	out := make([]*events.Event, 0, len(rows))
	for _, n := range nids {
		if e := evs[n]; e != nil {
			out = append(out, e)
		}
	}
	return out, nil
}

// Membership is a user's current membership of a room: "" if he never had one.
func (r *Rooms) Membership(ctx context.Context, id matrix.RoomID, user matrix.UserID) (string, error) {
	if r.hub.Joined(user, id) {
		return "join", nil
	}
	if r.isLocal(user) {
		m, err := r.MembershipOf(ctx, user, id)
		if err != nil || m == nil {
			return "", err
		}
		return m.Membership, nil
	}
	rm, err := r.locked(ctx, id)
	if matrix.IsCode(err, "M_NOT_FOUND") {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer rm.mu.Unlock()
	return rm.membership(user), nil
}

// Member is a local user's standing in a room.
type Member struct {
	User       matrix.UserID
	Room       matrix.RoomID
	Membership string
	Sender     matrix.UserID
	Event      matrix.EventID
	Pos        stream.Pos
	Forgotten  bool
	Stripped   json.RawMessage // of invitations and knocks: the room as outsiders may see it
	WasJoined  bool
}

func scanMember(rows *sqldb.Rows) (m Member, err error) {
	var pos int64
	var stripped string
	err = rows.Scan(&m.User, &m.Room, &m.Membership, &m.Sender, &m.Event, &pos, &m.Forgotten, &stripped, &m.WasJoined)
	m.Pos = stream.Pos(pos)
	if stripped != "" {
		m.Stripped = json.RawMessage(stripped)
	}
	return m, err
}

// MembershipOf is a local user's standing in one room; nil if he has none.
func (r *Rooms) MembershipOf(ctx context.Context, user matrix.UserID, id matrix.RoomID) (m *Member, err error) {
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		list, err := sqldb.Select(tx, scanMember, qMembership, string(user), string(id))
		if len(list) > 0 {
			m = &list[0]
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading membership: %w", err)
	}
	return m, nil
}

// Memberships is a local user's standing in all rooms that he ever had to do
// with, forgotten ones too.
func (r *Rooms) Memberships(tx *sqldb.Tx, user matrix.UserID) ([]Member, error) {
	return sqldb.Select(tx, scanMember, qMemberships, string(user))
}

// MembershipsSince is what changed of them in (from, to].
func (r *Rooms) MembershipsSince(tx *sqldb.Tx, user matrix.UserID, from, to stream.Pos) ([]Member, error) {
	return sqldb.Select(tx, scanMember, qMemberSince, string(user), int64(from), int64(to))
}

// JoinedRooms lists the rooms that a user is joined to.
func (r *Rooms) JoinedRooms(user matrix.UserID) []matrix.RoomID { return r.hub.RoomsOf(user) }

// JoinedMembers lists the users who are joined to a room.
func (r *Rooms) JoinedMembers(id matrix.RoomID) []matrix.UserID { return r.hub.Members(id) }

// ServersIn lists the servers with users joined to a room.
func (r *Rooms) ServersIn(id matrix.RoomID) []matrix.ServerName { return r.hub.Servers(id) }

// Forget hides a room that the user has left. The log carries it, for the lists of
// rooms that clients are being told.
//
// Spec: client-server-api#leaving-rooms
func (r *Rooms) Forget(ctx context.Context, user matrix.UserID, id matrix.RoomID) error {
	m, err := r.MembershipOf(ctx, user, id)
	if err != nil {
		return err
	}
	if m == nil {
		return matrix.NotFound("you have never been in %s", id)
	}
	if m.Membership != "leave" && m.Membership != "ban" {
		return matrix.Unknown("you are still in %s: leave it first", id)
	}
	_, err = r.log.Append(ctx, 1, func(tx *sqldb.Tx, pos stream.Pos) ([]stream.Change, error) {
		if n, err := tx.Exec(qForget, string(user), string(id)); n == 0 || err != nil {
			return nil, err // it was forgotten before
		}
		return []stream.Change{{Pos: pos, Kind: stream.KindForgotten, Room: id, User: user}}, nil
	})
	if err != nil {
		return fmt.Errorf("forgetting room: %w", err)
	}
	return nil
}

// Version is a room's version.
func (r *Rooms) Version(ctx context.Context, id matrix.RoomID) (string, error) {
	rm, err := r.locked(ctx, id)
	if err != nil {
		return "", err
	}
	defer rm.mu.Unlock()
	return string(rm.version), nil
}

// Power tells what a user may do in a room, by its current power levels.
func (r *Rooms) Power(ctx context.Context, id matrix.RoomID, user matrix.UserID) (Power, error) {
	rm, err := r.locked(ctx, id)
	if err != nil {
		return Power{}, err
	}
	defer rm.mu.Unlock()
	l, err := rm.powerLevels(func(e *entry) (*events.Event, error) { return r.event(ctx, e) })
	if err != nil {
		return Power{}, err
	}
	return Power{levels: l, Level: l.user(user)}, nil
}

// Summary is what a room looks like from afar.
type Summary struct {
	Joined, Invited int
	Named           bool // it has a name or an alias of its own
}

// Summary counts the members of a room.
func (r *Rooms) Summary(ctx context.Context, id matrix.RoomID) (Summary, error) {
	rm, err := r.locked(ctx, id)
	if err != nil {
		return Summary{}, err
	}
	defer rm.mu.Unlock()
	named := rm.contentString("m.room.name", "name") != "" || rm.contentString("m.room.canonical_alias", "alias") != ""
	return Summary{rm.joined, rm.invited, named}, nil
}
