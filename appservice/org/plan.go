package org

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ChangeKind is what happens to a unit or a person. Where several things happen
// at once it is the first of the list that applies; Fields has them all.
type ChangeKind string

// The kinds of changes, in the order plans are written and applied.
const (
	UnitNew        ChangeKind = "unit_new"
	UnitRestored   ChangeKind = "unit_restored"
	UnitMoved      ChangeKind = "unit_moved"
	UnitRenamed    ChangeKind = "unit_renamed"
	UnitChanged    ChangeKind = "unit_changed"
	PersonNew      ChangeKind = "person_new"
	PersonReturned ChangeKind = "person_returned"
	PersonMoved    ChangeKind = "person_moved"
	PersonChanged  ChangeKind = "person_changed"
	PersonLeft     ChangeKind = "person_left"
	UnitRemoved    ChangeKind = "unit_removed"
)

// What the journal has besides the changes of plans.
const (
	EpochRaised ChangeKind = "epoch_raised" // the object is the new epoch
	SitesNamed  ChangeKind = "sites_named"  // the object is the site that all accounts are at which were made before
)

// OfUnit reports whether the change is one of a unit.
func (k ChangeKind) OfUnit() bool { return strings.HasPrefix(string(k), "unit_") }

func changeKinds() []ChangeKind {
	return []ChangeKind{
		UnitNew, UnitRestored, UnitMoved, UnitRenamed, UnitChanged,
		PersonNew, PersonReturned, PersonMoved, PersonChanged, PersonLeft, UnitRemoved,
	}
}

// FieldChange is one value that changes.
type FieldChange struct {
	Field string `json:"field"`
	Old   string `json:"old"`
	New   string `json:"new"`
}

// Change is what happens to one unit or person.
type Change struct {
	Kind   ChangeKind    `json:"kind"`
	ID     string        `json:"id"`
	Name   string        `json:"name"`
	Fields []FieldChange `json:"fields,omitempty"`
}

// Plan is the difference between the organisation and an import. It belongs to
// the version it was made from and can be applied to no other.
type Plan struct {
	Base    int64    `json:"base_version"`
	Changes []Change `json:"changes"`
	// What the file does not mention and the plan leaves alone.
	AbsentUnits  []string `json:"absent_units,omitempty"`
	AbsentPeople []string `json:"absent_people,omitempty"`
	// Remarks stop nothing.
	Remarks Problems `json:"remarks,omitempty"`

	cur  *Tree
	view *view
	next *Tree
}

// PlanOptions decide what a plan may do. The zero value is the careful one.
type PlanOptions struct {
	// RemoveMissing makes people who are not in the file leave, and removes units
	// that are not in it. A sheet that is missing altogether removes nobody.
	RemoveMissing bool
	// Force allows a plan that makes more people leave than MaxLeaveShare.
	Force bool
	// MaxLeaveShare is the share of people who may leave (and of units that may be
	// removed) in one plan, 0.1 if zero. Up to five always may.
	MaxLeaveShare float64
	// MoveAccounts gives people of the file, whose main post is at another site than their account, an account
	// there. The old account is closed and its messages stay where they are.
	MoveAccounts bool
	// Below bounds RemoveMissing to people all of whose posts are in these units or below them; no unit is removed.
	Below []string
}

const (
	defaultLeaveShare = 0.1
	alwaysMayLeave    = 5
)

// Empty tells that the plan changes nothing.
func (p *Plan) Empty() bool { return len(p.Changes) == 0 }

// Count is the number of changes of a kind.
func (p *Plan) Count(kind ChangeKind) int {
	n := 0
	for _, c := range p.Changes {
		if c.Kind == kind {
			n++
		}
	}
	return n
}

// Next is the tree the plan leads to.
func (p *Plan) Next() *Tree { return p.next }

// planner makes plans; it is the part of the Store that needs no database.
type planner struct {
	rule     LoginRule
	reserved []string
	head     string          // the head office's name, "" where there are no sites
	replica  bool            // the head office is elsewhere
	sites    map[string]bool // names of all sites
	now      func() time.Time
}

