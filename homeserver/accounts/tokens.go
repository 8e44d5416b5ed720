package accounts

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// login is a session about to be made. Its tokens are made before the transaction, which may run twice.
type login struct {
	user        matrix.UserID
	device      matrix.DeviceID
	displayName string
	ip          string
	now         time.Time
	access      string
	refresh     string // empty: the client does not refresh
	expires     time.Duration
	replaces    int64  // the refresh token this pair replaces
	client      string // of the OAuth 2.0 API; empty: the legacy API
	scope       string // what an OAuth client was granted
	family      string // the hash that the refresh tokens of an OAuth client's session share
}

// Session is a new session as it is told to the client.
type Session struct {
	UserID       matrix.UserID     `json:"user_id,omitempty"`
	AccessToken  string            `json:"access_token,omitempty"`
	DeviceID     matrix.DeviceID   `json:"device_id,omitempty"`
	RefreshToken string            `json:"refresh_token,omitempty"`
	ExpiresInMS  int64             `json:"expires_in_ms,omitempty"`
	HomeServer   matrix.ServerName `json:"home_server,omitempty"`
}

const (
	accessPrefix  = "ca_" // makes a leaked token recognisable
	refreshPrefix = "cr_"
	tokenLength   = 43 // 258 bits
)

func (a *Accounts) newLogin(user matrix.UserID, device matrix.DeviceID, displayName, ip string, refresh bool) (*login, error) {
	if len(device) > 255 || len(displayName) > 1024 {
		return nil, matrix.InvalidParam("a device ID may have 255 bytes, its display name 1,024")
	}
	if !isText(string(device)) || !isText(displayName) {
		return nil, matrix.InvalidParam("a device ID and its display name are text without NUL")
	}
	if device == "" {
		device = newDeviceID()
	}
	l := &login{
		user: user, device: device, displayName: displayName, ip: ip, now: a.now(),
		access: accessPrefix + matrix.RandomString(tokenLength),
	}
	if refresh {
		l.refresh = refreshPrefix + matrix.RandomString(tokenLength)
		l.expires = a.opts.AccessLifetime
	}
	return l, nil
}

// isText says whether every database can hold s as text. What comes from JSON is valid UTF-8 already.
func isText(s string) bool { return strings.IndexByte(s, 0) < 0 }

// newDeviceID is ten capital letters, which people can compare.
func newDeviceID() matrix.DeviceID {
	id := make([]byte, 0, 10)
	for len(id) < cap(id) {
		for _, c := range []byte(matrix.RandomString(24)) {
			if c >= 'A' && c <= 'Z' && len(id) < cap(id) {
				id = append(id, c)
			}
		}
	}
	return matrix.DeviceID(id)
}

func (a *Accounts) session(l *login) *Session {
	return &Session{
		UserID: l.user, AccessToken: l.access, DeviceID: l.device, RefreshToken: l.refresh,
		ExpiresInMS: l.expires.Milliseconds(), HomeServer: a.opts.ServerName,
	}
}

// start makes a session for an existing account.
func (a *Accounts) start(ctx context.Context, l *login) (*Session, error) {
	err := a.db.Write(ctx, func(tx *sqldb.Tx) error { return a.issue(tx, l) })
	if err != nil {
		return nil, fmt.Errorf("creating session: %w", err)
	}
	a.sessions.dropDevices(l.user, []matrix.DeviceID{l.device})
	return a.session(l), nil
}

// issue stores the session's device and tokens. A device has one session: a log-in with a known device ID ends the
// one before, a refresh leaves it until the new pair is used.
func (a *Accounts) issue(tx *sqldb.Tx, l *login) error {
	if l.replaces == 0 {
		if err := a.devices.Ensure(tx, l.user, l.device, l.displayName, l.ip, l.now); err != nil {
			return err
		}
		if err := a.deleteDeviceTokens(tx, l.user, []matrix.DeviceID{l.device}); err != nil {
			return err
		}
	}
	var refreshID, expires int64
	if l.refresh != "" {
		err := tx.QueryRow(qInsertRefresh, hashToken(l.refresh), string(l.user), string(l.device), matrix.Millis(l.now), l.replaces,
			l.client, l.scope, l.family).Scan(&refreshID)
		if err != nil {
			return err
		}
		expires = matrix.Millis(l.now.Add(l.expires))
	}
	_, err := tx.Exec(qInsertAccess, hashToken(l.access), string(l.user), string(l.device), matrix.Millis(l.now), expires, refreshID, l.replaces,
		l.client)
	return err
}

