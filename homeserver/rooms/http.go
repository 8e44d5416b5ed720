package rooms

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"

	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Routes are the endpoints that change rooms.
func (r *Rooms) Routes() []httpapi.Route {
	const base = "/_matrix/client/v3"
	route := func(method, path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: method, Path: base + path, Auth: httpapi.AuthUser, RateLimit: true, Handler: h}
	}
	list := []httpapi.Route{
		route("POST", "/createRoom", r.postCreate),
		route("POST", "/join/{roomIdOrAlias}", r.postJoin),
		route("POST", "/rooms/{roomId}/join", r.postJoin),
		route("POST", "/knock/{roomIdOrAlias}", r.postKnock),
		route("POST", "/rooms/{roomId}/invite", r.membership(r.Invite, true)),
		route("POST", "/rooms/{roomId}/kick", r.membership(r.Kick, false)),
		route("POST", "/rooms/{roomId}/ban", r.membership(r.Ban, false)),
		route("POST", "/rooms/{roomId}/unban", r.membership(r.Unban, false)),
		route("POST", "/rooms/{roomId}/leave", r.postLeave),
		route("POST", "/rooms/{roomId}/forget", r.postForget),
		route("PUT", "/rooms/{roomId}/send/{eventType}/{txnId}", r.putSend),
		route("PUT", "/rooms/{roomId}/redact/{eventId}/{txnId}", r.putRedact),
		route("PUT", "/rooms/{roomId}/state/{eventType}/{stateKey}", r.putState),
		route("PUT", "/rooms/{roomId}/state/{eventType}", r.putState),
		route("GET", "/joined_rooms", r.getJoined),
	}
	for i := range list {
		switch list[i].Path {
		case base + "/rooms/{roomId}/leave", base + "/rooms/{roomId}/forget", base + "/joined_rooms":
			list[i].AllowSuspended = true
		case base + "/rooms/{roomId}/redact/{eventId}/{txnId}":
			list[i].AllowSuspended = true // his own events; see putRedact
		}
		switch list[i].Path {
		case base + "/createRoom", base + "/knock/{roomIdOrAlias}", base + "/rooms/{roomId}/invite", base + "/rooms/{roomId}/kick",
			base + "/rooms/{roomId}/ban", base + "/rooms/{roomId}/unban":
		default: // Spec: client-server-api#guest-access
			list[i].AllowGuest = true
		}
	}
	return list
}

// ts is the time that an application service may give to its events.
// Spec: application-service-api#timestamp-massaging
func ts(c *httpapi.Call) (int64, error) {
	v := c.Query("ts")
	if v == "" || c.Caller.AppService == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 {
		return 0, matrix.InvalidParam("ts must be a time in milliseconds")
	}
	return n, nil
}

// place reads where a new event goes: its room, and its time if one is given.
func place(c *httpapi.Call) (matrix.RoomID, int64, error) {
	id, err := c.RoomVar("roomId")
	if err != nil {
		return "", 0, err
	}
	at, err := ts(c)
	return id, at, err
}

// reasoned reads the optional body of a request that may give a reason.
func reasoned(c *httpapi.Call) (raw json.RawMessage, reason string, err error) {
	if raw, err = optionalBody(c); err != nil {
		return nil, "", err
	}
	var q struct {
		Reason string `json:"reason"`
	}
	if err := json.Unmarshal(raw, &q); err != nil {
		return nil, "", matrix.BadJSON("reason must be a string")
	}
	return raw, q.Reason, nil
}

func (r *Rooms) postCreate(c *httpapi.Call) (any, error) {
	var q CreateRequest
	if err := c.Body(&q); err != nil {
		return nil, err
	}
	at, err := ts(c)
	if err != nil {
		return nil, err
	}
	id, err := r.Create(c.Ctx(), c.Caller.User, q, at)
	if err != nil {
		return nil, err
	}
	return map[string]any{"room_id": id}, nil
}

