package org

import (
	"cmp"
	"slices"
	"strings"
)

// checker finds the faults that only show when the whole is seen.
type checker struct {
	cur   *Tree
	imp   *Import
	v     *view
	found Problems
}

// check answers the faults of the organisation as it would be.
func check(cur *Tree, imp *Import, v *view) Problems {
	if cur == nil {
		cur = emptyTree()
	}
	c := &checker{cur: cur, imp: imp, v: v}
	c.unitKeys()
	c.unitNames()
	c.unitRefs()
	c.unitCycles()
	c.personKeys()
	c.contacts()
	c.posts()
	c.lineManagers()
	c.unitsInUse()
	return c.found
}

func (c *checker) fail(code string, at place, column col, value string, args ...any) {
	c.found = append(c.found, newProblem(code, at, at.column(column), value, args...))
}

// unitKeys finds doubled IDs and codes.
func (c *checker) unitKeys() {
	rows := map[string]int{}
	spelling := map[string]string{}
	for _, u := range c.cur.units {
		spelling[foldKey(u.ID)] = u.ID
	}
	for id := range c.cur.removed {
		spelling[foldKey(id)] = id
	}
	owner := map[string]string{}
	for _, id := range sortedKeys(c.v.units) {
		if code := c.v.units[id].Code; code != "" && owner[foldKey(code)] == "" {
			owner[foldKey(code)] = id
		}
	}
	for i, u := range c.imp.Units {
		at := c.imp.atUnit(i)
		if at.sheet == nil {
			c.builtUnit(at, u)
		}
		if row, double := rows[u.ID]; double {
			c.fail("duplicate_id", at, colUnitID, u.ID, row)
			continue
		}
		rows[u.ID] = at.row
		if other := spelling[foldKey(u.ID)]; other != "" && other != u.ID {
			c.fail("id_spelling", at, colUnitID, u.ID, other)
		}
		spelling[foldKey(u.ID)] = u.ID
		code := c.v.units[u.ID].Code
		if code == "" {
			continue
		}
		if other := c.v.units[code]; other != nil && other.ID != u.ID {
			c.fail("code_is_id", at, colUnitCode, code)
		} else if o := owner[foldKey(code)]; o != u.ID {
			c.fail("duplicate_code", at, colUnitCode, code, o)
		}
	}
}

// builtUnit and builtPerson check what the rows of a file were checked for, for
// imports that were built in memory.
func (c *checker) builtUnit(at place, u *Unit) {
	if !validID(u.ID, true) {
		c.fail("bad_id", at, colUnitID, u.ID, maxIDLength)
	}
	if u.Name == "" {
		c.fail("required", at, colUnitName, u.ID)
	}
}

func (c *checker) builtPerson(at place, p *Person) {
	if !validID(p.ID, false) {
		c.fail("bad_id", at, colID, p.ID, maxIDLength)
	}
	if p.Name == "" {
		c.fail("required", at, colName, p.ID)
	}
	if m, ok := parseMobile(p.Mobile); p.Mobile != "" && (!ok || m != p.Mobile) {
		c.fail("bad_mobile", at, colMobile, p.Mobile)
	}
	for _, d := range []string{p.Hired, p.Left} {
		if day, ok := parseDate(d); d != "" && (!ok || day != d) {
			c.fail("bad_date", at, colHired, d)
		}
	}
	if p.Status == StatusLeft && p.Left == "" {
		c.fail("left_without_date", at, colLeft, "")
	}
}

// unitNames finds two units of one name under one parent.
func (c *checker) unitNames() {
	type key struct{ parent, name string }
	first := map[key]string{}
	inFile := map[string]bool{}
	for _, u := range c.imp.Units {
		inFile[u.ID] = true
	}
	for _, id := range sortedKeys(c.v.units) {
		if u := c.v.units[id]; !inFile[id] {
			first[key{u.ParentID, foldKey(u.Name)}] = id
		}
	}
	seen := map[string]bool{}
	for i, u := range c.imp.Units {
		if seen[u.ID] || u.Name == "" {
			continue
		}
		seen[u.ID] = true
		n := c.v.units[u.ID]
		k := key{n.ParentID, foldKey(n.Name)}
		if other, double := first[k]; double {
			c.fail("duplicate_name", c.imp.atUnit(i), colUnitName, n.Name, other)
			continue
		}
		first[k] = u.ID
	}
}

