package state

import (
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	qTypesAt   = `SELECT ` + columns + ` FROM room_state WHERE room_id = $1 AND type = ANY($2) AND from_pos <= $3 AND to_pos > $3`
	qRoomsAt   = `SELECT room_id, ` + columns + ` FROM room_state WHERE room_id = ANY($1) AND type = ANY($2) AND state_key = '' AND from_pos <= $3 AND to_pos > $3`
	qHistories = `SELECT room_id, ` + columns + ` FROM room_state WHERE room_id = ANY($1) AND type = $2 AND state_key = $3 ORDER BY from_pos`
	qKeysAt    = `SELECT ` + columns + ` FROM room_state WHERE room_id = $1 AND type = $2 AND state_key = ANY($3) AND from_pos <= $4 AND to_pos > $4`
	qButAt     = `SELECT ` + columns + ` FROM room_state WHERE room_id = $1 AND type <> $2 AND from_pos <= $3 AND to_pos > $3`
	qEnded     = `SELECT DISTINCT type, state_key FROM room_state WHERE room_id = $1 AND from_pos <= $2 AND to_pos > $2 AND to_pos <= $3 AND to_pos < 9223372036854775807`
)

// RoomRow is an entry of one of several rooms.
type RoomRow struct {
	Room matrix.RoomID
	Row
}

// RoomsAt is the entries of some types, with an empty state key, of several rooms
// right after pos.
func RoomsAt(tx *sqldb.Tx, rooms, types []string, pos stream.Pos) ([]RoomRow, error) {
	return sqldb.Select(tx, scanRoom, qRoomsAt, rooms, types, int64(pos))
}

// Histories is History for several rooms.
func Histories(tx *sqldb.Tx, rooms []string, key Key) ([]RoomRow, error) {
	return sqldb.Select(tx, scanRoom, qHistories, rooms, key.Type, key.StateKey)
}

func scanRoom(r *sqldb.Rows) (x RoomRow, err error) {
	err = r.Scan(&x.Room, &x.Type, &x.StateKey, &x.NID, &x.Membership, &x.From, &x.To)
	return x, err
}

// TypesAt is all entries of some types right after pos.
func TypesAt(tx *sqldb.Tx, room matrix.RoomID, types []string, pos stream.Pos) ([]Row, error) {
	return sqldb.Select(tx, scan, qTypesAt, string(room), types, int64(pos))
}

// KeysAt is the entries of one type with some state keys right after pos.
func KeysAt(tx *sqldb.Tx, room matrix.RoomID, typ string, keys []string, pos stream.Pos) ([]Row, error) {
	return sqldb.Select(tx, scan, qKeysAt, string(room), typ, keys, int64(pos))
}

// ButAt is all entries but those of one type right after pos.
func ButAt(tx *sqldb.Tx, room matrix.RoomID, typ string, pos stream.Pos) ([]Row, error) {
	return sqldb.Select(tx, scan, qButAt, string(room), typ, int64(pos))
}

// Gone is the entries that were there right after from and are no more right
// after to; delta is what Delta gives for the two.
func Gone(tx *sqldb.Tx, room matrix.RoomID, from, to stream.Pos, delta []Row) ([]Key, error) {
	ended, err := sqldb.Select(tx, func(r *sqldb.Rows) (k Key, err error) {
		err = r.Scan(&k.Type, &k.StateKey)
		return k, err
	}, qEnded, string(room), int64(from), int64(to))
	if err != nil || len(ended) == 0 {
		return nil, err
	}
	held := make(map[Key]bool, len(delta))
	for _, row := range delta {
		held[row.Key] = true
	}
	var gone []Key
	for _, k := range ended {
		if !held[k] {
			gone = append(gone, k)
		}
	}
	return gone, nil
}
