package org

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

//go:embed schema
var schemaFS embed.FS

// ErrMoved tells that the organisation changed after the plan was made: plan
// again.
var ErrMoved = errors.New("the organisation has changed since the plan was made")

// Store keeps the organisation. Reading is from memory; the database is asked at
// the start and written by Apply.
type Store struct {
	db      *sqldb.DB
	planner planner
	mu      sync.Mutex // one Apply at a time
	tree    atomic.Pointer[Tree]
	changed func(*Tree)
}

// Option sets what a Store does not need to be told.
type Option func(*Store)

// WithLoginRule sets what log-in names of new people are made of; the job number
// without it.
func WithLoginRule(rule LoginRule) Option { return func(s *Store) { s.planner.rule = rule } }

// WithReserved keeps log-in names, such as the bot's, from being given to people.
func WithReserved(localparts ...string) Option {
	return func(s *Store) { s.planner.reserved = append(s.planner.reserved, localparts...) }
}

// WithSites names this site, the head office and all sites of the company, which have a homeserver each. Anywhere but
// at the head office the store holds a copy: Apply is refused.
func WithSites(own, head string, all ...string) Option {
	return func(s *Store) {
		s.planner.head, s.planner.sites, s.planner.replica = head, map[string]bool{}, own != head
		for _, name := range all {
			s.planner.sites[name] = true
		}
	}
}

// WithNow sets the clock; days begin at midnight of its time zone. Without it, or
// with nil, it is the machine's.
func WithNow(now matrix.Now) Option {
	return func(s *Store) {
		if now != nil {
			s.planner.now = now
		}
	}
}

// NewStore opens the organisation kept in db.
func NewStore(ctx context.Context, db *sqldb.DB, opts ...Option) (*Store, error) {
	s := &Store{db: db, planner: planner{rule: LoginJobNumber, now: time.Now}}
	for _, o := range opts {
		o(s)
	}
	switch s.planner.rule {
	case LoginJobNumber, LoginPinyin, LoginEmailLocal:
	default:
		return nil, fmt.Errorf("unknown rule for log-in names %q: use %s, %s or %s",
			s.planner.rule, LoginJobNumber, LoginPinyin, LoginEmailLocal)
	}
	if err := db.Migrate(ctx, "org", schemaFS); err != nil {
		return nil, fmt.Errorf("migrating the organisation: %w", err)
	}
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	return s, s.nameSites(ctx)
}

func (s *Store) load(ctx context.Context) error {
	var tree *Tree
	err := s.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		tree, err = loadTree(tx)
		return err
	})
	if err != nil {
		return fmt.Errorf("loading the organisation: %w", err)
	}
	s.tree.Store(tree)
	return nil
}

// Tree is the current organisation.
func (s *Store) Tree() *Tree { return s.tree.Load() }

// Read reads an org file whose references may point into the current
// organisation.
func (s *Store) Read(name string, r io.Reader) (*Import, Problems) {
	return ReadFile(name, r, ReadOptions{Current: s.Tree(), Now: s.planner.now()})
}

// Plan compares an import with the current organisation, carefully: nobody
// leaves for not being in the file.
func (s *Store) Plan(imp *Import) (*Plan, Problems) { return s.PlanWith(imp, PlanOptions{}) }

// PlanWith is Plan with options.
func (s *Store) PlanWith(imp *Import, opts PlanOptions) (*Plan, Problems) {
	return s.planner.plan(s.Tree(), imp, opts)
}

// PlanDue is what the calendar asks for: people whose day of leaving or of
// beginning has come. Apply it once a day.
func (s *Store) PlanDue() (*Plan, Problems) {
	if s.planner.replica { // the head office has the same calendar
		return &Plan{Base: s.Tree().Version, cur: s.Tree(), next: s.Tree()}, nil
	}
	return s.planner.plan(s.Tree(), &Import{}, PlanOptions{Force: true})
}

// BuildTree makes a tree of an import alone, without a store.
func BuildTree(imp *Import, rule LoginRule, now time.Time) (*Tree, Problems) {
	pl := planner{rule: rule, now: func() time.Time { return now }}
	p, problems := pl.plan(emptyTree(), imp, PlanOptions{})
	if len(problems) > 0 {
		return nil, problems
	}
	return p.next, nil
}

