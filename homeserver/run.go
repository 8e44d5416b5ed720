package homeserver

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	log "github.com/sirupsen/logrus"
)

// Handler serves clients, and other servers where they have no listener of
// their own.
func (s *Server) Handler() http.Handler { return s.api }

// Listener wraps the listener that Handler is served on, so that clients which
// wait cost less.
func (s *Server) Listener(l net.Listener) *httpapi.Listener { return s.api.Listener(l) }

// FederationHandler serves other servers only.
func (s *Server) FederationHandler() http.Handler {
	return s.api.Only("/_matrix/federation/", "/_matrix/policy/", "/_matrix/key/", "/.well-known/matrix/server", "/.well-known/matrix/policy_server")
}

// Accounts is the server's accounts, for the command line and for tests.
func (s *Server) Accounts() *accounts.Accounts { return s.accounts }

// Rooms is the server's rooms, for tests.
func (s *Server) Rooms() *rooms.Rooms { return s.rooms }

// DB is the server's database, for tests.
func (s *Server) DB() *sqldb.DB { return s.db }

// Hub is the server's read model, for tests.
func (s *Server) Hub() *hub.Hub { return s.hub }

// Run works until ctx ends: the log, and the parts that follow it. Then the
// requests under way are answered, and what was appended is committed.
func (s *Server) Run(ctx context.Context) error {
	logCtx, stopLog := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLog()
	var logged sync.WaitGroup
	logged.Go(func() { s.guard("log", func() error { return s.log.Run(logCtx) }) })
	var parts sync.WaitGroup
	for _, r := range s.runs {
		parts.Go(func() { s.guard(r.name, func() error { return r.fn(ctx) }) })
	}
	<-ctx.Done()
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), 8*time.Second)
	defer cancel()
	if err := s.api.Drain(drain); err != nil {
		log.WithError(err).Warn("some requests were still under way at the end")
	}
	parts.Wait()
	stopLog()
	logged.Wait()
	return nil
}

// guard names a part in the log when it fails or panics.
func (s *Server) guard(name string, fn func() error) {
	defer func() {
		if p := recover(); p != nil {
			log.WithField("part", name).WithField("panic", p).Error("a part of the server failed")
		}
	}()
	if err := fn(); err != nil && !errors.Is(err, context.Canceled) {
		log.WithError(err).WithField("part", name).Error("a part of the server ended early")
	}
}

// Close lets go of the database and of connections.
func (s *Server) Close() error {
	if s.client != nil {
		s.client.Close()
	}
	return s.db.Close()
}
