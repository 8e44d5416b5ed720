package mxclient

import (
	"context"
	"net/http"

	"maunium.net/go/mautrix/id"
)

// Registration is what EnsureUser sends. Password and PasswordHash may both be empty: then nobody can log in with one.
type Registration struct {
	Localpart string
	// Password is given in the clear; for homeservers that do not take a hash.
	Password string
	// PasswordHash is "$carillon-sha256$salt$hash": a Carillon homeserver takes it from application services, whose
	// first passwords are random and long, and need no slow hash.
	PasswordHash string
}

// EnsureUser registers a user of the namespace; created is false when the account was there already.
//
// Spec: application-service-api#server-admin-style-permissions
func (c *Client) EnsureUser(ctx context.Context, r Registration) (created bool, err error) {
	body := struct {
		Type         string `json:"type"`
		Username     string `json:"username"`
		InhibitLogin bool   `json:"inhibit_login"`
		Password     string `json:"password,omitempty"`
		PasswordHash string `json:"im.carillon.password_hash,omitempty"`
	}{"m.login.application_service", r.Localpart, true, r.Password, r.PasswordHash}
	err = c.Do(ctx, Request{Method: http.MethodPost, Path: clientV3 + "/register", Body: body}, nil)
	if IsCode(err, "M_USER_IN_USE") {
		return false, nil
	}
	return err == nil, err
}

// SetDisplayName sets user's display name.
func (c *Client) SetDisplayName(ctx context.Context, user id.UserID, name string) error {
	body := struct {
		Name string `json:"displayname"`
	}{name}
	return c.Do(ctx, Request{Method: http.MethodPut, Path: Path(clientV3+"/profile", string(user), "displayname"), As: user, Body: body}, nil)
}

// LockUser locks an account or opens it again; the bot must be a server administrator.
//
// Spec: client-server-api#put_matrixclientv1adminlockuserid
func (c *Client) LockUser(ctx context.Context, user id.UserID, locked bool) error {
	body := struct {
		Locked bool `json:"locked"`
	}{locked}
	return c.Do(ctx, Request{Method: http.MethodPut, Path: Path(clientV1+"/admin/lock", string(user)), Body: body}, nil)
}

// WhoAmI is the owner of a token.
type WhoAmI struct {
	User   id.UserID   `json:"user_id"`
	Device id.DeviceID `json:"device_id"`
	Guest  bool        `json:"is_guest"`
}

// WhoAmI asks the homeserver whose token this is; token "" asks for the service's own.
func (c *Client) WhoAmI(ctx context.Context, token string) (*WhoAmI, error) {
	out := new(WhoAmI)
	if err := c.Do(ctx, Request{Method: http.MethodGet, Path: clientV3 + "/account/whoami", Token: token}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// Ping asks the homeserver to call the service back; it returns how long that took in milliseconds.
//
// Spec: application-service-api#pinging
func (c *Client) Ping(ctx context.Context, serviceID, txn string) (int64, error) {
	var out struct {
		MS int64 `json:"duration_ms"`
	}
	body := struct {
		Txn string `json:"transaction_id,omitempty"`
	}{txn}
	err := c.Do(ctx, Request{Method: http.MethodPost, Path: Path(clientV1+"/appservice", serviceID, "ping"), Body: body}, &out)
	return out.MS, err
}

// IsLocked asks whether an account is locked; the bot must be a server administrator.
func (c *Client) IsLocked(ctx context.Context, user id.UserID) (bool, error) {
	var out struct {
		Locked bool `json:"locked"`
	}
	err := c.Do(ctx, Request{Method: http.MethodGet, Path: Path(clientV1+"/admin/lock", string(user))}, &out)
	return out.Locked, err
}

// SuspendUser suspends an account or lifts that; the bot must be a server administrator.
//
// Spec: client-server-api#put_matrixclientv1adminsuspenduserid
func (c *Client) SuspendUser(ctx context.Context, user id.UserID, suspended bool) error {
	body := struct {
		Suspended bool `json:"suspended"`
	}{suspended}
	return c.Do(ctx, Request{Method: http.MethodPut, Path: Path(clientV1+"/admin/suspend", string(user)), Body: body}, nil)
}
