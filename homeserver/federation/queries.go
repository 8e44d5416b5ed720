package federation

import (
	"encoding/json"
	"net/http"

	"github.com/carillon-chat/carillon/homeserver/directory"
	"github.com/carillon-chat/carillon/homeserver/e2ee"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// serveProfile answers for a local user. Spec: get_matrixfederationv1queryprofile
func (f *Federation) serveProfile(c *httpapi.Call) (any, error) {
	if f.parts.Profiles == nil {
		return nil, matrix.NotFound("there are no profiles here")
	}
	user, err := f.localUser(c.Query("user_id"))
	if err != nil {
		return nil, err
	}
	profile, err := f.parts.Profiles.Local(c.Ctx(), user)
	if err != nil {
		return nil, err
	}
	if field := c.Query("field"); field != "" {
		out := map[string]json.RawMessage{}
		if v, ok := profile[field]; ok {
			out[field] = v
		}
		return out, nil
	}
	if profile == nil {
		return nil, nil
	}
	return profile, nil
}

func (f *Federation) localUser(s string) (matrix.UserID, error) {
	if s == "" {
		return "", matrix.MissingParam("user_id is missing")
	}
	user, err := matrix.ParseUserID(s)
	if err != nil {
		return "", err
	}
	if user.Server() != f.own {
		return "", matrix.InvalidParam("%s is not a user of this server", user)
	}
	return user, nil
}

// serveDirectory answers for a local alias. Spec: get_matrixfederationv1querydirectory
func (f *Federation) serveDirectory(c *httpapi.Call) (any, error) {
	if f.parts.Directory == nil {
		return nil, matrix.NotFound("there are no aliases here")
	}
	if c.Query("room_alias") == "" {
		return nil, matrix.MissingParam("room_alias is missing")
	}
	alias, err := matrix.ParseRoomAlias(c.Query("room_alias"))
	if err != nil {
		return nil, err
	}
	if alias.Server() != f.own {
		return nil, matrix.InvalidParam("%s is not an alias of this server", alias)
	}
	room, servers, err := f.parts.Directory.Resolve(c.Ctx(), alias)
	if err != nil {
		return nil, err
	}
	return map[string]any{"room_id": room, "servers": servers}, nil
}

// serveQuery stands for queries that are not known here.
func (f *Federation) serveQuery(c *httpapi.Call) (any, error) {
	return nil, matrix.NewError(http.StatusNotFound, "M_UNRECOGNIZED", "unknown query %q", c.Var("queryType"))
}

// servePublicRooms lists the published rooms, by GET and by POST.
func (f *Federation) servePublicRooms(c *httpapi.Call) (any, error) {
	if f.parts.Directory == nil {
		return map[string]any{"chunk": []any{}}, nil
	}
	var q directory.Query
	if c.R.Method == http.MethodPost {
		if err := c.Body(&q); err != nil {
			return nil, err
		}
	} else {
		var err error
		if q.Limit, err = c.QueryInt("limit", 0, 0, 1000); err != nil {
			return nil, err
		}
		if q.AllNetworks, err = c.Bool("include_all_networks"); err != nil {
			return nil, err
		}
		q.Since, q.Network = c.Query("since"), c.Query("third_party_instance_id")
	}
	return f.parts.Directory.PublicRooms(c.Ctx(), q)
}

func (f *Federation) serveDevices(c *httpapi.Call) (any, error) {
	user, err := f.localUser(c.Var("userId"))
	if err != nil {
		return nil, err
	}
	return f.parts.Keys.UserDevices(c.Ctx(), user)
}

func (f *Federation) serveKeysQuery(c *httpapi.Call) (any, error) {
	var body struct {
		Keys *e2ee.Query `json:"device_keys"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.Keys == nil {
		return nil, matrix.MissingParam("device_keys is missing")
	}
	return f.parts.Keys.QueryLocal(c.Ctx(), *body.Keys)
}

func (f *Federation) serveKeysClaim(c *httpapi.Call) (any, error) {
	var body struct {
		Keys *e2ee.Claim `json:"one_time_keys"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.Keys == nil {
		return nil, matrix.MissingParam("one_time_keys is missing")
	}
	own := e2ee.Claim{}
	for u, devices := range *body.Keys {
		if u.Server() == f.own {
			own[u] = devices
		}
	}
	claimed, err := f.parts.Keys.ClaimLocal(c.Ctx(), own)
	if err != nil {
		return nil, err
	}
	return map[string]any{"one_time_keys": claimed}, nil
}
