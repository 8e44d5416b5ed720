// Package state keeps the state of every room over time: for each entry (type,
// state key) the stretches of the log during which one event held it. The
// current state, the state at any position and the change between two positions
// are each one query, and a change of state costs two statements whatever the
// size of the room.
//
// The state before an event is nearly always the current state of its position.
// Where a room has forked it is a View: the state at a base position with a few
// entries replaced.
//
// Tables: room_state, state_views.
//
// Spec: server-server-api#room-state-resolution, rooms/v1, rooms/v2, rooms/v12
package state

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

//go:embed schema
var schema embed.FS

// Open is the end of a stretch that still lasts.
const Open = stream.Pos(math.MaxInt64)

// Key names a state entry.
type Key struct{ Type, StateKey string }

// Row is a state entry with the event that holds it.
type Row struct {
	Key
	NID        int64
	Membership string // content.membership of member events
	From, To   stream.Pos
}

const (
	columns  = `type, state_key, nid, membership, from_pos, to_pos`
	qClose   = `UPDATE room_state SET to_pos = $4 WHERE room_id = $1 AND type = $2 AND state_key = $3 AND to_pos = 9223372036854775807`
	qSet     = `INSERT INTO room_state (room_id, type, state_key, from_pos, to_pos, nid, membership) VALUES ($1, $2, $3, $4, 9223372036854775807, $5, $6)`
	qUnset   = `DELETE FROM room_state WHERE room_id = $1 AND type = $2 AND state_key = $3 AND from_pos = $4 AND to_pos = $4`
	qCurrent = `SELECT ` + columns + ` FROM room_state WHERE room_id = $1 AND to_pos = 9223372036854775807`
	qAt      = `SELECT ` + columns + ` FROM room_state WHERE room_id = $1 AND from_pos <= $2 AND to_pos > $2`
	qKeyAt   = `SELECT ` + columns + ` FROM room_state WHERE room_id = $1 AND type = $2 AND state_key = $3 AND from_pos <= $4 AND to_pos > $4`
	qSomeAt  = `SELECT ` + columns + ` FROM room_state WHERE room_id = $1 AND type = ANY($2) AND state_key = ANY($3) AND from_pos <= $4 AND to_pos > $4`
	qTypeAt  = `SELECT ` + columns + ` FROM room_state WHERE room_id = $1 AND type = $2 AND from_pos <= $3 AND to_pos > $3`
	qHistory = `SELECT ` + columns + ` FROM room_state WHERE room_id = $1 AND type = $2 AND state_key = $3 ORDER BY from_pos`
	qDelta   = `SELECT ` + columns + ` FROM room_state WHERE room_id = $1 AND from_pos > $2 AND from_pos <= $3 AND to_pos > $3`
	// Two halves, each with an index of its own: one condition for both would read the whole room.
	qTouched = `SELECT type, state_key FROM room_state WHERE room_id = $1 AND from_pos > $2 AND from_pos <= $3
		UNION SELECT type, state_key FROM room_state WHERE room_id = $1 AND to_pos > $2 AND to_pos <= $3 AND to_pos < 9223372036854775807`
	qSetView = `INSERT INTO state_views (nid, base, delta) VALUES ($1, $2, $3)`
	qView    = `SELECT base, delta FROM state_views WHERE nid = $1`
)

// Migrate creates the tables.
func Migrate(ctx context.Context, db *sqldb.DB) error { return db.Migrate(ctx, "state", schema) }

// Set makes event nid hold key from pos on.
func Set(tx *sqldb.Tx, room matrix.RoomID, pos stream.Pos, key Key, nid int64, membership string) error {
	if err := Unset(tx, room, pos, key); err != nil {
		return err
	}
	_, err := tx.Exec(qSet, string(room), key.Type, key.StateKey, int64(pos), nid, membership)
	return err
}

// Unset ends key at pos.
func Unset(tx *sqldb.Tx, room matrix.RoomID, pos stream.Pos, key Key) error {
	n, err := tx.Exec(qClose, string(room), key.Type, key.StateKey, int64(pos))
	if err != nil || n == 0 {
		return err
	}
	// A stretch that began at this very position is empty now.
	_, err = tx.Exec(qUnset, string(room), key.Type, key.StateKey, int64(pos))
	return err
}

