package history

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
)

// Find reads an event that the user may see; M_NOT_FOUND otherwise.
func (r *Reader) Find(tx *sqldb.Tx, id matrix.EventID) (*events.Event, error) {
	e, err := r.h.Events.Get(tx, id)
	if err != nil {
		return nil, err
	}
	// An outlier stands at no place of the timeline: nobody can be said to have
	// been there.
	if e == nil || e.Room != r.a.room || e.Pos == 0 || !r.Sees(e) {
		return nil, matrix.NotFound("there is no event %s that you may see", id)
	}
	return e, nil
}

func (h *History) getEvent(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	return h.Event(c, room, matrix.EventID(c.Var("eventId")))
}

// Event answers with an event of a room; M_NOT_FOUND where the caller may not see it or it is not there.
func (h *History) Event(c *httpapi.Call, room matrix.RoomID, id matrix.EventID) (any, error) {
	a, err := h.Open(c.Ctx(), c.Caller.User, c.Caller.Device, room)
	if matrix.IsCode(err, "M_FORBIDDEN") {
		return nil, matrix.NotFound("there is no event %s that you may see", id)
	} else if err != nil {
		return nil, err
	}
	var out []byte
	err = h.DB.Read(c.Ctx(), func(tx *sqldb.Tx) error {
		r, err := h.Reader(tx, a, nil)
		if err != nil {
			return err
		}
		e, err := r.Find(tx, id)
		if err != nil {
			return err
		}
		if err := r.Complete(c.Ctx(), tx, []*events.Event{e}); err != nil {
			return err
		}
		out = r.Append(nil, e)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading event: %w", err)
	}
	return httpapi.Raw(out), nil
}

// around is the answer of /context.
type around struct {
	read          *Reader
	event         *events.Event
	before, after []*events.Event
	state         []*events.Event
}

func (h *History) getContext(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	limit, err := c.QueryInt("limit", defaultPage, 0, largestPage)
	if err != nil {
		return nil, err
	}
	filter, err := parseFilter(c)
	if err != nil {
		return nil, err
	}
	a, err := h.Open(c.Ctx(), c.Caller.User, c.Caller.Device, room)
	if err != nil {
		return nil, err
	}
	x, err := h.around(c.Ctx(), a, matrix.EventID(c.Var("eventId")), limit, filter)
	if err != nil {
		return nil, err
	}
	return httpapi.Raw(x.encode()), nil
}

func (h *History) around(ctx context.Context, a Access, id matrix.EventID, limit int, filter *accountdata.EventFilter) (*around, error) {
	var x *around
	err := h.DB.Read(ctx, func(tx *sqldb.Tx) (err error) {
		x = &around{}
		if x.read, err = h.Reader(tx, a, filter); err != nil {
			return err
		}
		if x.event, err = x.read.Find(tx, id); err != nil {
			return err
		}
		back := page{read: x.read}
		if err := back.collect(tx, query{from: x.event.Pos - 1, to: first, limit: limit / 2, filter: filter}); err != nil {
			return err
		}
		on := page{read: x.read}
		end := min(h.Log.Head(), a.upTo)
		if err := on.collect(tx, query{from: x.event.Pos, to: end, limit: limit - limit/2, forward: true, filter: filter}); err != nil {
			return err
		}
		x.before, x.after = back.events, on.events
		all := slices.Concat([]*events.Event{x.event}, x.before, x.after)
		if err := x.read.Complete(ctx, tx, all); err != nil {
			return err
		}
		x.state, err = x.read.stateFor(tx, all)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading context: %w", err)
	}
	return x, nil
}

// stateFor is the state at the last of the events; with lazy loading, the member
// events of their senders alone.
func (r *Reader) stateFor(tx *sqldb.Tx, list []*events.Event) ([]*events.Event, error) {
	at := list[0].Pos
	for _, e := range list {
		at = max(at, e.Pos)
	}
	rows, err := state.At(tx, r.a.room, at)
	if err == nil && len(rows) == 0 { // before this server knew the room
		rows, err = state.Current(tx, r.a.room)
	}
	if err != nil {
		return nil, err
	}
	lazy := r.filter != nil && r.filter.LazyLoadMembers
	var nids []int64
	for _, row := range rows {
		if row.Type == "m.room.member" && lazy && !slices.ContainsFunc(list, func(e *events.Event) bool { return string(e.Sender) == row.StateKey }) {
			continue
		}
		nids = append(nids, row.NID)
	}
	return r.byNID(tx, nids)
}

func (x *around) encode() []byte {
	b := make([]byte, 0, 1024*(2+len(x.before)+len(x.after)+len(x.state)))
	oldest, newest := x.event.Pos, x.event.Pos
	if n := len(x.before); n > 0 {
		oldest = x.before[n-1].Pos
	}
	if n := len(x.after); n > 0 {
		newest = x.after[n-1].Pos
	}
	b = append(b, `{"start":`...)
	b = matrix.AppendJSONString(b, Token(oldest-1))
	b = append(b, `,"end":`...)
	b = matrix.AppendJSONString(b, Token(newest))
	b = append(b, `,"event":`...)
	b = x.read.Append(b, x.event)
	b = append(b, `,"events_before":`...)
	b = x.read.AppendList(b, x.before)
	b = append(b, `,"events_after":`...)
	b = x.read.AppendList(b, x.after)
	b = append(b, `,"state":`...)
	b = x.read.AppendList(b, x.state)
	return append(b, '}')
}

// Moment reads a time and the direction in which the event next to it is wanted.
//
// Spec: get_matrixclientv1roomsroomidtimestamp_to_event
func Moment(c *httpapi.Call) (ts int64, forward bool, err error) {
	dir := c.Query("dir")
	if c.Query("ts") == "" || dir == "" {
		return 0, false, matrix.MissingParam("ts and dir are needed")
	}
	if ts, err = strconv.ParseInt(c.Query("ts"), 10, 64); err != nil {
		return 0, false, matrix.InvalidParam("ts must be a time in milliseconds")
	}
	if dir != "f" && dir != "b" {
		return 0, false, matrix.InvalidParam("dir must be f or b")
	}
	return ts, dir == "f", nil
}

func (h *History) getByTimestamp(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	ts, forward, err := Moment(c)
	if err != nil {
		return nil, err
	}
	a, err := h.Open(c.Ctx(), c.Caller.User, c.Caller.Device, room)
	if err != nil {
		return nil, err
	}
	found, err := h.nearest(c.Ctx(), a, ts, forward)
	if err != nil {
		return nil, err
	}
	more, err := h.Rooms.Reach(c.Ctx(), room, ts, forward, found)
	if err != nil {
		return nil, err
	}
	if more {
		if found, err = h.nearest(c.Ctx(), a, ts, forward); err != nil {
			return nil, err
		}
	}
	if found == nil {
		return nil, matrix.NotFound("Unable to find event from %d in that direction", ts)
	}
	return map[string]any{"event_id": found.ID, "origin_server_ts": found.TS}, nil
}

// nearest finds the event next to a time; nil if there is none that the reader may see.
func (h *History) nearest(ctx context.Context, a Access, ts int64, forward bool) (found *events.Event, err error) {
	err = h.DB.Read(ctx, func(tx *sqldb.Tx) error {
		r, err := h.Reader(tx, a, nil)
		if err != nil {
			return err
		}
		found, err = h.Events.Nearest(tx, a.room, ts, forward)
		if found != nil && !r.Sees(found) {
			found = nil
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("finding event by time: %w", err)
	}
	return found, nil
}
