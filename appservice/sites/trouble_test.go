package sites_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/appservice"
	"github.com/carillon-chat/carillon/appservice/org"
)

func TestALinkIsCut(t *testing.T) {
	t.Parallel() // most of it is waiting
	c := newCompany(t, "总部", "四川", "广东")
	head, sc, gd := c.sites[0], c.sites[1], c.sites[2]
	head.imports(small(), appservice.ImportOptions{})
	c.same()
	sc.HS.Cut()
	head.HS.Cut()
	var want []string
	for i := range 5 {
		imp := small()
		imp.People[0].Name = fmt.Sprintf("王总%d", i)
		head.imports(imp, appservice.ImportOptions{})
		note := fmt.Sprint("note ", i)
		head.send(note, sc, gd, head)
		want = append(want, "总部 "+note)
		sc.send(note, head)
	}
	if p := sc.tree().Person("1001"); p == nil || p.Name != "王总" {
		t.Errorf("the site that is cut off knows %s", text(p))
	}
	eventually(t, "the head office sees that the site is silent", func() bool {
		l := head.Service().Sites().Lag(head.Service().Sites().Named("四川"))
		return l.Waiting >= 5 && l.Behind > time.Second
	})
	eventually(t, "the head office has handled its own", func() bool { return slices.Equal(head.handled(), want) })
	sc.HS.Heal()
	head.HS.Heal()
	c.same()
	for _, s := range []*site{sc, gd} {
		eventually(t, s.Name+" has handled everything", func() bool { return len(s.handled()) >= len(want) })
		if got := s.handled(); !slices.Equal(got, want) {
			t.Errorf("%s has handled %q", s.Name, got)
		}
	}
	eventually(t, "nothing waits", func() bool {
		l := head.Service().Sites().Lag(head.Service().Sites().Named("四川"))
		return l.Waiting == 0 && l.Behind < time.Second && len(head.handled()) == 10
	})
}

func TestAServiceIsStoppedInTheMiddle(t *testing.T) {
	t.Parallel() // most of it is waiting
	c := newCompany(t, "总部", "四川")
	head, sc := c.sites[0], c.sites[1]
	var want []string
	for i := range 60 {
		head.send(fmt.Sprint(i), sc)
		want = append(want, fmt.Sprint("总部 ", i))
		switch i {
		case 20, 45:
			sc.End()
			sc.start()
		case 30:
			head.End()
			head.start()
		}
		if i%10 == 0 {
			time.Sleep(50 * time.Millisecond)
		}
	}
	eventually(t, "everything is handled", func() bool { return len(sc.handled()) >= len(want) })
	time.Sleep(time.Second) // what was sent twice would come now
	if got := sc.handled(); !slices.Equal(got, want) {
		t.Errorf("handled %q", got)
	}
}

// TestTheHeadOfficeIsRestored puts an old copy of the head office's database in the place of the new one.
func TestTheHeadOfficeIsRestored(t *testing.T) {
	t.Parallel() // most of it is waiting
	if os.Getenv("CARILLON_TEST_POSTGRES") != "" {
		t.Skip("the copy is one of a file")
	}
	c := newCompany(t, "总部", "四川")
	head, sc := c.sites[0], c.sites[1]
	head.imports(small(), appservice.ImportOptions{})
	head.send("before", sc)
	c.same()
	eventually(t, "the note has come", func() bool { return len(sc.handled()) == 1 })
	head.End()
	restore := head.backup()
	head.start()
	imp := small()
	imp.People = append(imp.People, person("1002", "新来", "hq"))
	for i := range 3 {
		imp.People[0].Name = fmt.Sprint("王总", i)
		head.imports(imp, appservice.ImportOptions{})
		head.send(fmt.Sprint("lost ", i), sc)
	}
	c.same()
	eventually(t, "the notes have come", func() bool { return len(sc.handled()) == 4 })
	lost := sc.tree().Mark()

	head.End()
	restore()
	head.start()
	head.send("after", sc)
	eventually(t, "the note after the restore has come", func() bool { return len(sc.handled()) == 5 })
	state := func() string {
		_, out := head.admin("GET", "/sites", "")
		return out.Get("sites.1.state").Str
	}
	eventually(t, "the head office sees that it is behind", func() bool { return state() == "ahead" })
	if sc.tree().Mark() != lost {
		t.Fatal("the site has gone back")
	}
	for i := range 4 {
		imp := small()
		imp.People[0].Name = fmt.Sprint("另一个", i)
		head.imports(imp, appservice.ImportOptions{})
	}
	eventually(t, "the head office sees two histories", func() bool { return state() == "diverged" })
	time.Sleep(300 * time.Millisecond)
	if sc.tree().Mark() != lost {
		t.Fatal("the site has taken another history")
	}

	if code, out := sc.admin("POST", "/sites/epoch", "{}"); code != 409 || out.Get("errcode").Str != "IM_CARILLON_NOT_HEAD_OFFICE" {
		t.Errorf("raising the epoch elsewhere: %d %s", code, out.Raw)
	}
	if code, out := head.admin("POST", "/sites/epoch", "{}"); code != 200 || out.Get("epoch").Int() != 2 || out.Get("version").Int() <= lost.Version {
		t.Fatalf("raising the epoch: %d %s", code, out.Raw)
	}
	c.same()
	if p := sc.tree().Person("1002"); p == nil || p.Status != org.StatusLeft {
		t.Errorf("who was lost is %s", text(p))
	}
	if sc.tree().Person("1001").Name != "另一个3" {
		t.Errorf("the site has %s", text(sc.tree().Person("1001")))
	}
	eventually(t, "the head office hears of it", func() bool { return state() == "current" })
}

