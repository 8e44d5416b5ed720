package history

import (
	"context"
	"fmt"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// Bounds of a page.
const (
	defaultPage = 10
	largestPage = 1000
	// mostScanned is how many events are read for one page when a filter, or
	// what the user may see, turns most of them away.
	mostScanned = 5000
	// fetched is how many older events other servers are asked for at once, and
	// mostFetches how often for one page.
	fetched     = 100
	mostFetches = 10
)

// query is what /messages is asked for.
type query struct {
	from, to stream.Pos
	hasTo    bool
	forward  bool
	across   bool // holes are not minded
	limit    int
	filter   *accountdata.EventFilter
}

// page is its answer.
type page struct {
	events  []*events.Event
	members []*events.Event
	read    *Reader
	cursor  stream.Pos    // the token to go on from
	atEnd   bool          // nothing known lies beyond
	created bool          // the beginning of the room was seen
	hole    *events.Event // what comes before it is missing; the page ends here
	older   bool          // other servers have just given more
}

func (h *History) getMessages(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	a, err := h.Open(c.Ctx(), c.Caller.User, c.Caller.Device, room) // first: who may not look learns nothing else
	if err != nil {
		return nil, err
	}
	q, err := parseQuery(c)
	if err != nil {
		return nil, err
	}
	start := c.Query("from")
	if start == "" {
		start = Token(h.clip(&q, a))
	} else {
		h.clip(&q, a)
	}
	p, err := h.page(c.Ctx(), a, q)
	if err != nil {
		return nil, err
	}
	for range mostFetches {
		if p.hole != nil {
			more, err := h.Rooms.Fill(c.Ctx(), p.hole, fetched)
			if err != nil {
				return nil, err
			}
			q.across = !more // nobody has more: what is known goes on below
			if p, err = h.page(c.Ctx(), a, q); err != nil {
				return nil, err
			}
			continue
		}
		if !p.atEnd || p.created || q.forward || q.hasTo || len(p.events) >= q.limit {
			break
		}
		// Other servers may know more.
		more, err := h.Rooms.Fetch(c.Ctx(), room, fetched)
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
		if p, err = h.page(c.Ctx(), a, q); err != nil {
			return nil, err
		}
		p.older = true
	}
	return httpapi.Raw(p.encode(start, q)), nil
}

func parseQuery(c *httpapi.Call) (q query, err error) {
	switch c.Query("dir") {
	case "b":
		q.from, q.to = last, first
	case "f":
		q.from, q.to, q.forward = first, last, true
	case "":
		return q, matrix.MissingParam("dir is needed")
	default:
		return q, matrix.InvalidParam("dir must be b or f")
	}
	if q.limit, err = c.QueryInt("limit", defaultPage, 0, largestPage); err != nil {
		return q, err
	}
	if s := c.Query("from"); s != "" {
		if q.from, err = ParseToken(s); err != nil {
			return q, err
		}
	}
	if s := c.Query("to"); s != "" {
		if q.to, err = ParseToken(s); err != nil {
			return q, err
		}
		q.hasTo = true
	}
	q.filter, err = parseFilter(c)
	return q, err
}

func parseFilter(c *httpapi.Call) (*accountdata.EventFilter, error) {
	s := c.Query("filter")
	if s == "" {
		return nil, nil
	}
	return accountdata.ParseEventFilter([]byte(s))
}

// clip keeps the range to what the log holds and the user may read, and
// returns the place where the page begins.
func (h *History) clip(q *query, a Access) stream.Pos {
	end := min(h.Log.Head(), a.upTo)
	if q.forward {
		q.to = min(q.to, end)
		if q.from == first {
			return first
		}
		return q.from
	}
	q.from = min(q.from, end)
	return q.from
}

// page reads one page in one snapshot.
func (h *History) page(ctx context.Context, a Access, q query) (*page, error) {
	var p *page
	err := h.DB.Read(ctx, func(tx *sqldb.Tx) (err error) {
		p = &page{}
		if p.read, err = h.Reader(tx, a, q.filter); err != nil {
			return err
		}
		if err := p.collect(tx, q); err != nil {
			return err
		}
		if err := p.read.Complete(ctx, tx, p.events); err != nil {
			return err
		}
		if q.filter != nil && q.filter.LazyLoadMembers && len(p.events) > 0 {
			oldest := p.events[0].Pos
			if !q.forward {
				oldest = p.events[len(p.events)-1].Pos
			}
			p.members, err = p.read.membersOf(tx, p.events, oldest)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading messages: %w", err)
	}
	return p, nil
}

// collect reads on until the page is full, the range ends, or enough was read.
func (p *page) collect(tx *sqldb.Tx, q query) error {
	lo, hi := q.to, q.from
	if q.forward {
		lo, hi = q.from, q.to
	}
	p.cursor = q.from
	minded := !q.forward && !q.across && q.limit > 0
	if minded {
		var err error
		if p.hole, err = p.read.h.Rooms.Hole(tx, p.read.a.room, q.from); p.hole != nil || err != nil {
			return err
		}
	}
	for scanned := 0; ; {
		if len(p.events) >= q.limit && q.limit > 0 || scanned >= mostScanned || q.limit == 0 {
			return nil
		}
		n := q.limit - len(p.events)
		if scanned > 0 || q.filter != nil {
			n = max(n, 100)
		}
		rows, err := p.read.h.Events.Timeline(tx, p.read.a.room, lo, hi, n, q.forward)
		if err != nil {
			return err
		}
		for _, e := range rows {
			if q.forward {
				lo = e.Pos
				p.cursor = lo
			} else {
				hi = e.Pos - 1
				p.cursor = hi
			}
			p.created = p.created || e.Type == "m.room.create"
			if p.read.Wants(e) {
				p.events = append(p.events, e)
			}
			if len(p.events) == q.limit {
				break // a hole right here is found by the next page
			}
			if minded && e.Gap() {
				if p.hole, err = p.read.h.Rooms.Hole(tx, p.read.a.room, e.Pos-1); p.hole != nil || err != nil {
					return err
				}
			}
		}
		scanned += len(rows)
		if len(rows) < n && len(p.events) < q.limit {
			p.atEnd = true
			return nil
		}
	}
}

func (p *page) encode(start string, q query) []byte {
	b := make([]byte, 0, 256+1024*(len(p.events)+len(p.members)))
	b = append(b, `{"start":`...)
	b = matrix.AppendJSONString(b, start)
	// At the newest event a client goes on with /sync, but it may also ask
	// again here; at the oldest there is nothing more, nor after an empty page up
	// to the place where the client wants to stop.
	more := !p.atEnd || p.older || (q.hasTo || q.forward) && len(p.events) > 0
	if !q.forward && p.created {
		more = q.filter != nil && len(p.events) > 0 // a filtered page ends anywhere; an empty one is the last
	}
	if more {
		b = append(b, `,"end":`...)
		b = matrix.AppendJSONString(b, Token(p.cursor))
	}
	b = append(b, `,"chunk":`...)
	b = p.read.AppendList(b, p.events)
	if p.members != nil {
		b = append(b, `,"state":`...)
		b = p.read.AppendList(b, p.members)
	}
	return append(b, '}')
}

// membersOf reads the member events of those who sent the events, as they were
// at a position.
//
// Spec: client-server-api#lazy-loading-room-members
func (r *Reader) membersOf(tx *sqldb.Tx, list []*events.Event, at stream.Pos) ([]*events.Event, error) {
	seen := make(map[matrix.UserID]bool)
	var nids []int64
	for _, e := range list {
		if seen[e.Sender] {
			continue
		}
		seen[e.Sender] = true
		key := state.Key{Type: "m.room.member", StateKey: string(e.Sender)}
		row, ok, err := state.KeyAt(tx, r.a.room, key, at)
		if err == nil && !ok { // before this server knew the room
			row, ok, err = state.KeyAt(tx, r.a.room, key, last)
		}
		if err != nil {
			return nil, err
		}
		if ok {
			nids = append(nids, row.NID)
		}
	}
	return r.byNID(tx, nids)
}

// byNID reads events in the order of their row numbers' list.
func (r *Reader) byNID(tx *sqldb.Tx, nids []int64) ([]*events.Event, error) {
	m, err := r.h.Events.ByNID(tx, nids)
	if err != nil {
		return nil, err
	}
	out := make([]*events.Event, 0, len(nids))
	for _, n := range nids {
		if e := m[n]; e != nil {
			out = append(out, e)
		}
	}
	return out, nil
}
