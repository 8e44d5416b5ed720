package org

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Why a store does not take what it is given.
var (
	// ErrReplica: this store holds a copy; the organisation is changed at the head office.
	ErrReplica = errors.New("the organisation is changed at the head office alone")
	// ErrGap: the delta begins at another version than the one that is here.
	ErrGap = errors.New("the delta does not begin at the version that is here")
	// ErrOlder: what is here is as late, or later.
	ErrOlder = errors.New("a tree that is as late or later is here already")
	// ErrDigest: what came out is not what the sender has.
	ErrDigest = errors.New("the tree that comes out differs from the sender's")
)

// Mark is a moment in the organisation's life. Of two, the one of the higher epoch is later, then the one of the
// higher version. Digest tells two trees of one moment apart, which there are when a lost history is written anew.
type Mark struct {
	Epoch   int64  `json:"epoch"`
	Version int64  `json:"version"`
	Digest  string `json:"digest,omitempty"`
}

// Before reports whether m is earlier than o.
func (m Mark) Before(o Mark) bool {
	return m.Epoch < o.Epoch || m.Epoch == o.Epoch && m.Version < o.Version
}

// Delta is what leads from one tree to another: all units and people that differ, or everything.
type Delta struct {
	// From is where the delta begins; of a Whole one it says nothing.
	From   Mark      `json:"from"`
	To     Mark      `json:"to"`
	Whole  bool      `json:"whole,omitempty"`
	Units  []*Unit   `json:"units,omitempty"`
	Gone   []*Unit   `json:"gone,omitempty"` // units that are removed
	People []*Person `json:"people,omitempty"`
}

// Size counts the units and people of a delta.
func (d *Delta) Size() int { return len(d.Units) + len(d.Gone) + len(d.People) }

// Mark is the tree's moment.
func (t *Tree) Mark() Mark { return Mark{t.Epoch, t.Version, t.Digest()} }

// Digest is the same for two trees that say the same of the units and of the people who have not left. It is computed
// once.
func (t *Tree) Digest() string {
	t.digestOnce.Do(func() {
		h := sha256.New()
		enc := json.NewEncoder(h) // writing a hash and encoding these structs cannot fail
		for _, id := range slices.Sorted(maps.Keys(t.unitByID)) {
			_ = enc.Encode(t.unitByID[id])
		}
		for _, p := range t.people {
			if p.Status != StatusLeft {
				_ = enc.Encode(p)
			}
		}
		t.digest = hex.EncodeToString(h.Sum(nil)[:16])
	})
	return t.digest
}

// Whole is everything, to begin from nothing.
func (t *Tree) Whole() *Delta {
	d := &Delta{To: t.Mark(), Whole: true, Units: t.units, People: t.people}
	for _, id := range slices.Sorted(maps.Keys(t.removed)) {
		d.Gone = append(d.Gone, t.removed[id])
	}
	return d
}

// Tree is the tree of a whole delta.
func (d *Delta) Tree() *Tree {
	t := newTree(d.To.Version, slices.Clone(d.Units), slices.Clone(d.People), nil)
	t.Epoch = d.To.Epoch
	return t
}

// Since is what leads from an earlier version to tree, as the journal has it. It is bounded by the size of the tree.
func (s *Store) Since(tx *sqldb.Tx, tree *Tree, from Mark) (*Delta, error) {
	rows, err := sqldb.Select(tx, scanChanged, qChangedSince, from.Version)
	if err != nil {
		return nil, fmt.Errorf("reading what has changed: %w", err)
	}
	d := &Delta{From: from, To: tree.Mark()}
	for _, c := range rows {
		if c.Kind == SitesNamed { // everybody has changed
			return tree.Whole(), nil
		}
		if strings.HasPrefix(string(c.Kind), "person_") {
			if p := tree.Person(c.ID); p != nil {
				d.People = append(d.People, p)
			}
			continue
		}
		if u := tree.Unit(c.ID); u != nil {
			d.Units = append(d.Units, u)
		} else if u := tree.removed[c.ID]; u != nil {
			d.Gone = append(d.Gone, u)
		}
	}
	return d, nil
}

