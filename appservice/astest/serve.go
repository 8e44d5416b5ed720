package astest

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/carillon-chat/carillon/appservice/mxclient"
)

// refusal is an error answer.
type refusal struct {
	status int
	code   string
}

func forbidden() (any, *refusal)   { return nil, &refusal{http.StatusForbidden, "M_FORBIDDEN"} }
func notFound() (any, *refusal)    { return nil, &refusal{http.StatusNotFound, "M_NOT_FOUND"} }
func badRequest() (any, *refusal)  { return nil, &refusal{http.StatusBadRequest, "M_BAD_JSON"} }
func unsupported() (any, *refusal) { return nil, &refusal{http.StatusNotFound, "M_UNRECOGNIZED"} }

// ServeHTTP answers the client-server API.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total++
	fault := FaultNone
	if s.fault != nil {
		fault = s.fault(r)
	}
	if fault == FaultBefore {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	var out any
	refused := &refusal{http.StatusForbidden, "M_FORBIDDEN"}
	if fault != FaultRefused {
		out, refused = s.handle(r, body)
	}
	switch {
	case fault == FaultAfter:
		w.WriteHeader(http.StatusInternalServerError)
		return
	case refused != nil:
		w.WriteHeader(refused.status)
		out = map[string]string{"errcode": refused.code, "error": refused.code}
	case out == nil:
		out = struct{}{}
	}
	_, _ = w.Write(encode(out))
}

// handle finds the caller and the endpoint. The lock is held.
func (s *Server) handle(r *http.Request, body []byte) (any, *refusal) {
	caller, refused := s.caller(r)
	if refused != nil {
		return nil, refused
	}
	p := parts(r.URL.EscapedPath())
	if len(p) < 4 || p[0] != "_matrix" || p[1] != "client" {
		return unsupported()
	}
	switch path := p[3:]; {
	case len(path) == 1 && path[0] == "register":
		return s.register(body)
	case len(path) == 1 && path[0] == "createRoom":
		return s.createRoom(caller, body)
	case len(path) == 1 && path[0] == "joined_rooms":
		return map[string]any{"joined_rooms": s.roomsOf(caller)}, nil
	case len(path) == 2 && path[0] == "account" && path[1] == "whoami":
		return map[string]any{"user_id": caller}, nil
	case len(path) == 3 && path[0] == "profile" && r.Method == http.MethodPut:
		return s.setName(caller, path[1], body)
	case len(path) == 3 && path[0] == "directory":
		if id := s.aliases[path[2]]; id != "" {
			return map[string]any{"room_id": id, "servers": []string{ServerName}}, nil
		}
		return notFound()
	case len(path) == 3 && path[0] == "admin":
		return s.admin(caller, r.Method, path[1], path[2], body)
	case len(path) >= 3 && path[0] == "rooms":
		rm := s.rooms[path[1]]
		if rm == nil {
			return notFound()
		}
		return s.inRoom(rm, caller, r, path[2:], body)
	}
	return unsupported()
}

func parts(path string) []string {
	list := strings.Split(strings.Trim(path, "/"), "/")
	if strings.HasSuffix(path, "/") { // an empty state key
		list = append(list, "")
	}
	for i, p := range list {
		if u, err := url.PathUnescape(p); err == nil {
			list[i] = u
		}
	}
	return list
}

func (s *Server) caller(r *http.Request) (string, *refusal) {
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if token == ASToken {
		as := r.URL.Query().Get("user_id")
		if as == "" {
			s.user(Bot)
			return Bot, nil
		}
		u := s.users[as]
		if u == nil {
			return "", &refusal{http.StatusForbidden, "M_FORBIDDEN"}
		}
		if u.locked && s.LockedMayNotAct {
			return "", &refusal{http.StatusUnauthorized, "M_USER_LOCKED"}
		}
		return as, nil
	}
	id := s.tokens[token]
	switch {
	case id == "":
		return "", &refusal{http.StatusUnauthorized, "M_UNKNOWN_TOKEN"}
	case s.users[id].locked:
		return "", &refusal{http.StatusUnauthorized, "M_USER_LOCKED"}
	}
	return id, nil
}

