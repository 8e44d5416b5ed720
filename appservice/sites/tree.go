package sites

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// The kinds of messages with which the organisation is replicated. A site that hears of a later tree asks for what
// leads there from its own, so that what was missed, a new site and a restored one all go the same way.
const (
	kindWant = "tree.want" // a site: this is my tree
	kindTree = "tree"      // the head office: this leads to mine
)

// want asks for the way from a tree to the head office's.
type want struct {
	Tree  org.Mark `json:"tree"`
	Whole bool     `json:"whole,omitempty"`
}

// askAgain is how long an answer is waited for once the question was acknowledged.
const askAgain = 30 * time.Second

// follow asks the head office for a later tree than the own one, and notes the own trees there.
func (e *engine) follow(ctx context.Context) error {
	if e.own.Head {
		return nil
	}
	mine := e.store.Tree().Mark()
	if !mine.Before(e.offered) {
		e.wantedAt, e.asked = time.Time{}, 0
		return nil
	}
	head := e.peerOf(e.head.Name)
	if head == nil {
		return nil
	}
	now := time.Now()
	if e.offered != e.wantedFor { // another one than was asked for
		e.wantedFor, e.wantedAt, e.asked = e.offered, time.Time{}, 0
	}
	if !e.wantedAt.IsZero() && (head.outSeq > head.acked || now.Sub(e.wantedAt) < min(askAgain<<min(e.asked, 6), lastRetry)) {
		return nil
	}
	err := e.db.Write(ctx, func(tx *sqldb.Tx) error {
		return e.Send(tx, []Site{e.head}, kindWant, want{mine, e.wantWhole})
	})
	if err != nil {
		return fmt.Errorf("asking for the organisation: %w", err)
	}
	e.wantedAt = now
	e.asked++
	return nil
}

// noteTree keeps the digest of the head office's tree, by which a later question is known for one about the same
// history.
func (s *Sites) noteTree(tx *sqldb.Tx, m org.Mark) error {
	_, err := tx.Exec(qPutTree, m.Epoch, m.Version, m.Digest)
	return err
}

// answerWant sends a site what leads from its tree to the head office's.
func (s *Sites) answerWant(_ context.Context, tx *sqldb.Tx, from Site, body json.RawMessage) error {
	var w want
	if err := json.Unmarshal(body, &w); err != nil {
		return Refuse(errors.New("the question is not of its form"))
	}
	if !s.own.Head {
		return Refuse(errors.New("this is not the head office"))
	}
	tree := s.store.Tree()
	mine := tree.Mark()
	if !w.Tree.Before(mine) {
		return nil // it has heard of a tree that is lost, or of this one meanwhile
	}
	if err := s.noteTree(tx, mine); err != nil {
		return err
	}
	switch same, known, err := s.sameHistory(tx, w.Tree, mine); {
	case err != nil:
		return err
	case known && !same:
		return Refuse(fmt.Errorf("the site has another tree of version %d than this head office ever had: raise the epoch to replace it", w.Tree.Version))
	case known && !w.Whole && w.Tree.Version > 0:
		d, err := s.store.Since(tx, tree, w.Tree)
		if err != nil {
			return err
		}
		if !d.Whole && 2*d.Size() < len(tree.Units())+len(tree.People()) {
			return s.Send(tx, []Site{from}, kindTree, d)
		}
	}
	return s.sendWhole(tx, from, tree)
}

// sameHistory reports whether a site's tree was once the own one. Of an earlier epoch nothing is known, and nothing
// has to be: the operator has said that this epoch replaces it.
func (s *Sites) sameHistory(tx *sqldb.Tx, theirs, mine org.Mark) (same, known bool, err error) {
	if theirs.Epoch != mine.Epoch || theirs.Version == 0 {
		return false, false, nil
	}
	var digest string
	err = tx.QueryRow(qTreeDigest, theirs.Epoch, theirs.Version).Scan(&digest)
	if errors.Is(err, sqldb.ErrNoRows) {
		// Every version that was handed out is noted, and forgotten when it is very old.
		return false, theirs.Version >= mine.Version-keepTrees, nil
	}
	return digest == theirs.Digest, err == nil, err
}

