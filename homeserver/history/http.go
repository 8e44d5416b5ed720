package history

import (
	"net/http"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
)

// Routes are the endpoints of the module.
func (h *History) Routes() []httpapi.Route {
	const room = "/_matrix/client/v3/rooms/{roomId}/"
	get := func(path string, fn httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: http.MethodGet, Path: path, Auth: httpapi.AuthUser, AllowSuspended: true, AllowGuest: true, Handler: fn}
	}
	return []httpapi.Route{
		get(room+"messages", h.getMessages),
		get(room+"context/{eventId}", h.getContext),
		get(room+"event/{eventId}", h.getEvent),
		get(room+"members", h.getMembers),
		get(room+"joined_members", h.getJoinedMembers),
		get(room+"state", h.getState),
		get(room+"state/{eventType}/{stateKey}", h.getStateEvent),
		get("/_matrix/client/v1/rooms/{roomId}/timestamp_to_event", h.getByTimestamp),
	}
}
