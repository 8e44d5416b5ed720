package sites_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice"
	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/appservice/sites"
)

func TestTheTreeReachesAllSites(t *testing.T) {
	t.Parallel() // most of it is waiting
	c := newCompany(t, "总部", "四川", "广东")
	head, sc, gd := c.sites[0], c.sites[1], c.sites[2]
	head.imports(small(), appservice.ImportOptions{})
	c.same()
	p := sc.tree().Person("2002")
	if p == nil || p.Site != "四川" || sc.Service().Sites().UserOf(p).Homeserver() != string(sc.HS.Name) || p.Mobile == "" {
		t.Fatalf("the person is %s", text(p))
	}
	if got := gd.Service().Sites().PersonOf(gd.tree(), sc.Service().Sites().UserOf(p)); got == nil || got.ID != "2002" {
		t.Errorf("the account belongs to %s", text(got))
	}
	if got := gd.Service().Sites().PersonOf(gd.tree(), id.NewUserID(p.Localpart, string(gd.HS.Name))); got != nil {
		t.Errorf("an account of the same name at another site belongs to %s", text(got))
	}

	// One change is a delta; a person who moves keeps the account, unless it is said otherwise.
	imp := small()
	imp.People[2].Name, imp.People[2].Posts[0].Unit = "赵城", "gd"
	head.imports(imp, appservice.ImportOptions{})
	c.same()
	if p := gd.tree().Person("2002"); p.Name != "赵城" || p.Site != "四川" {
		t.Errorf("the person is %s", text(p))
	}
	head.imports(imp, appservice.ImportOptions{MoveAccounts: true})
	c.same()
	if p := gd.tree().Person("2002"); p.Site != "广东" {
		t.Errorf("the account did not move: %s", text(p))
	}
	for _, s := range c.sites {
		eventually(t, s.Name+" sees all sites in order", func() bool {
			_, out := s.admin("GET", "/sites", "")
			states := out.Get("sites.#.state").String()
			return states == `["current","current","current"]`
		})
	}
	t.Run("only the head office imports", func(t *testing.T) { onlyTheHeadOfficeImports(t, head, gd) })
	t.Run("administrators see the sites", func(t *testing.T) { administratorsSeeTheSites(t, head) })
}

func onlyTheHeadOfficeImports(t *testing.T, head, gd *site) {
	_, err := gd.Service().Import(t.Context(), small(), appservice.ImportOptions{Actor: "test"})
	if !errors.Is(err, sites.ErrNotHead) || !strings.Contains(err.Error(), "总部") || !strings.Contains(err.Error(), string(head.HS.Name)) {
		t.Errorf("importing elsewhere: %v", err)
	}
	code, out := gd.admin("POST", "/org/import", "id,name\n1,x\n")
	if code != 409 || out.Get("errcode").Str != "IM_CARILLON_NOT_HEAD_OFFICE" {
		t.Errorf("importing elsewhere by the API: %d %s", code, out.Raw)
	}
	if _, err := gd.Service().Org().RaiseEpoch(t.Context(), org.Mark{}, "test"); !errors.Is(err, org.ErrReplica) {
		t.Errorf("raising the epoch elsewhere: %v", err)
	}
	if plan, problems := gd.Service().Org().PlanDue(); len(problems) > 0 || !plan.Empty() {
		t.Errorf("the calendar counts elsewhere: %v %v", plan, problems)
	}
}