func hashToken(token string) []byte {
	h := sha256.Sum256([]byte(token))
	return h[:]
}

// deleteDeviceTokens ends the sessions of devices inside a transaction.
func (a *Accounts) deleteDeviceTokens(tx *sqldb.Tx, user matrix.UserID, devices []matrix.DeviceID) error {
	list := make([]string, len(devices))
	for i, d := range devices {
		list[i] = string(d)
	}
	if _, err := tx.Exec(qDeviceAccess, string(user), list); err != nil {
		return err
	}
	_, err := tx.Exec(qDeviceRefresh, string(user), list)
	return err
}

// lookup reads the session of an access token from the database and keeps it.
func (a *Accounts) lookup(ctx context.Context, h tokenHash) (*session, error) {
	gen := a.sessions.gen.Load()
	var (
		s        = new(session)
		replaces int64
	)
	err := a.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.QueryRow(qAccess, h[:]).
			Scan(&s.caller.TokenID, &s.caller.User, &s.caller.Device, &s.expires, &s.refresh, &replaces)
	})
	if errors.Is(err, sqldb.ErrNoRows) {
		return nil, matrix.UnknownToken(false)
	}
	if err != nil {
		return nil, fmt.Errorf("reading access token: %w", err)
	}
	u, ok := a.User(s.caller.User)
	if !ok || u.Deactivated {
		return nil, matrix.UnknownToken(false)
	}
	s.caller.Admin, s.caller.Seen = a.IsAdmin(u.ID), new(atomic.Int64)
	s.caller.Guest, s.caller.Suspended, s.locked = u.Guest, u.Suspended, u.Locked
	if replaces != 0 && !s.expired(a.now()) {
		// The first use of a refreshed pair. It is kept at its next use, when no log-out can have come between.
		return s, a.settle(ctx, s.caller.User, s.refresh, replaces)
	}
	a.sessions.put(h, s, gen)
	return s, nil
}

func (s *session) expired(now time.Time) bool {
	return s.expires != 0 && matrix.Millis(now) >= s.expires
}

// settle ends the pair that a refreshed one replaces, and pairs made from it that were never used.
func (a *Accounts) settle(ctx context.Context, user matrix.UserID, refresh, replaces int64) error {
	err := a.db.Write(ctx, func(tx *sqldb.Tx) error { return settleTx(tx, refresh, replaces) })
	if err != nil {
		return fmt.Errorf("ending the old session: %w", err)
	}
	a.sessions.dropUser(user, func(s *session) bool { return s.refresh == replaces })
	return nil
}

func settleTx(tx *sqldb.Tx, refresh, replaces int64) error {
	if _, err := tx.Exec(qEndOldAccess, replaces); err != nil {
		return err
	}
	if _, err := tx.Exec(qEndTwinAccess, replaces, refresh); err != nil {
		return err
	}
	if _, err := tx.Exec(qEndOldRefresh, replaces); err != nil {
		return err
	}
	if _, err := tx.Exec(qEndTwinRefresh, replaces, refresh); err != nil {
		return err
	}
	if _, err := tx.Exec(qSettleAccess, refresh); err != nil {
		return err
	}
	_, err := tx.Exec(qSettleRefresh, refresh)
	return err
}

