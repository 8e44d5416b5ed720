package profiles

import (
	"bytes"
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Bounds of a profile, in bytes.
const (
	maxProfile = 64 << 10
	reserved   = 4 << 10 // for name and picture
	maxField   = 255
	maxName    = 256
	maxAvatar  = 1000
)

// Routes are the endpoints of the module.
func (p *Profiles) Routes() []httpapi.Route {
	const whole = "/_matrix/client/v3/profile/{userId}"
	const one = whole + "/{keyName}"
	return []httpapi.Route{
		{Method: http.MethodGet, Path: whole, Auth: httpapi.AuthOptional, AllowSuspended: true, AllowGuest: true, Handler: p.get},
		{Method: http.MethodGet, Path: one, Auth: httpapi.AuthOptional, AllowSuspended: true, AllowGuest: true, Handler: p.get},
		{Method: http.MethodPut, Path: one, Auth: httpapi.AuthUser, RateLimit: true, AllowGuest: true, Handler: p.put},
		{Method: http.MethodDelete, Path: one, Auth: httpapi.AuthUser, RateLimit: true, AllowGuest: true, Handler: p.delete},
	}
}

func (p *Profiles) get(c *httpapi.Call) (any, error) {
	if p.opts.RequireAuth && c.Caller == nil {
		return nil, matrix.MissingToken()
	}
	user, err := c.UserVar("userId")
	if err != nil {
		return nil, err
	}
	field := c.Var("keyName")
	if field != "" {
		if err := checkField(field); err != nil {
			return nil, err
		}
	}
	return p.Get(c.Ctx(), user, field)
}

// namespaced is the grammar of free fields.
//
// Spec: appendices#common-namespaced-identifier-grammar
var namespaced = regexp.MustCompile(`^[a-z][a-z0-9_-]*(\.[a-z0-9_-]+)+$`)

func checkField(field string) error {
	switch {
	case len(field) > maxField:
		return matrix.NewError(http.StatusBadRequest, "M_KEY_TOO_LARGE", "a profile key has at most %d bytes", maxField)
	case field == DisplayName || field == AvatarURL || namespaced.MatchString(field):
		return nil
	}
	return matrix.InvalidParam("Invalid profile key.")
}

// target is whose profile a call may change, and the field.
func (p *Profiles) target(c *httpapi.Call) (matrix.UserID, string, error) {
	user, err := c.UserVar("userId")
	if err != nil {
		return "", "", err
	}
	field := c.Var("keyName")
	if err := checkField(field); err != nil {
		return "", "", err
	}
	privileged := c.Caller.Admin || c.Caller.AppService != ""
	switch {
	case c.Caller.Guest && field != DisplayName:
		return "", "", matrix.NewError(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "guests may only change their name")
	case user != c.Caller.User && !(c.Caller.Admin && user.Server() == p.opts.Server):
		return "", "", matrix.Forbidden("you cannot change the profile of %s", user)
	case !p.accounts.Active(user):
		return "", "", matrix.NotFound("there is no user %s", user)
	case p.opts.FixedNames && !privileged && (field == DisplayName || field == AvatarURL):
		return "", "", matrix.Forbidden("Profile modification is not permitted.")
	}
	return user, field, nil
}

func (p *Profiles) put(c *httpapi.Call) (any, error) {
	user, field, err := p.target(c)
	if err != nil {
		return nil, err
	}
	var body map[string]json.RawMessage
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	value, ok := body[field]
	if !ok {
		return nil, matrix.MissingParam("%s is missing from the body", field)
	}
	if value, err = checkValue(field, value); err != nil {
		return nil, err
	}
	return nil, p.Set(c.Ctx(), user, field, value)
}

// checkValue returns what is to be stored; nil removes the field: older clients
// clear a name by setting it to nothing.
func checkValue(field string, value json.RawMessage) (json.RawMessage, error) {
	if field == DisplayName || field == AvatarURL || field == timeZone {
		var s *string
		if json.Unmarshal(value, &s) != nil {
			return nil, matrix.BadJSON("%s must be a string", field)
		}
		if s == nil || *s == "" {
			return nil, nil
		}
		switch {
		case field == DisplayName && len(*s) > maxName*4, field == DisplayName && len([]rune(*s)) > maxName:
			return nil, matrix.InvalidParam("a display name has at most %d characters", maxName)
		case field == AvatarURL && len(*s) > maxAvatar:
			return nil, matrix.InvalidParam("avatar_url has at most %d bytes", maxAvatar)
		case field == AvatarURL && strings.Contains(*s, "://") && !validMXC(*s):
			return nil, matrix.InvalidParam("avatar_url must be an mxc:// URI, and no address elsewhere")
		case field == timeZone && !validZone(*s):
			return nil, matrix.InvalidParam("m.tz must be a name of the IANA time zone database")
		}
		b, err := json.Marshal(*s)
		return b, err
	}
	if len(value) > maxProfile {
		return nil, matrix.NewError(http.StatusBadRequest, "M_PROFILE_TOO_LARGE", "the profile would take more than %d bytes", maxProfile)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, value); err != nil {
		return nil, matrix.NotJSON("%s is not valid JSON", field)
	}
	return b.Bytes(), nil
}

func validMXC(s string) bool {
	rest, ok := strings.CutPrefix(s, "mxc://")
	if !ok {
		return false
	}
	server, media, ok := strings.Cut(rest, "/")
	return ok && matrix.ValidServerName(server) && media != "" && !strings.ContainsAny(media, "/?#")
}

// validZone checks the form; not every system has the zone database.
func validZone(s string) bool {
	if len(s) > 64 || strings.Contains(s, "..") {
		return false
	}
	if _, err := time.LoadLocation(s); err == nil {
		return true
	}
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/_+-", r)) {
			return false
		}
	}
	return true
}

func (p *Profiles) delete(c *httpapi.Call) (any, error) {
	user, field, err := p.target(c)
	if err != nil {
		return nil, err
	}
	return nil, p.Set(c.Ctx(), user, field, nil)
}