func scanChanged(rows *sqldb.Rows) (c Change, err error) {
	err = rows.Scan(&c.Kind, &c.ID)
	return c, err
}

// check finds what no sender of good will sends.
func (d *Delta) check() error {
	units, people := map[string]bool{}, map[string]bool{}
	for _, u := range slices.Concat(d.Units, d.Gone) {
		if u == nil || !validID(u.ID, true) || units[u.ID] {
			return errors.New("a unit without a proper ID, or twice")
		}
		units[u.ID] = true
	}
	for _, p := range d.People {
		if p == nil || !validID(p.ID, false) || people[p.ID] || p.Localpart == "" {
			return errors.New("a person without a proper ID or log-in name, or twice")
		}
		people[p.ID] = true
	}
	return nil
}

// Replicate makes a delta from the head office true, in one transaction with also. It fails with ErrOlder, ErrGap or
// ErrDigest, and then nothing has changed and also was not called.
func (s *Store) Replicate(ctx context.Context, d *Delta, actor string, also func(*sqldb.Tx) error) (*Tree, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cur := s.Tree()
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("replicating the organisation: %w", err)
	}
	switch {
	case !cur.Mark().Before(d.To):
		return nil, ErrOlder
	case !d.Whole && d.From != cur.Mark():
		return nil, ErrGap
	}
	r := s.overlay(cur, d)
	if len(r.next.units) != len(r.next.unitByID) {
		return nil, errors.New("replicating the organisation: units stand in a circle")
	}
	if r.next.Digest() != d.To.Digest {
		return nil, ErrDigest
	}
	now := matrix.Millis(s.planner.now())
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		if n, err := tx.Exec(qSetVersion, d.To.Epoch, d.To.Version, now, cur.Epoch, cur.Version); err != nil || n == 0 {
			return errors.Join(err, moved(n))
		}
		if err := r.write(tx, actor, now); err != nil {
			return err
		}
		return also(tx)
	})
	if err != nil {
		return nil, fmt.Errorf("replicating the organisation: %w", err)
	}
	s.publish(r.next)
	return r.next, nil
}

func moved(n int64) error {
	if n == 0 {
		return ErrMoved
	}
	return nil
}

// replica is a delta on its way into a store.
type replica struct {
	cur, next *Tree
	units     []*Unit // that differ
	gone      []*Unit
	people    []*Person
}

// overlay lays a delta over the current tree. What a whole one does not have is gone; people who are not in it have
// left today: a history in which they were known has been lost.
func (s *Store) overlay(cur *Tree, d *Delta) *replica {
	r := &replica{cur: cur}
	units, people, removed := maps.Clone(cur.unitByID), maps.Clone(cur.personByID), maps.Clone(cur.removed)
	if removed == nil {
		removed = map[string]*Unit{}
	}
	put := func(u *Unit) {
		if old := units[u.ID]; old == nil || len(unitFields(old, u)) > 0 || old.OwnSite != u.OwnSite {
			r.units = append(r.units, u)
		}
		units[u.ID] = u
		delete(removed, u.ID)
	}
	drop := func(u *Unit) {
		if units[u.ID] != nil || removed[u.ID] == nil {
			r.gone = append(r.gone, u)
		}
		removed[u.ID] = u
		delete(units, u.ID)
	}
	if d.Whole {
		kept := map[string]bool{}
		for _, u := range d.Units {
			kept[u.ID] = true
		}
		for _, u := range cur.units {
			if !kept[u.ID] {
				drop(u)
			}
		}
		r.strays(s.planner.now().Format(dateLayout), d, people)
	}
	for _, u := range d.Units {
		put(u)
	}
	for _, u := range d.Gone {
		drop(u)
	}
	for _, p := range d.People {
		if old := people[p.ID]; old == nil || len(personFields(old, p)) > 0 {
			r.people = append(r.people, p)
		}
		people[p.ID] = p
	}
	r.next = newTree(d.To.Version, slices.Collect(maps.Values(units)), slices.Collect(maps.Values(people)), removed)
	r.next.Epoch = d.To.Epoch
	return r
}