func (pl planner) plan(cur *Tree, imp *Import, opts PlanOptions) (*Plan, Problems) {
	if len(imp.problems) > 0 {
		_, all := (&reader{opts: ReadOptions{Current: cur, Now: pl.now()}, imp: imp, broken: true}).finish()
		return nil, all
	}
	today := pl.now().Format(dateLayout)
	v := merge(cur, imp, opts.RemoveMissing, opts.Below, today)
	if problems := check(cur, imp, v); len(problems) > 0 {
		return nil, problems.sorted()
	}
	p := &Plan{Base: cur.Version, cur: cur, view: v}
	pl.nameLogins(cur, imp, v)
	pl.placePeople(imp, v, opts.MoveAccounts)
	p.diffUnits()
	p.diffPeople()
	if problems := p.guard(opts); len(problems) > 0 {
		return nil, problems
	}
	if !opts.RemoveMissing {
		p.AbsentUnits, p.AbsentPeople = v.absentUnits, v.absentPeople
	}
	p.Remarks = remarks(imp, v, today).sorted()
	p.next = v.tree(cur, cur.Version+1)
	return p, nil
}

// nameLogins gives new people their log-in names in the order of the file, so
// that the same file gives the same names.
func (pl planner) nameLogins(cur *Tree, imp *Import, v *view) {
	names := newLogins(pl.rule, cur, pl.reserved)
	named := map[string]bool{}
	for _, row := range imp.People {
		// Only the tree may say what somebody is called.
		if p := v.people[row.ID]; cur.Person(p.ID) == nil && !named[p.ID] {
			named[p.ID] = true
			p.Localpart = names.give(p)
		}
	}
}

// placePeople decides at which site people have their accounts: new ones where their main post is.
func (pl planner) placePeople(imp *Import, v *view, move bool) {
	if pl.head == "" {
		return
	}
	for _, row := range imp.People {
		p := v.people[row.ID]
		if p.Site != "" && (!move || p.Status == StatusLeft) {
			continue
		}
		p.Site = pl.head
		if u := v.units[p.MainPost().Unit]; u != nil && pl.sites[u.Site] {
			p.Site = u.Site
		}
	}
}

// guard refuses plans that look like a file cut short.
func (p *Plan) guard(opts PlanOptions) Problems {
	if opts.Force {
		return nil
	}
	share := cmp.Or(opts.MaxLeaveShare, defaultLeaveShare)
	var problems Problems
	refuse := func(code string, n, of int) {
		if n > alwaysMayLeave && float64(n) > share*float64(of) {
			percent := strconv.FormatFloat(share*100, 'f', -1, 64)
			problems = append(problems, newProblem(code, place{}, "", "", n, of, percent))
		}
	}
	leaving := 0
	for _, old := range p.cur.people {
		if n := p.view.people[old.ID]; old.Status != StatusLeft && old.Left == "" && n.Left != "" {
			leaving++
		}
	}
	refuse("too_many_leave", leaving, p.cur.working)
	refuse("too_many_removed", len(p.view.removedUnits), len(p.cur.units))
	return problems
}

func (p *Plan) diffUnits() {
	for _, id := range sortedKeys(p.view.units) {
		n := p.view.units[id]
		old := p.cur.Unit(id)
		if old == nil {
			kind := UnitNew
			if p.cur.removed[id] != nil {
				kind = UnitRestored
			}
			p.add(kind, id, n.Name, unitFields(&Unit{}, n))
			continue
		}
		fields := unitFields(old, n)
		if len(fields) == 0 {
			continue
		}
		kind := UnitChanged
		if old.ParentID != n.ParentID {
			kind = UnitMoved
		} else if old.Name != n.Name {
			kind = UnitRenamed
		}
		p.add(kind, id, n.Name, fields)
	}
	for _, id := range p.view.removedUnits {
		p.add(UnitRemoved, id, p.cur.Unit(id).Name, nil)
	}
	p.sort()
}

