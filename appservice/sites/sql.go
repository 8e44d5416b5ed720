package sites

import (
	"errors"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

const (
	qSelf     = `SELECT private_key, room_id, room_alias FROM as_site_self WHERE one = 1`
	qMakeSelf = `INSERT INTO as_site_self (one, private_key, room_id, room_alias) VALUES (1, $1, '', '') ON CONFLICT (one) DO NOTHING`
	qSetRoom  = `UPDATE as_site_self SET room_id = $1, room_alias = $2 WHERE one = 1`

	qMakePeer = `INSERT INTO as_site_peers (site, public_key, offered_key, out_generation, out_seq, acked_seq, acked_id,
		in_generation, in_seq, in_id, epoch, version, digest, heard_at)
		VALUES ($1, '', '', 1, 0, 0, '', 0, 0, '', 0, 0, '', 0) ON CONFLICT (site) DO NOTHING`
	qNextSeq = `INSERT INTO as_site_peers (site, public_key, offered_key, out_generation, out_seq, acked_seq, acked_id,
		in_generation, in_seq, in_id, epoch, version, digest, heard_at)
		VALUES ($1, '', '', 1, 1, 0, '', 0, 0, '', 0, 0, '', 0)
		ON CONFLICT (site) DO UPDATE SET out_seq = as_site_peers.out_seq + 1 RETURNING out_seq`
	qPeers = `SELECT site, public_key, offered_key, out_generation, out_seq, acked_seq, acked_id, in_generation, in_seq, in_id,
		epoch, version, digest, heard_at FROM as_site_peers ORDER BY site`
	qSaveKeys  = `UPDATE as_site_peers SET public_key = $2, offered_key = $3 WHERE site = $1`
	qSaveIn    = `UPDATE as_site_peers SET in_generation = $2, in_seq = $3, in_id = $4 WHERE site = $1`
	qSaveHeard = `UPDATE as_site_peers SET epoch = $2, version = $3, digest = $4, heard_at = $5 WHERE site = $1`
	qSaveAcked = `UPDATE as_site_peers SET acked_seq = $2, acked_id = $3 WHERE site = $1 AND out_generation = $4`
	qSetStream = `UPDATE as_site_peers SET out_generation = $2, out_seq = $3, acked_seq = 0, acked_id = '' WHERE site = $1`
	qLockPeer  = `UPDATE as_site_peers SET out_seq = out_seq WHERE site = $1`

	qInsertMessage = `INSERT INTO as_site_messages (id, kind, body, media, at) VALUES ($1, $2, $3, '', $4)`
	qHasMessage    = `SELECT 1 FROM as_site_messages WHERE id = $1`
	qSetMedia      = `UPDATE as_site_messages SET media = $2 WHERE id = $1`
	qDeleteMessage = `DELETE FROM as_site_messages WHERE id = $1
		AND NOT EXISTS (SELECT 1 FROM as_site_out WHERE message_id = $1)`

	qInsertOut = `INSERT INTO as_site_out (site, seq, message_id) VALUES ($1, $2, $3)`
	qOut       = `SELECT o.seq, m.id, m.kind, m.body, m.media FROM as_site_out o JOIN as_site_messages m ON m.id = o.message_id
		WHERE o.site = $1 AND o.seq > $2 ORDER BY o.seq LIMIT $3`
	qFirstOut = `SELECT o.seq, m.id, m.kind, m.body FROM as_site_out o JOIN as_site_messages m ON m.id = o.message_id
		WHERE o.site = $1 ORDER BY o.seq LIMIT 1`
	qOutIDs    = `SELECT seq, message_id FROM as_site_out WHERE site = $1 AND seq <= $2 ORDER BY seq`
	qOutAt     = `SELECT message_id FROM as_site_out WHERE site = $1 AND seq = $2`
	qDeleteOut = `DELETE FROM as_site_out WHERE site = $1 AND seq <= $2`

	qHandled       = `SELECT 1 FROM as_site_handled WHERE site = $1 AND message_id = $2`
	qInsertHandled = `INSERT INTO as_site_handled (site, message_id, at) VALUES ($1, $2, $3) ON CONFLICT (site, message_id) DO NOTHING`
	qForgetHandled = `DELETE FROM as_site_handled WHERE at < $1`

	qInsertIn = `INSERT INTO as_site_in (site, event_id, content) VALUES ($1, $2, $3) ON CONFLICT (event_id) DO NOTHING`
	qIn       = `SELECT n, content FROM as_site_in WHERE site = $1 ORDER BY n LIMIT 1`
	qCountIn  = `SELECT COUNT(*) FROM as_site_in WHERE site = $1`
	qDeleteIn = `DELETE FROM as_site_in WHERE n = $1`

	qPutTree     = `INSERT INTO as_site_trees (epoch, version, digest) VALUES ($1, $2, $3) ON CONFLICT (epoch, version) DO UPDATE SET digest = excluded.digest`
	qTreeDigest  = `SELECT digest FROM as_site_trees WHERE epoch = $1 AND version = $2`
	qForgetTrees = `DELETE FROM as_site_trees WHERE version < $1`

	qDelegated       = `SELECT site, unit FROM as_site_delegated ORDER BY site, unit`
	qClearDelegated  = `DELETE FROM as_site_delegated`
	qInsertDelegated = `INSERT INTO as_site_delegated (site, unit) VALUES ($1, $2) ON CONFLICT (site, unit) DO NOTHING`

	qInsertProposal = `INSERT INTO as_site_proposals (id, site, actor, at, changes, decided_at, outcome) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (id) DO UPDATE SET decided_at = excluded.decided_at, outcome = excluded.outcome`
	qDecideProposal = `UPDATE as_site_proposals SET decided_at = $2, outcome = $3 WHERE id = $1`
	qProposal       = `SELECT id, site, actor, at, changes, decided_at, outcome FROM as_site_proposals WHERE id = $1`
	qProposals      = `SELECT id, site, actor, at, changes, decided_at, outcome FROM as_site_proposals ORDER BY at DESC, id LIMIT $1`
)

// outRow is a message on its way to a site.
type outRow struct {
	Seq             int64
	ID, Kind        string
	Body, MediaText string
}

func scanOut(rows *sqldb.Rows) (r outRow, err error) {
	err = rows.Scan(&r.Seq, &r.ID, &r.Kind, &r.Body, &r.MediaText)
	return r, err
}

func scanOutID(rows *sqldb.Rows) (r outRow, err error) {
	err = rows.Scan(&r.Seq, &r.ID)
	return r, err
}

func scanPeer(rows *sqldb.Rows) (*peer, error) {
	p := new(peer)
	var heard int64
	err := rows.Scan(&p.name, &p.key, &p.offered, &p.outGen, &p.outSeq, &p.acked, &p.ackedID, &p.inGen, &p.inSeq, &p.inID,
		&p.tree.Epoch, &p.tree.Version, &p.tree.Digest, &heard)
	if heard > 0 {
		p.heard = time.UnixMilli(heard)
	}
	return p, err
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return matrix.Millis(t)
}

// exists runs a query for whether there is a row.
func exists(tx *sqldb.Tx, q string, args ...any) (bool, error) {
	var one int
	err := tx.QueryRow(q, args...).Scan(&one)
	if errors.Is(err, sqldb.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}
