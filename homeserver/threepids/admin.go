package threepids

import (
	"net/http"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// adminRoutes are where administrators, and programs of the company's directory, see and set the addresses of accounts.
// They vouch for them: nothing is sent.
func (t *Threepids) adminRoutes() []httpapi.Route {
	const path = "/_carillon/admin/v1/users/{userId}/contacts"
	r := func(method, path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: method, Path: path, Auth: httpapi.AuthAdmin, MaxBody: smallBody, Handler: h}
	}
	return []httpapi.Route{
		r("GET", path, t.adminList),
		r("POST", path, t.adminAdd),
		r("DELETE", path+"/{medium}/{address}", t.adminRemove),
	}
}

// target is the account that an administrator's request is about.
func (t *Threepids) target(c *httpapi.Call) (matrix.UserID, error) {
	user, err := c.UserVar("userId")
	if err != nil {
		return "", err
	}
	if user.Server() != t.opts.Server {
		return "", matrix.InvalidParam("%s does not belong to this server", user)
	}
	if !t.accounts.Active(user) {
		return "", matrix.NotFound("no user %s", user)
	}
	return user, nil
}

func (t *Threepids) adminList(c *httpapi.Call) (any, error) {
	user, err := t.target(c)
	if err != nil {
		return nil, err
	}
	list, err := t.Of(c.Ctx(), user)
	if list == nil {
		list = []Contact{}
	}
	return map[string]any{"threepids": list}, err
}

func (t *Threepids) adminAdd(c *httpapi.Call) (any, error) {
	var q struct {
		Medium  string `json:"medium"`
		Address string `json:"address"`
	}
	if err := c.Body(&q); err != nil {
		return nil, err
	}
	user, err := t.target(c)
	if err != nil {
		return nil, err
	}
	if q.Medium == "" || q.Address == "" {
		return nil, matrix.MissingParam("medium and address are needed")
	}
	if err := t.Add(c.Ctx(), user, q.Medium, q.Address); err != nil {
		return nil, err
	}
	return httpapi.Status{Code: http.StatusCreated}, nil
}

func (t *Threepids) adminRemove(c *httpapi.Call) (any, error) {
	user, err := t.target(c)
	if err != nil {
		return nil, err
	}
	medium := c.Var("medium")
	address, err := Canonical(medium, c.Var("address"))
	if err != nil {
		return nil, err
	}
	own, err := t.Owns(c.Ctx(), user, medium, address)
	if err != nil {
		return nil, err
	}
	if !own {
		return nil, matrix.NotFound("the account has no such address")
	}
	return nil, t.remove(c.Ctx(), user, medium, address)
}
