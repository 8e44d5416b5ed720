package org

import (
	"cmp"
	"maps"
	"slices"
)

// view is the organisation as it will be: the current one with the file laid
// over it. It is what gets checked, and what becomes the next tree.
type view struct {
	units  map[string]*Unit
	people map[string]*Person
	// What the current organisation has and the file does not.
	absentUnits, absentPeople []string
	removedUnits              []string
}

// Within reports whether all posts of a person are in the units or below them. People without a post are nowhere.
func (t *Tree) Within(p *Person, units []string) bool {
	return len(p.Posts) > 0 && !slices.ContainsFunc(p.Posts, func(post Post) bool {
		return !slices.ContainsFunc(t.Path(post.Unit), func(u *Unit) bool { return slices.Contains(units, u.ID) })
	})
}

// merge lays the import over the current tree (nil for none). Missing sheets and
// columns leave the stored values; with removeMissing, units and people that are
// not in a sheet the file does have are removed or leave today.
func merge(cur *Tree, imp *Import, removeMissing bool, below []string, today string) *view {
	v := &view{units: map[string]*Unit{}, people: map[string]*Person{}}
	if cur == nil {
		cur = emptyTree()
	}
	for i := range imp.Units {
		u := imp.Units[i]
		if _, double := v.units[u.ID]; !double {
			v.units[u.ID] = overlayUnit(cur.Unit(u.ID), cur.removed[u.ID], u, imp.skipUnit)
		}
	}
	for _, u := range cur.units {
		if v.units[u.ID] != nil {
			continue
		}
		if imp.hasUnits() {
			v.absentUnits = append(v.absentUnits, u.ID)
		}
		if imp.hasUnits() && removeMissing && len(below) == 0 {
			v.removedUnits = append(v.removedUnits, u.ID)
			continue
		}
		v.units[u.ID] = u.clone()
	}
	resolveCodes(v.units, imp)
	inheritSites(v.units)
	mergePeople(v, cur, imp, func(p *Person) bool { return removeMissing && (len(below) == 0 || cur.Within(p, below)) }, today)
	return v
}

func mergePeople(v *view, cur *Tree, imp *Import, removeMissing func(*Person) bool, today string) {
	codes := codesOf(v.units)
	for _, p := range imp.People {
		if _, double := v.people[p.ID]; double {
			continue
		}
		n := overlayPerson(cur.Person(p.ID), p, imp.skipPerson)
		for i := range n.Posts {
			n.Posts[i].Unit = resolve(v.units, codes, n.Posts[i].Unit)
		}
		overlayPosts(cur.Person(p.ID), n, imp.skipPerson)
		v.people[p.ID] = n
	}
	for _, p := range cur.people {
		if v.people[p.ID] != nil {
			continue
		}
		n := p.clone()
		v.people[p.ID] = n
		if !imp.hasPeople() || p.Status == StatusLeft {
			continue
		}
		v.absentPeople = append(v.absentPeople, p.ID)
		if removeMissing(p) {
			n.Left = today
		}
	}
	for _, p := range v.people {
		p.Status = statusOn(p, today)
		if p.Status == StatusLeft {
			p.Posts = slices.DeleteFunc(p.Posts, func(post Post) bool {
				return v.units[post.Unit] == nil && cur.removed[post.Unit] == nil && cur.Unit(post.Unit) == nil
			})
		}
	}
}

// statusOn is the status on a day: the dates decide, and the mark "suspended".
func statusOn(p *Person, today string) Status {
	switch {
	case p.Left != "" && p.Left <= today:
		return StatusLeft
	case p.Status == StatusSuspended:
		return StatusSuspended
	case p.Hired > today:
		return StatusInvited
	}
	return StatusActive
}

// overlayUnit is the file's unit with the stored values of absent columns.
func overlayUnit(cur, removed, file *Unit, skip fields) *Unit {
	n := file.clone()
	n.OwnSite = n.Site != ""
	if cur == nil {
		cur = removed
	}
	if cur == nil || skip == 0 {
		return n
	}
	keep := func(c col, f func()) {
		if skip.has(c) {
			f()
		}
	}
	keep(colUnitParent, func() { n.ParentID = cur.ParentID })
	keep(colUnitCode, func() { n.Code = cur.Code })
	keep(colUnitOrder, func() { n.Order = cur.Order })
	keep(colUnitSite, func() { n.Site, n.OwnSite = cur.Site, cur.OwnSite })
	keep(colUnitManager, func() { n.Managers = slices.Clone(cur.Managers) })
	keep(colUnitContainSub, func() { n.ContainSub = cur.ContainSub })
	keep(colUnitRoom, func() { n.NoRoom = cur.NoRoom })
	return n
}

