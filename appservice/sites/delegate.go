package sites

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// The kinds of messages about a sub-tree that a site imports by itself.
const (
	kindPropose = "tree.propose" // the site: these people change
	kindDecide  = "tree.decide"  // the head office: these do, these do not
)

// proposal is what a site would like to change: people, each as they were and as they shall be.
type proposal struct {
	ID     string   `json:"id"`
	Actor  string   `json:"actor"`
	Base   org.Mark `json:"base"`
	People []pair   `json:"people"`
}

type pair struct {
	Before *org.Person `json:"before,omitempty"`
	After  *org.Person `json:"after"`
}

// Refused is a person whose change the head office did not make.
type Refused struct {
	Person string `json:"person"`
	Reason string `json:"reason"`
}

// Outcome is what has become of a proposal.
type Outcome struct {
	Epoch    int64     `json:"epoch"`
	Version  int64     `json:"version"`
	Accepted int       `json:"accepted"`
	Refused  []Refused `json:"refused,omitempty"`
}

// Proposal is a site's import of its own people, and what the head office has decided; Outcome is nil until then.
type Proposal struct {
	ID        string   `json:"id"`
	Site      string   `json:"site"`
	Actor     string   `json:"actor"`
	At        int64    `json:"at"`
	Changes   int      `json:"changes"`
	DecidedAt int64    `json:"decided_at,omitempty"`
	Outcome   *Outcome `json:"outcome,omitempty"`
}

// Why an import at a site is refused.
var (
	// ErrNotHead: this site imports nothing.
	ErrNotHead = errors.New("the company is imported at the head office")
	// ErrOutside: the import would change more than what is delegated to this site.
	ErrOutside = errors.New("the file changes more than what is delegated to this site")
)

// OutsideError names what of an import is not delegated. It is ErrOutside.
type OutsideError struct{ Changes []string }

// Error lists the first of them.
func (e *OutsideError) Error() string {
	return fmt.Sprintf("%v: %v", ErrOutside, e.Changes[:min(len(e.Changes), 10)])
}

// Is makes it ErrOutside.
func (e *OutsideError) Is(target error) bool { return target == ErrOutside } //nolint:errorlint // it is compared as errors.Is does

// MayImport says what this site may import: everything at the head office, else only below the units of the answer;
// it fails with ErrNotHead where that is nothing.
func (s *Sites) MayImport() (below []string, err error) {
	if s.own.Head {
		return nil, nil
	}
	if below = s.DelegatedTo(s.own); len(below) == 0 {
		return nil, fmt.Errorf("%w %s (%s)", ErrNotHead, s.head.Name, s.head.ServerName)
	}
	return below, nil
}

// Check makes sure that all changes of a plan are ones of people who are below the units that are delegated to this
// site, before and after.
func (s *Sites) Check(plan *org.Plan) error {
	_, err := s.pairs(plan)
	return err
}

// pairs are the people whom a plan changes.
func (s *Sites) pairs(plan *org.Plan) ([]pair, error) {
	below, err := s.MayImport()
	if err != nil {
		return nil, err
	}
	tree := s.store.Tree()
	if tree.Version != plan.Base {
		return nil, org.ErrMoved
	}
	var people []pair
	var outside []string
	for _, c := range plan.Changes {
		before, after := tree.Person(c.ID), plan.Next().Person(c.ID)
		if c.Kind.OfUnit() || outsideOf(below, tree, before, plan.Next(), after) != "" {
			outside = append(outside, c.ID+" "+c.Name)
			continue
		}
		people = append(people, pair{before, after})
	}
	switch {
	case len(outside) > 0:
		return nil, &OutsideError{outside}
	case len(people) > mostProposed:
		return nil, fmt.Errorf("%w: more than %d people at once", ErrOutside, mostProposed)
	}
	return people, nil
}

// Propose sends the changes of a plan that passes Check to the head office, which decides.
func (s *Sites) Propose(ctx context.Context, plan *org.Plan, actor string) (*Proposal, error) {
	people, err := s.pairs(plan)
	if err != nil {
		return nil, err
	}
	pr := proposal{ID: matrix.RandomString(16), Actor: actor, Base: s.store.Tree().Mark(), People: people}
	out := &Proposal{ID: pr.ID, Site: s.own.Name, Actor: actor, At: s.opts.Now().UnixMilli(), Changes: len(pr.People)}
	err = s.db.Write(ctx, func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(qInsertProposal, out.ID, out.Site, out.Actor, out.At, out.Changes, 0, ""); err != nil {
			return err
		}
		return s.Send(tx, []Site{s.head}, kindPropose, pr)
	})
	if err != nil {
		return nil, fmt.Errorf("proposing changes to the head office: %w", err)
	}
	s.Wake()
	return out, nil
}

// outsideOf says why a change of a person is not one below the units; "" for one that is.
func outsideOf(below []string, was *org.Tree, before *org.Person, willBe *org.Tree, after *org.Person) string {
	switch {
	case after == nil:
		return "there is no such person"
	case before != nil && !was.Within(before, below):
		return "the person has a post elsewhere"
	case !willBe.Within(after, below):
		return "the person would have a post elsewhere"
	case after.Admin && (before == nil || !before.Admin):
		return "only the head office makes administrators"
	case before != nil && before.Admin && !after.Admin:
		return "only the head office changes administrators"
	}
	return ""
}

