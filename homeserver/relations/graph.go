package relations

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/history"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Bounds of a walk from event to event.
const (
	mostReturned   = 100  // events of one answer
	deepest        = 100  // steps from the first event
	broadest       = 100  // children of one event that are followed
	mostChildren   = 5000 // children of one event that are counted
	mostAsked      = 5    // questions to other servers for one request
	serversAsked   = 3    // servers that are tried for one question
	relationships  = "event_relationships"
	graphRefusal   = "there is no event %s that you may see"
	qRelationships = `SELECT ` + events.Columns + ` FROM events WHERE rel_to = $1 AND rel_to <> '' AND room_id = $2
AND rel_type LIKE 'org.matrix.msc2836:%' AND flags & 3 = 0 LIMIT $3`
	qClaim    = `SELECT total, children, hash, explored FROM relations_claims WHERE event_id = $1`
	qSetClaim = `INSERT INTO relations_claims (event_id, total, children, hash, explored) VALUES ($1, $2, $3, $4, '')
ON CONFLICT (event_id) DO UPDATE SET total = excluded.total, children = excluded.children, hash = excluded.hash WHERE relations_claims.total < excluded.total`
	qExplored = `UPDATE relations_claims SET explored = hash WHERE event_id = $1`
)

// graph walks the relations of m.relationship over all servers of a room.
//
// Spec: MSC2836
type graph struct {
	r      *Relations
	h      *history.History
	rooms  *rooms.Rooms
	client *fedclient.Client // nil on a server that does not federate
}

// GraphRoutes are the endpoints for relations by m.relationship, for clients and for
// other servers; client is nil on a server that does not federate.
//
// Spec: MSC2836
func (r *Relations) GraphRoutes(h *history.History, rm *rooms.Rooms, client *fedclient.Client) []httpapi.Route {
	g := &graph{r, h, rm, client}
	list := []httpapi.Route{{Method: http.MethodPost, Path: "/_matrix/client/unstable/" + relationships, Auth: httpapi.AuthUser, AllowSuspended: true, Handler: g.postClient}}
	if client != nil {
		list = append(list, httpapi.Route{Method: http.MethodPost, Path: "/_matrix/federation/unstable/" + relationships, Auth: httpapi.AuthServer, Handler: g.postServer})
	}
	return list
}

// walk is what somebody asks for.
type walk struct {
	Event           matrix.EventID `json:"event_id"`
	Room            matrix.RoomID  `json:"room_id,omitempty"`
	MaxDepth        *int           `json:"max_depth,omitempty"`
	MaxBreadth      *int           `json:"max_breadth,omitempty"`
	Limit           *int           `json:"limit,omitempty"`
	DepthFirst      bool           `json:"depth_first"`
	RecentFirst     *bool          `json:"recent_first,omitempty"`
	IncludeParent   bool           `json:"include_parent"`
	IncludeChildren bool           `json:"include_children"`
	Direction       string         `json:"direction,omitempty"`
}

func bound(v *int, normal, most int) int {
	switch {
	case v == nil:
		return normal
	case *v < 0:
		return most
	}
	return min(*v, most)
}

func (q *walk) check() error {
	if _, err := matrix.ParseEventID(string(q.Event)); err != nil {
		return err
	}
	if q.Direction == "" {
		q.Direction = "down"
	}
	if q.Direction != "down" && q.Direction != "up" {
		return matrix.InvalidParam("direction must be up or down")
	}
	return nil
}

// walker is one walk.
type walker struct {
	*graph
	q       walk
	room    matrix.RoomID
	limit   int
	breadth int
	// sees leaves out what the reader may not see.
	sees func(ctx context.Context, list []*events.Event) ([]*events.Event, error)
	// ask is nil where other servers are not asked.
	ask   func(ctx context.Context, id matrix.EventID) error
	asked int
	in    map[matrix.EventID]bool
	out   []*events.Event
}

type step struct {
	e     *events.Event
	depth int
}

// start finds where the walk begins; other servers are asked for what is not known.
func (w *walker) start(ctx context.Context) (*events.Event, error) {
	e, err := w.get(ctx, w.q.Event)
	if err != nil {
		return nil, err
	}
	if e != nil {
		if l, err := w.sees(ctx, []*events.Event{e}); err != nil || len(l) == 1 {
			return e, err
		}
	}
	return nil, matrix.NotFound(graphRefusal, w.q.Event)
}

// get reads an event of the room, from another server if need be; nil if it cannot be had.
func (w *walker) get(ctx context.Context, id matrix.EventID) (*events.Event, error) {
	for {
		e, err := w.r.store.ByID(ctx, id)
		if err != nil {
			return nil, err
		}
		if e != nil {
			if e.Room != w.room || e.Hidden() {
				return nil, nil
			}
			return e, nil
		}
		if ok, err := w.question(ctx, id); !ok || err != nil {
			return nil, err
		}
	}
}

// question asks other servers about an event, once, and reports whether they have answered.
func (w *walker) question(ctx context.Context, id matrix.EventID) (bool, error) {
	if w.ask == nil || w.asked >= mostAsked {
		return false, nil
	}
	w.asked++
	err := w.ask(ctx, id)
	if err != nil && ctx.Err() == nil {
		log.WithError(err).WithField("event_id", id).Info("no other server could say what an event relates to")
		return false, nil
	}
	return err == nil, err
}

