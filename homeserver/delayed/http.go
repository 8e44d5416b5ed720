package delayed

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
)

// Routes are the endpoints of the proposal under its unstable prefix. Whoever has
// a delay ID may act on the event without an access token: a call's server does
// so in the place of a client that is gone.
func (d *Delayed) Routes() []httpapi.Route {
	const base = "/_matrix/client/unstable/org.matrix.msc4140"
	const one = base + "/delayed_events/{delayId}"
	get := func(path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: "GET", Path: path, Auth: httpapi.AuthUser, RateLimit: true, AllowGuest: true, AllowSuspended: true, Handler: h}
	}
	act := func(path string, limit bool, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: "POST", Path: path, Auth: httpapi.AuthOptional, RateLimit: limit, AllowGuest: true, AllowSuspended: true, Handler: h}
	}
	return []httpapi.Route{
		{
			Method: "PUT", Path: base + "/rooms/{roomId}/delayed_event/{eventType}/{txnId}", Auth: httpapi.AuthUser, RateLimit: true,
			AllowGuest: true, Handler: d.putDelayed,
		},
		get(base+"/delayed_events", d.getList),
		get(one, d.getOne),
		act(one+"/send", true, d.action("send")),
		act(one+"/cancel", true, d.action("cancel")),
		// Clients in a call restart every few seconds: that must not use up what
		// their users may do otherwise.
		act(one+"/restart", false, d.action("restart")),
		act(one, false, d.actionInBody), // compat: clients of the proposal's earlier text
	}
}

func (d *Delayed) action(name string) httpapi.Handler {
	return func(c *httpapi.Call) (any, error) { return nil, d.do(c, name) }
}

func (d *Delayed) actionInBody(c *httpapi.Call) (any, error) {
	var q struct {
		Action string `json:"action"`
	}
	if err := c.Body(&q); err != nil {
		return nil, err
	}
	if q.Action == "" {
		return nil, matrix.MissingParam("action is missing")
	}
	return nil, d.do(c, q.Action)
}

func (d *Delayed) do(c *httpapi.Call, action string) error {
	var owner matrix.UserID
	if c.Caller != nil {
		owner = c.Caller.User
	}
	id := c.Var("delayId")
	switch action {
	case "send":
		if c.Caller != nil && c.Caller.Suspended {
			return matrix.NewError(http.StatusForbidden, "M_USER_SUSPENDED", "this account is suspended")
		}
		return d.Send(c.Ctx(), id, owner)
	case "cancel":
		return d.Cancel(c.Ctx(), id, owner)
	case "restart":
		return d.Restart(c.Ctx(), id, owner)
	}
	return matrix.InvalidParam("action must be send, cancel or restart")
}

// Accept takes an event that came by /send or /state with a delay in its query.
// Its errors are those that clients of the proposal's earlier text know.
func (d *Delayed) Accept(c *httpapi.Call, draft rooms.Draft) (any, error) {
	ms, err := strconv.ParseInt(c.Query("org.matrix.msc4140.delay"), 10, 64)
	if err != nil || ms <= 0 {
		return nil, matrix.InvalidParam("the delay must be a number of milliseconds above 0")
	}
	if d.o.MaxScheduled >= 0 && ms > d.o.MaxDelay.Milliseconds() {
		return nil, matrix.Unknown("the delay is longer than this server allows").
			With("org.matrix.msc4140.errcode", "M_MAX_DELAY_EXCEEDED").With("org.matrix.msc4140.max_delay", d.o.MaxDelay.Milliseconds())
	}
	return d.take(c, draft, ms, func() (json.RawMessage, error) { return c.RawBody() })
}

func (d *Delayed) putDelayed(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	var ts int64
	if v := c.Query("ts"); v != "" && c.Caller.AppService != "" {
		if ts, err = strconv.ParseInt(v, 10, 64); err != nil || ts < 0 {
			return nil, matrix.InvalidParam("ts must be a time in milliseconds")
		}
	}
	draft := rooms.Draft{
		Room: room, Sender: c.Caller.User, Type: c.Var("eventType"), TS: ts,
		Txn: events.TxnKey(c.Caller.Device, "delayed\x1f"+c.Var("eventType"), c.Var("txnId")),
	}
	var q struct {
		Delay    *int64          `json:"delay_ms"`
		StateKey *string         `json:"state_key"`
		Content  json.RawMessage `json:"content"`
	}
	if err := c.Body(&q); err != nil {
		return nil, err
	}
	switch {
	case q.Delay == nil:
		return nil, matrix.MissingParam("delay_ms is missing")
	case *q.Delay <= 0:
		return nil, matrix.InvalidParam("delay_ms must be above 0")
	case q.Content == nil:
		return nil, matrix.MissingParam("content is missing")
	case q.Content[0] != '{':
		return nil, matrix.BadJSON("content must be an object")
	case d.o.MaxScheduled >= 0 && *q.Delay > d.o.MaxDelay.Milliseconds():
		return nil, matrix.Forbidden("the delay is longer than this server allows, %d ms", d.o.MaxDelay.Milliseconds())
	}
	draft.StateKey = q.StateKey
	return d.take(c, draft, *q.Delay, func() (json.RawMessage, error) { return q.Content, nil })
}

