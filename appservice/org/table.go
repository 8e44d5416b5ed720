package org

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/xuri/excelize/v2"
)

// table turns the rows of one sheet into units or people.
type table struct {
	rd       *reader
	kind     sheetKind
	info     *sheetInfo
	cols     map[col]int // where each column stands
	ready    bool        // the header was read
	ignored  bool        // not a sheet of ours, or a second one
	count    int
	date1904 bool

	// The row being read.
	at    place
	cells []string
	raw   []string
}

// table begins a sheet; name may tell its kind, shown is used in problems.
func (rd *reader) table(name, shown string) *table {
	return &table{rd: rd, kind: kindByName(name), info: &sheetInfo{name: shown, headers: map[col]string{}}, cols: map[col]int{}}
}

// row takes the next row and answers whether to go on. raw are the stored
// values behind the shown ones, nil if there is no difference.
func (t *table) row(n int, cells, raw []string) bool {
	if t.ignored {
		return false
	}
	blank := true
	for _, c := range cells {
		blank = blank && strings.TrimSpace(c) == ""
	}
	if blank || strings.HasPrefix(strings.TrimSpace(cells[0]), "#") {
		return true
	}
	t.at, t.cells, t.raw = place{sheet: t.info, row: n}, cells, raw
	if !t.ready {
		t.header()
		return !t.ignored
	}
	limit := t.rd.opts.MaxUnits
	if t.kind == sheetPeople {
		limit = t.rd.opts.MaxPeople
	}
	if t.count++; t.count > limit {
		t.rd.fail("too_many_rows", t.at, "", "", limit)
		return false
	}
	if t.kind == sheetUnits {
		t.unit()
	} else {
		t.person()
	}
	return true
}

// header reads the first row with text.
func (t *table) header() {
	t.ready = true
	guessed := t.kind == sheetNone
	if guessed {
		t.kind = kindByHeader(t.cells)
	}
	if t.kind == sheetNone {
		t.ignored = true
		return
	}
	has, title := &t.rd.imp.HasUnits, "units (部门)"
	if t.kind == sheetPeople {
		has, title = &t.rd.imp.HasPeople, "people (人员)"
	}
	if *has && guessed {
		t.ignored = true // a list of something else, made from the same data
		return
	}
	if *has {
		t.rd.fail("sheet_twice", t.at, "", "", title)
		t.ignored = true
		return
	}
	*has = true
	names := headerNames(t.kind)
	for i, h := range t.cells {
		h = strings.TrimSpace(h)
		if h == "" {
			continue
		}
		if i >= maxColumns {
			t.rd.fail("too_many_columns", t.at, "", "", maxColumns)
			break
		}
		c, ok := matchHeader(names, h)
		if !ok {
			t.rd.imp.notes = append(t.rd.imp.notes, newProblem("unknown_column", t.at, shorten(h), ""))
			continue
		}
		if _, double := t.cols[c]; double {
			t.rd.fail("duplicate_column", t.at, shorten(h), "", columnKey(c), zhHeader(t.kind, c))
			continue
		}
		t.cols[c], t.info.headers[c] = i, shorten(h)
	}
	t.missingColumns()
}

func (t *table) missingColumns() {
	for _, d := range columnsOf(t.kind) {
		if _, ok := t.cols[d.col]; ok {
			continue
		}
		if d.required {
			t.rd.fail("missing_column", t.at, d.key, "", d.key, d.zh)
			t.ignored = true
		}
		if t.kind == sheetUnits {
			t.rd.imp.skipUnit |= 1 << d.col
		} else {
			t.rd.imp.skipPerson |= 1 << d.col
		}
	}
}

func zhHeader(kind sheetKind, c col) string {
	for _, d := range columnsOf(kind) {
		if d.col == c {
			return d.zh
		}
	}
	return ""
}

// close ends the sheet.
func (t *table) close() { t.cells, t.raw = nil, nil }

func (t *table) fail(code string, c col, value string, args ...any) {
	t.rd.fail(code, t.at, t.at.column(c), value, args...)
}

