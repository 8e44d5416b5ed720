package federation

import (
	"net/http"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Routes are the endpoints under /_matrix/federation.
func (f *Federation) Routes() []httpapi.Route {
	const v1, v2 = "/_matrix/federation/v1", "/_matrix/federation/v2"
	signed := func(method, path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: method, Path: path, Auth: httpapi.AuthServer, Handler: h}
	}
	asked := func(method, path string, h httpapi.Handler) httpapi.Route { return signed(method, path, f.inTurn(h)) }
	send := signed(http.MethodPut, v1+"/send/{txnId}", f.serveSend)
	send.MaxBody = maxTransaction
	routes := []httpapi.Route{
		send,
		{Method: http.MethodGet, Path: v1 + "/version", Handler: f.serveVersion},

		signed(http.MethodGet, v1+"/make_join/{roomId}/{userId}", f.serveMakeJoin),
		signed(http.MethodPut, v2+"/send_join/{roomId}/{eventId}", f.serveSendJoin),
		signed(http.MethodPut, v1+"/send_join/{roomId}/{eventId}", asPair(f.serveSendJoin)), // compat: removed in v1.18
		signed(http.MethodPut, v1+"/send_leave/{roomId}/{eventId}", asPair(f.serveSendLeave)),
		signed(http.MethodGet, v1+"/make_leave/{roomId}/{userId}", f.serveMakeLeave),
		signed(http.MethodPut, v2+"/send_leave/{roomId}/{eventId}", f.serveSendLeave),
		signed(http.MethodGet, v1+"/make_knock/{roomId}/{userId}", f.serveMakeKnock),
		signed(http.MethodPut, v1+"/send_knock/{roomId}/{eventId}", f.serveSendKnock),
		signed(http.MethodPut, v1+"/invite/{roomId}/{eventId}", f.serveInviteV1),
		signed(http.MethodPut, v2+"/invite/{roomId}/{eventId}", f.serveInvite),
		signed(http.MethodPut, v1+"/exchange_third_party_invite/{roomId}", f.serveExchange),

		asked(http.MethodGet, v1+"/backfill/{roomId}", f.serveBackfill),
		asked(http.MethodPost, v1+"/get_missing_events/{roomId}", f.serveMissingEvents),
		asked(http.MethodGet, v1+"/event/{eventId}", f.serveEvent),
		asked(http.MethodGet, v1+"/state/{roomId}", f.serveState),
		asked(http.MethodGet, v1+"/state_ids/{roomId}", f.serveStateIDs),
		asked(http.MethodGet, v1+"/event_auth/{roomId}/{eventId}", f.serveEventAuth),
		asked(http.MethodGet, v1+"/timestamp_to_event/{roomId}", f.serveTimestamp),

		asked(http.MethodGet, v1+"/query/profile", f.serveProfile),
		signed(http.MethodGet, v1+"/query/directory", f.serveDirectory),
		signed(http.MethodGet, v1+"/query/{queryType}", f.serveQuery),
		asked(http.MethodGet, v1+"/publicRooms", f.servePublicRooms),
		asked(http.MethodPost, v1+"/publicRooms", f.servePublicRooms),

		asked(http.MethodGet, v1+"/user/devices/{userId}", f.serveDevices),
		asked(http.MethodPost, v1+"/user/keys/query", f.serveKeysQuery),
		asked(http.MethodPost, v1+"/user/keys/claim", f.serveKeysClaim),
	}
	if f.parts.Media != nil {
		download := signed(http.MethodGet, v1+"/media/download/{mediaId}", f.parts.Media.ServeFederationDownload)
		thumbnail := signed(http.MethodGet, v1+"/media/thumbnail/{mediaId}", f.parts.Media.ServeFederationThumbnail)
		download.RateLimit, thumbnail.RateLimit = true, true
		routes = append(routes, download, thumbnail)
	}
	return routes
}

// asPair gives an answer the form that version 1 of some endpoints has: the status and the body in a list.
func asPair(h httpapi.Handler) httpapi.Handler {
	return func(c *httpapi.Call) (any, error) {
		v, err := h(c)
		if err != nil {
			return nil, err
		}
		if v == nil {
			v = struct{}{}
		}
		return []any{http.StatusOK, v}, nil
	}
}

func (f *Federation) serveVersion(*httpapi.Call) (any, error) {
	return map[string]any{"server": map[string]string{"name": "Carillon", "version": f.parts.Version}}, nil
}

// roomVar reads the room of a request and checks that the origin is not shut out of it.
func (f *Federation) roomVar(c *httpapi.Call) (matrix.RoomID, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return "", err
	}
	return room, f.acl(c.Ctx(), room, c.Origin)
}

// roomOfOrigin is roomVar for what only servers in the room may ask.
func (f *Federation) roomOfOrigin(c *httpapi.Call) (matrix.RoomID, error) {
	room, err := f.roomVar(c)
	if err != nil {
		return "", err
	}
	return room, f.inRoom(room, c.Origin)
}

func (f *Federation) inRoom(room matrix.RoomID, server matrix.ServerName) error {
	for _, s := range f.reader.servers.of(room) {
		if s == server {
			return nil
		}
	}
	return matrix.Forbidden("%s is not in the room", server)
}

func (f *Federation) eventVar(c *httpapi.Call) (matrix.EventID, error) {
	return matrix.ParseEventID(c.Var("eventId"))
}
