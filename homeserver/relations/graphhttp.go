package relations

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/history"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// answer is what is said of a walk.
type answer struct {
	Events    []json.RawMessage `json:"events"`
	Limited   bool              `json:"limited"`
	AuthChain []json.RawMessage `json:"auth_chain,omitempty"` // between servers
}

// roomOf finds the room of a walk; the client's hint is for events that are not known.
func (g *graph) roomOf(ctx context.Context, q walk) (matrix.RoomID, error) {
	e, err := g.r.store.ByID(ctx, q.Event)
	switch {
	case err != nil:
		return "", err
	case e != nil:
		return e.Room, nil
	case q.Room == "":
		return "", matrix.NotFound(graphRefusal, q.Event)
	}
	return matrix.ParseRoomID(string(q.Room))
}

// asked reads a request, and finds the room of its event.
func (g *graph) asked(c *httpapi.Call) (q walk, room matrix.RoomID, err error) {
	if err = c.Body(&q); err == nil {
		err = q.check()
	}
	if err == nil {
		room, err = g.roomOf(c.Ctx(), q)
	}
	return q, room, err
}

func (g *graph) postClient(c *httpapi.Call) (any, error) {
	q, room, err := g.asked(c)
	if err != nil {
		return nil, err
	}
	ctx := c.Ctx()
	a, err := g.h.Open(ctx, c.Caller.User, c.Caller.Device, room)
	if matrix.IsCode(err, "M_FORBIDDEN") || matrix.IsCode(err, "M_NOT_FOUND") {
		return nil, matrix.NotFound(graphRefusal, q.Event)
	} else if err != nil {
		return nil, err
	}
	open, err := g.open(ctx, room, c.Caller.User)
	if err != nil {
		return nil, err
	}
	w := &walker{graph: g, q: q, room: room}
	if open && g.client != nil { // who is in the room may have others asked
		w.ask = func(ctx context.Context, id matrix.EventID) error { return w.fetch(ctx, id) }
	}
	w.sees = func(ctx context.Context, list []*events.Event) (out []*events.Event, err error) {
		err = g.r.db.Read(ctx, func(tx *sqldb.Tx) error {
			read, err := g.h.Reader(tx, a, nil)
			out = slices.DeleteFunc(slices.Clone(list), func(e *events.Event) bool {
				return err == nil && (e.Hidden() || e.Flags&events.FlagOutlier == 0 && !read.Sees(e) || e.Flags&events.FlagOutlier != 0 && !open)
			})
			return err
		})
		return out, err
	}
	from, err := w.start(ctx)
	if err != nil {
		return nil, err
	}
	limited, err := w.run(ctx, from)
	if err != nil {
		return nil, err
	}
	return w.encode(ctx, a, limited)
}

// open reports whether events without a place in the history of a room may be shown to
// a user: he is in it, and those who are may read all of it.
func (g *graph) open(ctx context.Context, room matrix.RoomID, user matrix.UserID) (bool, error) {
	m, err := g.rooms.Membership(ctx, room, user)
	if err != nil || m != "join" {
		return false, err
	}
	return g.readable(ctx, room)
}

func (g *graph) readable(ctx context.Context, room matrix.RoomID) (bool, error) {
	e, err := g.rooms.State(ctx, room, "m.room.history_visibility", "")
	if err != nil || e == nil {
		return err == nil, err
	}
	v := e.ContentString("history_visibility")
	return v != "joined" && v != "invited", nil
}