// TestASiteIsRestored is about a site, not the head office: it gets again what it has lost of the tree.
func TestASiteIsRestored(t *testing.T) {
	t.Parallel() // most of it is waiting
	if os.Getenv("CARILLON_TEST_POSTGRES") != "" {
		t.Skip("the copy is one of a file")
	}
	c := newCompany(t, "总部", "四川")
	head, sc := c.sites[0], c.sites[1]
	head.imports(small(), appservice.ImportOptions{})
	c.same()
	sc.End()
	restore := sc.backup()
	sc.start()
	imp := small()
	imp.People[0].Name = "王一"
	head.imports(imp, appservice.ImportOptions{})
	head.send("one", sc)
	sc.send("mine", head)
	c.same()
	eventually(t, "the notes have come", func() bool { return len(sc.handled()) == 1 && len(head.handled()) == 1 })
	sc.End()
	restore()
	head.send("two", sc)
	sc.start()
	sc.send("again", head)
	c.same()
	eventually(t, "both go on", func() bool { return len(sc.handled()) == 2 && len(head.handled()) == 2 })
	if got := append(sc.handled(), head.handled()...); !slices.Equal(got, []string{"总部 one", "总部 two", "四川 mine", "四川 again"}) {
		t.Errorf("handled %q", got)
	}
}

// TestWhateverHappens has three sites talk while links are cut and services stopped at random: in the end each message
// was handled once, in the order of its sender, and all have one organisation. CARILLON_TEST_SEED makes another course.
func TestWhateverHappens(t *testing.T) {
	t.Parallel() // most of it is waiting
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv("CARILLON_TEST_SEED"), "1795533443960204704"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test
	c := newCompany(t, "总部", "四川", "广东")
	head := c.sites[0]
	want := map[*site]map[string][]string{} // by receiver and sender
	for _, s := range c.sites {
		want[s] = map[string][]string{}
	}
	down := map[*site]bool{}
	for i := range 120 {
		s := c.sites[rng.IntN(3)]
		switch n := rng.IntN(20); {
		case n == 0 && !down[s]:
			s.End()
			down[s] = true
		case n <= 2 && down[s]:
			s.start()
			down[s] = false
		case n == 3:
			s.HS.Cut()
		case n == 4:
			s.HS.Heal()
		case n == 5 && !down[head]:
			imp := small()
			imp.People[rng.IntN(4)].Name = fmt.Sprint("名", i)
			head.imports(imp, appservice.ImportOptions{})
		case n == 6:
			time.Sleep(100 * time.Millisecond)
		case !down[s]:
			to := slices.DeleteFunc(slices.Clone(c.sites), func(*site) bool { return rng.IntN(3) == 0 })
			note := fmt.Sprint(i)
			s.send(note, to...)
			for _, o := range to {
				want[o][s.Name] = append(want[o][s.Name], s.Name+" "+note)
			}
		}
	}
	for _, s := range c.sites {
		s.HS.Heal()
		if down[s] {
			s.start()
		}
	}
	head.imports(small(), appservice.ImportOptions{})
	c.same()
	for _, s := range c.sites {
		for _, from := range c.sites {
			got := func() (list []string) {
				for _, note := range s.handled() {
					if strings.HasPrefix(note, from.Name+" ") {
						list = append(list, note)
					}
				}
				return list
			}
			eventually(t, s.Name+" has handled what "+from.Name+" has sent", func() bool { return len(got()) >= len(want[s][from.Name]) })
			if list := got(); !slices.Equal(list, want[s][from.Name]) {
				t.Errorf("%s has handled of %s %q, want %q", s.Name, from.Name, list, want[s][from.Name])
			}
		}
	}
}
