package receipts

import (
	"encoding/json"
	"net/http"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Routes are the endpoints of the module.
func (r *Receipts) Routes() []httpapi.Route {
	return []httpapi.Route{
		{
			Method: http.MethodPost, Path: "/_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}",
			Auth: httpapi.AuthUser, RateLimit: true, AllowSuspended: true, AllowGuest: true, Handler: r.postReceipt,
		},
		{
			Method: http.MethodPost, Path: "/_matrix/client/v3/rooms/{roomId}/read_markers",
			Auth: httpapi.AuthUser, RateLimit: true, AllowSuspended: true, AllowGuest: true, Handler: r.postMarkers,
		},
	}
}

// room is the room of a call whose caller is in it.
func (r *Receipts) roomOf(c *httpapi.Call) (matrix.RoomID, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return "", err
	}
	if !r.hub.Joined(c.Caller.User, room) {
		return "", matrix.Forbidden("you are not in room %s", room)
	}
	return room, nil
}

func (r *Receipts) postReceipt(c *httpapi.Call) (any, error) {
	typ := c.Var("receiptType")
	switch typ {
	case Read, ReadPrivate, fullyRead:
	default:
		return nil, matrix.InvalidParam("receipt type must be %s, %s or %s", Read, ReadPrivate, fullyRead)
	}
	event, err := matrix.ParseEventID(c.Var("eventId"))
	if err != nil {
		return nil, err
	}
	room, err := r.roomOf(c)
	if err != nil {
		return nil, err
	}
	var body struct {
		Thread json.RawMessage `json:"thread_id"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	thread := ""
	if body.Thread != nil {
		if typ == fullyRead {
			return nil, matrix.InvalidParam("thread_id does not go with %s", fullyRead)
		}
		if json.Unmarshal(body.Thread, &thread) != nil || thread == "" {
			return nil, matrix.InvalidParam("thread_id field must be a non-empty string")
		}
	}
	if typ == fullyRead {
		return nil, r.markFullyRead(c, room, event)
	}
	return nil, r.Mark(c.Ctx(), c.Caller.User, room, typ, event, thread)
}

func (r *Receipts) markFullyRead(c *httpapi.Call, room matrix.RoomID, event matrix.EventID) error {
	if _, err := r.places.Of(c.Ctx(), room, event); err != nil {
		return err
	}
	return r.setFullyRead(c, room, event)
}

func (r *Receipts) setFullyRead(c *httpapi.Call, room matrix.RoomID, event matrix.EventID) error {
	content, err := json.Marshal(map[string]matrix.EventID{"event_id": event})
	if err != nil {
		return err
	}
	return r.data.Put(c.Ctx(), c.Caller.User, room, accountdata.TypeFullyRead, content)
}

func (r *Receipts) postMarkers(c *httpapi.Call) (any, error) {
	room, err := r.roomOf(c)
	if err != nil {
		return nil, err
	}
	var body map[string]json.RawMessage
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	var list []*Receipt
	var marker matrix.EventID
	for _, typ := range []string{Read, ReadPrivate, fullyRead} {
		raw, ok := body[typ]
		if !ok || string(raw) == "null" {
			continue
		}
		var s string
		if json.Unmarshal(raw, &s) != nil {
			return nil, matrix.InvalidParam("%s must be an event ID", typ)
		}
		event, err := matrix.ParseEventID(s)
		if err != nil {
			return nil, err
		}
		p, err := r.places.Of(c.Ctx(), room, event)
		if err != nil {
			return nil, err
		}
		if typ == fullyRead {
			marker = event
			continue
		}
		list = append(list, &Receipt{
			Room: room, User: c.Caller.User, Type: typ, Event: event, TS: matrix.Millis(r.now()), EventPos: p.Pos,
			Author: p.Author, EventTS: p.TS,
		})
	}
	if len(list) > 0 {
		if err := r.store(c.Ctx(), list); err != nil {
			return nil, err
		}
	}
	if marker != "" {
		return nil, r.setFullyRead(c, room, marker)
	}
	return nil, nil
}
