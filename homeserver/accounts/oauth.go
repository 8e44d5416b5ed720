package accounts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Grant is a session about to be made for a client of the OAuth 2.0 API.
//
// Spec: client-server-api#oauth-20-api
type Grant struct{ l *login }

// Errors of OAuth sessions.
var (
	// ErrGrant says that a refresh token is not, or no longer, good for the client that shows it.
	ErrGrant = errors.New("the refresh token is not valid")
	// ErrGrantReused says the same, and that a token shown a second time has ended its session.
	ErrGrantReused = fmt.Errorf("%w: it was used before, the session has been ended", ErrGrant)
)

// NewGrant prepares a session of an OAuth client on a device; scope is kept with it.
func (a *Accounts) NewGrant(user matrix.UserID, device matrix.DeviceID, displayName, ip, client, scope string) (*Grant, error) {
	if err := a.mayLogin(user); err != nil {
		return nil, err
	}
	l, err := a.newLogin(user, device, displayName, ip, true)
	if err != nil {
		return nil, err
	}
	l.forClient(client, scope, matrix.RandomString(familyLength))
	return &Grant{l}, nil
}

// familyLength is the length of what the refresh tokens of a session have in common: 132 bits, known to nobody else.
const familyLength = 22

// forClient makes a log-in one of an OAuth client. The refresh token ends in its family.
func (l *login) forClient(client, scope, family string) {
	l.client, l.scope = client, scope
	l.refresh += "_" + family
	l.family = hashFamily(family)
}

func hashFamily(family string) string {
	h := sha256.Sum256([]byte(family))
	return hex.EncodeToString(h[:])
}

// familyOf is the family of a refresh token, "" if it has none.
func familyOf(token string) string {
	at := len(token) - familyLength - 1
	if !strings.HasPrefix(token, refreshPrefix) || at != len(refreshPrefix)+tokenLength || token[at] != '_' {
		return ""
	}
	return token[at+1:]
}

// StoreGrant makes the session inside a transaction, which may run twice. A session that the device had ends.
func (a *Accounts) StoreGrant(tx *sqldb.Tx, g *Grant) error { return a.issue(tx, g.l) }

// Granted is the session of a Grant whose transaction is committed.
func (a *Accounts) Granted(g *Grant) *Session {
	a.sessions.dropDevices(g.l.user, []matrix.DeviceID{g.l.device})
	return a.session(g.l)
}

// RefreshGrant makes a new pair from the refresh token of an OAuth client and gives the scope of the session. The old
// pair stays valid until the new one is used. A refresh token shown again after that ends the session: one of those
// who know it has no right to.
func (a *Accounts) RefreshGrant(ctx context.Context, token, client, ip string) (*Session, string, error) {
	old, err := a.refreshToken(ctx, token)
	var e *matrix.Error
	switch {
	case errors.As(err, &e) && e.Code == "M_UNKNOWN_TOKEN":
		return nil, "", a.reused(ctx, token)
	case err != nil:
		return nil, "", err
	case old.client == "" || old.client != client:
		return nil, "", ErrGrant
	}
	l, err := a.newLogin(old.user, old.device, "", ip, true)
	if err != nil {
		return nil, "", err
	}
	l.forClient(old.client, old.scope, familyOf(token))
	if err := a.renew(ctx, token, old, l); err != nil {
		if errors.As(err, &e) && e.Code == "M_UNKNOWN_TOKEN" {
			return nil, "", ErrGrant
		}
		return nil, "", err
	}
	return a.session(l), old.scope, nil
}

// reused ends the session that an unknown refresh token once belonged to, if there is one.
func (a *Accounts) reused(ctx context.Context, token string) error {
	family := familyOf(token)
	if family == "" {
		return ErrGrant
	}
	var (
		user   matrix.UserID
		device matrix.DeviceID
	)
	err := a.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qFamily, hashFamily(family)).Scan(&user, &device) })
	if errors.Is(err, sqldb.ErrNoRows) {
		return ErrGrant
	}
	if err != nil {
		return fmt.Errorf("reading refresh token: %w", err)
	}
	if err := a.devices.Delete(ctx, user, []matrix.DeviceID{device}); err != nil {
		return err
	}
	return ErrGrantReused
}

