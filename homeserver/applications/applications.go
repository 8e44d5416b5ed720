// Package applications tells application services what happens: it reads the log once for all of them, finds what
// each is interested in, and sends it in transactions.
//
// It owns the table application_positions and implements the homeserver's side of the application service
// specification: transactions, queries for users and aliases, look-ups of third-party networks, ping. Registrations are read by accounts.
//
// Invariants: a service gets its transactions one after another, each until it has taken it, for ever; a
// transaction is named by the stretch of the log that it covers, and the stretch is stored before it is sent, so
// that it has the same name and content after a restart; a service that is down holds up nobody else. Typing and
// presence are told once and never again.
//
// Spec: application-service-api
package applications

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/presence"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
	"github.com/carillon-chat/carillon/homeserver/typing"
)

//go:embed schema/*.sql
var schemaFS embed.FS

const (
	requestTimeout = 60 * time.Second
	queryTimeout   = 10 * time.Second
	savePosition   = time.Minute // how often the position is stored while nothing concerns a service
)

const (
	qPositions = `SELECT service, pos, pending FROM application_positions`
	qSave      = `INSERT INTO application_positions (service, pos, pending) VALUES ($1, $2, $3)
		ON CONFLICT (service) DO UPDATE SET pos = excluded.pos, pending = excluded.pending`
)

// Aliases lists the local aliases of a room; directory has it.
type Aliases interface {
	Aliases(ctx context.Context, room matrix.RoomID) ([]matrix.RoomAlias, error)
}

// Options of Applications.
type Options struct {
	Server   matrix.ServerName
	Services []*accounts.ApplicationService
	// Transports replaces the network for the services named: an embedded one is called in memory.
	Transports map[string]http.RoundTripper
	// Now is the clock; time.Now when nil.
	Now matrix.Now
}

// Sources are the packages that the services are told of. Typing, Presence and Aliases may be nil.
type Sources struct {
	Events   *events.Store
	Hub      *hub.Hub
	Receipts *receipts.Receipts
	Typing   *typing.Typing
	Presence *presence.Presence
	Aliases  Aliases
}

// Applications is all application services of the server.
type Applications struct {
	db       *sqldb.DB
	log      *stream.Log
	src      Sources
	opts     Options
	tail     *tail
	services []*service

	protocols protocols
}

// New makes the services. It must be called after the hub and the features are made and before the log runs.
func New(ctx context.Context, db *sqldb.DB, l *stream.Log, src Sources, opts Options) (*Applications, error) {
	if err := db.Migrate(ctx, "applications", schemaFS); err != nil {
		return nil, err
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	a := &Applications{db: db, log: l, src: src, opts: opts, tail: newTail(l.Head())}
	for _, reg := range opts.Services {
		s := newService(a, reg, opts.Transports[reg.ID])
		a.services = append(a.services, s)
	}
	if err := a.load(ctx); err != nil {
		return nil, err
	}
	if len(a.services) == 0 {
		return a, nil
	}
	l.Subscribe(a.hear)
	if src.Typing != nil {
		src.Typing.Subscribe(a.hearTyping)
	}
	if src.Presence != nil {
		src.Presence.Subscribe(a.hearPresence)
	}
	return a, nil
}

// load reads the positions; a new service begins at the head.
func (a *Applications) load(ctx context.Context) error {
	type row struct {
		service      string
		pos, pending int64
	}
	var rows []row
	err := a.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		rows, err = sqldb.Select(tx, func(r *sqldb.Rows) (x row, err error) {
			return x, r.Scan(&x.service, &x.pos, &x.pending)
		}, qPositions)
		return err
	})
	if err != nil {
		return fmt.Errorf("reading the positions of application services: %w", err)
	}
	for _, s := range a.services {
		s.pos, s.saved = a.log.Head(), -1
		for _, r := range rows {
			if r.service == s.reg.ID {
				s.pos, s.pending, s.saved = stream.Pos(r.pos), stream.Pos(r.pending), stream.Pos(r.pos)
			}
		}
	}
	return nil
}

// Run sends until ctx ends.
func (a *Applications) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, s := range a.services {
		if s.http == nil {
			continue // it wants no traffic
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			s.run(ctx)
		}()
	}
	<-ctx.Done()
	wg.Wait()
	return nil
}

func (a *Applications) hear(changes []stream.Change) {
	if a.tail.add(changes) {
		for _, s := range a.services {
			s.ring()
		}
	}
}

func (a *Applications) hearTyping(u typing.Update) {
	for _, s := range a.services {
		s.noteTyping(u.Room)
	}
}

func (a *Applications) hearPresence(p presence.State) {
	for _, s := range a.services {
		s.notePresence(p)
	}
}

// Kick has a service tried at once that was left alone after failures.
func (a *Applications) Kick(id string) {
	if s := a.byID(id); s != nil {
		select {
		case s.kick <- struct{}{}:
		default:
		}
	}
}

func (a *Applications) byID(id string) *service {
	for _, s := range a.services {
		if s.reg.ID == id {
			return s
		}
	}
	return nil
}

// save stores positions of a service.
func (a *Applications) save(ctx context.Context, id string, pos, pending stream.Pos) error {
	err := a.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qSave, id, int64(pos), int64(pending))
		return err
	})
	if err != nil {
		return fmt.Errorf("storing the position of application service %s: %w", id, err)
	}
	return nil
}

// QueryUser asks the services in whose namespace a user is whether it exists; a service that says yes has made it.
//
// Spec: application-service-api#querying
func (a *Applications) QueryUser(ctx context.Context, user matrix.UserID) (bool, error) {
	return a.query(ctx, func(s *service) bool { return s.ownsUser(user) }, "users", string(user))
}

// QueryAlias asks the services in whose namespace an alias is whether it exists; a service that says yes has made it.
//
// Spec: application-service-api#querying
func (a *Applications) QueryAlias(ctx context.Context, alias matrix.RoomAlias) (bool, error) {
	return a.query(ctx, func(s *service) bool { return s.reg.OwnsAlias(alias) }, "rooms", string(alias))
}

func (a *Applications) query(ctx context.Context, owns func(*service) bool, kind, id string) (bool, error) {
	var failed error
	for _, s := range a.services {
		if s.http == nil || !owns(s) {
			continue
		}
		qctx, cancel := context.WithTimeout(ctx, queryTimeout)
		status, _, err := s.call(qctx, http.MethodGet, []string{kind, id}, nil)
		cancel()
		switch {
		case err != nil:
			failed = errors.Join(failed, fmt.Errorf("asking application service %s: %w", s.reg.ID, err))
		case status == http.StatusOK:
			return true, nil
		}
	}
	return false, failed
}
