package org

import (
	"cmp"
	"slices"
	"strings"
	"sync"
)

// Tree is the whole organisation at one version. It never changes once made, so
// it may be read from anywhere without a lock. The slices and pointers it hands
// out are its own: callers must not write to them.
type Tree struct {
	// Version counts the applied plans; 0 is the empty organisation.
	Version int64
	// Epoch counts how often the versions began anew: see Store.RaiseEpoch. Of two trees, the one of the higher
	// epoch is later, then the one of the higher version.
	Epoch int64

	units      []*Unit // parents first, by order
	people     []*Person
	unitByID   map[string]*Unit
	personByID map[string]*Person
	byLogin    map[string]*Person
	byMobile   map[string][]*Person
	byName     map[string][]*Person
	unitByKey  map[string][]*Unit // name and code
	children   map[string][]*Unit // "" has the roots
	direct     map[string][]*Person
	managers   map[string][]*Person
	deputies   map[string][]*Person
	removed    map[string]*Unit
	working    int

	digestOnce sync.Once
	digest     string
}

func emptyTree() *Tree { return newTree(0, nil, nil, nil) }

func newTree(version int64, units []*Unit, people []*Person, removed map[string]*Unit) *Tree {
	t := &Tree{
		Version:    version,
		unitByID:   make(map[string]*Unit, len(units)),
		personByID: make(map[string]*Person, len(people)),
		byLogin:    make(map[string]*Person, len(people)),
		byMobile:   make(map[string][]*Person, len(people)),
		byName:     make(map[string][]*Person, len(people)),
		unitByKey:  make(map[string][]*Unit, 2*len(units)),
		children:   map[string][]*Unit{},
		direct:     make(map[string][]*Person, len(units)),
		managers:   make(map[string][]*Person, len(units)),
		deputies:   map[string][]*Person{},
		removed:    removed,
	}
	t.addUnits(units)
	t.addPeople(people)
	return t
}

func (t *Tree) addUnits(units []*Unit) {
	slices.SortFunc(units, byOrder)
	for _, u := range units {
		t.unitByID[u.ID] = u
	}
	for _, u := range units {
		parent := u.ParentID
		if t.unitByID[parent] == nil {
			parent = ""
		}
		t.children[parent] = append(t.children[parent], u)
	}
	var walk func(parent string)
	walk = func(parent string) {
		for _, u := range t.children[parent] {
			t.units = append(t.units, u)
			t.unitByKey[u.Name] = append(t.unitByKey[u.Name], u)
			if u.Code != "" && u.Code != u.Name {
				t.unitByKey[u.Code] = append(t.unitByKey[u.Code], u)
			}
			walk(u.ID)
		}
	}
	walk("")
}

func (t *Tree) addPeople(people []*Person) {
	slices.SortFunc(people, func(a, b *Person) int { return cmp.Compare(a.ID, b.ID) })
	t.people = people
	for _, p := range people {
		t.personByID[p.ID] = p
		t.byLogin[p.Localpart] = p
		t.byName[p.Name] = append(t.byName[p.Name], p)
		if p.Mobile != "" {
			t.byMobile[p.Mobile] = append(t.byMobile[p.Mobile], p)
		}
		if p.Working() {
			t.working++
		}
	}
	for _, u := range t.units {
		for _, id := range u.Managers {
			t.lead(t.managers, u.ID, t.personByID[id])
		}
	}
	for _, p := range people {
		for _, post := range p.Posts {
			if t.unitByID[post.Unit] == nil || !p.Working() {
				continue
			}
			t.direct[post.Unit] = append(t.direct[post.Unit], p)
			switch post.Leader {
			case LeaderMain:
				t.lead(t.managers, post.Unit, p)
			case LeaderDeputy:
				t.lead(t.deputies, post.Unit, p)
			}
		}
	}
	for unit, ps := range t.direct {
		slices.SortStableFunc(ps, func(a, b *Person) int { return cmp.Compare(a.orderIn(unit), b.orderIn(unit)) })
	}
}

// lead adds a working person to the leaders of a unit, once.
func (t *Tree) lead(leaders map[string][]*Person, unit string, p *Person) {
	if p != nil && p.Working() && !slices.Contains(leaders[unit], p) {
		leaders[unit] = append(leaders[unit], p)
	}
}

func (p *Person) orderIn(unit string) int {
	for _, post := range p.Posts {
		if post.Unit == unit {
			return post.Order
		}
	}
	return 0
}

// Units are all units, parents before their children, siblings by order.
func (t *Tree) Units() []*Unit { return slices.Clip(t.units) }

// Unit is the unit with the ID, or nil.
func (t *Tree) Unit(id string) *Unit { return t.unitByID[id] }

// People are all people known, those who left included, by job number.
func (t *Tree) People() []*Person { return slices.Clip(t.people) }

// Person is the person with the job number, or nil.
func (t *Tree) Person(id string) *Person { return t.personByID[id] }

