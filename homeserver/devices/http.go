package devices

import (
	"net/http"
	"slices"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// server is what the handlers use beside the devices.
type server struct {
	*Devices
	acc *accounts.Accounts
}

// Routes are the endpoints of this package.
func (d *Devices) Routes(acc *accounts.Accounts) []httpapi.Route {
	const v3 = "/_matrix/client/v3"
	s := &server{d, acc}
	r := func(method, path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{
			Method: method, Path: v3 + path, Auth: httpapi.AuthUser, MaxBody: 64 << 10, AllowSuspended: true, AllowGuest: true, Handler: h,
		}
	}
	create := r(http.MethodPut, "/devices/{deviceId}", s.update)
	create.RateLimit = true
	return []httpapi.Route{
		r(http.MethodGet, "/devices", s.list),
		r(http.MethodGet, "/devices/{deviceId}", s.show),
		create,
		r(http.MethodDelete, "/devices/{deviceId}", s.remove),
		r(http.MethodPost, "/delete_devices", s.removeMany),
		r(http.MethodGet, "/admin/whois/{userId}", s.whois),
	}
}

// view is a device as the API shows it.
type view struct {
	Device
	User matrix.UserID `json:"user_id"`
}

func (s *server) list(c *httpapi.Call) (any, error) {
	list, err := s.List(c.Ctx(), c.Caller.User)
	if err != nil {
		return nil, err
	}
	out := make([]view, len(list))
	for i, v := range list {
		out[i] = view{v, c.Caller.User}
	}
	return map[string]any{"devices": out}, nil
}

func (s *server) show(c *httpapi.Call) (any, error) {
	list, err := s.List(c.Ctx(), c.Caller.User)
	if err != nil {
		return nil, err
	}
	id := matrix.DeviceID(c.Var("deviceId"))
	i := slices.IndexFunc(list, func(v Device) bool { return v.ID == id })
	if i < 0 {
		return nil, matrix.NotFound("no device %q", id)
	}
	return view{list[i], c.Caller.User}, nil
}

const (
	maxDeviceID = 255
	// maxName is the longest display name in bytes; more than a hundred characters of any script.
	maxName = 1024
)

// update renames a device. Application services may make devices this way.
func (s *server) update(c *httpapi.Call) (any, error) {
	var req struct {
		DisplayName *string `json:"display_name"`
	}
	if err := c.Body(&req); err != nil {
		return nil, err
	}
	if req.DisplayName != nil && (len(*req.DisplayName) > maxName || strings.IndexByte(*req.DisplayName, 0) >= 0) {
		return nil, matrix.InvalidParam("a display name may have %d bytes at most and no NUL", maxName)
	}
	id := matrix.DeviceID(c.Var("deviceId"))
	has, err := s.Has(c.Ctx(), c.Caller.User, id)
	if err != nil {
		return nil, err
	}
	switch {
	case !has && c.Caller.AppService == "":
		return nil, matrix.NotFound("no device %q", id)
	case !has:
		return s.create(c, id, req.DisplayName)
	case req.DisplayName == nil:
		return nil, nil
	}
	return nil, s.Rename(c.Ctx(), c.Caller.User, id, *req.DisplayName)
}

func (s *server) create(c *httpapi.Call, id matrix.DeviceID, name *string) (any, error) {
	if len(id) > maxDeviceID {
		return nil, matrix.InvalidParam("a device ID may have %d bytes at most", maxDeviceID)
	}
	var display string
	if name != nil {
		display = *name
	}
	if err := s.Create(c.Ctx(), c.Caller.User, id, display, c.RemoteIP(), c.Now()); err != nil {
		return nil, err
	}
	return httpapi.Status{Code: http.StatusCreated}, nil
}

func (s *server) remove(c *httpapi.Call) (any, error) {
	if err := s.acc.UIA().Require(c); err != nil {
		return nil, err
	}
	return nil, s.Delete(c.Ctx(), c.Caller.User, []matrix.DeviceID{matrix.DeviceID(c.Var("deviceId"))})
}

const maxDeleted = 1000

func (s *server) removeMany(c *httpapi.Call) (any, error) {
	var req struct {
		Devices []matrix.DeviceID `json:"devices"`
	}
	if err := c.Body(&req); err != nil {
		return nil, err
	}
	if req.Devices == nil {
		return nil, matrix.MissingParam("devices is needed")
	}
	if len(req.Devices) > maxDeleted {
		return nil, matrix.InvalidParam("%d devices can be deleted at a time", maxDeleted)
	}
	if err := s.acc.UIA().Require(c); err != nil {
		return nil, err
	}
	// An ID with NUL is nobody's: no database can hold it.
	req.Devices = slices.DeleteFunc(req.Devices, func(id matrix.DeviceID) bool { return strings.IndexByte(string(id), 0) >= 0 })
	slices.Sort(req.Devices)
	return nil, s.Delete(c.Ctx(), c.Caller.User, slices.Compact(req.Devices))
}

// whois shows from where a user's devices were last used, to the user and to administrators.
func (s *server) whois(c *httpapi.Call) (any, error) {
	user, err := c.UserVar("userId")
	if err != nil {
		return nil, err
	}
	if user != c.Caller.User && !c.Caller.Admin {
		return nil, matrix.Forbidden("only an administrator may look up others")
	}
	if !s.acc.Exists(user) {
		return nil, matrix.NotFound("no user %s", user)
	}
	list, err := s.List(c.Ctx(), user)
	if err != nil {
		return nil, err
	}
	type connection struct {
		IP    string `json:"ip,omitempty"`
		Seen  int64  `json:"last_seen,omitempty"`
		Agent string `json:"user_agent,omitempty"`
	}
	type session struct {
		Connections []connection `json:"connections"`
	}
	type info struct {
		Sessions []session `json:"sessions"`
	}
	devices := make(map[matrix.DeviceID]info, len(list))
	for _, v := range list {
		devices[v.ID] = info{[]session{{[]connection{{v.SeenIP, v.SeenAt, v.SeenAgent}}}}}
	}
	return map[string]any{"user_id": user, "devices": devices}, nil
}