// Apply makes the plan true: one transaction with a journal row for each change.
// It fails with ErrMoved if the organisation is no longer what the plan was made
// from. An empty plan changes nothing.
func (s *Store) Apply(ctx context.Context, p *Plan, actor string) (*Tree, error) {
	return s.ApplyWith(ctx, p, actor, nil)
}

// ApplyWith is Apply in one transaction with also, which is called for an empty plan too.
func (s *Store) ApplyWith(ctx context.Context, p *Plan, actor string, also func(*sqldb.Tx) error) (*Tree, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.planner.replica {
		return nil, ErrReplica
	}
	if p.Base != s.Tree().Version {
		return nil, ErrMoved
	}
	if also == nil {
		also = func(*sqldb.Tx) error { return nil }
	}
	if p.Empty() {
		if err := s.db.Write(ctx, also); err != nil {
			return nil, fmt.Errorf("applying the plan: %w", err)
		}
		return s.Tree(), nil
	}
	now := matrix.Millis(s.planner.now())
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(qRaiseVersion, p.next.Version, now, p.Base)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrMoved
		}
		for _, c := range p.Changes {
			if err := p.write(tx, c, actor, now); err != nil {
				return fmt.Errorf("%s %s: %w", c.Kind, c.ID, err)
			}
		}
		return also(tx)
	})
	if err != nil {
		return nil, fmt.Errorf("applying the plan: %w", err)
	}
	s.publish(p.next)
	return p.next, nil
}

// publish makes a tree the current one and tells who follows.
func (s *Store) publish(t *Tree) {
	s.tree.Store(t)
	if s.changed != nil {
		s.changed(t)
	}
}

// OnChange has f called after another tree has become the current one. It is set before the store is used by others,
// and f returns at once.
func (s *Store) OnChange(f func(*Tree)) { s.changed = f }

// write stores one change and its journal row.
func (p *Plan) write(tx *sqldb.Tx, c Change, actor string, now int64) error {
	var old, next []byte
	var err error
	switch c.Kind {
	case UnitNew, UnitRestored, UnitMoved, UnitRenamed, UnitChanged, UnitRemoved:
		before, after := p.cur.Unit(c.ID), p.view.units[c.ID]
		if old, next, err = marshalPair(before, after); err != nil {
			return err
		}
		if c.Kind == UnitRemoved {
			_, err = tx.Exec(qRemoveUnit, c.ID, now)
		} else {
			err = putUnit(tx, after, now)
		}
	default:
		before, after := p.cur.Person(c.ID), p.view.people[c.ID]
		if old, next, err = marshalPair(before, after); err != nil {
			return err
		}
		err = putPerson(tx, after, c.Kind == PersonNew, now)
	}
	if err != nil {
		return err
	}
	_, err = tx.Exec(qInsertJournal, p.next.Version, now, actor, string(c.Kind), c.ID, string(old), string(next))
	return err
}

// marshalPair writes both values as JSON, nothing for what is not there.
func marshalPair[T any](before, after *T) (old, next []byte, err error) {
	if before != nil {
		if old, err = json.Marshal(before); err != nil {
			return nil, nil, err
		}
	}
	if after != nil {
		next, err = json.Marshal(after)
	}
	return old, next, err
}

// Entry is one row of the journal: who changed what, from what, to what.
type Entry struct {
	Seq      int64           `json:"seq"`
	Version  int64           `json:"version"`
	At       int64           `json:"at"`
	Actor    string          `json:"actor"`
	Kind     ChangeKind      `json:"kind"`
	ObjectID string          `json:"object_id"`
	Old      json.RawMessage `json:"old,omitempty"`
	New      json.RawMessage `json:"new,omitempty"`
}

// Journal answers the newest entries before a sequence number, or the newest of
// all if it is 0.
func (s *Store) Journal(ctx context.Context, before int64, limit int) ([]Entry, error) {
	if before <= 0 {
		before = math.MaxInt64
	}
	var entries []Entry
	err := s.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		entries, err = sqldb.Select(tx, scanEntry, qJournal, before, limit)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the journal: %w", err)
	}
	return entries, nil
}
