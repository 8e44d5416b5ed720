// Package search finds messages, room names and topics by their words, also in
// Chinese and other scripts without spaces, where two neighbouring characters
// are enough.
//
// Texts are cut into terms by the program itself, so both databases find the
// same: words are folded (case, accents, full-width forms), runs without spaces
// become pairs of neighbours. The index of terms is the one place of the server
// with an implementation for each database: sqlite.go and postgres.go.
//
// The index follows the log a moment later and never stands in the way of
// sending; a search first waits until what was acknowledged before it is in the
// index. Edits are found by their newest text at the place of the original.
//
// Tables: search_docs, search_terms, search_progress.
//
// Spec: client-server-api#server-side-search
//
// Invariants: the index and the position up to which it reaches change in one
// commit; nothing is found that the reader may not see, or that is redacted, nor
// anything in encrypted rooms.
package search

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

//go:embed schema
var schema embed.FS

// Bundler gives the aggregated relations of events, for unsigned.m.relations.
type Bundler interface {
	Bundle(ctx context.Context, tx *sqldb.Tx, user matrix.UserID, list []*events.Event) (map[matrix.EventID]json.RawMessage, error)
}

// Parts is what a Search is built of. Bundler may be nil.
type Parts struct {
	DB      *sqldb.DB
	Log     *stream.Log
	Events  *events.Store
	Rooms   *rooms.Rooms
	Data    *accountdata.Data
	Bundler Bundler
	Now     matrix.Now
}

// terms is the index proper: which terms stand where in which document, and of
// which scope (room, field, sender) the document is.
type terms interface {
	// put adds a document or replaces it.
	put(tx *sqldb.Tx, doc int64, terms, scope []string) error
	remove(tx *sqldb.Tx, doc int64) error
	// find lists documents before one, the newest first.
	find(tx *sqldb.Tx, q wanted, before int64, limit int) ([]hit, error)
}

// Search is the module.
type Search struct {
	Parts
	terms     terms
	searching *gate.Semaphore

	turn chan struct{} // holds the right to change the index
	done progress      // what the index has; with the turn
	save stream.Pos    // done.upto as it is stored; with the turn

	mu      sync.Mutex
	waiting []*events.Event // what is to be indexed of (from, to]
	from    stream.Pos
	to      stream.Pos
	bell    chan struct{} // capacity one: something waits; full is as good
}

// progress is how far the index reaches.
type progress struct {
	upto   stream.Pos // in the log
	downto stream.Pos // in history that was fetched
}

const (
	qProgress     = `SELECT upto, downto FROM search_progress WHERE id = 1`
	qSaveProgress = `UPDATE search_progress SET upto = $1, downto = $2 WHERE id = 1`
)

// New prepares the module. Call it after package rooms and before the log runs.
func New(ctx context.Context, p Parts) (*Search, error) {
	if err := p.DB.Migrate(ctx, "search", schema); err != nil {
		return nil, err
	}
	if p.Now == nil {
		p.Now = time.Now
	}
	s := &Search{Parts: p, terms: sqliteTerms{}, searching: gate.PerCPU(1), turn: make(chan struct{}, 1), bell: make(chan struct{}, 1)}
	if p.DB.IsPostgres() {
		s.terms = postgresTerms{}
	}
	err := p.DB.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.QueryRow(qProgress).Scan(&s.done.upto, &s.done.downto)
	})
	if err != nil {
		return nil, fmt.Errorf("reading how far the search index reaches: %w", err)
	}
	s.save, s.from = s.done.upto, p.Log.Head()
	s.to = s.from
	p.Log.Subscribe(s.hear)
	return s, nil
}

// Routes are the endpoints of the module.
func (s *Search) Routes() []httpapi.Route {
	return []httpapi.Route{{
		Method: http.MethodPost, Path: "/_matrix/client/v3/search", Auth: httpapi.AuthUser, RateLimit: true, AllowSuspended: true,
		Handler: s.postSearch,
	}}
}

const (
	// gather is how long messages are collected before they are indexed together.
	gather = 300 * time.Millisecond
	// maxPause is the longest wait before indexing is tried again.
	maxPause = 30 * time.Second
)

// Run indexes until ctx ends.
func (s *Search) Run(ctx context.Context) error {
	pause := time.Second
	for {
		err := s.catchUp(ctx)
		if ctx.Err() != nil {
			return nil
		}
		wait := gather
		if err == nil {
			pause = time.Second
			select {
			case <-s.bell:
			case <-ctx.Done():
				return nil
			}
		} else {
			log.WithError(err).Warn("indexing messages failed; trying again")
			wait, pause = pause, min(2*pause, maxPause)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// catchUp indexes all that has been acknowledged when it is called.
func (s *Search) catchUp(ctx context.Context) error {
	s.mu.Lock()
	target := s.to
	s.mu.Unlock()
	for {
		more, err := s.step(ctx, target)
		if err != nil {
			return fmt.Errorf("indexing: %w", err)
		}
		if !more {
			return nil
		}
	}
}
