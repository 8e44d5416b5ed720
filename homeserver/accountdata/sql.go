package accountdata

const (
	qPut = `INSERT INTO account_data (user_id, room_id, type, content, pos) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (user_id, room_id, type) DO UPDATE SET content = excluded.content, pos = excluded.pos`
	qGet = `SELECT content FROM account_data WHERE user_id = $1 AND room_id = $2 AND type = $3`
	qAll = `SELECT room_id, type, content, pos FROM account_data WHERE user_id = $1`
	qIn  = `SELECT room_id, type, content, pos FROM account_data WHERE user_id = $1 AND room_id = $2`
	// qSince has no upper bound by row: a later value replaces the row, and then the later range delivers it.
	qSince    = `SELECT room_id, type, content, pos FROM account_data WHERE user_id = $1 AND pos > $2 AND pos <= $3 ORDER BY pos`
	qKept     = `SELECT user_id, type, content FROM account_data WHERE type IN ('m.ignored_user_list', 'm.invite_permission_config', 'org.matrix.msc4155.invite_permission_config') AND room_id = ''`
	qDelete   = `DELETE FROM account_data WHERE user_id = $1`
	qForget   = `DELETE FROM account_data WHERE user_id = $1 AND room_id = $2`
	qFilter   = `SELECT definition FROM filters WHERE user_id = $1 AND filter_id = $2`
	qSame     = `SELECT filter_id FROM filters WHERE user_id = $1 AND hash = $2`
	qNext     = `SELECT COALESCE(MAX(filter_id), 0) + 1 FROM filters WHERE user_id = $1`
	qDefine   = `INSERT INTO filters (user_id, filter_id, hash, definition) VALUES ($1, $2, $3, $4)`
	qUndefine = `DELETE FROM filters WHERE user_id = $1`
)
