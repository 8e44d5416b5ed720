package oldsync

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/history"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// request is one call of /events.
type request struct {
	user   matrix.UserID
	device matrix.DeviceID
	from   stream.Pos
	room   matrix.RoomID // the only one to hear of; empty: all that the user is in
}

// entry is one event of an answer.
type entry struct {
	pos   stream.Pos
	event *events.Event
	read  *history.Reader
}

func (s *OldSync) getEvents(c *httpapi.Call) (any, error) {
	q := request{user: c.Caller.User, device: c.Caller.Device, from: s.Log.Head()}
	if v := c.Query("from"); v != "" {
		pos, err := history.ParseToken(v)
		if err != nil {
			return nil, err
		}
		q.from = min(max(pos, 0), q.from)
	}
	ms, err := c.QueryInt("timeout", int(defaultTimeout/time.Millisecond), 0, int(maxTimeout/time.Millisecond))
	if err != nil {
		return nil, err
	}
	if c.Values().Has("room_id") {
		if q.room, err = matrix.ParseRoomID(c.Query("room_id")); err != nil {
			return nil, err
		}
	} else if s.Presence != nil && s.Presence.Enabled() {
		defer s.Presence.Connect(q.user, "online")()
	}
	done, replaced := s.enter(q.user)
	defer done()
	woken, end := s.wait(q)
	defer end()
	timer := time.NewTimer(time.Duration(ms) * time.Millisecond)
	defer timer.Stop()
	start, wait := q.from, ms > 0
	for {
		body, some, err := s.since(c.Ctx(), &q, start)
		if err != nil || some || !wait {
			return httpapi.Raw(body), err
		}
		select {
		case <-woken:
		case <-timer.C:
			wait = false
		case <-replaced:
			wait = false
		case <-c.Draining():
			wait = false
		case <-c.Ctx().Done():
			return nil, c.Ctx().Err()
		}
	}
}

// wait registers the waiter that fits the request.
func (s *OldSync) wait(q request) (woken chan struct{}, end func()) {
	if q.room != "" {
		return s.onlookers.watch(q.room)
	}
	w := s.Hub.Wait(q.user)
	return w.C, w.Close
}

// since makes an answer with what happened after q.from, and moves q.from to
// where the answer ends; some says whether it holds anything.
func (s *OldSync) since(ctx context.Context, q *request, start stream.Pos) (body []byte, some bool, err error) {
	var access history.Access
	if q.room != "" { // what the user may read can change while he waits
		if access, err = s.History.Open(ctx, q.user, q.device, q.room); err != nil {
			return nil, false, err
		}
	}
	to := s.Log.Head()
	var snap hub.Snapshot
	if q.room == "" {
		s.Hub.Snapshot(q.user, q.from, math.MaxInt64, &snap)
		to = min(to, snap.Head)
	}
	if to <= q.from {
		return encode(nil, start, q.from), false, nil
	}
	var list []entry
	err = s.DB.Read(ctx, func(tx *sqldb.Tx) error {
		g := gathering{s: s, tx: tx, q: q, to: to}
		if q.room != "" {
			err = g.room(access)
		} else {
			err = g.rooms(&snap)
		}
		if err != nil {
			return err
		}
		list, to = g.finish()
		return complete(ctx, tx, list)
	})
	if err != nil {
		return nil, false, fmt.Errorf("reading events: %w", err)
	}
	q.from = to
	return encode(list, start, to), len(list) > 0, nil
}

// gathering collects the events of several rooms.
type gathering struct {
	s    *OldSync
	tx   *sqldb.Tx
	q    *request
	to   stream.Pos // up to here, the list is complete
	list []entry
}

// rooms takes in all rooms of the user, and those that he was invited to or that
// he has left.
func (g *gathering) rooms(snap *hub.Snapshot) error {
	for i := range snap.Rooms {
		if r := &snap.Rooms[i]; r.LastEvent > g.q.from {
			m := rooms.Member{User: g.q.user, Room: r.ID, Membership: "join"}
			if err := g.room(history.Standing(m, g.q.device)); err != nil {
				return err
			}
		}
	}
	changed, err := g.s.Rooms.MembershipsSince(g.tx, g.q.user, g.q.from, g.to)
	if err != nil {
		return err
	}
	for _, m := range changed {
		switch {
		case m.Membership == "join" || m.Membership == "knock": // knocking is unknown to old clients
		case m.WasJoined && m.Membership != "invite":
			err = g.room(history.Standing(m, g.q.device))
		default:
			err = g.single(m)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// room takes in the events of a room.
func (g *gathering) room(a history.Access) error {
	read, err := g.s.History.Reader(g.tx, a, nil)
	if err != nil {
		return err
	}
	page, err := g.s.Events.Timeline(g.tx, a.Room(), g.q.from, min(g.to, a.UpTo()), mostEvents, true)
	if err != nil {
		return err
	}
	if len(page) == mostEvents { // there may be more
		g.to = min(g.to, page[len(page)-1].Pos)
	}
	for _, e := range page {
		if read.Wants(e) {
			g.list = append(g.list, entry{e.Pos, e, read})
		}
	}
	return nil
}

// single takes in a membership of a room that the user was never in.
func (g *gathering) single(m rooms.Member) error {
	if m.Membership == "invite" && g.s.InviteBlocked != nil && g.s.InviteBlocked(m.Sender, g.q.user) || g.s.Data.Ignored(g.q.user).Has(m.Sender) {
		return nil
	}
	e, err := g.s.Events.Get(g.tx, m.Event)
	if err != nil || e == nil {
		return err
	}
	read, err := g.s.History.Reader(g.tx, history.Standing(m, g.q.device), nil)
	if err != nil {
		return err
	}
	g.list = append(g.list, entry{m.Pos, e, read})
	return nil
}

// finish puts the events in order and says up to where they are all there are.
func (g *gathering) finish() ([]entry, stream.Pos) {
	list := slices.DeleteFunc(g.list, func(e entry) bool { return e.pos > g.to })
	slices.SortStableFunc(list, func(a, b entry) int { return cmp.Compare(a.pos, b.pos) })
	if len(list) > mostEvents {
		list = list[:mostEvents]
		g.to = list[mostEvents-1].pos
	}
	return list, g.to
}

// complete loads what the client form of the events needs.
func complete(ctx context.Context, tx *sqldb.Tx, list []entry) error {
	readers := map[*history.Reader][]*events.Event{}
	for _, e := range list {
		readers[e.read] = append(readers[e.read], e.event)
	}
	for r, l := range readers {
		if err := r.Complete(ctx, tx, l); err != nil {
			return err
		}
	}
	return nil
}

func encode(list []entry, start, end stream.Pos) []byte {
	b := append(make([]byte, 0, 128+1024*len(list)), `{"start":`...)
	b = matrix.AppendJSONString(b, history.Token(start))
	b = append(b, `,"end":`...)
	b = matrix.AppendJSONString(b, history.Token(end))
	b = append(b, `,"chunk":[`...)
	for i, e := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = e.read.Append(b, e.event)
	}
	return append(b, `]}`...)
}

// getEvent finds an event whose room the client does not know.
func (s *OldSync) getEvent(c *httpapi.Call) (any, error) {
	id := matrix.EventID(c.Var("eventId"))
	known, err := s.Events.ByID(c.Ctx(), id)
	if err != nil {
		return nil, err
	}
	if known == nil {
		return nil, matrix.NotFound("there is no event %s that you may see", id)
	}
	return s.History.Event(c, known.Room, id)
}
