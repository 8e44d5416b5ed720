package accounts

import (
	"context"
	"errors"
	"fmt"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Log-in types.
const (
	typePassword   = "m.login.password"
	typeToken      = "m.login.token"
	typeAppService = "m.login.application_service"
)

// OfferSSO adds m.login.sso, as flow describes it, to the ways to log in. Call it before serving.
func (a *Accounts) OfferSSO(flow func() any) { a.ssoFlow = flow }

// PasswordsAllowed says whether people may log in by password.
func (a *Accounts) PasswordsAllowed() bool { return !a.opts.NoPasswords }

func (a *Accounts) loginFlows(*httpapi.Call) (any, error) {
	type flow struct {
		Type     string `json:"type"`
		GetToken bool   `json:"get_login_token,omitempty"`
	}
	var flows []any
	if a.PasswordsAllowed() {
		flows = append(flows, flow{Type: typePassword})
	}
	if a.ssoFlow != nil {
		flows = append(flows, a.ssoFlow())
	}
	return map[string]any{"flows": append(flows, flow{Type: typeToken, GetToken: true}, flow{Type: typeAppService})}, nil
}

type loginRequest struct {
	Type        string          `json:"type"`
	Identifier  *identifier     `json:"identifier"`
	User        string          `json:"user"`
	Medium      string          `json:"medium"`  // deprecated
	Address     string          `json:"address"` // deprecated
	Password    *string         `json:"password"`
	Token       *string         `json:"token"`
	DeviceID    matrix.DeviceID `json:"device_id"`
	DisplayName string          `json:"initial_device_display_name"`
	Refresh     bool            `json:"refresh_token"`
}

// whom finds the user that the request speaks of; the older fields mean the same as an identifier.
func (a *Accounts) whom(ctx context.Context, r *loginRequest) (identified, error) {
	i := r.Identifier
	if i == nil && r.User == "" && r.Medium != "" {
		i = &identifier{Type: "m.id.thirdparty", Medium: r.Medium, Address: r.Address}
	}
	return a.identified(ctx, i, r.User)
}

func (a *Accounts) login(c *httpapi.Call) (any, error) {
	var req loginRequest
	if err := c.Body(&req); err != nil {
		return nil, err
	}
	var (
		user matrix.UserID
		err  error
	)
	switch req.Type {
	case typePassword:
		user, err = a.loginPassword(c, &req)
	case typeToken:
		if req.Token == nil {
			return nil, matrix.MissingParam("token is needed")
		}
		user, err = a.takeLoginToken(c.Ctx(), *req.Token)
	case typeAppService:
		user, err = a.loginService(c, &req)
	case "":
		return nil, matrix.MissingParam("type is needed")
	default:
		return nil, matrix.Unknown("log-in type %q is not known", req.Type)
	}
	if err != nil {
		return nil, err
	}
	if err := a.mayLogin(user); err != nil {
		return nil, err
	}
	l, err := a.newLogin(user, req.DeviceID, req.DisplayName, c.RemoteIP(), req.Refresh)
	if err != nil {
		return nil, err
	}
	return a.start(c.Ctx(), l)
}

func (a *Accounts) loginPassword(c *httpapi.Call, req *loginRequest) (matrix.UserID, error) {
	who, err := a.whom(c.Ctx(), req)
	if err != nil {
		return "", err
	}
	if req.Password == nil {
		return "", matrix.MissingParam("password is needed")
	}
	return who.user, a.checkLogin(c.Ctx(), who.user, *req.Password)
}

// loginService is a log-in by an application service for a user of its namespaces.
func (a *Accounts) loginService(c *httpapi.Call, req *loginRequest) (matrix.UserID, error) {
	as, err := a.needService(c)
	if err != nil {
		return "", err
	}
	who, err := a.whom(c.Ctx(), req)
	if err != nil {
		return "", err
	}
	u, ok := a.User(who.user)
	if !ok {
		// Whether it is outside the namespaces or not made yet, the service cannot be that user.
		id := who.user
		if id[0] != '@' {
			id = matrix.NewUserID(string(id), a.opts.ServerName)
		}
		if !as.OwnsUser(id) {
			return "", exclusive(id)
		}
		return "", matrix.Forbidden("%s is not registered", id)
	}
	if !as.OwnsUser(u.ID) {
		return "", exclusive(u.ID)
	}
	return u.ID, nil
}

// needService is the application service whose token came along, or the specified error.
func (a *Accounts) needService(c *httpapi.Call) (*ApplicationService, error) {
	if token(c.R) == "" {
		return nil, matrix.MissingToken()
	}
	as := a.Service(c.R)
	if as == nil {
		return nil, matrix.UnknownToken(false)
	}
	return as, nil
}

func exclusive(id matrix.UserID) *matrix.Error {
	return matrix.NewError(400, "M_EXCLUSIVE", "%s is reserved by or outside the namespace of an application service", id)
}

// mayLogin says whether an account may have new sessions.
func (a *Accounts) mayLogin(user matrix.UserID) error {
	u, ok := a.User(user)
	switch {
	case !ok:
		return matrix.Forbidden("wrong user name or password")
	case u.Deactivated:
		return matrix.NewError(403, "M_USER_DEACTIVATED", "this account has been deactivated")
	case u.Locked:
		return errLocked()
	}
	return nil
}

// checkLogin is nil when the password is the account's. It takes as long for accounts that do not exist.
func (a *Accounts) checkLogin(ctx context.Context, user matrix.UserID, password string) error {
	if a.opts.NoPasswords {
		return matrix.Forbidden("passwords are switched off on this server")
	}
	if a.logins != nil {
		if ok, retry := a.logins.Allow(string(user)); !ok {
			return matrix.LimitExceeded(retry)
		}
	}
	u, ok := a.User(user)
	if ok && u.Deactivated {
		return matrix.NewError(403, "M_USER_DEACTIVATED", "this account has been deactivated")
	}
	var encoded string
	if ok {
		err := a.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qPassword, string(user)).Scan(&encoded) })
		if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
			return fmt.Errorf("reading password: %w", err)
		}
	}
	if len(password) > maxPassword {
		password = password[:maxPassword+1] // too long to be anybody's
	}
	right, stale, err := a.hasher.verify(ctx, password, encoded)
	if err != nil {
		return fmt.Errorf("checking password: %w", err)
	}
	if !right {
		return matrix.Forbidden("wrong user name or password")
	}
	if a.logins != nil {
		a.logins.Forget(string(user))
	}
	if stale {
		a.upgrade(ctx, user, password, encoded)
	}
	return nil
}

