package rooms

import (
	"context"
	"fmt"
	"maps"

	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	qErasures = `SELECT user_id, pos FROM erasures`
	qErase    = `INSERT INTO erasures (user_id, pos) VALUES ($1, $2) ON CONFLICT (user_id) DO NOTHING`
)

// erasures are the users who wanted their content erased; the map is never changed but replaced.
type erasures = map[matrix.UserID]stream.Pos

func (r *Rooms) loadErasures(ctx context.Context) error {
	list := erasures{}
	err := r.db.Read(ctx, func(tx *sqldb.Tx) error {
		rows, err := tx.Query(qErasures)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var user matrix.UserID
			var pos int64
			if err := rows.Scan(&user, &pos); err != nil {
				return err
			}
			list[user] = stream.Pos(pos)
		}
		return rows.Err()
	})
	if err != nil {
		return fmt.Errorf("reading erasures: %w", err)
	}
	r.erased.Store(&list)
	return nil
}

// Erase has those who join a room from now on see a user's messages there redacted. Those who could see them before
// still can, and no redaction is sent. State stays, as the rooms of others depend on it, but for what the user's own
// member events say beside the membership.
// Spec: post_matrixclientv3accountdeactivate
func (r *Rooms) Erase(ctx context.Context, user matrix.UserID) error {
	pos := r.log.Head()
	err := r.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qErase, string(user), int64(pos))
		return err
	})
	if err != nil {
		return fmt.Errorf("erasing a user's content: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	list := maps.Clone(*r.erased.Load())
	if _, ok := list[user]; !ok {
		list[user] = pos
	}
	r.erased.Store(&list)
	return nil
}

// erasedAt is since when an event is redacted for newcomers.
func (r *Rooms) erasedAt(e *events.Event) (stream.Pos, bool) {
	list := *r.erased.Load()
	if len(list) == 0 || e.Redacted() || e.StateKey != nil && (e.Type != spec.MRoomMember || *e.StateKey != string(e.Sender)) {
		return 0, false
	}
	pos, ok := list[e.Sender]
	return pos, ok
}

// Erased finds those of the events whose content is erased for a reader, who came too late to have seen it, and gives
// their redacted forms by their IDs; nil if there are none, which costs nothing where nobody's content is erased.
func (r *Rooms) Erased(tx *sqldb.Tx, reader matrix.UserID, list []*events.Event) (map[matrix.EventID]*events.Event, error) {
	var out map[matrix.EventID]*events.Event
	var since map[matrix.RoomID]stream.Pos // when the reader first came
	for _, e := range list {
		at, ok := r.erasedAt(e)
		if !ok || e.Sender == reader {
			continue
		}
		first, ok := since[e.Room]
		if !ok {
			var err error
			if first, err = firstJoin(tx, e.Room, reader); err != nil {
				return nil, err
			}
			if since == nil {
				since = map[matrix.RoomID]stream.Pos{}
			}
			since[e.Room] = first
		}
		if first <= at {
			continue
		}
		redacted, err := e.Redact(&events.Event{NID: e.NID})
		if err != nil {
			return nil, err
		}
		redacted.Redaction = nil // there is none
		if out == nil {
			out = map[matrix.EventID]*events.Event{}
		}
		out[e.ID] = redacted
	}
	return out, nil
}

// firstJoin is when a user first came into a room, after everything if never.
func firstJoin(tx *sqldb.Tx, room matrix.RoomID, user matrix.UserID) (stream.Pos, error) {
	rows, err := state.History(tx, room, memberKey(user))
	if err != nil {
		return 0, err
	}
	for _, row := range rows {
		if row.Membership == spec.Join {
			return row.From, nil
		}
	}
	return state.Open, nil
}

// erasedFor reports whether an event's content is erased for another server: nobody of it was in the room when its
// sender wanted that.
func (r *Rooms) erasedFor(tx *sqldb.Tx, server matrix.ServerName, e *events.Event) (bool, error) {
	at, ok := r.erasedAt(e)
	if !ok || e.Sender.Server() == server {
		return false, nil
	}
	members, err := state.TypeAt(tx, e.Room, spec.MRoomMember, at)
	if err != nil {
		return false, err
	}
	for _, m := range members {
		if m.Membership == spec.Join && matrix.UserID(m.StateKey).Server() == server {
			return false, nil
		}
	}
	return true, nil
}