func scan(r *sqldb.Rows) (row Row, err error) {
	var from, to int64
	err = r.Scan(&row.Type, &row.StateKey, &row.NID, &row.Membership, &from, &to)
	row.From, row.To = stream.Pos(from), stream.Pos(to)
	return row, err
}

// Current is the room's present state.
func Current(tx *sqldb.Tx, room matrix.RoomID) ([]Row, error) {
	return sqldb.Select(tx, scan, qCurrent, string(room))
}

// At is the room's state right after pos.
func At(tx *sqldb.Tx, room matrix.RoomID, pos stream.Pos) ([]Row, error) {
	return sqldb.Select(tx, scan, qAt, string(room), int64(pos))
}

// KeyAt is one entry right after pos.
func KeyAt(tx *sqldb.Tx, room matrix.RoomID, key Key, pos stream.Pos) (Row, bool, error) {
	rows, err := sqldb.Select(tx, scan, qKeyAt, string(room), key.Type, key.StateKey, int64(pos))
	if err != nil || len(rows) == 0 {
		return Row{}, false, err
	}
	return rows[0], true, nil
}

// TypeAt is all entries of one type right after pos.
func TypeAt(tx *sqldb.Tx, room matrix.RoomID, typ string, pos stream.Pos) ([]Row, error) {
	return sqldb.Select(tx, scan, qTypeAt, string(room), typ, int64(pos))
}

// History is one entry over time, the oldest first.
func History(tx *sqldb.Tx, room matrix.RoomID, key Key) ([]Row, error) {
	return sqldb.Select(tx, scan, qHistory, string(room), key.Type, key.StateKey)
}

// Delta is what changed in (from, to] and still held at to.
func Delta(tx *sqldb.Tx, room matrix.RoomID, from, to stream.Pos) ([]Row, error) {
	return sqldb.Select(tx, scan, qDelta, string(room), int64(from), int64(to))
}

// touched lists the entries that differ, or may differ, between two positions.
func touched(tx *sqldb.Tx, room matrix.RoomID, a, b stream.Pos) ([]Key, error) {
	return sqldb.Select(tx, func(r *sqldb.Rows) (k Key, err error) {
		err = r.Scan(&k.Type, &k.StateKey)
		return k, err
	}, qTouched, string(room), int64(min(a, b)), int64(max(a, b)))
}

// View is a state: that at Base with the entries of Delta in place of its own;
// an entry of 0 is absent.
type View struct {
	Base  stream.Pos
	Delta map[Key]int64
}

// With is the view after one more state event.
func (v View) With(key Key, nid int64) View { return v.WithAll(map[Key]int64{key: nid}) }

// WithAll is the view with some entries replaced; 0 takes one away.
func (v View) WithAll(entries map[Key]int64) View {
	d := make(map[Key]int64, len(v.Delta)+len(entries))
	maps.Copy(d, v.Delta)
	maps.Copy(d, entries)
	return View{v.Base, d}
}

// Get reads one entry; 0 if it is absent.
func (v View) Get(tx *sqldb.Tx, room matrix.RoomID, key Key) (int64, error) {
	if nid, ok := v.Delta[key]; ok {
		return nid, nil
	}
	row, ok, err := KeyAt(tx, room, key, v.Base)
	if err != nil || !ok {
		return 0, err
	}
	return row.NID, nil
}

// All reads every entry.
func (v View) All(tx *sqldb.Tx, room matrix.RoomID) (map[Key]int64, error) {
	rows, err := At(tx, room, v.Base)
	if err != nil {
		return nil, err
	}
	m := make(map[Key]int64, len(rows)+len(v.Delta))
	for _, r := range rows {
		m[r.Key] = r.NID
	}
	for k, nid := range v.Delta {
		if nid == 0 {
			delete(m, k)
		} else {
			m[k] = nid
		}
	}
	return m, nil
}

