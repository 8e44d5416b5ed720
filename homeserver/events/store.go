package events

import (
	"context"
	"embed"
	"errors"
	"fmt"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

//go:embed schema
var schema embed.FS

const columns = `nid, pos, event_id, room_id, version, type, state_key, sender, ts, depth, flags, replaces, redacts, redacted_by, rel_type, rel_to, txn, json`

const (
	qInsert = `INSERT INTO events (` + columns + `)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)`
	qByID        = `SELECT ` + columns + ` FROM events WHERE event_id = $1`
	qByIDs       = `SELECT ` + columns + ` FROM events WHERE event_id = ANY($1)`
	qByNIDs      = `SELECT ` + columns + ` FROM events WHERE nid = ANY($1)`
	qByTxn       = `SELECT event_id FROM events WHERE room_id = $1 AND sender = $2 AND txn = $3 AND txn <> ''`
	qForward     = `SELECT ` + columns + ` FROM events WHERE room_id = $1 AND pos > $2 AND pos <= $3 AND pos <> 0 ORDER BY pos LIMIT $4`
	qBackward    = `SELECT ` + columns + ` FROM events WHERE room_id = $1 AND pos > $2 AND pos <= $3 AND pos <> 0 ORDER BY pos DESC LIMIT $4`
	qPos         = `SELECT pos FROM events WHERE event_id = $1 AND room_id = $2`
	qRedact      = `UPDATE events SET json = $2, redacted_by = $3, rel_type = '', rel_to = '' WHERE nid = $1`
	qRedactionOf = `SELECT ` + columns + ` FROM events WHERE redacts = $1 AND redacts <> '' AND flags & 15 = 0 ORDER BY nid DESC LIMIT 1`
	qLower       = `UPDATE events_backward SET nid = nid - $1 WHERE id = 1 RETURNING nid`
	qPromote     = `UPDATE events SET pos = $2, flags = $3, replaces = $4 WHERE nid = $1`
	qAnnotated   = `SELECT event_id, json FROM events WHERE rel_to = $1 AND rel_to <> '' AND rel_type = 'm.annotation' AND sender = $2 AND type = $3 AND redacted_by = 0`
	qNearest     = `SELECT ` + columns + ` FROM events WHERE room_id = $1 AND pos <> 0 AND flags & 7 = 0 AND ts >= $2 ORDER BY ts, pos LIMIT 1`
	qNearestBack = `SELECT ` + columns + ` FROM events WHERE room_id = $1 AND pos <> 0 AND flags & 7 = 0 AND ts <= $2 ORDER BY ts DESC, pos DESC LIMIT 1`
	qHeads       = `SELECT room_id, max(pos) FROM events WHERE pos > 0 GROUP BY room_id`
)

// Store is the table of events.
type Store struct{ db *sqldb.DB }

// New opens the store.
func New(ctx context.Context, db *sqldb.DB) (*Store, error) {
	if err := db.Migrate(ctx, "events", schema); err != nil {
		return nil, err
	}
	return &Store{db}, nil
}

// DB is the database that holds the events, for readers that want several
// answers from one snapshot.
func (s *Store) DB() *sqldb.DB { return s.db }

// Insert stores e with its NID and Pos. A repeated transaction or event is
// sqldb.ErrExists.
func (s *Store) Insert(tx *sqldb.Tx, e *Event) error {
	_, err := tx.Exec(qInsert, e.NID, int64(e.Pos), string(e.ID), string(e.Room), string(e.Version), e.Type, e.StateKey,
		string(e.Sender), e.TS, e.Depth, e.Flags, e.Replaces, string(e.Redacts), e.RedactedBy, e.RelType, string(e.RelTo), e.Txn, string(e.JSON))
	return err
}

// Lower reserves n negative row numbers and returns the smallest of them; later
// history takes the larger (nearer) ones first by counting down from first+n-1.
func (s *Store) Lower(tx *sqldb.Tx, n int) (int64, error) {
	var nid int64
	err := tx.QueryRow(qLower, n).Scan(&nid)
	return nid, err
}

// Promote gives a stored outlier its place in the timeline.
func (s *Store) Promote(tx *sqldb.Tx, e *Event) error {
	_, err := tx.Exec(qPromote, e.NID, int64(e.Pos), e.Flags, e.Replaces)
	return err
}

// StoreRedacted replaces the stored JSON of target by its redacted form.
func (s *Store) StoreRedacted(tx *sqldb.Tx, redacted *Event) error {
	_, err := tx.Exec(qRedact, redacted.NID, string(redacted.JSON), redacted.RedactedBy)
	return err
}

// RedactionOf finds a redaction that arrived before its target.
func (s *Store) RedactionOf(tx *sqldb.Tx, id matrix.EventID) (*Event, error) {
	return one(tx, qRedactionOf, string(id))
}

// ByTxn finds the event that a client's transaction made, "" if none.
func (s *Store) ByTxn(tx *sqldb.Tx, room matrix.RoomID, sender matrix.UserID, txn string) (matrix.EventID, error) {
	var id matrix.EventID
	err := tx.QueryRow(qByTxn, string(room), string(sender), txn).Scan(&id)
	if errors.Is(err, sqldb.ErrNoRows) {
		return "", nil
	}
	return id, err
}

// ByID reads an event with what its client form needs; nil if it is not known.
func (s *Store) ByID(ctx context.Context, id matrix.EventID) (e *Event, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		if e, err = s.Get(tx, id); err != nil || e == nil {
			return err
		}
		return s.Complete(tx, []*Event{e})
	})
	if err != nil {
		return nil, fmt.Errorf("reading event: %w", err)
	}
	return e, nil
}

