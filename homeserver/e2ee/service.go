package e2ee

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Devices knows the devices of local users.
type Devices interface {
	// DisplayNames returns all devices of the users with their display names.
	DisplayNames(ctx context.Context, users []matrix.UserID) (map[matrix.UserID]map[matrix.DeviceID]string, error)
}

// Remote asks other servers.
type Remote interface {
	// QueryKeys asks a server for the keys of its users, as POST /user/keys/query does.
	QueryKeys(ctx context.Context, server matrix.ServerName, query Query) (*Answer, error)
	// ClaimKeys claims one-time keys of a server's users, as POST /user/keys/claim does.
	ClaimKeys(ctx context.Context, server matrix.ServerName, claim Claim) (Claimed, error)
}

// Rooms knows who is in a room with whom; remote users are known while they are in a room with a local one.
type Rooms interface {
	SharesRoom(a, b matrix.UserID) bool
	RoomsOf(user matrix.UserID) []matrix.RoomID
}

// Deps are what the endpoints need of others.
type Deps struct {
	Devices Devices
	Rooms   Rooms
	Remote  Remote // nil: there is no federation
	// Authorise makes the caller prove once more who they are (interactive authentication); its error is the answer.
	Authorise func(c *httpapi.Call) error
	// Dehydration makes and removes dehydrated devices; nil: there are none.
	Dehydration Dehydration
	// Changes answers /keys/changes between two sync tokens, as /sync does; nil: without those who have left.
	Changes func(ctx context.Context, user matrix.UserID, from, to string) (changed, left []matrix.UserID, err error)
	// ShareNames tells other servers the display names of devices.
	ShareNames bool
}

// Service answers clients and other servers.
type Service struct {
	*Keys
	deps Deps
}

// NewService joins the keys with what their endpoints need.
func NewService(keys *Keys, deps Deps) *Service { return &Service{keys, deps} }

// Sizes of requests.
const (
	maxUpload   = 2 << 20
	maxToDevice = 8 << 20
	maxBackup   = 32 << 20
)

// Routes are the endpoints for clients.
func (s *Service) Routes() []httpapi.Route {
	const (
		v3      = "/_matrix/client/v3"
		version = v3 + "/room_keys/version"
		keys    = v3 + "/room_keys/keys"
		inRoom  = keys + "/{roomId}"
		session = inRoom + "/{sessionId}"
	)
	user := func(method, path string, maxBody int64, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: method, Path: path, Auth: httpapi.AuthUser, MaxBody: maxBody, RateLimit: true, AllowSuspended: true, Handler: h}
	}
	guest := func(r httpapi.Route) httpapi.Route { r.AllowGuest = true; return r }
	unlimited := func(r httpapi.Route) httpapi.Route { r.RateLimit = false; return r }
	return append(s.dehydratedRoutes(), []httpapi.Route{
		guest(unlimited(user(http.MethodPost, v3+"/keys/upload", maxUpload, s.upload))),
		guest(unlimited(user(http.MethodPost, v3+"/keys/query", maxUpload, s.query))),
		guest(unlimited(user(http.MethodPost, v3+"/keys/claim", maxUpload, s.claim))),
		guest(unlimited(user(http.MethodGet, v3+"/keys/changes", 0, s.changes))),
		user(http.MethodPost, v3+"/keys/device_signing/upload", 0, s.uploadCrossSigning),
		user(http.MethodPost, v3+"/keys/signatures/upload", maxUpload, s.uploadSignatures),
		guest(unlimited(user(http.MethodPut, v3+"/sendToDevice/{eventType}/{txnId}", maxToDevice, s.sendToDevice))),

		user(http.MethodPost, version, 0, s.createBackup),
		unlimited(user(http.MethodGet, version+"/{version?}", 0, s.backupVersion)),
		user(http.MethodPut, version+"/{version}", 0, s.updateBackup),
		user(http.MethodDelete, version+"/{version}", 0, s.deleteBackup),
		user(http.MethodPut, keys, maxBackup, s.putBackupKeys),
		unlimited(user(http.MethodGet, keys, 0, s.backupKeys)),
		user(http.MethodDelete, keys, 0, s.deleteBackupKeys),
		user(http.MethodPut, inRoom, maxBackup, s.putBackupKeys),
		unlimited(user(http.MethodGet, inRoom, 0, s.backupKeys)),
		user(http.MethodDelete, inRoom, 0, s.deleteBackupKeys),
		user(http.MethodPut, session, 0, s.putBackupKeys),
		unlimited(user(http.MethodGet, session, 0, s.backupKeys)),
		user(http.MethodDelete, session, 0, s.deleteBackupKeys),
	}...)
}

// Times that a client may ask to wait for other servers.
const (
	defaultTimeout = 10 * time.Second
	maxTimeout     = 60 * time.Second
)

// timeout reads the milliseconds of a request.
func timeout(ms *int64) time.Duration {
	if ms == nil || *ms <= 0 {
		return defaultTimeout
	}
	return min(time.Duration(min(*ms, int64(maxTimeout/time.Millisecond)))*time.Millisecond, maxTimeout)
}

// checkUsers refuses a request that names something that is no user.
func checkUsers[T any](m map[matrix.UserID]T) error {
	for u := range m {
		if _, err := matrix.ParseUserID(string(u)); err != nil || !storable(string(u)) {
			return matrix.InvalidParam("%q is not a user ID", clip(string(u)))
		}
	}
	return nil
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// errorBody is the errcode and sentence of an error, for answers that carry errors of parts.
func errorBody(e *matrix.Error) json.RawMessage {
	b, err := json.Marshal(e)
	if err != nil {
		return json.RawMessage(`{"errcode":"M_UNKNOWN","error":"unknown"}`)
	}
	return b
}