// unitRefs finds parents and managers that do not exist.
func (c *checker) unitRefs() {
	for i, u := range c.imp.Units {
		at, n := c.imp.atUnit(i), c.v.units[u.ID]
		if n.ParentID != "" && c.v.units[n.ParentID] == nil {
			c.fail("unknown_parent", at, colUnitParent, n.ParentID)
		}
		for _, m := range n.Managers {
			if c.v.people[m] == nil {
				c.fail("unknown_unit_manager", at, colUnitManager, m)
			}
		}
	}
}

// unitCycles finds units under themselves, each circle once, and trees that are
// too deep.
func (c *checker) unitCycles() {
	parent := func(id string) string {
		if u := c.v.units[id]; u != nil {
			return u.ParentID
		}
		return ""
	}
	ids := make([]string, len(c.imp.Units))
	for i, u := range c.imp.Units {
		ids[i] = u.ID
	}
	inCycle := findCycles(ids, parent, func(i int, cycle []string) {
		c.fail("unit_cycle", c.imp.atUnit(i), colUnitParent, parent(ids[i]), strings.Join(cycle, " → "))
	})
	for i, id := range ids {
		depth := 1
		for at := parent(id); at != "" && depth <= maxUnitDepth && !inCycle[at]; at = parent(at) {
			depth++
		}
		if depth > maxUnitDepth && !inCycle[id] {
			c.fail("too_deep", c.imp.atUnit(i), colUnitParent, parent(id), maxUnitDepth)
		}
	}
}

// findCycles follows up from every ID and reports each circle once, at the first
// of ids that lies on it. It answers all IDs on circles.
func findCycles(ids []string, up func(string) string, report func(i int, cycle []string)) map[string]bool {
	const walking, done = 1, 2
	state := map[string]int{}
	inCycle := map[string]bool{}
	position := make(map[string]int, len(ids))
	for i, id := range ids {
		if _, ok := position[id]; !ok {
			position[id] = i
		}
	}
	for _, start := range ids {
		var path []string
		id := start
		for id != "" && state[id] == 0 {
			state[id] = walking
			path = append(path, id)
			id = up(id)
		}
		if id != "" && state[id] == walking {
			cycle := slices.Clone(path[slices.Index(path, id):])
			at := -1
			for j, member := range cycle {
				inCycle[member] = true
				if p, ok := position[member]; ok && (at < 0 || p < position[cycle[at]]) {
					at = j
				}
			}
			if at >= 0 {
				cycle = slices.Concat(cycle[at:], cycle[:at+1])
				report(position[cycle[0]], cycle)
			}
		}
		for _, p := range path {
			state[p] = done
		}
	}
	return inCycle
}

// personKeys finds doubled job numbers.
func (c *checker) personKeys() {
	rows := map[string]int{}
	spelling := map[string]string{}
	for _, p := range c.cur.people {
		spelling[foldKey(p.ID)] = p.ID
	}
	for i, p := range c.imp.People {
		at := c.imp.atPerson(i)
		if at.sheet == nil {
			c.builtPerson(at, p)
		}
		if row, double := rows[p.ID]; double {
			c.fail("duplicate_person", at, colID, p.ID, row)
			continue
		}
		rows[p.ID] = at.row
		if other := spelling[foldKey(p.ID)]; other != "" && other != p.ID {
			c.fail("id_spelling", at, colID, p.ID, other)
		}
		spelling[foldKey(p.ID)] = p.ID
	}
}

// contacts finds mobiles and addresses that two people share. Those of people
// who left are free: carriers give numbers away again.
func (c *checker) contacts() {
	mobiles, emails := map[string]string{}, map[string]string{}
	inFile := map[string]bool{}
	for _, p := range c.imp.People {
		inFile[p.ID] = true
	}
	for id, p := range c.v.people {
		if !inFile[id] && p.Status != StatusLeft {
			mobiles[p.Mobile], emails[p.Email] = id, id
		}
	}
	seen := map[string]bool{}
	for i, row := range c.imp.People {
		p := c.v.people[row.ID]
		if seen[p.ID] || p.Status == StatusLeft {
			continue
		}
		seen[p.ID] = true
		at := c.imp.atPerson(i)
		if other, double := mobiles[p.Mobile]; double && p.Mobile != "" {
			c.fail("duplicate_mobile", at, colMobile, p.Mobile, other)
		} else {
			mobiles[p.Mobile] = p.ID
		}
		if other, double := emails[p.Email]; double && p.Email != "" {
			c.fail("duplicate_email", at, colEmail, p.Email, other)
		} else {
			emails[p.Email] = p.ID
		}
	}
}

