package moderation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	qCarried  = `SELECT pos FROM upgrades_carried WHERE id = 1`
	qSetCarry = `INSERT INTO upgrades_carried (id, pos) VALUES (1, $1) ON CONFLICT (id) DO UPDATE SET pos = excluded.pos`
	// Row numbers of what happened here are positions of the log.
	qMissed = `SELECT ` + events.Columns + ` FROM events WHERE nid > $1 AND nid <= $2 AND flags & 15 = 0 AND state_key IS NOT NULL
		AND type IN ('m.room.member', 'm.room.tombstone') ORDER BY nid`

	missedAtOnce = 5000 // positions
	storeEvery   = 10 * time.Second
	pauseAfter   = 2 * time.Second // a failure
)

// move is something after which settings may have to be carried: a user has
// joined the room, or, without a user, the room has been tombstoned. There is at
// most one for each membership, which bounds those that are due.
type move struct {
	room matrix.RoomID
	user matrix.UserID
}

// moveOf is what an event means for the settings of local users.
func (m *Moderation) moveOf(e *events.Event) (move, bool) {
	if e.StateKey == nil || e.Hidden() || e.Pos <= 0 {
		return move{}, false
	}
	switch e.Type {
	case "m.room.tombstone":
		return move{room: e.Room}, *e.StateKey == ""
	case "m.room.member":
		user := matrix.UserID(*e.StateKey)
		again := e.Replaced != nil && e.Replaced.Membership == "join"
		return move{e.Room, user}, e.Membership == "join" && !again && user.Server() == m.Rooms.Server()
	}
	return move{}, false
}

// hear is told of every commit, on the log's goroutine.
func (m *Moderation) hear(changes []stream.Change) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range changes {
		m.heard = max(m.heard, changes[i].Pos)
		if e, ok := changes[i].Payload.(*events.Event); ok {
			m.add(e)
		}
	}
}

// add takes note of an event; mu is held.
func (m *Moderation) add(e *events.Event) {
	mv, ok := m.moveOf(e)
	if !ok {
		return
	}
	m.due[mv] = struct{}{}
	m.ring()
}

func (m *Moderation) ring() {
	select {
	case m.bell <- struct{}{}:
	default:
	}
}

func (m *Moderation) loadCarried(ctx context.Context) error {
	return m.DB.Write(ctx, func(tx *sqldb.Tx) error {
		var pos int64
		err := tx.QueryRow(qCarried).Scan(&pos)
		if errors.Is(err, sqldb.ErrNoRows) {
			pos = int64(m.heard)
			_, err = tx.Exec(qSetCarry, pos)
		}
		m.carried = stream.Pos(pos)
		return err
	})
}

// catchUp takes note of what happened since the place that was stored last.
func (m *Moderation) catchUp(ctx context.Context, to stream.Pos) error {
	for from := m.carried; from < to; from += missedAtOnce {
		var list []*events.Event
		err := m.DB.Read(ctx, func(tx *sqldb.Tx) (err error) {
			if list, err = sqldb.Select(tx, events.Scan, qMissed, int64(from), int64(min(from+missedAtOnce, to))); err != nil {
				return err
			}
			return m.Events.Complete(tx, list)
		})
		if err != nil {
			return err
		}
		m.mu.Lock()
		for _, e := range list {
			m.add(e)
		}
		m.mu.Unlock()
	}
	return nil
}

// Run carries settings to the rooms that replace others, until ctx ends.
func (m *Moderation) Run(ctx context.Context) error {
	m.mu.Lock()
	head := m.heard
	m.mu.Unlock()
	for ctx.Err() == nil {
		err := m.catchUp(ctx, head)
		if err == nil {
			break
		}
		m.pause(ctx, err)
	}
	tick := time.NewTicker(storeEvery)
	defer tick.Stop()
	for {
		select {
		case <-m.bell:
			if err := m.work(ctx); err != nil {
				m.pause(ctx, err)
			}
		case <-tick.C:
			m.save(ctx)
		case <-ctx.Done():
			m.save(context.WithoutCancel(ctx))
			return nil
		}
	}
}

func (m *Moderation) pause(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	log.WithError(err).Warn("settings were not carried to a replaced room; trying again")
	select {
	case <-time.After(pauseAfter):
	case <-ctx.Done():
	}
}

// work does what is due.
func (m *Moderation) work(ctx context.Context) error {
	m.mu.Lock()
	due := m.due
	m.due = map[move]struct{}{}
	m.mu.Unlock()
	for mv := range due {
		err := m.settle(ctx, mv)
		if err == nil {
			delete(due, mv)
			continue
		}
		m.mu.Lock()
		for left := range due {
			m.due[left] = struct{}{}
		}
		m.ring()
		m.mu.Unlock()
		return err
	}
	m.unsaved = true
	return nil
}

