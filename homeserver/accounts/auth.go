package accounts

import (
	"context"
	"crypto/sha256"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// token is the access token of a request.
//
// Spec: client-server-api#using-access-tokens
func token(r *http.Request) string {
	if h := r.Header.Get("Authorization"); h != "" {
		if len(h) > 7 && strings.EqualFold(h[:7], "Bearer ") {
			return h[7:]
		}
		return ""
	}
	if !strings.Contains(r.URL.RawQuery, "access_token=") {
		return ""
	}
	return r.URL.Query().Get("access_token")
}

// Authenticate implements httpapi.Authenticator.
func (a *Accounts) Authenticate(r *http.Request) (*httpapi.Caller, error) {
	t := token(r)
	if t == "" {
		return nil, matrix.MissingToken()
	}
	h := sha256.Sum256([]byte(t))
	if as := a.services[h]; as != nil {
		return a.authenticateService(r, as)
	}
	s := a.sessions.get(h)
	if s == nil {
		var err error
		if s, err = a.lookup(r.Context(), h); err != nil {
			return nil, err
		}
	}
	if s.locked && !isLogout(r.URL.Path) {
		return nil, errLocked()
	}
	if s.expired(a.now()) {
		return nil, matrix.UnknownToken(true)
	}
	return &s.caller, nil
}

// isLogout says whether a locked account may call the path.
func isLogout(path string) bool {
	return strings.HasSuffix(path, "/logout") || strings.HasSuffix(path, "/logout/all")
}

// authenticateService is a request with an application service's token: the caller is the user it masquerades as,
// or its own. A locked user can still be acted for, so that a service can take a locked user out of rooms.
//
// Spec: application-service-api#identity-assertion
func (a *Accounts) authenticateService(r *http.Request, as *ApplicationService) (*httpapi.Caller, error) {
	user := as.Sender(a.opts.ServerName)
	c := &httpapi.Caller{User: user, AppService: as.ID, Service: user, Unlimited: true}
	var q url.Values
	if r.URL.RawQuery != "" {
		q = r.URL.Query()
	}
	if id := q.Get("user_id"); id != "" && id != string(user) {
		user = matrix.UserID(id)
		c.User, c.Unlimited = user, !as.RateLimited
		if user.Server() != a.opts.ServerName || !as.OwnsUser(user) {
			return nil, matrix.Forbidden("%s is not in a namespace of this application service", id)
		}
	}
	u, ok := a.User(user)
	if !ok || u.Deactivated {
		return nil, matrix.Forbidden("%s is not registered", user)
	}
	c.Admin = a.IsAdmin(user)
	c.Suspended = u.Suspended
	device := q.Get("device_id")
	if device == "" {
		device = q.Get("org.matrix.msc3202.device_id")
	}
	if device != "" {
		has, err := a.devices.Has(r.Context(), user, matrix.DeviceID(device))
		if err != nil {
			return nil, err
		}
		if !has {
			return nil, matrix.NewError(400, "M_UNKNOWN_DEVICE", "%s has no device %q", user, device)
		}
		c.Device = matrix.DeviceID(device)
	}
	return c, nil
}

// seenEvery is how often a device's last use is noted at most.
const seenEvery = 5 * time.Minute

// Admitted is called by httpapi for each admitted request; it notes when devices were used, at most every five
// minutes, without touching the database.
func (a *Accounts) Admitted(c *httpapi.Call) {
	seen := c.Caller.Seen
	if seen == nil {
		return
	}
	now := a.now()
	last := seen.Load()
	if ms := matrix.Millis(now); ms-last >= seenEvery.Milliseconds() && seen.CompareAndSwap(last, ms) {
		a.devices.Seen(c.Caller.User, c.Caller.Device, c.RemoteIP(), c.R.UserAgent(), now)
	}
}

// Service is the application service of a request's token, or nil.
func (a *Accounts) Service(r *http.Request) *ApplicationService {
	t := token(r)
	if t == "" {
		return nil
	}
	return a.services[sha256.Sum256([]byte(t))]
}

// UserOfToken is the user of an access token, for places where it comes in a body. It follows the same rules as a
// request.
func (a *Accounts) UserOfToken(ctx context.Context, t string) (matrix.UserID, error) {
	h := sha256.Sum256([]byte(t))
	s := a.sessions.get(h)
	if s == nil {
		var err error
		if s, err = a.lookup(ctx, h); err != nil {
			return "", err
		}
	}
	switch {
	case s.locked:
		return "", errLocked()
	case s.expired(a.now()):
		return "", matrix.UnknownToken(true)
	}
	return s.caller.User, nil
}
