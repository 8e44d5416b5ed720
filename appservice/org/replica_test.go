package org_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

// pairOfStores are a head office and a site.
func pairOfStores(t testing.TB) (db *sqldb.DB, head, site *org.Store) {
	t.Helper()
	db = sqldbtest.Open(t)
	head, err := org.NewStore(t.Context(), db, org.WithSites("a", "a", "a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	site, err = org.NewStore(t.Context(), sqldbtest.Open(t), org.WithSites("b", "a", "a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	return db, head, site
}

func bring(t testing.TB, s *org.Store, imp *org.Import, o org.PlanOptions) {
	t.Helper()
	plan, problems := s.PlanWith(imp, o)
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(t.Context(), plan, "test"); err != nil {
		t.Fatal(err)
	}
}

// carry gives a delta the way that it has between sites.
func carry(t testing.TB, d *org.Delta) *org.Delta {
	t.Helper()
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	out := new(org.Delta)
	if err := json.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func nothing(*sqldb.Tx) error { return nil }

func TestReplicas(t *testing.T) {
	db, head, site := pairOfStores(t)
	imp := org.Generate(1, 60, 12, 2)
	imp.Units[1].Site = "b"
	bring(t, head, imp, org.PlanOptions{})
	replicate := func(d *org.Delta) error {
		_, err := site.Replicate(t.Context(), carry(t, d), "head", nothing)
		return err
	}
	if err := replicate(head.Tree().Whole()); err != nil {
		t.Fatal(err)
	}
	if site.Tree().Mark() != head.Tree().Mark() {
		t.Fatal("the site has another tree")
	}
	if err := replicate(head.Tree().Whole()); !errors.Is(err, org.ErrOlder) {
		t.Errorf("the same again: %v", err)
	}
	plan, _ := site.Plan(org.Generate(2, 3, 1, 1))
	if _, err := site.Apply(t.Context(), plan, "test"); !errors.Is(err, org.ErrReplica) {
		t.Errorf("a change at the site: %v", err)
	}

	since := func(from org.Mark) (d *org.Delta) {
		t.Helper()
		err := db.Read(t.Context(), func(tx *sqldb.Tx) (err error) {
			d, err = head.Since(tx, head.Tree(), from)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	first := head.Tree().Mark()
	// A unit goes, somebody leaves, somebody comes, a unit is renamed.
	next := org.Generate(1, 60, 11, 2)
	next.Units[1].Site, next.Units[3].Name = "b", "新名"
	next.People = append(next.People[:50], &org.Person{ID: "X1", Name: "新", Posts: []org.Post{{Unit: "u1", Main: true}}})
	bring(t, head, next, org.PlanOptions{RemoveMissing: true, Force: true})
	second := head.Tree().Mark()
	next.People[0].Name = "改"
	bring(t, head, next, org.PlanOptions{})

	if err := replicate(since(second)); !errors.Is(err, org.ErrGap) {
		t.Errorf("a delta from a later tree: %v", err)
	}
	wrong := carry(t, since(first))
	wrong.People[0].Name = "forged"
	if err := replicate(wrong); !errors.Is(err, org.ErrDigest) {
		t.Errorf("a delta that leads elsewhere: %v", err)
	}
	calls := 0
	if _, err := site.Replicate(t.Context(), carry(t, head.Tree().Whole()), "head", func(*sqldb.Tx) error { calls++; return errors.New("no") }); err == nil || calls == 0 || site.Tree().Mark() != first {
		t.Errorf("what goes with it failed: %v", err)
	}
	if err := replicate(since(first)); err != nil {
		t.Fatal(err)
	}
	if site.Tree().Mark() != head.Tree().Mark() || site.Tree().Unit("u11") != nil || site.Tree().Person("X1").Site != "b" {
		t.Errorf("the site has %v, the head office %v", site.Tree().Mark(), head.Tree().Mark())
	}
	circle := head.Tree().Whole()
	circle.To.Version++
	circle = carry(t, circle)
	circle.Units[0].ParentID = circle.Units[1].ID
	if err := replicate(circle); err == nil {
		t.Error("a circle was taken")
	}
}

// TestWhatIsStoredIsWhatIsThere opens a replica's store again.
func TestWhatIsStoredIsWhatIsThere(t *testing.T) {
	_, head, _ := pairOfStores(t)
	bring(t, head, org.Generate(1, 40, 8, 2), org.PlanOptions{})
	db := sqldbtest.Open(t)
	options := org.WithSites("b", "a", "a", "b")
	site, err := org.NewStore(t.Context(), db, options)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := site.Replicate(t.Context(), carry(t, head.Tree().Whole()), "head", nothing); err != nil {
		t.Fatal(err)
	}
	if _, err := head.RaiseEpoch(t.Context(), org.Mark{Epoch: 3, Version: 70}, "test"); err != nil {
		t.Fatal(err)
	}
	if m := head.Tree().Mark(); m.Epoch != 4 || m.Version != 71 {
		t.Errorf("the new epoch begins at %v", m)
	}
	// In the new epoch somebody was never there, and somebody else has the log-in name.
	other := head.Tree().Whole()
	other = carry(t, other)
	gone := other.People[3]
	other.People[3] = &org.Person{ID: "Z9", Name: "另", Localpart: gone.Localpart, Site: "a", Status: org.StatusActive, Posts: gone.Posts}
	for _, u := range other.Units {
		u.Managers = nil
	}
	other.To.Digest = other.Tree().Digest()
	if _, err := site.Replicate(t.Context(), other, "head", nothing); err != nil {
		t.Fatal(err)
	}
	again, err := org.NewStore(t.Context(), db, options)
	if err != nil {
		t.Fatal(err)
	}
	if again.Tree().Mark() != site.Tree().Mark() || again.Tree().Mark() != other.To {
		t.Errorf("stored is %v, in memory %v, sent %v", again.Tree().Mark(), site.Tree().Mark(), other.To)
	}
	if p := again.Tree().Person(gone.ID); p.Status != org.StatusLeft || p.Localpart == gone.Localpart {
		t.Errorf("who is gone is %+v", p)
	}
	if p := again.Tree().ByLocalpart(gone.Localpart); p == nil || p.ID != "Z9" {
		t.Errorf("the log-in name is that of %+v", p)
	}
}

func TestSitesOfAccountsFromBefore(t *testing.T) {
	db := sqldbtest.Open(t)
	alone, err := org.NewStore(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	bring(t, alone, org.Generate(1, 10, 3, 1), org.PlanOptions{})
	if p := alone.Tree().People()[0]; p.Site != "" {
		t.Errorf("without sites a person is at %q", p.Site)
	}
	head, err := org.NewStore(t.Context(), db, org.WithSites("a", "a", "a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range head.Tree().People() {
		if p.Site != "a" {
			t.Fatalf("%s is at %q", p.ID, p.Site)
		}
	}
	if head.Tree().Version != 2 {
		t.Errorf("version %d", head.Tree().Version)
	}
	var d *org.Delta
	_ = db.Read(t.Context(), func(tx *sqldb.Tx) (err error) {
		d, err = head.Since(tx, head.Tree(), org.Mark{Epoch: 1, Version: 1})
		return err
	})
	if d == nil || !d.Whole {
		t.Error("what leads over the naming of sites is not everything")
	}
}

// FuzzReplicate gives deltas of any form: nothing panics, and what is refused changes nothing.
func FuzzReplicate(f *testing.F) {
	_, head, site := pairOfStores(f)
	bring(f, head, org.Generate(1, 5, 3, 1), org.PlanOptions{})
	whole, _ := json.Marshal(head.Tree().Whole())
	f.Add(whole)
	f.Add([]byte(`{"to":{"epoch":1,"version":2},"units":[null],"people":[{}]}`))
	f.Add([]byte(`{"whole":true,"to":{"epoch":9,"version":2},"units":[{"id":"a","parent_id":"b","name":"x"},{"id":"b","parent_id":"a","name":"y"}]}`))
	f.Add([]byte(`{"whole":true,"to":{"epoch":9,"version":2},"people":[{"id":"1","localpart":"x","posts":[{"unit":"nowhere"}]}],"gone":[{"id":"u"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d org.Delta
		if json.Unmarshal(b, &d) != nil {
			return
		}
		before := site.Tree()
		if _, err := site.Replicate(t.Context(), &d, "head", func(*sqldb.Tx) error { return fmt.Errorf("undone") }); err == nil || site.Tree() != before {
			t.Fatal("it was not undone")
		}
		for _, u := range d.Units {
			if u != nil {
				before.Path(u.ID)
			}
		}
	})
}
