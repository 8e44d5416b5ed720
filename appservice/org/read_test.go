package org_test

import (
	"archive/zip"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/xuri/excelize/v2"

	"github.com/carillon-chat/carillon/appservice/org"
)

var today = time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)

func at() time.Time { return today }

func read(t *testing.T, name, text string) (*org.Import, org.Problems) {
	t.Helper()
	return org.ReadFile(name, strings.NewReader(text), org.ReadOptions{Now: today})
}

// mustRead reads a joint CSV that has no faults.
func mustRead(t *testing.T, text string) *org.Import {
	t.Helper()
	imp, problems := read(t, "org.csv", text)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return imp
}

const small = `[units]
id,parent,name,code,order,site,manager,contain_sub,room
hq,,总部,HQ,1,北京,1,是,是
rd,hq,研发部,RD,2,,2,否,
hr,hq,人事部,,1,上海,,,否
[people]
job_number,name,mobile,email,unit,title,leader,posts,manager,hired,left,status,admin
1,王建国,13800000001,a@x.cn,hq,总经理,正职,,,2010-01-01,,,是
2,李敏,+86 138-0000-0002,B@X.CN,RD,经理,main,hr:顾问:deputy,1,2011/2/3,,,
3,张　伟,,c@x.cn,,,,rd:工程师;hr:面试官:main,2,2012年3月4日,,,
4,赵六,13800000004,,hr,专员,,,1,2013-01-01,2020-05-06,离职,
5,钱七,,,rd,工程师,,,2,,,停用,
6,孙八,,,rd,工程师,,,2,2026-09-01,,,
`

func TestReadWhole(t *testing.T) {
	imp := mustRead(t, small)
	tree, problems := org.BuildTree(imp, org.LoginJobNumber, today)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	p := tree.Person("2")
	if p.Mobile != "+8613800000002" || p.Email != "b@x.cn" || p.Hired != "2011-02-03" {
		t.Errorf("person 2 = %+v", p)
	}
	if len(p.Posts) != 2 || p.MainPost().Unit != "rd" || p.Posts[1].Leader != org.LeaderDeputy {
		t.Errorf("posts of 2 = %+v", p.Posts)
	}
	p = tree.Person("3")
	if p.Name != "张伟" || p.MainPost().Unit != "hr" || p.Posts[0].Unit != "hr" || p.Hired != "2012-03-04" {
		t.Errorf("person 3 = %+v", p)
	}
	for id, want := range map[string]org.Status{"1": "active", "4": "left", "5": "suspended", "6": "invited"} {
		if got := tree.Person(id).Status; got != want {
			t.Errorf("status of %s = %s, want %s", id, got, want)
		}
	}
	if rd, hr := tree.Unit("rd"), tree.Unit("hr"); rd.Site != "北京" || rd.OwnSite || hr.Site != "上海" || !hr.NoRoom || rd.NoRoom {
		t.Errorf("units = %+v %+v", rd, hr)
	}
	var ids []string
	for _, u := range tree.Units() {
		ids = append(ids, u.ID)
	}
	if got := strings.Join(ids, " "); got != "hq hr rd" {
		t.Errorf("units in order: %s", got)
	}
	if got := names(tree.Members("hq", true)); got != "王建国 李敏 张伟 钱七" {
		t.Errorf("members of hq and below: %s", got)
	}
	if !tree.IsManager("1", "rd") || tree.IsManager("2", "hq") || tree.Manages("1", "rd") || len(tree.ManagersOf("hr")) != 0 {
		t.Error("managers are wrong")
	}
	if got := names(tree.DeputiesOf("hr")); got != "李敏" {
		t.Errorf("deputies of hr: %s", got)
	}
	if got := names(tree.FindPerson("138 0000 0001")); got != "王建国" {
		t.Errorf("found by mobile: %s", got)
	}
	if us := tree.FindUnit("研发部"); len(us) != 1 || us[0].ID != "rd" {
		t.Errorf("found units: %v", us)
	}
}

