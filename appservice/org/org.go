// Package org holds the company's organisation: its units, people and posts.
//
// It reads the file an administrator hands in (CSV, a zip of CSV, XLSX), finds
// every fault in it, compares it with what is stored, shows the difference as a
// plan and applies the plan in one transaction. The current organisation is an
// immutable Tree in memory. The package knows nothing of Matrix or of HTTP.
//
// Tables owned: as_units, as_people, as_posts, as_org_journal, as_org_version.
//
// Invariants:
//   - a file with one fault changes nothing;
//   - a person's ID (the job number) and log-in name stay for life, also after
//     leaving and coming back, and are never given to somebody else;
//   - no row is ever deleted: people leave, units are removed, both stay known;
//   - every change has a journal row, written in the transaction of the change;
//   - units form a forest, line managers form no circle.
package org

import (
	"slices"
	"strings"
)

// Unit is a department, an office or any other node of the organisation.
type Unit struct {
	ID       string `json:"id"`
	ParentID string `json:"parent_id,omitempty"`
	Name     string `json:"name"`
	Code     string `json:"code,omitempty"`
	Order    int    `json:"order"`
	// Site is where the unit works; a unit without an own site has its parent's.
	Site string `json:"site,omitempty"`
	// OwnSite tells that the site was named for this unit and not inherited.
	OwnSite bool `json:"own_site,omitempty"`
	// Managers are person IDs, the first one is the owner of the unit's room.
	Managers []string `json:"managers,omitempty"`
	// NoRoom keeps the unit from getting a room of its own.
	NoRoom bool `json:"no_room,omitempty"`
	// ContainSub puts the people of all units below into the unit's room too.
	ContainSub bool `json:"contain_sub,omitempty"`
}

// Leader tells whether a post leads its unit.
type Leader string

// The kinds of leading posts.
const (
	LeaderNone   Leader = ""
	LeaderMain   Leader = "main"
	LeaderDeputy Leader = "deputy"
)

// Post is a person's place in one unit.
type Post struct {
	Unit   string `json:"unit"`
	Title  string `json:"title,omitempty"`
	Main   bool   `json:"main,omitempty"`
	Leader Leader `json:"leader,omitempty"`
	// Order sorts the people inside the unit.
	Order int `json:"order,omitempty"`
}

// Status is where a person stands in the working life.
type Status string

// The states of a person. Invited people are known but begin later; suspended
// people keep their posts; people who left keep their ID and log-in name.
const (
	StatusInvited   Status = "invited"
	StatusActive    Status = "active"
	StatusSuspended Status = "suspended"
	StatusLeft      Status = "left"
)

// Person is an employee, past, present or to come.
type Person struct {
	// ID is the job number, the stable key.
	ID     string `json:"id"`
	Name   string `json:"name"`
	Mobile string `json:"mobile,omitempty"` // E.164
	Email  string `json:"email,omitempty"`
	// Localpart is the log-in name, fixed for life.
	Localpart string `json:"localpart,omitempty"`
	// Posts has the main post first. Those of people who left are the last held.
	Posts []Post `json:"posts,omitempty"`
	// Site is the site whose homeserver holds the person's account: that of the main post when the person was
	// first known. It stays when the person moves, as an account cannot, unless an import says otherwise (see
	// PlanOptions.MoveAccounts). Empty where there are no sites.
	Site    string `json:"site,omitempty"`
	Manager string `json:"manager,omitempty"` // line manager's ID
	Hired   string `json:"hired,omitempty"`   // 2006-01-02
	Left    string `json:"left,omitempty"`    // 2006-01-02; gone from this day on
	Status  Status `json:"status"`
	Admin   bool   `json:"admin,omitempty"`
}

// MainPost is the person's main post, the zero Post if there is none.
func (p *Person) MainPost() Post {
	for _, post := range p.Posts {
		if post.Main {
			return post
		}
	}
	return Post{}
}

// Working tells that the person is in the company today: active or suspended.
func (p *Person) Working() bool {
	return p.Status == StatusActive || p.Status == StatusSuspended
}

func (u *Unit) clone() *Unit {
	c := *u
	c.Managers = slices.Clone(u.Managers)
	return &c
}

func (p *Person) clone() *Person {
	c := *p
	c.Posts = slices.Clone(p.Posts)
	return &c
}

// Import is what a file says, before it is compared with the organisation.
type Import struct {
	Units  []*Unit
	People []*Person

	// Which sheets the file has: a sheet that is absent says nothing at all,
	// an empty one says that there is nobody.
	HasUnits, HasPeople bool

	// Columns the file does not have keep their stored values.
	skipUnit, skipPerson fields

	unitAt, personAt []place
	problems         Problems // faults of single rows; such a file is never applied
	notes            Problems // remarks that stop nothing
}

// hasUnits and hasPeople also know imports built in memory.
func (imp *Import) hasUnits() bool  { return imp.HasUnits || len(imp.Units) > 0 }
func (imp *Import) hasPeople() bool { return imp.HasPeople || len(imp.People) > 0 }

// fields is a set of columns of one sheet.
type fields uint32

func (f fields) has(c col) bool { return f&(1<<c) != 0 }

// place says where in the file something stands.
type place struct {
	sheet *sheetInfo
	row   int
	// unitCell tells that a person's first post stands in the unit column.
	unitCell bool
}

// column is the header as the file writes it, else the canonical name.
func (p place) column(c col) string {
	if p.sheet == nil {
		return columnKey(c)
	}
	if h := p.sheet.headers[c]; h != "" {
		return h
	}
	return columnKey(c)
}

type sheetInfo struct {
	name    string
	headers map[col]string
}

// atUnit and atPerson answer the zero place for imports built in memory.
func (imp *Import) atUnit(i int) place {
	if i < len(imp.unitAt) {
		return imp.unitAt[i]
	}
	return place{}
}

func (imp *Import) atPerson(i int) place {
	if i < len(imp.personAt) {
		return imp.personAt[i]
	}
	return place{}
}

// foldKey compares IDs, codes and names without regard to case.
func foldKey(s string) string { return strings.ToLower(s) }
