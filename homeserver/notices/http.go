package notices

import (
	"encoding/json"
	"net/http"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// maxBody bounds a request: an event with what is around it.
const maxBody = 128 << 10

// Routes are the endpoints of the module, for administrators. Those of
// /_synapse/admin are known to tools that are made for other servers.
func (n *Notices) Routes() []httpapi.Route {
	const (
		own   = "/_carillon/admin/v1/notices"
		known = "/_synapse/admin/v1/send_server_notice"
	)
	admin := func(method, path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: method, Path: path, Auth: httpapi.AuthAdmin, MaxBody: maxBody, Handler: h}
	}
	return []httpapi.Route{
		admin(http.MethodPost, own, n.send),
		admin(http.MethodPut, own+"/{txnId}", n.send),
		admin(http.MethodDelete, own+"/{userId}/{eventId}", n.withdraw),
		admin(http.MethodPost, known, n.send),
		admin(http.MethodPut, known+"/{txnId}", n.send),
	}
}

// ruling are the types of events that make the room what it is.
func ruling(typ string) bool {
	switch typ {
	case "m.room.create", "m.room.member", "m.room.power_levels", "m.room.join_rules", "m.room.tombstone", "m.room.encryption", pinnedType:
		return true
	}
	return false
}

// send sends a notice. With a transaction ID the same request again gives the same event.
func (n *Notices) send(c *httpapi.Call) (any, error) {
	var body struct {
		User     matrix.UserID   `json:"user_id"`
		Type     string          `json:"type"`
		StateKey *string         `json:"state_key"`
		Content  json.RawMessage `json:"content"`
		Pin      bool            `json:"pin"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.User == "" || len(body.Content) == 0 {
		return nil, matrix.MissingParam("user_id and content are needed")
	}
	if _, err := matrix.ParseUserID(string(body.User)); err != nil {
		return nil, err
	}
	if body.Content[0] != '{' {
		return nil, matrix.BadJSON("content must be an object")
	}
	if ruling(body.Type) {
		return nil, matrix.InvalidParam("%s is no notice", body.Type)
	}
	q := Notice{To: body.User, Type: body.Type, StateKey: body.StateKey, Content: body.Content, Pin: body.Pin}
	if txn := c.Var("txnId"); txn != "" {
		q.Txn = events.TxnKey(c.Caller.Device, "notice\x1f"+string(c.Caller.User), txn)
	}
	room, id, err := n.Send(c.Ctx(), q)
	if err != nil {
		return nil, err
	}
	return map[string]string{"room_id": string(room), "event_id": string(id)}, nil
}

// withdraw ends an active notice.
func (n *Notices) withdraw(c *httpapi.Call) (any, error) {
	user, err := c.UserVar("userId")
	if err != nil {
		return nil, err
	}
	id, err := matrix.ParseEventID(c.Var("eventId"))
	if err != nil {
		return nil, err
	}
	return nil, n.Withdraw(c.Ctx(), user, id)
}
