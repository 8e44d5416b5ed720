package federation

import (
	"context"
	"encoding/json"

	"github.com/matrix-org/gomatrixserverlib"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/history"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

const (
	maxBackfill = 100
	maxMissing  = 50
	maxFrom     = 50
)

// transaction wraps events in the form that some answers have.
func (f *Federation) transaction(pdus []json.RawMessage) any {
	return map[string]any{"origin": f.own, "origin_server_ts": matrix.Millis(f.parts.Now()), "pdus": list(pdus)}
}

func (f *Federation) serveBackfill(c *httpapi.Call) (any, error) {
	room, err := f.roomOfOrigin(c)
	if err != nil {
		return nil, err
	}
	if c.Query("limit") == "" {
		return nil, matrix.MissingParam("limit is missing")
	}
	limit, err := c.QueryInt("limit", 0, 1, maxBackfill)
	if err != nil {
		return nil, err
	}
	var from []matrix.EventID
	for _, v := range c.Values()["v"] {
		id, err := matrix.ParseEventID(v)
		if err != nil {
			return nil, err
		}
		if len(from) < maxFrom {
			from = append(from, id)
		}
	}
	if len(from) == 0 {
		return nil, matrix.MissingParam("v is missing")
	}
	pdus, err := f.parts.Rooms.History(c.Ctx(), c.Origin, room, from, limit)
	if err != nil {
		return nil, err
	}
	return f.transaction(pdus), nil
}

func (f *Federation) serveMissingEvents(c *httpapi.Call) (any, error) {
	room, err := f.roomOfOrigin(c)
	if err != nil {
		return nil, err
	}
	body := struct {
		Limit    int              `json:"limit"`
		MinDepth int64            `json:"min_depth"`
		Earliest []matrix.EventID `json:"earliest_events"`
		Latest   []matrix.EventID `json:"latest_events"`
	}{Limit: 10}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.Earliest == nil || body.Latest == nil {
		return nil, matrix.MissingParam("earliest_events and latest_events are needed")
	}
	if len(body.Latest) > maxFrom {
		body.Latest = body.Latest[:maxFrom]
	}
	pdus, err := f.parts.Rooms.MissingEvents(c.Ctx(), c.Origin, room, body.Earliest, body.Latest, min(max(body.Limit, 0), maxMissing), body.MinDepth)
	if err != nil {
		return nil, err
	}
	return map[string]any{"events": list(pdus)}, nil
}

// serveEvent gives one event to a server that is in its room. Spec: get_matrixfederationv1eventeventid
func (f *Federation) serveEvent(c *httpapi.Call) (any, error) {
	id, err := f.eventVar(c)
	if err != nil {
		return nil, err
	}
	ev, err := f.parts.Events.ByID(c.Ctx(), id)
	if err != nil {
		return nil, err
	}
	if ev == nil || ev.Rejected() {
		return nil, matrix.NotFound("the event is not known")
	}
	if err := f.acl(c.Ctx(), ev.Room, c.Origin); err != nil {
		return nil, err
	}
	if err := f.inRoom(ev.Room, c.Origin); err != nil {
		return nil, err
	}
	if ev.Pos != 0 {
		ok, err := f.parts.Rooms.ServerMaySee(c.Ctx(), c.Origin, ev)
		if err != nil {
			return nil, err
		}
		if !ok {
			if ev, err = ev.Redact(ev); err != nil {
				return nil, err
			}
		}
	}
	return f.transaction([]json.RawMessage{ev.JSON}), nil
}

// stateAt reads the state that state and state_ids answer with.
func (f *Federation) stateAt(c *httpapi.Call) (room matrix.RoomID, state, chain []json.RawMessage, err error) {
	if room, err = f.roomOfOrigin(c); err != nil {
		return room, nil, nil, err
	}
	q := c.Query("event_id")
	if q == "" {
		return room, nil, nil, matrix.MissingParam("event_id is missing")
	}
	id, err := matrix.ParseEventID(q)
	if err != nil {
		return room, nil, nil, err
	}
	state, chain, err = f.parts.Rooms.StateAt(c.Ctx(), room, id)
	return room, state, chain, err
}

func (f *Federation) serveState(c *httpapi.Call) (any, error) {
	_, state, chain, err := f.stateAt(c)
	if err != nil {
		return nil, err
	}
	return map[string]any{"pdus": list(state), "auth_chain": list(chain)}, nil
}

func (f *Federation) serveStateIDs(c *httpapi.Call) (any, error) {
	room, state, chain, err := f.stateAt(c)
	if err != nil {
		return nil, err
	}
	version, err := f.parts.Rooms.Version(c.Ctx(), room)
	if err != nil {
		return nil, err
	}
	stateIDs, err := ids(version, state)
	if err != nil {
		return nil, err
	}
	chainIDs, err := ids(version, chain)
	if err != nil {
		return nil, err
	}
	return map[string]any{"pdu_ids": stateIDs, "auth_chain_ids": chainIDs}, nil
}

// ids names stored events.
func ids(version string, pdus []json.RawMessage) ([]matrix.EventID, error) {
	out := make([]matrix.EventID, len(pdus))
	for i, raw := range pdus {
		var err error
		if out[i], err = events.IDOf(raw, gomatrixserverlib.RoomVersion(version)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (f *Federation) serveEventAuth(c *httpapi.Call) (any, error) {
	room, err := f.roomOfOrigin(c)
	if err != nil {
		return nil, err
	}
	id, err := f.eventVar(c)
	if err != nil {
		return nil, err
	}
	chain, err := f.parts.Rooms.AuthChain(c.Ctx(), room, id)
	if err != nil {
		return nil, err
	}
	return map[string]any{"auth_chain": list(chain)}, nil
}

// serveTimestamp finds the event next to a time. Spec: get_matrixfederationv1timestamp_to_eventroomid
func (f *Federation) serveTimestamp(c *httpapi.Call) (any, error) {
	room, err := f.roomOfOrigin(c)
	if err != nil {
		return nil, err
	}
	ts, forward, err := history.Moment(c)
	if err != nil {
		return nil, err
	}
	ev, err := f.nearest(c.Ctx(), room, ts, forward)
	if err != nil {
		return nil, err
	}
	if ev == nil {
		return nil, matrix.NotFound("there is no event in that direction")
	}
	return map[string]any{"event_id": ev.ID, "origin_server_ts": ev.TS}, nil
}

func (f *Federation) nearest(ctx context.Context, room matrix.RoomID, ts int64, forward bool) (ev *events.Event, err error) {
	err = f.db.Read(ctx, func(tx *sqldb.Tx) error {
		ev, err = f.parts.Events.Nearest(tx, room, ts, forward)
		return err
	})
	return ev, err
}
