package readlist

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

const (
	eventColumns = `event_id, pos, kind, sender, thread, ts, edited_pos, edited_ts, redacted_pos, frozen`

	qInsertRoom  = `INSERT INTO as_read_rooms (room_id, creators) VALUES ($1, '') ON CONFLICT (room_id) DO UPDATE SET room_id = excluded.room_id RETURNING room_nid`
	qRoom        = `SELECT room_nid, creators FROM as_read_rooms WHERE room_id = $1`
	qSetCreators = `UPDATE as_read_rooms SET creators = $2 WHERE room_nid = $1`
	qNext        = `SELECT COALESCE(MAX(pos), 0) + 1 FROM as_read_events WHERE room_nid = $1`
	qKnown       = `SELECT event_id FROM as_read_events WHERE event_id = ANY($1)`
	qPutEvent    = `INSERT INTO as_read_events (room_nid, pos, event_id, kind, sender, thread, ts, edited_pos, edited_ts, redacted_pos)
		VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 0, 0)`
	qChangeEvent = `UPDATE as_read_events SET edited_pos = $3, edited_ts = $4, redacted_pos = $5, frozen = $6 WHERE room_nid = $1 AND pos = $2`
	qEvents      = `SELECT ` + eventColumns + ` FROM as_read_events WHERE room_nid = $1 AND event_id = ANY($2)`
	qLastEvents  = `SELECT ` + eventColumns + ` FROM as_read_events WHERE room_nid = $1 AND pos > $2 ORDER BY pos`

	qMembers   = `SELECT idx, user_id, joined_pos, left_pos FROM as_read_members WHERE room_nid = $1 ORDER BY idx`
	qPutMember = `INSERT INTO as_read_members (room_nid, idx, user_id, joined_pos, left_pos) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (room_nid, idx) DO UPDATE SET joined_pos = excluded.joined_pos, left_pos = excluded.left_pos`
	qSpans     = `SELECT idx, joined_pos, left_pos FROM as_read_spans WHERE room_nid = $1 ORDER BY idx, joined_pos`
	qPutSpan   = `INSERT INTO as_read_spans (room_nid, idx, joined_pos, left_pos) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`
	qThreads   = `SELECT thread, root FROM as_read_threads WHERE room_nid = $1`
	qPutThread = `INSERT INTO as_read_threads (room_nid, thread, root) VALUES ($1, $2, $3)`
	qMarks     = `SELECT idx, thread, pos FROM as_read_marks WHERE room_nid = $1`
	qPutMark   = `INSERT INTO as_read_marks (room_nid, idx, thread, pos) VALUES ($1, $2, $3, $4)
		ON CONFLICT (room_nid, idx, thread) DO UPDATE SET pos = excluded.pos`
	qLastMoves = `SELECT idx, thread, pos, ts, implied FROM as_read_moves WHERE room_nid = $1 AND pos > $2 ORDER BY pos, ts`
	qPutMove   = `INSERT INTO as_read_moves (room_nid, idx, thread, pos, ts, implied) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT DO NOTHING`
	qFirstMove = `SELECT ts, implied FROM as_read_moves WHERE room_nid = $1 AND idx = $2 AND thread = $3 AND pos >= $4 ORDER BY pos LIMIT 1`
	qDropMoves = `DELETE FROM as_read_moves WHERE ts < $1`
	qParkedIDs = `SELECT DISTINCT event_id FROM as_read_parked WHERE room_nid = $1`
	qParked    = `SELECT user_id, thread, ts FROM as_read_parked WHERE room_nid = $1 AND event_id = $2 ORDER BY ts, user_id`
	qPark      = `INSERT INTO as_read_parked (room_nid, event_id, user_id, thread, ts, arrived) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT DO NOTHING`
	qUnpark     = `DELETE FROM as_read_parked WHERE room_nid = $1 AND event_id = $2`
	qDropParked = `DELETE FROM as_read_parked WHERE arrived < $1`
)

func scanEvent(rows *sqldb.Rows) (*event, error) {
	e := new(event)
	err := rows.Scan(&e.id, &e.pos, &e.kind, &e.sender, &e.thread, &e.ts, &e.editedAt, &e.editedTS, &e.redacted, &e.frozen)
	return e, err
}

