package appservice_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/appservice"
	"github.com/carillon-chat/carillon/appservice/astest"
	"github.com/carillon-chat/carillon/appservice/ldapsync"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/test/slapd"
)

// A company follows its directory: a change is in the rooms within seconds, what cannot be believed is not, and what is
// wrong is told by the names of entries.
func TestCompanyFollowsItsDirectory(t *testing.T) {
	t.Parallel()
	d := slapd.New(t, "", "")
	const top = "ou=company," + slapd.Suffix
	unit := func(dn, name string) {
		d.Add(dn, map[string][]string{"objectClass": {"organizationalUnit"}, "ou": {name}})
	}
	person := func(dn, number, name string) {
		d.Add(dn, map[string][]string{"objectClass": {"inetOrgPerson"}, "cn": {name}, "sn": {name}, "employeeNumber": {number}})
	}
	unit(top, "company")
	unit("ou=tech,"+top, "tech")
	unit("ou=sales,"+top, "sales")
	for i := range 20 {
		person(fmt.Sprintf("cn=p%d,ou=tech,%s", i, top), fmt.Sprintf("p%d", i), fmt.Sprintf("员工%c", '一'+i))
	}
	source, err := ldapsync.New(ldapsync.Options{
		URL: d.Plain, BindDN: slapd.Admin, Password: slapd.Password, Poll: 50 * time.Millisecond,
		Units: ldapsync.Units{Base: top}, People: ldapsync.People{Base: top, Filter: "(objectClass=inetOrgPerson)", Email: "mail"},
	})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(o *appservice.Options) { o.Directory = source })
	chief := w.hs.Token("@chief:example.com")
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for range 1000 {
			if ok() {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("not in time: %s; the directory stands at %v", what, w.must(chief, "GET", "/org/directory", nil, ""))
	}
	joined := func(number, unit string) bool {
		tree := w.svc.Org().Tree()
		p, u := tree.Person(number), tree.FindUnit(unit)
		if p == nil || len(u) != 1 {
			return false
		}
		room, ok := w.svc.Rooms().Room("unit:" + u[0].ID)
		return ok && w.hs.Membership(room.String(), "@"+p.Localpart+":"+astest.ServerName) == "join"
	}
	eventually("the rooms of the company", func() bool { return joined("p0", "tech") && joined("p19", "tech") })

	began := time.Now()
	d.Move("cn=p0,ou=tech,"+top, "cn=p0", "ou=sales,"+top)
	eventually("a transfer", func() bool { return joined("p0", "sales") && !joined("p0", "tech") })
	t.Logf("a transfer is in the rooms after %v", time.Since(began).Round(time.Millisecond))
	if v := w.must(chief, "GET", "/org/directory", nil, ""); v["people"] != 20.0 || v["units"] != 3.0 || v["error"] != nil {
		t.Errorf("the directory stands at %v", v)
	}

	// An entry that cannot be: nothing changes until it is mended.
	d.Set("cn=p1,ou=tech,"+top, "mail", "no address")
	d.Move("cn=p2,ou=tech,"+top, "cn=p2", "ou=sales,"+top)
	eventually("the fault", func() bool {
		v := w.must(chief, "GET", "/org/directory", nil, "")
		return v["error"] != nil && strings.Contains(fmt.Sprint(v["problems"]), "cn=p1,ou=tech")
	})
	if joined("p2", "sales") {
		t.Error("half a directory was taken")
	}
	if code, out := w.call(chief, "POST", "/org/directory?plan=true", nil, ""); code != 400 || out["errcode"] != "IM_CARILLON_BAD_FILE" || !strings.Contains(fmt.Sprint(out["text"]), "cn=p1") {
		t.Errorf("%d %v", code, out)
	}
	d.Set("cn=p1,ou=tech,"+top, "mail", "p1@example.com")
	eventually("the mended entry", func() bool { return joined("p2", "sales") })

	// Somebody empties the directory by mistake: nobody leaves, until it is said that it is none.
	for i := 3; i < 15; i++ {
		d.Delete(fmt.Sprintf("cn=p%d,ou=tech,%s", i, top))
	}
	eventually("the guard", func() bool { return w.must(chief, "GET", "/org/directory", nil, "")["error"] != nil })
	if p := w.svc.Org().Tree().Person("p14"); p.Status != org.StatusActive {
		t.Errorf("%+v", p)
	}
	if code, out := w.call(chief, "POST", "/org/directory", nil, ""); code != 409 || out["errcode"] != "IM_CARILLON_TOO_MANY_LEAVE" {
		t.Errorf("%d %v", code, out)
	}
	if out := w.must(chief, "POST", "/org/directory?force=true", nil, ""); out["applied"] != true {
		t.Error(out)
	}
	if p := w.svc.Org().Tree().Person("p14"); p.Status != org.StatusLeft {
		t.Errorf("%+v", p)
	}

	// Away: told, and nobody leaves.
	d.Stop()
	if code, out := w.call(chief, "POST", "/org/directory", nil, ""); code != 502 || out["errcode"] != "IM_CARILLON_DIRECTORY" || strings.Contains(fmt.Sprint(out), slapd.Password) {
		t.Errorf("%d %v", code, out)
	}
	if p := w.svc.Org().Tree().Person("p0"); p.Status != org.StatusActive {
		t.Errorf("%+v", p)
	}
}