// save stores how far settings are carried, if that has changed and nothing is due.
func (m *Moderation) save(ctx context.Context) {
	m.mu.Lock()
	pos, busy := m.heard, len(m.due) > 0
	m.mu.Unlock()
	if busy || !m.unsaved {
		return
	}
	err := m.DB.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qSetCarry, int64(pos))
		return err
	})
	if err != nil {
		log.WithError(err).Warn("how far upgrades are carried was not stored")
		return
	}
	m.unsaved = false
}

// settle carries what a move calls for.
func (m *Moderation) settle(ctx context.Context, mv move) error {
	if mv.user != "" {
		from, err := m.reference(ctx, mv.room, "m.room.create", "predecessor.room_id")
		if err != nil || from == "" {
			return err
		}
		return m.carry(ctx, from, mv.room, mv.user)
	}
	to, err := m.reference(ctx, mv.room, "m.room.tombstone", "replacement_room")
	if err != nil || to == "" {
		return err
	}
	return m.carry(ctx, mv.room, to, m.Hub.LocalMembers(to)...)
}

// reference reads the room that a state event of a room names; "" for none.
func (m *Moderation) reference(ctx context.Context, room matrix.RoomID, typ, path string) (matrix.RoomID, error) {
	e, err := m.Rooms.State(ctx, room, typ, "")
	if matrix.IsCode(err, "M_NOT_FOUND") || err == nil && e == nil {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	id, err := matrix.ParseRoomID(e.ContentString(path))
	if err != nil || id == room {
		return "", nil //nolint:nilerr // what cannot be read names no room
	}
	return id, nil
}

// carry gives users their settings of a room for the one that replaces it, if
// each of the two names the other.
//
// Spec: client-server-api#room-upgrades
func (m *Moderation) carry(ctx context.Context, from, to matrix.RoomID, users ...matrix.UserID) error {
	if len(users) == 0 {
		return nil
	}
	if r, err := m.reference(ctx, from, "m.room.tombstone", "replacement_room"); err != nil || r != to {
		return err
	}
	if r, err := m.reference(ctx, to, "m.room.create", "predecessor.room_id"); err != nil || r != from {
		return err
	}
	for _, user := range users {
		err := m.Push.CopyRoomRules(ctx, user, from, to)
		if err == nil {
			err = m.carryTags(ctx, user, from, to)
		}
		if err == nil {
			err = m.carryDirect(ctx, user, from, to)
		}
		var me *matrix.Error
		if errors.As(err, &me) { // such as too many rules
			log.WithError(err).WithField("user_id", user).WithField("room_id", to).Info("settings were not carried to a replaced room")
		} else if err != nil {
			return fmt.Errorf("settings of %s: %w", user, err)
		}
	}
	return nil
}

func (m *Moderation) carryTags(ctx context.Context, user matrix.UserID, from, to matrix.RoomID) error {
	tags, err := m.Data.Get(ctx, user, from, accountdata.TypeTag)
	if matrix.IsCode(err, "M_NOT_FOUND") {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := m.Data.Get(ctx, user, to, accountdata.TypeTag); !matrix.IsCode(err, "M_NOT_FOUND") {
		return err // he has given the new room tags already
	}
	return m.Data.Update(ctx, user, to, accountdata.TypeTag, func(old json.RawMessage) (json.RawMessage, error) {
		if old != nil {
			return nil, nil
		}
		return tags, nil
	})
}

// carryDirect makes the new room a direct chat if the old one was.
func (m *Moderation) carryDirect(ctx context.Context, user matrix.UserID, from, to matrix.RoomID) error {
	content, err := m.Data.Get(ctx, user, "", accountdata.TypeDirect)
	if matrix.IsCode(err, "M_NOT_FOUND") || err == nil && movedDirect(content, from, to) == nil {
		return nil
	}
	if err != nil {
		return err
	}
	return m.Data.Update(ctx, user, "", accountdata.TypeDirect, func(old json.RawMessage) (json.RawMessage, error) {
		return movedDirect(old, from, to), nil
	})
}

// movedDirect is the content of m.direct with the new room beside the old one;
// nil if there is nothing to change.
func movedDirect(content json.RawMessage, from, to matrix.RoomID) json.RawMessage {
	var direct map[string]json.RawMessage
	if json.Unmarshal(content, &direct) != nil {
		return nil
	}
	changed := false
	for with, raw := range direct {
		var list []matrix.RoomID
		if json.Unmarshal(raw, &list) != nil || !slices.Contains(list, from) || slices.Contains(list, to) {
			continue
		}
		b, err := json.Marshal(append(list, to))
		if err != nil {
			return nil
		}
		direct[with], changed = b, true
	}
	if !changed {
		return nil
	}
	b, err := json.Marshal(direct)
	if err != nil {
		return nil
	}
	return b
}