func (s *Server) register(body []byte) (any, *refusal) {
	var b struct {
		Type     string `json:"type"`
		Username string `json:"username"`
		Password string `json:"password"`
		Hash     string `json:"im.carillon.password_hash"`
	}
	if json.Unmarshal(body, &b) != nil || b.Type != "m.login.application_service" || b.Username == "" {
		return badRequest()
	}
	id := "@" + b.Username + ":" + ServerName
	if s.users[id] != nil {
		return nil, &refusal{http.StatusBadRequest, "M_USER_IN_USE"}
	}
	s.users[id] = &user{password: b.Password + b.Hash}
	s.counts["register"]++
	return map[string]string{"user_id": id}, nil
}

func (s *Server) setName(caller, userID string, body []byte) (any, *refusal) {
	var b struct {
		Name string `json:"displayname"`
	}
	if json.Unmarshal(body, &b) != nil {
		return badRequest()
	}
	if caller != userID {
		return forbidden()
	}
	if s.user(userID).suspended {
		return nil, &refusal{http.StatusForbidden, "M_USER_SUSPENDED"}
	}
	s.user(userID).name = b.Name
	s.counts["displayname"]++
	return nil, nil
}

func (s *Server) admin(caller, method, what, userID string, body []byte) (any, *refusal) {
	u := s.users[userID]
	switch {
	case caller != Bot:
		return forbidden()
	case u == nil:
		return notFound()
	}
	var b struct {
		Locked    bool `json:"locked"`
		Suspended bool `json:"suspended"`
	}
	if method == http.MethodPut {
		if json.Unmarshal(body, &b) != nil {
			return badRequest()
		}
		switch what {
		case "lock":
			u.locked = b.Locked
		case "suspend":
			u.suspended = b.Suspended
		default:
			return unsupported()
		}
		s.counts[what]++
	}
	return map[string]bool{"locked": u.locked, "suspended": u.suspended}, nil
}

// createBody is the part of a createRoom request that the fake obeys.
type createBody struct {
	Version  string         `json:"room_version"`
	Name     string         `json:"name"`
	Alias    string         `json:"room_alias_name"`
	Invite   []string       `json:"invite"`
	Creation map[string]any `json:"creation_content"`
	Power    map[string]any `json:"power_level_content_override"`
	State    []struct {
		Type    string          `json:"type"`
		Key     string          `json:"state_key"`
		Content json.RawMessage `json:"content"`
	} `json:"initial_state"`
}

func (s *Server) createRoom(caller string, body []byte) (any, *refusal) {
	var b createBody
	if json.Unmarshal(body, &b) != nil {
		return badRequest()
	}
	alias := ""
	if b.Alias != "" {
		alias = "#" + b.Alias + ":" + ServerName
		if s.aliases[alias] != "" {
			return nil, &refusal{http.StatusBadRequest, "M_ROOM_IN_USE"}
		}
	}
	r := s.newRoom(caller, b.Version)
	if b.Creation == nil {
		b.Creation = map[string]any{}
	}
	b.Creation["room_version"] = b.Version
	set := func(typ, key string, content any) { s.append(r, caller, typ, &key, encode(content)) }
	set("m.room.create", "", b.Creation)
	set("m.room.member", caller, map[string]string{"membership": "join"})
	power := map[string]any{"users_default": 0, "events_default": 0, "state_default": 50, "ban": 50, "kick": 50, "invite": 0, "redact": 50}
	for k, v := range b.Power {
		power[k] = v
	}
	set("m.room.power_levels", "", power)
	if alias != "" {
		s.aliases[alias] = r.id
		set("m.room.canonical_alias", "", map[string]string{"alias": alias})
	}
	set("m.room.join_rules", "", map[string]string{"join_rule": "invite"})
	for _, e := range b.State {
		set(e.Type, e.Key, e.Content)
	}
	if b.Name != "" {
		set("m.room.name", "", map[string]string{"name": b.Name})
	}
	for _, u := range b.Invite {
		set("m.room.member", u, map[string]string{"membership": "invite"})
	}
	s.counts["create"]++
	return map[string]string{"room_id": r.id}, nil
}