// each runs a query and hands every row to fn.
func each(tx *sqldb.Tx, fn func(rows *sqldb.Rows) error, q string, args ...any) error {
	rows, err := tx.Query(q, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := fn(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// load reads a room from the tables, nil if there is none.
func (l *Lists) load(ctx context.Context, roomID string) (r *room, err error) {
	err = l.db.Read(ctx, func(tx *sqldb.Tx) error {
		var nid int64
		var creators string
		if err := tx.QueryRow(qRoom, roomID).Scan(&nid, &creators); err != nil {
			return err
		}
		r = newRoom(nid, roomID)
		if creators != "" {
			if err := json.Unmarshal([]byte(creators), &r.creators); err != nil {
				return fmt.Errorf("creators of room %d: %w", nid, err)
			}
		}
		if err := tx.QueryRow(qNext, nid).Scan(&r.next); err != nil {
			return err
		}
		lo := max(r.next-1-loadMoves, 0)
		if err := l.loadMembers(tx, r, lo); err != nil {
			return err
		}
		return loadReading(tx, r, lo)
	})
	if errors.Is(err, sqldb.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("loading read lists of a room: %w", err)
	}
	return r, nil
}

func (l *Lists) loadMembers(tx *sqldb.Tx, r *room, lo int32) error {
	err := each(tx, func(rows *sqldb.Rows) error {
		var idx int32
		var user string
		var s span
		if err := rows.Scan(&idx, &user, &s.from, &s.to); err != nil {
			return err
		}
		if got := r.add(user, s, l.bots[user], lo); got != idx {
			return fmt.Errorf("member %d of room %d stands at %d", idx, r.nid, got)
		}
		return nil
	}, qMembers, r.nid)
	if err != nil {
		return err
	}
	return each(tx, func(rows *sqldb.Rows) error {
		var idx int32
		var s span
		if err := rows.Scan(&idx, &s.from, &s.to); err != nil {
			return err
		}
		r.keepSpan(idx, s)
		return nil
	}, qSpans, r.nid)
}

func loadReading(tx *sqldb.Tx, r *room, lo int32) error {
	err := each(tx, func(rows *sqldb.Rows) error {
		var n int32
		var root string
		if err := rows.Scan(&n, &root); err != nil {
			return err
		}
		r.nameThread(root, n)
		return nil
	}, qThreads, r.nid)
	if err != nil {
		return err
	}
	err = each(tx, func(rows *sqldb.Rows) error {
		var idx, thread, pos int32
		if err := rows.Scan(&idx, &thread, &pos); err != nil {
			return err
		}
		r.setMark(idx, thread, pos)
		return nil
	}, qMarks, r.nid)
	if err != nil {
		return err
	}
	err = each(tx, func(rows *sqldb.Rows) error {
		var idx int32
		var m move
		if err := rows.Scan(&idx, &m.thread, &m.pos, &m.ts, &m.implied); err != nil {
			return err
		}
		r.keepMove(idx, m)
		return nil
	}, qLastMoves, r.nid, int64(lo))
	if err != nil {
		return err
	}
	err = each(tx, func(rows *sqldb.Rows) error {
		var event string
		if err := rows.Scan(&event); err != nil {
			return err
		}
		r.park(event)
		return nil
	}, qParkedIDs, r.nid)
	if err != nil {
		return err
	}
	return each(tx, func(rows *sqldb.Rows) error {
		e, err := scanEvent(rows)
		if err == nil {
			r.remember(e)
		}
		return err
	}, qLastEvents, r.nid, int64(max(r.next-1-recentEvents, 0)))
}

// find looks events of a room up, in memory first. Unknown ones are missing from the result, which holds copies.
func (l *Lists) find(ctx context.Context, r *room, ids ...string) (map[string]*event, error) {
	found := make(map[string]*event, len(ids))
	var missing []string
	r.mu.RLock()
	for _, id := range ids {
		if e := r.recent[id]; e != nil {
			c := *e
			found[id] = &c
		} else {
			missing = append(missing, id)
		}
	}
	r.mu.RUnlock()
	if len(missing) == 0 {
		return found, nil
	}
	err := l.db.Read(ctx, func(tx *sqldb.Tx) error {
		return each(tx, func(rows *sqldb.Rows) error {
			e, err := scanEvent(rows)
			if err == nil {
				found[e.id] = e
			}
			return err
		}, qEvents, r.nid, missing)
	})
	if err != nil {
		return nil, fmt.Errorf("finding events: %w", err)
	}
	return found, nil
}

type memberKey struct {
	r   *room
	idx int32
}

type markKey struct {
	r           *room
	idx, thread int32
}

// batch is the rows that one transaction of events or receipts changes.
type batch struct {
	touched map[*room]bool
	events  []eventRow
	byID    map[string]*event // new and changed ones
	changed map[*event]*room
	members map[memberKey]bool
	spans   []spanRow
	threads []threadRow
	marks   map[markKey]bool
	moves   []moveRow
	parked  []parkedRow
	unpark  []parkedRow
	created []*room
}

type eventRow struct {
	r *room
	e *event
}

type spanRow struct {
	memberKey
	s span
}

type threadRow struct {
	r    *room
	n    int32
	root string
}

type moveRow struct {
	memberKey
	m move
}

type parkedRow struct {
	r                   *room
	event, user, thread string
	ts, arrived         int64
}

func newBatch() *batch {
	return &batch{
		touched: map[*room]bool{}, byID: map[string]*event{}, changed: map[*event]*room{}, members: map[memberKey]bool{}, marks: map[markKey]bool{},
	}
}

// store writes the batch in one transaction. The rooms' memory holds its values, and nothing else changes them
// meanwhile, so it can be read here and again.
func (l *Lists) store(ctx context.Context, b *batch) error {
	if len(b.touched) == 0 {
		return nil
	}
	return l.db.Write(ctx, func(tx *sqldb.Tx) error {
		for _, w := range b.events {
			e := w.e
			if _, err := tx.Exec(qPutEvent, w.r.nid, int64(e.pos), e.id, int64(e.kind), e.sender, int64(e.thread), e.ts); err != nil {
				return fmt.Errorf("storing an event: %w", err)
			}
		}
		for e, r := range b.changed {
			if _, err := tx.Exec(qChangeEvent, r.nid, int64(e.pos), int64(e.editedAt), e.editedTS, int64(e.redacted), e.frozen); err != nil {
				return fmt.Errorf("storing a change: %w", err)
			}
		}
		for k := range b.members {
			s := k.r.spans[k.idx]
			if _, err := tx.Exec(qPutMember, k.r.nid, int64(k.idx), k.r.users[k.idx], int64(s.from), int64(s.to)); err != nil {
				return fmt.Errorf("storing a member: %w", err)
			}
		}
		for _, w := range b.spans {
			if _, err := tx.Exec(qPutSpan, w.r.nid, int64(w.idx), int64(w.s.from), int64(w.s.to)); err != nil {
				return fmt.Errorf("storing a membership: %w", err)
			}
		}
		for _, r := range b.created {
			creators, err := json.Marshal(r.creators)
			if err != nil {
				return err
			}
			if _, err := tx.Exec(qSetCreators, r.nid, string(creators)); err != nil {
				return fmt.Errorf("storing a room's creators: %w", err)
			}
		}
		return b.storeReading(tx)
	})
}

func (b *batch) storeReading(tx *sqldb.Tx) error {
	for _, w := range b.threads {
		if _, err := tx.Exec(qPutThread, w.r.nid, int64(w.n), w.root); err != nil {
			return fmt.Errorf("storing a thread: %w", err)
		}
	}
	for k := range b.marks {
		if _, err := tx.Exec(qPutMark, k.r.nid, int64(k.idx), int64(k.thread), int64(k.r.markOf(k.idx, k.thread))); err != nil {
			return fmt.Errorf("storing a mark: %w", err)
		}
	}
	for _, w := range b.moves {
		if _, err := tx.Exec(qPutMove, w.r.nid, int64(w.idx), int64(w.m.thread), int64(w.m.pos), w.m.ts, w.m.implied); err != nil {
			return fmt.Errorf("storing a receipt: %w", err)
		}
	}
	for _, w := range b.parked {
		if _, err := tx.Exec(qPark, w.r.nid, w.event, w.user, w.thread, w.ts, w.arrived); err != nil {
			return fmt.Errorf("parking a receipt: %w", err)
		}
	}
	for _, w := range b.unpark {
		if _, err := tx.Exec(qUnpark, w.r.nid, w.event); err != nil {
			return fmt.Errorf("releasing a parked receipt: %w", err)
		}
	}
	return nil
}
