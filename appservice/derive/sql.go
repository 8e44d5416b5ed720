package derive

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// The states of an account. A leaver is locked first (locking) and is through when he has left every room (locked).
const (
	stateActive    = "active"
	stateSuspended = "suspended"
	stateLocking   = "locking"
	stateLocked    = "locked"
)

// The reasons of a membership.
const (
	reasonSync  = "sync"  // the organisation wants it so
	reasonSelf  = "self"  // the person's own doing
	reasonAdmin = "admin" // a moderator's or administrator's doing
)

type userRow struct {
	person, localpart, name, state string
}

type roomRow struct {
	key    string
	room   id.RoomID
	alias  string // the full alias
	name   string // name, parent, ord and power are what the homeserver was last told
	parent string // key of the space in which the room is a child
	ord    string
	power  string
	closed bool

	home     string // site that looks after the room, "" for this one; of a foreign room, parent and ord are what its space here was told
	creators string // bots that made it, separated by spaces; "" for the own alone
	rules    string // mark of the join rules
	inside   bool   // the own bot is in it
	told     bool   // the other sites know it as it is
}

type memberKey struct{ room, person string }

type memberRow struct {
	joined bool
	reason string
}

type dingRow struct {
	room   id.RoomID // "" while the room is being made
	joined bool
}

type stateRow struct {
	clean   bool
	version int64
	bot     string
}

const (
	qUsers    = `SELECT person, localpart, name, state FROM as_users`
	qSaveUser = `INSERT INTO as_users (person, localpart, name, state, changed_at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (person) DO UPDATE SET localpart = excluded.localpart, name = excluded.name, state = excluded.state, changed_at = excluded.changed_at`
	qRooms    = `SELECT room_key, room_id, alias, name, parent, ord, power, closed, home, creators, rules, inside, told FROM as_rooms`
	qSaveRoom = `INSERT INTO as_rooms (room_key, room_id, alias, name, parent, ord, power, closed, created_at, home, creators, rules, inside, told)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) ON CONFLICT (room_key) DO UPDATE SET
		room_id = excluded.room_id, alias = excluded.alias, name = excluded.name, parent = excluded.parent, ord = excluded.ord, power = excluded.power,
		closed = excluded.closed, home = excluded.home, creators = excluded.creators, rules = excluded.rules, inside = excluded.inside, told = excluded.told`
	qMembers    = `SELECT room_key, person, membership, reason FROM as_room_members`
	qAway       = `SELECT room_key, person, reason FROM as_room_members WHERE membership = 'leave' AND reason <> 'sync'`
	qMember     = `SELECT membership, reason FROM as_room_members WHERE room_key = $1 AND person = $2`
	qSaveMember = `INSERT INTO as_room_members (room_key, person, membership, reason, changed_at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (room_key, person) DO UPDATE SET membership = excluded.membership, reason = excluded.reason, changed_at = excluded.changed_at`
	qDings      = `SELECT person, room_id, joined FROM as_ding_rooms`
	qSaveDing   = `INSERT INTO as_ding_rooms (person, room_id, joined, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT (person) DO UPDATE SET room_id = excluded.room_id, joined = excluded.joined`
	qBeginDing  = `INSERT INTO as_ding_rooms (person, room_id, joined, created_at) VALUES ($1, '', FALSE, $2) ON CONFLICT (person) DO NOTHING`
	qState      = `SELECT clean, tree_version, bot_name FROM as_derive_state WHERE id = 1`
	qSetClean   = `UPDATE as_derive_state SET clean = $1 WHERE id = 1`
	qSetVersion = `UPDATE as_derive_state SET clean = TRUE, tree_version = $1 WHERE id = 1`
	qSetBot     = `UPDATE as_derive_state SET bot_name = $1 WHERE id = 1`
)

func scanUser(rows *sqldb.Rows) (u userRow, err error) {
	err = rows.Scan(&u.person, &u.localpart, &u.name, &u.state)
	return u, err
}

func scanRoom(rows *sqldb.Rows) (x roomRow, err error) {
	err = rows.Scan(&x.key, &x.room, &x.alias, &x.name, &x.parent, &x.ord, &x.power, &x.closed, &x.home, &x.creators, &x.rules, &x.inside, &x.told)
	return x, err
}

// load fills the maps that mirror the small tables.
func (r *Reconciler) load(ctx context.Context) error {
	return r.db.Read(ctx, func(tx *sqldb.Tx) error {
		users, err := sqldb.Select(tx, scanUser, qUsers)
		if err != nil {
			return err
		}
		for _, u := range users {
			r.users[u.person] = u
			r.people[r.mx.UserID(u.localpart)] = u.person
		}
		rooms, err := sqldb.Select(tx, scanRoom, qRooms)
		if err != nil {
			return err
		}
		for _, x := range rooms {
			r.rooms[x.key], r.byRoom[x.room] = x, x.key
		}
		if err := r.loadAway(tx); err != nil {
			return err
		}
		return r.loadDings(tx)
	})
}

