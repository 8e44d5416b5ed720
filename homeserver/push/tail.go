package push

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	qTail = `SELECT ` + events.Columns + ` FROM events WHERE room_id = $1 AND pos > 0 AND pos <= $2 AND pos <> 0 AND flags & 15 = 0
AND (state_key IS NULL OR type = 'm.room.tombstone') ORDER BY pos DESC LIMIT $3`

	firstRead = 500    // events read when a room is first asked for
	mostRead  = 5000   // counts of who has never read a room end there
	keptGone  = 256    // redacted events remembered for users with rules of their own
	keptNames = 10_000 // of members of a room
	slack     = 1000   // a tail grows by this much before its oldest part is dropped
)

// tail is the end of a room's timeline as the default rules see it.
type tail struct {
	once sync.Once
	err  error
	grow sync.Mutex // one goroutine reads older events

	mu        sync.RWMutex
	loaded    bool
	pending   []*events.Event  // came while the rows were read
	floor     stream.Pos       // what stands above it is all here
	complete  bool             // nothing stands below floor
	head      stream.Pos       // newest event heard of
	size      int              // events here, whether they notify or not
	redacted  int              // how many redactions were heard
	gone      []matrix.EventID // the events of the newest of them
	powers    *powers
	creators  []matrix.UserID
	main      line
	threads   []*line // by newest event, the newest last
	byRoot    map[matrix.EventID]*line
	named     map[matrix.UserID][]mention
	own       map[matrix.UserID]*ownMarks
	joined    map[matrix.UserID]stream.Pos // since when, of users who have asked
	custom    map[matrix.UserID]*custom
	subjects  [16]*Subject // of the newest events, for users with rules of their own
	subjectAt [16]stream.Pos
	names     map[matrix.UserID]string // of members, where a rule has asked for them
	unsaid    stream.Pos               // newest event that does not say whom it mentions
}

// line is the main timeline or a thread: where its notifying events stand, in
// order.
type line struct {
	root matrix.EventID
	pos  []stream.Pos
	ids  []matrix.EventID
	high []stream.Pos // those that highlight for everybody

	// Of a thread, where threads notify by subscription: the events that notify
	// those alone who follow it.
	quiet    []stream.Pos
	quietIDs []matrix.EventID
}

// mention is an event that highlights for one user.
type mention struct {
	pos   stream.Pos
	id    matrix.EventID
	root  matrix.EventID
	extra bool // it is not among the events of its line
	quiet bool // it is among the quiet ones
}

// ownMarks are a user's newest messages: what stands before them is read.
type ownMarks struct {
	main    stream.Pos
	threads map[matrix.EventID]stream.Pos
}

func (l *line) last() stream.Pos {
	var pos stream.Pos
	for _, list := range [][]stream.Pos{l.pos, l.quiet} {
		if n := len(list); n > 0 {
			pos = max(pos, list[n-1])
		}
	}
	return pos
}

func after(list []stream.Pos, pos stream.Pos) int {
	i, found := slices.BinarySearch(list, pos)
	if found {
		i++
	}
	return len(list) - i
}

// tail returns a room's tail, read from the database at the first call.
func (p *Push) tail(ctx context.Context, room matrix.RoomID) (*tail, error) {
	p.tailsMu.RLock()
	t := p.tails[room]
	p.tailsMu.RUnlock()
	if t == nil {
		p.tailsMu.Lock()
		if t = p.tails[room]; t == nil {
			t = &tail{
				byRoot: make(map[matrix.EventID]*line), named: make(map[matrix.UserID][]mention),
				own: make(map[matrix.UserID]*ownMarks), joined: make(map[matrix.UserID]stream.Pos),
				custom: make(map[matrix.UserID]*custom),
			}
			p.tails[room] = t
		}
		p.tailsMu.Unlock()
	}
	t.once.Do(func() { t.err = p.loadTail(context.WithoutCancel(ctx), room, t) })
	if t.err != nil {
		p.tailsMu.Lock()
		if p.tails[room] == t { // the next caller tries again
			delete(p.tails, room)
		}
		p.tailsMu.Unlock()
		return nil, t.err
	}
	return t, nil
}

