package bridge

import (
	"encoding/json"

	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

const (
	itemColumns = `id, item_key, channel, item_group, payload, state, attempts, next_at, expires_at, created_at, updated_at,
		provider_id, detail, reason`

	qInsert = `INSERT INTO as_outbox (item_key, channel, item_group, priority, payload, state, attempts, next_at, expires_at,
			created_at, updated_at, provider_id, detail, reason)
		VALUES ($1, $2, $3, $4, $5, 'queued', 0, $6, $7, $8, $8, '', '', '') ON CONFLICT (item_key) DO NOTHING`
	qDue = `SELECT ` + itemColumns + ` FROM as_outbox
		WHERE channel = $1 AND state = 'queued' AND next_at <= $2 AND id <> ALL($3)
		ORDER BY priority, next_at, id LIMIT $4`
	qNextDue = `SELECT COALESCE(MIN(next_at), 0) FROM as_outbox WHERE channel = $1 AND state = 'queued' AND id <> ALL($2)`
	qState   = `SELECT state FROM as_outbox WHERE id = $1`
	// An item that went out is sent, whatever has been wished meanwhile.
	qSent = `UPDATE as_outbox SET state = $2, attempts = attempts + 1, provider_id = $3, detail = $4, reason = '', updated_at = $5
		WHERE id = $1 AND state IN ('queued', 'recalled')`
	qRetry = `UPDATE as_outbox SET attempts = attempts + $2, next_at = $3, reason = $4, updated_at = $5
		WHERE id = $1 AND state = 'queued'`
	qEnd = `UPDATE as_outbox SET state = $2, attempts = attempts + $3, reason = $4, updated_at = $5
		WHERE id = $1 AND state = 'queued'`
	qCancelGroup = `UPDATE as_outbox SET state = 'recalled', updated_at = $2 WHERE item_group = $1 AND state = 'queued'`
	qGroup       = `SELECT ` + itemColumns + ` FROM as_outbox WHERE item_group = $1 ORDER BY id`
	qByKey       = `SELECT ` + itemColumns + ` FROM as_outbox WHERE item_key = $1`
	qReport      = `UPDATE as_outbox SET state = $3, reason = $4, updated_at = $5
		WHERE channel = $1 AND provider_id = $2 AND state = 'sent' RETURNING ` + itemColumns
	qSweep = `DELETE FROM as_outbox WHERE updated_at < $1 AND state <> 'queued'`
)

func scanItem(r *sqldb.Rows) (it Item, err error) {
	var payload, detail string
	err = r.Scan(&it.ID, &it.Key, &it.Channel, &it.Group, &payload, &it.State, &it.Attempts, &it.NextAt, &it.ExpiresAt,
		&it.CreatedAt, &it.UpdatedAt, &it.ProviderID, &detail, &it.Reason)
	it.Payload, it.Detail = json.RawMessage(payload), json.RawMessage(detail)
	return it, err
}