// strays are people who are here and not in a whole tree. They leave; the log-in name that somebody else has got
// meanwhile is no longer theirs.
func (r *replica) strays(today string, d *Delta, people map[string]*Person) {
	known, logins := map[string]bool{}, map[string]bool{}
	for _, p := range d.People {
		known[p.ID], logins[p.Localpart] = true, true
	}
	for _, id := range sortedKeys(people) {
		p := people[id]
		if known[id] || p.Status == StatusLeft && !logins[p.Localpart] {
			continue
		}
		n := p.clone()
		n.Status = StatusLeft
		if n.Left == "" || n.Left > today {
			n.Left = today
		}
		if logins[n.Localpart] {
			n.Localpart += "~" + n.ID
		}
		people[id] = n
		r.people = append(r.people, n)
	}
}

// write stores what differs, each with its row in the journal. Strays come first: they make room for log-in names.
func (r *replica) write(tx *sqldb.Tx, actor string, now int64) error {
	journal := func(kind ChangeKind, id string, old, next []byte) error {
		_, err := tx.Exec(qInsertJournal, r.next.Version, now, actor, string(kind), id, string(old), string(next))
		return err
	}
	for _, u := range slices.Concat(r.units, r.gone) {
		old, next, err := marshalPair(r.cur.Unit(u.ID), r.next.Unit(u.ID))
		if err == nil {
			err = putUnit(tx, u, now)
		}
		kind := UnitChanged
		if r.cur.Unit(u.ID) == nil {
			kind = UnitNew
		}
		if r.next.Unit(u.ID) == nil && err == nil {
			kind = UnitRemoved
			_, err = tx.Exec(qRemoveUnit, u.ID, now)
		}
		if err == nil {
			err = journal(kind, u.ID, old, next)
		}
		if err != nil {
			return fmt.Errorf("unit %s: %w", u.ID, err)
		}
	}
	for _, p := range r.people {
		before := r.cur.Person(p.ID)
		old, next, err := marshalPair(before, p)
		if err == nil {
			err = putPerson(tx, p, before == nil, now)
		}
		if err == nil {
			err = journal(personKind(before, p), p.ID, old, next)
		}
		if err != nil {
			return fmt.Errorf("person %s: %w", p.ID, err)
		}
	}
	return nil
}

// RaiseEpoch begins a new epoch, in which versions go on above atLeast. After the head office was restored from a
// backup it makes its tree the later one everywhere, whatever the sites had heard since.
func (s *Store) RaiseEpoch(ctx context.Context, atLeast Mark, actor string) (*Tree, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.planner.replica {
		return nil, ErrReplica
	}
	cur := s.Tree()
	next := newTree(max(cur.Version, atLeast.Version)+1, slices.Clone(cur.units), slices.Clone(cur.people), cur.removed)
	next.Epoch = max(cur.Epoch, atLeast.Epoch) + 1
	now := matrix.Millis(s.planner.now())
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		if n, err := tx.Exec(qSetVersion, next.Epoch, next.Version, now, cur.Epoch, cur.Version); err != nil || n == 0 {
			return errors.Join(err, moved(n))
		}
		_, err := tx.Exec(qInsertJournal, next.Version, now, actor, string(EpochRaised), fmt.Sprint(next.Epoch), "", "")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("raising the epoch: %w", err)
	}
	s.publish(next)
	return next, nil
}

// nameSites gives people who were known before there were sites the site that has their accounts: the head office,
// where the company was until then.
func (s *Store) nameSites(ctx context.Context) error {
	cur := s.Tree()
	if s.planner.head == "" || s.planner.replica || !slices.ContainsFunc(cur.people, func(p *Person) bool { return p.Site == "" }) {
		return nil
	}
	now := matrix.Millis(s.planner.now())
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(qNameSites, s.planner.head, now); err != nil {
			return err
		}
		if _, err := tx.Exec(qSetVersion, cur.Epoch, cur.Version+1, now, cur.Epoch, cur.Version); err != nil {
			return err
		}
		_, err := tx.Exec(qInsertJournal, cur.Version+1, now, "configuration", string(SitesNamed), s.planner.head, "", "")
		return err
	})
	if err != nil {
		return fmt.Errorf("naming the sites of accounts: %w", err)
	}
	return s.load(ctx)
}
