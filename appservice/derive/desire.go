package derive

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/org"
)

// The keys of the two rooms that belong to no unit.
const (
	keyCompany  = "company"
	keyAllStaff = "all-staff"
)

// want is a room as the tree wants it.
type want struct {
	key    string
	space  bool
	gated  bool // joined only through the service or an invitation
	name   string
	alias  string // localpart
	parent string // key of the space it stands in, "" for the company's
	order  string // among its siblings
	depth  int    // 1 for the company's space
	power  string // content of m.room.power_levels
	people []string
	home   string   // site that looks after it, "" for this one
	sites  []string // other sites of which somebody should be in it
}

// wish is all rooms of a tree, parents first.
type wish struct {
	rooms []*want
	byKey map[string]*want
}

func (w *wish) add(x *want) *want {
	if p := w.byKey[x.parent]; p != nil {
		x.depth = p.depth + 1
	} else {
		x.depth = 1
	}
	w.rooms = append(w.rooms, x)
	w.byKey[x.key] = x
	return x
}

// desirer computes a wish; it looks at nothing but the tree and the options.
type desirer struct {
	tree    *org.Tree
	opts    *Options
	account func(*org.Person) id.UserID
	wish    *wish
	root    *org.Unit // the single root, whose space is the company's; nil when there are several
	spaceOf map[string]string
	site    map[string][]string
	place   *placing // nil where there is one site
}

// placing says which site looks after what. Sites are named as they are recorded: "" is this one.
type placing struct {
	siteOf func(*org.Person) string
	head   string
	named  func(unitSite string) string
}

// desire is the pure heart of the package: tree in, rooms out.
func desire(tree *org.Tree, opts *Options, account func(*org.Person) id.UserID, place *placing) *wish {
	d := &desirer{
		tree: tree, opts: opts, account: account, place: place,
		wish: &wish{byKey: map[string]*want{}}, spaceOf: map[string]string{}, site: map[string][]string{},
	}
	if roots := tree.Roots(); len(roots) == 1 {
		d.root = roots[0]
	}
	d.company()
	for _, u := range tree.Units() { // parents first
		d.unit(u)
	}
	for _, x := range d.wish.rooms {
		slices.Sort(x.people)
		x.people = slices.Compact(x.people)
	}
	d.homes()
	return d.wish
}

// homes finds the site that looks after each room, and those that have people in it.
func (d *desirer) homes() {
	if d.place == nil {
		return
	}
	siteOf := map[string]string{}
	for _, p := range d.tree.People() {
		siteOf[p.ID] = d.place.siteOf(p)
	}
	for _, x := range d.wish.rooms {
		x.home = d.place.head
		if _, unit, ok := strings.Cut(x.key, ":"); ok && !strings.HasPrefix(x.key, siteKey("")) {
			x.home = d.place.named(d.tree.Unit(unit).Site)
		}
		seen := map[string]bool{"": true}
		for _, p := range x.people {
			if s := siteOf[p]; !seen[s] {
				seen[s] = true
				x.sites = append(x.sites, s)
			}
		}
		slices.Sort(x.sites)
	}
}

// working keeps those who have an account in use today.
func working(people []*org.Person) []*org.Person {
	return slices.DeleteFunc(slices.Clone(people), func(p *org.Person) bool { return !p.Working() })
}

func ids(people []*org.Person) []string {
	out := make([]string, len(people))
	for i, p := range people {
		out[i] = p.ID
	}
	return out
}

// company adds the company's space, the all-staff room and the sites' spaces.
func (d *desirer) company() {
	name := d.opts.Company
	if d.root != nil {
		name = d.root.Name
	}
	everybody := working(d.tree.People())
	d.wish.add(&want{
		key: keyCompany, space: true, gated: true, name: name, alias: "carillon_.company",
		power: spacePower(), people: ids(everybody),
	})
	if !d.opts.NoAllStaff {
		d.wish.add(&want{
			key: keyAllStaff, name: d.allStaffName(name), alias: "carillon_.all-staff", parent: keyCompany, order: "0",
			power: allStaffPower(d.speakers(everybody)), people: ids(everybody),
		})
	}
	sites := d.sites()
	if len(sites) < 2 { // one site is the company itself
		return
	}
	for _, s := range sites {
		d.wish.add(&want{
			key: siteKey(s), space: true, name: s, alias: "carillon_.site." + slug(s), parent: keyCompany, order: "5",
			power: spacePower(), people: d.site[s],
		})
	}
}

func (d *desirer) allStaffName(company string) string {
	switch {
	case d.opts.AllStaffName != "":
		return d.opts.AllStaffName
	case d.opts.Language == "en":
		return company + " all staff"
	}
	return company + "全员群"
}

// sites lists the sites' names and finds who works where.
func (d *desirer) sites() []string {
	var names []string
	for _, u := range d.tree.Units() {
		if u.Site == "" {
			continue
		}
		if _, ok := d.site[u.Site]; !ok {
			names = append(names, u.Site)
		}
		d.site[u.Site] = append(d.site[u.Site], ids(working(d.tree.Members(u.ID, false)))...)
	}
	slices.Sort(names)
	return names
}