// add puts an event into the answer and reports whether there is room for more.
func (w *walker) add(e *events.Event) bool {
	if !w.in[e.ID] {
		if len(w.out) >= w.limit {
			return false
		}
		w.in[e.ID] = true
		w.out = append(w.out, e)
	}
	return true
}

// run fills the answer, and reports whether it was cut off.
func (w *walker) run(ctx context.Context, from *events.Event) (limited bool, err error) {
	w.in = map[matrix.EventID]bool{}
	w.limit, w.breadth = max(bound(w.q.Limit, mostReturned, mostReturned), 1), bound(w.q.MaxBreadth, 10, broadest)
	depth := bound(w.q.MaxDepth, 3, deepest)
	w.add(from)
	if w.q.IncludeParent {
		l, err := w.next(ctx, from, true)
		if err != nil {
			return false, err
		}
		for _, e := range l {
			if !w.add(e) {
				return true, nil
			}
		}
	}
	if w.q.IncludeChildren {
		l, err := w.next(ctx, from, false)
		if err != nil {
			return false, err
		}
		for _, e := range l {
			if !w.add(e) {
				return true, nil
			}
		}
	}
	seen := map[matrix.EventID]bool{}
	queue := []step{{from, 0}}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		if seen[at.e.ID] {
			continue
		}
		seen[at.e.ID] = true
		if !w.add(at.e) {
			return true, nil
		}
		if at.depth >= depth {
			continue
		}
		l, err := w.next(ctx, at.e, w.q.Direction == "up")
		if err != nil {
			return false, err
		}
		var more []step
		for _, e := range l[:min(len(l), w.breadth)] {
			more = append(more, step{e, at.depth + 1})
		}
		if w.q.DepthFirst {
			queue = append(more, queue...)
		} else {
			queue = append(queue, more...)
		}
	}
	return false, nil
}

// next is an event's parent or its children, as far as the reader may see them.
func (w *walker) next(ctx context.Context, e *events.Event, up bool) ([]*events.Event, error) {
	if up {
		if !e.IsRelationship() {
			return nil, nil
		}
		p, err := w.get(ctx, e.RelTo)
		if err != nil || p == nil {
			return nil, err
		}
		return w.sees(ctx, []*events.Event{p})
	}
	list, claimed, err := w.children(ctx, e.ID)
	if err != nil {
		return nil, err
	}
	if claimed.unexplored(list) {
		if ok, err := w.question(ctx, e.ID); err != nil {
			return nil, err
		} else if ok {
			if err := w.explored(ctx, e.ID); err != nil {
				return nil, err
			}
			if list, _, err = w.children(ctx, e.ID); err != nil {
				return nil, err
			}
		}
	}
	recent := w.q.RecentFirst == nil || *w.q.RecentFirst
	slices.SortFunc(list, func(a, b *events.Event) int {
		if recent {
			a, b = b, a
		}
		return cmp.Or(cmp.Compare(a.TS, b.TS), cmp.Compare(a.Depth, b.Depth), cmp.Compare(a.Pos, b.Pos), cmp.Compare(a.ID, b.ID))
	})
	return w.sees(ctx, list)
}

// claim is what another server has said of an event's children.
type claim struct {
	total          int
	children, hash string
	explored       string
}

// unexplored reports whether there must be children that are not known here, and that
// nobody has been asked for.
func (c claim) unexplored(known []*events.Event) bool {
	if c.total == 0 || c.hash == c.explored || len(known) > c.total {
		return false
	}
	return len(known) < c.total || hashOf(known) != c.hash
}

func hashOf(list []*events.Event) string {
	ids := make([]string, len(list))
	for i, e := range list {
		ids[i] = string(e.ID)
	}
	slices.Sort(ids)
	sum := sha256.Sum256([]byte(strings.Join(slices.Compact(ids), "")))
	return base64.RawStdEncoding.EncodeToString(sum[:])
}

// children reads what relates to an event here, and what others say of it.
func (g *graph) children(ctx context.Context, id matrix.EventID) (list []*events.Event, c claim, err error) {
	err = g.r.db.Read(ctx, func(tx *sqldb.Tx) error {
		parent, err := g.r.store.Get(tx, id)
		if err != nil || parent == nil {
			return err
		}
		if list, err = sqldb.Select(tx, events.Scan, qRelationships, string(id), string(parent.Room), mostChildren); err != nil {
			return err
		}
		err = tx.QueryRow(qClaim, string(id)).Scan(&c.total, &c.children, &c.hash, &c.explored)
		if errors.Is(err, sqldb.ErrNoRows) {
			return nil
		}
		return err
	})
	if err != nil {
		return nil, c, fmt.Errorf("reading the children of %s: %w", id, err)
	}
	return list, c, nil
}

func (g *graph) explored(ctx context.Context, id matrix.EventID) error {
	return g.r.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qExplored, string(id))
		return err
	})
}

// counts are the fields of unsigned by which readers learn that there is more: those
// that speak of the most children.
func (g *graph) counts(ctx context.Context, id matrix.EventID) (children json.RawMessage, hash string, err error) {
	list, c, err := g.children(ctx, id)
	if err != nil {
		return nil, "", err
	}
	if c.total > len(list) {
		return json.RawMessage(c.children), c.hash, nil
	}
	count := map[string]int{}
	for _, e := range list {
		count[strings.TrimPrefix(e.RelType, events.RelationshipPrefix)]++
	}
	children, err = json.Marshal(count)
	return children, hashOf(list), err
}
