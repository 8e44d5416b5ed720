package receipts

import "github.com/carillon-chat/carillon/homeserver/sqldb"

const (
	qUpsert = `INSERT INTO receipts (room_id, user_id, type, thread_id, event_id, event_pos, ts, pos)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (room_id, user_id, type, thread_id) DO UPDATE
SET event_id = excluded.event_id, event_pos = excluded.event_pos, ts = excluded.ts, pos = excluded.pos
WHERE receipts.event_pos < excluded.event_pos`
	// Servers have events in orders of their own, so which receipt of another server's user is the newer one is what
	// that server says.
	qUpsertFar = `INSERT INTO receipts (room_id, user_id, type, thread_id, event_id, event_pos, ts, pos)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (room_id, user_id, type, thread_id) DO UPDATE
SET event_id = excluded.event_id, event_pos = excluded.event_pos, ts = excluded.ts, pos = excluded.pos
WHERE receipts.ts < excluded.ts OR receipts.ts = excluded.ts AND receipts.event_pos < excluded.event_pos`
	qColumns = `SELECT room_id, user_id, type, thread_id, event_id, event_pos, ts, pos FROM receipts `
	qOfRoom  = qColumns + `WHERE room_id = $1 ORDER BY pos`
	qPage    = qColumns + `WHERE pos > $1 AND pos <= $2 ORDER BY pos LIMIT $3`
	qBetween = qColumns + `WHERE pos > $1 AND pos <= $2 ORDER BY pos`
)

func scan(rows *sqldb.Rows) (*Receipt, error) {
	var x Receipt
	err := rows.Scan(&x.Room, &x.User, &x.Type, &x.Thread, &x.Event, &x.EventPos, &x.TS, &x.Pos)
	return &x, err
}
