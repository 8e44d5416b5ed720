package directory

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// mostPending is how many publications may wait to be heard of.
const mostPending = 1000

// listing keeps the list of published rooms as it is shown, so that a request costs
// a page and not a reading of all rooms: after a change, the room concerned alone is
// described anew.
type listing struct {
	turn   sync.Mutex     // held while the list is brought up to date
	sorted []listed       // the largest first
	size   map[string]int // how many rooms a network has

	mu      sync.Mutex // for what is below; held for a moment only
	stale   bool       // the publications must be read again
	known   map[matrix.RoomID]bool
	dirty   map[matrix.RoomID]bool // to be described anew
	pending map[matrix.RoomID]bool // published in a commit that is still to be heard of
}

// listed is a published room with the networks whose list it is in.
type listed struct {
	Entry
	networks []string
	lower    string // what is searched
}

const qPublications = `SELECT room_id, network FROM published_rooms ORDER BY room_id, network`

func newListing() *listing {
	return &listing{stale: true, known: map[matrix.RoomID]bool{}, dirty: map[matrix.RoomID]bool{}, pending: map[matrix.RoomID]bool{}}
}

// shown are the types of state that the list shows something of.
var shown = map[string]bool{
	"m.room.name": true, "m.room.topic": true, canonicalAlias: true, "m.room.avatar": true, "m.room.history_visibility": true,
	"m.room.guest_access": true, "m.room.join_rules": true, "m.room.create": true, "m.room.member": true,
}

// hear notes the rooms that have changed.
func (l *listing) hear(changes []stream.Change) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range changes {
		c := &changes[i]
		if c.Kind != stream.KindEvent || !l.known[c.Room] && !l.pending[c.Room] {
			continue
		}
		if l.pending[c.Room] {
			delete(l.pending, c.Room)
			l.stale = true
		}
		switch p := c.Payload.(type) {
		case *events.Event:
			if p.Resolved != nil || p.StateKey != nil && shown[p.Type] || p.Redacts != "" {
				l.dirty[c.Room] = true
			}
		case hub.Seeded:
			l.dirty[c.Room] = true
		}
	}
}

// publishing notes a room that is published in a commit with its first events.
func (l *listing) publishing(room matrix.RoomID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pending) >= mostPending { // of commits that failed
		clear(l.pending)
		l.stale = true
	}
	l.pending[room] = true
}

// changed notes that publications have changed.
func (l *listing) changed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stale = true
}

// current brings the list up to date. The caller must hold the turn.
func (d *Directory) current(ctx context.Context) error {
	l := d.list
	l.mu.Lock()
	stale, dirty := l.stale || d.opts.Log == nil, l.dirty
	l.stale, l.dirty = false, map[matrix.RoomID]bool{}
	l.mu.Unlock()
	if !stale && len(dirty) == 0 {
		return nil
	}
	err := d.refresh(ctx, stale, dirty)
	if err != nil { // it is to be done again
		l.mu.Lock()
		l.stale = true
		l.mu.Unlock()
	}
	return err
}

func (d *Directory) refresh(ctx context.Context, stale bool, dirty map[matrix.RoomID]bool) error {
	l := d.list
	have := make(map[matrix.RoomID]listed, len(l.sorted))
	for _, e := range l.sorted {
		have[e.Room] = e
	}
	if stale {
		published, err := d.publications(ctx)
		if err != nil {
			return err
		}
		for room := range have {
			if published[room] == nil {
				delete(have, room)
			}
		}
		for room, networks := range published {
			e, ok := have[room]
			if !ok || d.opts.Log == nil {
				dirty[room] = true
			}
			e.Room, e.networks = room, networks
			have[room] = e
		}
	}
	for room := range dirty {
		e, ok := have[room]
		if !ok {
			continue
		}
		entry, err := d.Describe(ctx, room)
		if matrix.IsCode(err, "M_NOT_FOUND") { // not any more, or not yet
			entry, err = Entry{Room: room, Members: -1}, nil
		}
		if err != nil {
			return err
		}
		e.Entry, e.lower = entry, strings.ToLower(entry.Name+"\n"+entry.Topic+"\n"+entry.Alias)
		have[room] = e
	}
	l.sorted, l.size = l.sorted[:0:0], map[string]int{}
	for _, e := range have {
		if e.Members >= 0 {
			l.sorted = append(l.sorted, e)
			for _, n := range e.networks {
				l.size[n]++
			}
		}
	}
	slices.SortFunc(l.sorted, func(a, b listed) int {
		return cmp.Or(cmp.Compare(b.Members, a.Members), cmp.Compare(a.Room, b.Room))
	})
	return nil
}

// publications reads who is listed where, and from then on hears of these rooms.
func (d *Directory) publications(ctx context.Context) (map[matrix.RoomID][]string, error) {
	var published map[matrix.RoomID][]string
	err := d.db.Read(ctx, func(tx *sqldb.Tx) error {
		published = map[matrix.RoomID][]string{}
		rows, err := tx.Query(qPublications)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var room matrix.RoomID
			var network string
			if err := rows.Scan(&room, &network); err != nil {
				return err
			}
			published[room] = append(published[room], network)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("reading published rooms: %w", err)
	}
	known := make(map[matrix.RoomID]bool, len(published))
	for room := range published {
		known[room] = true
	}
	d.list.mu.Lock()
	d.list.known = known
	d.list.mu.Unlock()
	return published, nil
}

// wants applies the query to a room.
func (q *Query) wants(e *listed, term string) bool {
	if !q.AllNetworks && !slices.Contains(e.networks, q.Network) {
		return false
	}
	if q.Filter.Types != nil && !slices.ContainsFunc(q.Filter.Types, func(t *string) bool {
		return t == nil && e.Type == "" || t != nil && *t == e.Type
	}) {
		return false
	}
	return term == "" || strings.Contains(e.lower, term)
}

// page finds the rooms from an offset on, and how many there are in all.
func (d *Directory) page(ctx context.Context, q Query, offset int) (chunk []Entry, total int, err error) {
	d.list.turn.Lock()
	defer d.list.turn.Unlock()
	if err := d.current(ctx); err != nil {
		return nil, 0, err
	}
	term := strings.ToLower(q.Filter.Term)
	all := q.Filter.Types == nil && term == ""
	chunk = []Entry{}
	for i := range d.list.sorted {
		e := &d.list.sorted[i]
		if !q.wants(e, term) {
			continue
		}
		if total >= offset && len(chunk) < q.Limit {
			chunk = append(chunk, e.Entry)
		} else if total >= offset && all { // the rest need not be looked at to be counted
			total = d.list.size[q.Network]
			if q.AllNetworks {
				total = len(d.list.sorted)
			}
			return chunk, total, nil
		}
		total++
	}
	return chunk, total, nil
}
