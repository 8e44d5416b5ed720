// Package subscriptions keeps which threads a user follows: by an act of his, or
// because his client found him mentioned there.
//
// Table: thread_subscriptions, one row for each thread that a user has ever
// followed. Spec: MSC4306 (thread subscriptions), MSC4308 (their changes in
// sliding sync, and the pages of those that did not fit).
//
// Invariants: a row carries the position of its last change, so that a reader of
// (from, to] sees each thread once, in its newest form; a subscription that a
// client makes by itself never outlives the user's no: the event that caused it
// must be newer than the end of the last one.
package subscriptions

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"sync"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

//go:embed schema
var schema embed.FS

const (
	qGet = `SELECT subscribed, automatic, ended FROM thread_subscriptions WHERE user_id = $1 AND room_id = $2 AND root = $3`
	qPut = `INSERT INTO thread_subscriptions (user_id, room_id, root, pos, subscribed, automatic, ended) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (user_id, room_id, root) DO UPDATE SET pos = excluded.pos, subscribed = excluded.subscribed, automatic = excluded.automatic, ended = excluded.ended`
	qSince = `SELECT room_id, root, pos, subscribed, automatic FROM thread_subscriptions
WHERE user_id = $1 AND pos > $2 AND pos <= $3 AND (subscribed OR $2 > 0) ORDER BY pos DESC LIMIT $4`
	qFollowers = `SELECT root, user_id FROM thread_subscriptions WHERE root = ANY($1) AND room_id = $2 AND subscribed`
	qDelete    = `DELETE FROM thread_subscriptions WHERE user_id = $1`
)

// Entry is the state of one subscription.
type Entry struct {
	Room       matrix.RoomID
	Root       matrix.EventID
	Pos        stream.Pos // of its last change
	Subscribed bool
	Automatic  bool
}

// change is the payload of the log's change.
type change struct {
	user matrix.UserID
	Entry
}

// Subscriptions is the module.
type Subscriptions struct {
	db     *sqldb.DB
	log    *stream.Log
	places *receipts.Places

	mu      sync.RWMutex
	threads map[thread]Followers
	loading map[thread]*load
}

// New prepares the module. Call it before the log runs.
func New(ctx context.Context, db *sqldb.DB, l *stream.Log, places *receipts.Places) (*Subscriptions, error) {
	if err := db.Migrate(ctx, "subscriptions", schema); err != nil {
		return nil, err
	}
	s := &Subscriptions{db: db, log: l, places: places, threads: map[thread]Followers{}, loading: map[thread]*load{}}
	l.Subscribe(s.hear)
	return s, nil
}

// errConflict says that the user has ended the subscription after the event that
// is to cause one.
var errConflict = errors.New("the user has unsubscribed since")

// standing is what is stored of a thread.
type standing struct {
	subscribed, automatic bool
	ended                 stream.Pos // when the last subscription ended; 0: never
}

func get(tx *sqldb.Tx, user matrix.UserID, room matrix.RoomID, root matrix.EventID) (s standing, err error) {
	err = tx.QueryRow(qGet, string(user), string(room), string(root)).Scan(&s.subscribed, &s.automatic, &s.ended)
	if errors.Is(err, sqldb.ErrNoRows) {
		err = nil
	}
	return s, err
}

// update changes a subscription in one commit; edit reports false where nothing
// is to be done.
func (s *Subscriptions) update(ctx context.Context, user matrix.UserID, room matrix.RoomID, root matrix.EventID, edit func(st *standing, pos stream.Pos) (bool, error)) error {
	_, err := s.log.Append(ctx, 1, func(tx *sqldb.Tx, pos stream.Pos) ([]stream.Change, error) {
		st, err := get(tx, user, room, root)
		if err != nil {
			return nil, err
		}
		if ok, err := edit(&st, pos); !ok || err != nil {
			return nil, err
		}
		if _, err := tx.Exec(qPut, string(user), string(room), string(root), int64(pos), st.subscribed, st.automatic, int64(st.ended)); err != nil {
			return nil, err
		}
		c := &change{user, Entry{room, root, pos, st.subscribed, st.automatic}}
		return []stream.Change{{Pos: pos, Kind: stream.KindThreadSubscription, Room: room, User: user, Payload: c}}, nil
	})
	if err != nil {
		return fmt.Errorf("changing a thread subscription: %w", err)
	}
	return nil
}

// subscribe makes a subscription; cause is the position of the event that caused
// it, 0 for one that the user wants.
func (s *Subscriptions) subscribe(ctx context.Context, user matrix.UserID, room matrix.RoomID, root matrix.EventID, automatic bool, cause stream.Pos) error {
	return s.update(ctx, user, room, root, func(st *standing, _ stream.Pos) (bool, error) {
		switch {
		case st.subscribed && (automatic || !st.automatic):
			return false, nil
		case automatic && st.ended > 0 && cause <= st.ended:
			return false, errConflict
		}
		st.subscribed, st.automatic = true, automatic
		return true, nil
	})
}

func (s *Subscriptions) unsubscribe(ctx context.Context, user matrix.UserID, room matrix.RoomID, root matrix.EventID) error {
	return s.update(ctx, user, room, root, func(st *standing, pos stream.Pos) (bool, error) {
		if !st.subscribed {
			return false, nil
		}
		*st = standing{ended: pos}
		return true, nil
	})
}

// Since returns what has changed of a user's subscriptions in (from, to], the
// newest first, at most limit, and whether there is more. From the beginning it
// returns those that he has.
func (s *Subscriptions) Since(tx *sqldb.Tx, user matrix.UserID, from, to stream.Pos, limit int) (list []Entry, more bool, err error) {
	list, err = sqldb.Select(tx, func(r *sqldb.Rows) (e Entry, err error) {
		err = r.Scan(&e.Room, &e.Root, &e.Pos, &e.Subscribed, &e.Automatic)
		return e, err
	}, qSince, string(user), int64(from), int64(to), limit+1)
	if err != nil {
		return nil, false, fmt.Errorf("reading thread subscriptions: %w", err)
	}
	if more = len(list) > limit; more {
		list = list[:limit]
	}
	return list, more, nil
}

// DeleteUser drops the subscriptions of a user whose account is closed.
func (s *Subscriptions) DeleteUser(tx *sqldb.Tx, user matrix.UserID) error {
	_, err := tx.Exec(qDelete, string(user))
	return err
}