// loadTail reads the newest events and who may notify the room. The tail is in
// the map already: what commits meanwhile lands in pending.
func (p *Push) loadTail(ctx context.Context, room matrix.RoomID, t *tail) error {
	var rows []*events.Event
	var powerContent []byte
	var create *events.Event
	err := p.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		if rows, err = sqldb.Select(tx, events.Scan, qTail, string(room), int64(state.Open), firstRead); err != nil {
			return err
		}
		levels, err := p.stateNow(tx, room, "m.room.power_levels", "")
		if err != nil {
			return err
		}
		powerContent = nil
		if levels != nil {
			powerContent = levels.Content()
		}
		create, err = p.stateNow(tx, room, "m.room.create", "")
		return err
	})
	if err != nil {
		return fmt.Errorf("reading the tail of %s: %w", room, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if create != nil {
		t.creators = creatorsOf(create)
	}
	t.powers = parsePowers(powerContent, t.creators)
	t.complete, t.size = len(rows) < firstRead, len(rows)
	if !t.complete {
		t.floor = rows[len(rows)-1].Pos - 1
	}
	for _, e := range slices.Backward(rows) {
		t.add(p, e)
	}
	t.loaded = true
	known := t.head
	for _, e := range t.pending {
		if e.Pos > known {
			t.take(p, e)
		} else if e.Target != nil {
			t.drop(e.Target.ID)
		}
	}
	t.pending = nil
	return nil
}

// stateNow reads an entry of a room's current state; nil if there is none.
func (p *Push) stateNow(tx *sqldb.Tx, room matrix.RoomID, typ, key string) (*events.Event, error) {
	row, ok, err := state.KeyAt(tx, room, state.Key{Type: typ, StateKey: key}, state.Open-1)
	if err != nil || !ok {
		return nil, err
	}
	m, err := p.store.ByNID(tx, []int64{row.NID})
	if err != nil {
		return nil, err
	}
	return m[row.NID], nil
}

// hear takes a new event of the room.
func (t *tail) hear(p *Push, e *events.Event) {
	if e.Pos <= 0 || e.Hidden() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.loaded {
		t.pending = append(t.pending, e)
		return
	}
	t.take(p, e)
}

func (t *tail) take(p *Push, e *events.Event) {
	t.size++
	if e.Target != nil {
		t.drop(e.Target.ID)
	}
	if e.StateKey != nil {
		switch {
		case e.Type == "m.room.power_levels" && *e.StateKey == "":
			t.powers = parsePowers(e.Content(), t.creators)
		case e.Type == "m.room.create":
			t.creators = creatorsOf(e)
			t.powers = parsePowers(nil, t.creators)
		case e.Type == "m.room.member":
			delete(t.names, matrix.UserID(*e.StateKey))
			if e.Membership == "join" {
				break
			}
			delete(t.joined, matrix.UserID(*e.StateKey))
			delete(t.custom, matrix.UserID(*e.StateKey))
		}
	}
	t.add(p, e)
	if t.size > mostRead+slack {
		t.shrink()
	}
}

// add puts an event at the end.
func (t *tail) add(p *Push, e *events.Event) {
	t.head = max(t.head, e.Pos)
	if e.Redacted() {
		return
	}
	if p.opts.LegacyMentions && saysNotWhom(e) {
		t.unsaid = max(t.unsaid, e.Pos)
	}
	v := classify(e, func(u matrix.UserID) bool { return t.powers.mayNotify(u, "room") })
	v.quiet = v.quiet && p.opts.ThreadRules && e.RelTo != ""
	if !v.notify && !v.quiet && len(v.named) == 0 {
		return
	}
	root := p.root(e)
	v.quiet = v.quiet && root != ""
	if v.notify || v.quiet {
		l := t.line(root)
		l.add(e, v)
		t.mark(e.Sender, root, e.Pos)
	}
	for _, u := range v.named {
		if !v.highlight { // else it is counted for everybody
			t.named[u] = append(t.named[u], mention{e.Pos, e.ID, root, !v.notify, v.quiet})
		}
	}
}

func (l *line) add(e *events.Event, v verdict) {
	if v.quiet {
		l.quiet, l.quietIDs = append(l.quiet, e.Pos), append(l.quietIDs, e.ID)
		return
	}
	l.pos, l.ids = append(l.pos, e.Pos), append(l.ids, e.ID)
	if v.highlight {
		l.high = append(l.high, e.Pos)
	}
}

func (t *tail) mark(user matrix.UserID, root matrix.EventID, pos stream.Pos) {
	o := t.own[user]
	if o == nil {
		o = &ownMarks{}
		t.own[user] = o
	}
	if root == "" {
		o.main = max(o.main, pos)
		return
	}
	if o.threads == nil {
		o.threads = make(map[matrix.EventID]stream.Pos)
	}
	o.threads[root] = max(o.threads[root], pos)
}

// line finds the line of a root and puts it last among the threads.
func (t *tail) line(root matrix.EventID) *line {
	if root == "" {
		return &t.main
	}
	l := t.byRoot[root]
	if l == nil {
		l = &line{root: root}
		t.byRoot[root] = l
	} else {
		i := slices.Index(t.threads, l)
		t.threads = slices.Delete(t.threads, i, i+1)
	}
	t.threads = append(t.threads, l)
	return l
}

// root is the thread that an event belongs to.
func (p *Push) root(e *events.Event) matrix.EventID {
	switch {
	case e.RelTo == "":
		return ""
	case e.RelType == "m.thread":
		return e.RelTo
	}
	at, err := p.places.Of(context.Background(), e.Room, e.RelTo)
	if err != nil {
		return "" // not known here: it counts to the main timeline
	}
	return at.Root
}

// drop takes a redacted event out.
func (t *tail) drop(id matrix.EventID) {
	t.redacted++
	if len(t.gone) >= keptGone {
		t.gone = slices.Delete(t.gone, 0, keptGone/2)
	}
	t.gone = append(t.gone, id)
	if !t.main.drop(id) {
		for _, l := range t.threads {
			if l.drop(id) {
				break
			}
		}
	}
	for u, list := range t.named {
		if i := slices.IndexFunc(list, func(m mention) bool { return m.id == id }); i >= 0 {
			t.named[u] = slices.Delete(list, i, i+1)
		}
	}
}

func (l *line) drop(id matrix.EventID) bool {
	if i := slices.Index(l.quietIDs, id); i >= 0 {
		l.quiet, l.quietIDs = slices.Delete(l.quiet, i, i+1), slices.Delete(l.quietIDs, i, i+1)
		return true
	}
	i := slices.Index(l.ids, id)
	if i < 0 {
		return false
	}
	pos := l.pos[i]
	l.pos, l.ids = slices.Delete(l.pos, i, i+1), slices.Delete(l.ids, i, i+1)
	if j := slices.Index(l.high, pos); j >= 0 {
		l.high = slices.Delete(l.high, j, j+1)
	}
	return true
}

// shrink drops the older half of what is kept.
func (t *tail) shrink() {
	all := slices.Clone(t.main.pos)
	for _, l := range t.threads {
		all = append(append(all, l.pos...), l.quiet...)
	}
	if len(all) == 0 {
		t.size = 0
		return
	}
	slices.Sort(all)
	t.floor, t.complete = all[len(all)/2], false
	t.size = len(all) / 2
	t.main.shrink(t.floor)
	t.threads = slices.DeleteFunc(t.threads, func(l *line) bool {
		l.shrink(t.floor)
		if len(l.pos)+len(l.quiet) == 0 {
			delete(t.byRoot, l.root)
			return true
		}
		return false
	})
	for u, list := range t.named {
		list = slices.DeleteFunc(list, func(m mention) bool { return m.pos <= t.floor })
		if len(list) == 0 {
			delete(t.named, u)
		} else {
			t.named[u] = list
		}
	}
	for u, o := range t.own {
		for root, pos := range o.threads {
			if pos <= t.floor {
				delete(o.threads, root)
			}
		}
		if o.main <= t.floor && len(o.threads) == 0 {
			delete(t.own, u)
		}
	}
}

func (l *line) shrink(floor stream.Pos) {
	n := len(l.pos) - after(l.pos, floor)
	l.pos, l.ids = slices.Clone(l.pos[n:]), slices.Clone(l.ids[n:])
	l.high = slices.Clone(l.high[len(l.high)-after(l.high, floor):])
	n = len(l.quiet) - after(l.quiet, floor)
	l.quiet, l.quietIDs = slices.Clone(l.quiet[n:]), slices.Clone(l.quietIDs[n:])
}

// extend reads older events, as far as pos or the bound.
func (p *Push) extend(ctx context.Context, room matrix.RoomID, t *tail, pos stream.Pos) error {
	t.grow.Lock()
	defer t.grow.Unlock()
	for {
		t.mu.RLock()
		floor, size, redacted := t.floor, t.size, t.redacted
		enough := t.complete || floor <= pos || size >= mostRead
		t.mu.RUnlock()
		if enough {
			return nil
		}
		n := min(max(size, firstRead), mostRead-size)
		var rows []*events.Event
		err := p.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
			rows, err = sqldb.Select(tx, events.Scan, qTail, string(room), int64(floor), n)
			return err
		})
		if err != nil {
			return fmt.Errorf("reading the tail of %s: %w", room, err)
		}
		older := &tail{
			byRoot: make(map[matrix.EventID]*line), named: make(map[matrix.UserID][]mention),
			own: make(map[matrix.UserID]*ownMarks), powers: t.powersNow(),
		}
		for _, e := range slices.Backward(rows) {
			older.add(p, e)
		}
		t.mu.Lock()
		if t.floor == floor && t.redacted == redacted { // else read again
			t.prepend(older)
			t.size += len(rows)
			if t.complete = len(rows) < n; t.complete {
				t.floor = 0
			} else {
				t.floor = rows[len(rows)-1].Pos - 1
			}
		}
		t.mu.Unlock()
	}
}