// takeProposal decides on a site's proposal. A person who has changed at the head office since the site's tree stays
// as the head office has it: its word is the later one, wherever the clocks are.
func (e *engine) takeProposal(ctx context.Context, p *peer, body json.RawMessage, done func(*sqldb.Tx) error) error {
	var pr proposal
	if !e.own.Head || json.Unmarshal(body, &pr) != nil || pr.ID == "" || len(pr.People) > mostProposed {
		log.WithField("site", p.name).Warn("a proposal is refused: this is not the head office, or it is not of its form")
		return e.db.Write(ctx, done)
	}
	slices.SortFunc(pr.People, func(a, b pair) int { return cmp.Compare(a.id(), b.id()) })
	for {
		plan, out := e.decide(p.site, &pr)
		out.Epoch, out.Version = e.store.Tree().Epoch, plan.Next().Version
		if plan.Empty() {
			out.Version = e.store.Tree().Version
		}
		_, err := e.store.ApplyWith(ctx, plan, "site:"+p.name+" "+pr.Actor, func(tx *sqldb.Tx) error {
			text, err := json.Marshal(out)
			if err != nil {
				return err
			}
			now := e.opts.Now().UnixMilli()
			if _, err := tx.Exec(qInsertProposal, pr.ID, p.name, pr.Actor, now, len(pr.People), now, string(text)); err != nil {
				return err
			}
			if err := e.Send(tx, []Site{p.site}, kindDecide, decision{pr.ID, out}); err != nil {
				return err
			}
			return done(tx)
		})
		if errors.Is(err, org.ErrMoved) {
			continue
		}
		if err != nil {
			return err
		}
		log.WithFields(log.Fields{"site": p.name, "accepted": out.Accepted, "refused": len(out.Refused), "tree_version": out.Version}).Info("a site has imported people of its own")
		if e.opts.Changed != nil && !plan.Empty() {
			e.opts.Changed()
		}
		return nil
	}
}

func (p pair) id() string {
	if p.After == nil {
		return ""
	}
	return p.After.ID
}

// decision tells a site what has become of its proposal.
type decision struct {
	ID      string   `json:"id"`
	Outcome *Outcome `json:"outcome"`
}

// decide makes the plan of those changes that can be made, in the order of the job numbers.
func (e *engine) decide(from Site, pr *proposal) (*org.Plan, *Outcome) {
	tree := e.store.Tree()
	out := &Outcome{}
	refuse := func(person, reason string) { out.Refused = append(out.Refused, Refused{person, reason}) }
	var list []*org.Person
	for _, c := range pr.People {
		cur := tree.Person(c.id())
		switch why := outsideOf(from.Units, tree, cur, tree, c.After); {
		case why != "":
			refuse(c.id(), why)
		case same(cur, c.After):
			out.Accepted++ // it is so already
		case !same(cur, c.Before):
			refuse(c.id(), "the head office has changed the person meanwhile")
		case cur == nil: // the head office names and places new people
			n := *c.After
			n.Localpart, n.Site = "", ""
			list = append(list, &n)
		default:
			list = append(list, c.After)
		}
	}
	plan, accepted := e.plan(list, refuse)
	out.Accepted += accepted
	return plan, out
}

// same compares what a site may change of a person: all but what the head office gives.
func same(a, b *org.Person) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, y := *a, *b
	x.Localpart, y.Localpart, x.Site, y.Site = "", "", "", ""
	return reflect.DeepEqual(x, y)
}

// plan makes a plan of people. What has a fault is halved until the faulty ones are alone.
func (e *engine) plan(list []*org.Person, refuse func(person, reason string)) (*org.Plan, int) {
	var good []*org.Person
	try := func(add []*org.Person) (*org.Plan, org.Problems) {
		return e.store.PlanWith(&org.Import{People: slices.Concat(good, add), HasPeople: true}, org.PlanOptions{Force: true})
	}
	var walk func(add []*org.Person)
	walk = func(add []*org.Person) {
		if len(add) == 0 {
			return
		}
		_, problems := try(add)
		switch {
		case len(problems) == 0:
			good = append(good, add...)
		case len(add) == 1:
			refuse(add[0].ID, problems[0].Text(org.English))
		default:
			walk(add[:len(add)/2])
			walk(add[len(add)/2:])
		}
	}
	walk(list)
	plan, _ := try(nil)
	return plan, len(good)
}

// takeDecision notes what has become of an own proposal.
func (s *Sites) takeDecision(_ context.Context, tx *sqldb.Tx, from Site, body json.RawMessage) error {
	var d decision
	if !from.Head || json.Unmarshal(body, &d) != nil || d.Outcome == nil {
		return Refuse(errors.New("the decision is not the head office's, or not of its form"))
	}
	text, err := json.Marshal(d.Outcome)
	if err != nil {
		return err
	}
	_, err = tx.Exec(qDecideProposal, d.ID, s.opts.Now().UnixMilli(), string(text))
	return err
}

func scanProposal(rows *sqldb.Rows) (Proposal, error) {
	var p Proposal
	var outcome string
	if err := rows.Scan(&p.ID, &p.Site, &p.Actor, &p.At, &p.Changes, &p.DecidedAt, &outcome); err != nil {
		return p, err
	}
	if outcome == "" {
		return p, nil
	}
	p.Outcome = new(Outcome)
	return p, json.Unmarshal([]byte(outcome), p.Outcome)
}

// Proposal finds a proposal; nil if there is none.
func (s *Sites) Proposal(ctx context.Context, proposal string) (*Proposal, error) {
	var list []Proposal
	err := s.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		list, err = sqldb.Select(tx, scanProposal, qProposal, proposal)
		return err
	})
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return &list[0], nil
}