// target reads the room of a join or knock, resolving an alias.
func (r *Rooms) target(c *httpapi.Call) (matrix.RoomID, []matrix.ServerName, error) {
	raw := c.Var("roomIdOrAlias")
	if raw == "" {
		raw = c.Var("roomId")
	}
	var via []matrix.ServerName
	q := c.R.URL.Query()
	for _, s := range append(slices.Clone(q["via"]), q["server_name"]...) {
		if matrix.ValidServerName(s) && !slices.Contains(via, matrix.ServerName(s)) {
			via = append(via, matrix.ServerName(s))
		}
	}
	if len(raw) > 0 && raw[0] == '#' {
		alias, err := matrix.ParseRoomAlias(raw)
		if err != nil {
			return "", nil, err
		}
		id, servers, err := r.o.ResolveAlias(c.Ctx(), alias)
		return id, append(via, servers...), err
	}
	id, err := matrix.ParseRoomID(raw)
	return id, via, err
}

func (r *Rooms) postJoin(c *httpapi.Call) (any, error) {
	raw, reason, err := reasoned(c)
	if err != nil {
		return nil, err
	}
	id, via, err := r.target(c)
	if err != nil {
		return nil, err
	}
	at, err := ts(c)
	if err != nil {
		return nil, err
	}
	if err := r.signedJoin(c.Ctx(), c.Caller.User, id, raw); err != nil {
		return nil, err
	}
	err = r.Join(c.Ctx(), MemberChange{
		Room: id, Sender: c.Caller.User, Target: c.Caller.User, Reason: reason, Via: via, Extra: further(raw), TS: at, Service: c.Caller.Service,
	})
	if err != nil {
		return nil, err
	}
	return map[string]any{"room_id": id}, nil
}

// further are the fields of a join's body that are not parameters: they go into
// the member event, as clients have come to expect.
func further(body json.RawMessage) json.RawMessage {
	var m map[string]json.RawMessage
	if json.Unmarshal(body, &m) != nil {
		return nil
	}
	for _, k := range []string{"reason", "third_party_signed", "membership", "join_authorised_via_users_server"} {
		delete(m, k)
	}
	if len(m) == 0 {
		return nil
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil
	}
	return b
}

func (r *Rooms) postKnock(c *httpapi.Call) (any, error) {
	_, reason, err := reasoned(c)
	if err != nil {
		return nil, err
	}
	id, via, err := r.target(c)
	if err != nil {
		return nil, err
	}
	err = r.Knock(c.Ctx(), MemberChange{Room: id, Sender: c.Caller.User, Target: c.Caller.User, Reason: reason, Via: via})
	if err != nil {
		return nil, err
	}
	return map[string]any{"room_id": id}, nil
}

// optionalBody reads a body that clients may leave out.
func optionalBody(c *httpapi.Call) (json.RawMessage, error) {
	if c.R.ContentLength == 0 {
		return json.RawMessage("{}"), nil
	}
	b, err := c.RawBody()
	if len(b) == 0 && err == nil {
		b = []byte("{}")
	}
	return b, err
}

// membership makes the handler of an endpoint that changes another user's
// membership; invites says that it may name him by an address.
func (r *Rooms) membership(do func(ctx context.Context, m MemberChange) error, invites bool) httpapi.Handler {
	return func(c *httpapi.Call) (any, error) {
		var q struct {
			UserID string `json:"user_id"`
			Reason string `json:"reason"`
			ThirdParty
		}
		if err := c.Body(&q); err != nil {
			return nil, err
		}
		if q.UserID == "" {
			if invites && (q.IDServer != "" || q.Medium != "") {
				id, at, err := place(c)
				if err != nil {
					return nil, err
				}
				return nil, r.InviteThirdParty(c.Ctx(), MemberChange{Room: id, Sender: c.Caller.User, Reason: q.Reason, TS: at}, q.ThirdParty)
			}
			return nil, matrix.MissingParam("user_id is missing")
		}
		user, err := matrix.ParseUserID(q.UserID)
		if err != nil {
			return nil, err
		}
		id, at, err := place(c)
		if err != nil {
			return nil, err
		}
		return nil, do(c.Ctx(), MemberChange{Room: id, Sender: c.Caller.User, Target: user, Reason: q.Reason, TS: at})
	}
}

