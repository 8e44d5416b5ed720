package readlist

import (
	"net/http"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
)

// Routes are the endpoints of this package.
func (l *Lists) Routes() []httpapi.Route {
	return []httpapi.Route{
		{Method: http.MethodGet, Path: "/_carillon/v1/messages/{roomId}/{eventId}/readers", Auth: httpapi.AuthUser, Handler: l.serveReaders},
	}
}

// serveReaders answers who has read a message, or with counts=true how many.
func (l *Lists) serveReaders(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	limit, err := c.QueryInt("limit", 100, 1, MaxLimit)
	if err != nil {
		return nil, err
	}
	counts, err := c.Bool("counts")
	if err != nil {
		return nil, err
	}
	fromEdit, err := c.Bool("from_edit")
	if err != nil {
		return nil, err
	}
	return l.Readers(c.Ctx(), Viewer{User: string(c.Caller.User), Admin: c.Caller.Admin}, Query{
		Room: string(room), Event: c.Var("eventId"), State: c.Query("state"), FromEdit: fromEdit, CountsOnly: counts,
		Cursor: c.Query("cursor"), Limit: limit,
	})
}
