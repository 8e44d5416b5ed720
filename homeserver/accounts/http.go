package accounts

import (
	"net/http"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

const (
	smallBody = 64 << 10
	clientV1  = "/_matrix/client/v1"
	clientV3  = "/_matrix/client/v3"
)

// Routes are the endpoints of this package.
func (a *Accounts) Routes() []httpapi.Route {
	const (
		get, post, put = http.MethodGet, http.MethodPost, http.MethodPut
		user, open     = httpapi.AuthUser, httpapi.AuthNone
	)
	routes := []httpapi.Route{
		{Method: get, Path: clientV3 + "/login", Auth: open, RateLimit: true, Handler: a.loginFlows},
		{Method: post, Path: clientV3 + "/login", Auth: open, RateLimit: true, MaxBody: smallBody, Handler: a.login},
		{Method: post, Path: clientV1 + "/login/get_token", Auth: user, RateLimit: true, MaxBody: smallBody, AllowSuspended: true, Handler: a.getLoginToken},
		{Method: post, Path: clientV3 + "/logout", Auth: user, AllowSuspended: true, AllowGuest: true, Handler: a.logout},
		{Method: post, Path: clientV3 + "/logout/all", Auth: user, AllowSuspended: true, AllowGuest: true, Handler: a.logoutAll},
		{Method: post, Path: clientV3 + "/refresh", Auth: open, RateLimit: true, MaxBody: smallBody, Handler: a.refresh},
		{Method: post, Path: clientV3 + "/register", Auth: open, RateLimit: true, MaxBody: smallBody, Handler: a.register},
		{Method: get, Path: clientV3 + "/register/available", Auth: open, RateLimit: true, Handler: a.available},
		{Method: get, Path: clientV1 + "/register/m.login.registration_token/validity", Auth: open, RateLimit: true, Handler: a.tokenValidity},
		{Method: get, Path: clientV3 + "/account/whoami", Auth: user, RateLimit: true, AllowSuspended: true, AllowGuest: true, Handler: a.whoami},
		{Method: post, Path: clientV3 + "/account/password", Auth: httpapi.AuthOptional, RateLimit: true, MaxBody: smallBody, AllowSuspended: true, Handler: a.changePassword},
		{Method: post, Path: clientV3 + "/account/deactivate", Auth: httpapi.AuthOptional, RateLimit: true, MaxBody: smallBody, AllowSuspended: true, Handler: a.deactivate},
		{Method: get, Path: clientV3 + "/auth/{type}/fallback/web", Auth: open, RateLimit: true, Handler: a.uia.fallback},
		{Method: post, Path: clientV3 + "/auth/{type}/fallback/web", Auth: open, RateLimit: true, MaxBody: smallBody, Handler: a.uia.fallback},
	}
	if a.opts.Registration.SharedSecret != "" {
		const path = "/_synapse/admin/v1/register"
		routes = append(routes,
			httpapi.Route{Method: get, Path: path, Auth: open, RateLimit: true, Handler: a.sharedSecretNonce},
			httpapi.Route{Method: post, Path: path, Auth: open, RateLimit: true, MaxBody: smallBody, Handler: a.sharedSecretRegister})
	}
	return append(routes, a.adminRoutes()...)
}

func (a *Accounts) whoami(c *httpapi.Call) (any, error) {
	return struct {
		User   matrix.UserID   `json:"user_id"`
		Device matrix.DeviceID `json:"device_id,omitempty"`
		Guest  bool            `json:"is_guest"`
	}{c.Caller.User, c.Caller.Device, c.Caller.Guest}, nil
}

func (a *Accounts) changePassword(c *httpapi.Call) (any, error) {
	var req struct {
		NewPassword *string `json:"new_password"`
		Logout      *bool   `json:"logout_devices"`
	}
	if err := c.Body(&req); err != nil {
		return nil, err
	}
	if req.NewPassword != nil { // checked first, so that nobody proves who they are in vain
		if err := a.checkPassword(*req.NewPassword); err != nil {
			return nil, err
		}
	}
	user, keep, err := a.proven(c)
	if err != nil {
		return nil, err
	}
	if req.NewPassword == nil {
		return nil, matrix.MissingParam("new_password is needed")
	}
	return nil, a.SetPassword(c.Ctx(), user, *req.NewPassword, req.Logout == nil || *req.Logout, keep)
}

func (a *Accounts) deactivate(c *httpapi.Call) (any, error) {
	var req struct {
		Erase    bool   `json:"erase"`
		IDServer string `json:"id_server"`
	}
	if err := c.Body(&req); err != nil {
		return nil, err
	}
	user, _, err := a.proven(c)
	if err != nil {
		return nil, err
	}
	result := "success"
	if a.contacts.Unbind != nil && !a.contacts.Unbind(c.Ctx(), user, req.IDServer) {
		result = "no-support"
	}
	if err := a.Deactivate(c.Ctx(), user, req.Erase); err != nil {
		return nil, err
	}
	return map[string]string{"id_server_unbind_result": result}, nil
}

// proven is the account a request may change: the caller's after interactive authentication, or, without a token,
// the one whose password the client knows or whose address it has proven.
func (a *Accounts) proven(c *httpapi.Call) (matrix.UserID, matrix.DeviceID, error) {
	if c.Caller != nil {
		return c.Caller.User, c.Caller.Device, a.uia.Require(c)
	}
	flows, err := a.uia.usual(c.Ctx(), "", operation(c))
	if err != nil {
		return "", "", err
	}
	p, err := a.uia.check(c, "", flows)
	if err != nil {
		return "", "", err
	}
	defer p.release()
	if err := a.mayLogin(p.User); err != nil {
		return "", "", err
	}
	return p.User, "", a.uia.finish(c.Ctx(), p)
}
