package rooms

import (
	"errors"
	"maps"
	"sync"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// maxEdges is how many events' authorising events are remembered.
const maxEdges = 50_000

// edges remembers which events authorise which. That never changes, and auth
// chains, which may be as long as a room is old, are walked for each event that
// comes where a room has forked.
type edges struct {
	mu   sync.Mutex
	auth map[matrix.EventID][]matrix.EventID
	rows map[int64][]matrix.EventID // the same by the number of the event's row
}

func (c *edges) of(id matrix.EventID) ([]matrix.EventID, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids, ok := c.auth[id]
	return ids, ok
}

func (c *edges) keep(id matrix.EventID, auth []matrix.EventID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.auth == nil || len(c.auth) >= maxEdges {
		c.auth = map[matrix.EventID][]matrix.EventID{}
	}
	c.auth[id] = auth
}

// ofRows gives what authorises the events of some rows, and the rows that are not
// remembered.
func (c *edges) ofRows(nids []int64) (auth [][]matrix.EventID, unknown []int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, nid := range nids {
		if ids, ok := c.rows[nid]; ok {
			auth = append(auth, ids)
		} else {
			unknown = append(unknown, nid)
		}
	}
	return auth, unknown
}

func (c *edges) keepRow(nid int64, auth []matrix.EventID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rows == nil || len(c.rows) >= maxEdges {
		c.rows = map[int64][]matrix.EventID{}
	}
	c.rows[nid] = auth
}

// authorising picks those of wanted that authorise events of rows, directly or not.
// It reads only events whose edges are not remembered, and ends when all are found:
// the rows may be the state of a large room.
func (r *Rooms) authorising(tx *sqldb.Tx, nids []int64, wanted map[matrix.EventID]bool) (map[matrix.EventID]bool, error) {
	found, seen := map[matrix.EventID]bool{}, map[matrix.EventID]bool{}
	var next []matrix.EventID
	follow := func(ids []matrix.EventID) {
		for _, id := range ids {
			if seen[id] {
				continue
			}
			seen[id] = true
			next = append(next, id)
			if wanted[id] {
				found[id] = true
			}
		}
	}
	lists, unknown := r.edges.ofRows(nids)
	got, err := r.events.ByNID(tx, unknown)
	if err != nil {
		return nil, err
	}
	for nid, e := range got {
		auth := e.AuthEvents()
		r.edges.keepRow(nid, auth)
		lists = append(lists, auth)
	}
	for _, ids := range lists {
		follow(ids)
	}
	for len(next) > 0 && len(found) < len(wanted) {
		ids := next
		next = nil
		if _, err := r.climb(tx, ids, follow); err != nil {
			return nil, err
		}
		if len(seen) > maxChain {
			return nil, errors.New("an auth chain is too long")
		}
	}
	return found, nil
}

// climb tells follow what authorises each of some events, and gives those that had to be
// read for it: what is remembered is not.
func (r *Rooms) climb(tx *sqldb.Tx, ids []matrix.EventID, follow func([]matrix.EventID)) (map[matrix.EventID]*events.Event, error) {
	var unknown []matrix.EventID
	for _, id := range ids {
		if auth, ok := r.edges.of(id); ok {
			follow(auth)
		} else {
			unknown = append(unknown, id)
		}
	}
	got, err := r.events.GetMany(tx, unknown)
	if err != nil {
		return nil, err
	}
	for id, e := range got {
		auth := e.AuthEvents()
		r.edges.keep(id, auth)
		follow(auth)
	}
	return got, nil
}

// authChain reads all events that authorise list, directly or not.
func (r *Rooms) authChain(tx *sqldb.Tx, list []*events.Event) (map[matrix.EventID]*events.Event, error) {
	chain, seen := map[matrix.EventID]*events.Event{}, map[matrix.EventID]bool{}
	var next []matrix.EventID
	follow := func(ids []matrix.EventID) {
		for _, id := range ids {
			if !seen[id] {
				seen[id] = true
				next = append(next, id)
			}
		}
	}
	for _, e := range list {
		follow(e.AuthEvents())
	}
	for len(next) > 0 {
		ids := next
		next = nil
		got, err := r.climb(tx, ids, follow)
		if err != nil {
			return nil, err
		}
		maps.Copy(chain, got)
		if len(seen) > maxChain {
			return nil, errors.New("an auth chain is too long")
		}
	}
	var rest []matrix.EventID
	for id := range seen {
		if chain[id] == nil {
			rest = append(rest, id)
		}
	}
	got, err := r.events.GetMany(tx, rest)
	if err != nil {
		return nil, err
	}
	for id, e := range got {
		chain[id] = e
	}
	return chain, nil
}
