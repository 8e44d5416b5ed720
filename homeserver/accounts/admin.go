package accounts

import (
	"context"
	"net/http"
	"sort"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

const adminV1 = "/_carillon/admin/v1"

// adminRoutes are the endpoints of server administrators: those of the specification and Carillon's own.
func (a *Accounts) adminRoutes() []httpapi.Route {
	const get, post, put, del = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete
	r := func(method, path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: method, Path: path, Auth: httpapi.AuthAdmin, MaxBody: smallBody, Handler: h}
	}
	return []httpapi.Route{
		r(get, clientV1+"/admin/lock/{userId}", a.flag("locked")),
		r(put, clientV1+"/admin/lock/{userId}", a.setFlag("locked", a.SetLocked)),
		r(get, clientV1+"/admin/suspend/{userId}", a.flag("suspended")),
		r(put, clientV1+"/admin/suspend/{userId}", a.setFlag("suspended", a.SetSuspended)),

		r(get, adminV1+"/users", a.listUsers),
		r(post, adminV1+"/users", a.createUser),
		r(get, adminV1+"/users/{userId}", a.showUser),
		r(put, adminV1+"/users/{userId}/password", a.resetPassword),
		r(put, adminV1+"/users/{userId}/admin", a.setAdmin),
		r(post, adminV1+"/users/{userId}/deactivate", a.deactivateUser),
		r(get, adminV1+"/registration_tokens", a.listRegTokens),
		r(post, adminV1+"/registration_tokens", a.createRegToken),
		r(get, adminV1+"/registration_tokens/{token}", a.showRegToken),
		r(put, adminV1+"/registration_tokens/{token}", a.updateRegToken),
		r(del, adminV1+"/registration_tokens/{token}", a.removeRegToken),
	}
}

// target is the account an administrator's request is about.
func (a *Accounts) target(c *httpapi.Call) (User, error) {
	id, err := c.UserVar("userId")
	if err != nil {
		return User{}, err
	}
	if id.Server() != a.opts.ServerName {
		return User{}, matrix.InvalidParam("%s does not belong to this server", id)
	}
	u, ok := a.User(id)
	if !ok {
		return User{}, matrix.NotFound("no user %s", id)
	}
	return u, nil
}

// moderated is target for locks and suspensions, which do not apply to administrators.
func (a *Accounts) moderated(c *httpapi.Call) (User, error) {
	u, err := a.target(c)
	switch {
	case err != nil:
		return u, err
	case u.Deactivated:
		return u, matrix.NotFound("%s is deactivated", u.ID)
	case u.ID == c.Caller.User:
		return u, matrix.Forbidden("not for your own account")
	case a.IsAdmin(u.ID):
		return u, matrix.Forbidden("%s is an administrator", u.ID)
	}
	return u, nil
}

func (a *Accounts) flag(name string) httpapi.Handler {
	return func(c *httpapi.Call) (any, error) {
		u, err := a.moderated(c)
		if err != nil {
			return nil, err
		}
		if name == "locked" {
			return map[string]bool{name: u.Locked}, nil
		}
		return map[string]bool{name: u.Suspended}, nil
	}
}

func (a *Accounts) setFlag(name string, set func(context.Context, matrix.UserID, bool) error) httpapi.Handler {
	return func(c *httpapi.Call) (any, error) {
		var req struct {
			Locked    *bool `json:"locked"`
			Suspended *bool `json:"suspended"`
		}
		if err := c.Body(&req); err != nil {
			return nil, err
		}
		value := req.Locked
		if name == "suspended" {
			value = req.Suspended
		}
		if value == nil {
			return nil, matrix.MissingParam("%s is needed", name)
		}
		u, err := a.moderated(c)
		if err != nil {
			return nil, err
		}
		if err := set(c.Ctx(), u.ID, *value); err != nil {
			return nil, err
		}
		return map[string]bool{name: *value}, nil
	}
}

// userView is an account as administrators see it.
type userView struct {
	ID          matrix.UserID `json:"user_id"`
	Created     int64         `json:"created_ts"`
	AppService  string        `json:"appservice_id,omitempty"`
	Admin       bool          `json:"admin"`
	Guest       bool          `json:"guest"`
	Locked      bool          `json:"locked"`
	Suspended   bool          `json:"suspended"`
	Deactivated bool          `json:"deactivated"`
	Erased      bool          `json:"erased"`
	HasPassword bool          `json:"has_password"`
}

func (a *Accounts) view(u User) userView {
	return userView{
		ID: u.ID, Created: matrix.Millis(u.Created), AppService: u.AppService, Admin: a.IsAdmin(u.ID), Guest: u.Guest,
		Locked: u.Locked, Suspended: u.Suspended, Deactivated: u.Deactivated, Erased: u.Erased, HasPassword: u.HasPassword,
	}
}

