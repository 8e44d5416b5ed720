package presence

import (
	"net/http"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// maxStatus is the longest status message, in bytes.
const maxStatus = 4096

// Routes are the endpoints of the module.
func (p *Presence) Routes() []httpapi.Route {
	const path = "/_matrix/client/v3/presence/{userId}/status"
	return []httpapi.Route{
		{Method: http.MethodGet, Path: path, Auth: httpapi.AuthUser, AllowSuspended: true, Handler: p.get},
		{Method: http.MethodPut, Path: path, Auth: httpapi.AuthUser, RateLimit: true, Handler: p.put},
	}
}

func (p *Presence) get(c *httpapi.Call) (any, error) {
	user, err := c.UserVar("userId")
	if err != nil {
		return nil, err
	}
	if user != c.Caller.User && !p.hub.SharesRoom(c.Caller.User, user) {
		return nil, matrix.Forbidden("you are not allowed to see their presence")
	}
	s, _ := p.Of(user)
	return s.content(p.now()), nil
}

func (p *Presence) put(c *httpapi.Call) (any, error) {
	user, err := c.UserVar("userId")
	if err != nil {
		return nil, err
	}
	if user != c.Caller.User {
		return nil, matrix.Forbidden("you cannot set the presence of %s", user)
	}
	var body struct {
		Presence *string `json:"presence"`
		Status   *string `json:"status_msg"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.Presence == nil {
		return nil, matrix.MissingParam("presence is needed")
	}
	if !known(*body.Presence) {
		return nil, matrix.InvalidParam("presence must be online, unavailable or offline")
	}
	status := ""
	if body.Status != nil {
		status = *body.Status
	}
	if len(status) > maxStatus {
		return nil, matrix.InvalidParam("status_msg may have %d bytes at most", maxStatus)
	}
	p.Set(user, *body.Presence, status)
	return nil, nil
}