func (r *Rooms) postLeave(c *httpapi.Call) (any, error) {
	_, reason, err := reasoned(c)
	if err != nil {
		return nil, err
	}
	id, at, err := place(c)
	if err != nil {
		return nil, err
	}
	return nil, r.Leave(c.Ctx(), MemberChange{Room: id, Sender: c.Caller.User, Target: c.Caller.User, Reason: reason, TS: at})
}

func (r *Rooms) postForget(c *httpapi.Call) (any, error) {
	id, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	return nil, r.Forget(c.Ctx(), c.Caller.User, id)
}

func (r *Rooms) putSend(c *httpapi.Call) (any, error) {
	id, at, err := place(c)
	if err != nil {
		return nil, err
	}
	typ := c.Var("eventType")
	d := Draft{
		Room: id, Sender: c.Caller.User, Type: typ, TS: at, OwnOnly: c.Caller.Suspended,
		Txn: events.TxnKey(c.Caller.Device, "send\x1f"+typ, c.Var("txnId")),
	}
	return r.putDraft(c, d)
}

// putDraft completes a draft with the request's body and query and sends it, or
// leaves it to be sent later.
func (r *Rooms) putDraft(c *httpapi.Call, d Draft) (any, error) {
	var err error
	if d.Sticky, err = stickyParam(c); err != nil {
		return nil, err
	}
	if r.o.Delay != nil && c.Query(delayParam) != "" {
		return r.o.Delay(c, d)
	}
	if d.Content, err = c.RawBody(); err != nil {
		return nil, err
	}
	event, err := r.Put(c.Ctx(), d)
	if err != nil {
		return nil, err
	}
	return eventAnswer(event), nil
}

func eventAnswer(id matrix.EventID) httpapi.Raw {
	return httpapi.Raw(append(matrix.AppendJSONString([]byte(`{"event_id":`), string(id)), '}'))
}

// checkRelation refuses relations that clients could not show: a thread on a
// thread, the same reaction twice.
// Spec: client-server-api#validation-of-mthread-relationships, #avoiding-duplicate-annotations
func (r *Rooms) checkRelation(ctx context.Context, d Draft) error {
	if err := r.checkRelationship(ctx, d); err != nil {
		return err
	}
	rel := gjson.GetBytes(d.Content, "m\\.relates_to")
	typ, target := rel.Get("rel_type").Str, matrix.EventID(rel.Get("event_id").Str)
	if target == "" || typ != "m.thread" && typ != "m.annotation" {
		return nil
	}
	return r.db.Read(ctx, func(tx *sqldb.Tx) error {
		if typ == "m.thread" {
			root, err := r.events.Get(tx, target)
			if err == nil && root != nil && root.RelType != "" && !root.IsRelationship() {
				err = matrix.Unknown("a thread cannot begin at an event that relates to another")
			}
			return err
		}
		again, err := r.events.Annotated(tx, target, d.Sender, d.Type, rel.Get("key").Str)
		if err == nil && again != "" {
			var txn matrix.EventID
			if txn, err = r.events.ByTxn(tx, d.Room, d.Sender, d.Txn); err == nil && txn == "" {
				err = matrix.NewError(http.StatusBadRequest, "M_DUPLICATE_ANNOTATION", "you have reacted with this already")
			}
		}
		return err
	})
}

func (r *Rooms) putRedact(c *httpapi.Call) (any, error) {
	_, reason, err := reasoned(c)
	if err != nil {
		return nil, err
	}
	content := map[string]any{}
	if reason != "" {
		content["reason"] = reason
	}
	id, at, err := place(c)
	if err != nil {
		return nil, err
	}
	event, err := matrix.ParseEventID(c.Var("eventId"))
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(content)
	if err != nil {
		return nil, err
	}
	made, err := r.redactEvent(c.Ctx(), Draft{
		Room: id, Sender: c.Caller.User, Type: spec.MRoomRedaction, Content: body, TS: at, OwnOnly: c.Caller.Suspended,
		Txn: events.TxnKey(c.Caller.Device, "redact\x1f"+string(event), c.Var("txnId")),
	}, event)
	if err != nil {
		return nil, err
	}
	return eventAnswer(made), nil
}