// refresh makes a new pair from a refresh token.
func (a *Accounts) refresh(c *httpapi.Call) (any, error) {
	var body struct {
		RefreshToken *string `json:"refresh_token"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.RefreshToken == nil {
		return nil, matrix.MissingParam("refresh_token is needed")
	}
	old, err := a.refreshToken(c.Ctx(), *body.RefreshToken)
	if err != nil {
		return nil, err
	}
	if old.client != "" { // the two ways to log in do not mix
		return nil, matrix.UnknownToken(false)
	}
	l, err := a.newLogin(old.user, old.device, "", c.RemoteIP(), true)
	if err != nil {
		return nil, err
	}
	if err := a.renew(c.Ctx(), *body.RefreshToken, old, l); err != nil {
		return nil, err
	}
	return &Session{AccessToken: l.access, RefreshToken: l.refresh, ExpiresInMS: l.expires.Milliseconds()}, nil
}

// renew stores the pair that follows a refresh token; both stay valid until the new one is used.
func (a *Accounts) renew(ctx context.Context, token string, old refreshRow, l *login) error {
	l.replaces = old.id
	var gone bool
	err := a.db.Write(ctx, func(tx *sqldb.Tx) error {
		// Read again: a log-out may have come between.
		now, err := readRefresh(tx, token)
		if gone = errors.Is(err, sqldb.ErrNoRows); gone {
			return nil
		}
		if err != nil {
			return err
		}
		if now.replaces != 0 { // using the refresh token of a new pair ends the pair before it
			if err := settleTx(tx, now.id, now.replaces); err != nil {
				return err
			}
		}
		return a.issue(tx, l)
	})
	if err != nil {
		return fmt.Errorf("refreshing session: %w", err)
	}
	if gone {
		return matrix.UnknownToken(false)
	}
	if old.replaces != 0 {
		a.sessions.dropUser(old.user, func(s *session) bool { return s.refresh == old.replaces || s.refresh == old.id })
	}
	return nil
}

// refreshRow is a stored refresh token.
type refreshRow struct {
	id, replaces  int64
	user          matrix.UserID
	device        matrix.DeviceID
	client, scope string
}

func readRefresh(tx *sqldb.Tx, token string) (r refreshRow, err error) {
	err = tx.QueryRow(qRefresh, hashToken(token)).Scan(&r.id, &r.user, &r.device, &r.replaces, &r.client, &r.scope)
	return r, err
}

// refreshToken reads a refresh token whose account may go on.
func (a *Accounts) refreshToken(ctx context.Context, token string) (r refreshRow, err error) {
	err = a.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		r, err = readRefresh(tx, token)
		return err
	})
	if errors.Is(err, sqldb.ErrNoRows) {
		return r, matrix.UnknownToken(false)
	}
	if err != nil {
		return r, fmt.Errorf("reading refresh token: %w", err)
	}
	u, ok := a.User(r.user)
	switch {
	case !ok || u.Deactivated:
		return r, matrix.UnknownToken(false)
	case u.Locked:
		return r, errLocked()
	}
	return r, nil
}

func errLocked() *matrix.Error {
	return matrix.NewError(401, "M_USER_LOCKED", "this account is locked").With("soft_logout", true)
}

// LoginToken makes a token for m.login.token that lets a device log in as the user, once, within its lifetime.
func (a *Accounts) LoginToken(ctx context.Context, user matrix.UserID, lifetime time.Duration) (string, error) {
	token := matrix.RandomString(tokenLength)
	expires := matrix.Millis(a.now().Add(lifetime))
	err := a.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qInsertLogin, hashToken(token), string(user), expires)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("storing login token: %w", err)
	}
	return token, nil
}

const loginTokenLifetime = 2 * time.Minute

// takeLoginToken gives the user of a log-in token, which is then gone.
func (a *Accounts) takeLoginToken(ctx context.Context, token string) (matrix.UserID, error) {
	var (
		user    matrix.UserID
		expires int64
	)
	err := a.db.Write(ctx, func(tx *sqldb.Tx) error {
		user, expires = "", 0
		err := tx.QueryRow(qTakeLogin, hashToken(token)).Scan(&user, &expires)
		if errors.Is(err, sqldb.ErrNoRows) {
			return nil
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("reading login token: %w", err)
	}
	if user == "" || expires < matrix.Millis(a.now()) {
		return "", matrix.Forbidden("the login token is not valid or has expired")
	}
	return user, nil
}
