package e2ee

const (
	qDeviceKey    = `SELECT keys FROM device_keys WHERE user_id = $1 AND device_id = $2`
	qDeviceKeys   = `SELECT user_id, device_id, keys FROM device_keys WHERE user_id = ANY($1)`
	qPutDeviceKey = `INSERT INTO device_keys (user_id, device_id, keys) VALUES ($1, $2, $3)
		ON CONFLICT (user_id, device_id) DO UPDATE SET keys = excluded.keys`
	qDropDeviceKeys = `DELETE FROM device_keys WHERE user_id = $1 AND device_id = $2`
	qDropSignatures = `DELETE FROM key_signatures WHERE target_user = $1 AND target_key = $2`

	qCrossSigning    = `SELECT user_id, usage, public_key, keys FROM cross_signing_keys WHERE user_id = ANY($1)`
	qCrossSigningOf  = `SELECT user_id, usage, public_key, keys FROM cross_signing_keys WHERE user_id = $1`
	qPutCrossSigning = `INSERT INTO cross_signing_keys (user_id, usage, public_key, keys) VALUES ($1, $2, $3, $4)
		ON CONFLICT (user_id, usage) DO UPDATE SET public_key = excluded.public_key, keys = excluded.keys`
	qDropCrossSigning  = `DELETE FROM cross_signing_keys WHERE user_id = $1`
	qDropCrossSigning1 = `DELETE FROM cross_signing_keys WHERE user_id = $1 AND usage = $2`

	qSignatures = `SELECT target_user, target_key, signer_user, signer_key, signature FROM key_signatures
		WHERE target_user = ANY($1) AND (signer_user = target_user OR signer_user = $2)`
	qPutSignature = `INSERT INTO key_signatures (target_user, target_key, signer_user, signer_key, signature) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (target_user, target_key, signer_user, signer_key) DO UPDATE SET signature = excluded.signature`

	qPutOneTime = `INSERT INTO one_time_keys (user_id, device_id, algorithm, key_id, key) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (user_id, device_id, algorithm, key_id) DO NOTHING`
	qOneTime     = `SELECT key FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND key_id = $4`
	qTakeOneTime = `DELETE FROM one_time_keys WHERE id = (SELECT id FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 ORDER BY id LIMIT 1) RETURNING key_id, key`
	qCounts      = `SELECT algorithm, COUNT(*) FROM one_time_keys WHERE user_id = $1 AND device_id = $2 GROUP BY algorithm`
	qAllCounts   = `SELECT user_id, device_id, algorithm, COUNT(*) FROM one_time_keys GROUP BY user_id, device_id, algorithm`
	qDropOneTime = `DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2`
	qFallback    = `SELECT key_id, key, used FROM fallback_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3`
	qPutFallback = `INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, key, used) VALUES ($1, $2, $3, $4, $5, FALSE)
		ON CONFLICT (user_id, device_id, algorithm) DO UPDATE SET key_id = excluded.key_id, key = excluded.key, used = FALSE`
	qUseFallback  = `UPDATE fallback_keys SET used = TRUE WHERE user_id = $1 AND device_id = $2 AND algorithm = $3`
	qUnused       = `SELECT algorithm FROM fallback_keys WHERE user_id = $1 AND device_id = $2 AND NOT used ORDER BY algorithm`
	qAllUnused    = `SELECT user_id, device_id, algorithm FROM fallback_keys WHERE NOT used ORDER BY algorithm`
	qDropFallback = `DELETE FROM fallback_keys WHERE user_id = $1 AND device_id = $2`

	qListChanged = `INSERT INTO device_list_changes (pos, user_id, device_id, viewer) VALUES ($1, $2, $3, $4)`
	qListChanges = `SELECT DISTINCT user_id FROM device_list_changes WHERE pos > $1 AND pos <= $2 AND (viewer = '' OR viewer = $3)`
	qListUpdates = `SELECT pos, user_id, device_id FROM device_list_changes WHERE pos > $1 AND pos <= $2 AND viewer = '' ORDER BY pos`
	qListPrev    = `SELECT COALESCE(MAX(pos), 0) FROM device_list_changes WHERE user_id = $1 AND pos < $2 AND viewer = '' AND device_id <> ''`
	qListStream  = `SELECT COALESCE(MAX(pos), 0) FROM device_list_changes WHERE user_id = $1 AND viewer = '' AND device_id <> ''`
	qPruneLists  = `DELETE FROM device_list_changes WHERE pos < $1 AND EXISTS (SELECT 1 FROM device_list_changes n
		WHERE n.user_id = device_list_changes.user_id AND n.pos > device_list_changes.pos
		AND n.device_id = device_list_changes.device_id AND n.viewer = device_list_changes.viewer)`
	qRemoteStream    = `SELECT stream_id FROM remote_device_lists WHERE user_id = $1`
	qPutRemoteStream = `INSERT INTO remote_device_lists (user_id, stream_id) VALUES ($1, $2)
		ON CONFLICT (user_id) DO UPDATE SET stream_id = excluded.stream_id`

	qPutMessage  = `INSERT INTO to_device (user_id, device_id, pos, message) VALUES ($1, $2, $3, $4)`
	qMessages    = `SELECT pos, message FROM to_device WHERE user_id = $1 AND device_id = $2 AND pos > $3 AND pos <= $4 ORDER BY pos LIMIT $5`
	qAckMessages = `DELETE FROM to_device WHERE user_id = $1 AND device_id = $2 AND pos <= $3`
	qWaiting     = `SELECT user_id, device_id, MAX(pos) FROM to_device GROUP BY user_id, device_id`
	qDropInbox   = `DELETE FROM to_device WHERE user_id = $1 AND device_id = $2`
	qPutRemote   = `INSERT INTO to_device_remote (pos, server, content) VALUES ($1, $2, $3)`
	qRemote      = `SELECT pos, server, content FROM to_device_remote WHERE pos > $1 AND pos <= $2 ORDER BY pos`
	qDropRemote  = `DELETE FROM to_device_remote WHERE pos <= $1`
	qPutTxn      = `INSERT INTO to_device_txns (user_id, device_id, txn_id, ts) VALUES ($1, $2, $3, $4)
		ON CONFLICT (user_id, device_id, txn_id) DO NOTHING`
	qPruneTxns = `DELETE FROM to_device_txns WHERE ts < $1`

	qDehydrated    = `SELECT device_id, data FROM dehydrated_devices WHERE user_id = $1`
	qPutDehydrated = `INSERT INTO dehydrated_devices (user_id, device_id, data) VALUES ($1, $2, $3)
		ON CONFLICT (user_id) DO UPDATE SET device_id = excluded.device_id, data = excluded.data`
	qDropDehydrated = `DELETE FROM dehydrated_devices WHERE user_id = $1 AND device_id = $2`

	qNextVersion    = `SELECT COALESCE(MAX(version), 0) + 1 FROM backups WHERE user_id = $1`
	qCreateBackup   = `INSERT INTO backups (user_id, version, algorithm, auth_data, etag, count, deleted) VALUES ($1, $2, $3, $4, 0, 0, FALSE)`
	qCurrentBackup  = `SELECT version, algorithm, auth_data, etag, count, deleted FROM backups WHERE user_id = $1 AND NOT deleted ORDER BY version DESC LIMIT 1`
	qBackup         = `SELECT version, algorithm, auth_data, etag, count, deleted FROM backups WHERE user_id = $1 AND version = $2`
	qSetAuthData    = `UPDATE backups SET auth_data = $3 WHERE user_id = $1 AND version = $2`
	qCountBackup    = `UPDATE backups SET count = count + $3, etag = etag + 1 WHERE user_id = $1 AND version = $2`
	qDeleteBackup   = `UPDATE backups SET deleted = TRUE, auth_data = '{}', count = 0 WHERE user_id = $1 AND version = $2`
	qDeleteVersion  = `DELETE FROM backup_keys WHERE user_id = $1 AND version = $2`
	qDropBackups    = `DELETE FROM backups WHERE user_id = $1`
	qDropBackupKeys = `DELETE FROM backup_keys WHERE user_id = $1`

	qInsertBackupKey = `INSERT INTO backup_keys (user_id, version, room_id, session_id, first_message_index, forwarded_count, is_verified, session_data)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (user_id, version, room_id, session_id) DO NOTHING`
	// qBetterBackupKey replaces a key by a better one.
	// Spec: client-server-api#server-side-key-backups
	qBetterBackupKey = `UPDATE backup_keys SET first_message_index = $5, forwarded_count = $6, is_verified = $7, session_data = $8
		WHERE user_id = $1 AND version = $2 AND room_id = $3 AND session_id = $4
		AND (NOT is_verified AND $7 OR is_verified = $7 AND (first_message_index > $5 OR first_message_index = $5 AND forwarded_count > $6))`
	qBackupKeys        = `SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data FROM backup_keys WHERE user_id = $1 AND version = $2`
	qBackupKeysRoom    = qBackupKeys + ` AND room_id = $3`
	qBackupKey         = qBackupKeysRoom + ` AND session_id = $4`
	qDelBackupKeys     = `DELETE FROM backup_keys WHERE user_id = $1 AND version = $2`
	qDelBackupKeysRoom = qDelBackupKeys + ` AND room_id = $3`
	qDelBackupKey      = qDelBackupKeysRoom + ` AND session_id = $4`
)
