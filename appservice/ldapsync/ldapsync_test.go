package ldapsync_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/appservice/ldapsync"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/test/slapd"
)

// world is a directory and a company that follows it.
type world struct {
	*slapd.Server
	t     *testing.T
	ca    []byte
	o     ldapsync.Options
	store *org.Store
}

func newWorld(t *testing.T) *world {
	t.Helper()
	log.SetOutput(io.Discard)
	ca := httpapitest.NewAuthority(t)
	cert := ca.Certificate("127.0.0.1")
	dir := t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]*pem.Block{"cert": {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, "key": {Type: "PRIVATE KEY", Bytes: key}}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w := &world{t: t, Server: slapd.New(t, filepath.Join(dir, "cert"), filepath.Join(dir, "key")), ca: ca.PEM}
	w.o = ldapsync.Options{
		URL: w.TLS, ExtraCAs: ca.PEM, BindDN: slapd.Admin, Password: slapd.Password,
		Units:  ldapsync.Units{Base: "ou=公司," + slapd.Suffix, Site: "l", Manager: "seeAlso"},
		People: ldapsync.People{Base: slapd.Suffix, Filter: "(objectClass=inetOrgPerson)", Mobile: "mobile", Email: "mail", Title: "title", Manager: "manager"},
	}
	if w.store, err = org.NewStore(t.Context(), sqldbtest.Open(t)); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) unit(dn, name string, more map[string][]string) {
	w.t.Helper()
	attrs := map[string][]string{"objectClass": {"organizationalUnit"}, "ou": {name}}
	for k, v := range more {
		attrs[k] = v
	}
	w.Add(dn, attrs)
}

func (w *world) person(dn, id, name string, more map[string][]string) {
	w.t.Helper()
	attrs := map[string][]string{"objectClass": {"inetOrgPerson"}, "cn": {name}, "sn": {name}, "displayName": {name}, "employeeNumber": {id}}
	for k, v := range more {
		attrs[k] = v
	}
	w.Add(dn, attrs)
}

// read reads the directory and makes it the company; the plan's changes come back.
func (w *world) read() *org.Plan {
	w.t.Helper()
	src, err := ldapsync.New(w.o)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := src.Read(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	imp, problems := c.Import(w.store.Read)
	if err := problems.Err(); err != nil {
		w.t.Fatal(err)
	}
	plan, problems := w.store.PlanWith(imp, org.PlanOptions{RemoveMissing: true})
	if err := problems.Err(); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.store.Apply(w.t.Context(), plan, "ldap"); err != nil {
		w.t.Fatal(err)
	}
	return plan
}

const (
	top   = "ou=公司," + slapd.Suffix
	dev   = "ou=研发部," + top
	sales = "ou=销售部," + top
	team  = "ou=平台组," + dev
)

func (w *world) company() {
	w.unit(top, "公司", map[string][]string{"l": {"北京"}})
	w.unit(dev, "研发部", nil)
	w.unit(sales, "销售部", map[string][]string{"l": {"成都"}})
	w.unit(team, "平台组", nil)
	w.person("cn=王芳,"+dev, "E1", "王芳", map[string][]string{"mobile": {"138 0013 8000"}, "mail": {"wang@example.org"}, "title": {"总监"}})
	w.person("cn=李雷,"+team, "E2", "李雷", map[string][]string{"manager": {"CN=王芳 , " + dev}, "title": {"工程师"}})
	w.person("cn=张伟,"+sales, "E3", "张伟", nil)
	w.person("cn=printer,"+sales, " ", "打印机", nil)
	w.Set(dev, "seeAlso", "cn=王芳,"+dev)
}

func TestTreeOfNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.company()
	w.read()
	tree := w.store.Tree()
	unit := func(name string) *org.Unit {
		t.Helper()
		list := tree.FindUnit(name)
		if len(list) != 1 {
			t.Fatalf("%d units are called %s", len(list), name)
		}
		return list[0]
	}
	if u := unit("平台组"); u.ParentID != unit("研发部").ID || u.Site != "北京" {
		t.Errorf("%+v", u)
	}
	if u := unit("研发部"); !slices.Equal(u.Managers, []string{"E1"}) || u.ParentID != unit("公司").ID || unit("公司").ParentID != "" {
		t.Errorf("%+v", u)
	}
	p := tree.Person("E1")
	if p == nil || p.Name != "王芳" || p.Mobile != "+8613800138000" || p.Email != "wang@example.org" || p.MainPost().Unit != unit("研发部").ID || p.MainPost().Title != "总监" {
		t.Errorf("%+v", p)
	}
	if p := tree.Person("E2"); p.Manager != "E1" || p.MainPost().Unit != unit("平台组").ID {
		t.Errorf("%+v", p)
	}
	if len(tree.People()) != 3 {
		t.Errorf("%d people", len(tree.People()))
	}
	if plan := w.read(); !plan.Empty() {
		t.Errorf("read again, it changes %+v", plan.Changes)
	}

	// Renamed and moved: the same unit and the same people.
	before := unit("平台组").ID
	w.Move(team, "ou=基础平台组", sales)
	w.Move("cn=李雷,ou=基础平台组,"+sales, "cn=李雷", dev)
	w.Set("cn=张伟,"+sales, "objectClass", "inetOrgPerson", "user")
	w.Set("cn=张伟,"+sales, "userAccountControl", "514") // switched off
	w.read()
	tree = w.store.Tree()
	if u := unit("基础平台组"); u.ID != before || u.ParentID != unit("销售部").ID || u.Site != "成都" {
		t.Errorf("%+v", u)
	}
	if p := tree.Person("E2"); p.MainPost().Unit != unit("研发部").ID {
		t.Errorf("%+v", p)
	}

	if p := tree.Person("E3"); p.Status != org.StatusSuspended {
		t.Errorf("%+v", p)
	}
	w.Set("cn=张伟,"+sales, "userAccountControl", "512")
	w.read()
	if p := w.store.Tree().Person("E3"); p.Status != org.StatusActive {
		t.Errorf("%+v", p)
	}

	// Gone from the directory: gone from the company, and known for ever.
	w.Delete("cn=张伟," + sales)
	w.read()
	if p := w.store.Tree().Person("E3"); p == nil || p.Status != org.StatusLeft {
		t.Errorf("%+v", p)
	}
	w.person("cn=张伟,"+dev, "E3", "张伟", nil)
	w.read()
	if p := w.store.Tree().Person("E3"); p.Status != org.StatusActive {
		t.Errorf("%+v", p)
	}
}

