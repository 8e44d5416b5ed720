package e2ee

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// backup is a version of a user's key backup.
type backup struct {
	version   int64
	algorithm string
	authData  string
	etag      int64
	count     int64
	deleted   bool
}

func (b *backup) scan(r *sqldb.Row) error {
	return r.Scan(&b.version, &b.algorithm, &b.authData, &b.etag, &b.count, &b.deleted)
}

// backupInfo is what clients see of a version.
type backupInfo struct {
	Algorithm string          `json:"algorithm"`
	AuthData  json.RawMessage `json:"auth_data"`
	Count     int64           `json:"count"`
	ETag      string          `json:"etag"`
	Version   string          `json:"version"`
}

// backupState is the answer to a change of the keys.
type backupState struct {
	ETag  string `json:"etag"`
	Count int64  `json:"count"`
}

func (b *backup) state() backupState { return backupState{strconv.FormatInt(b.etag, 10), b.count} }

// grow counts keys that came or, if negative, went; changed says whether any did.
func (b *backup) grow(tx *sqldb.Tx, user matrix.UserID, keys int64, changed bool) (backupState, error) {
	if changed {
		if _, err := tx.Exec(qCountBackup, string(user), b.version, keys); err != nil {
			return backupState{}, fmt.Errorf("counting the keys of a backup: %w", err)
		}
		b.count += keys
		b.etag++
	}
	return b.state(), nil
}

var (
	errNoBackup      = matrix.NotFound("there is no current backup version")
	errUnknownBackup = matrix.NotFound("unknown backup version")
)

type backupBody struct {
	Algorithm *string         `json:"algorithm"`
	AuthData  json.RawMessage `json:"auth_data"`
	Version   *string         `json:"version"`
}

func readBackupBody(c *httpapi.Call) (*backupBody, error) {
	var b backupBody
	if err := c.Body(&b); err != nil {
		return nil, err
	}
	switch {
	case b.Algorithm == nil || *b.Algorithm == "":
		return nil, matrix.MissingParam("algorithm is missing")
	case len(b.AuthData) == 0:
		return nil, matrix.MissingParam("auth_data is missing")
	case b.AuthData[0] != '{':
		return nil, matrix.BadJSON("auth_data must be an object")
	case len(*b.Algorithm) > 255 || !storable(*b.Algorithm):
		return nil, matrix.InvalidParam("the algorithm is malformed")
	}
	return &b, nil
}

// createBackup is POST /room_keys/version.
func (s *Service) createBackup(c *httpapi.Call) (any, error) {
	body, err := readBackupBody(c)
	if err != nil {
		return nil, err
	}
	user := c.Caller.User
	var version int64
	err = s.changeBackup(c.Ctx(), user, func(tx *sqldb.Tx) error {
		if err := tx.QueryRow(qNextVersion, string(user)).Scan(&version); err != nil {
			return err
		}
		_, err := tx.Exec(qCreateBackup, string(user), version, *body.Algorithm, string(body.AuthData))
		return err
	})
	if err != nil {
		return nil, err
	}
	return struct {
		Version string `json:"version"`
	}{strconv.FormatInt(version, 10)}, nil
}

// changeBackup runs changes of one user's backups one after another.
func (k *Keys) changeBackup(ctx context.Context, user matrix.UserID, fn func(tx *sqldb.Tx) error) error {
	unlock, err := k.backing.LockContext(ctx, user)
	if err != nil {
		return err
	}
	defer unlock()
	if err := k.db.Write(ctx, fn); err != nil {
		var e *matrix.Error
		if errors.As(err, &e) {
			return e
		}
		return fmt.Errorf("changing key backup: %w", err)
	}
	return nil
}

// findBackup reads a version, or the current one when version is empty.
func findBackup(tx *sqldb.Tx, user matrix.UserID, version string) (*backup, error) {
	var b backup
	if version == "" {
		err := b.scan(tx.QueryRow(qCurrentBackup, string(user)))
		if errors.Is(err, sqldb.ErrNoRows) {
			return nil, errNoBackup
		}
		return &b, err
	}
	n, err := strconv.ParseInt(version, 10, 64)
	if err != nil {
		return nil, errUnknownBackup
	}
	err = b.scan(tx.QueryRow(qBackup, string(user), n))
	if errors.Is(err, sqldb.ErrNoRows) {
		return nil, errUnknownBackup
	}
	return &b, err
}

// liveBackup is findBackup without versions that have been deleted.
func liveBackup(tx *sqldb.Tx, user matrix.UserID, version string) (*backup, error) {
	b, err := findBackup(tx, user, version)
	if err == nil && b.deleted {
		return nil, errUnknownBackup
	}
	return b, err
}

// backupVersion is GET /room_keys/version and /room_keys/version/{version}.
func (s *Service) backupVersion(c *httpapi.Call) (any, error) {
	var b *backup
	err := s.db.Read(c.Ctx(), func(tx *sqldb.Tx) (err error) {
		b, err = liveBackup(tx, c.Caller.User, c.Var("version"))
		return err
	})
	if err != nil {
		return nil, err
	}
	state := b.state()
	return backupInfo{b.algorithm, json.RawMessage(b.authData), b.count, state.ETag, strconv.FormatInt(b.version, 10)}, nil
}

// updateBackup is PUT /room_keys/version/{version}.
func (s *Service) updateBackup(c *httpapi.Call) (any, error) {
	body, err := readBackupBody(c)
	if err != nil {
		return nil, err
	}
	version := c.Var("version")
	if body.Version != nil && *body.Version != version {
		return nil, matrix.InvalidParam("the version of the body is not that of the path")
	}
	user := c.Caller.User
	return nil, s.changeBackup(c.Ctx(), user, func(tx *sqldb.Tx) error {
		b, err := liveBackup(tx, user, version)
		if err != nil {
			return err
		}
		if b.algorithm != *body.Algorithm {
			return matrix.InvalidParam("the algorithm of a backup cannot be changed")
		}
		_, err = tx.Exec(qSetAuthData, string(user), b.version, string(body.AuthData))
		return err
	})
}

// deleteBackup is DELETE /room_keys/version/{version}.
func (s *Service) deleteBackup(c *httpapi.Call) (any, error) {
	user, version := c.Caller.User, c.Var("version")
	return nil, s.changeBackup(c.Ctx(), user, func(tx *sqldb.Tx) error {
		b, err := findBackup(tx, user, version)
		if err != nil || b.deleted {
			return err
		}
		if _, err := tx.Exec(qDeleteBackup, string(user), b.version); err != nil {
			return err
		}
		_, err = tx.Exec(qDeleteVersion, string(user), b.version)
		return err
	})
}

// wrongVersion tells a client that its backup is not the current one.
func wrongVersion(current int64) *matrix.Error {
	return matrix.NewError(http.StatusForbidden, "M_WRONG_ROOM_KEYS_VERSION", "wrong backup version").
		With("current_version", strconv.FormatInt(current, 10))
}

// versionParam is the version that the query must name.
func versionParam(c *httpapi.Call) (string, error) {
	v := c.Query("version")
	if v == "" {
		return "", matrix.MissingParam("version is missing")
	}
	return v, nil
}