// take schedules an event; its content is looked at only where the request is
// not a repeated one.
func (d *Delayed) take(c *httpapi.Call, draft rooms.Draft, delay int64, content func() (json.RawMessage, error)) (any, error) {
	if d.o.MaxScheduled < 0 {
		return nil, matrix.Forbidden("this server delays no events")
	}
	txn := draft.Txn
	if txn != "" {
		txn = string(draft.Room) + "\x1f" + txn
		id, err := d.byTxn(c.Ctx(), draft.Sender, txn)
		if err != nil {
			return nil, err
		}
		if id != "" {
			return answer(id), nil
		}
	}
	body, err := content()
	if err != nil {
		return nil, err
	}
	if len(body) > maxContent || len(draft.Type) > maxName || draft.StateKey != nil && len(*draft.StateKey) > maxName {
		return nil, matrix.TooLarge("content may have %d bytes, type and state_key %d each", maxContent, maxName)
	}
	if _, err := matrix.CanonicalJSON(body, false); err != nil {
		return nil, matrix.BadJSON("the content is not canonical JSON: %s", err)
	}
	i := &item{
		user: draft.Sender, room: draft.Room, typ: draft.Type, stateKey: draft.StateKey, content: string(body), sticky: draft.Sticky,
		ts: draft.TS, unlimited: c.Caller.Unlimited, delay: delay,
	}
	if err := d.schedule(c.Ctx(), i, txn); err != nil {
		return nil, err
	}
	return answer(i.id), nil
}

func answer(id string) any { return map[string]string{"delay_id": id} }

// shown is a delayed event as its user sees it.
type shown struct {
	ID        string          `json:"delay_id"`
	Room      matrix.RoomID   `json:"room_id"`
	Type      string          `json:"type"`
	StateKey  *string         `json:"state_key,omitempty"`
	Delay     int64           `json:"delay_ms"`
	Scheduled int64           `json:"scheduled_at"`
	Content   json.RawMessage `json:"content"`
	Error     json.RawMessage `json:"error,omitempty"`
	Event     matrix.EventID  `json:"event_id,omitempty"`
	Final     int64           `json:"finalised_ts,omitempty"`
	// compat: the names in the proposal's earlier text
	OldDelay     int64 `json:"delay"`
	OldScheduled int64 `json:"running_since"`
}

func (i *item) shown() shown {
	s := shown{
		ID: i.id, Room: i.room, Type: i.typ, StateKey: i.stateKey, Delay: i.delay, Scheduled: i.scheduled,
		Content: json.RawMessage(i.content), Event: i.event, Final: i.final, OldDelay: i.delay, OldScheduled: i.scheduled,
	}
	if i.failure != "" {
		s.Error = json.RawMessage(i.failure)
	}
	return s
}

func (d *Delayed) getOne(c *httpapi.Call) (any, error) {
	i, err := d.find(c.Ctx(), c.Var("delayId"), c.Caller.User)
	if err != nil {
		return nil, err
	}
	return i.shown(), nil
}

// maxList bounds one page of the list.
const maxList = 100

func (d *Delayed) getList(c *httpapi.Call) (any, error) {
	limit, err := c.QueryInt("limit", maxList, 1, maxList)
	if err != nil {
		return nil, err
	}
	at, after := int64(0), ""
	if from := c.Query("from"); from != "" {
		ms, id, ok := strings.Cut(from, "_")
		n, err := strconv.ParseInt(ms, 10, 64)
		if !ok || err != nil {
			return nil, matrix.InvalidParam("from is not a token of this endpoint")
		}
		at, after = n, id
	}
	list, err := d.list(c.Ctx(), c.Caller.User, at, after, limit+1)
	if err != nil {
		return nil, err
	}
	body := struct {
		Events []shown `json:"delayed_events"`
		Next   string  `json:"next_batch,omitempty"`
	}{Events: []shown{}}
	if len(list) > limit {
		list = list[:limit]
		last := list[limit-1]
		body.Next = strconv.FormatInt(last.sendAt, 10) + "_" + last.id
	}
	for _, i := range list {
		body.Events = append(body.Events, i.shown())
	}
	return body, nil
}

// Capability is what clients are told of the limits.
func (d *Delayed) Capability() map[string]any {
	delay, n := d.Limits()
	return map[string]any{"max_delay_ms": int64(delay / time.Millisecond), "max_scheduled": n}
}
