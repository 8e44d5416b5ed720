package threepids

const (
	qUserOf  = `SELECT user_id FROM threepids WHERE medium = $1 AND address = $2`
	qOfUser  = `SELECT medium, address, validated_at, added_at FROM threepids WHERE user_id = $1 ORDER BY added_at, medium, address`
	qCount   = `SELECT COUNT(*) FROM threepids WHERE user_id = $1`
	qInsert  = `INSERT INTO threepids (medium, address, user_id, validated_at, added_at) VALUES ($1, $2, $3, $4, $5)`
	qRenew   = `UPDATE threepids SET validated_at = $4 WHERE medium = $1 AND address = $2 AND user_id = $3`
	qDelete  = `DELETE FROM threepids WHERE medium = $1 AND address = $2 AND user_id = $3`
	qDropAll = `DELETE FROM threepids WHERE user_id = $1`

	qBind = `INSERT INTO threepid_binds (user_id, medium, address, id_server, bound_at) VALUES ($1, $2, $3, $4, $5)
 ON CONFLICT (user_id, medium, address, id_server) DO UPDATE SET bound_at = excluded.bound_at`
	qBinds     = `SELECT medium, address, id_server FROM threepid_binds WHERE user_id = $1 ORDER BY medium, address, id_server`
	qUnbind    = `DELETE FROM threepid_binds WHERE user_id = $1 AND medium = $2 AND address = $3 AND id_server = $4`
	qDropBinds = `DELETE FROM threepid_binds WHERE user_id = $1`

	sessionColumns = `sid, secret_hash, medium, address, purpose, user_id, send_attempt, next_link, token_hash, code_hash, dud, tries,
 expires_at, validated_at, used_by`
	qSession   = `SELECT ` + sessionColumns + ` FROM validation_sessions WHERE sid = $1`
	qSame      = `SELECT ` + sessionColumns + ` FROM validation_sessions WHERE secret_hash = $1 AND medium = $2 AND address = $3 AND purpose = $4`
	qNew       = `INSERT INTO validation_sessions (` + sessionColumns + `) VALUES ($1, $2, $3, $4, $5, $6, 0, $7, $8, $9, $10, 0, $11, 0, '')`
	qAnew      = `UPDATE validation_sessions SET next_link = $2, token_hash = $3, code_hash = $4, dud = $5, user_id = $6, tries = 0, expires_at = $7 WHERE sid = $1`
	qSent      = `UPDATE validation_sessions SET send_attempt = $2 WHERE sid = $1`
	qTried     = `UPDATE validation_sessions SET tries = tries + 1 WHERE sid = $1`
	qValidated = `UPDATE validation_sessions SET validated_at = $2, expires_at = $3 WHERE sid = $1`
	qUse       = `UPDATE validation_sessions SET used_by = $2 WHERE sid = $1 AND used_by IN ('', $2) AND validated_at > 0`
	qEnd       = `DELETE FROM validation_sessions WHERE sid = $1`
	qExpired   = `DELETE FROM validation_sessions WHERE expires_at < $1`
)
