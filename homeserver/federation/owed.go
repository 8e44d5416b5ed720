package federation

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// A server that is away for long is queued no receipts: one row is enough, which says since when. Only the newest
// receipt of a user counts, and that is in the table of receipts when the server is back.

// owedPage is how many receipts are read at a time.
const owedPage = 2000

const (
	qOwe = `INSERT INTO fed_owed (server, pos, last) VALUES ($1, $2, $3)
		ON CONFLICT (server) DO UPDATE SET last = excluded.last`
	qAreOwed = `SELECT server FROM fed_owed`
	qOwed    = `SELECT pos FROM fed_owed WHERE server = $1`
	qPaid    = `DELETE FROM fed_owed WHERE server = $1 AND last <= $2`
	qPart    = `UPDATE fed_owed SET pos = $2 WHERE server = $1`
)

// pay queues the receipts that a server has missed.
func (q *queue) pay(d *destination) error {
	q.mu.Lock()
	if !d.owed {
		q.mu.Unlock()
		return nil
	}
	d.owed = false
	q.mu.Unlock()
	all, err := q.payAll(d.name)
	if err != nil || !all { // more was noted meanwhile; what is noted later sets it again
		q.mu.Lock()
		d.owed = true
		q.mu.Unlock()
	}
	return err
}

func (q *queue) payAll(server matrix.ServerName) (all bool, err error) {
	var from stream.Pos
	err = q.db.Read(q.ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qOwed, string(server)).Scan(&from) })
	if errors.Is(err, sqldb.ErrNoRows) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading since when receipts are missing: %w", err)
	}
	rows, to, err := q.owed(q.ctx, server, from)
	if err != nil {
		return false, err
	}
	err = q.put(q.ctx, rows, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(qPaid, string(server), int64(to))
		if all = n > 0; err != nil || all {
			return err
		}
		_, err = tx.Exec(qPart, string(server), int64(to))
		return err
	})
	return all, err
}

// owed reads the receipts that a server has missed, as rows, and up to where in the log they are complete.
func (f *Federation) owed(ctx context.Context, server matrix.ServerName, from stream.Pos) (rows []row, to stream.Pos, err error) {
	to = f.reader.log.Head()
	for from < to {
		page, last, err := f.parts.Receipts.OutboundPage(ctx, from, to, owedPage)
		if err != nil {
			return nil, 0, err
		}
		page = slices.DeleteFunc(page, func(x *receipts.Receipt) bool {
			return !slices.Contains(f.reader.servers.of(x.Room), server)
		})
		rows = append(rows, receiptRows(server, page, 0)...)
		from = last
	}
	return rows, to, nil
}
