package spaces

import (
	"net/http"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Routes are the endpoints for clients.
func (s *Spaces) Routes() []httpapi.Route {
	summary := func(path string) httpapi.Route {
		return httpapi.Route{
			Method: http.MethodGet, Path: "/_matrix/client/" + path, Auth: httpapi.AuthOptional, RateLimit: true,
			AllowSuspended: true, AllowGuest: true, Handler: s.getSummary,
		}
	}
	return []httpapi.Route{
		{
			Method: http.MethodGet, Path: "/_matrix/client/v1/rooms/{roomId}/hierarchy", Auth: httpapi.AuthUser, RateLimit: true,
			AllowSuspended: true, Handler: s.getHierarchy,
		},
		summary("v1/room_summary/{roomIdOrAlias}"),
		summary("unstable/im.nheko.summary/summary/{roomIdOrAlias}"),       // compat: before v1.15
		summary("unstable/im.nheko.summary/rooms/{roomIdOrAlias}/summary"), // compat: an older draft
	}
}

// FederationRoutes are the endpoints for other servers.
func (s *Spaces) FederationRoutes() []httpapi.Route {
	return []httpapi.Route{{
		Method: http.MethodGet, Path: "/_matrix/federation/v1/hierarchy/{roomId}", Auth: httpapi.AuthServer, Handler: s.serveHierarchy,
	}}
}

// getHierarchy reads a part of the tree below a space.
//
// Spec: get_matrixclientv1roomsroomidhierarchy
func (s *Spaces) getHierarchy(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	limit, err := c.QueryInt("limit", defaultPage, 1, largestPage)
	if err != nil {
		return nil, err
	}
	depth, err := c.QueryInt("max_depth", deepest, 0, deepest)
	if err != nil {
		return nil, err
	}
	suggested, err := c.Bool("suggested_only")
	if err != nil {
		return nil, err
	}
	var w *walk
	first := !c.Values().Has("from")
	if first {
		via, err := s.routes(c.Ctx(), c.Caller.User, room, nil)
		if err != nil {
			return nil, err
		}
		w = &walk{
			user: c.Caller.User, root: room, suggestedOnly: suggested, maxDepth: depth,
			ahead: []step{{room: room, via: via}}, seen: map[matrix.RoomID]bool{},
		}
	} else {
		if w, err = s.walks.resume(c.Query("from"), c.Caller.User, room, s.opts.Now()); err != nil {
			return nil, err
		}
		if suggested != w.suggestedOnly && c.Values().Has("suggested_only") || depth != w.maxDepth && c.Values().Has("max_depth") {
			return nil, matrix.InvalidParam("suggested_only and max_depth cannot change on paginated requests")
		}
	}
	list, err := s.page(c.Ctx(), w, limit)
	if err != nil {
		return nil, err
	}
	if first && len(list) == 0 {
		return nil, matrix.Forbidden("You are not allowed to view this room.")
	}
	out := map[string]any{"rooms": list}
	if len(w.ahead) > 0 {
		out["next_batch"] = s.walks.keep(w, s.opts.Now())
	}
	return out, nil
}

// serveHierarchy tells another server of a room and its children.
//
// Spec: server-server-api#get_matrixfederationv1hierarchyroomid
func (s *Spaces) serveHierarchy(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	suggested, err := c.Bool("suggested_only")
	if err != nil {
		return nil, err
	}
	if !s.here(room) {
		return nil, matrix.NotFound("Room does not exist.")
	}
	sum, err := s.summary(c.Ctx(), room)
	if err != nil {
		return nil, err
	}
	if ok, err := s.shownTo(c.Ctx(), c.Origin, sum); err != nil {
		return nil, err
	} else if !ok {
		return nil, matrix.NotFound("Room does not exist.")
	}
	children, err := s.children(c.Ctx(), sum, suggested)
	if err != nil {
		return nil, err
	}
	out := Answer{Room: Room{*sum, children}, Children: []Summary{}, Inaccessible: []matrix.RoomID{}}
	for _, child := range children {
		if !s.here(child.Key) {
			continue
		}
		sum, err := s.summary(c.Ctx(), child.Key)
		if err != nil {
			return nil, err
		}
		ok, err := s.shownTo(c.Ctx(), c.Origin, sum)
		if err != nil {
			return nil, err
		}
		if ok {
			out.Children = append(out.Children, *sum)
		} else {
			out.Inaccessible = append(out.Inaccessible, child.Key)
		}
	}
	return out, nil
}
