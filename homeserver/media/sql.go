package media

const (
	qFind   = `SELECT uploader, content_type, filename, hash, size, uploaded_at, expires_at, authenticated FROM media WHERE origin = $1 AND media_id = $2`
	qInsert = `INSERT INTO media (origin, media_id, uploader, content_type, filename, hash, size, created_at, uploaded_at, expires_at, authenticated)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, 0, $9)`
	qInsertCopy = qInsert + ` ON CONFLICT (origin, media_id) DO NOTHING`
	qReserve    = `INSERT INTO media (origin, media_id, uploader, content_type, filename, hash, size, created_at, uploaded_at, expires_at, authenticated)
		VALUES ($1, $2, $3, '', '', '', 0, $4, 0, $5, FALSE)`
	qFill = `UPDATE media SET content_type = $3, filename = $4, hash = $5, size = $6, uploaded_at = $7, authenticated = $8
		WHERE origin = $1 AND media_id = $2 AND hash = '' AND expires_at > $7`
	qPending      = `SELECT COUNT(*) FROM media WHERE uploader = $1 AND hash = '' AND expires_at > $2`
	qUsed         = `SELECT COUNT(*), COALESCE(SUM(size), 0) FROM media WHERE uploader = $1 AND hash <> ''`
	qExpire       = `DELETE FROM media WHERE hash = '' AND expires_at <= $1`
	qRemoteBytes  = `SELECT COALESCE(SUM(size), 0) FROM media WHERE origin <> $1`
	qOldestRemote = `SELECT origin, media_id, hash, size FROM media WHERE origin <> $1 ORDER BY uploaded_at LIMIT 100`
	qDelete       = `DELETE FROM media WHERE origin = $1 AND media_id = $2 RETURNING hash`
	qUses         = `SELECT COUNT(*) FROM media WHERE hash = $1`
)
