package org_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

var update = flag.Bool("update", false, "write the golden files")

func open(t *testing.T, db *sqldb.DB, opts ...org.Option) *org.Store {
	t.Helper()
	s, err := org.NewStore(context.Background(), db, append([]org.Option{org.WithNow(at)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func planWith(t *testing.T, s *org.Store, imp *org.Import, opts org.PlanOptions) *org.Plan {
	t.Helper()
	p, problems := s.PlanWith(imp, opts)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return p
}

func apply(t *testing.T, s *org.Store, imp *org.Import, opts org.PlanOptions) *org.Plan {
	t.Helper()
	p := planWith(t, s, imp, opts)
	if _, err := s.Apply(context.Background(), p, "test"); err != nil {
		t.Fatal(err)
	}
	return p
}

// sameTree compares all units and people of two trees.
func sameTree(t *testing.T, a, b *org.Tree) {
	t.Helper()
	dump := func(tree *org.Tree) (lines []string) {
		for _, u := range tree.Units() {
			c := *u
			if len(c.Managers) == 0 {
				c.Managers = nil
			}
			lines = append(lines, fmt.Sprintf("%+v", c))
		}
		for _, p := range tree.People() {
			lines = append(lines, fmt.Sprintf("%+v", *p))
		}
		return lines
	}
	if x, y := dump(a), dump(b); !reflect.DeepEqual(x, y) {
		for i := range max(len(x), len(y)) {
			if i >= len(x) || i >= len(y) || x[i] != y[i] {
				t.Fatalf("trees differ at line %d of %d and %d:\n%v\n%v", i, len(x), len(y), x[min(i, len(x)-1)], y[min(i, len(y)-1)])
			}
		}
	}
}

func TestApplyAndReload(t *testing.T) {
	db := sqldbtest.Open(t)
	s := open(t, db)
	if s.Tree().Version != 0 || len(s.Tree().People()) != 0 {
		t.Fatal("a new organisation is not empty")
	}
	p := apply(t, s, mustRead(t, small), org.PlanOptions{})
	if p.Count(org.UnitNew) != 3 || p.Count(org.PersonNew) != 6 {
		t.Errorf("%d units, %d people new", p.Count(org.UnitNew), p.Count(org.PersonNew))
	}
	if s.Tree().Version != 1 {
		t.Errorf("version %d", s.Tree().Version)
	}
	if p := planWith(t, s, mustRead(t, small), org.PlanOptions{RemoveMissing: true}); !p.Empty() {
		t.Errorf("the same file changes %+v", p.Changes)
	}
	again := open(t, db)
	sameTree(t, s.Tree(), again.Tree())
	if again.Tree().Version != 1 {
		t.Errorf("version %d after a restart", again.Tree().Version)
	}
	entries, err := s.Journal(context.Background(), 0, 100)
	if err != nil || len(entries) != 9 {
		t.Fatalf("%d journal rows, %v", len(entries), err)
	}
	if e := entries[0]; e.Actor != "test" || e.Version != 1 || e.Kind != org.PersonNew || e.Old != nil || !bytes.Contains(e.New, []byte(`"id"`)) {
		t.Errorf("journal row %+v", e)
	}
	if more, err := s.Journal(context.Background(), entries[8].Seq, 100); err != nil || len(more) != 0 {
		t.Errorf("before the first row: %v %v", more, err)
	}
}

func TestStalePlan(t *testing.T) {
	s := open(t, sqldbtest.Open(t))
	old := planWith(t, s, mustRead(t, small), org.PlanOptions{})
	apply(t, s, mustRead(t, small), org.PlanOptions{})
	if _, err := s.Apply(context.Background(), old, "test"); !errors.Is(err, org.ErrMoved) {
		t.Errorf("a stale plan: %v", err)
	}
	empty := planWith(t, s, mustRead(t, small), org.PlanOptions{})
	tree, err := s.Apply(context.Background(), empty, "test")
	if err != nil || tree.Version != 1 {
		t.Errorf("an empty plan: %v", err)
	}
}

// TestStory follows a small company through what happens to people and units.
func TestStory(t *testing.T) {
	db := sqldbtest.Open(t)
	s := open(t, db, org.WithLoginRule(org.LoginPinyin))
	head := "[units]\nid,parent,name,manager\n"
	people := "[people]\njob_number,name,unit,title,manager,left\n"
	units := head + "hq,,总部,1\nrd,hq,研发部,2\nhr,hq,人事部,\n"
	apply(t, s, mustRead(t, units+people+"1,王芳,hq,总经理,,\n2,张伟,rd,经理,1,\n3,张伟,hr,专员,1,\n"), org.PlanOptions{})
	if a, b := s.Tree().Person("2").Localpart, s.Tree().Person("3").Localpart; a != "zhangwei" || b != "zhangwei2" {
		t.Fatalf("log-in names %s, %s", a, b)
	}

	// Renamed and moved units, a transfer; the file has a part of the company only.
	imp, problems := s.Read("org.csv", strings.NewReader(head+"rd,hr,研究院,2\n"+people+"3,张伟,rd,研究员,2,\n"))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	p := apply(t, s, imp, org.PlanOptions{})
	if p.Count(org.UnitMoved) != 1 || p.Count(org.PersonMoved) != 1 || len(p.Changes) != 2 || len(p.AbsentPeople) != 2 || len(p.AbsentUnits) != 2 {
		t.Errorf("changes %+v, absent %v %v", p.Changes, p.AbsentUnits, p.AbsentPeople)
	}
	if got := names(s.Tree().Members("rd", false)); got != "张伟 张伟" {
		t.Errorf("members of rd: %s", got)
	}

	// Leaving, and another of the same name: the log-in name is not given again.
	imp, problems = s.Read("people.csv", strings.NewReader("job_number,name,unit,title,left\n2,张伟,rd,经理,2026-03-01\n4,张伟,rd,研究员,\n"))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	p = apply(t, s, imp, org.PlanOptions{})
	if p.Count(org.PersonLeft) != 1 || p.Count(org.PersonNew) != 1 || !p.Remarks.Has("manager_left") {
		t.Errorf("changes %+v, remarks %v", p.Changes, p.Remarks)
	}
	if got := s.Tree().Person("4").Localpart; got != "zhangwei3" {
		t.Errorf("log-in name %s", got)
	}
	if len(s.Tree().ManagersOf("rd")) != 0 {
		t.Error("a leaver still manages")
	}

	// Back again, under the old log-in name, after a restart.
	s = open(t, db, org.WithLoginRule(org.LoginJobNumber))
	imp, _ = s.Read("people.csv", strings.NewReader("job_number,name,unit,left\n2,张伟,hr,\n"))
	p = apply(t, s, imp, org.PlanOptions{})
	if got := s.Tree().Person("2"); p.Count(org.PersonReturned) != 1 || got.Localpart != "zhangwei" || got.Status != org.StatusActive {
		t.Errorf("changes %+v, person %+v", p.Changes, got)
	}

	// A unit that people still work in is not removed; without them it is.
	imp, _ = s.Read("units.csv", strings.NewReader(head[len("[units]\n"):]+"hq,,总部,1\nhr,hq,人事部,\n"))
	if _, problems := s.PlanWith(imp, org.PlanOptions{RemoveMissing: true}); !problems.Has("unit_in_use") {
		t.Errorf("removing a unit in use: %v", problems)
	}
	imp = mustRead(t, head+"hq,,总部,1\nhr,hq,人事部,\n"+people+"1,王芳,hq,总经理,,\n2,张伟,hr,专员,1,\n3,张伟,hr,专员,1,\n")
	p = apply(t, s, imp, org.PlanOptions{RemoveMissing: true})
	if p.Count(org.UnitRemoved) != 1 || p.Count(org.PersonLeft) != 1 || s.Tree().Unit("rd") != nil {
		t.Errorf("changes %+v", p.Changes)
	}
	sameTree(t, s.Tree(), open(t, db).Tree())

	// The unit comes back.
	imp, _ = s.Read("units.csv", strings.NewReader("id,parent,name\nrd,hq,研发部\n"))
	if p = apply(t, s, imp, org.PlanOptions{}); p.Count(org.UnitRestored) != 1 {
		t.Errorf("changes %+v", p.Changes)
	}
	sameTree(t, s.Tree(), open(t, db).Tree())
}

// TestAgainstStored finds faults between a partial file and what is stored.
func TestAgainstStored(t *testing.T) {
	s := open(t, sqldbtest.Open(t))
	apply(t, s, mustRead(t, small), org.PlanOptions{})
	deep := "id,parent,name\nd0,hq,d0\n"
	for i := range 20 {
		deep += fmt.Sprintf("d%d,d%d,d%d\n", i+1, i, i+1)
	}
	for name, tt := range map[string]struct{ text, code string }{
		"under its own child": {"id,parent,name\nhq,rd,总部\n", "unit_cycle"},
		"same name":           {"id,parent,name\nnew,hq,研发部\n", "duplicate_name"},
		"same code":           {"id,parent,name,code\nnew,hq,新,rd\n", "code_is_id"},
		"id in capitals":      {"id,parent,name\nRD,hq,新\n", "id_spelling"},
		"too deep":            {deep, "too_deep"},
		"line circle":         {"job_number,name,manager\n1,王建国,3\n", "line_cycle"},
		"mobile taken":        {"job_number,name,mobile\n9,新,13800000001\n", "duplicate_mobile"},
		"e-mail taken":        {"job_number,name,email\n9,新,c@x.cn\n", "duplicate_email"},
	} {
		imp, problems := s.Read("file.csv", strings.NewReader(tt.text))
		if !problems.Has(tt.code) || problems[0].Row < 2 {
			t.Errorf("%s: %v", name, problems)
		}
		if p, again := s.Plan(imp); p != nil || !again.Has(tt.code) {
			t.Errorf("%s: planned, %v", name, again)
		}
	}
	// The number of somebody who left is free, and a manager may lead a unit above.
	imp, problems := s.Read("file.csv", strings.NewReader("job_number,name,mobile,unit\n9,新,13800000004,rd\n"))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	apply(t, s, imp, org.PlanOptions{})
	if n := len(s.Tree().ByMobile("+8613800000004")); n != 2 {
		t.Errorf("%d people have had the number", n)
	}
	imp, problems = s.Read("file.csv", strings.NewReader("id,name,manager\nhq,总部,3\n"))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	apply(t, s, imp, org.PlanOptions{})
	if !s.Tree().IsManager("3", "rd") || !s.Tree().Manages("3", "hq") {
		t.Error("the manager of the unit above is none")
	}
}

func TestMissingColumnsKeepValues(t *testing.T) {
	s := open(t, sqldbtest.Open(t))
	apply(t, s, mustRead(t, small), org.PlanOptions{})
	before := *s.Tree().Person("2")
	imp, problems := s.Read("people.csv", strings.NewReader("工号,姓名\n1,王建国\n2,李敏\n3,张伟\n5,钱七\n6,孙八\n"))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if p := planWith(t, s, imp, org.PlanOptions{}); !p.Empty() {
		t.Errorf("changes %+v", p.Changes)
	}
	imp, _ = s.Read("people.csv", strings.NewReader("工号,姓名,手机\n2,李敏,\n"))
	apply(t, s, imp, org.PlanOptions{})
	after := *s.Tree().Person("2")
	if after.Mobile != "" || after.Email != before.Email || len(after.Posts) != 2 {
		t.Errorf("person %+v", after)
	}
	// A transfer in a file without leader and posts columns leaves the other post.
	imp, _ = s.Read("people.csv", strings.NewReader("工号,姓名,部门,职务\n1,王建国,hq,董事长\n2,李敏,hq,总监\n"))
	apply(t, s, imp, org.PlanOptions{})
	if p := s.Tree().Person("1").MainPost(); p.Title != "董事长" || p.Leader != org.LeaderMain {
		t.Errorf("post %+v", p)
	}
	if p := s.Tree().Person("2").Posts; len(p) != 2 || p[0].Unit != "hq" || !p[0].Main || p[1].Unit != "hr" || p[1].Leader != org.LeaderDeputy {
		t.Errorf("posts %+v", p)
	}
	// Somebody who had left and is in a list of those present has come back.
	imp, _ = s.Read("people.csv", strings.NewReader("工号,姓名\n4,赵六\n"))
	if p := planWith(t, s, imp, org.PlanOptions{}); p.Count(org.PersonReturned) != 1 {
		t.Errorf("changes %+v", p.Changes)
	}
}

func TestGuard(t *testing.T) {
	s := open(t, sqldbtest.Open(t))
	whole := org.Generate(1, 100, 10, 2)
	apply(t, s, whole, org.PlanOptions{})
	part := *whole
	part.People = whole.People[:85]
	_, problems := s.PlanWith(&part, org.PlanOptions{RemoveMissing: true})
	if !problems.Has("too_many_leave") || !strings.Contains(problems.Error(), "15 of 100") {
		t.Errorf("15 of 100 leave: %v", problems)
	}
	if p := planWith(t, s, &part, org.PlanOptions{}); !p.Empty() || len(p.AbsentPeople) != 15 {
		t.Errorf("absent people %v, changes %+v", p.AbsentPeople, p.Changes)
	}
	if p := planWith(t, s, &part, org.PlanOptions{RemoveMissing: true, MaxLeaveShare: 0.2}); p.Count(org.PersonLeft) != 15 {
		t.Errorf("%d leave", p.Count(org.PersonLeft))
	}
	if p := planWith(t, s, &part, org.PlanOptions{RemoveMissing: true, Force: true}); p.Count(org.PersonLeft) != 15 {
		t.Errorf("%d leave", p.Count(org.PersonLeft))
	}
	// A file without a people sheet makes nobody leave.
	units := org.Import{Units: whole.Units, HasUnits: true}
	if p := planWith(t, s, &units, org.PlanOptions{RemoveMissing: true}); !p.Empty() {
		t.Errorf("changes %+v", p.Changes)
	}
}

func TestDueDays(t *testing.T) {
	day := today
	db := sqldbtest.Open(t)
	s, err := org.NewStore(context.Background(), db, org.WithNow(func() time.Time { return day }))
	if err != nil {
		t.Fatal(err)
	}
	imp := mustRead(t, "[units]\nid,name\nhq,总部\n[people]\njob_number,name,unit,hired,left\n1,甲,hq,,2026-03-05\n2,乙,hq,2026-03-04,\n")
	apply(t, s, imp, org.PlanOptions{})
	for _, step := range []struct{ day, members string }{{"2026-03-03", "甲"}, {"2026-03-04", "甲 乙"}, {"2026-03-05", "乙"}} {
		if day, err = time.Parse("2006-01-02", step.day); err != nil {
			t.Fatal(err)
		}
		p, problems := s.PlanDue()
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		if _, err := s.Apply(context.Background(), p, "calendar"); err != nil {
			t.Fatal(err)
		}
		if got := names(s.Tree().Members("hq", false)); got != step.members {
			t.Errorf("%s: %s, want %s", step.day, got, step.members)
		}
	}
}

func TestLoginNames(t *testing.T) {
	for name, want := range map[string]string{
		"张伟": "zhangwei", "单田芳": "shantianfang", "曾国藩": "zengguofan", "欧阳修": "ouyangxiu", "尉迟恭": "yuchigong",
		"吕布": "lvbu", "李 David": "li.david", "John Smith": "john.smith", "买买提·艾力": "maimaiti.aili", "乐嘉": "yuejia",
		"ああ": "",
	} {
		if got := org.Pinyin(name); got != want {
			t.Errorf("Pinyin(%s) = %q, want %q", name, got, want)
		}
	}
	imp := func() *org.Import {
		return mustRead(t, "[units]\nid,name\nhq,总部\n[people]\njob_number,name,email\nA1,张伟,z.w@x.cn\nA2,章玮,z.w@y.cn\nA3,ああ,\nA4,卡丽,\n")
	}
	for rule, want := range map[org.LoginRule]string{
		org.LoginJobNumber: "a1 a2 a3 a4", org.LoginPinyin: "zhangwei zhangwei2 a3 kali2", org.LoginEmailLocal: "z.w z.w2 a3 a4",
	} {
		s := open(t, sqldbtest.Open(t), org.WithLoginRule(rule), org.WithReserved("kali"))
		apply(t, s, imp(), org.PlanOptions{})
		var got []string
		for _, p := range s.Tree().People() {
			got = append(got, p.Localpart)
		}
		if g := strings.Join(got, " "); g != want {
			t.Errorf("%s: %s, want %s", rule, g, want)
		}
	}
	if _, err := org.NewStore(context.Background(), sqldbtest.Open(t), org.WithLoginRule("zodiac")); err == nil {
		t.Error("an unknown rule was taken")
	}
}

func TestPlanText(t *testing.T) {
	s := open(t, sqldbtest.Open(t), org.WithLoginRule(org.LoginPinyin))
	first := planWith(t, s, mustRead(t, small), org.PlanOptions{})
	apply(t, s, mustRead(t, small), org.PlanOptions{})
	imp, problems := s.Read("org.csv", strings.NewReader(`[units]
id,parent,name,order,contain_sub
hq,,集团总部,1,是
rd,hr,研发部,2,是
qa,rd,质量组,1,
[people]
job_number,name,mobile,unit,title,manager,left,备注
1,王建国,13900000001,hq,董事长,,,
2,李敏,,hr,经理,1,2026-12-31,
4,赵六,13800000004,hr,专员,1,,
5,钱七,,rd,工程师,2,2026-03-01,
7,周九,,qa,测试,2,,
`))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	second := planWith(t, s, imp, org.PlanOptions{})
	for name, p := range map[string]*org.Plan{"first": first, "second": second} {
		for _, lang := range []org.Lang{org.English, org.Chinese} {
			var b bytes.Buffer
			if err := p.WriteText(&b, lang); err != nil {
				t.Fatal(err)
			}
			golden(t, fmt.Sprintf("plan_%s.%s.txt", name, lang), b.Bytes())
		}
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; is\n%s", name, got)
	}
}

// TestRandomHistories imports one random company after another: each plan
// applied once leaves nothing to do, what is in memory is what is stored, and
// nobody's log-in name ever changes or is given twice.
func TestRandomHistories(t *testing.T) {
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 1))
		db := sqldbtest.Open(t)
		s := open(t, db, org.WithLoginRule(org.LoginPinyin))
		logins := map[string]string{}
		for range 12 {
			imp := org.Generate(int(seed), 30+rng.IntN(40), 5+rng.IntN(15), 1+rng.IntN(4))
			shake(rng, imp)
			opts := org.PlanOptions{RemoveMissing: rng.IntN(2) == 0, Force: true}
			p, problems := s.PlanWith(imp, opts)
			if len(problems) > 0 {
				continue // a shake may make two units share a name, or a unit vanish under people
			}
			if _, err := s.Apply(context.Background(), p, "random"); err != nil {
				t.Fatal(err)
			}
			if again := planWith(t, s, imp, opts); !again.Empty() {
				t.Fatalf("seed %d: applied twice changes %+v", seed, again.Changes)
			}
			sameTree(t, s.Tree(), open(t, db).Tree())
			owner := map[string]string{}
			for _, person := range s.Tree().People() {
				if before := logins[person.ID]; before != "" && before != person.Localpart {
					t.Fatalf("%s was %s, is %s", person.ID, before, person.Localpart)
				}
				logins[person.ID] = person.Localpart
				if owner[person.Localpart] != "" {
					t.Fatalf("%s belongs to %s and %s", person.Localpart, owner[person.Localpart], person.ID)
				}
				owner[person.Localpart] = person.ID
			}
		}
		if s.Tree().Version < 4 {
			t.Errorf("seed %d: only %d imports were good", seed, s.Tree().Version)
		}
	}
}

// shake moves units and people about and makes some leave.
func shake(rng *rand.Rand, imp *org.Import) {
	for _, u := range imp.Units[1:] {
		if rng.IntN(8) == 0 {
			u.Name += fmt.Sprint(rng.IntN(100))
			u.ParentID = "u0"
		}
	}
	for _, p := range imp.People {
		switch rng.IntN(10) {
		case 0:
			p.Left = "2026-02-28"
			p.Hired = ""
		case 1:
			p.Posts = []org.Post{{Unit: imp.Units[rng.IntN(len(imp.Units))].ID, Title: "新职", Main: true}}
		case 2:
			p.Status = org.StatusSuspended
		}
	}
}

func BenchmarkPlanSevenThousand(b *testing.B) {
	imp := org.Generate(7, 7000, 400, 15)
	for b.Loop() {
		if _, problems := org.BuildTree(imp, org.LoginPinyin, today); len(problems) > 0 {
			b.Fatal(problems)
		}
	}
}
