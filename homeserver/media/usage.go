package media

import (
	"context"
	"errors"
	"fmt"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Kinds of rows of media_usage.
const (
	ofUser   = "user"
	ofServer = "server"
)

// Usage is what there is of somebody's files.
type Usage struct {
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"`
}

var errQuota = matrix.Forbidden("the quota for uploads is used up")

// over says that a user's usage u, or all users', would be above what is permitted.
func over(u Usage, files, bytes int64) bool {
	return files > 0 && u.Files > files || bytes > 0 && u.Bytes > bytes
}

// count changes what is noted of somebody's files.
func count(tx *sqldb.Tx, kind, name string, files, bytes int64) (u Usage, err error) {
	err = tx.QueryRow(qCount, kind, name, files, bytes).Scan(&u.Files, &u.Bytes)
	return u, err
}

// charge counts a new file, and refuses it if it is too much. Files of the server itself have no uploader and no
// quota.
func (s *Store) charge(tx *sqldb.Tx, uploader matrix.UserID, origin matrix.ServerName, size int64) error {
	if uploader != "" {
		u, err := count(tx, ofUser, string(uploader), 1, size)
		if err != nil {
			return err
		}
		if over(u, s.opts.UserFiles, s.opts.UserBytes) {
			return errQuota
		}
	}
	u, err := count(tx, ofServer, string(origin), 1, size)
	if err != nil {
		return err
	}
	if uploader != "" && over(u, 0, s.opts.ServerBytes) {
		return errQuota
	}
	return nil
}

// discharge counts a file that goes.
func discharge(tx *sqldb.Tx, uploader matrix.UserID, origin matrix.ServerName, size int64) error {
	if uploader != "" {
		if _, err := count(tx, ofUser, string(uploader), -1, -size); err != nil {
			return err
		}
	}
	_, err := count(tx, ofServer, string(origin), -1, -size)
	return err
}

// usage is what is noted of somebody's files.
func usage(tx *sqldb.Tx, kind, name string) (u Usage, err error) {
	err = tx.QueryRow(qUsage, kind, name).Scan(&u.Files, &u.Bytes)
	if errors.Is(err, sqldb.ErrNoRows) {
		return u, nil
	}
	return u, err
}

// checkQuota refuses an upload that would be too much, before it is read. What counts is charge.
func (s *Store) checkQuota(ctx context.Context, uploader matrix.UserID, size int64) error {
	if uploader == "" || s.opts.UserBytes <= 0 && s.opts.UserFiles <= 0 && s.opts.ServerBytes <= 0 {
		return nil
	}
	var user, server Usage
	err := s.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		if user, err = usage(tx, ofUser, string(uploader)); err != nil {
			return err
		}
		server, err = usage(tx, ofServer, string(s.opts.Server))
		return err
	})
	if err != nil {
		return fmt.Errorf("reading quota: %w", err)
	}
	user.Files++
	user.Bytes += size
	server.Bytes += size
	if over(user, s.opts.UserFiles, s.opts.UserBytes) || over(server, 0, s.opts.ServerBytes) {
		return errQuota
	}
	return nil
}
