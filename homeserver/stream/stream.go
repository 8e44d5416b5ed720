// Package stream is the one ordered log of the server. Everything that a client,
// another server or an application service may have to hear about gets a
// position from one counter, and positions become visible strictly in order.
//
// Append hands its function to a single goroutine which commits what is waiting
// in one transaction (group commit): the price of one disk sync is shared, and
// positions are given in the order of the commits. Right after the commit, and
// before Append returns, the subscribers of the process see the changes with
// their payloads; Follow gives durable readers that survive a restart.
//
// Tables: stream_head, stream, stream_followers.
//
// Invariants: a position is visible only when all smaller ones are; positions
// may have holes; a function given to Append may run twice, so it does SQL only.
package stream

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Pos is a position in the log. History fetched from other servers has negative
// ones. 0 is before everything.
type Pos int64

// Kind says which feature a change belongs to.
type Kind uint8

// The kinds of change. Typing and presence live in memory and never get a
// position; their kinds exist for those who are told of them.
const (
	KindEvent Kind = iota + 1
	KindReceipt
	KindAccountData
	KindToDevice
	KindDeviceList
	KindPresence
	KindTyping
	KindKeyCounts
	KindUnread
	KindThreadSubscription
	KindForgotten // a user has forgotten a room
	kinds         // number of kinds + 1
)

// Kinds is the size of an array indexed by Kind.
const Kinds = int(kinds)

// Change is one entry of the log. Payload is what the appender wants readers in
// the process to have at hand; it is immutable, and nil in what is read back
// from the database.
type Change struct {
	Pos     Pos
	Kind    Kind
	Room    matrix.RoomID
	User    matrix.UserID
	Payload any
}

const (
	// maxGroup is how many appends share a commit at most.
	maxGroup = 128
	// maxWaiting is how many appends may wait; further callers wait for a place.
	maxWaiting = 1024
)

const (
	qHead     = `SELECT pos FROM stream_head WHERE id = 1`
	qRaise    = `UPDATE stream_head SET pos = pos + $1 WHERE id = 1 RETURNING pos`
	qInsert   = `INSERT INTO stream (pos, kind, room_id, user_id) VALUES ($1, $2, $3, $4)`
	qChanges  = `SELECT pos, kind, room_id, user_id FROM stream WHERE pos > $1 AND pos <= $2 ORDER BY pos LIMIT $3`
	qFollower = `SELECT pos FROM stream_followers WHERE name = $1`
	qFollowed = `INSERT INTO stream_followers (name, pos) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET pos = excluded.pos`
)

//go:embed schema
var schema embed.FS

// ErrStopped is returned by Append once the log no longer runs.
var ErrStopped = errors.New("the log has stopped")

// Log is the server's log.
type Log struct {
	db          *sqldb.DB
	head        atomic.Int64
	queue       chan *entry
	subscribers []func([]Change)
	bells       []func()

	mu      sync.Mutex
	bell    chan struct{} // closed and replaced at each commit
	stopped chan struct{}
}

type entry struct {
	n       int
	fn      func(tx *sqldb.Tx, first Pos) ([]Change, error)
	changes []Change
	pos     Pos
	err     error
	done    chan struct{}
}

// Open prepares the log in db and reads its head.
func Open(ctx context.Context, db *sqldb.DB) (*Log, error) {
	if err := db.Migrate(ctx, "stream", schema); err != nil {
		return nil, err
	}
	l := &Log{
		db: db, queue: make(chan *entry, maxWaiting), // full: Append waits for a place or its context
		bell: make(chan struct{}), stopped: make(chan struct{}),
	}
	var head int64
	err := db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qHead).Scan(&head) })
	if err != nil {
		return nil, fmt.Errorf("reading the log's head: %w", err)
	}
	l.head.Store(head)
	return l, nil
}

// Head is the newest committed position.
func (l *Log) Head() Pos { return Pos(l.head.Load()) }

// Subscribe registers fn to be called with the changes of each commit, in order,
// on the log's own goroutine: it must be quick and must not Append. Register
// before Run.
func (l *Log) Subscribe(fn func(changes []Change)) { l.subscribers = append(l.subscribers, fn) }

// Ring registers fn to be called after each commit when all subscribers have
// seen its changes and Head has moved: the moment to wake those who wait.
// Register before Run.
func (l *Log) Ring(fn func()) { l.bells = append(l.bells, fn) }

// Append reserves n positions and runs fn with the first of them in a
// transaction shared with other appends. It returns the first position once the
// transaction is durable and all subscribers have seen it. The changes that fn
// returns carry positions within first..first+n-1, ascending.
func (l *Log) Append(ctx context.Context, n int, fn func(tx *sqldb.Tx, first Pos) ([]Change, error)) (Pos, error) {
	w, err := l.Start(ctx, n, fn)
	if err != nil {
		return 0, err
	}
	return w.Wait()
}

// Pending is an append that has been handed over.
type Pending struct {
	l *Log
	e *entry
}

