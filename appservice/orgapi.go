package appservice

import (
	"bytes"
	"cmp"
	"net/http"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

const apiV1 = "/_carillon/v1"

// orgRoutes are the endpoints of the organisation, and health.
func (s *Service) orgRoutes() []httpapi.Route {
	get := func(path string, auth httpapi.Auth, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: http.MethodGet, Path: apiV1 + path, Auth: auth, RateLimit: auth != httpapi.AuthNone, AllowSuspended: true, Handler: h}
	}
	return []httpapi.Route{
		get("/health", httpapi.AuthNone, s.health),
		get("/org/tree", httpapi.AuthUser, s.serveTree),
		get("/org/people", httpapi.AuthUser, s.servePeople),
		get("/org/people/{id}", httpapi.AuthUser, s.servePerson),
		get("/org/units/{id}", httpapi.AuthUser, s.serveUnit),
		get("/org/template", httpapi.AuthUser, s.serveTemplate),
		get("/org/jobs/{id}", httpapi.AuthAdmin, s.serveJob),
		{Method: http.MethodPost, Path: apiV1 + "/org/import", Auth: httpapi.AuthAdmin, MaxBody: maxImport, Handler: s.serveImport},
		{Method: http.MethodPost, Path: apiV1 + "/org/reconcile", Auth: httpapi.AuthAdmin, Handler: s.serveReconcile},
	}
}

type healthView struct {
	Status  string `json:"status"`
	Version int64  `json:"tree_version"`
}

// health answers that the service runs and can read its database.
func (s *Service) health(c *httpapi.Call) (any, error) {
	if _, err := s.seenTransaction(c.Ctx(), ""); err != nil {
		return nil, err
	}
	return healthView{"ok", s.store.Tree().Version}, nil
}

// personRef names a person.
type personRef struct {
	ID   string    `json:"id"`
	Name string    `json:"name"`
	User id.UserID `json:"user_id"`
}

type postView struct {
	Unit     string     `json:"unit"`
	UnitName string     `json:"unit_name"`
	Title    string     `json:"title,omitempty"`
	Main     bool       `json:"main,omitempty"`
	Leader   org.Leader `json:"leader,omitempty"`
}

// personView is a person as the caller may see them: mobile numbers and dates are for the person, for those who manage
// the person and for administrators.
type personView struct {
	personRef
	Site    string     `json:"site,omitempty"` // of the account
	Email   string     `json:"email,omitempty"`
	Mobile  string     `json:"mobile,omitempty"`
	Status  org.Status `json:"status"`
	Admin   bool       `json:"admin,omitempty"`
	Manager *personRef `json:"manager,omitempty"`
	Posts   []postView `json:"posts"`
	Hired   string     `json:"hired,omitempty"`
	Left    string     `json:"left,omitempty"`
}

type unitView struct {
	ID       string      `json:"id"`
	ParentID string      `json:"parent_id,omitempty"`
	Name     string      `json:"name"`
	Code     string      `json:"code,omitempty"`
	Order    int         `json:"order"`
	Site     string      `json:"site,omitempty"`
	Managers []personRef `json:"managers"`
	Members  int         `json:"members"`       // people with a post in the unit itself
	Total    int         `json:"total_members"` // with the units below
	Room     id.RoomID   `json:"room_id,omitempty"`
}

func (s *Service) ref(p *org.Person) personRef {
	return personRef{p.ID, p.Name, s.sites.UserOf(p)}
}

// viewer is who looks: the person of the caller, nil for an administrator who is none.
type viewer struct {
	tree   *org.Tree
	person *org.Person
	admin  bool
}

func (s *Service) viewer(c *httpapi.Call) (viewer, error) {
	p, err := s.employee(c)
	return viewer{s.store.Tree(), p, c.Caller.Admin}, err
}

// seesPrivate reports whether the viewer may see a person's mobile number and dates.
func (v viewer) seesPrivate(p *org.Person) bool {
	if v.admin || v.person == p {
		return true
	}
	if v.person == nil {
		return false
	}
	if p.Manager == v.person.ID {
		return true
	}
	return slices.ContainsFunc(p.Posts, func(post org.Post) bool { return v.tree.IsManager(v.person.ID, post.Unit) })
}

// sees reports whether the viewer may see the person at all: people who have left are for administrators.
func (v viewer) sees(p *org.Person) bool { return v.admin || p.Status != org.StatusLeft }

func (s *Service) viewPerson(v viewer, p *org.Person) personView {
	out := personView{personRef: s.ref(p), Site: p.Site, Email: p.Email, Status: p.Status, Admin: p.Admin, Posts: []postView{}}
	for _, post := range p.Posts {
		pv := postView{Unit: post.Unit, Title: post.Title, Main: post.Main, Leader: post.Leader}
		if u := v.tree.Unit(post.Unit); u != nil {
			pv.UnitName = u.Name
		}
		out.Posts = append(out.Posts, pv)
	}
	if m := v.tree.Person(p.Manager); m != nil {
		r := s.ref(m)
		out.Manager = &r
	}
	if v.seesPrivate(p) {
		out.Mobile, out.Hired, out.Left = p.Mobile, p.Hired, p.Left
	}
	return out
}