// cell is the shown text of a column in the current row.
func (t *table) cell(c col) string {
	i, ok := t.cols[c]
	if !ok || i >= len(t.cells) {
		return ""
	}
	s := strings.TrimSpace(t.cells[i])
	if utf8.RuneCountInString(s) > maxCellLength {
		t.fail("value_too_long", c, s, maxCellLength)
		return ""
	}
	if !utf8.ValidString(s) {
		t.fail("bad_text", c, s)
		return ""
	}
	return s
}

// number is a cell that holds digits: the stored value where the shown one was
// rounded to 1.38E+10.
func (t *table) number(c col) string {
	s := narrow(t.cell(c))
	if !looksRounded(s) {
		return s
	}
	if r := t.stored(c); r != "" && strings.IndexFunc(r, func(r rune) bool { return r < '0' || r > '9' }) < 0 {
		return r
	}
	t.fail("number_rounded", c, s)
	return ""
}

func (t *table) stored(c col) string {
	if i, ok := t.cols[c]; ok && i < len(t.raw) {
		return strings.TrimSpace(t.raw[i])
	}
	return ""
}

// text is a name or a title of at most max characters.
func (t *table) text(c col, maxLen int) string {
	s := t.cell(c)
	if !cleanText(s) {
		t.fail("bad_text", c, strings.Map(visible, s))
		return ""
	}
	if n := utf8.RuneCountInString(s); n > maxLen {
		t.fail("name_length", c, s, n, maxLen)
		return ""
	}
	return s
}

// visible replaces what cannot be shown.
func visible(r rune) rune {
	if unicode.IsControl(r) || !unicode.IsPrint(r) {
		return '\uFFFD'
	}
	return r
}

// key is a unit's or a person's ID in another one's row; its form is not judged
// here since an unknown one is a fault anyway.
func (t *table) key(c col) string { return t.number(c) }

// id is the ID the row is about.
func (t *table) id(c col, anyScript bool) (string, bool) {
	before := len(t.rd.imp.problems)
	s := t.number(c)
	if s == "" {
		if len(t.rd.imp.problems) == before {
			t.fail("required", c, "")
		}
		return "", false
	}
	if !validID(s, anyScript) {
		t.fail("bad_id", c, s, maxIDLength)
	}
	return s, true
}

func (t *table) flag(c col, byDefault bool) bool {
	s := t.cell(c)
	b, ok := parseFlag(s, byDefault)
	if !ok {
		t.fail("bad_flag", c, s)
	}
	return b
}

func (t *table) order(c col) int {
	s := t.cell(c)
	if s == "" {
		return 0
	}
	n, ok := parseOrder(s)
	if !ok {
		t.fail("bad_number", c, s, maxOrder)
		return 0
	}
	return n
}

// date reads a day as text or as the spreadsheet's count of days.
func (t *table) date(c col) string {
	s := t.cell(c)
	if s == "" {
		return ""
	}
	for _, v := range []string{t.stored(c), s} {
		if days, err := strconv.ParseFloat(narrow(v), 64); err == nil && days >= 10000 && days < 100000 {
			if d, err := excelize.ExcelDateToTime(days, t.date1904); err == nil {
				return d.Format(dateLayout)
			}
		}
	}
	d, ok := parseDate(s)
	if !ok {
		t.fail("bad_date", c, s)
	}
	return d
}

func (t *table) unit() {
	imp := t.rd.imp
	id, ok := t.id(colUnitID, true)
	u := &Unit{
		ID:         id,
		ParentID:   t.key(colUnitParent),
		Name:       t.text(colUnitName, maxNameLength),
		Code:       t.number(colUnitCode),
		Order:      t.order(colUnitOrder),
		Site:       t.text(colUnitSite, maxNameLength),
		Managers:   splitList(t.cell(colUnitManager)),
		ContainSub: t.flag(colUnitContainSub, false),
		NoRoom:     !t.flag(colUnitRoom, true),
	}
	u.OwnSite = u.Site != ""
	if t.cell(colUnitName) == "" {
		t.fail("required", colUnitName, "")
	}
	if u.Code != "" && !validID(u.Code, false) {
		t.fail("bad_id", colUnitCode, u.Code, maxIDLength)
	}
	if len(u.Managers) > maxManagers {
		t.fail("too_many_managers", colUnitManager, t.cell(colUnitManager), maxManagers)
		u.Managers = nil
	}
	if ok {
		imp.Units = append(imp.Units, u)
		imp.unitAt = append(imp.unitAt, t.at)
	}
}

