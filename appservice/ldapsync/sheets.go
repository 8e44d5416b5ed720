package ldapsync

import (
	"archive/zip"
	"bytes"
	"encoding/csv"
	"io"
	"strings"

	"github.com/go-ldap/ldap/v3"

	"github.com/carillon-chat/carillon/appservice/org"
)

// Import reads the company as a file of two sheets, with the reader of company files. In the problems the rows are
// those of entries; Entry names them.
func (c *Company) Import(read func(name string, r io.Reader) (*org.Import, org.Problems)) (*org.Import, org.Problems) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	sheets := map[string][][]string{"people.csv": c.peopleSheet()}
	if c.o.Units.Base != "" {
		sheets["units.csv"] = c.unitSheet()
	}
	for _, name := range []string{"units.csv", "people.csv"} {
		if rows := sheets[name]; rows != nil {
			w, _ := z.Create(name)              // into memory, which does not fail
			_ = csv.NewWriter(w).WriteAll(rows) // likewise
		}
	}
	_ = z.Close()
	imp, problems := read("directory.zip", &b)
	for i := range problems {
		if dn := c.Entry(problems[i].Sheet, problems[i].Row); dn != "" {
			problems[i].Sheet, problems[i].Row = dn, 0
		}
	}
	return imp, problems
}

// Entry is the name of the entry that a row of a sheet was made of, "" for none.
func (c *Company) Entry(sheet string, row int) string {
	i := row - 2 // the header is a row
	switch {
	case i < 0:
	case strings.HasPrefix(sheet, "units") || strings.HasSuffix(sheet, "units.csv"):
		if i < len(c.units) {
			return c.units[i].entry.DN
		}
	case i < len(c.people):
		return c.people[i].entry.DN
	}
	return ""
}

// People is how many people were found.
func (c *Company) People() int { return len(c.people) }

// Units is how many units were found.
func (c *Company) Units() int { return len(c.units) }

// column is one of a sheet that the directory has an attribute for.
type column[T any] struct {
	name string
	has  bool
	cell func(T) string
}

// sheet makes rows of those columns that there are.
func sheet[T any](list []T, columns []column[T]) [][]string {
	header := []string{}
	for _, col := range columns {
		if col.has {
			header = append(header, col.name)
		}
	}
	rows := [][]string{header}
	for _, v := range list {
		row := make([]string, 0, len(header))
		for _, col := range columns {
			if col.has {
				row = append(row, strings.TrimSpace(col.cell(v)))
			}
		}
		rows = append(rows, row)
	}
	return rows
}

func (c *Company) unitSheet() [][]string {
	a := &c.o.Units
	attr := func(name string) func(*unit) string {
		return func(u *unit) string { return u.entry.GetAttributeValue(name) }
	}
	by := c.byName()
	return sheet(c.units, []column[*unit]{
		{"id", true, func(u *unit) string { return u.id }},
		{"parent", true, func(u *unit) string { return u.parent }},
		{"name", true, attr(a.Name)},
		{"code", a.Code != "", attr(a.Code)},
		{"order", a.Order != "", attr(a.Order)},
		{"site", a.Site != "", attr(a.Site)},
		{"manager", a.Manager != "", func(u *unit) string {
			var ids []string
			for _, dn := range u.entry.GetAttributeValues(a.Manager) {
				if id := by[key(dn)]; id != "" { // one who is no person of the company manages nothing
					ids = append(ids, id)
				}
			}
			return strings.Join(ids, ";")
		}},
	})
}

func (c *Company) peopleSheet() [][]string {
	a := &c.o.People
	attr := func(name string) func(*person) string {
		return func(p *person) string { return p.entry.GetAttributeValue(name) }
	}
	when := func(name string) func(*person) string {
		return func(p *person) string {
			v := p.entry.GetAttributeValue(name)
			if d, err := date(v); err == nil {
				return d
			}
			return v // the reader of files says what is wrong with it
		}
	}
	by := c.byName()
	title := attr(a.Title)
	if a.Title == "" {
		title = func(*person) string { return "" }
	}
	placed := a.Unit != "" || c.o.Units.Base != ""
	return sheet(c.people, []column[*person]{
		{"job_number", true, func(p *person) string { return p.id }},
		{"name", true, func(p *person) string { return nameOf(p.entry, a.Name) }},
		{"mobile", a.Mobile != "", attr(a.Mobile)},
		{"email", a.Email != "", attr(a.Email)},
		{"unit", placed, func(p *person) string {
			if len(p.units) == 0 {
				return ""
			}
			return p.units[0]
		}},
		{"title", placed && a.Title != "", func(p *person) string {
			if len(p.units) == 0 {
				return ""
			}
			return title(p)
		}},
		{"posts", placed, func(p *person) string {
			if len(p.units) < 2 {
				return ""
			}
			return strings.Join(p.units[1:], ";")
		}},
		{"manager", a.Manager != "", func(p *person) string { return by[key(p.entry.GetAttributeValue(a.Manager))] }},
		{"hired", a.Hired != "", when(a.Hired)},
		{"left", a.Left != "", when(a.Left)},
		{"status", true, func(p *person) string {
			if disabled(p.entry) {
				return "suspended"
			}
			return ""
		}},
	})
}

// byName finds people's IDs by the names of their entries.
func (c *Company) byName() map[string]string {
	m := make(map[string]string, len(c.people))
	for _, p := range c.people {
		m[key(p.entry.DN)] = p.id
	}
	return m
}

func nameOf(e *ldap.Entry, attr string) string {
	if n := e.GetAttributeValue(attr); strings.TrimSpace(n) != "" {
		return n
	}
	return e.GetAttributeValue("cn")
}
