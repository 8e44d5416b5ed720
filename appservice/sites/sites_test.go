package sites_test

import (
	"testing"

	"github.com/carillon-chat/carillon/appservice"
)

func TestTheTreeReachesAllSites(t *testing.T) {
	c := newCompany(t, "总部", "四川", "广东")
	head, sc := c.sites[0], c.sites[1]
	head.imports(small(), appservice.ImportOptions{})
	c.same()
	p := sc.tree().Person("2002")
	if p == nil || p.Site != "四川" || sc.svc.Sites().UserOf(p).Homeserver() != string(sc.hs.Name) || p.Mobile == "" {
		t.Fatalf("the person is %s", text(p))
	}
	// One change is a delta.
	imp := small()
	imp.People[2].Name = "赵城"
	head.imports(imp, appservice.ImportOptions{})
	c.same()
	if got := c.sites[2].tree().Person("2002").Name; got != "赵城" {
		t.Errorf("the other site calls the person %s", got)
	}
}