// overlayPerson is the file's person with the stored values of absent columns,
// and with the log-in name, which never changes.
func overlayPerson(cur, file *Person, skip fields) *Person {
	n := file.clone()
	n.Posts = mainFirst(n.Posts)
	if cur == nil {
		return n
	}
	n.Localpart, n.Site = cur.Localpart, cur.Site
	keep := func(c col, f func()) {
		if skip.has(c) {
			f()
		}
	}
	keep(colMobile, func() { n.Mobile = cur.Mobile })
	keep(colEmail, func() { n.Email = cur.Email })
	keep(colManager, func() { n.Manager = cur.Manager })
	keep(colHired, func() { n.Hired = cur.Hired })
	keep(colAdmin, func() { n.Admin = cur.Admin })
	keep(colStatus, func() {
		if cur.Status == StatusSuspended {
			n.Status = StatusSuspended
		}
	})
	// A list without days of leaving is a list of who is here: being in it brings
	// back somebody who had left, and does not cancel a day to come.
	if skip.has(colLeft) && cur.Status != StatusLeft {
		n.Left = cur.Left
	}
	return n
}

// overlayPosts keeps what the file's columns do not say about posts: the other
// posts, and title, leadership and order of a post that is in the same unit.
func overlayPosts(cur, n *Person, skip fields) {
	if cur == nil || skip == 0 {
		return
	}
	if skip.has(colUnit) && skip.has(colPosts) {
		n.Posts = slices.Clone(cur.Posts)
		return
	}
	inFile := map[string]bool{}
	for i := range n.Posts {
		post := &n.Posts[i]
		inFile[post.Unit] = true
		j := slices.IndexFunc(cur.Posts, func(old Post) bool { return old.Unit == post.Unit })
		if j < 0 {
			continue
		}
		old := cur.Posts[j]
		if skip.has(colOrder) {
			post.Order = old.Order
		}
		if !post.Main || skip.has(colUnit) {
			continue // from the list, which says the rest itself
		}
		if skip.has(colTitle) {
			post.Title = old.Title
		}
		if skip.has(colLeader) {
			post.Leader = old.Leader
		}
	}
	if !skip.has(colPosts) {
		return
	}
	for _, old := range cur.Posts {
		if !old.Main && !inFile[old.Unit] {
			n.Posts = append(n.Posts, old)
		}
	}
	n.Posts = mainFirst(n.Posts)
}

// codesOf maps codes to unit IDs.
func codesOf(units map[string]*Unit) map[string]string {
	codes := make(map[string]string, len(units))
	for _, id := range slices.Sorted(maps.Keys(units)) {
		if code := units[id].Code; code != "" && codes[code] == "" {
			codes[code] = id
		}
	}
	return codes
}

// resolve finds the unit a file means by an ID or a code; what is unknown stays
// as it is and is found by check.
func resolve(units map[string]*Unit, codes map[string]string, ref string) string {
	if units[ref] == nil && codes[ref] != "" {
		return codes[ref]
	}
	return ref
}

// resolveCodes turns parents given by their code into IDs.
func resolveCodes(units map[string]*Unit, imp *Import) {
	codes := codesOf(units)
	for _, u := range imp.Units {
		n := units[u.ID]
		n.ParentID = resolve(units, codes, n.ParentID)
	}
}

// inheritSites gives units without an own site that of the nearest unit above.
func inheritSites(units map[string]*Unit) {
	var site func(u *Unit, depth int) string
	site = func(u *Unit, depth int) string {
		if u == nil || depth > maxUnitDepth {
			return ""
		}
		if !u.OwnSite {
			u.Site = site(units[u.ParentID], depth+1)
		}
		return u.Site
	}
	for _, u := range units {
		site(u, 0)
	}
}

// tree makes the view the tree of a version.
func (v *view) tree(cur *Tree, version int64) *Tree {
	removed := maps.Clone(cur.removed)
	if removed == nil {
		removed = map[string]*Unit{}
	}
	for _, id := range v.removedUnits {
		removed[id] = cur.Unit(id)
	}
	for id := range v.units {
		delete(removed, id)
	}
	t := newTree(version, slices.Collect(maps.Values(v.units)), slices.Collect(maps.Values(v.people)), removed)
	t.Epoch = cur.Epoch
	return t
}

// byOrder sorts units as they are shown.
func byOrder(a, b *Unit) int {
	return cmp.Or(cmp.Compare(a.Order, b.Order), cmp.Compare(a.ID, b.ID))
}
