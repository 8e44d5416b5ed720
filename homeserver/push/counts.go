package push

import (
	"context"
	"errors"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// Count is a number of unread notifications.
type Count struct {
	Notify    int `json:"notification_count"`
	Highlight int `json:"highlight_count"`
}

// Unread is what a user has not read of a room: of the main timeline, and of
// each thread with anything unread. Threads may be nil.
type Unread struct {
	Main    Count
	Threads map[matrix.EventID]Count
}

// Total is the main timeline and all threads together, for clients that do not
// ask for threads.
func (u Unread) Total() Count {
	c := u.Main
	for _, t := range u.Threads {
		c.Notify += t.Notify
		c.Highlight += t.Highlight
	}
	return c
}

// limits are up to where a user has read: everything, and each line.
type limits struct {
	base stream.Pos // in every line
	mark receipts.ReadMark
	own  *ownMarks
}

func (l *limits) main() stream.Pos {
	pos := max(l.base, l.mark.Main)
	if l.own != nil {
		pos = max(pos, l.own.main)
	}
	return pos
}

func (l *limits) thread(root matrix.EventID) stream.Pos {
	pos := max(l.base, l.mark.Threads[root])
	if l.own != nil {
		pos = max(pos, l.own.threads[root])
	}
	return pos
}

func (l *limits) line(root matrix.EventID) stream.Pos {
	if root == "" {
		return l.main()
	}
	return l.thread(root)
}

// Counts are a user's unread notifications in a room. For a user with the
// default rules it is a search in memory. Counts of who has not read for very
// long stop at a bound of several thousand.
//
// Spec: client-server-api#receiving-notifications
func (p *Push) Counts(ctx context.Context, room matrix.RoomID, user matrix.UserID) (Unread, error) {
	t, err := p.tail(ctx, room)
	if err != nil {
		return Unread{}, err
	}
	lim, err := p.limits(ctx, room, t, user)
	if errors.Is(err, errNotJoined) {
		return Unread{}, nil
	} else if err != nil {
		return Unread{}, err
	}
	u, ignored := p.userRules(user), p.ignored(user)
	t.mu.RLock()
	unsaid := t.unsaid > lim.base
	t.mu.RUnlock()
	if u != nil && u.custom || len(ignored) > 0 || unsaid {
		if u == nil {
			u = &userRules{set: p.defaults}
		}
		return p.countCustom(ctx, room, t, user, u, ignored, lim)
	}
	if err := p.reach(ctx, room, t, lim.main()); err != nil {
		return Unread{}, err
	}
	for range mostTries {
		t.mu.RLock()
		lim.own = t.own[user]
		u, unknown := t.count(p, room, user, &lim)
		t.mu.RUnlock()
		if len(unknown) == 0 {
			return u, nil
		}
		if _, err := p.opts.Threads.OfAll(ctx, room, unknown); err != nil {
			return Unread{}, err
		}
	}
	return Unread{}, errors.New("the followers of threads do not stay in memory")
}

// mostTries is how often followers of threads are read for one count: once, and
// again where new threads came up meanwhile.
const mostTries = 10

// reach sees to it that a tail goes back to a position.
func (p *Push) reach(ctx context.Context, room matrix.RoomID, t *tail, pos stream.Pos) error {
	t.mu.RLock()
	lacking := !t.complete && t.floor > pos && t.size < mostRead
	t.mu.RUnlock()
	if !lacking {
		return nil
	}
	return p.extend(ctx, room, t, pos)
}

func (p *Push) limits(ctx context.Context, room matrix.RoomID, t *tail, user matrix.UserID) (limits, error) {
	t.mu.RLock()
	joined, ok := t.joined[user]
	t.mu.RUnlock()
	if !ok {
		var err error
		if joined, err = p.joinedAt(ctx, room, t, user); err != nil {
			return limits{}, err
		}
	}
	mark, err := p.receipts.ReadUpTo(ctx, room, user)
	if err != nil {
		return limits{}, err
	}
	return limits{base: max(joined, mark.Unthreaded), mark: mark}, nil
}

// count searches the lines. Own events need no care: what stands before one in
// its line is read. unknown are threads whose followers must be read first.
func (t *tail) count(p *Push, room matrix.RoomID, user matrix.UserID, lim *limits) (u Unread, unknown []matrix.EventID) {
	from := lim.main()
	u.Main = Count{after(t.main.pos, from), after(t.main.high, from)}
	follows := func(root matrix.EventID) bool {
		f, ok := p.opts.Threads.Known(room, root)
		if !ok {
			unknown = append(unknown, root)
		}
		return f.Has(user)
	}
	for i := len(t.threads) - 1; i >= 0; i-- {
		l := t.threads[i]
		if l.last() <= lim.base {
			break // and all before it
		}
		from := lim.thread(l.root)
		if l.last() <= from {
			continue
		}
		c := Count{after(l.pos, from), after(l.high, from)}
		switch {
		case !p.opts.ThreadRules:
		case follows(l.root):
			c.Notify += after(l.quiet, from)
		default:
			c.Notify = c.Highlight
		}
		if c.Notify > 0 {
			u.add(l.root, c)
		}
	}
	named := t.named[user]
	for i := len(named) - 1; i >= 0 && named[i].pos > lim.base; i-- {
		m := &named[i]
		if m.pos <= lim.line(m.root) {
			continue
		}
		c := Count{Highlight: 1}
		counted := !m.extra
		if p.opts.ThreadRules && m.root != "" {
			counted = (!m.extra || m.quiet) && follows(m.root)
		}
		if !counted {
			c.Notify = 1
		}
		u.add(m.root, c)
	}
	return u, unknown
}

func (u *Unread) add(root matrix.EventID, c Count) {
	if root == "" {
		u.Main.Notify += c.Notify
		u.Main.Highlight += c.Highlight
		return
	}
	if u.Threads == nil {
		u.Threads = make(map[matrix.EventID]Count)
	}
	have := u.Threads[root]
	u.Threads[root] = Count{have.Notify + c.Notify, have.Highlight + c.Highlight}
}
