// Package profiles keeps what users say of themselves: display name, picture
// and free fields, and spreads names and pictures into the member events of the
// rooms they are in.
//
// Tables: profiles (a row for each field, its value as JSON), profile_spreads.
//
// Spec: client-server-api#profiles, server-server-api#querying-for-information
//
// Names and pictures of local users are held in memory. Invariants: a profile
// takes less than 64 KiB; a change of name or picture reaches every room, also
// when the server is stopped in between.
package profiles

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// The fields that the server gives a meaning.
const (
	DisplayName = "displayname"
	AvatarURL   = "avatar_url"
	timeZone    = "m.tz"
)

// Remote asks other servers for the profiles of their users.
type Remote interface {
	// Profile returns all fields, or the named one alone; M_NOT_FOUND when the
	// user or the field does not exist.
	Profile(ctx context.Context, user matrix.UserID, field string) (map[string]json.RawMessage, error)
}

// Options are what may be set.
type Options struct {
	Server matrix.ServerName
	// Remote is nil on a server that does not federate.
	Remote Remote
	// RequireAuth shows profiles to those alone who are logged in.
	RequireAuth bool
	// FixedNames lets names and pictures be changed by administrators and
	// application services alone.
	FixedNames bool
	Now        matrix.Now
}

// Profiles is the module.
type Profiles struct {
	db       *sqldb.DB
	accounts *accounts.Accounts
	rooms    *rooms.Rooms
	opts     Options
	locks    gate.Keyed[matrix.UserID]

	mu    sync.RWMutex
	names map[matrix.UserID]Name

	bell   chan struct{} // capacity one: there is something to spread; full is as good
	remote remoteCache
}

// Name is a user's display name and picture; either may be empty.
type Name struct{ DisplayName, AvatarURL string }

//go:embed schema
var schema embed.FS

const (
	qNames      = `SELECT user_id, field, value FROM profiles WHERE field = 'displayname' OR field = 'avatar_url'`
	qProfile    = `SELECT field, value FROM profiles WHERE user_id = $1`
	qField      = `SELECT value FROM profiles WHERE user_id = $1 AND field = $2`
	qSet        = `INSERT INTO profiles (user_id, field, value) VALUES ($1, $2, $3) ON CONFLICT (user_id, field) DO UPDATE SET value = excluded.value`
	qDelete     = `DELETE FROM profiles WHERE user_id = $1 AND field = $2`
	qDeleteAll  = `DELETE FROM profiles WHERE user_id = $1`
	qSpread     = `INSERT INTO profile_spreads (user_id, version) VALUES ($1, 1) ON CONFLICT (user_id) DO UPDATE SET version = profile_spreads.version + 1`
	qSpreads    = `SELECT user_id, version FROM profile_spreads`
	qSpreadDone = `DELETE FROM profile_spreads WHERE user_id = $1 AND version = $2`
)