// upgrade hashes a password anew at today's cost, if a processor is free for it: a morning when everybody logs in
// for the first time is no moment to make them all wait.
func (a *Accounts) upgrade(ctx context.Context, user matrix.UserID, password, old string) {
	fresh, ok := a.hasher.tryHash(password)
	if !ok {
		return
	}
	err := a.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qSwapPassword, string(user), old, fresh)
		return err
	})
	if err != nil {
		log.WithError(err).WithField("user_id", user).Warn("renewing a password hash failed")
	}
}

func (a *Accounts) getLoginToken(c *httpapi.Call) (any, error) {
	if err := a.uia.Require(c); err != nil {
		return nil, err
	}
	token, err := a.LoginToken(c.Ctx(), c.Caller.User, loginTokenLifetime)
	if err != nil {
		return nil, err
	}
	return map[string]any{"login_token": token, "expires_in_ms": loginTokenLifetime.Milliseconds()}, nil
}

func (a *Accounts) logout(c *httpapi.Call) (any, error) {
	if c.Caller.Device == "" {
		return nil, nil // an application service's own token has no session to end
	}
	return nil, a.devices.Delete(c.Ctx(), c.Caller.User, []matrix.DeviceID{c.Caller.Device})
}

func (a *Accounts) logoutAll(c *httpapi.Call) (any, error) {
	return nil, a.devices.DeleteOthers(c.Ctx(), c.Caller.User, "")
}