func (t *table) person() {
	imp := t.rd.imp
	id, ok := t.id(colID, false)
	p := &Person{
		ID:      id,
		Name:    joinHan(t.text(colName, maxNameLength)),
		Mobile:  t.mobile(),
		Manager: t.key(colManager),
		Hired:   t.date(colHired),
		Left:    t.date(colLeft),
		Admin:   t.flag(colAdmin, false),
		Posts:   t.posts(),
	}
	if t.cell(colName) == "" {
		t.fail("required", colName, "")
	}
	if s := t.cell(colEmail); s != "" {
		var valid bool
		if p.Email, valid = parseEmail(s); !valid {
			t.fail("bad_email", colEmail, s)
		}
	}
	p.Status = t.status(p)
	if p.Hired != "" && p.Left != "" && p.Left < p.Hired {
		t.fail("date_order", colLeft, p.Left, p.Hired)
	}
	if ok {
		imp.People = append(imp.People, p)
		t.at.unitCell = t.cell(colUnit) != ""
		imp.personAt = append(imp.personAt, t.at)
	}
}

// status is what the file says: suspended or left; all else follows from the
// dates.
func (t *table) status(p *Person) Status {
	s := t.cell(colStatus)
	status, ok := parseStatus(s)
	today := t.rd.opts.Now.Format(dateLayout)
	switch {
	case !ok:
		t.fail("bad_status", colStatus, s)
	case status == StatusLeft && p.Left == "" && t.cell(colLeft) == "":
		t.fail("left_without_date", colLeft, "")
	case (status == StatusActive || status == StatusSuspended) && p.Left != "" && p.Left <= today:
		t.fail("active_with_left_date", colStatus, s, p.Left)
	}
	return status
}

func (t *table) mobile() string {
	s := t.number(colMobile)
	if s == "" {
		return ""
	}
	m, ok := parseMobile(s)
	if !ok {
		t.fail("bad_mobile", colMobile, s)
	}
	return m
}

// posts joins the single columns (unit, title, leader) with the list of others.
func (t *table) posts() []Post {
	var posts []Post
	order := t.order(colOrder)
	unit, title := t.key(colUnit), t.text(colTitle, maxNameLength)
	leader, ok := parseLeader(t.cell(colLeader))
	if !ok {
		t.fail("bad_leader", colLeader, t.cell(colLeader))
	}
	others, bad := parsePosts(t.cell(colPosts))
	for _, b := range bad {
		t.fail("bad_post", colPosts, b)
	}
	switch {
	case unit != "":
		posts = append(posts, Post{Unit: unit, Title: title, Main: true, Leader: leader, Order: order})
	case title != "" || leader != LeaderNone:
		t.fail("title_without_unit", colUnit, title)
	}
	for _, p := range others {
		if !cleanText(p.Title) {
			t.fail("bad_text", colPosts, strings.Map(visible, p.Title))
			p.Title = ""
		} else if n := utf8.RuneCountInString(p.Title); n > maxNameLength {
			t.fail("name_length", colPosts, p.Title, n, maxNameLength)
			p.Title = ""
		}
		posts = append(posts, p)
	}
	if len(posts) > maxPosts {
		t.fail("too_many_posts", colPosts, "", maxPosts)
		return nil
	}
	return mainFirst(posts)
}

// mainFirst puts the main post first; without a mark it is the first one.
func mainFirst(posts []Post) []Post {
	for i, p := range posts {
		if p.Main {
			copy(posts[1:i+1], posts[:i])
			posts[0] = p
			return posts
		}
	}
	if len(posts) > 0 {
		posts[0].Main = true
	}
	return posts
}

// joinHan takes the space out of names that were padded to a common width.
func joinHan(name string) string {
	for _, r := range name {
		if !unicode.Is(unicode.Han, r) && !unicode.IsSpace(r) {
			return name
		}
	}
	return strings.Join(strings.Fields(name), "")
}
