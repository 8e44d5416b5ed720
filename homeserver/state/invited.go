package state

import (
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

const qInvited = `SELECT room_id, count(*) FROM room_state
WHERE room_id = ANY($1) AND type = 'm.room.member' AND membership = 'invite' AND to_pos = 9223372036854775807 GROUP BY room_id`

// Invited is how many users are invited to each of several rooms now. It looks at
// all member entries of the rooms.
func Invited(tx *sqldb.Tx, rooms []string) (map[matrix.RoomID]int, error) {
	out := map[matrix.RoomID]int{}
	_, err := sqldb.Select(tx, func(r *sqldb.Rows) (struct{}, error) {
		var room matrix.RoomID
		var n int
		err := r.Scan(&room, &n)
		out[room] = n
		return struct{}{}, err
	}, qInvited, rooms)
	return out, err
}