func (r *Reconciler) loadAway(tx *sqldb.Tx) error {
	rows, err := tx.Query(qAway)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var k memberKey
		var reason string
		if err := rows.Scan(&k.room, &k.person, &reason); err != nil {
			return err
		}
		r.away[k] = reason
	}
	return rows.Err()
}

func (r *Reconciler) loadDings(tx *sqldb.Tx) error {
	rows, err := tx.Query(qDings)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var person string
		var d dingRow
		if err := rows.Scan(&person, &d.room, &d.joined); err != nil {
			return err
		}
		r.dings[person] = d
		if d.room != "" {
			r.dingOf[d.room] = person
		} else {
			r.doubt[person] = true
		}
	}
	return rows.Err()
}

func (r *Reconciler) readState(ctx context.Context) (s stateRow, err error) {
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.QueryRow(qState).Scan(&s.clean, &s.version, &s.bot)
	})
	if err != nil {
		return s, fmt.Errorf("reading the state of derived rooms: %w", err)
	}
	return s, nil
}

// readMembers reads all recorded memberships, by room.
func (r *Reconciler) readMembers(ctx context.Context) (map[string]map[string]memberRow, error) {
	var out map[string]map[string]memberRow
	err := r.db.Read(ctx, func(tx *sqldb.Tx) error {
		out = map[string]map[string]memberRow{}
		rows, err := tx.Query(qMembers)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var room, person, membership string
			var m memberRow
			if err := rows.Scan(&room, &person, &membership, &m.reason); err != nil {
				return err
			}
			m.joined = membership == "join"
			if out[room] == nil {
				out[room] = map[string]memberRow{}
			}
			out[room][person] = m
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("reading derived memberships: %w", err)
	}
	return out, nil
}

func (r *Reconciler) exec(ctx context.Context, what, q string, args ...any) error {
	err := r.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(q, args...)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func (r *Reconciler) now() int64 { return matrix.Millis(r.opts.Now()) }

func (r *Reconciler) saveUser(ctx context.Context, u userRow) error {
	if err := r.exec(ctx, "recording an account", qSaveUser, u.person, u.localpart, u.name, u.state, r.now()); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.users[u.person] = u
	r.people[r.mx.UserID(u.localpart)] = u.person
	return nil
}

func (r *Reconciler) saveRoom(ctx context.Context, x roomRow) error {
	if had, ok := r.row(x.key); !ok || had.room != x.room || had.closed != x.closed || had.home != x.home {
		x.told = x.told && strings.HasPrefix(x.key, movedKey)
	}
	if err := r.exec(ctx, "recording a room", qSaveRoom, x.key, x.room, x.alias, x.name, x.parent, x.ord, x.power, x.closed, r.now(),
		x.home, x.creators, x.rules, x.inside, x.told); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rooms[x.key], r.byRoom[x.room] = x, x.key
	return nil
}

// memberChange is one membership to record.
type memberChange struct {
	memberKey
	memberRow
}

// saveMembers records memberships, all of them in one commit.
func (r *Reconciler) saveMembers(ctx context.Context, list []memberChange) error {
	if len(list) == 0 {
		return nil
	}
	now := r.now()
	err := r.db.Write(ctx, func(tx *sqldb.Tx) error {
		for _, m := range list {
			if _, err := tx.Exec(qSaveMember, m.room, m.person, membership(m.joined), m.reason, now); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("recording memberships: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range list {
		if !m.joined && m.reason != reasonSync {
			r.away[m.memberKey] = m.reason
		} else {
			delete(r.away, m.memberKey)
		}
	}
	return nil
}

func membership(joined bool) string {
	if joined {
		return "join"
	}
	return "leave"
}

func (r *Reconciler) saveDing(ctx context.Context, person string, d dingRow) error {
	if err := r.exec(ctx, "recording a DING room", qSaveDing, person, d.room, d.joined, r.now()); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dings[person] = d
	if d.room != "" {
		r.dingOf[d.room] = person
	}
	return nil
}

// isJoined reads one recorded membership.
func (r *Reconciler) isJoined(ctx context.Context, k memberKey) (joined bool, err error) {
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		var m, reason string
		err := tx.QueryRow(qMember, k.room, k.person).Scan(&m, &reason)
		joined = m == "join"
		if errors.Is(err, sqldb.ErrNoRows) {
			joined, err = false, nil
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("reading a membership: %w", err)
	}
	return joined, nil
}
