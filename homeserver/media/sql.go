package media

const (
	qFind = `SELECT uploader, content_type, filename, hash, size, uploaded_at, expires_at, accessed_at, authenticated, protected,
			EXISTS (SELECT 1 FROM media_quarantine WHERE target = media.hash OR target = $3)
		FROM media WHERE origin = $1 AND media_id = $2`
	qInsert = `INSERT INTO media (origin, media_id, uploader, content_type, filename, hash, size, created_at, uploaded_at, expires_at, accessed_at, authenticated)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, 0, $8, $9)`
	qInsertCopy = qInsert + ` ON CONFLICT (origin, media_id) DO NOTHING`
	qReserve    = `INSERT INTO media (origin, media_id, uploader, content_type, filename, hash, size, created_at, uploaded_at, expires_at, authenticated)
		VALUES ($1, $2, $3, '', '', '', 0, $4, 0, $5, FALSE)`
	qFill = `UPDATE media SET content_type = $3, filename = $4, hash = $5, size = $6, uploaded_at = $7, accessed_at = $7, authenticated = $8
		WHERE origin = $1 AND media_id = $2 AND hash = '' AND expires_at > $7`
	qPending = `SELECT COUNT(*) FROM media WHERE uploader = $1 AND hash = '' AND expires_at > $2`
	qExpire  = `DELETE FROM media WHERE hash = '' AND expires_at <= $1`
	qTouch   = `UPDATE media SET accessed_at = $3 WHERE origin = $1 AND media_id = $2 AND accessed_at < $3`
	qDelete  = `DELETE FROM media WHERE origin = $1 AND media_id = $2 AND hash = $3 RETURNING uploader, size`
	qUses    = `SELECT COUNT(*) FROM media WHERE hash = $1`
	qKnown   = `SELECT DISTINCT hash FROM media WHERE hash = ANY($1)`

	qCount = `INSERT INTO media_usage (kind, name, files, bytes) VALUES ($1, $2, $3, $4)
		ON CONFLICT (kind, name) DO UPDATE SET files = media_usage.files + excluded.files, bytes = media_usage.bytes + excluded.bytes
		RETURNING files, bytes`
	qUsage       = `SELECT files, bytes FROM media_usage WHERE kind = $1 AND name = $2`
	qUsages      = `SELECT name, files, bytes FROM media_usage WHERE kind = $1 AND name > $2 ORDER BY name LIMIT $3`
	qRemoteBytes = `SELECT COALESCE(SUM(files), 0), COALESCE(SUM(bytes), 0) FROM media_usage WHERE kind = 'server' AND name <> $1`

	// Both read an index from its old end: nobody's files are copies, but for a few pictures of previews.
	qOldCopies = `SELECT origin, media_id, uploader, hash, size, accessed_at FROM media
		WHERE uploader = '' AND hash <> '' AND accessed_at <= $2 AND origin <> $1 AND NOT protected ORDER BY accessed_at LIMIT $3`
	qOldUploads = `SELECT origin, media_id, uploader, hash, size, accessed_at FROM media
		WHERE uploader <> '' AND hash <> '' AND accessed_at <= $1 AND accessed_at > $2 AND NOT protected ORDER BY accessed_at LIMIT $3`

	qOfUser = `SELECT origin, media_id, uploader, content_type, filename, hash, size, uploaded_at, accessed_at, protected,
			EXISTS (SELECT 1 FROM media_quarantine WHERE target = media.hash OR target = 'mxc://' || media.origin || '/' || media.media_id)
		FROM media WHERE uploader = $1 AND uploader <> '' AND hash <> '' AND media_id > $2 ORDER BY media_id LIMIT $3`
	qProtect    = `UPDATE media SET protected = $3 WHERE origin = $1 AND media_id = $2`
	qQuarantine = `INSERT INTO media_quarantine (target, by_user, reason, created_at) VALUES ($1, $2, $3, $4)
		ON CONFLICT (target) DO UPDATE SET by_user = excluded.by_user, reason = excluded.reason, created_at = excluded.created_at`
	qRelease     = `DELETE FROM media_quarantine WHERE target = $1`
	qQuarantined = `SELECT by_user, reason, created_at FROM media_quarantine WHERE target = $1`
	qQuarantines = `SELECT target, by_user, reason, created_at FROM media_quarantine WHERE target > $1 ORDER BY target LIMIT $2`
)
