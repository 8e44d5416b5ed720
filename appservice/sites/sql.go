package sites

const (
	qInsertMessage = `INSERT INTO as_site_messages (id, kind, body, media, at) VALUES ($1, $2, $3, '', $4)`
	qNextSeq       = `INSERT INTO as_site_peers (site, public_key, offered_key, out_generation, out_seq, acked_seq, acked_id,
		in_generation, in_seq, in_id, epoch, version, digest, heard_at)
		VALUES ($1, '', '', 1, 1, 0, '', 0, 0, '', 0, 0, '', 0)
		ON CONFLICT (site) DO UPDATE SET out_seq = as_site_peers.out_seq + 1 RETURNING out_seq`
	qInsertOut = `INSERT INTO as_site_out (site, seq, message_id) VALUES ($1, $2, $3)`

	qFirstOut = `SELECT o.seq, m.id, m.kind, m.body FROM as_site_out o JOIN as_site_messages m ON m.id = o.message_id
		WHERE o.site = $1 ORDER BY o.seq LIMIT 1`
	qDeleteOut     = `DELETE FROM as_site_out WHERE site = $1 AND seq <= $2`
	qDeleteMessage = `DELETE FROM as_site_messages WHERE id = $1
		AND NOT EXISTS (SELECT 1 FROM as_site_out WHERE message_id = $1)`
)