// Start is the first half of Append: it returns as soon as fn has its place in
// the queue, so that the caller can order several appends under a lock of its
// own and wait outside it.
func (l *Log) Start(ctx context.Context, n int, fn func(tx *sqldb.Tx, first Pos) ([]Change, error)) (*Pending, error) {
	e := &entry{n: n, fn: fn, done: make(chan struct{})}
	select {
	case l.queue <- e:
		return &Pending{l, e}, nil
	case <-l.stopped:
		return nil, ErrStopped
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Wait returns when the append is durable or has failed. It takes no context:
// the caller must know which.
func (p *Pending) Wait() (Pos, error) {
	select {
	case <-p.e.done:
		return p.e.pos, p.e.err
	case <-p.l.stopped:
		select {
		case <-p.e.done:
			return p.e.pos, p.e.err
		default:
			return 0, ErrStopped
		}
	}
}

// Run commits appends until ctx ends; what is queued then is still committed.
func (l *Log) Run(ctx context.Context) error {
	defer close(l.stopped)
	group := make([]*entry, 0, maxGroup)
	for {
		group = group[:0]
		select {
		case e := <-l.queue:
			group = append(group, e)
		case <-ctx.Done():
			for {
				select {
				case e := <-l.queue:
					l.commit([]*entry{e})
				default:
					return nil
				}
			}
		}
	gather:
		for len(group) < maxGroup {
			select {
			case e := <-l.queue:
				group = append(group, e)
			default:
				break gather
			}
		}
		l.commit(group)
	}
}

// commit tries the whole group; when that fails each append runs again alone.
func (l *Log) commit(group []*entry) {
	if len(group) > 1 && l.commitOnce(group) == nil {
		l.publish(group)
		return
	}
	for i := range group {
		if err := l.commitOnce(group[i : i+1]); err != nil {
			group[i].err = err
			close(group[i].done)
			continue
		}
		l.publish(group[i : i+1])
	}
}

func (l *Log) commitOnce(group []*entry) error {
	total := 0
	for _, e := range group {
		total += e.n
	}
	return l.db.Write(context.Background(), func(tx *sqldb.Tx) error {
		var head int64
		if err := tx.QueryRow(qRaise, total).Scan(&head); err != nil {
			return err
		}
		next := Pos(head - int64(total) + 1)
		for _, e := range group {
			changes, err := e.fn(tx, next)
			if err != nil {
				return err
			}
			e.pos, e.changes = next, changes
			next += Pos(e.n)
			for _, c := range changes {
				if _, err := tx.Exec(qInsert, int64(c.Pos), int(c.Kind), string(c.Room), string(c.User)); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (l *Log) publish(group []*entry) {
	var changes []Change
	if len(group) == 1 {
		changes = group[0].changes
	} else {
		for _, e := range group {
			changes = append(changes, e.changes...)
		}
	}
	last := group[len(group)-1]
	head := last.pos + Pos(last.n) - 1
	for _, fn := range l.subscribers {
		guarded(fn, changes)
	}
	l.head.Store(int64(head))
	for _, fn := range l.bells {
		guarded(func([]Change) { fn() }, nil)
	}
	l.mu.Lock()
	close(l.bell)
	l.bell = make(chan struct{})
	l.mu.Unlock()
	for _, e := range group {
		close(e.done)
	}
}

func guarded(fn func([]Change), changes []Change) {
	defer func() {
		if p := recover(); p != nil {
			log.WithField("panic", p).Error("a subscriber of the log failed")
		}
	}()
	fn(changes)
}

// Changes reads entries in (from, to] in order, at most limit, without payloads.
func (l *Log) Changes(ctx context.Context, from, to Pos, limit int) ([]Change, error) {
	var out []Change
	err := l.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		out, err = sqldb.Select(tx, func(r *sqldb.Rows) (c Change, err error) {
			err = r.Scan(&c.Pos, &c.Kind, &c.Room, &c.User)
			return c, err
		}, qChanges, int64(from), int64(to), limit)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the log: %w", err)
	}
	return out, nil
}

// Follow calls fn with successive ranges (from, to] until ctx ends, beginning
// where the follower of this name stopped last (a new one begins at the head).
// Its position is saved after fn has succeeded, so a range may repeat after a
// crash and is never skipped; when fn fails it is called again after a pause.
func (l *Log) Follow(ctx context.Context, name string, fn func(ctx context.Context, from, to Pos) error) error {
	from, err := l.follower(ctx, name)
	if err != nil {
		return err
	}
	pause := 100 * time.Millisecond
	for ctx.Err() == nil {
		l.mu.Lock()
		bell := l.bell
		l.mu.Unlock()
		to := l.Head()
		if to <= from {
			select {
			case <-bell:
			case <-ctx.Done():
			}
			continue
		}
		err := fn(ctx, from, to)
		if err == nil {
			err = l.db.Write(ctx, func(tx *sqldb.Tx) error {
				_, err := tx.Exec(qFollowed, name, int64(to))
				return err
			})
		}
		if err == nil {
			from, pause = to, 100*time.Millisecond
			continue
		}
		if ctx.Err() != nil {
			break
		}
		log.WithError(err).WithField("follower", name).Warn("following the log failed; trying again")
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, 30*time.Second)
	}
	return nil
}

func (l *Log) follower(ctx context.Context, name string) (Pos, error) {
	var pos int64
	err := l.db.Write(ctx, func(tx *sqldb.Tx) error {
		err := tx.QueryRow(qFollower, name).Scan(&pos)
		if errors.Is(err, sqldb.ErrNoRows) {
			pos = int64(l.Head())
			_, err = tx.Exec(qFollowed, name, pos)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("position of follower %s: %w", name, err)
	}
	return Pos(pos), nil
}