func siteKey(site string) string { return "site:" + site }

// unit adds the unit's space and room.
func (d *desirer) unit(u *org.Unit) {
	own := append(working(d.tree.Members(u.ID, false)), working(d.tree.ManagersOf(u.ID))...)
	order := unitOrder(u.Order)
	parent := d.spaceParent(u)
	switch {
	case u == d.root:
		d.spaceOf[u.ID] = keyCompany
	case d.wish.byKey[parent].depth >= d.opts.MaxSpaceDepth:
		d.spaceOf[u.ID] = parent
	default:
		x := d.wish.add(&want{
			key: "space:" + u.ID, space: true, name: u.Name, alias: "carillon_" + unitSlug(u) + ".space", parent: parent, order: order,
			power: spacePower(), people: ids(own),
		})
		d.spaceOf[u.ID] = x.key
		order = "0" // in its own space the unit's room comes first
	}
	if u.NoRoom {
		return
	}
	members := append(working(d.tree.Members(u.ID, u.ContainSub)), own...)
	owners, deputies := d.leaders(u)
	members = append(members, owners...)
	d.wish.add(&want{
		key: "unit:" + u.ID, gated: true, name: u.Name + d.opts.GroupSuffix, alias: "carillon_" + unitSlug(u),
		parent: d.spaceOf[u.ID], order: order, power: unitPower(d.accounts(owners), d.accounts(deputies)), people: ids(members),
	})
}

// spaceParent is the space in which the unit's own stands: the site's where the site begins, else the parent unit's.
func (d *desirer) spaceParent(u *org.Unit) string {
	p := d.tree.Parent(u.ID)
	site := siteKey(u.Site)
	hasSite := u.Site != "" && d.wish.byKey[site] != nil
	if p == nil || p == d.root {
		if hasSite {
			return site
		}
		return keyCompany
	}
	if hasSite && u.Site != p.Site {
		return site
	}
	return d.spaceOf[p.ID]
}

// leaders are who has power in the unit's room: its managers as owners and its deputies. A vacant unit is owned by
// its deputies, else by the managers of the nearest unit above, else by the administrators.
func (d *desirer) leaders(u *org.Unit) (owners, deputies []*org.Person) {
	for _, p := range working(d.tree.Members(u.ID, false)) {
		for _, post := range p.Posts {
			if post.Unit == u.ID && post.Leader == org.LeaderDeputy {
				deputies = append(deputies, p)
				break
			}
		}
	}
	if owners = working(d.tree.ManagersOf(u.ID)); len(owners) > 0 {
		return owners, deputies
	}
	if len(deputies) > 0 {
		return deputies, nil
	}
	for p := d.tree.Parent(u.ID); p != nil; p = d.tree.Parent(p.ID) {
		if owners = working(d.tree.ManagersOf(p.ID)); len(owners) > 0 {
			return owners, nil
		}
	}
	for _, p := range working(d.tree.People()) {
		if p.Admin {
			owners = append(owners, p)
		}
	}
	return owners, nil
}

func (d *desirer) accounts(people []*org.Person) []id.UserID {
	out := make([]id.UserID, len(people))
	for i, p := range people {
		out[i] = d.account(p)
	}
	return out
}

// maxSpeakers keeps the power levels of the all-staff room well below the size limit of an event. Units come from
// the top of the tree, so it is the lowest that fall off.
const maxSpeakers = 800

// speakers are the powers of the all-staff room: managers may write, administrators may rule.
func (d *desirer) speakers(everybody []*org.Person) map[id.UserID]int {
	users := map[id.UserID]int{}
	for _, a := range d.opts.Admins {
		users[a] = powerAdmin
	}
	for _, p := range everybody {
		if p.Admin {
			users[d.account(p)] = powerAdmin
		}
	}
	for _, u := range d.tree.Units() {
		owners, _ := d.leaders(u)
		for _, p := range owners {
			if len(users) >= maxSpeakers {
				return users
			}
			a := d.account(p)
			users[a] = max(users[a], powerSpeaker)
		}
	}
	return users
}

// unitOrder makes an order string (at most 50 ASCII characters) that depends on nothing but the unit itself, so that
// a new sibling does not reorder the others.
func unitOrder(n int) string {
	return fmt.Sprintf("u%010d", min(max(int64(n)+5_000_000_000, 0), 9_999_999_999))
}

func unitSlug(u *org.Unit) string { return slug(cmp.Or(u.Code, u.ID)) }

// slug is a short name for aliases: itself when it is plain ASCII, else a hash.
func slug(s string) string {
	low := strings.ToLower(s)
	plain := low != "" && len(low) <= 64
	for _, c := range []byte(low) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
			plain = false
			break
		}
	}
	if plain {
		return low
	}
	return "x" + hashed(s)
}

func hashed(s string) string {
	sum := sha256.Sum256([]byte(s))
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:10]))
}
