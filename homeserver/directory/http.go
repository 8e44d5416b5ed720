package directory

import (
	"net/http"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
)

// Routes are the endpoints of the module.
func (d *Directory) Routes() []httpapi.Route {
	const (
		v3    = "/_matrix/client/v3/"
		alias = v3 + "directory/room/{roomAlias}"
		list  = v3 + "directory/list/room/{roomId}"
	)
	return []httpapi.Route{
		{Method: http.MethodGet, Path: alias, Auth: httpapi.AuthNone, Handler: d.getAlias},
		{Method: http.MethodPut, Path: alias, Auth: httpapi.AuthUser, RateLimit: true, Handler: d.putAlias},
		{Method: http.MethodDelete, Path: alias, Auth: httpapi.AuthUser, RateLimit: true, Handler: d.deleteAlias},
		{Method: http.MethodGet, Path: v3 + "rooms/{roomId}/aliases", Auth: httpapi.AuthUser, AllowSuspended: true, AllowGuest: true, Handler: d.getAliases},
		{Method: http.MethodGet, Path: list, Auth: httpapi.AuthNone, Handler: d.getVisibility},
		{Method: http.MethodPut, Path: list, Auth: httpapi.AuthUser, RateLimit: true, Handler: d.putVisibility},
		{
			Method: http.MethodPut, Path: v3 + "directory/list/appservice/{networkId}/{roomId}", Auth: httpapi.AuthAppService,
			Handler: d.putServiceVisibility,
		},
		{Method: http.MethodGet, Path: v3 + "publicRooms", Auth: httpapi.AuthOptional, AllowSuspended: true, AllowGuest: true, Handler: d.getPublicRooms},
		{Method: http.MethodPost, Path: v3 + "publicRooms", Auth: httpapi.AuthUser, RateLimit: true, AllowSuspended: true, AllowGuest: true, Handler: d.postPublicRooms},
		{Method: http.MethodGet, Path: "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms", Auth: httpapi.AuthUser, RateLimit: true, AllowSuspended: true, Handler: d.getMutualRooms},
		{Method: http.MethodGet, Path: "/_matrix/client/v1/mutual_rooms", Auth: httpapi.AuthUser, RateLimit: true, AllowSuspended: true, Handler: d.getMutualRooms},
		{Method: http.MethodPost, Path: v3 + "user_directory/search", Auth: httpapi.AuthUser, RateLimit: true, AllowSuspended: true, Handler: d.postSearch},
	}
}
