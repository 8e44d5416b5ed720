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
	key := thread{room, root}
	if f, ok := s.Known(room, root); ok {
		return f, nil
	}
	s.mu.Lock()
	l := s.loading[key]
	if l != nil {
		s.mu.Unlock()
		select {
		case <-l.done:
			return l.list, l.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	l = &load{done: make(chan struct{})}
	s.loading[key] = l
	s.mu.Unlock()

	users, err := s.readFollowers(context.WithoutCancel(ctx), key)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(l.done)
	delete(s.loading, key)
	if err != nil {
		l.err = fmt.Errorf("reading the followers of a thread: %w", err)
		return nil, l.err
	}
	l.list = make(Followers, len(users))
	for _, u := range users {
		l.list[u] = struct{}{}
	}
	for _, c := range l.heard {
		l.list.set(c)
	}
	if len(s.threads) >= maxThreads {
		clear(s.threads)
	}
	s.threads[key] = l.list
	return l.list, nil
}

func (s *Subscriptions) readFollowers(ctx context.Context, key thread) (users []matrix.UserID, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		users, err = sqldb.Select(tx, func(r *sqldb.Rows) (u matrix.UserID, err error) {
			err = r.Scan(&u)
			return u, err
		}, qFollowers, string(key.root), string(key.room))
		return err
	})
	return users, err
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
			if f == nil {
				f = Followers{}
			}
			f.set(c)
			s.threads[key] = f
		}
		s.mu.Unlock()
	}
}