// fewKeys is how many entries are read one by one; more are read together.
const fewKeys = 3

// keysAt reads entries right after pos; those that are absent are left out, and a
// few that were not asked for may be there.
func keysAt(tx *sqldb.Tx, room matrix.RoomID, keys []Key, pos stream.Pos) (map[Key]int64, error) {
	out := make(map[Key]int64, len(keys))
	if len(keys) <= fewKeys {
		for _, k := range keys {
			row, ok, err := KeyAt(tx, room, k, pos)
			if err != nil {
				return nil, err
			}
			if ok {
				out[k] = row.NID
			}
		}
		return out, nil
	}
	types, stateKeys := map[string]bool{}, map[string]bool{}
	for _, k := range keys {
		types[k.Type], stateKeys[k.StateKey] = true, true
	}
	rows, err := sqldb.Select(tx, scan, qSomeAt, string(room), slices.Collect(maps.Keys(types)), slices.Collect(maps.Keys(stateKeys)), int64(pos))
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		out[r.Key] = r.NID
	}
	return out, nil
}

// Differences lists the entries that are not the same in all views, with the
// event that holds each in each view. Its cost grows with how far the views are
// apart, not with the room; the number of its queries with the number of views.
func Differences(tx *sqldb.Tx, room matrix.RoomID, views []View) (map[Key][]int64, error) {
	keys := map[Key]bool{}
	for i, v := range views {
		for k := range v.Delta {
			keys[k] = true
		}
		if i > 0 && v.Base != views[0].Base {
			ks, err := touched(tx, room, views[0].Base, v.Base)
			if err != nil {
				return nil, err
			}
			for _, k := range ks {
				keys[k] = true
			}
		}
	}
	bases := map[stream.Pos]map[Key]bool{} // what has to be read
	for _, v := range views {
		if bases[v.Base] == nil {
			bases[v.Base] = map[Key]bool{}
		}
		for k := range keys {
			if _, ok := v.Delta[k]; !ok {
				bases[v.Base][k] = true
			}
		}
	}
	held := make(map[stream.Pos]map[Key]int64, len(bases))
	for base, ks := range bases {
		var err error
		if held[base], err = keysAt(tx, room, slices.Collect(maps.Keys(ks)), base); err != nil {
			return nil, err
		}
	}
	out := map[Key][]int64{}
	for k := range keys {
		nids := make([]int64, len(views))
		same := true
		for i, v := range views {
			nid, ok := v.Delta[k]
			if !ok {
				nid = held[v.Base][k]
			}
			nids[i] = nid
			same = same && nid == nids[0]
		}
		if !same {
			out[k] = nids
		}
	}
	return out, nil
}

type storedEntry struct {
	Type string `json:"t"`
	Key  string `json:"k"`
	NID  int64  `json:"n"`
}

// SaveView keeps the state before event nid, where it is not the state of the
// event's own position.
func SaveView(tx *sqldb.Tx, nid int64, v View) error {
	list := make([]storedEntry, 0, len(v.Delta))
	for k, n := range v.Delta {
		list = append(list, storedEntry{k.Type, k.StateKey, n})
	}
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	_, err = tx.Exec(qSetView, nid, int64(v.Base), string(b))
	return err
}

// ViewBefore is the state before the event of row nid at place pos.
func ViewBefore(tx *sqldb.Tx, nid int64, pos stream.Pos) (View, error) {
	var base int64
	var delta string
	err := tx.QueryRow(qView, nid).Scan(&base, &delta)
	if errors.Is(err, sqldb.ErrNoRows) {
		return View{Base: pos - 1}, nil
	}
	if err != nil {
		return View{}, err
	}
	var list []storedEntry
	if err := json.Unmarshal([]byte(delta), &list); err != nil {
		return View{}, fmt.Errorf("state view of row %d: %w", nid, err)
	}
	v := View{Base: stream.Pos(base), Delta: make(map[Key]int64, len(list))}
	for _, e := range list {
		v.Delta[Key{e.Type, e.Key}] = e.NID
	}
	return v, nil
}
