package ding

import (
	"encoding/json"
	"fmt"

	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

const (
	dingColumns = `id, uuid, sender, sender_user, kind, body, receivers, state, reason, created_at, fire_at, fired_at, expires_at,
		ended_at, skipped, already_read, card_event, card_room, card_rev, card_shown, card_done, origin, held`
	deliveryColumns = `person, user_id, units, state, reason, room_id, event_id, record_id, sent_at, confirmed_at, via, late, site, told`

	qInsertDing = `INSERT INTO as_dings (` + dingColumns + `)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, '', '', 0, '', FALSE, $17, $18)`
	qDing    = `SELECT ` + dingColumns + ` FROM as_dings WHERE id = $1`
	qStateOf = `SELECT state FROM as_dings WHERE id = $1 AND origin = ''`
	qByUUID  = `SELECT id FROM as_dings WHERE sender = $1 AND uuid = $2`
	qByCard  = `SELECT id FROM as_dings WHERE card_event = $1`
	qBusy    = `SELECT id FROM as_dings WHERE NOT card_done OR state = 'recalled' AND ended_at > $1 ORDER BY id`
	qQuota   = `SELECT COUNT(*), COALESCE(MIN(created_at), 0) FROM as_dings WHERE sender = $1 AND created_at > $2 AND kind <> 'emergency'`
	qNewest  = `SELECT id FROM as_dings WHERE sender = $1 AND created_at > $2 AND origin = '' AND state IN ('scheduled', 'open', 'confirmed', 'expired') ORDER BY id DESC LIMIT 1`
	qFired   = `UPDATE as_dings SET state = 'open', fired_at = $2, skipped = $3, already_read = $4, expires_at = $5 WHERE id = $1 AND state = 'scheduled'`
	qEnd     = `UPDATE as_dings SET state = $2, reason = $3, ended_at = $4, card_done = FALSE WHERE id = $1 AND state = $5`
	qCard    = `UPDATE as_dings SET card_event = $2, card_room = $3 WHERE id = $1`
	qShown   = `UPDATE as_dings SET card_rev = $2, card_shown = $3, card_done = $4 WHERE id = $1`
	qReshow  = `UPDATE as_dings SET card_done = FALSE WHERE id = $1 AND card_done`
	qJournal = `INSERT INTO as_ding_journal (ding_id, at, actor, action, detail) VALUES ($1, $2, $3, $4, $5)`
	qHistory = `SELECT at, actor, action, detail FROM as_ding_journal WHERE ding_id = $1 ORDER BY id LIMIT 1000`

	qInsertDelivery = `INSERT INTO as_ding_deliveries (ding_id, idx, person, user_id, units, state, reason, room_id, event_id,
		record_id, sent_at, confirmed_at, via, late, site, told) VALUES ($1, $2, $3, $4, $5, $6, '', '', '', '', 0, 0, '', FALSE, $7, $8)`
	qDeliveries = `SELECT ` + deliveryColumns + ` FROM as_ding_deliveries WHERE ding_id = $1 ORDER BY idx`
	qWentOut    = `UPDATE as_ding_deliveries SET state = CASE WHEN state = 'queued' THEN 'sent' ELSE state END,
		room_id = $3, event_id = $4, record_id = $5, sent_at = CASE WHEN sent_at = 0 THEN $6 ELSE sent_at END, told = $7
		WHERE ding_id = $1 AND idx = $2`
	qNotSent = `UPDATE as_ding_deliveries SET state = $3, reason = $4, told = $5 WHERE ding_id = $1 AND idx = $2 AND state = 'queued'`
	qConfirm = `UPDATE as_ding_deliveries SET confirmed_at = $3, via = $4, late = $5, state = CASE WHEN $5 THEN state ELSE 'confirmed' END, told = $6
		WHERE ding_id = $1 AND idx = $2 AND confirmed_at = 0`
	qRecallQueued = `UPDATE as_ding_deliveries SET state = 'recalled', told = $2 WHERE ding_id = $1 AND state IN ('queued', 'sent')`
	qByEvent      = `SELECT ding_id FROM as_ding_deliveries WHERE event_id = $1 AND person = $2`

	qSentList = `SELECT ` + dingColumns + ` FROM as_dings WHERE sender = $1 AND id < $2 AND origin = '' ORDER BY id DESC LIMIT $3`
	qReceived = `SELECT d.id FROM as_ding_deliveries t JOIN as_dings d ON d.id = t.ding_id
		WHERE t.person = $1 AND t.ding_id < $2 AND t.sent_at > 0 ORDER BY t.ding_id DESC LIMIT $3`
	qUnconfirmed = `SELECT d.id FROM as_ding_deliveries t JOIN as_dings d ON d.id = t.ding_id
		WHERE t.person = $1 AND t.ding_id < $2 AND t.confirmed_at = 0 AND d.state = 'open' ORDER BY t.ding_id DESC LIMIT $3`
	qCounts = `SELECT ding_id, state, COUNT(*), SUM(CASE WHEN late THEN 1 ELSE 0 END), SUM(CASE WHEN sent_at > 0 THEN 1 ELSE 0 END)
		FROM as_ding_deliveries WHERE ding_id = ANY($1) GROUP BY ding_id, state`
	qMany = `SELECT ` + dingColumns + ` FROM as_dings WHERE id = ANY($1) ORDER BY id DESC`
	qMine = `SELECT ding_id, ` + deliveryColumns + ` FROM as_ding_deliveries WHERE person = $1 AND ding_id = ANY($2)`
)

type scanner interface{ Scan(dest ...any) error }

func scanDing(r scanner) (g Ding, err error) {
	var receivers, skipped string
	err = r.Scan(&g.ID, &g.UUID, &g.Sender, &g.SenderUser, &g.Kind, &g.Body, &receivers, &g.State, &g.Reason, &g.CreatedAt, &g.FireAt,
		&g.FiredAt, &g.ExpiresAt, &g.EndedAt, &skipped, &g.AlreadyRead, &g.cardEvent, &g.cardRoom, &g.cardRev, &g.cardShown, &g.cardDone, &g.Origin, &g.held)
	if err != nil {
		return g, err
	}
	if err := json.Unmarshal([]byte(receivers), &g.Receivers); err != nil {
		return g, fmt.Errorf("receivers of DING %s: %w", g.ID, err)
	}
	if err := json.Unmarshal([]byte(skipped), &g.Skipped); err != nil {
		return g, fmt.Errorf("skipped of DING %s: %w", g.ID, err)
	}
	return g, nil
}

func scanDings(r *sqldb.Rows) (Ding, error) { return scanDing(r) }

func scanDelivery(r scanner, before ...any) (t Delivery, err error) {
	var units string
	err = r.Scan(append(before, &t.Person, &t.User, &units, &t.State, &t.Reason, &t.Room, &t.Event, &t.Record, &t.SentAt, &t.ConfirmedAt,
		&t.Via, &t.Late, &t.Site, &t.told)...)
	if err != nil {
		return t, err
	}
	if err := json.Unmarshal([]byte(units), &t.Units); err != nil {
		return t, fmt.Errorf("units of a delivery: %w", err)
	}
	return t, nil
}

func scanString(r *sqldb.Rows) (s string, err error) {
	err = r.Scan(&s)
	return s, err
}

// readLive reads a DING with its deliveries; ErrNoRows if there is none.
func readLive(tx *sqldb.Tx, id string) (*live, error) {
	g, err := scanDing(tx.QueryRow(qDing, id))
	if err != nil {
		return nil, err
	}
	l := &live{Ding: g}
	l.to, err = sqldb.Select(tx, func(r *sqldb.Rows) (Delivery, error) { return scanDelivery(r) }, qDeliveries, id)
	return l, err
}

func insertDing(tx *sqldb.Tx, g *Ding) error {
	_, err := tx.Exec(qInsertDing, g.ID, g.UUID, g.Sender, g.SenderUser, g.Kind, g.Body, mustJSON(g.Receivers), string(g.State), g.Reason,
		g.CreatedAt, g.FireAt, g.FiredAt, g.ExpiresAt, g.EndedAt, mustJSON(nonNil(g.Skipped)), int64(g.AlreadyRead), g.Origin, g.held)
	return err
}

func nonNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func journal(tx *sqldb.Tx, ding string, at int64, actor, action, detail string) error {
	_, err := tx.Exec(qJournal, ding, at, actor, action, detail)
	return err
}