// redactEvent sends a redaction in the form of the room's version.
func (r *Rooms) redactEvent(ctx context.Context, d Draft, target matrix.EventID) (matrix.EventID, error) {
	known, err := r.events.ByID(ctx, target)
	if err != nil {
		return "", err
	}
	if known != nil && known.Room != d.Room {
		known = nil
	}
	if known == nil { // another server may have it, if the sender may redact others' events at all
		p, err := r.Power(ctx, d.Room, d.Sender)
		if err != nil {
			return "", err
		}
		if !p.MayRedact() {
			return "", matrix.NotFound("the event %s is not known in this room", target)
		}
	}
	if d.OwnOnly && (known == nil || known.Sender != d.Sender) {
		return "", matrix.NewError(http.StatusForbidden, "M_USER_SUSPENDED", "your account is suspended")
	}
	var content map[string]any
	if err := json.Unmarshal(d.Content, &content); err != nil {
		return "", matrix.BadJSON("the content must be an object")
	}
	content["redacts"] = string(target)
	if d.Content, err = json.Marshal(content); err != nil {
		return "", err
	}
	d.Redacts = target
	return r.Send(ctx, d)
}

func (r *Rooms) putState(c *httpapi.Call) (any, error) {
	id, at, err := place(c)
	if err != nil {
		return nil, err
	}
	key := c.Var("stateKey")
	if c.Caller.Guest && c.Var("eventType") == spec.MRoomMember && key != string(c.Caller.User) {
		return nil, matrix.NewError(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "guests may not do this")
	}
	return r.putDraft(c, Draft{Room: id, Sender: c.Caller.User, Type: c.Var("eventType"), StateKey: &key, TS: at})
}

// checkState refuses what would be wrong though the rules allow it.
func (r *Rooms) checkState(ctx context.Context, id matrix.RoomID, typ, key string, content json.RawMessage) error {
	if err := r.checkKey(ctx, id, key); err != nil {
		return err
	}
	switch typ {
	case spec.MRoomCreate:
		return matrix.InvalidParam("a room has one create event")
	case "m.room.canonical_alias":
		return r.checkCanonicalAlias(ctx, id, content)
	case "m.room.server_acl":
		if !aclAllows(content, r.o.Signer.Server) {
			return matrix.InvalidParam("this ACL would shut out your own server")
		}
	}
	return nil
}

// checkCanonicalAlias makes sure that each alias that is new points here.
// Spec: client-server-api#mroomcanonical_alias
func (r *Rooms) checkCanonicalAlias(ctx context.Context, id matrix.RoomID, content json.RawMessage) error {
	type body struct {
		Alias string   `json:"alias"`
		Alt   []string `json:"alt_aliases"`
	}
	var q, old body
	if err := json.Unmarshal(content, &q); err != nil {
		return matrix.BadJSON("alias must be a string and alt_aliases a list of strings")
	}
	if e, err := r.State(ctx, id, "m.room.canonical_alias", ""); err != nil {
		return err
	} else if e != nil {
		_ = json.Unmarshal(e.Content(), &old) // what cannot be read is not taken as known
	}
	for _, a := range append([]string{q.Alias}, q.Alt...) {
		if a == "" || a == old.Alias || slices.Contains(old.Alt, a) {
			continue
		}
		alias, err := matrix.ParseRoomAlias(a)
		if err != nil {
			return err
		}
		room, _, err := r.o.ResolveAlias(ctx, alias)
		if err != nil || room != id {
			return matrix.NewError(http.StatusBadRequest, "M_BAD_ALIAS", "%s does not point to this room", alias)
		}
	}
	return nil
}

func (r *Rooms) getJoined(c *httpapi.Call) (any, error) {
	list := r.JoinedRooms(c.Caller.User)
	if list == nil {
		list = []matrix.RoomID{}
	}
	return map[string]any{"joined_rooms": list}, nil
}