// encode gives the events as clients see them.
func (w *walker) encode(ctx context.Context, a history.Access, limited bool) (any, error) {
	var list []json.RawMessage
	err := w.r.db.Read(ctx, func(tx *sqldb.Tx) error {
		read, err := w.h.Reader(tx, a, nil)
		if err != nil {
			return err
		}
		if err := read.Complete(ctx, tx, w.out); err != nil {
			return err
		}
		list = list[:0]
		for _, e := range w.out {
			list = append(list, read.Append(nil, e))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading relationships: %w", err)
	}
	return w.counted(ctx, list, limited)
}

// counted adds to each event of the answer how many children it has.
func (w *walker) counted(ctx context.Context, list []json.RawMessage, limited bool) (*answer, error) {
	for i, e := range w.out {
		children, hash, err := w.counts(ctx, e.ID)
		if err != nil {
			return nil, err
		}
		raw, err := sjson.SetRawBytes(list[i], "unsigned.children", children)
		if err == nil {
			raw, err = sjson.SetBytes(raw, "unsigned.children_hash", hash)
		}
		if err != nil {
			return nil, fmt.Errorf("counting the children of %s: %w", e.ID, err)
		}
		list[i] = raw
	}
	return &answer{Events: list, Limited: limited}, nil
}

// fetch asks other servers of the room about an event, and keeps what they say.
func (w *walker) fetch(ctx context.Context, id matrix.EventID) error {
	q := w.q
	q.Event, q.Room = id, w.room
	err := error(matrix.NotFound("no other server is in the room"))
	asked := 0
	for _, s := range w.rooms.ServersIn(w.room) {
		if s == w.rooms.Server() {
			continue
		}
		if asked++; asked > serversAsked {
			break
		}
		var a answer
		r := fedclient.Request{Method: http.MethodPost, Server: s, Path: fedclient.Path("_matrix", "federation", "unstable", relationships), Body: q}
		if err = w.client.JSON(ctx, r, &a); err == nil && len(a.Events) > 0 {
			return w.keep(ctx, a)
		}
	}
	return err
}

// keep stores events that other servers have given, and what they say of their children.
func (w *walker) keep(ctx context.Context, a answer) error {
	if len(a.Events) > mostReturned {
		a.Events = a.Events[:mostReturned]
	}
	ids, err := w.rooms.Keep(ctx, w.room, a.AuthChain, a.Events)
	if err != nil {
		return err
	}
	return w.r.db.Write(ctx, func(tx *sqldb.Tx) error {
		for i, raw := range a.Events {
			total, children := claimed(raw)
			hash := gjson.GetBytes(raw, "unsigned.children_hash").Str
			if ids[i] == "" || total == 0 || len(hash) > 64 {
				continue
			}
			if _, err := tx.Exec(qSetClaim, string(ids[i]), total, string(children), hash); err != nil {
				return err
			}
		}
		return nil
	})
}

// mostTypes is how many types of relation of one event another server may count.
const mostTypes = 20

// claimed reads how many children an event has by what came with it; 0 is what makes
// no sense, too.
func claimed(raw json.RawMessage) (total int, children json.RawMessage) {
	var unsigned struct {
		Children map[string]int `json:"children"`
	}
	if err := json.Unmarshal([]byte(gjson.GetBytes(raw, "unsigned").Raw), &unsigned); err != nil || len(unsigned.Children) > mostTypes {
		return 0, nil
	}
	for typ, n := range unsigned.Children {
		if n < 0 || n > 1<<30 || len(typ) > 255 {
			return 0, nil
		}
		total += n
	}
	children, err := json.Marshal(unsigned.Children)
	if err != nil {
		return 0, nil
	}
	return total, children
}

// postServer answers another server, by what is known here.
func (g *graph) postServer(c *httpapi.Call) (any, error) {
	q, room, err := g.asked(c)
	if err != nil {
		return nil, err
	}
	ctx := c.Ctx()
	if !slices.Contains(g.rooms.ServersIn(room), c.Origin) {
		return nil, matrix.Forbidden("%s is not in the room", c.Origin)
	}
	if ok, err := g.rooms.ACLAllows(ctx, room, c.Origin); err != nil || !ok {
		if err == nil {
			err = matrix.Forbidden("%s is not allowed in this room", c.Origin)
		}
		return nil, err
	}
	open, err := g.readable(ctx, room)
	if err != nil {
		return nil, err
	}
	w := &walker{graph: g, q: q, room: room}
	w.sees = func(ctx context.Context, list []*events.Event) (out []*events.Event, err error) {
		for _, e := range list {
			ok := open
			if e.Flags&events.FlagOutlier == 0 {
				if ok, err = g.rooms.ServerMaySee(ctx, c.Origin, e); err != nil {
					return nil, err
				}
			}
			if ok && !e.Hidden() {
				out = append(out, e)
			}
		}
		return out, nil
	}
	from, err := w.start(ctx)
	if err != nil {
		return nil, err
	}
	limited, err := w.run(ctx, from)
	if err != nil {
		return nil, err
	}
	list := make([]json.RawMessage, len(w.out))
	for i, e := range w.out {
		list[i] = e.JSON
	}
	a, err := w.counted(ctx, list, limited)
	if err != nil {
		return nil, err
	}
	a.AuthChain, err = g.rooms.AuthChains(ctx, w.out)
	return a, err
}
