package relations

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/history"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	qChildrenBack = `SELECT ` + events.Columns + ` FROM events WHERE rel_to = $1 AND rel_to <> '' AND room_id = $2
AND pos > $3 AND pos <= $4 AND pos <> 0 AND flags & 7 = 0 AND ($5 = '' OR rel_type = $5) AND ($6 = '' OR type = $6)
ORDER BY pos DESC LIMIT $7`
	qChildrenOn = `SELECT ` + events.Columns + ` FROM events WHERE rel_to = $1 AND rel_to <> '' AND room_id = $2
AND pos > $3 AND pos <= $4 AND pos <> 0 AND flags & 7 = 0 AND ($5 = '' OR rel_type = $5) AND ($6 = '' OR type = $6)
ORDER BY pos LIMIT $7`
	qChildrenOfAll = `SELECT ` + events.Columns + ` FROM events WHERE rel_to = ANY($1) AND rel_to <> '' AND room_id = $2
AND pos <> 0 AND flags & 7 = 0 LIMIT $3`
)

// Bounds of a page and of recursion.
const (
	defaultPage  = 20
	largestPage  = 100
	maxDepth     = 3
	mostGathered = 5000
)

// door are the endpoints; they read rooms by the rules of package history.
type door struct {
	r *Relations
	h *history.History
}

// Routes are the endpoints of the module.
func (r *Relations) Routes(h *history.History) []httpapi.Route {
	d := &door{r, h}
	const room = "/_matrix/client/v1/rooms/{roomId}/"
	get := func(path string, fn httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: http.MethodGet, Path: path, Auth: httpapi.AuthUser, AllowSuspended: true, AllowGuest: true, Handler: fn}
	}
	return []httpapi.Route{
		get(room+"relations/{eventId}", d.getRelations),
		get(room+"relations/{eventId}/{relType}", d.getRelations),
		get(room+"relations/{eventId}/{relType}/{eventType}", d.getRelations),
		get(room+"threads", d.getThreads),
	}
}

// query is what a list of relations is asked for.
type query struct {
	parent    matrix.EventID
	relType   string
	eventType string
	from, to  stream.Pos // in the direction of reading
	forward   bool
	recurse   bool
	limit     int
}

const (
	first = stream.Pos(math.MinInt64 + 1)
	last  = stream.Pos(math.MaxInt64 - 1)
)

func parseQuery(c *httpapi.Call) (q query, err error) {
	q = query{
		parent: matrix.EventID(c.Var("eventId")), relType: c.Var("relType"), eventType: c.Var("eventType"),
		from: last, to: first,
	}
	switch c.Query("dir") {
	case "", "b":
	case "f":
		q.from, q.to, q.forward = first, last, true
	default:
		return q, matrix.InvalidParam("dir must be b or f")
	}
	if s := c.Query("from"); s != "" {
		if q.from, err = history.ParseToken(s); err != nil {
			return q, err
		}
	}
	if s := c.Query("to"); s != "" {
		if q.to, err = history.ParseToken(s); err != nil {
			return q, err
		}
	}
	if q.recurse, err = c.Bool("recurse"); err != nil {
		return q, err
	}
	q.limit, err = c.QueryInt("limit", defaultPage, 1, largestPage)
	return q, err
}

// bounds is the range (lo, hi] of positions.
func (q query) bounds() (lo, hi stream.Pos) {
	if q.forward {
		return q.from, q.to
	}
	return q.to, q.from
}

func (d *door) getRelations(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	q, err := parseQuery(c)
	if err != nil {
		return nil, err
	}
	a, err := d.h.Open(c.Ctx(), c.Caller.User, c.Caller.Device, room)
	if matrix.IsCode(err, "M_FORBIDDEN") {
		return nil, matrix.NotFound("there is no event %s that you may see", q.parent)
	} else if err != nil {
		return nil, err
	}
	var out []byte
	err = d.r.db.Read(c.Ctx(), func(tx *sqldb.Tx) error {
		read, err := d.h.Reader(tx, a, nil)
		if err != nil {
			return err
		}
		if _, err := read.Find(tx, q.parent); err != nil {
			return err
		}
		var list []*events.Event
		var more bool
		depth := 1
		if q.recurse {
			list, more, depth, err = d.descendants(tx, room, q, read)
		} else {
			list, more, err = d.children(tx, room, q, read)
		}
		if err != nil {
			return err
		}
		if err := read.Complete(c.Ctx(), tx, list); err != nil {
			return err
		}
		out, err = encodePage(read, list, more, q, depth, c.Query("from"))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading relations: %w", err)
	}
	return httpapi.Raw(out), nil
}

func encodePage(read *history.Reader, list []*events.Event, more bool, q query, depth int, from string) ([]byte, error) {
	b := []byte(`{"chunk":`)
	b = read.AppendList(b, list)
	if more {
		pos := list[len(list)-1].Pos
		if !q.forward {
			pos--
		}
		b = append(b, `,"next_batch":`...)
		b = matrix.AppendJSONString(b, history.Token(pos))
	}
	if from != "" {
		b = append(b, `,"prev_batch":`...)
		b = matrix.AppendJSONString(b, from)
	}
	if q.recurse {
		b = append(b, fmt.Sprintf(`,"recursion_depth":%d`, depth)...)
	}
	return append(b, '}'), nil
}

// children reads a page of direct children.
func (d *door) children(tx *sqldb.Tx, room matrix.RoomID, q query, read *history.Reader) (list []*events.Event, more bool, err error) {
	lo, hi := q.bounds()
	text := qChildrenBack
	if q.forward {
		text = qChildrenOn
	}
	for n := q.limit + 1; ; n = max(n, 100) { // many may be of no interest
		rows, err := sqldb.Select(tx, events.Scan, text, string(q.parent), string(room), int64(lo), int64(hi), q.relType, q.eventType, n)
		if err != nil {
			return nil, false, err
		}
		for _, e := range rows {
			if q.forward {
				lo = e.Pos
			} else {
				hi = e.Pos - 1
			}
			if e.IsRelationship() || !read.Wants(e) {
				continue
			}
			if len(list) == q.limit {
				return list, true, nil
			}
			list = append(list, e)
		}
		if len(rows) < n {
			return list, false, nil
		}
	}
}

// descendants reads a page of what relates to the event directly or over others.
func (d *door) descendants(tx *sqldb.Tx, room matrix.RoomID, q query, read *history.Reader) (list []*events.Event, more bool, depth int, err error) {
	seen := map[matrix.EventID]bool{q.parent: true}
	level := []string{string(q.parent)}
	lo, hi := q.bounds()
	for len(level) > 0 && depth < maxDepth && len(seen) < mostGathered {
		rows, err := sqldb.Select(tx, events.Scan, qChildrenOfAll, level, string(room), mostGathered-len(seen))
		if err != nil {
			return nil, false, 0, err
		}
		depth++
		level = level[:0]
		for _, e := range rows {
			if seen[e.ID] || e.IsRelationship() {
				continue
			}
			seen[e.ID] = true
			level = append(level, string(e.ID))
			if e.Pos > lo && e.Pos <= hi && (q.relType == "" || e.RelType == q.relType) &&
				(q.eventType == "" || e.Type == q.eventType) && read.Wants(e) {
				list = append(list, e)
			}
		}
	}
	slices.SortFunc(list, func(a, b *events.Event) int {
		if q.forward {
			return cmp.Compare(a.Pos, b.Pos)
		}
		return cmp.Compare(b.Pos, a.Pos)
	})
	if more = len(list) > q.limit; more {
		list = list[:q.limit]
	}
	return list, more, depth, nil
}

func (d *door) getThreads(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	own := false
	switch c.Query("include") {
	case "", "all":
	case "participated":
		own = true
	default:
		return nil, matrix.InvalidParam("include must be all or participated")
	}
	limit, err := c.QueryInt("limit", defaultPage, 1, largestPage)
	if err != nil {
		return nil, err
	}
	before := last
	if s := c.Query("from"); s != "" {
		if before, err = history.ParseToken(s); err != nil {
			return nil, err
		}
	}
	a, err := d.h.Open(c.Ctx(), c.Caller.User, c.Caller.Device, room)
	if err != nil {
		return nil, err
	}
	var out []byte
	err = d.r.db.Read(c.Ctx(), func(tx *sqldb.Tx) (err error) {
		read, err := d.h.Reader(tx, a, nil)
		if err != nil {
			return err
		}
		out, err = d.threads(c.Ctx(), tx, read, c.Caller.User, room, before, limit, own)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading threads: %w", err)
	}
	return httpapi.Raw(out), nil
}

func (d *door) threads(ctx context.Context, tx *sqldb.Tx, read *history.Reader, user matrix.UserID, room matrix.RoomID, before stream.Pos, limit int, own bool) ([]byte, error) {
	t, err := d.r.threads(tx, room)
	if err != nil {
		return nil, err
	}
	var roots []*events.Event
	var next stream.Pos
	candidates := t.list(before)
pages:
	for len(candidates) > 0 {
		n := min(len(candidates), largestPage)
		ids := make([]matrix.EventID, n)
		for i, th := range candidates[:n] {
			ids[i] = th.root
		}
		found, err := d.r.store.GetMany(tx, ids)
		if err != nil {
			return nil, err
		}
		for _, th := range candidates[:n] {
			e := found[th.root]
			if e == nil || e.Room != room || !read.Sees(e) || own && e.Sender != user && !t.participated(th.root, user) {
				continue
			}
			if len(roots) == limit {
				break pages
			}
			roots, next = append(roots, e), th.pos
		}
		candidates = candidates[n:]
	}
	more := len(roots) == limit && len(candidates) > 0
	if err := read.Complete(ctx, tx, roots); err != nil {
		return nil, err
	}
	if roots, err = d.hideIgnored(user, roots); err != nil {
		return nil, err
	}
	b := []byte(`{"chunk":`)
	b = read.AppendList(b, roots)
	if more {
		b = append(b, `,"next_batch":`...)
		b = matrix.AppendJSONString(b, history.Token(next))
	}
	return append(b, '}'), nil
}

// hideIgnored redacts the roots of ignored users for this reader.
//
// Spec: get_matrixclientv1roomsroomidthreads
func (d *door) hideIgnored(user matrix.UserID, roots []*events.Event) ([]*events.Event, error) {
	ignored := d.r.data.Ignored(user)
	for i, e := range roots {
		if !ignored.Has(e.Sender) || e.Redacted() {
			continue
		}
		redacted, err := e.Redact(&events.Event{})
		if err != nil {
			return nil, err
		}
		redacted.Redaction = nil
		roots[i] = redacted
	}
	return roots, nil
}

func encode(p *parts) (json.RawMessage, error) {
	raw, err := json.Marshal(p)
	return raw, err
}
