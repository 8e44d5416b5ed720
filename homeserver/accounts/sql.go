package accounts

const (
	qUsers = `SELECT user_id, created_at, appservice, admin, guest, locked, suspended, deactivated, erased,
 password_hash <> '' FROM users`
	qInsertUser = `INSERT INTO users (user_id, created_at, password_hash, appservice, admin, guest)
 VALUES ($1, $2, $3, $4, $5, $6)`
	qPassword     = `SELECT password_hash FROM users WHERE user_id = $1`
	qSetPassword  = `UPDATE users SET password_hash = $2 WHERE user_id = $1 AND NOT deactivated`
	qSwapPassword = `UPDATE users SET password_hash = $3 WHERE user_id = $1 AND password_hash = $2 AND NOT deactivated`
	qSetFlags     = `UPDATE users SET admin = $2, locked = $3, suspended = $4 WHERE user_id = $1`
	qDeactivate   = `UPDATE users SET deactivated = TRUE, erased = erased OR $2, password_hash = '' WHERE user_id = $1`

	qInsertAccess = `INSERT INTO access_tokens (token_hash, user_id, device_id, created_at, expires_at, refresh_id, replaces, client)
 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`
	qAccess        = `SELECT id, user_id, device_id, expires_at, refresh_id, replaces FROM access_tokens WHERE token_hash = $1`
	qDeleteAccess  = `DELETE FROM access_tokens WHERE id = $1`
	qDeviceAccess  = `DELETE FROM access_tokens WHERE user_id = $1 AND device_id = ANY($2)`
	qUserAccess    = `DELETE FROM access_tokens WHERE user_id = $1`
	qExpiredAccess = `DELETE FROM access_tokens WHERE expires_at <> 0 AND expires_at < $1`

	qInsertRefresh = `INSERT INTO refresh_tokens (token_hash, user_id, device_id, created_at, replaces, client, scope, family)
 VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id`
	qRefresh       = `SELECT id, user_id, device_id, replaces, client, scope FROM refresh_tokens WHERE token_hash = $1`
	qDeviceRefresh = `DELETE FROM refresh_tokens WHERE user_id = $1 AND device_id = ANY($2)`
	qUserRefresh   = `DELETE FROM refresh_tokens WHERE user_id = $1`

	// Sessions of OAuth clients.
	qFamily       = `SELECT user_id, device_id FROM refresh_tokens WHERE family = $1 AND family <> '' LIMIT 1`
	qAccessClient = `SELECT client FROM access_tokens WHERE id = $1`
	qAccessGrant  = `SELECT user_id, device_id, client FROM access_tokens WHERE token_hash = $1 AND client <> ''`
	qUserClients  = `SELECT device_id, client FROM refresh_tokens WHERE user_id = $1 AND client <> ''`
	qUsedClients  = `SELECT DISTINCT client FROM refresh_tokens WHERE client = ANY($1) AND client <> ''`

	// The first use of a pair ends the pair it replaces and its unused twins.
	qEndOldAccess   = `DELETE FROM access_tokens WHERE refresh_id = $1 AND refresh_id <> 0`
	qEndTwinAccess  = `DELETE FROM access_tokens WHERE replaces = $1 AND replaces <> 0 AND refresh_id <> $2`
	qEndOldRefresh  = `DELETE FROM refresh_tokens WHERE id = $1`
	qEndTwinRefresh = `DELETE FROM refresh_tokens WHERE replaces = $1 AND replaces <> 0 AND id <> $2`
	qSettleAccess   = `UPDATE access_tokens SET replaces = 0 WHERE refresh_id = $1 AND refresh_id <> 0`
	qSettleRefresh  = `UPDATE refresh_tokens SET replaces = 0 WHERE id = $1`

	qInsertLogin  = `INSERT INTO login_tokens (token_hash, user_id, expires_at) VALUES ($1, $2, $3)`
	qTakeLogin    = `DELETE FROM login_tokens WHERE token_hash = $1 RETURNING user_id, expires_at`
	qUserLogin    = `DELETE FROM login_tokens WHERE user_id = $1`
	qExpiredLogin = `DELETE FROM login_tokens WHERE expires_at < $1`

	qInsertRegToken = `INSERT INTO registration_tokens (token, uses_allowed, expires_at, created_at) VALUES ($1, $2, $3, $4)`
	qRegTokens      = `SELECT r.token, r.uses_allowed, r.completed, r.expires_at,
 (SELECT COUNT(*) FROM uia_sessions u WHERE u.registration_token = r.token) FROM registration_tokens r ORDER BY r.created_at, r.token`
	qRegToken = `SELECT r.token, r.uses_allowed, r.completed, r.expires_at,
 (SELECT COUNT(*) FROM uia_sessions u WHERE u.registration_token = r.token AND u.id <> $2) FROM registration_tokens r WHERE r.token = $1`
	qSetRegToken    = `UPDATE registration_tokens SET uses_allowed = $2, expires_at = $3 WHERE token = $1`
	qDeleteRegToken = `DELETE FROM registration_tokens WHERE token = $1`
	qUseRegToken    = `UPDATE registration_tokens SET completed = completed + 1
 WHERE token = $1 AND (uses_allowed < 0 OR completed < uses_allowed)`

	qInsertUIA = `INSERT INTO uia_sessions (id, user_id, operation, completed, flows, evidence, registration_token, created_at)
 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`
	qUIA       = `SELECT user_id, operation, completed, flows, evidence, created_at FROM uia_sessions WHERE id = $1`
	qSetUIA    = `UPDATE uia_sessions SET user_id = $2, completed = $3, evidence = $4, registration_token = $5 WHERE id = $1`
	qUserUIA   = `DELETE FROM uia_sessions WHERE user_id = $1`
	qDeleteUIA = `DELETE FROM uia_sessions WHERE id = $1`
	qAccept    = `INSERT INTO accepted_policies (user_id, policy, version, accepted_at) VALUES ($1, $2, $3, $4)`

	qInsertDeactivation = `INSERT INTO deactivations (user_id, erase, created_at) VALUES ($1, $2, $3)
 ON CONFLICT (user_id) DO UPDATE SET erase = deactivations.erase OR excluded.erase`
	qDeactivations   = `SELECT user_id, erase FROM deactivations WHERE user_id > $1 ORDER BY user_id LIMIT $2`
	qEndDeactivation = `DELETE FROM deactivations WHERE user_id = $1 AND erase = $2`

	qOldUIA = `DELETE FROM uia_sessions WHERE created_at < $1`
)
