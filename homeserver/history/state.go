package history

import (
	"fmt"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
)

// getState lists the state, as it is or as it was when the user left.
func (h *History) getState(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	a, err := h.Open(c.Ctx(), c.Caller.User, c.Caller.Device, room)
	if err != nil {
		return nil, err
	}
	var out []byte
	err = h.DB.Read(c.Ctx(), func(tx *sqldb.Tx) error {
		r := &Reader{h: h, a: a, now: h.Now()}
		rows, err := state.At(tx, room, a.upTo)
		if err != nil {
			return err
		}
		nids := make([]int64, len(rows))
		for i, row := range rows {
			nids[i] = row.NID
		}
		list, err := r.byNID(tx, nids)
		if err != nil {
			return err
		}
		if err := r.CompleteState(tx, list); err != nil {
			return err
		}
		out = r.AppendList(make([]byte, 0, 1024*len(list)+2), list)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading state: %w", err)
	}
	return httpapi.Raw(out), nil
}

// getStateEvent is one entry of the state: its content, or with format=event the
// whole event.
func (h *History) getStateEvent(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	format := c.Query("format")
	if format != "" && format != "content" && format != "event" {
		return nil, matrix.InvalidParam("format must be content or event")
	}
	a, err := h.Open(c.Ctx(), c.Caller.User, c.Caller.Device, room)
	if err != nil {
		return nil, err
	}
	key := state.Key{Type: c.Var("eventType"), StateKey: c.Var("stateKey")}
	e, err := h.entry(c, a, key)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, matrix.NotFound("the room has no state %s with the key %q", key.Type, key.StateKey)
	}
	if format != "event" {
		return httpapi.Raw(e.Content()), nil
	}
	r := &Reader{h: h, a: a, now: h.Now()}
	return httpapi.Raw(r.Append(nil, e)), nil
}

func (h *History) entry(c *httpapi.Call, a Access, key state.Key) (e *events.Event, err error) {
	if a.joined { // from memory
		return h.Rooms.State(c.Ctx(), a.room, key.Type, key.StateKey)
	}
	err = h.DB.Read(c.Ctx(), func(tx *sqldb.Tx) error {
		row, ok, err := state.KeyAt(tx, a.room, key, a.upTo)
		if err != nil || !ok {
			e = nil
			return err
		}
		m, err := h.Events.ByNID(tx, []int64{row.NID})
		e = m[row.NID]
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading state: %w", err)
	}
	return e, nil
}
