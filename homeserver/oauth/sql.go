package oauth

const (
	qClient       = `SELECT metadata, used, checked_at FROM oauth_clients WHERE client_id = $1`
	qClients      = `SELECT client_id, metadata FROM oauth_clients WHERE client_id = ANY($1)`
	qInsertClient = `INSERT INTO oauth_clients (client_id, metadata, checked_at) VALUES ($1, $2, $3)
 ON CONFLICT (client_id) DO UPDATE SET checked_at = excluded.checked_at`
	qUseClient     = `UPDATE oauth_clients SET used = TRUE, checked_at = $2 WHERE client_id = $1`
	qUnusedClients = `SELECT COUNT(*) FROM oauth_clients WHERE NOT used AND checked_at > 0`
	qDropUnused    = `DELETE FROM oauth_clients WHERE NOT used AND checked_at < $1`
	qOldClients    = `SELECT client_id FROM oauth_clients WHERE used AND checked_at < $1 ORDER BY checked_at LIMIT 200`
	qKeepClients   = `UPDATE oauth_clients SET checked_at = $2 WHERE client_id = ANY($1)`
	qDropClients   = `DELETE FROM oauth_clients WHERE client_id = ANY($1) AND used AND checked_at < $2`

	qInsertCode = `INSERT INTO oauth_codes (code_hash, client_id, redirect_uri, user_id, device_id, scope, challenge, nonce, auth_at, expires_at)
 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`
	qCode = `SELECT client_id, redirect_uri, user_id, device_id, scope, challenge, nonce, auth_at, expires_at, used
 FROM oauth_codes WHERE code_hash = $1`
	qTakeCode  = `UPDATE oauth_codes SET used = TRUE WHERE code_hash = $1 AND NOT used`
	qUserCodes = `DELETE FROM oauth_codes WHERE user_id = $1`
	qOldCodes  = `DELETE FROM oauth_codes WHERE expires_at < $1`

	qInsertDevice = `INSERT INTO oauth_device_codes (code_hash, user_code, client_id, device_id, scope, expires_at)
 VALUES ($1, $2, $3, $4, $5, $6)`
	qCountDevices  = `SELECT COUNT(*) FROM oauth_device_codes WHERE expires_at > 0`
	qDevice        = `SELECT client_id, device_id, scope, expires_at, state, user_id, auth_at FROM oauth_device_codes WHERE code_hash = $1`
	qDeviceByCode  = `SELECT client_id, device_id, scope, expires_at, state, user_id, auth_at FROM oauth_device_codes WHERE user_code = $1`
	qDecideDevice  = `UPDATE oauth_device_codes SET state = $2, user_id = $3, auth_at = $4 WHERE user_code = $1 AND state = 'pending' AND expires_at > $5`
	qTakeDevice    = `UPDATE oauth_device_codes SET state = 'used' WHERE code_hash = $1 AND state = 'approved'`
	qUserDevices   = `DELETE FROM oauth_device_codes WHERE user_id = $1 AND user_id <> ''`
	qOldDevices    = `DELETE FROM oauth_device_codes WHERE expires_at < $1`
	qInsertBrowser = `INSERT INTO oauth_browsers (token_hash, user_id, auth_at, expires_at) VALUES ($1, $2, $3, $4)`
	qBrowser       = `SELECT user_id, auth_at, expires_at FROM oauth_browsers WHERE token_hash = $1`
	qDropBrowser   = `DELETE FROM oauth_browsers WHERE token_hash = $1`
	qUserBrowsers  = `DELETE FROM oauth_browsers WHERE user_id = $1`
	qOldBrowsers   = `DELETE FROM oauth_browsers WHERE expires_at < $1`

	qAllowReset = `INSERT INTO oauth_resets (user_id, expires_at) VALUES ($1, $2)
 ON CONFLICT (user_id) DO UPDATE SET expires_at = excluded.expires_at`
	qTakeReset = `DELETE FROM oauth_resets WHERE user_id = $1 RETURNING expires_at`
	qUserReset = `DELETE FROM oauth_resets WHERE user_id = $1`
	qOldResets = `DELETE FROM oauth_resets WHERE expires_at < $1`

	qKey       = `SELECT id, private_key FROM oauth_keys WHERE slot = 1`
	qInsertKey = `INSERT INTO oauth_keys (slot, id, private_key, created_at) VALUES (1, $1, $2, $3)`
)
