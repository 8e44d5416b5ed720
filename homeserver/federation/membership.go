package federation

import (
	"context"
	"encoding/json"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
)

// template answers make_join, make_leave and make_knock.
func (f *Federation) template(c *httpapi.Call, prepare func(context.Context, matrix.RoomID, matrix.UserID) (rooms.RemoteTemplate, error)) (any, error) {
	room, err := f.roomVar(c)
	if err != nil {
		return nil, err
	}
	user, err := c.UserVar("userId")
	if err != nil {
		return nil, err
	}
	if user.Server() != c.Origin {
		return nil, matrix.Forbidden("%s is not a user of %s", user, c.Origin)
	}
	t, err := prepare(c.Ctx(), room, user)
	if err != nil {
		return nil, err
	}
	return map[string]any{"room_version": t.Version, "event": t.Event}, nil
}

// versions are the room versions that the other server says it knows; nil if it says none.
func versions(c *httpapi.Call) []string { return c.Values()["ver"] }

func (f *Federation) serveMakeJoin(c *httpapi.Call) (any, error) {
	return f.template(c, func(ctx context.Context, room matrix.RoomID, user matrix.UserID) (rooms.RemoteTemplate, error) {
		return f.parts.Rooms.MakeJoin(ctx, room, user, versions(c))
	})
}

func (f *Federation) serveMakeLeave(c *httpapi.Call) (any, error) {
	return f.template(c, f.parts.Rooms.MakeLeave)
}

func (f *Federation) serveMakeKnock(c *httpapi.Call) (any, error) {
	return f.template(c, func(ctx context.Context, room matrix.RoomID, user matrix.UserID) (rooms.RemoteTemplate, error) {
		return f.parts.Rooms.MakeKnock(ctx, room, user, versions(c))
	})
}

// handedOver reads the event of send_join, send_leave and send_knock.
func (f *Federation) handedOver(c *httpapi.Call) (room matrix.RoomID, id matrix.EventID, raw json.RawMessage, err error) {
	if room, err = f.roomVar(c); err != nil {
		return room, id, nil, err
	}
	if id, err = f.eventVar(c); err != nil {
		return room, id, nil, err
	}
	raw, err = c.RawBody()
	return room, id, raw, err
}

// serveSendJoin lets a user of another server in and gives the state of the room.
func (f *Federation) serveSendJoin(c *httpapi.Call) (any, error) {
	room, id, raw, err := f.handedOver(c)
	if err != nil {
		return nil, err
	}
	omit, err := c.Bool("omit_members")
	if err != nil {
		return nil, err
	}
	s, err := f.parts.Rooms.SendJoin(c.Ctx(), room, id, c.Origin, raw, omit)
	if err != nil {
		return nil, err
	}
	if err := f.passOn(c, room, id); err != nil {
		return nil, err
	}
	return map[string]any{
		"origin": f.own, "event": s.Event, "state": list(s.State), "auth_chain": list(s.AuthChain),
		"members_omitted": omit, "servers_in_room": s.Servers,
	}, nil
}

func (f *Federation) serveSendLeave(c *httpapi.Call) (any, error) {
	room, id, raw, err := f.handedOver(c)
	if err != nil {
		return nil, err
	}
	if err := f.parts.Rooms.SendLeave(c.Ctx(), room, id, c.Origin, raw); err != nil {
		return nil, err
	}
	return nil, f.passOn(c, room, id)
}

func (f *Federation) serveSendKnock(c *httpapi.Call) (any, error) {
	room, id, raw, err := f.handedOver(c)
	if err != nil {
		return nil, err
	}
	stripped, err := f.parts.Rooms.SendKnock(c.Ctx(), room, id, c.Origin, raw)
	if err != nil {
		return nil, err
	}
	if err := f.passOn(c, room, id); err != nil {
		return nil, err
	}
	return map[string]any{"knock_room_state": list(stripped)}, nil
}

// passOn sends an event that was handed over to the other servers of the room: its maker knows none but this one.
func (f *Federation) passOn(c *httpapi.Call, room matrix.RoomID, id matrix.EventID) error {
	var rows []row
	for _, s := range f.reader.servers.of(room) {
		if s != c.Origin {
			rows = append(rows, row{server: s, event: id})
		}
	}
	if len(rows) == 0 {
		return nil
	}
	return f.queue.put(context.WithoutCancel(c.Ctx()), rows, nil)
}

func list(l []json.RawMessage) []json.RawMessage {
	if l == nil {
		return []json.RawMessage{}
	}
	return l
}

// serveInvite takes in the invitation of a local user. Spec: put_matrixfederationv2inviteroomideventid
func (f *Federation) serveInvite(c *httpapi.Call) (any, error) {
	var body struct {
		Version string            `json:"room_version"`
		Event   json.RawMessage   `json:"event"`
		State   []json.RawMessage `json:"invite_room_state"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.Version == "" || len(body.Event) == 0 {
		return nil, matrix.MissingParam("room_version and event are needed")
	}
	event, err := f.invite(c, body.Version, body.Event, body.State)
	if err != nil {
		return nil, err
	}
	return map[string]any{"event": event}, nil
}

// serveInviteV1 is the older form for room versions 1 and 2, whose answer is a pair.
func (f *Federation) serveInviteV1(c *httpapi.Call) (any, error) {
	raw, err := c.RawBody()
	if err != nil {
		return nil, err
	}
	var state []json.RawMessage
	gjson.GetBytes(raw, "unsigned.invite_room_state").ForEach(func(_, v gjson.Result) bool {
		state = append(state, json.RawMessage(v.Raw))
		return true
	})
	event, err := f.invite(c, "1", raw, state)
	if err != nil {
		return nil, err
	}
	return []any{200, map[string]any{"event": event}}, nil
}

// serveExchange turns an invitation that was kept for an address into one for the user who has proven it. Spec:
// put_matrixfederationv1exchange_third_party_inviteroomid
func (f *Federation) serveExchange(c *httpapi.Call) (any, error) {
	room, err := f.roomVar(c)
	if err != nil {
		return nil, err
	}
	raw, err := c.RawBody()
	if err != nil {
		return nil, err
	}
	return nil, f.parts.Rooms.ExchangeThirdParty(c.Ctx(), c.Origin, room, raw)
}

func (f *Federation) invite(c *httpapi.Call, version string, event json.RawMessage, state []json.RawMessage) (json.RawMessage, error) {
	room, err := f.roomVar(c)
	if err != nil {
		return nil, err
	}
	id, err := f.eventVar(c)
	if err != nil {
		return nil, err
	}
	return f.parts.Rooms.ReceiveInvite(c.Ctx(), c.Origin, room, id, version, event, state)
}