// New reads the names. Call it before serving.
func New(ctx context.Context, db *sqldb.DB, acc *accounts.Accounts, r *rooms.Rooms, opts Options) (*Profiles, error) {
	if err := db.Migrate(ctx, "profiles", schema); err != nil {
		return nil, err
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	p := &Profiles{
		db: db, accounts: acc, rooms: r, opts: opts,
		names: make(map[matrix.UserID]Name), bell: make(chan struct{}, 1),
	}
	p.remote.entries = make(map[matrix.UserID]remoteEntry)
	type row struct {
		user         matrix.UserID
		field, value string
	}
	err := db.Read(ctx, func(tx *sqldb.Tx) error {
		rows, err := sqldb.Select(tx, func(r *sqldb.Rows) (x row, err error) {
			err = r.Scan(&x.user, &x.field, &x.value)
			return x, err
		}, qNames)
		for _, x := range rows {
			n := p.names[x.user]
			n.set(x.field, json.RawMessage(x.value))
			p.names[x.user] = n
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading names: %w", err)
	}
	return p, nil
}

func (n *Name) set(field string, value json.RawMessage) {
	var s string
	_ = json.Unmarshal(value, &s) // null and the like are no name
	switch field {
	case DisplayName:
		n.DisplayName = s
	case AvatarURL:
		n.AvatarURL = s
	}
}

// Name is a local user's display name and picture, from memory.
func (p *Profiles) Name(user matrix.UserID) Name {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.names[user]
}

// Local is the whole profile of a local user; M_NOT_FOUND if there is no such
// user.
func (p *Profiles) Local(ctx context.Context, user matrix.UserID) (map[string]json.RawMessage, error) {
	if !p.accounts.Active(user) {
		return nil, matrix.NotFound("there is no user %s", user)
	}
	profile, err := p.read(ctx, user)
	if err != nil {
		return nil, fmt.Errorf("reading profile: %w", err)
	}
	return profile, nil
}

func (p *Profiles) read(ctx context.Context, user matrix.UserID) (map[string]json.RawMessage, error) {
	profile := make(map[string]json.RawMessage)
	err := p.db.Read(ctx, func(tx *sqldb.Tx) error {
		rows, err := tx.Query(qProfile, string(user))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var field, value string
			if err := rows.Scan(&field, &value); err != nil {
				return err
			}
			profile[field] = json.RawMessage(value)
		}
		return rows.Err()
	})
	return profile, err
}

// Get is the profile of any user, or one field of it.
func (p *Profiles) Get(ctx context.Context, user matrix.UserID, field string) (map[string]json.RawMessage, error) {
	var profile map[string]json.RawMessage
	var err error
	switch {
	case user.Server() == p.opts.Server:
		profile, err = p.Local(ctx, user)
	case p.opts.Remote == nil:
		return nil, matrix.NotFound("there is no user %s", user)
	default:
		profile, err = p.ask(ctx, user, field)
	}
	if err != nil || field == "" {
		return profile, err
	}
	value, ok := profile[field]
	if !ok {
		return nil, matrix.NotFound("%s has no profile field %s", user, field)
	}
	return map[string]json.RawMessage{field: value}, nil
}

// Set stores one field; a nil value removes it. A name or picture is then spread
// into the user's rooms.
func (p *Profiles) Set(ctx context.Context, user matrix.UserID, field string, value json.RawMessage) error {
	unlock, err := p.locks.LockContext(ctx, user)
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.fits(ctx, user, field, value); err != nil {
		return err
	}
	shown := field == DisplayName || field == AvatarURL
	spread := shown && len(p.rooms.JoinedRooms(user)) > 0
	err = p.db.Write(ctx, func(tx *sqldb.Tx) error {
		var err error
		if value == nil {
			_, err = tx.Exec(qDelete, string(user), field)
		} else {
			_, err = tx.Exec(qSet, string(user), field, string(value))
		}
		if err == nil && spread {
			_, err = tx.Exec(qSpread, string(user))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("storing profile: %w", err)
	}
	if shown {
		p.mu.Lock()
		n := p.names[user]
		n.set(field, value)
		p.names[user] = n
		p.mu.Unlock()
	}
	if spread {
		p.ring()
	}
	return nil
}

// fits says whether the profile stays small enough. Names alone cannot break
// the bound, so that setting one costs no query.
func (p *Profiles) fits(ctx context.Context, user matrix.UserID, field string, value json.RawMessage) error {
	if value == nil || (field == DisplayName || field == AvatarURL) && len(value) < reserved/2 {
		return nil
	}
	profile, err := p.read(ctx, user)
	if err != nil {
		return fmt.Errorf("reading profile: %w", err)
	}
	profile[field] = value
	size := 2
	for k, v := range profile {
		if k != DisplayName && k != AvatarURL {
			size += len(k) + len(v) + 4
		}
	}
	if size > maxProfile-reserved {
		return matrix.NewError(400, "M_PROFILE_TOO_LARGE", "the profile would take more than %d bytes", maxProfile)
	}
	return nil
}

// Created gives a new account its first name.
func (p *Profiles) Created(ctx context.Context, user matrix.UserID, displayName string) error {
	if displayName == "" {
		return nil
	}
	value, err := json.Marshal(displayName)
	if err != nil {
		return err
	}
	return p.Set(ctx, user, DisplayName, value)
}

// Delete removes the whole profile of a user whose account is closed.
func (p *Profiles) Delete(ctx context.Context, user matrix.UserID) error {
	unlock, err := p.locks.LockContext(ctx, user)
	if err != nil {
		return err
	}
	defer unlock()
	err = p.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qDeleteAll, string(user))
		return err
	})
	if err != nil {
		return fmt.Errorf("removing profile: %w", err)
	}
	p.mu.Lock()
	delete(p.names, user)
	p.mu.Unlock()
	return nil
}