func (t *tail) powersNow() *powers {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.powers
}

// prepend puts an older tail before this one.
func (t *tail) prepend(o *tail) {
	t.unsaid = max(t.unsaid, o.unsaid)
	t.main.prepend(&o.main)
	for _, l := range o.threads {
		if have := t.byRoot[l.root]; have != nil {
			have.prepend(l)
		} else {
			t.byRoot[l.root] = l
			t.threads = append(t.threads, l)
		}
	}
	slices.SortFunc(t.threads, func(a, b *line) int { return cmp.Compare(a.last(), b.last()) })
	for u, list := range o.named {
		t.named[u] = append(list, t.named[u]...)
	}
	for u, marks := range o.own {
		t.mark(u, "", marks.main)
		for root, pos := range marks.threads {
			t.mark(u, root, pos)
		}
	}
}

func (l *line) prepend(o *line) {
	l.pos, l.ids, l.high = append(o.pos, l.pos...), append(o.ids, l.ids...), append(o.high, l.high...)
	l.quiet, l.quietIDs = append(o.quiet, l.quiet...), append(o.quietIDs, l.quietIDs...)
}

var errNotJoined = errors.New("not joined")

// joinedAt finds since when a user is in the room; changes of name or picture
// in between do not count.
func (p *Push) joinedAt(ctx context.Context, room matrix.RoomID, t *tail, user matrix.UserID) (stream.Pos, error) {
	var since stream.Pos
	found := false
	err := p.db.Read(ctx, func(tx *sqldb.Tx) error {
		since, found = 0, false
		rows, err := state.History(tx, room, state.Key{Type: "m.room.member", StateKey: string(user)})
		if err != nil {
			return err
		}
		for _, r := range rows {
			switch {
			case r.Membership != "join":
				found = false
			case !found:
				since, found = r.From, true
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("reading membership: %w", err)
	}
	if !found {
		return 0, errNotJoined
	}
	if p.hub.Joined(user, room) { // else it has changed meanwhile
		t.mu.Lock()
		t.joined[user] = since
		t.mu.Unlock()
	}
	return since, nil
}