// ByLocalpart is the person with the log-in name, or nil.
func (t *Tree) ByLocalpart(localpart string) *Person {
	if localpart == "" {
		return nil
	}
	return t.byLogin[localpart]
}

// ByMobile are the people with the number: one at most who works here, and
// perhaps people who left before.
func (t *Tree) ByMobile(e164 string) []*Person { return slices.Clip(t.byMobile[e164]) }

// Headcount is the number of people who work here today.
func (t *Tree) Headcount() int { return t.working }

// Roots are the units without a parent.
func (t *Tree) Roots() []*Unit { return slices.Clip(t.children[""]) }

// Children are the units right below a unit.
func (t *Tree) Children(unitID string) []*Unit {
	if unitID == "" {
		return nil
	}
	return slices.Clip(t.children[unitID])
}

// Parent is the unit right above, or nil.
func (t *Tree) Parent(unitID string) *Unit {
	if u := t.unitByID[unitID]; u != nil {
		return t.unitByID[u.ParentID]
	}
	return nil
}

// Path are the units from the root down to the unit itself.
func (t *Tree) Path(unitID string) []*Unit {
	var path []*Unit
	for u := t.unitByID[unitID]; u != nil; u = t.unitByID[u.ParentID] {
		path = append(path, u)
	}
	slices.Reverse(path)
	return path
}

// Members are the people who work in the unit, and with withSub in the units
// below, each once. People who left and people who begin later are none.
func (t *Tree) Members(unitID string, withSub bool) []*Person {
	if !withSub || len(t.Children(unitID)) == 0 {
		return slices.Clip(t.direct[unitID]) // an append must not write into the tree
	}
	var out []*Person
	seen := map[*Person]bool{}
	var walk func(id string)
	walk = func(id string) {
		for _, p := range t.direct[id] {
			if !seen[p] {
				seen[p] = true
				out = append(out, p)
			}
		}
		for _, c := range t.children[id] {
			walk(c.ID)
		}
	}
	walk(unitID)
	return out
}

// UnitsOf are the units of the person's posts, the main one first.
func (t *Tree) UnitsOf(personID string) []*Unit {
	p := t.personByID[personID]
	if p == nil {
		return nil
	}
	units := make([]*Unit, 0, len(p.Posts))
	for _, post := range p.Posts {
		if u := t.unitByID[post.Unit]; u != nil {
			units = append(units, u)
		}
	}
	return units
}

// ManagersOf are the working managers of the unit: those named for the unit,
// then the holders of its leading posts. None: the place is vacant.
func (t *Tree) ManagersOf(unitID string) []*Person { return slices.Clip(t.managers[unitID]) }

// DeputiesOf are the working deputies of the unit.
func (t *Tree) DeputiesOf(unitID string) []*Person { return slices.Clip(t.deputies[unitID]) }

// IsManager tells whether the person manages the unit or a unit above it.
func (t *Tree) IsManager(personID, unitID string) bool {
	p := t.personByID[personID]
	for u := t.unitByID[unitID]; u != nil && p != nil; u = t.unitByID[u.ParentID] {
		if slices.Contains(t.managers[u.ID], p) {
			return true
		}
	}
	return false
}

// Manages tells whether the person manages this very unit.
func (t *Tree) Manages(personID, unitID string) bool {
	p := t.personByID[personID]
	return p != nil && slices.Contains(t.managers[unitID], p)
}

// ManagedUnits are the units the person manages directly.
func (t *Tree) ManagedUnits(personID string) []*Unit {
	var out []*Unit
	for _, u := range t.units {
		if t.Manages(personID, u.ID) {
			out = append(out, u)
		}
	}
	return out
}

// Sites are the places with at least one unit, in the order of the units.
func (t *Tree) Sites() []string {
	var sites []string
	for _, u := range t.units {
		if u.Site != "" && !slices.Contains(sites, u.Site) {
			sites = append(sites, u.Site)
		}
	}
	return sites
}

// Admins are the working administrators.
func (t *Tree) Admins() []*Person {
	var out []*Person
	for _, p := range t.people {
		if p.Admin && p.Working() {
			out = append(out, p)
		}
	}
	return out
}

// FindUnit finds units by exact ID, else by code or name.
func (t *Tree) FindUnit(nameOrCodeOrID string) []*Unit {
	q := strings.TrimSpace(nameOrCodeOrID)
	if u := t.unitByID[q]; u != nil {
		return []*Unit{u}
	}
	return slices.Clip(t.unitByKey[q])
}

// FindPerson finds people by exact job number, log-in name, mobile or name.
func (t *Tree) FindPerson(q string) []*Person {
	q = strings.TrimSpace(q)
	if p := t.personByID[q]; p != nil {
		return []*Person{p}
	}
	if p := t.ByLocalpart(strings.ToLower(q)); p != nil {
		return []*Person{p}
	}
	if m, ok := parseMobile(q); ok && len(t.byMobile[m]) > 0 {
		return slices.Clip(t.byMobile[m])
	}
	return slices.Clip(t.byName[q])
}