// RevokeGrant ends the session of an OAuth client by its access or refresh token; its device goes. It says whether
// there was one.
func (a *Accounts) RevokeGrant(ctx context.Context, token string) (bool, error) {
	var (
		user   matrix.UserID
		device matrix.DeviceID
		client string
	)
	err := a.db.Read(ctx, func(tx *sqldb.Tx) error {
		r, err := readRefresh(tx, token)
		if err == nil {
			user, device, client = r.user, r.device, r.client
			return nil
		}
		if !errors.Is(err, sqldb.ErrNoRows) {
			return err
		}
		return tx.QueryRow(qAccessGrant, hashToken(token)).Scan(&user, &device, &client)
	})
	if errors.Is(err, sqldb.ErrNoRows) || err == nil && client == "" {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading token: %w", err)
	}
	return true, a.devices.Delete(ctx, user, []matrix.DeviceID{device})
}

// ClientOf is the OAuth client of a caller's session, "" for a session of the legacy API.
func (a *Accounts) ClientOf(ctx context.Context, c *httpapi.Caller) (client string, err error) {
	if c == nil || c.TokenID == 0 {
		return "", nil
	}
	err = a.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qAccessClient, c.TokenID).Scan(&client) })
	if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
		return "", fmt.Errorf("reading access token: %w", err)
	}
	return client, nil
}

// ClientsOf names the OAuth client of each of a user's devices that has one.
func (a *Accounts) ClientsOf(ctx context.Context, user matrix.UserID) (map[matrix.DeviceID]string, error) {
	clients := map[matrix.DeviceID]string{}
	err := a.db.Read(ctx, func(tx *sqldb.Tx) error {
		clear(clients)
		rows, err := tx.Query(qUserClients, string(user))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var device matrix.DeviceID
			var client string
			if err := rows.Scan(&device, &client); err != nil {
				return err
			}
			clients[device] = client
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("reading sessions: %w", err)
	}
	return clients, nil
}

// ClientsInUse is those of the OAuth clients that have a session.
func (a *Accounts) ClientsInUse(ctx context.Context, clients []string) (used []string, err error) {
	err = a.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		used, err = sqldb.Select(tx, func(r *sqldb.Rows) (c string, err error) {
			err = r.Scan(&c)
			return c, err
		}, qUsedClients, clients)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading sessions: %w", err)
	}
	return used, nil
}

// CheckPassword is the account that a name (a localpart, a user ID or an e-mail address) and a password open, under
// the limits of a log-in. Its errors are those of POST /login.
func (a *Accounts) CheckPassword(ctx context.Context, name, password string) (matrix.UserID, error) {
	i := &identifier{Type: "m.id.user", User: name}
	if at := strings.IndexByte(name, '@'); at > 0 {
		i = &identifier{Type: "m.id.thirdparty", Medium: "email", Address: name}
	}
	who, err := a.identified(ctx, i, "")
	if err != nil {
		return "", err
	}
	if err := a.checkLogin(ctx, who.user, password); err != nil {
		return "", err
	}
	return who.user, a.mayLogin(who.user)
}

// MayLogin says whether an account may have new sessions; if not, it is the error of POST /login.
func (a *Accounts) MayLogin(user matrix.UserID) error { return a.mayLogin(user) }

// FreeUser is the user ID of a user name that a new account may have.
func (a *Accounts) FreeUser(username string) (matrix.UserID, error) {
	return a.wantedUser(&username, nil)
}

// RegistrationOpen says whether people may make accounts with nothing but a password, and whether they need a
// registration token for it. Flows that ask for more are for clients.
func (a *Accounts) RegistrationOpen() (open, needsToken bool) {
	flows := a.registrationFlows()
	has := func(stage string) bool {
		return slices.ContainsFunc(flows, func(f Flow) bool { return slices.Equal([]string(f), []string{stage}) })
	}
	if has(StageDummy) {
		return true, false
	}
	return has(StageToken), true
}

// Register makes an account as POST /register does, for a page where people do so. token is the registration token,
// where one is needed. Its errors are those of that endpoint.
func (a *Accounts) Register(ctx context.Context, username, password, token string) (matrix.UserID, error) {
	open, needsToken := a.RegistrationOpen()
	if !open {
		return "", matrix.Forbidden("registration is not open on this server")
	}
	user, err := a.FreeUser(username)
	if err != nil {
		return "", err
	}
	if err := a.checkPassword(password); err != nil {
		return "", err
	}
	if !needsToken {
		token = ""
	} else {
		t, err := a.registrationToken(ctx, token, "")
		if err != nil {
			return "", err
		}
		if t == nil || !t.valid(a.now()) {
			return "", matrix.NewError(401, "M_UNAUTHORIZED", "the registration token is not valid")
		}
	}
	return user, a.Create(ctx, NewUser{ID: user, Password: password, RegistrationToken: token})
}