func (s *Service) viewUnit(t *org.Tree, u *org.Unit) unitView {
	out := unitView{
		ID: u.ID, ParentID: u.ParentID, Name: u.Name, Code: u.Code, Order: u.Order, Site: u.Site, Managers: []personRef{},
		Members: len(t.Members(u.ID, false)), Total: len(t.Members(u.ID, true)),
	}
	for _, m := range t.ManagersOf(u.ID) {
		out.Managers = append(out.Managers, s.ref(m))
	}
	if room, ok := s.rooms.UnitRoom(u.ID); ok {
		out.Room = room
	}
	return out
}

type treeView struct {
	Version  int64      `json:"version"`
	People   int        `json:"people"`
	Company  id.RoomID  `json:"company_space,omitempty"`
	AllStaff id.RoomID  `json:"all_staff_room,omitempty"`
	Units    []unitView `json:"units"`
}

// serveTree answers all units, parents first.
func (s *Service) serveTree(c *httpapi.Call) (any, error) {
	v, err := s.viewer(c)
	if err != nil {
		return nil, err
	}
	out := treeView{Version: v.tree.Version, People: v.tree.Headcount(), Units: []unitView{}}
	out.Company, _ = s.rooms.Room("company")
	out.AllStaff, _ = s.rooms.Room("all-staff")
	for _, u := range v.tree.Units() {
		out.Units = append(out.Units, s.viewUnit(v.tree, u))
	}
	return out, nil
}

type peopleView struct {
	People []personView `json:"people"`
	Next   string       `json:"next_cursor,omitempty"`
}

// servePeople lists or searches people, in the order of their job numbers, by pages.
func (s *Service) servePeople(c *httpapi.Call) (any, error) {
	v, err := s.viewer(c)
	if err != nil {
		return nil, err
	}
	limit, err := c.QueryInt("limit", 100, 1, 500)
	if err != nil {
		return nil, err
	}
	people := v.tree.People()
	if unit := c.Query("unit"); unit != "" {
		if v.tree.Unit(unit) == nil {
			return nil, matrix.NotFound("there is no unit %q", unit)
		}
		sub, err := c.Bool("sub")
		if err != nil {
			return nil, err
		}
		people = slices.Clone(v.tree.Members(unit, sub))
		slices.SortFunc(people, func(a, b *org.Person) int { return cmp.Compare(a.ID, b.ID) })
	}
	q := strings.ToLower(strings.TrimSpace(c.Query("q")))
	cursor := c.Query("cursor")
	out := peopleView{People: []personView{}}
	for _, p := range people {
		if p.ID <= cursor || !v.sees(p) || !v.matches(p, q) {
			continue
		}
		if len(out.People) == limit {
			out.Next = out.People[limit-1].ID
			break
		}
		out.People = append(out.People, s.viewPerson(v, p))
	}
	return out, nil
}

// matches reports whether a person is found by q: in the name, the job number, the log-in name or the address, and in
// the mobile number if the viewer may see it.
func (v viewer) matches(p *org.Person, q string) bool {
	if q == "" {
		return true
	}
	for _, s := range []string{p.Name, p.ID, p.Localpart, p.Email} {
		if strings.Contains(strings.ToLower(s), q) {
			return true
		}
	}
	return p.Mobile != "" && strings.Contains(p.Mobile, q) && v.seesPrivate(p)
}

// servePerson answers one person, by job number.
func (s *Service) servePerson(c *httpapi.Call) (any, error) {
	v, err := s.viewer(c)
	if err != nil {
		return nil, err
	}
	p := v.tree.Person(c.Var("id"))
	if p == nil || !v.sees(p) {
		return nil, matrix.NotFound("there is no person %q", c.Var("id"))
	}
	return s.viewPerson(v, p), nil
}

type oneUnitView struct {
	unitView
	Path     []unitName   `json:"path"` // from the root to the unit itself
	Children []unitView   `json:"children"`
	People   []personView `json:"people"` // of the unit itself
}

type unitName struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// serveUnit answers one unit with its people.
func (s *Service) serveUnit(c *httpapi.Call) (any, error) {
	v, err := s.viewer(c)
	if err != nil {
		return nil, err
	}
	u := v.tree.Unit(c.Var("id"))
	if u == nil {
		return nil, matrix.NotFound("there is no unit %q", c.Var("id"))
	}
	out := oneUnitView{unitView: s.viewUnit(v.tree, u), Path: []unitName{}, Children: []unitView{}, People: []personView{}}
	for _, p := range v.tree.Path(u.ID) {
		out.Path = append(out.Path, unitName{p.ID, p.Name})
	}
	for _, child := range v.tree.Children(u.ID) {
		out.Children = append(out.Children, s.viewUnit(v.tree, child))
	}
	for _, p := range v.tree.Members(u.ID, false) {
		out.People = append(out.People, s.viewPerson(v, p))
	}
	return out, nil
}

// serveTemplate answers an empty company file with a help sheet.
func (s *Service) serveTemplate(c *httpapi.Call) (any, error) {
	if _, err := s.employee(c); err != nil {
		return nil, err
	}
	var contentType, name string
	format := cmp.Or(c.Query("format"), "xlsx")
	switch format {
	case "xlsx":
		contentType, name = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "org.xlsx"
	case "csv":
		contentType, name = "application/zip", "org.zip"
	default:
		return nil, matrix.InvalidParam("format must be xlsx or csv")
	}
	var b bytes.Buffer
	if err := org.WriteTemplate(&b, format); err != nil {
		return nil, err
	}
	h := c.W.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Disposition", `attachment; filename="`+name+`"`)
	if _, err := c.W.Write(b.Bytes()); err != nil {
		return nil, err
	}
	return httpapi.Done, nil
}