func TestASiteImportsItsOwnPeople(t *testing.T) {
	t.Parallel() // most of it is waiting
	c := newCompany(t, "总部", "四川")
	head, sc := c.sites[0], c.sites[1]
	head.imports(small(), appservice.ImportOptions{})
	c.same()
	eventually(t, "the site knows what is delegated", func() bool { return len(sc.Service().Sites().DelegatedTo(sc.Service().Sites().Own())) == 1 })

	people := func(list ...*org.Person) *org.Import { return &org.Import{HasPeople: true, People: list} }
	moved := person("2002", "赵成", "sc")
	fresh := person("2003", "周新", "cd")
	res := sc.imports(people(moved, fresh), appservice.ImportOptions{})
	if res.Applied || res.Proposal == nil {
		t.Fatalf("the result is %+v", res)
	}
	pr := sc.decided(res.Proposal.ID)
	if pr.Outcome.Accepted != 2 || len(pr.Outcome.Refused) > 0 {
		t.Fatalf("the decision is %s", text(pr))
	}
	c.same()
	if p := sc.tree().Person("2003"); p == nil || p.Site != "四川" || p.Localpart == "" || sc.tree().Person("2002").MainPost().Unit != "sc" {
		t.Errorf("the new person is %s", text(p))
	}

	// What is not delegated is refused at once.
	boss := person("2003", "周新", "cd")
	boss.Admin = true
	for name, imp := range map[string]*org.Import{
		"somebody from elsewhere": people(person("3001", "陈广", "sc")),
		"somebody to elsewhere":   people(person("2003", "周新", "hq")),
		"an administrator":        people(boss),
		"a unit":                  {HasUnits: true, Units: []*org.Unit{{ID: "new", ParentID: "sc", Name: "新"}}},
	} {
		if _, err := sc.Service().Import(t.Context(), imp, appservice.ImportOptions{Actor: "test"}); !errors.Is(err, sites.ErrOutside) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Who is missing leaves below the unit alone.
	res = sc.imports(people(moved, fresh), appservice.ImportOptions{RemoveMissing: true})
	if n := res.Plan.Count(org.PersonLeft); n != 1 || len(res.Plan.Changes) != 1 {
		t.Fatalf("%d leave: %s", n, text(res.Plan.Changes))
	}
	if pr = sc.decided(res.Proposal.ID); pr.Outcome.Accepted != 1 {
		t.Fatalf("the decision is %s", text(pr))
	}

	// The head office changes a person while the site does: the head office's word counts, and is told.
	c.same()
	sc.End()
	hers := small()
	hers.People = []*org.Person{person("2003", "周大新", "cd"), person("1002", "吴同", "hq")}
	hers.HasUnits, hers.Units = false, nil
	head.imports(hers, appservice.ImportOptions{})
	head.HS.Cut()
	sc.start()
	res = sc.imports(people(person("2003", "周小新", "cd"), person("2002", "赵大成", "sc"), double(person("2004", "吴", "cd"))), appservice.ImportOptions{})
	head.HS.Heal()
	pr = sc.decided(res.Proposal.ID)
	if pr.Outcome.Accepted != 1 || len(pr.Outcome.Refused) != 2 || pr.Outcome.Refused[0].Person != "2003" || pr.Outcome.Refused[1].Person != "2004" {
		t.Fatalf("the decision is %s", text(pr))
	}
	c.same()
	if a, b := sc.tree().Person("2003").Name, sc.tree().Person("2002").Name; a != "周大新" || b != "赵大成" {
		t.Errorf("they are called %s and %s", a, b)
	}
	code, out := sc.admin("GET", "/sites/proposals/"+res.Proposal.ID, "")
	if code != 200 || out.Get("outcome.refused.0.person").Str != "2003" {
		t.Errorf("the API says %d %s", code, out.Raw)
	}
	if code, _ := sc.admin("GET", "/sites/proposals/none", ""); code != 404 {
		t.Errorf("an unknown proposal: %d", code)
	}
}

// double gives a person the mobile number that the head office has given to 1002.
func double(p *org.Person) *org.Person {
	p.Mobile = person("1002", "", "").Mobile
	return p
}

func TestAMessageLargerThanAnEvent(t *testing.T) {
	t.Parallel() // most of it is waiting
	c := newCompany(t, "总部", "四川")
	head, sc := c.sites[0], c.sites[1]
	head.send("small", sc)
	big := strings.Builder{}
	for i := range 200_000 {
		fmt.Fprintf(&big, "%x", i*7919)
	}
	head.send(big.String(), sc)
	head.send(strings.Repeat("same ", 100_000), sc)
	head.send("last", sc)
	eventually(t, "all have come", func() bool { return len(sc.handled()) == 4 })
	if got := sc.handled(); got[1] != "总部 "+big.String() || got[3] != "总部 last" {
		t.Errorf("they differ: %d bytes", len(got[1]))
	}
}

func TestWhatIsForgedIsRefused(t *testing.T) {
	t.Parallel() // most of it is waiting
	c := newCompany(t, "总部", "四川")
	head, sc := c.sites[0], c.sites[1]
	head.imports(small(), appservice.ImportOptions{})
	head.send("true", sc)
	c.same()
	eventually(t, "the note has come", func() bool { return len(sc.handled()) == 1 })
	room := sc.Service().Sites().Room()

	// The homeserver's administrator has no key of the service: an event of the bot is not enough.
	var genuine mxclient.Event
	page, err := head.Service().Client().Messages(t.Context(), "", room, "b", "", 50)
	if err != nil {
		t.Fatal(err)
	}
	for _, ev := range page.Events {
		if ev.Type == sites.EventMessage && ev.Sender == string(head.Service().Client().BotID()) {
			genuine = *ev
		}
	}
	forged := strings.Replace(string(genuine.Content), `"packet":"`, `"packet":"AA`, 1)
	for i, content := range []string{forged, `{}`, `{"version":1,"from":"总部","packet":"","signature":""}`, strings.Replace(string(genuine.Content), `"version":1`, `"version":2`, 1)} {
		if _, err := head.Service().Client().SendEvent(t.Context(), room, "", sites.EventMessage, jsonText(content), fmt.Sprint("forged", i)); err != nil {
			t.Fatal(err)
		}
	}
	// A genuine packet of one bot means nothing from another one, and nothing in another room.
	other := genuine
	other.ID, other.Sender = "$other", "@somebody:"+string(head.HS.Name)
	strange := genuine
	strange.ID, strange.Room = "$strange", "!elsewhere"
	for _, ev := range []*mxclient.Event{&other, &strange} {
		if err := sc.Service().Sites().Event(t.Context(), ev); err != nil {
			t.Error(err)
		}
	}
	// One that is repeated is handled once.
	again := genuine
	again.ID = "$again"
	if err := sc.Service().Sites().Event(t.Context(), &again); err != nil {
		t.Error(err)
	}
	head.send("last", sc)
	eventually(t, "the site goes on", func() bool { return len(sc.handled()) >= 2 })
	if got := sc.handled(); !slices.Equal(got, []string{"总部 true", "总部 last"}) {
		t.Errorf("handled %q", got)
	}

	// A service with another key is refused until an operator says that it is right.
	if err := head.DB.Close(); err != nil {
		t.Log(err)
	}
	head.End()
	rekey(t, head)
	head.start()
	head.send("by another key", sc)
	eventually(t, "the other key is seen", func() bool {
		_, out := sc.admin("GET", "/sites", "")
		return out.Get("sites.0.offered_key").Str != ""
	})
	if n := len(sc.handled()); n != 2 {
		t.Fatalf("%d notes are handled", n)
	}
	if code, _ := sc.admin("POST", "/sites/trust", `{"site":"总部","key":"wrong"}`); code != 409 {
		t.Errorf("another key is trusted: %d", code)
	}
	if code, out := sc.admin("POST", "/sites/trust", `{"site":"总部"}`); code != 200 {
		t.Errorf("trusting: %d %s", code, out.Raw)
	}
	eventually(t, "the site goes on with the other key", func() bool { return len(sc.handled()) == 3 })
}

func administratorsSeeTheSites(t *testing.T, head *site) {
	u := head.HS.User("employee")
	for _, call := range [][2]string{{"GET", "/sites"}, {"GET", "/sites/proposals/x"}, {"POST", "/sites/epoch"}, {"POST", "/sites/trust"}} {
		for token, want := range map[string]int{"": 401, u.AccessToken: 403} {
			r := httptest.NewRequest(call[0], "/_carillon/v1"+call[1], strings.NewReader("{}"))
			if token != "" {
				r.Header.Set("Authorization", "Bearer "+token)
			}
			w := httptest.NewRecorder()
			head.Service().Handler().ServeHTTP(w, r)
			if w.Code != want {
				t.Errorf("%v: %d, want %d", call, w.Code, want)
			}
		}
	}
	for body, want := range map[string]int{`{"site":"nowhere"}`: http.StatusNotFound, `[]`: http.StatusBadRequest, `{"site":"四川"}`: http.StatusConflict} {
		if code, out := head.admin("POST", "/sites/trust", body); code != want {
			t.Errorf("%s: %d %s", body, code, out.Raw)
		}
	}
}

// TestACompanyOfItsOwnIsNotReplaced is about a site that had a company before it became one of many.
func TestACompanyOfItsOwnIsNotReplaced(t *testing.T) {
	t.Parallel() // most of it is waiting
	c := newCompany(t, "总部", "四川")
	head, sc := c.sites[0], c.sites[1]
	sc.End()
	all := sc.list
	sc.Name, sc.list = "", nil
	sc.start()
	own := &org.Import{HasUnits: true, HasPeople: true, Units: []*org.Unit{{ID: "x", Name: "四川公司"}}, People: []*org.Person{person("9001", "原", "x")}}
	sc.imports(own, appservice.ImportOptions{})
	before := sc.tree().Mark()
	sc.End()
	for range 3 {
		imp := small()
		imp.People[0].Name = fmt.Sprint("王", head.tree().Version)
		head.imports(imp, appservice.ImportOptions{})
	}
	sc.Name, sc.list = "四川", all
	sc.start()
	eventually(t, "the head office sees another company", func() bool {
		_, out := head.admin("GET", "/sites", "")
		return out.Get("sites.1.state").Str == "diverged"
	})
	if sc.tree().Mark() != before {
		t.Fatal("the company was replaced")
	}
	if code, _ := head.admin("POST", "/sites/epoch", "{}"); code != 200 {
		t.Fatal(code)
	}
	c.same()
	if p := sc.tree().Person("9001"); p == nil || p.Status != org.StatusLeft {
		t.Errorf("the person is %s", text(p))
	}
}

// BenchmarkMessages is about small messages between two sites: from the sender's transaction to the end of the
// receiver's. It is bound by the two databases' commits.
func BenchmarkMessages(b *testing.B) {
	c := newCompany(b, "总部", "四川")
	head, sc := c.sites[0], c.sites[1]
	head.send("first", sc)
	eventually(b, "the services speak", func() bool { return len(sc.handled()) == 1 })
	b.ResetTimer()
	for range b.N {
		head.send("note", sc)
	}
	for len(sc.handled()) < b.N+1 {
		time.Sleep(time.Millisecond)
	}
}

// TestTheListOfSitesChanges takes a site from the list, and makes another one the head office.
func TestTheListOfSitesChanges(t *testing.T) {
	t.Parallel() // most of it is waiting
	c := newCompany(t, "总部", "四川", "广东")
	head, sc, gd := c.sites[0], c.sites[1], c.sites[2]
	head.imports(small(), appservice.ImportOptions{})
	c.same()
	old := head.Service().Sites().Room()
	gd.End()
	head.send("lost", gd)
	again := func(list []sites.Site) {
		for _, s := range []*site{head, sc} {
			s.End()
			s.list = list
			s.start()
		}
	}
	again(head.list[:2])
	head.send("between two", sc)
	eventually(t, "the other site hears", func() bool { return len(sc.handled()) == 1 })
	eventually(t, "they speak in another room", func() bool {
		a, b := head.Service().Sites().Room(), sc.Service().Sites().Room()
		return a == b && a != "" && a != old
	})
	sc.send("in the new room", head)
	eventually(t, "the head office hears", func() bool { return len(head.handled()) == 1 })

	list := slices.Clone(head.list)
	list[0].Head, list[1].Head, list[1].Units = false, true, nil
	again(list)
	imp := small()
	imp.People[1].Name = "李大川"
	sc.imports(imp, appservice.ImportOptions{})
	eventually(t, "the old head office follows", func() bool { return head.tree().Mark() == sc.tree().Mark() })
	if _, err := head.Service().Import(t.Context(), small(), appservice.ImportOptions{}); !errors.Is(err, sites.ErrNotHead) {
		t.Errorf("importing at the old head office: %v", err)
	}
}

// TestSevenThousandPeople carries a large company to a second site. The figures are told with -v.
func TestSevenThousandPeople(t *testing.T) {
	t.Parallel() // most of it is waiting
	c := newCompany(t, "总部", "四川")
	head := c.sites[0]
	imp := org.Generate(1, 7000, 400, 15)
	began := time.Now()
	plan, problems := head.Service().Org().Plan(imp)
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := head.Service().Org().Apply(context.Background(), plan, "test"); err != nil {
		t.Fatal(err)
	}
	applied := time.Now()
	c.same()
	there := time.Now()
	imp.People[17].Name = "改名"
	if plan, problems = head.Service().Org().Plan(imp); len(problems) > 0 {
		t.Fatal(problems)
	}
	if _, err := head.Service().Org().Apply(context.Background(), plan, "test"); err != nil {
		t.Fatal(err)
	}
	c.same()
	t.Logf("applied in %v, at the second site %v later; one change is there in %v", applied.Sub(began), there.Sub(applied), time.Since(there))
	if d := there.Sub(applied); d > 15*time.Second {
		t.Errorf("it took %v", d)
	}
}