// listUsers pages through the accounts: from is the last user ID of the page before, q a part of the name.
func (a *Accounts) listUsers(c *httpapi.Call) (any, error) {
	limit, err := c.QueryInt("limit", 100, 1, 1000)
	if err != nil {
		return nil, err
	}
	q := strings.ToLower(c.Query("q"))
	var list []User
	for _, u := range a.Users() {
		if q == "" || strings.Contains(u.ID.Localpart(), q) {
			list = append(list, u)
		}
	}
	total := len(list)
	from := c.Query("from")
	list = list[sort.Search(len(list), func(i int) bool { return string(list[i].ID) > from }):]
	out := struct {
		Users []userView    `json:"users"`
		Total int           `json:"total"`
		Next  matrix.UserID `json:"next_batch,omitempty"`
	}{Users: []userView{}, Total: total}
	for i, u := range list {
		if i == limit {
			out.Next = list[i-1].ID
			break
		}
		out.Users = append(out.Users, a.view(u))
	}
	return out, nil
}

func (a *Accounts) showUser(c *httpapi.Call) (any, error) {
	u, err := a.target(c)
	if err != nil {
		return nil, err
	}
	return a.view(u), nil
}

func (a *Accounts) createUser(c *httpapi.Call) (any, error) {
	var req struct {
		Username    *string `json:"username"`
		Password    string  `json:"password"`
		Admin       bool    `json:"admin"`
		DisplayName string  `json:"displayname"`
	}
	if err := c.Body(&req); err != nil {
		return nil, err
	}
	if req.Username == nil {
		return nil, matrix.MissingParam("username is needed")
	}
	id, err := a.newUserID(*req.Username)
	if err != nil {
		return nil, err
	}
	if req.Password != "" {
		if err := a.checkPassword(req.Password); err != nil {
			return nil, err
		}
	}
	err = a.Create(c.Ctx(), NewUser{ID: id, Password: req.Password, Admin: req.Admin, DisplayName: req.DisplayName})
	if err != nil {
		return nil, err
	}
	u, _ := a.User(id)
	return httpapi.Status{Code: http.StatusCreated, Body: a.view(u)}, nil
}

func (a *Accounts) resetPassword(c *httpapi.Call) (any, error) {
	var req struct {
		NewPassword string `json:"new_password"`
		Logout      *bool  `json:"logout_devices"`
	}
	if err := c.Body(&req); err != nil {
		return nil, err
	}
	u, err := a.target(c)
	if err != nil {
		return nil, err
	}
	return nil, a.SetPassword(c.Ctx(), u.ID, req.NewPassword, req.Logout == nil || *req.Logout, "")
}

func (a *Accounts) setAdmin(c *httpapi.Call) (any, error) {
	var req struct {
		Admin *bool `json:"admin"`
	}
	if err := c.Body(&req); err != nil {
		return nil, err
	}
	if req.Admin == nil {
		return nil, matrix.MissingParam("admin is needed")
	}
	u, err := a.target(c)
	if err != nil {
		return nil, err
	}
	if u.ID == c.Caller.User && !*req.Admin {
		return nil, matrix.Forbidden("another administrator has to take this right from you")
	}
	if err := a.SetAdmin(c.Ctx(), u.ID, *req.Admin); err != nil {
		return nil, err
	}
	return map[string]bool{"admin": a.IsAdmin(u.ID)}, nil
}

func (a *Accounts) deactivateUser(c *httpapi.Call) (any, error) {
	var req struct {
		Erase bool `json:"erase"`
	}
	if err := c.Body(&req); err != nil {
		return nil, err
	}
	u, err := a.target(c)
	if err != nil {
		return nil, err
	}
	if u.ID == c.Caller.User {
		return nil, matrix.Forbidden("close your own account by /account/deactivate")
	}
	return nil, a.Deactivate(c.Ctx(), u.ID, req.Erase)
}

func (a *Accounts) listRegTokens(c *httpapi.Call) (any, error) {
	list, err := a.RegistrationTokens(c.Ctx())
	if err != nil {
		return nil, err
	}
	if list == nil {
		list = []*RegistrationToken{}
	}
	return map[string]any{"registration_tokens": list}, nil
}

func (a *Accounts) createRegToken(c *httpapi.Call) (any, error) {
	var t RegistrationToken
	if err := c.Body(&t); err != nil {
		return nil, err
	}
	made, err := a.CreateRegistrationToken(c.Ctx(), t)
	if err != nil {
		return nil, err
	}
	return httpapi.Status{Code: http.StatusCreated, Body: made}, nil
}

func (a *Accounts) showRegToken(c *httpapi.Call) (any, error) {
	t, err := a.registrationToken(c.Ctx(), c.Var("token"), "")
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, matrix.NotFound("no such registration token")
	}
	return t, nil
}

// updateRegToken changes the limits that the body names.
func (a *Accounts) updateRegToken(c *httpapi.Call) (any, error) {
	t, err := a.registrationToken(c.Ctx(), c.Var("token"), "")
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, matrix.NotFound("no such registration token")
	}
	name := t.Token
	if err := c.Body(t); err != nil { // a null lifts a limit, an absent key leaves it
		return nil, err
	}
	t.Token = name
	if err := a.changeRegistrationToken(c.Ctx(), *t); err != nil {
		return nil, err
	}
	return a.showRegToken(c)
}

func (a *Accounts) removeRegToken(c *httpapi.Call) (any, error) {
	return nil, a.deleteRegistrationToken(c.Ctx(), c.Var("token"))
}