func names(people []*org.Person) string {
	var out []string
	for _, p := range people {
		out = append(out, p.Name)
	}
	return strings.Join(out, " ")
}

// TestFaults gives one faulty line each to an otherwise good file.
func TestFaults(t *testing.T) {
	const unitHead = "[units]\nid,parent,name,code,order,site,manager,contain_sub,room\nhq,,总部,HQ,1,北京,,,\n"
	const peopleHead = "[people]\njob_number,name,mobile,email,unit,title,leader,posts,manager,hired,left,status,admin\n" +
		"1,甲,13800000001,a@x.cn,hq,,,,,,,,\n"
	tests := []struct {
		units, people string
		code, column  string
		row           int
	}{
		{units: ",hq,部", code: "required", column: "id", row: 4},
		{units: "a b,hq,部", code: "bad_id", column: "id", row: 4},
		{units: "a,hq,", code: "required", column: "name", row: 4},
		{units: "a,hq," + strings.Repeat("部", 65), code: "name_length", column: "name", row: 4},
		{units: "a,hq,\"部\n门\"", code: "bad_text", column: "name", row: 4},
		{units: "a,hq,部,,-1", code: "bad_number", column: "order", row: 4},
		{units: "a,hq,部,,,,,maybe", code: "bad_flag", column: "contain_sub", row: 4},
		{units: "a,nowhere,部", code: "unknown_parent", column: "parent", row: 4},
		{units: "a,hq,部,,,,99", code: "unknown_unit_manager", column: "manager", row: 4},
		{units: "a,a,部", code: "unit_cycle", column: "parent", row: 4},
		{units: "a,b,部\nb,a,处", code: "unit_cycle", column: "parent", row: 4},
		{units: "a,hq,部\na,hq,处", code: "duplicate_id", column: "id", row: 5},
		{units: "a,hq,部\nA,hq,处", code: "id_spelling", column: "id", row: 5},
		{units: "a,hq,部\nb,hq,部", code: "duplicate_name", column: "name", row: 5},
		{units: "a,hq,部,X\nb,hq,处,x", code: "duplicate_code", column: "code", row: 5},
		{units: "a,hq,部\nb,hq,处,a", code: "code_is_id", column: "code", row: 5},
		{units: "a,hq,部,代 码", code: "bad_id", column: "code", row: 4},
		{people: ",乙", code: "required", column: "job_number", row: 3},
		{people: "2,", code: "required", column: "name", row: 3},
		{people: "工2,乙", code: "bad_id", column: "job_number", row: 3},
		{people: "1,乙", code: "duplicate_person", column: "job_number", row: 3},
		{people: "2,乙,12345", code: "bad_mobile", column: "mobile", row: 3},
		{people: "2,乙,1.38E+10", code: "number_rounded", column: "mobile", row: 3},
		{people: "2,乙,138 0000 0001", code: "duplicate_mobile", column: "mobile", row: 3},
		{people: "2,乙,,nobody", code: "bad_email", column: "email", row: 3},
		{people: "2,乙,,A@X.cn", code: "duplicate_email", column: "email", row: 3},
		{people: "2,乙,,,nowhere", code: "unknown_unit", column: "unit", row: 3},
		{people: "2,乙,,,,,,nowhere:x", code: "unknown_unit", column: "posts", row: 3},
		{people: "2,乙,,,,,,hq:a:b", code: "bad_post", column: "posts", row: 3},
		{people: "2,乙,,,hq,,,hq:x", code: "duplicate_post", column: "posts", row: 3},
		{units: "a,hq,部", people: "2,乙,,,hq,,,a:x:main", code: "two_main_posts", column: "posts", row: 3},
		{people: "2,乙,,,,经理", code: "title_without_unit", column: "unit", row: 3},
		{people: "2,乙,,,hq,,大", code: "bad_leader", column: "leader", row: 3},
		{people: "2,乙,,,,,,,99", code: "unknown_manager", column: "manager", row: 3},
		{people: "2,乙,,,,,,,2", code: "own_manager", column: "manager", row: 3},
		{people: "2,乙,,,,,,,3\n3,丙,,,,,,,2", code: "line_cycle", column: "manager", row: 3},
		{people: "2,乙,,,,,,,,2024-02-30", code: "bad_date", column: "hired", row: 3},
		{people: "2,乙,,,,,,,,2024-02-03,2024-02-01", code: "date_order", column: "left", row: 3},
		{people: "2,乙,,,,,,,,,,离职", code: "left_without_date", column: "left", row: 3},
		{people: "2,乙,,,,,,,,,2020-01-01,在职", code: "active_with_left_date", column: "status", row: 3},
		{people: "2,乙,,,,,,,,,,睡觉", code: "bad_status", column: "status", row: 3},
		{people: "2,乙,,,,,,,,,,,也许", code: "bad_flag", column: "admin", row: 3},
		{people: "2,乙\u202e甲", code: "bad_text", column: "name", row: 3},
	}
	for _, tt := range tests {
		t.Run(tt.code+"/"+tt.column, func(t *testing.T) {
			text := unitHead + tt.units + "\n" + peopleHead
			wantRow := tt.row
			if tt.people != "" {
				text += tt.people + "\n"
				wantRow += strings.Count(unitHead+tt.units+"\n", "\n") + 1
			}
			_, problems := read(t, "org.csv", text)
			var hits int
			for _, p := range problems {
				if p.Code != tt.code {
					t.Errorf("further problem: %s", p.Text(org.English))
					continue
				}
				hits++
				if p.Column != tt.column || p.Row != wantRow || p.Sheet != "org.csv" {
					t.Errorf("at %s row %d column %s, want row %d column %s", p.Sheet, p.Row, p.Column, wantRow, tt.column)
				}
				if p.Message == "" || p.Mend == "" || p.MessageZH == "" || p.MendZH == "" || strings.Contains(p.Text(org.Chinese), "{") {
					t.Errorf("words are missing: %+v", p)
				}
			}
			if hits != 1 {
				t.Errorf("%d problems %s, want one; all: %v", hits, tt.code, problems)
			}
		})
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	_, problems := read(t, "org.csv", "[units]\nid,parent,name\na,x,部\nb,b,\n[people]\njob_number,name,mobile\n1,,123\n1,甲,456\n")
	for _, code := range []string{"unknown_parent", "unit_cycle", "required", "bad_mobile", "duplicate_person"} {
		if !problems.Has(code) {
			t.Errorf("%s is missing in\n%v", code, problems)
		}
	}
	if len(problems) != 7 {
		t.Errorf("%d problems:\n%v", len(problems), problems)
	}
	var b bytes.Buffer
	if err := problems.WriteText(&b, org.Chinese); err != nil || !strings.Contains(b.String(), "共 7 个问题") {
		t.Errorf("text: %v\n%s", err, b.String())
	}
}

func TestFileFaults(t *testing.T) {
	gbk := "job_number,name\n1,\xd5\xc5\xce\xb0\n"
	tests := []struct{ name, text, code string }{
		{"gbk.csv", gbk, "not_utf8"},
		{"empty.csv", " \n", "file_empty"},
		{"old.xls", "\xd0\xcf\x11\xe0\xa1\xb1", "old_excel"},
		{"broken.xlsx", "PK\x03\x04nonsense", "file_unreadable"},
		{"other.csv", "fruit,colour\napple,red\n", "no_sheet"},
		{"people.csv", "name,mobile\nx,y\n", "missing_column"},
		{"people.csv", "job_number,name,工号\n1,x,2\n", "duplicate_column"},
		{"people.csv", "job_number,name\n1,\"x\n", "csv_syntax"},
		{"people.csv", "job_number,name\n1," + strings.Repeat("x", 5000) + "\n", "value_too_long"},
		{"people.csv", "job_number,name\n" + strings.Repeat("1,x\n", 4), "too_many_rows"},
		{"people.csv", "job_number,name" + strings.Repeat(",x", 70) + "\n1,x\n", "too_many_columns"},
		{"people.csv", "[people]\njob_number,name\n1,x\n[people]\njob_number,name\n", "sheet_twice"},
	}
	for _, tt := range tests {
		_, problems := org.ReadFile(tt.name, strings.NewReader(tt.text), org.ReadOptions{Now: today, MaxPeople: 3})
		if !problems.Has(tt.code) {
			t.Errorf("%s: %v, want %s", tt.name, problems, tt.code)
		}
	}
	_, problems := org.ReadFile("big.csv", strings.NewReader(strings.Repeat("x", 2<<20)), org.ReadOptions{MaxBytes: 1 << 20})
	if !problems.Has("file_too_large") {
		t.Errorf("big file: %v", problems)
	}
}

// TestSpellings reads one table in the shapes spreadsheet programs give it.
func TestSpellings(t *testing.T) {
	plain := "工号,姓名,手机,备注\n007,张伟,13800000001,x\n"
	var utf16le bytes.Buffer
	utf16le.WriteString("\xff\xfe")
	for _, u := range utf16.Encode([]rune(strings.ReplaceAll(plain, ",", "\t"))) {
		utf16le.WriteByte(byte(u))
		utf16le.WriteByte(byte(u >> 8))
	}
	var zipped bytes.Buffer
	z := zip.NewWriter(&zipped)
	for name, text := range map[string]string{"export/people.csv": plain, "__MACOSX/people.csv": "junk", "notes.txt": "x"} {
		f, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"plain.csv":     plain,
		"bom.csv":       "\ufeff" + plain,
		"semicolon.csv": strings.ReplaceAll(plain, ",", ";"),
		"tab.csv":       strings.ReplaceAll(plain, ",", "\t"),
		"crlf.csv":      strings.ReplaceAll(plain, "\n", "\r\n"),
		"utf16.csv":     utf16le.String(),
		"zip":           zipped.String(),
		"comment.csv":   "# our people\n\n" + plain + "# 008,no one\n",
		"starred.csv":   strings.Replace(plain, "工号", "* 工号 (必填)", 1),
		"wide.csv":      strings.Replace(plain, "007,张伟,13800000001", "００７,张 伟,１３８０００００００１", 1),
	} {
		imp, problems := read(t, name, text)
		if len(problems) > 0 {
			t.Errorf("%s: %v", name, problems)
			continue
		}
		if len(imp.People) != 1 || imp.People[0].ID != "007" || imp.People[0].Name != "张伟" || imp.People[0].Mobile != "+8613800000001" {
			t.Errorf("%s: %+v", name, imp.People)
		}
	}
}

func TestWorkbook(t *testing.T) {
	f := excelize.NewFile()
	defer f.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(f.SetSheetName("Sheet1", "人员"))
	must(f.SetSheetRow("人员", "A1", &[]any{"工号", "姓名", "手机号码", "入职日期", "离职日期", "部门"}))
	must(f.SetSheetRow("人员", "A2", &[]any{42, "张伟", 13800000001, 45352, time.Date(2030, 1, 2, 0, 0, 0, 0, time.UTC), "rd"}))
	must(f.SetSheetRow("人员", "A4", &[]any{"043", "李娜", "13800000002", "2024/3/1", "", "rd"}))
	zeros := "000000"
	style, err := f.NewStyle(&excelize.Style{CustomNumFmt: &zeros})
	must(err)
	must(f.SetCellStyle("人员", "A2", "A2", style))
	odd := "d/m/yy"
	style, err = f.NewStyle(&excelize.Style{CustomNumFmt: &odd})
	must(err)
	must(f.SetCellStyle("人员", "D2", "E2", style))
	scientific := "0.00E+00"
	style, err = f.NewStyle(&excelize.Style{CustomNumFmt: &scientific})
	must(err)
	must(f.SetCellStyle("人员", "C2", "C2", style))
	_, err = f.NewSheet("部门")
	must(err)
	must(f.SetSheetRow("部门", "A1", &[]any{"部门编号", "部门名称", "上级部门"}))
	must(f.SetSheetRow("部门", "A2", &[]any{"rd", "研发部"}))
	_, err = f.NewSheet("统计")
	must(err)
	must(f.SetSheetRow("统计", "A1", &[]any{"月份", "人数"}))
	var b bytes.Buffer
	must(f.Write(&b))

	imp, problems := org.ReadFile("x.xlsx", &b, org.ReadOptions{Now: today})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if len(imp.Units) != 1 || len(imp.People) != 2 {
		t.Fatalf("%d units, %d people", len(imp.Units), len(imp.People))
	}
	p := imp.People[0]
	if p.ID != "000042" || p.Mobile != "+8613800000001" || p.Hired != "2024-03-01" || p.Left != "2030-01-02" {
		t.Errorf("person = %+v", p)
	}
	if imp.People[1].ID != "043" || imp.People[1].Hired != "2024-03-01" {
		t.Errorf("person = %+v", imp.People[1])
	}
}

func TestReadFiles(t *testing.T) {
	dir := t.TempDir()
	units, people := filepath.Join(dir, "a.csv"), filepath.Join(dir, "b.csv")
	for name, text := range map[string]string{units: "id,parent,name\nhq,,总部\n", people: "job_number,name,unit\n1,甲,hq\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	imp, problems := org.ReadFiles(org.ReadOptions{}, units, people)
	if len(problems) > 0 || len(imp.Units) != 1 || len(imp.People) != 1 {
		t.Errorf("%v %+v", problems, imp)
	}
	if _, problems = org.ReadFiles(org.ReadOptions{}, filepath.Join(dir, "none.csv")); !problems.Has("file_unreadable") {
		t.Errorf("missing file: %v", problems)
	}
}

func TestTemplates(t *testing.T) {
	for _, format := range []string{org.FormatCSV, org.FormatXLSX} {
		var b bytes.Buffer
		if err := org.WriteTemplate(&b, format); err != nil {
			t.Fatal(err)
		}
		imp, problems := org.ReadFile("template", &b, org.ReadOptions{Now: today})
		if len(problems) > 0 {
			t.Fatalf("%s: %v", format, problems)
		}
		tree, problems := org.BuildTree(imp, org.LoginPinyin, today)
		if len(problems) > 0 {
			t.Fatalf("%s: %v", format, problems)
		}
		if len(tree.Units()) != 3 || len(tree.People()) != 3 || len(tree.UnitsOf("1003")) != 2 || tree.ByLocalpart("zhangwei") == nil {
			t.Errorf("%s: %d units, %d people", format, len(tree.Units()), len(tree.People()))
		}
	}
	if err := org.WriteTemplate(&bytes.Buffer{}, "pdf"); err == nil {
		t.Error("a template in PDF")
	}
}

func TestDemoCompany(t *testing.T) {
	tree, problems := org.BuildTree(org.DemoCompany(), org.LoginPinyin, today)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if n := len(tree.People()); n < 55 || n > 65 {
		t.Errorf("%d people", n)
	}
	if got := strings.Join(tree.Sites(), " "); got != "北京 成都 杭州" {
		t.Errorf("sites %s", got)
	}
	var vacant, deputies, concurrent, left int
	for _, u := range tree.Units() {
		if len(tree.ManagersOf(u.ID)) == 0 {
			vacant++
		}
		deputies += len(tree.DeputiesOf(u.ID))
	}
	for _, p := range tree.People() {
		if len(p.Posts) > 1 {
			concurrent++
		}
		if p.Status == org.StatusLeft {
			left++
		}
	}
	if vacant == 0 || deputies == 0 || concurrent == 0 || left != 1 {
		t.Errorf("vacant %d, deputies %d, concurrent %d, left %d", vacant, deputies, concurrent, left)
	}
	admin, head, employee := tree.Person(org.DemoAdmin), tree.Person(org.DemoHead), tree.Person(org.DemoEmployee)
	if !admin.Admin || !tree.Manages(head.ID, "rd") || !tree.IsManager(head.ID, employee.MainPost().Unit) {
		t.Error("the people of the documentation are not what they should be")
	}
	if admin.Localpart != "linhai" || head.Localpart != "zhoumin" || employee.Localpart != "chenchen" {
		t.Errorf("log-in names %s %s %s", admin.Localpart, head.Localpart, employee.Localpart)
	}
}

func TestGenerate(t *testing.T) {
	begin := time.Now()
	imp := org.Generate(7, 7000, 400, 15)
	tree, problems := org.BuildTree(imp, org.LoginPinyin, today)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if len(tree.Units()) != 400 || len(tree.People()) != 7000 || len(tree.Sites()) != 15 || tree.Headcount() != 7000 {
		t.Errorf("%d units, %d people, %d sites", len(tree.Units()), len(tree.People()), len(tree.Sites()))
	}
	if n := len(tree.Members(tree.Roots()[0].ID, true)); n != 7000 {
		t.Errorf("%d members below the root", n)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	for _, c := range [][3]int{{0, 1, 1}, {3, 2, 9}, {50, 7, 2}, {10, 40, 3}, {900, 900, 40}} {
		tree, problems := org.BuildTree(org.Generate(1, c[0], c[1], c[2]), org.LoginJobNumber, today)
		if len(problems) > 0 {
			t.Fatalf("%v: %v", c, problems)
		}
		if len(tree.People()) != c[0] || len(tree.Units()) != c[1] {
			t.Errorf("%v: %d people, %d units", c, len(tree.People()), len(tree.Units()))
		}
	}
	var a, b bytes.Buffer
	for _, w := range []*bytes.Buffer{&a, &b} {
		if err := org.Generate(3, 200, 20, 3).Write(w, org.FormatCSV); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the same seed gives two companies")
	}
}

// TestWriteRead writes companies as files and reads them back the same.
func TestWriteRead(t *testing.T) {
	for _, format := range []string{org.FormatCSV, org.FormatXLSX} {
		for _, imp := range []*org.Import{org.DemoCompany(), org.Generate(5, 300, 40, 4)} {
			var b bytes.Buffer
			if err := imp.Write(&b, format); err != nil {
				t.Fatal(err)
			}
			again, problems := org.ReadFile("x", &b, org.ReadOptions{Now: today})
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			sameTree(t, build(t, imp), build(t, again))
		}
	}
}

func build(t *testing.T, imp *org.Import) *org.Tree {
	t.Helper()
	tree, problems := org.BuildTree(imp, org.LoginPinyin, today)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return tree
}

func FuzzReadFile(f *testing.F) {
	f.Add("org.csv", []byte(small))
	f.Add("people.csv", []byte("工号;姓名;兼职\n1;甲;\"a:b;c:d:main\"\n"))
	f.Add("gbk.csv", []byte("job_number,name\n1,\xd5\xc5\xce\xb0\n"))
	f.Add("utf16.csv", []byte("\xff\xfei\x00d\x00"))
	for _, format := range []string{org.FormatCSV, org.FormatXLSX} {
		var b bytes.Buffer
		if err := org.WriteTemplate(&b, format); err != nil {
			f.Fatal(err)
		}
		f.Add("template", b.Bytes())
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		opts := org.ReadOptions{Now: today, MaxBytes: 1 << 20, MaxPeople: 1000, MaxUnits: 1000}
		imp, problems := org.ReadFile(name, bytes.NewReader(data), opts)
		tree, again := org.BuildTree(imp, org.LoginPinyin, today)
		if len(problems) > 0 {
			if tree != nil {
				t.Fatalf("a file with faults was planned: %v", problems)
			}
			return
		}
		if len(again) > 0 {
			t.Fatalf("read without a fault, but planning says %v", again)
		}
		// What was read can be written and read again.
		var b bytes.Buffer
		if err := imp.Write(&b, org.FormatCSV); err != nil {
			t.Fatal(err)
		}
		if _, problems := org.ReadFile("again", &b, opts); len(problems) > 0 && len(imp.Units)+len(imp.People) > 0 {
			t.Fatalf("written and read again: %v", problems)
		}
	})
}