// sendWhole sends everything. Sites that ask at the same time share one message.
func (s *Sites) sendWhole(tx *sqldb.Tx, to Site, tree *org.Tree) error {
	s.mu.Lock()
	message, of := s.wholeID, s.wholeOf
	s.mu.Unlock()
	if of == tree.Mark() {
		there, err := exists(tx, qHasMessage, message)
		if err != nil {
			return err
		}
		if there {
			return s.enqueue(tx, to.Name, message)
		}
	}
	message, err := s.queue(tx, []Site{to}, kindTree, tree.Whole())
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.wholeID, s.wholeOf = message, tree.Mark()
	s.mu.Unlock()
	return nil
}

// takeTree makes the head office's tree the own one.
func (e *engine) takeTree(ctx context.Context, p *peer, body json.RawMessage, done func(*sqldb.Tx) error) error {
	note := log.WithField("site", p.name)
	var d org.Delta
	if !p.site.Head || json.Unmarshal(body, &d) != nil {
		note.Warn("an organisation is refused: it is not from the head office, or not of its form")
		return e.db.Write(ctx, done)
	}
	before := e.store.Tree()
	tree, err := e.store.Replicate(ctx, &d, "site:"+p.name, func(tx *sqldb.Tx) error {
		if err := e.noteTree(tx, d.To); err != nil { // this site may be the head office one day
			return err
		}
		return done(tx)
	})
	switch {
	case err == nil:
		e.wantWhole, e.wantedAt = false, time.Time{}
		e.say(0)
		note.WithFields(log.Fields{
			"epoch": tree.Epoch, "tree_version": tree.Version, "from_version": before.Version, "units": len(d.Units), "people": len(d.People), "whole": d.Whole,
		}).Info("the organisation follows the head office")
		if e.opts.Changed != nil {
			e.opts.Changed()
		}
		return nil
	case errors.Is(err, org.ErrOlder):
		note.Info("an organisation that is no later than the one that is here was left aside")
	case errors.Is(err, org.ErrGap):
		note.Info("a change of the organisation begins elsewhere; what leads from here is asked for")
		e.wantedAt = time.Time{}
	case errors.Is(err, org.ErrDigest):
		note.Warn("a change of the organisation does not lead to the head office's; all of it is asked for")
		if d.Whole {
			return err // asking again would bring the same
		}
		e.wantWhole, e.wantedAt = true, time.Time{}
	default:
		return err
	}
	return e.db.Write(ctx, done)
}

// delegations are the units that each site imports by itself, as the head office has them configured.
func (s *Sites) delegations() map[string][]string {
	out := map[string][]string{}
	for _, site := range s.all {
		if len(site.Units) > 0 {
			out[site.Name] = site.Units
		}
	}
	return out
}

// delegated keeps what the head office says about delegated units.
func (e *engine) delegated(ctx context.Context, units map[string][]string) error {
	e.mu.Lock()
	same := maps.EqualFunc(units, e.granted, slices.Equal)
	e.mu.Unlock()
	if same {
		return nil
	}
	err := e.db.Write(ctx, func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(qClearDelegated); err != nil {
			return err
		}
		for site, list := range units {
			for _, u := range list {
				if _, err := tx.Exec(qInsertDelegated, site, u); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("keeping the delegated units: %w", err)
	}
	e.mu.Lock()
	e.granted = units
	e.mu.Unlock()
	return nil
}

// DelegatedTo are the units below which a site imports people by itself.
func (s *Sites) DelegatedTo(site Site) []string {
	if s.own.Head {
		return s.byName[site.Name].Units
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.granted[site.Name]
}
