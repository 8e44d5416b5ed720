package homeserver

import "github.com/carillon-chat/carillon/homeserver/httpapi"

// classOf says which limit a route counts against, where there is one and it is not the general one. The routes stand here and not
// in their packages, so that the policy of the server can be read in one place.
var classOf = map[string]httpapi.Class{
	"PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}":     httpapi.ClassMessages,
	"PUT /_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}":     httpapi.ClassMessages,
	"PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}": httpapi.ClassMessages,
	"PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}":            httpapi.ClassMessages,

	"POST /_matrix/client/v3/createRoom":             httpapi.ClassJoins,
	"POST /_matrix/client/v3/join/{roomIdOrAlias}":   httpapi.ClassJoins,
	"POST /_matrix/client/v3/knock/{roomIdOrAlias}":  httpapi.ClassJoins,
	"POST /_matrix/client/v3/rooms/{roomId}/join":    httpapi.ClassJoins,
	"POST /_matrix/client/v3/rooms/{roomId}/upgrade": httpapi.ClassJoins,
	"POST /_matrix/client/v3/rooms/{roomId}/invite":  httpapi.ClassInvites,

	"POST /_matrix/client/v3/login":            httpapi.ClassLogIns,
	"POST /_matrix/client/v3/register":         httpapi.ClassRegistrations,
	"POST /_synapse/admin/v1/register":         httpapi.ClassRegistrations,
	"POST /_matrix/media/v3/upload":            httpapi.ClassMedia,
	"POST /_matrix/media/v1/create":            httpapi.ClassMedia,
	"GET /_matrix/client/v1/media/config":      httpapi.ClassMedia,
	"GET /_matrix/media/v3/config":             httpapi.ClassMedia,
	"GET /_matrix/media/v3/preview_url":        httpapi.ClassMedia,
	"GET /_matrix/client/v1/media/preview_url": httpapi.ClassMedia,

	"PUT /_matrix/media/v3/upload/{serverName}/{mediaId}":                     httpapi.ClassMedia,
	"GET /_matrix/media/v3/download/{serverName}/{mediaId}":                   httpapi.ClassMedia,
	"GET /_matrix/media/v3/download/{serverName}/{mediaId}/{fileName}":        httpapi.ClassMedia,
	"GET /_matrix/media/v3/thumbnail/{serverName}/{mediaId}":                  httpapi.ClassMedia,
	"GET /_matrix/client/v1/media/download/{serverName}/{mediaId}":            httpapi.ClassMedia,
	"GET /_matrix/client/v1/media/download/{serverName}/{mediaId}/{fileName}": httpapi.ClassMedia,
	"GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}":           httpapi.ClassMedia,
	"GET /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}":              httpapi.ClassMedia, // as many at once
	"GET /_matrix/client/v3/room_keys/keys/{roomId}":                          httpapi.ClassMedia,
	"GET /_matrix/client/v3/room_keys/keys":                                   httpapi.ClassMedia,
	"GET /_matrix/client/v3/room_keys/version/{version?}":                     httpapi.ClassMedia,
}

// alsoLimited are further routes whose packages set no limit; the specification has them limited.
var alsoLimited = map[string]bool{
	"GET /_matrix/client/v3/capabilities":                      true,
	"GET /_matrix/client/v3/voip/turnServer":                   true,
	"GET /_matrix/client/v3/rooms/{roomId}/aliases":            true,
	"GET /_matrix/client/v1/rooms/{roomId}/threads":            true,
	"GET /_matrix/client/v1/rooms/{roomId}/timestamp_to_event": true,
}

// limited gives routes their limits.
func limited(routes []httpapi.Route) []httpapi.Route {
	for i := range routes {
		r := &routes[i]
		name := r.Method + " " + r.Path
		if class, ok := classOf[name]; ok {
			r.Class, r.RateLimit = class, true
		}
		r.RateLimit = r.RateLimit || alsoLimited[name]
	}
	return routes
}