// Get reads an event; nil if it is not known.
func (s *Store) Get(tx *sqldb.Tx, id matrix.EventID) (*Event, error) {
	return one(tx, qByID, string(id))
}

func one(tx *sqldb.Tx, q string, args ...any) (*Event, error) {
	list, err := sqldb.Select(tx, scan, q, args...)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return list[0], nil
}

// GetMany reads events by ID, those that are known.
func (s *Store) GetMany(tx *sqldb.Tx, ids []matrix.EventID) (map[matrix.EventID]*Event, error) {
	out := make(map[matrix.EventID]*Event, len(ids))
	for len(ids) > 0 {
		n := min(len(ids), 500)
		list, err := sqldb.Select(tx, scan, qByIDs, plain(ids[:n]))
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			out[e.ID] = e
		}
		ids = ids[n:]
	}
	return out, nil
}

// ByNID reads events by row number.
func (s *Store) ByNID(tx *sqldb.Tx, nids []int64) (map[int64]*Event, error) {
	out := make(map[int64]*Event, len(nids))
	for len(nids) > 0 {
		n := min(len(nids), 500)
		list, err := sqldb.Select(tx, scan, qByNIDs, nids[:n])
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			out[e.NID] = e
		}
		nids = nids[n:]
	}
	return out, nil
}

// Timeline reads events of a room with from < Pos <= to: the oldest first when
// forward, the newest first otherwise; at most limit. Hidden ones are left in,
// so that a page of limit rows that are all hidden is not taken for the end.
func (s *Store) Timeline(tx *sqldb.Tx, room matrix.RoomID, from, to stream.Pos, limit int, forward bool) ([]*Event, error) {
	q := qBackward
	if forward {
		q = qForward
	}
	return sqldb.Select(tx, scan, q, string(room), int64(from), int64(to), limit)
}

// Complete loads what the client form of these events needs: the state event
// that each replaced and the redaction of each redacted one.
func (s *Store) Complete(tx *sqldb.Tx, list []*Event) error {
	var nids []int64
	for _, e := range list {
		if e.Replaces != 0 && e.Replaced == nil {
			nids = append(nids, e.Replaces)
		}
		if e.RedactedBy != 0 && e.Redaction == nil {
			nids = append(nids, e.RedactedBy)
		}
	}
	if len(nids) == 0 {
		return nil
	}
	more, err := s.ByNID(tx, nids)
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.Replaced == nil {
			e.Replaced = more[e.Replaces]
		}
		if e.Redaction == nil && e.RedactedBy != 0 {
			e.Redaction = more[e.RedactedBy]
		}
	}
	return nil
}

// EventPos gives the place of an event in its room's timeline.
func (s *Store) EventPos(_ context.Context, tx *sqldb.Tx, room matrix.RoomID, id matrix.EventID) (stream.Pos, bool, error) {
	var pos int64
	err := tx.QueryRow(qPos, string(id), string(room)).Scan(&pos)
	if errors.Is(err, sqldb.ErrNoRows) {
		return 0, false, nil
	}
	return stream.Pos(pos), err == nil, err
}

// Annotated finds a user's annotation of an event with this type and key, "" if
// there is none.
func (s *Store) Annotated(tx *sqldb.Tx, id matrix.EventID, sender matrix.UserID, typ, key string) (matrix.EventID, error) {
	rows, err := tx.Query(qAnnotated, string(id), string(sender), typ)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	for rows.Next() {
		var found matrix.EventID
		var pdu []byte
		if err := rows.Scan(&found, &pdu); err != nil {
			return "", err
		}
		if gjson.GetBytes(pdu, `content.m\.relates_to.key`).Str == key {
			return found, nil
		}
	}
	return "", rows.Err()
}

// Nearest finds the event closest to ts (ms) at or after it, or at or before it.
func (s *Store) Nearest(tx *sqldb.Tx, room matrix.RoomID, ts int64, forward bool) (*Event, error) {
	if forward {
		return one(tx, qNearest, string(room), ts)
	}
	return one(tx, qNearestBack, string(room), ts)
}

// Heads gives the newest position of every room.
func (s *Store) Heads(tx *sqldb.Tx) (map[matrix.RoomID]stream.Pos, error) {
	rows, err := tx.Query(qHeads)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[matrix.RoomID]stream.Pos{}
	for rows.Next() {
		var room matrix.RoomID
		var pos int64
		if err := rows.Scan(&room, &pos); err != nil {
			return nil, err
		}
		out[room] = stream.Pos(pos)
	}
	return out, rows.Err()
}

// Columns is the list that Scan reads, for queries of other packages that join
// the events table.
const Columns = columns

// Scan reads one row of Columns.
func Scan(r *sqldb.Rows) (*Event, error) { return scan(r) }

func scan(r *sqldb.Rows) (*Event, error) {
	e := &Event{}
	var key *string
	var pos int64
	err := r.Scan(&e.NID, &pos, &e.ID, &e.Room, &e.Version, &e.Type, &key, &e.Sender, &e.TS, &e.Depth, &e.Flags,
		&e.Replaces, &e.Redacts, &e.RedactedBy, &e.RelType, &e.RelTo, &e.Txn, &e.JSON)
	if err != nil {
		return nil, err
	}
	e.Pos = stream.Pos(pos)
	e.StateKey = key
	e.Sticky = stickiness(e.JSON)
	if e.Type == "m.room.member" {
		e.Membership = e.ContentString("membership")
	}
	return e, nil
}