// posts finds posts in units that do not exist, doubled and with two mains.
func (c *checker) posts() {
	seenPerson := map[string]bool{}
	for i, row := range c.imp.People {
		at, p := c.imp.atPerson(i), c.v.people[row.ID]
		if seenPerson[p.ID] {
			continue
		}
		seenPerson[p.ID] = true
		mains := 0
		units := map[string]bool{}
		for j, post := range p.Posts {
			column := colPosts
			if j == 0 && at.unitCell {
				column = colUnit
			}
			if post.Main {
				mains++
			}
			if c.v.units[post.Unit] == nil && p.Status != StatusLeft {
				c.fail("unknown_unit", at, column, post.Unit)
			}
			if units[post.Unit] {
				c.fail("duplicate_post", at, colPosts, post.Unit)
			}
			units[post.Unit] = true
		}
		if mains > 1 {
			c.fail("two_main_posts", at, colPosts, "")
		}
	}
}

// lineManagers finds managers that do not exist and circles.
func (c *checker) lineManagers() {
	manager := func(id string) string {
		if p := c.v.people[id]; p != nil && p.Manager != id {
			return p.Manager
		}
		return ""
	}
	ids := make([]string, len(c.imp.People))
	for i, row := range c.imp.People {
		ids[i] = row.ID
		p := c.v.people[row.ID]
		switch {
		case p.Manager == "":
		case p.Manager == p.ID:
			c.fail("own_manager", c.imp.atPerson(i), colManager, p.Manager)
		case c.v.people[p.Manager] == nil:
			c.fail("unknown_manager", c.imp.atPerson(i), colManager, p.Manager)
		}
	}
	findCycles(ids, manager, func(i int, cycle []string) {
		c.fail("line_cycle", c.imp.atPerson(i), colManager, manager(ids[i]), strings.Join(cycle, " → "))
	})
}

// unitsInUse finds units that would be removed under people whom the file does
// not move.
func (c *checker) unitsInUse() {
	if len(c.v.removedUnits) == 0 {
		return
	}
	inFile := map[string]bool{}
	for _, p := range c.imp.People {
		inFile[p.ID] = true
	}
	users := map[string][]string{}
	for _, id := range sortedKeys(c.v.people) {
		p := c.v.people[id]
		if inFile[id] || p.Status == StatusLeft {
			continue
		}
		for _, post := range p.Posts {
			users[post.Unit] = append(users[post.Unit], id)
		}
	}
	for _, id := range c.v.removedUnits {
		if ids := users[id]; len(ids) > 0 {
			shown := ids[:min(len(ids), 5)]
			c.fail("unit_in_use", place{}, colUnitID, id, len(ids), strings.Join(shown, ", "))
		}
	}
}

// remarks are what the administrator should know and nothing stops for.
func remarks(imp *Import, v *view, today string) Problems {
	notes := slices.Clone(imp.notes)
	add := func(code, column string, args ...any) {
		notes = append(notes, newProblem(code, place{}, column, "", args...))
	}
	leaving := func(p *Person) bool { return p != nil && (p.Status == StatusLeft || p.Left != "") }
	leads := map[string]bool{}
	for _, p := range v.people {
		for _, post := range p.Posts {
			if post.Leader == LeaderMain && !leaving(p) {
				leads[post.Unit] = true
			}
		}
	}
	for _, id := range sortedKeys(v.units) {
		u := v.units[id]
		if len(u.Managers) == 0 && !leads[id] {
			add("vacant", "", u.Name)
		}
		for _, m := range u.Managers {
			if p := v.people[m]; leaving(p) {
				add("manager_left", "", p.Name, u.Name)
			}
		}
	}
	for _, id := range sortedKeys(v.people) {
		p := v.people[id]
		if p.Status == StatusLeft {
			continue
		}
		if m := v.people[p.Manager]; leaving(m) {
			add("line_manager_left", "", m.Name, p.Name)
		}
		if len(p.Posts) == 0 {
			add("no_post", "", p.Name)
		}
		if p.Left > today {
			add("leaves_later", "", p.Name, p.Left)
		}
		if p.Status == StatusInvited {
			add("starts_later", "", p.Name, p.Hired)
		}
	}
	return notes
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
