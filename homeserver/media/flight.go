package media

import (
	"context"
	"fmt"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// fetchTime is how long a file may take from its first byte on.
const fetchTime = 5 * time.Minute

// flight is a file on its way from another server, for all who ask for it. It ends with the last of them.
type flight struct {
	done   chan struct{}
	cancel context.CancelFunc
	askers int
	m      *meta
	err    error
}

// fetch makes a copy of a file of another server. Those who ask for the same file at the same time share one fetch
// and its outcome.
func (s *Store) fetch(ctx context.Context, r request) (*meta, error) {
	if s.remote == nil {
		return nil, matrix.NotFound("this server does not federate")
	}
	f := s.board(ctx, r)
	defer s.leave(r.name, f)
	select {
	case <-f.done:
		return f.m, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// board joins the flight of a file, or begins one.
func (s *Store) board(ctx context.Context, r request) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flights[r.name]; f != nil {
		f.askers++
		return f
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.wait+fetchTime)
	f := &flight{done: make(chan struct{}), cancel: cancel, askers: 1}
	s.flights[r.name] = f
	go s.fly(ctx, r, f)
	return f
}

func (s *Store) leave(n name, f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.askers--; f.askers == 0 {
		f.cancel()
		if s.flights[n] == f {
			delete(s.flights, n)
		}
	}
}

func (s *Store) fly(ctx context.Context, r request, f *flight) {
	f.err = fmt.Errorf("fetching media of %s: ended early", r.origin)
	defer func() {
		if p := recover(); p != nil { // what strangers send must not end the process
			log.WithField("panic", p).Error("fetching media failed")
		}
		s.mu.Lock()
		if s.flights[r.name] == f {
			delete(s.flights, r.name)
		}
		s.mu.Unlock()
		close(f.done)
	}()
	f.m, f.err = s.copyRemote(ctx, r)
}

// copyRemote fetches a file and keeps it.
func (s *Store) copyRemote(ctx context.Context, r request) (*meta, error) {
	m, err := s.find(ctx, r.name)
	if err != errUnknown { // it came while this one took off
		return m, err
	}
	if banned, err := s.banned(ctx, r.MXC()); err != nil || banned != nil {
		if err == nil {
			err = errNone
		}
		return nil, err
	}
	release, err := s.fetches.Acquire(ctx, 1)
	if err != nil {
		return nil, err
	}
	defer release()
	body, err := s.ask(ctx, r)
	if err != nil {
		return nil, remoteError(r.name, err)
	}
	defer body.Close()
	defer context.AfterFunc(ctx, func() { _ = body.Close() })() // whoever reads is woken
	if body.size > s.opts.MaxRemote {
		return nil, errRemoteTooLarge
	}
	err = s.keep(ctx, body, s.opts.MaxRemote, func(c stored) error {
		return s.db.Write(ctx, func(tx *sqldb.Tx) error {
			n, err := tx.Exec(qInsertCopy, string(r.origin), r.id, "", body.contentType, body.filename, c.hash, c.size, s.nowMillis(), !s.opts.OpenDownloads)
			if err != nil || n == 0 {
				return err
			}
			return s.charge(tx, "", r.origin, c.size)
		})
	})
	if err != nil {
		return nil, remoteError(r.name, err)
	}
	return s.find(ctx, r.name)
}