// inRoom answers what is below /rooms/{roomId}.
func (s *Server) inRoom(r *room, caller string, req *http.Request, path []string, body []byte) (any, *refusal) {
	in := r.membership(caller) == "join"
	switch verb := path[0]; verb {
	case "join", "leave", "invite", "kick", "ban":
		return s.member(r, caller, verb, body)
	case "joined_members":
		if !in {
			return forbidden()
		}
		joined := map[string]any{}
		for k, ev := range r.state {
			if k.typ == "m.room.member" && ev.Membership() == "join" {
				joined[k.key] = map[string]string{"display_name": s.user(k.key).name}
			}
		}
		return map[string]any{"joined": joined}, nil
	case "members":
		if !in {
			return forbidden()
		}
		chunk := []*mxclient.Event{}
		for _, ev := range stateList(r) {
			if ev.Type == "m.room.member" && ev.Membership() != req.URL.Query().Get("not_membership") {
				chunk = append(chunk, ev)
			}
		}
		return map[string]any{"chunk": chunk}, nil
	case "state", "send", "redact", "event", "messages":
		if !in {
			return forbidden()
		}
		return s.events(r, caller, req, path, body)
	}
	return unsupported()
}

func (s *Server) events(r *room, caller string, req *http.Request, path []string, body []byte) (any, *refusal) {
	switch {
	case path[0] == "state" && req.Method == http.MethodGet && len(path) == 1:
		return stateList(r), nil
	case path[0] == "state" && len(path) >= 2:
		key := ""
		if len(path) > 2 {
			key = path[2]
		}
		if req.Method == http.MethodGet {
			if ev := r.state[stateKey{path[1], key}]; ev != nil {
				return ev.Content, nil
			}
			return notFound()
		}
		if !json.Valid(body) || s.power(r, caller) < s.needed(r, path[1], true) {
			return forbidden()
		}
		s.counts["state"]++
		return map[string]string{"event_id": s.append(r, caller, path[1], &key, body).ID}, nil
	case path[0] == "send" && len(path) == 3:
		if !json.Valid(body) {
			return badRequest()
		}
		if s.power(r, caller) < s.needed(r, path[1], false) {
			return forbidden()
		}
		return s.once(r, caller, path[2], "send", func() *mxclient.Event { return s.append(r, caller, path[1], nil, body) })
	case path[0] == "redact" && len(path) == 3:
		return s.once(r, caller, path[2], "redact", func() *mxclient.Event {
			ev := s.append(r, caller, "m.room.redaction", nil, encode(map[string]string{"redacts": path[1]}))
			ev.Redacts = path[1]
			return ev
		})
	case path[0] == "event" && len(path) == 2:
		for _, ev := range r.events {
			if ev.ID == path[1] {
				return ev, nil
			}
		}
		return notFound()
	case path[0] == "messages":
		list := slices.Clone(r.events)
		if req.URL.Query().Get("dir") == "b" {
			slices.Reverse(list)
		}
		return map[string]any{"start": "0", "chunk": list}, nil
	}
	return unsupported()
}

func stateList(r *room) []*mxclient.Event {
	out := make([]*mxclient.Event, 0, len(r.state))
	for _, ev := range r.events {
		if ev.StateKey != nil && r.state[stateKey{ev.Type, *ev.StateKey}] == ev {
			out = append(out, ev)
		}
	}
	return out
}

// once keeps a transaction ID from having its effect twice.
func (s *Server) once(r *room, caller, txn, kind string, do func() *mxclient.Event) (any, *refusal) {
	key := caller + " " + r.id + " " + kind + " " + txn
	if s.txns[key] == "" {
		s.txns[key] = do().ID
		s.counts[kind]++
	}
	return map[string]string{"event_id": s.txns[key]}, nil
}