// personKind is what happens to a person of whom fields change.
func personKind(old, n *Person) ChangeKind {
	switch {
	case old == nil:
		return PersonNew
	case n.Status == StatusLeft && old.Status != StatusLeft:
		return PersonLeft
	case n.Status != StatusLeft && old.Status == StatusLeft:
		return PersonReturned
	case n.Status != StatusLeft && !sameUnits(old, n):
		return PersonMoved
	}
	return PersonChanged
}

func (p *Plan) diffPeople() {
	for _, id := range sortedKeys(p.view.people) {
		n := p.view.people[id]
		old := p.cur.Person(id)
		if old == nil {
			p.add(PersonNew, id, n.Name, personFields(&Person{}, n))
			continue
		}
		fields := personFields(old, n)
		if len(fields) == 0 {
			continue
		}
		p.add(personKind(old, n), id, n.Name, fields)
	}
	p.sort()
}

func (p *Plan) add(kind ChangeKind, id, name string, fields []FieldChange) {
	p.Changes = append(p.Changes, Change{Kind: kind, ID: id, Name: name, Fields: fields})
}

func (p *Plan) sort() {
	rank := map[ChangeKind]int{}
	for i, k := range changeKinds() {
		rank[k] = i
	}
	slices.SortStableFunc(p.Changes, func(a, b Change) int { return cmp.Compare(rank[a.Kind], rank[b.Kind]) })
}

func sameUnits(a, b *Person) bool {
	units := func(p *Person) []string {
		var ids []string
		for _, post := range p.Posts {
			ids = append(ids, post.Unit)
		}
		slices.Sort(ids)
		return ids
	}
	return slices.Equal(units(a), units(b))
}

// differ gathers the values that differ.
type differ []FieldChange

func (d *differ) text(field, old, next string) {
	if old != next {
		*d = append(*d, FieldChange{field, old, next})
	}
}

func (d *differ) flag(field string, old, next bool) {
	d.text(field, flagText(old), flagText(next))
}

func flagText(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

func unitFields(old, n *Unit) []FieldChange {
	var d differ
	d.text("name", old.Name, n.Name)
	d.text("parent", old.ParentID, n.ParentID)
	d.text("code", old.Code, n.Code)
	d.text("order", orderText(old.Order), orderText(n.Order))
	d.text("site", old.Site, n.Site)
	if old.Site == n.Site {
		d.flag("own_site", old.OwnSite, n.OwnSite)
	}
	d.text("manager", strings.Join(old.Managers, "; "), strings.Join(n.Managers, "; "))
	d.flag("contain_sub", old.ContainSub, n.ContainSub)
	d.flag("no_room", old.NoRoom, n.NoRoom)
	return d
}

func personFields(old, n *Person) []FieldChange {
	var d differ
	d.text("name", old.Name, n.Name)
	d.text("login", old.Localpart, n.Localpart)
	d.text("mobile", old.Mobile, n.Mobile)
	d.text("email", old.Email, n.Email)
	d.text("posts", formatPosts(old.Posts), formatPosts(n.Posts))
	d.text("manager", old.Manager, n.Manager)
	d.text("hired", old.Hired, n.Hired)
	d.text("left", old.Left, n.Left)
	d.text("status", string(old.Status), string(n.Status))
	d.flag("admin", old.Admin, n.Admin)
	d.text("site", old.Site, n.Site)
	return d
}

func orderText(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// formatPosts writes posts as a file has them, with the order as it cannot.
func formatPosts(posts []Post) string {
	parts := make([]string, len(posts))
	for i, p := range posts {
		parts[i] = formatPost(p)
		if p.Order != 0 {
			parts[i] += fmt.Sprintf(" #%d", p.Order)
		}
	}
	return strings.Join(parts, "; ")
}

func formatPost(p Post) string {
	s := p.Unit + ":" + p.Title
	if p.Main {
		s += ":main"
	}
	switch p.Leader {
	case LeaderMain:
		s += ":leader"
	case LeaderDeputy:
		s += ":deputy"
	}
	return s
}
