package org

import (
	"strings"

	"golang.org/x/text/width"
)

// col is a column of one of the two sheets.
type col uint8

const (
	colUnitID col = iota
	colUnitParent
	colUnitName
	colUnitCode
	colUnitOrder
	colUnitSite
	colUnitManager
	colUnitContainSub
	colUnitRoom

	colID
	colName
	colMobile
	colEmail
	colUnit
	colTitle
	colLeader
	colPosts
	colOrder
	colManager
	colHired
	colLeft
	colStatus
	colAdmin
)

// sheetKind is one of the two sheets of an org file.
type sheetKind uint8

const (
	sheetNone sheetKind = iota
	sheetUnits
	sheetPeople
)

// columnDef describes a column: its canonical English header, the Chinese one
// of the template, and what else it is called in the files of personnel systems.
type columnDef struct {
	col      col
	key, zh  string
	also     []string
	required bool
}

func columnsOf(kind sheetKind) []columnDef {
	switch kind {
	case sheetUnits:
		return unitColumns()
	case sheetPeople:
		return peopleColumns()
	default:
		return nil
	}
}

func unitColumns() []columnDef {
	return []columnDef{
		{colUnitID, "id", "部门编号", []string{"unit_id", "unit", "dept_id", "department_id", "部门ID", "部门标识", "编号", "组织编号"}, true},
		{colUnitParent, "parent", "上级部门", []string{"parent_id", "parent_unit", "上级部门编号", "上级编号", "上级", "父部门", "上级部门ID"}, false},
		{colUnitName, "name", "部门名称", []string{"unit_name", "dept_name", "department", "department_name", "名称", "部门"}, true},
		{colUnitCode, "code", "部门代码", []string{"unit_code", "dept_code", "代码", "简码"}, false},
		{colUnitOrder, "order", "排序", []string{"sort", "position", "顺序", "序号"}, false},
		{colUnitSite, "site", "地点", []string{"location", "office", "站点", "所在地", "驻地", "分公司"}, false},
		{colUnitManager, "manager", "负责人", []string{"managers", "head", "leader", "部门负责人", "主管", "部门主管", "负责人工号"}, false},
		{colUnitContainSub, "contain_sub", "群含下级", []string{"contain_sub_units", "include_sub", "with_sub", "包含下级", "含下级", "包含子部门"}, false},
		{colUnitRoom, "room", "建群", []string{"has_room", "create_room", "group", "建部门群", "部门群"}, false},
	}
}

func peopleColumns() []columnDef {
	return []columnDef{
		{colID, "job_number", "工号", []string{"id", "employee_id", "employee_number", "staff_id", "person_id", "员工号", "员工编号", "人员编号"}, true},
		{colName, "name", "姓名", []string{"real_name", "full_name", "真实姓名", "员工姓名"}, true},
		{colMobile, "mobile", "手机", []string{"mobile_phone", "phone", "cell", "手机号", "手机号码", "移动电话"}, false},
		{colEmail, "email", "邮箱", []string{"mail", "e_mail", "电子邮箱", "电子邮件", "邮件"}, false},
		{colUnit, "unit", "部门", []string{"unit_id", "dept", "department", "dept_id", "department_id", "部门编号", "所属部门", "主部门"}, false},
		{colTitle, "title", "职务", []string{"job_title", "position", "post", "职位", "岗位"}, false},
		{colLeader, "leader", "正副职", []string{"leads", "领导", "是否负责人", "正副"}, false},
		{colPosts, "posts", "兼职", []string{"other_posts", "more_posts", "任职", "兼任", "岗位列表", "其他岗位"}, false},
		{colOrder, "order", "排序", []string{"sort", "顺序", "部门内排序"}, false},
		{colManager, "manager", "直属上级", []string{"line_manager", "manager_id", "reports_to", "直接上级", "直属主管", "直接主管", "上级工号"}, false},
		{colHired, "hired", "入职日期", []string{"hired_at", "hire_date", "start_date", "入职时间", "入职"}, false},
		{colLeft, "left", "离职日期", []string{"left_at", "leave_date", "end_date", "离职时间", "离职"}, false},
		{colStatus, "status", "状态", []string{"state", "人员状态", "员工状态", "在职状态"}, false},
		{colAdmin, "admin", "管理员", []string{"administrator", "is_admin", "系统管理员"}, false},
	}
}

// columnKey is the canonical header of a column.
func columnKey(c col) string {
	kind := sheetUnits
	if c >= colID {
		kind = sheetPeople
	}
	for _, d := range columnsOf(kind) {
		if d.col == c {
			return d.key
		}
	}
	return ""
}

// normalHeader makes "Job Number *", "job-number" and "JOB_NUMBER" one.
func normalHeader(s string) string {
	s = strings.ToLower(width.Fold.String(s))
	return strings.Map(func(r rune) rune {
		switch r {
		case ' ', '\t', '\n', '\r', '_', '-', '*', '.', '\u00a0', '\u3000', '\ufeff', '：', ':':
			return -1
		}
		return r
	}, s)
}

// headerNames maps normalised headers to the columns of a sheet.
func headerNames(kind sheetKind) map[string]col {
	names := map[string]col{}
	for _, d := range columnsOf(kind) {
		names[normalHeader(d.key)] = d.col
		names[normalHeader(d.zh)] = d.col
		for _, a := range d.also {
			names[normalHeader(a)] = d.col
		}
	}
	return names
}

// matchHeader finds the column of a header. Headers in two languages
// ("工号/job_number", "工号 (必填)") are found by their parts.
func matchHeader(names map[string]col, header string) (col, bool) {
	if c, ok := names[normalHeader(header)]; ok {
		return c, true
	}
	parts := strings.FieldsFunc(width.Fold.String(header), func(r rune) bool {
		return r == '/' || r == '(' || r == ')' || r == '|' || r == '\n'
	})
	for _, p := range parts {
		if c, ok := names[normalHeader(p)]; ok {
			return c, true
		}
	}
	return 0, false
}

// kindByName knows a sheet or a file by its name.
func kindByName(name string) sheetKind {
	switch normalHeader(name) {
	case "units", "unit", "departments", "department", "depts", "dept", "部门", "部门表", "组织", "组织架构", "机构":
		return sheetUnits
	case "people", "person", "persons", "staff", "employees", "employee", "人员", "人员表", "员工", "员工表", "花名册":
		return sheetPeople
	}
	return sheetNone
}

// kindByHeader knows a sheet by its columns: only people have a job number.
func kindByHeader(header []string) sheetKind {
	people, units := headerNames(sheetPeople), headerNames(sheetUnits)
	var jobNumber, mobile, parent, id, name bool
	for _, h := range header {
		if c, ok := matchHeader(people, h); ok {
			jobNumber = jobNumber || c == colID && normalHeader(h) != "id"
			mobile = mobile || c == colMobile || c == colEmail || c == colHired
		}
		if c, ok := matchHeader(units, h); ok {
			parent = parent || c == colUnitParent
			id = id || c == colUnitID
			name = name || c == colUnitName
		}
	}
	switch {
	case jobNumber || mobile:
		return sheetPeople
	case parent || id && name:
		return sheetUnits
	}
	return sheetNone
}
