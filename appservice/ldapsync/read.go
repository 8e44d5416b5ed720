package ldapsync

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// Company is what a directory says.
type Company struct {
	o      Options
	units  []*unit // each above those below it
	people []*person
	// Skipped are entries of people that have no ID, by their names.
	Skipped []string
}

type unit struct {
	entry  *ldap.Entry
	id     string
	parent string // ID
}

type person struct {
	entry *ldap.Entry
	id    string
	units []string // IDs or codes, the main one first
}

// Read reads the directory.
func (s *Source) Read(ctx context.Context) (*Company, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	out := &Company{o: s.o}
	u, p := &s.o.Units, &s.o.People
	var units []*ldap.Entry
	if u.Base != "" {
		if units, err = s.search(c, u.Base, u.Filter, u.ID, u.Name, u.Code, u.Order, u.Site, u.Manager, "member", "uniqueMember"); err != nil {
			return nil, fmt.Errorf("reading units: %w", err)
		}
	}
	people, err := s.search(c, p.Base, p.Filter, p.ID, p.Name, "cn", p.Mobile, p.Email, p.Title, p.Manager, p.Unit, p.Hired, p.Left,
		"userAccountControl", "nsAccountLock", "pwdAccountLockedTime")
	if err != nil {
		return nil, fmt.Errorf("reading people: %w", err)
	}
	return out, out.build(units, people)
}

// search reads all entries below a base, page by page.
func (s *Source) search(c *ldap.Conn, base, filter string, attrs ...string) ([]*ldap.Entry, error) {
	attrs = slices.DeleteFunc(append(attrs, "entryUUID", "objectGUID"), func(a string) bool { return a == "" })
	paging := ldap.NewControlPaging(uint32(s.o.Page))
	var out []*ldap.Entry
	for {
		r, err := c.Search(ldap.NewSearchRequest(base, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, int(s.o.Timeout.Seconds()), false, filter, attrs, []ldap.Control{paging}))
		if err != nil {
			return nil, err
		}
		if out = append(out, r.Entries...); len(out) > s.o.Most {
			return nil, fmt.Errorf("there are more than %d entries", s.o.Most)
		}
		next, ok := ldap.FindControl(r.Controls, ldap.ControlTypePaging).(*ldap.ControlPaging)
		if !ok || len(next.Cookie) == 0 {
			break
		}
		paging.SetCookie(next.Cookie)
	}
	// In one order whatever the directory's, so that two reads of the same are the same.
	slices.SortFunc(out, func(a, b *ldap.Entry) int { return strings.Compare(key(a.DN), key(b.DN)) })
	return out, nil
}

// key is a name in one form: names differ in case and spaces and are still the same.
func key(dn string) string {
	d, err := ldap.ParseDN(dn)
	if err != nil {
		return strings.ToLower(dn)
	}
	return strings.ToLower(d.String())
}

// parentOf is the name above, in the form of key.
func parentOf(k string) string {
	d, err := ldap.ParseDN(k)
	if err != nil || len(d.RDNs) < 2 {
		return ""
	}
	return (&ldap.DN{RDNs: d.RDNs[1:]}).String()
}

// stable is an entry's ID for life, "" if it has none.
func stable(e *ldap.Entry) string {
	if id := e.GetAttributeValue("entryUUID"); id != "" {
		return strings.ToLower(id)
	}
	g := e.GetRawAttributeValue("objectGUID")
	if len(g) != 16 {
		return ""
	}
	// Its first three parts are little-endian. Source: MS-DTYP 2.3.4.
	b := []byte{g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]}
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func (c *Company) build(units, people []*ldap.Entry) error {
	ids := map[string]string{}      // of units, by name
	groups := map[string][]string{} // of an entry: the units whose member it is
	listed := map[string]*unit{}    // by ID
	for _, e := range units {
		id := stable(e)
		if c.o.Units.ID != "" {
			id = e.GetAttributeValue(c.o.Units.ID)
		}
		if id == "" {
			return fmt.Errorf("the unit %s has no ID: set the attribute that holds one, or let the reader see entryUUID or objectGUID", e.DN)
		}
		u := &unit{entry: e, id: id}
		c.units, listed[id] = append(c.units, u), u
		ids[key(e.DN)] = id
	}
	for _, u := range c.units {
		k := key(u.entry.DN)
		if !c.o.Units.Groups {
			for up := parentOf(k); up != "" && u.parent == ""; up = parentOf(up) {
				u.parent = ids[up]
			}
			continue
		}
		for _, m := range append(u.entry.GetAttributeValues("member"), u.entry.GetAttributeValues("uniqueMember")...) {
			mk := key(m)
			if below := listed[ids[mk]]; below == nil {
				groups[mk] = append(groups[mk], u.id)
			} else if below.parent == "" && below != u { // a group in two others stands in the first
				below.parent = u.id
			}
		}
	}
	if err := c.sort(listed); err != nil {
		return err
	}
	for _, e := range people {
		id := strings.TrimSpace(e.GetAttributeValue(c.o.People.ID))
		if id == "" {
			c.Skipped = append(c.Skipped, e.DN)
			continue
		}
		p := &person{entry: e, id: id}
		switch k := key(e.DN); {
		case c.o.People.Unit != "":
			p.units = e.GetAttributeValues(c.o.People.Unit)
		case c.o.Units.Groups:
			p.units = groups[k]
		default:
			for up := parentOf(k); up != ""; up = parentOf(up) {
				if id := ids[up]; id != "" {
					p.units = []string{id}
					break
				}
			}
		}
		c.people = append(c.people, p)
	}
	return nil
}

// sort puts units above those below them, and finds groups that hold each other.
func (c *Company) sort(listed map[string]*unit) error {
	depth := func(u *unit) (int, bool) {
		n := 0
		for u.parent != "" {
			if u = listed[u.parent]; n > len(c.units) {
				return 0, false
			}
			n++
		}
		return n, true
	}
	deep := make(map[*unit]int, len(c.units))
	for _, u := range c.units {
		n, ok := depth(u)
		if !ok {
			return fmt.Errorf("the group %s holds itself, through groups that are its members", u.entry.DN)
		}
		deep[u] = n
	}
	slices.SortStableFunc(c.units, func(a, b *unit) int { return deep[a] - deep[b] })
	return nil
}

// disabled says that an account is switched off.
func disabled(e *ldap.Entry) bool {
	if n, err := strconv.Atoi(e.GetAttributeValue("userAccountControl")); err == nil && n&2 != 0 {
		return true
	}
	return strings.EqualFold(e.GetAttributeValue("nsAccountLock"), "true") ||
		strings.HasPrefix(e.GetAttributeValue("pwdAccountLockedTime"), "000001010000") // for good; others end by themselves
}

// date reads a date: 2006-01-02, generalised time, or a FILETIME of Active Directory.
func date(s string) (string, error) {
	if s = strings.TrimSpace(s); s == "" {
		return "", nil
	}
	for _, layout := range []string{"2006-01-02", "20060102150405Z", "20060102150405.0Z", "20060102"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.Format("2006-01-02"), nil
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	switch {
	case err != nil:
		return "", errors.New("no date")
	case n == 0 || n == 1<<63-1: // never
		return "", nil
	}
	const epoch = 116444736000000000 // 1970 in hundreds of nanoseconds since 1601
	return time.Unix((n-epoch)/10_000_000, 0).UTC().Format("2006-01-02"), nil
}

func splitLines(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == '\n' })
}
