package media

import (
	"context"
	"errors"
	"fmt"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Quarantine is why something is not given out.
type Quarantine struct {
	Target string        `json:"target"` // an mxc URI, or the SHA-256 of a content in hexadecimal digits
	By     matrix.UserID `json:"by"`
	Reason string        `json:"reason,omitempty"`
	At     int64         `json:"at"` // ms
}

// banned tells of the quarantine of a name or content; nil if there is none.
func (s *Store) banned(ctx context.Context, target string) (*Quarantine, error) {
	q := &Quarantine{Target: target}
	err := s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.QueryRow(qQuarantined, target).Scan(&q.By, &q.Reason, &q.At)
	})
	if errors.Is(err, sqldb.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading quarantine: %w", err)
	}
	return q, nil
}

func ifBanned(q *Quarantine) error {
	if q == nil {
		return nil
	}
	return errBanned
}

// Quarantine keeps a file from being given out, here and under every other name that has the same content, now and
// later. The file stays, for those who have to judge it. It may be one of another server that has not been fetched.
func (s *Store) Quarantine(ctx context.Context, by matrix.UserID, origin matrix.ServerName, id, reason string) error {
	n := name{origin, id}
	return s.quarantine(ctx, n, func(tx *sqldb.Tx, target string) error {
		_, err := tx.Exec(qQuarantine, target, string(by), reason, s.nowMillis())
		return err
	})
}

// Release ends the quarantine of a file and its content.
func (s *Store) Release(ctx context.Context, origin matrix.ServerName, id string) error {
	return s.quarantine(ctx, name{origin, id}, func(tx *sqldb.Tx, target string) error {
		_, err := tx.Exec(qRelease, target)
		return err
	})
}

// quarantine does something for the name of a file and its content.
func (s *Store) quarantine(ctx context.Context, n name, fn func(tx *sqldb.Tx, target string) error) error {
	m, err := s.row(ctx, n)
	if err != nil {
		return err
	}
	if m == nil && n.origin == s.opts.Server {
		return errNone
	}
	err = s.db.Write(ctx, func(tx *sqldb.Tx) error {
		if err := fn(tx, n.MXC()); err != nil || m == nil || m.pending() {
			return err
		}
		return fn(tx, m.hash)
	})
	if err != nil {
		return fmt.Errorf("changing a quarantine: %w", err)
	}
	return nil
}
