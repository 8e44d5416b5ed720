package relations

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	qThreads = `SELECT event_id, rel_to, sender, pos FROM events WHERE room_id = $1 AND rel_type = 'm.thread'
AND pos <> 0 AND flags & 7 = 0 ORDER BY pos`
	qHead    = `SELECT coalesce(max(pos), 0) FROM events WHERE room_id = $1 AND pos > 0 AND pos <> 0`
	qReplies = `SELECT ` + events.Columns + ` FROM events WHERE rel_to = $1 AND rel_to <> '' AND rel_type = 'm.thread'
AND pos <> 0 AND flags & 7 = 0 ORDER BY pos DESC LIMIT 100`
)

// roomThreads are the threads of one room.
type roomThreads struct {
	once sync.Once
	err  error

	mu      sync.RWMutex
	loaded  bool
	pending []reply // came while the rows were read
	whole   bool    // the snapshot it was read from was not too old to be kept
	byRoot  map[matrix.EventID]*thread
}

type thread struct {
	root    matrix.EventID
	latest  matrix.EventID
	pos     stream.Pos // of the latest reply
	count   int
	senders map[matrix.UserID]int
}

type reply struct {
	id     matrix.EventID
	root   matrix.EventID
	sender matrix.UserID
	pos    stream.Pos
}

// hear keeps the threads of the rooms in memory true. A redaction drops a room:
// which thread it hits is no longer to be seen.
func (r *Relations) hear(changes []stream.Change) {
	for i := range changes {
		e, ok := changes[i].Payload.(*events.Event)
		if !ok || e.Hidden() || e.Target == nil && e.RelType != relThread {
			continue
		}
		r.mu.Lock()
		r.heard[e.Room] = e.Pos
		t := r.rooms[e.Room]
		if e.Target != nil {
			delete(r.rooms, e.Room)
			t = nil
		}
		r.mu.Unlock()
		if t == nil {
			continue
		}
		t.mu.Lock()
		x := reply{e.ID, e.RelTo, e.Sender, e.Pos}
		if t.loaded {
			t.add(x)
		} else {
			t.pending = append(t.pending, x)
		}
		t.mu.Unlock()
	}
}

func (r *Relations) forget(room matrix.RoomID, t *roomThreads) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rooms[room] == t {
		delete(r.rooms, room)
	}
}

func (t *roomThreads) add(x reply) {
	th := t.byRoot[x.root]
	if th == nil {
		th = &thread{root: x.root, senders: make(map[matrix.UserID]int)}
		t.byRoot[x.root] = th
	}
	if th.count > 0 && x.pos <= th.pos {
		return // read from the database already
	}
	th.latest, th.pos = x.id, x.pos
	th.count++
	th.senders[x.sender]++
}

// threads returns a room's threads, read at the first call with the caller's
// transaction.
func (r *Relations) threads(tx *sqldb.Tx, room matrix.RoomID) (*roomThreads, error) {
	r.mu.RLock()
	t := r.rooms[room]
	r.mu.RUnlock()
	if t == nil {
		r.mu.Lock()
		if t = r.rooms[room]; t == nil {
			t = &roomThreads{byRoot: make(map[matrix.EventID]*thread)}
			r.rooms[room] = t
		}
		r.mu.Unlock()
	}
	t.once.Do(func() { t.err = r.load(tx, room, t) })
	if t.err != nil || !t.whole {
		r.forget(room, t) // the next caller reads again
	}
	return t, t.err
}

