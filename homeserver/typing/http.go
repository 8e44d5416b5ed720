package typing

import (
	"net/http"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Routes are the endpoints of the module.
func (t *Typing) Routes() []httpapi.Route {
	return []httpapi.Route{{
		Method: http.MethodPut, Path: "/_matrix/client/v3/rooms/{roomId}/typing/{userId}",
		Auth: httpapi.AuthUser, RateLimit: true, AllowGuest: true, Handler: t.put,
	}}
}

func (t *Typing) put(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	user, err := c.UserVar("userId")
	if err != nil {
		return nil, err
	}
	if user != c.Caller.User {
		return nil, matrix.Forbidden("you cannot type for %s", user)
	}
	var body struct {
		Typing  *bool  `json:"typing"`
		Timeout *int64 `json:"timeout"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.Typing == nil {
		return nil, matrix.MissingParam("typing is needed")
	}
	timeout := defaultTimeout
	if body.Timeout != nil {
		if *body.Timeout < 0 {
			return nil, matrix.InvalidParam("timeout must not be negative")
		}
		timeout = time.Duration(min(*body.Timeout, maxTimeout.Milliseconds())) * time.Millisecond
	}
	if !t.hub.Joined(user, room) {
		return nil, matrix.Forbidden("you are not in room %s", room)
	}
	t.Set(user, room, *body.Typing && timeout > 0, timeout)
	return nil, nil
}