// What the directory has no attribute for belongs to who else writes it.
func TestOtherSourcesKeepTheirs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.company()
	w.o.People.Mobile, w.o.Units.Site = "", ""
	w.read()
	imp, problems := w.store.Read("people.csv", strings.NewReader("job_number,name,mobile,admin\nE1,王芳,13900139000,yes\n"))
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	plan, problems := w.store.Plan(imp)
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.Apply(t.Context(), plan, "hr"); err != nil {
		t.Fatal(err)
	}
	w.Set("cn=王芳,"+dev, "title", "副总裁")
	if plan := w.read(); len(plan.Changes) != 1 {
		t.Errorf("it changes %+v", plan.Changes)
	}
	if p := w.store.Tree().Person("E1"); p.Mobile != "+8613900139000" || !p.Admin || p.MainPost().Title != "副总裁" {
		t.Errorf("%+v", p)
	}
}

func TestGroups(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.company()
	groups := "ou=groups," + slapd.Suffix
	w.unit(groups, "groups", nil)
	group := func(name string, members ...string) {
		w.Add("cn="+name+","+groups, map[string][]string{"objectClass": {"groupOfNames"}, "cn": {name}, "member": members})
	}
	group("alpha", "cn=王芳,"+dev, "cn=李雷,"+team)
	group("beta", "cn=李雷,"+team)
	group("all", "cn=alpha,"+groups, "cn=beta,"+groups, "cn=张伟,"+sales)
	w.o.Units = ldapsync.Units{Base: groups, Filter: "(objectClass=groupOfNames)", Groups: true}
	w.read()
	tree := w.store.Tree()
	alpha, beta, all := tree.FindUnit("alpha")[0], tree.FindUnit("beta")[0], tree.FindUnit("all")[0]
	if alpha.ParentID != all.ID || beta.ParentID != all.ID || all.ParentID != "" {
		t.Errorf("%+v %+v %+v", alpha, beta, all)
	}
	if p := tree.Person("E2"); len(p.Posts) != 2 || p.MainPost().Unit != alpha.ID || p.Posts[1].Unit != beta.ID {
		t.Errorf("%+v", p.Posts)
	}
	if p := tree.Person("E3"); p.MainPost().Unit != all.ID {
		t.Errorf("%+v", p.Posts)
	}
	// A circle is told and changes nothing.
	w.Set("cn=alpha,"+groups, "member", "cn=all,"+groups)
	src, err := ldapsync.New(w.o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := src.Read(t.Context()); err == nil || !strings.Contains(err.Error(), "holds itself") {
		t.Error(err)
	}
}

// Faults name the entry and not the row of a sheet that nobody has seen.
func TestProblemsNameEntries(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.company()
	w.Set("cn=张伟,"+sales, "mail", "not an address")
	src, err := ldapsync.New(w.o)
	if err != nil {
		t.Fatal(err)
	}
	c, err := src.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, problems := c.Import(w.store.Read)
	if len(problems) != 1 || !strings.Contains(problems[0].Sheet, "张伟") || problems[0].Row != 0 || problems[0].Column != "email" {
		t.Errorf("%+v", problems)
	}
	if len(c.Skipped) != 1 || !strings.Contains(c.Skipped[0], "printer") || c.People() != 3 || c.Units() != 4 {
		t.Errorf("skipped %v, %d people in %d units", c.Skipped, c.People(), c.Units())
	}
}

// More entries than one answer holds.
func TestPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.company()
	for i := range 1300 {
		w.person(fmt.Sprintf("cn=p%d,%s", i, sales), fmt.Sprintf("P%d", i), fmt.Sprintf("员工%d", i), nil)
	}
	w.read()
	if n := len(w.store.Tree().People()); n != 1303 {
		t.Errorf("%d people", n)
	}
	w.o.Most = 1000
	src, err := ldapsync.New(w.o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := src.Read(t.Context()); err == nil || !strings.Contains(err.Error(), "more than 1000") {
		t.Error(err)
	}
}

// A change is heard of within seconds; a directory that is away is waited for, and nobody leaves meanwhile.
func TestWatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.company()
	w.o.Poll, w.o.Every = 50*time.Millisecond, time.Hour
	src, err := ldapsync.New(w.o)
	if err != nil {
		t.Fatal(err)
	}
	reads := make(chan error, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		src.Watch(ctx, func(ctx context.Context) error {
			_, err := src.Read(ctx)
			reads <- err
			return err
		})
	}()
	next := func() error {
		t.Helper()
		select {
		case err := <-reads:
			return err
		case <-time.After(20 * time.Second):
			t.Fatal("the directory is not read")
			return nil
		}
	}
	if err := next(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	if len(reads) > 0 {
		t.Error("it is read though nothing has changed")
	}
	w.Set("cn=张伟,"+sales, "title", "经理")
	if err := next(); err != nil {
		t.Fatal(err)
	}
	w.Stop()
	time.Sleep(200 * time.Millisecond)
	w.Start()
	w.Set("cn=张伟,"+sales, "title", "总监")
	if err := next(); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
}

func TestWays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.company()
	try := func(edit func(*ldapsync.Options)) error {
		t.Helper()
		o := w.o
		edit(&o)
		src, err := ldapsync.New(o)
		if err != nil {
			return err
		}
		_, err = src.Read(t.Context())
		return err
	}
	if err := try(func(o *ldapsync.Options) { o.URL, o.StartTLS = w.Plain, true }); err != nil {
		t.Error("StartTLS:", err)
	}
	if err := try(func(o *ldapsync.Options) { o.URL = w.Plain }); err != nil {
		t.Error("on this machine:", err)
	}
	if err := try(func(o *ldapsync.Options) { o.ExtraCAs = nil }); err == nil {
		t.Error("a certificate of nobody is trusted")
	}
	if err := try(func(o *ldapsync.Options) { o.Password = "wrong" }); err == nil || strings.Contains(err.Error(), "wrong") {
		t.Error("a wrong password:", err)
	}
	if err := try(func(o *ldapsync.Options) { o.People.Base = "ou=nothing," + slapd.Suffix }); err == nil {
		t.Error("a base that is not there reads as an empty company")
	}
	for name, edit := range map[string]func(*ldapsync.Options){
		"no address": func(o *ldapsync.Options) { o.URL = "example.org" }, "unprotected": func(o *ldapsync.Options) { o.URL = "ldap://directory.example.org" },
		"filter": func(o *ldapsync.Options) { o.People.Filter = "(x" }, "base": func(o *ldapsync.Options) { o.People.Base = "people" },
		"no base": func(o *ldapsync.Options) { o.People.Base = "" }, "no PEM": func(o *ldapsync.Options) { o.ExtraCAs = []byte("x") },
	} {
		if err := try(edit); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