// load reads a room's threads. The room is in the map already, so that what
// commits from then on lands in pending; but the caller's snapshot may be older
// than what was heard before that, and then serves this caller alone.
func (r *Relations) load(tx *sqldb.Tx, room matrix.RoomID, t *roomThreads) error {
	r.mu.RLock()
	heard := r.heard[room]
	r.mu.RUnlock()
	rows, err := sqldb.Select(tx, func(r *sqldb.Rows) (x reply, err error) {
		err = r.Scan(&x.id, &x.root, &x.sender, &x.pos)
		return x, err
	}, qThreads, string(room))
	if err != nil {
		return fmt.Errorf("reading threads: %w", err)
	}
	var head int64
	if err := tx.QueryRow(qHead, string(room)).Scan(&head); err != nil {
		return fmt.Errorf("reading threads: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, x := range append(rows, t.pending...) {
		t.add(x)
	}
	t.pending, t.loaded, t.whole = nil, true, stream.Pos(head) >= heard
	return nil
}

// summary is a thread without the replies of ignored users.
type summary struct {
	root         matrix.EventID
	latest       matrix.EventID
	pos          stream.Pos
	count        int
	participated bool
	mixed        bool // ignored users have replied: latest may be theirs
}

func (b *bundler) summary(th *thread) summary {
	s := summary{root: th.root, latest: th.latest, pos: th.pos, count: th.count, participated: th.senders[b.user] > 0}
	for u := range b.ignored {
		if n := th.senders[u]; n > 0 {
			s.count -= n
			s.mixed = true
		}
	}
	return s
}

// threads adds the summaries of the threads whose roots are among the events.
func (b *bundler) threads(_ context.Context, list []*events.Event, all map[matrix.EventID]*parts) error {
	for _, e := range list {
		if e.RelType != "" { // no thread begins at an event that relates to another
			continue
		}
		t, err := b.r.threads(b.tx, e.Room)
		if err != nil {
			return err
		}
		t.mu.RLock()
		th := t.byRoot[e.ID]
		var s summary
		if th != nil {
			s = b.summary(th)
		}
		t.mu.RUnlock()
		if s.count == 0 {
			continue
		}
		latest, err := b.latest(s)
		if err != nil {
			return err
		}
		if latest == nil {
			continue
		}
		part(all, e.ID).Thread = latest
		latest.Participated = s.participated || e.Sender == b.user
	}
	return nil
}

// latest reads the newest reply of a thread, with its own edits bundled.
func (b *bundler) latest(s summary) (*threadPart, error) {
	var newest *events.Event
	if s.mixed {
		list, err := sqldb.Select(b.tx, events.Scan, qReplies, string(s.root))
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			if !b.ignored.Has(e.Sender) {
				newest = e
				break
			}
		}
	} else {
		var err error
		if newest, err = b.r.store.Get(b.tx, s.latest); err != nil {
			return nil, err
		}
	}
	if newest == nil {
		return nil, nil
	}
	erased, err := b.r.erasedFor(b.tx, b.user, []*events.Event{newest})
	if err != nil {
		return nil, err
	}
	if redacted := erased[newest.ID]; redacted != nil {
		newest = redacted
	}
	own, err := b.plain([]*events.Event{newest})
	if err != nil {
		return nil, err
	}
	p := &threadPart{Count: s.count}
	if x := own[newest.ID]; x != nil {
		raw, err := encode(x)
		if err != nil {
			return nil, err
		}
		p.Latest = b.client(newest, raw)
	} else {
		p.Latest = b.client(newest, nil)
	}
	return p, nil
}

// list is the threads of a room with a reply before a position, the newest
// first.
func (t *roomThreads) list(before stream.Pos) []thread {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var out []thread
	for _, th := range t.byRoot {
		if th.pos < before {
			out = append(out, thread{root: th.root, pos: th.pos, count: th.count, senders: th.senders})
		}
	}
	slices.SortFunc(out, func(a, b thread) int { return cmp.Compare(b.pos, a.pos) })
	return out
}

func (t *roomThreads) participated(root matrix.EventID, user matrix.UserID) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	th := t.byRoot[root]
	return th != nil && th.senders[user] > 0
}

func hasNewContent(e *events.Event) bool {
	return gjson.GetBytes(e.JSON, `content.m\.new_content`).IsObject()
}
