package sites_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/appservice"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/appservice/sites"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/test/branch"
)

// company is several sites: a homeserver and a service each, that federate.
type company struct {
	t     testing.TB
	sites []*site
}

// site is one of them.
type site struct {
	*branch.Branch
	list []sites.Site

	mu    sync.Mutex
	notes []string // of the messages of kind "note", in the order in which they were handled
}

// handled are the notes that were handled so far.
func (s *site) handled() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.notes)
}

// send sends a note to sites.
func (s *site) send(text string, to ...*site) {
	s.T.Helper()
	var list []sites.Site
	for _, o := range to {
		list = append(list, s.Service().Sites().Named(o.Name))
	}
	if err := s.DB.Write(context.Background(), func(tx *sqldb.Tx) error { return s.Service().Sites().Send(tx, list, "note", text) }); err != nil {
		s.T.Fatal(err)
	}
}

// newCompany starts sites; the first is the head office. Units below the second one's unit "sc" are delegated to it.
func newCompany(t testing.TB, names ...string) *company {
	t.Helper()
	c := &company{t: t}
	for _, b := range branch.Open(t, names...) {
		c.sites = append(c.sites, &site{Branch: b})
	}
	var list []sites.Site
	for i, s := range c.sites {
		entry := sites.Site{Name: s.Name, ServerName: string(s.HS.Name), Head: i == 0}
		if i == 1 {
			entry.Units = []string{"sc"}
		}
		list = append(list, entry)
	}
	for _, s := range c.sites {
		s.list = list
		s.start()
	}
	return c
}

// start starts the site's service on its database.
func (s *site) start() {
	s.T.Helper()
	s.Start(appservice.Options{
		NoAllStaff: true, Sites: sites.Options{Own: s.Name, List: s.list, Beat: 300 * time.Millisecond, Retry: 300 * time.Millisecond},
	}, func(svc *appservice.Service) {
		svc.Sites().Handle("note", func(ctx context.Context, _ *sqldb.Tx, from sites.Site, body json.RawMessage) error {
			var text string
			if err := json.Unmarshal(body, &text); err != nil {
				return sites.Refuse(err)
			}
			sites.After(ctx, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.notes = append(s.notes, from.Name+" "+text)
			})
			return nil
		})
	})
}

// admin calls the API as the operator.
func (s *site) admin(method, path, body string) (int, gjson.Result) {
	r := httptest.NewRequest(method, "/_carillon/v1"+path, strings.NewReader(body))
	w := httptest.NewRecorder()
	s.Service().Operator().ServeHTTP(w, r)
	return w.Code, gjson.ParseBytes(w.Body.Bytes())
}

// imports imports a company at a site.
func (s *site) imports(imp *org.Import, o appservice.ImportOptions) *appservice.ImportResult {
	s.T.Helper()
	o.Actor = "test"
	res, err := s.Service().Import(s.T.Context(), imp, o)
	if err != nil {
		s.T.Fatalf("importing at %s: %v", s.Name, err)
	}
	return res
}

func (s *site) tree() *org.Tree { return s.Service().Org().Tree() }

// eventually waits for what the background brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not come about: " + what)
		}
	}
}

// same waits until sites have the head office's tree.
func (c *company) same() {
	c.t.Helper()
	for _, s := range c.sites[1:] {
		eventually(c.t, s.Name+" has the head office's tree", func() bool { return s.tree().Mark() == c.sites[0].tree().Mark() })
	}
}

// small is a company of three sites.
func small() *org.Import {
	return &org.Import{
		HasUnits: true, HasPeople: true,
		Units: []*org.Unit{
			{ID: "hq", Name: "总部", Site: "总部"},
			{ID: "sc", ParentID: "hq", Name: "四川", Site: "四川"},
			{ID: "cd", ParentID: "sc", Name: "成都"},
			{ID: "gd", ParentID: "hq", Name: "广东", Site: "广东"},
		},
		People: []*org.Person{
			person("1001", "王总", "hq"), person("2001", "李川", "sc"), person("2002", "赵成", "cd"), person("3001", "陈广", "gd"),
		},
	}
}

func person(number, name, unit string) *org.Person {
	return &org.Person{ID: number, Name: name, Mobile: "+8613900" + number + "00", Posts: []org.Post{{Unit: unit, Main: true}}}
}

func text(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

// jsonText is text that is JSON already.
func jsonText(s string) json.RawMessage { return json.RawMessage(s) }

// rekey makes a site's service forget its key, as if it had been set up anew.
func rekey(t testing.TB, s *site) {
	t.Helper()
	db, err := sqldb.Open(s.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Write(context.Background(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec("DELETE FROM as_site_self")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// backup copies the database of a service that is stopped; the answer puts the copy in its place.
func (s *site) backup() (restore func()) {
	s.T.Helper()
	copies := map[string][]byte{}
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(s.DSN + suffix)
		if err != nil && (suffix == "" || !errors.Is(err, os.ErrNotExist)) {
			s.T.Fatal(err)
		}
		copies[suffix] = b
	}
	return func() {
		s.T.Helper()
		for _, suffix := range []string{"", "-wal", "-shm"} {
			_ = os.Remove(s.DSN + suffix)
		}
		for suffix, b := range copies {
			if err := os.WriteFile(s.DSN+suffix, b, 0o600); err != nil {
				s.T.Fatal(err)
			}
		}
	}
}

// decided waits for the head office's decision on a proposal.
func (s *site) decided(proposal string) *sites.Proposal {
	s.T.Helper()
	var p *sites.Proposal
	eventually(s.T, "the head office decides", func() bool {
		var err error
		if p, err = s.Service().Sites().Proposal(s.T.Context(), proposal); err != nil || p == nil {
			s.T.Fatal(p, err)
		}
		return p.Outcome != nil
	})
	return p
}
