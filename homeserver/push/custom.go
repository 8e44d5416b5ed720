package push

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// custom is what the rules of one user say of the events of a room: the
// notifying ones that the user has not read.
type custom struct {
	mu      sync.Mutex
	rules   stream.Pos          // which rules judged
	ignored accountdata.Ignored // whom the user ignored then
	follows stream.Pos          // and which threads he followed
	upTo    stream.Pos          // events up to here are judged
	list    []judged
	seen    int // redactions of the tail that are taken into account
}

type judged struct {
	pos       stream.Pos
	id        matrix.EventID
	root      matrix.EventID
	highlight bool
}

// mostJudged is how far back events are judged for a user whose read position
// is older.
const mostJudged = 1000

// countCustom counts for a user with rules of their own: new events are judged
// now, each once.
func (p *Push) countCustom(ctx context.Context, room matrix.RoomID, t *tail, user matrix.UserID, rules *userRules, ignored accountdata.Ignored, lim limits) (Unread, error) {
	t.mu.Lock()
	c := t.custom[user]
	if c == nil {
		c = &custom{}
		t.custom[user] = c
	}
	t.mu.Unlock()

	c.mu.Lock()
	defer c.mu.Unlock()
	var follows stream.Pos
	if rules.set.threads {
		p.mu.RLock()
		follows = p.followed[user]
		p.mu.RUnlock()
	}
	t.mu.RLock()
	head, fresh := t.head, t.redacted-c.seen
	var gone []matrix.EventID // redacted since the last call
	if c.rules != rules.pos || c.follows != follows || !maps.Equal(c.ignored, ignored) || fresh > len(t.gone) {
		c.rules, c.follows, c.ignored, c.upTo, c.list = rules.pos, follows, ignored, 0, nil
	} else if fresh > 0 {
		gone = slices.Clone(t.gone[len(t.gone)-fresh:])
	}
	c.seen = t.redacted
	if o := t.own[user]; o != nil { // a copy: the original changes under the tail's lock
		lim.own = &ownMarks{main: o.main, threads: maps.Clone(o.threads)}
	}
	t.mu.RUnlock()
	if from := max(c.upTo, lim.base); from < head {
		if err := p.judge(ctx, room, t, user, c, rules.set, from, head); err != nil {
			return Unread{}, err
		}
		c.upTo = head
	}
	c.list = slices.DeleteFunc(c.list, func(j judged) bool {
		return j.pos <= lim.line(j.root) || slices.Contains(gone, j.id)
	})
	var u Unread
	for _, j := range c.list {
		n := Count{Notify: 1}
		if j.highlight {
			n.Highlight = 1
		}
		u.add(j.root, n)
	}
	return u, nil
}

// judge evaluates the events in (from, to] that are not judged yet.
func (p *Push) judge(ctx context.Context, room matrix.RoomID, t *tail, user matrix.UserID, c *custom, set *Ruleset, from, to stream.Pos) error {
	list, complete := p.hub.Recent(room, from, to)
	if !complete {
		err := p.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
			list, err = p.store.Timeline(tx, room, from, to, mostJudged, false)
			return err
		})
		if err != nil {
			return fmt.Errorf("reading events of %s: %w", room, err)
		}
		slices.Reverse(list)
	}
	r := p.roomNow(ctx, room, t)
	for _, e := range list {
		if e.Hidden() || e.Redacted() || e.Sender == user || c.ignored.Has(e.Sender) {
			continue
		}
		if res := set.Evaluate(t.subject(e), user, r); res.Notify {
			c.list = append(c.list, judged{e.Pos, e.ID, p.root(e), res.Highlight})
		}
	}
	return nil
}

// subject shares the decoded form of the newest events between users.
func (t *tail) subject(e *events.Event) *Subject {
	i := int(e.Pos) % len(t.subjects)
	t.mu.RLock()
	s, at := t.subjects[i], t.subjectAt[i]
	t.mu.RUnlock()
	if at == e.Pos {
		return s
	}
	s = subjectOf(e)
	t.mu.Lock()
	if e.Pos > t.subjectAt[i] {
		t.subjects[i], t.subjectAt[i] = s, e.Pos
	}
	t.mu.Unlock()
	return s
}

func subjectOf(e *events.Event) *Subject {
	s := NewSubject(e.Room, e.Sender, e.Type, e.StateKey, e.JSON)
	s.of = e
	return s
}

// roomNow answers the questions of conditions by the room's present state.
type roomNow struct {
	p      *Push
	ctx    context.Context //nolint:containedctx // lives for one evaluation
	room   matrix.RoomID
	powers *powers
	tail   *tail
}

func (p *Push) roomNow(ctx context.Context, room matrix.RoomID, t *tail) *roomNow {
	return &roomNow{p: p, ctx: ctx, room: room, powers: t.powersNow(), tail: t}
}

// Follows asks the subscriptions.
func (r *roomNow) Follows(s *Subject, user matrix.UserID) (inThread, follows bool) {
	if r.p.opts.Threads == nil || s.of == nil {
		return false, false
	}
	root := r.p.root(s.of)
	if root == "" {
		return false, false
	}
	f, err := r.p.opts.Threads.Of(r.ctx, r.room, root)
	return err == nil, f.Has(user) // not known: the condition does not match
}

// MemberCount is the number of joined members.
func (r *roomNow) MemberCount() int { return r.p.hub.MemberCount(r.room) }

// MayNotify asks the power levels.
func (r *roomNow) MayNotify(sender matrix.UserID, key string) bool {
	return r.powers.mayNotify(sender, key)
}

// DisplayName is the user's name in the room; the room's tail remembers it.
func (r *roomNow) DisplayName(user matrix.UserID) string {
	t := r.tail
	t.mu.RLock()
	name, ok := t.names[user]
	head := t.head
	t.mu.RUnlock()
	if ok {
		return name
	}
	err := r.p.db.Read(r.ctx, func(tx *sqldb.Tx) error { // without a name the condition does not match
		e, err := r.p.stateNow(tx, r.room, "m.room.member", string(user))
		name = ""
		if e != nil {
			name = e.ContentString("displayname")
		}
		return err
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil && t.head == head { // else it may have changed meanwhile
		if t.names == nil || len(t.names) >= keptNames {
			t.names = make(map[matrix.UserID]string)
		}
		t.names[user] = name
	}
	return name
}
