package subscriptions

import (
	"context"
	"fmt"
	"maps"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// maxThreads bounds the threads whose followers are kept in memory; beyond it all
// are read anew when asked for.
const maxThreads = 10_000

type thread struct {
	room matrix.RoomID
	root matrix.EventID
}

// Followers are the users who follow a thread. Do not change it.
type Followers map[matrix.UserID]struct{}

// Has reports whether a user is among them.
func (f Followers) Has(user matrix.UserID) bool {
	_, ok := f[user]
	return ok
}

// load is a thread's followers being read. What the log says meanwhile is applied
// to them in the end, in order: the last word counts.
type load struct {
	done  chan struct{}
	heard []*change
	list  Followers
	err   error
}

// Known are a thread's followers if they are in memory.
func (s *Subscriptions) Known(room matrix.RoomID, root matrix.EventID) (Followers, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	f, ok := s.threads[thread{room, root}]
	return f, ok
}

// Of reads a thread's followers; call it outside a transaction.
func (s *Subscriptions) Of(ctx context.Context, room matrix.RoomID, root matrix.EventID) (Followers, error) {
	if f, ok := s.Known(room, root); ok {
		return f, nil
	}
	all, err := s.OfAll(ctx, room, []matrix.EventID{root})
	return all[root], err
}

// OfAll reads the followers of several threads of a room; call it outside a
// transaction.
func (s *Subscriptions) OfAll(ctx context.Context, room matrix.RoomID, roots []matrix.EventID) (map[matrix.EventID]Followers, error) {
	out := make(map[matrix.EventID]Followers, len(roots))
	mine, others := map[matrix.EventID]*load{}, map[matrix.EventID]*load{}
	s.mu.Lock()
	for _, root := range roots {
		key := thread{room, root}
		if f, ok := s.threads[key]; ok {
			out[root] = f
		} else if l := s.loading[key]; l == nil {
			mine[root] = &load{done: make(chan struct{})}
			s.loading[key] = mine[root]
		} else if mine[root] == nil {
			others[root] = l
		}
	}
	s.mu.Unlock()
	if err := s.read(context.WithoutCancel(ctx), room, mine, out); err != nil {
		return nil, fmt.Errorf("reading the followers of threads: %w", err)
	}
	for root, l := range others {
		select {
		case <-l.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if l.err != nil {
			return nil, l.err
		}
		out[root] = l.list
	}
	return out, nil
}

// read fills the loads of threads that nobody else reads, and out.
func (s *Subscriptions) read(ctx context.Context, room matrix.RoomID, loads map[matrix.EventID]*load, out map[matrix.EventID]Followers) error {
	if len(loads) == 0 {
		return nil
	}
	roots := make([]string, 0, len(loads))
	for root := range loads {
		roots = append(roots, string(root))
	}
	type row struct {
		root matrix.EventID
		user matrix.UserID
	}
	var rows []row
	err := s.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		rows, err = sqldb.Select(tx, func(r *sqldb.Rows) (x row, err error) {
			err = r.Scan(&x.root, &x.user)
			return x, err
		}, qFollowers, roots, string(room))
		return err
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.threads)+len(loads) > maxThreads {
		clear(s.threads)
	}
	for root, l := range loads {
		delete(s.loading, thread{room, root})
		l.list, l.err = Followers{}, err
	}
	for _, x := range rows {
		loads[x.root].list[x.user] = struct{}{}
	}
	for root, l := range loads {
		for _, c := range l.heard {
			l.list.set(c)
		}
		if err == nil {
			s.threads[thread{room, root}], out[root] = l.list, l.list
		}
		close(l.done)
	}
	return err
}

func (f Followers) set(c *change) {
	if c.Subscribed {
		f[c.user] = struct{}{}
	} else {
		delete(f, c.user)
	}
}

// hear keeps what is in memory true.
func (s *Subscriptions) hear(changes []stream.Change) {
	for i := range changes {
		c, ok := changes[i].Payload.(*change)
		if !ok {
			continue
		}
		key := thread{c.Room, c.Root}
		s.mu.Lock()
		if l := s.loading[key]; l != nil {
			l.heard = append(l.heard, c)
		}
		if f, ok := s.threads[key]; ok {
			f = maps.Clone(f) // readers may hold the old one
			f.set(c)
			s.threads[key] = f
		}
		s.mu.Unlock()
	}
}
