package moderation

import (
	"net/http"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
)

// smallBody bounds the bodies of the module's requests.
const smallBody = 64 << 10

// Routes are the endpoints of the module.
func (m *Moderation) Routes() []httpapi.Route {
	const (
		v3      = "/_matrix/client/v3"
		reports = "/_carillon/admin/v1/reports"
	)
	post := func(path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: http.MethodPost, Path: v3 + path, Auth: httpapi.AuthUser, MaxBody: smallBody, RateLimit: true, Handler: h}
	}
	admin := func(method, path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: method, Path: path, Auth: httpapi.AuthAdmin, MaxBody: smallBody, Handler: h}
	}
	return []httpapi.Route{
		post("/rooms/{roomId}/upgrade", m.postUpgrade),
		post("/rooms/{roomId}/report", m.reportRoom),
		post("/rooms/{roomId}/report/{eventId}", m.reportEvent),
		post("/users/{userId}/report", m.reportUser),
		admin(http.MethodGet, reports, m.listReports),
		admin(http.MethodGet, reports+"/{reportId}", m.showReport),
		admin(http.MethodPut, reports+"/{reportId}", m.handleReport),
	}
}
