package org

import "io"

// WriteTemplate writes an empty org file to fill in, with a few example rows and
// an explanation of each column: FormatCSV (a zip) or FormatXLSX.
func WriteTemplate(w io.Writer, format string) error {
	return templateExample().write(w, format, templateHelp())
}

// templateExample is a company small enough to be deleted by hand.
func templateExample() *Import {
	return &Import{
		HasUnits: true, HasPeople: true,
		Units: []*Unit{
			{ID: "hq", Name: "示例公司", Order: 1, Site: "北京", OwnSite: true, Managers: []string{"1001"}, ContainSub: true},
			{ID: "rd", ParentID: "hq", Name: "研发部", Code: "RD", Order: 1, Managers: []string{"1002"}},
			{ID: "hr", ParentID: "hq", Name: "人力资源部", Code: "HR", Order: 2},
		},
		People: []*Person{
			{
				ID: "1001", Name: "王建国", Mobile: "+8613800000001", Email: "wangjg@example.com", Hired: "2015-03-01", Admin: true,
				Posts: []Post{{Unit: "hq", Title: "总经理", Main: true, Leader: LeaderMain, Order: 1}},
			},
			{
				ID: "1002", Name: "李敏", Mobile: "+8613800000002", Email: "limin@example.com", Hired: "2018-07-16", Manager: "1001",
				Posts: []Post{{Unit: "rd", Title: "研发经理", Main: true, Leader: LeaderMain, Order: 1}},
			},
			{
				ID: "1003", Name: "张伟", Mobile: "+8613800000003", Hired: "2021-04-06", Manager: "1002",
				Posts: []Post{
					{Unit: "rd", Title: "工程师", Main: true, Order: 2},
					{Unit: "hr", Title: "招聘面试官"},
				},
			},
		},
	}
}

// templateHelp explains every column in both languages.
func templateHelp() [][]string {
	rows := [][]string{{"工作表 Sheet", "列 Column", "说明", "Explanation"}}
	for _, kind := range []sheetKind{sheetUnits, sheetPeople} {
		title := pick(kind == sheetUnits, unitsTitle+" units", peopleTitle+" people")
		for _, d := range columnsOf(kind) {
			zh, en := columnHelp(d.col)
			if d.required {
				zh, en = "必填。"+zh, "Required. "+en
			}
			rows = append(rows, []string{title, d.zh + "/" + d.key, zh, en})
		}
	}
	return append(
		rows,
		[]string{""},
		[]string{"", "", "示例行请在填写前删除；以 # 开头的行不会导入。", "Delete the example rows first; rows that begin with # are left out."},
		[]string{"", "", "不含某一列时，已有数据保持不变；含该列但单元格为空时，数据会被清空。", "A column that is missing leaves stored values alone; an empty cell clears them."},
		[]string{"", "", "文件有任何错误时不会做任何更改；请先用 --plan 查看变化。", "A file with errors changes nothing; look at the changes with --plan first."},
	)
}

func columnHelp(c col) (zh, en string) {
	switch c {
	case colUnitID:
		return "部门的唯一编号，长期不变；字母、数字、点、横线。", "The unit's own id, never changed; letters, digits, dot, hyphen."
	case colUnitParent:
		return "上级部门的编号；顶级部门留空。", "The id of the unit above; empty for the top."
	case colUnitName:
		return "1 到 64 个字符；同一上级下不能重名。", "1 to 64 characters; one name once under one parent."
	case colUnitCode:
		return "部门代码，用作群的地址；可留空。", "A short code, used in the room's address; may be empty."
	case colUnitOrder:
		return "同级部门的显示顺序。", "Sorts the units under one parent."
	case colUnitSite:
		return "所在城市或分公司；留空则同上级部门。", "The city or branch; empty: as the unit above."
	case colUnitManager:
		return "负责人的工号，多人用分号隔开，第一人为群主；空缺时留空。", "Job numbers of the managers, cut by semicolons, the first owns the room; empty while vacant."
	case colUnitContainSub:
		return "是：部门群包含所有下级部门的人员。", "yes: the room holds the people of all units below too."
	case colUnitRoom:
		return "否：不为该部门建群。", "no: the unit gets no room."
	case colID:
		return "人员的唯一编号，长期不变，离职后也不再给他人。", "The person's own number, never changed and never given to another."
	case colName:
		return "真实姓名，1 到 64 个字符。", "The real name, 1 to 64 characters."
	case colMobile:
		return "11 位手机号，或以 + 和国家码开头；不能与他人重复。", "11 digits, or + and country code; nobody else's."
	case colEmail:
		return "不能与他人重复。", "Nobody else's."
	case colUnit:
		return "主任职的部门编号或代码。", "The id or code of the main post's unit."
	case colTitle:
		return "主任职的职务。", "The title of the main post."
	case colLeader:
		return "正职、副职或留空。", "main, deputy or empty."
	case colPosts:
		return "其他任职：部门编号:职务[:副职]，多个用分号隔开。", "Further posts: unit:title[:deputy], cut by semicolons."
	case colOrder:
		return "在部门内的显示顺序。", "Sorts the people of a unit."
	case colManager:
		return "直属上级的工号。", "The line manager's job number."
	case colHired:
		return "如 2024-03-01；晚于今天则到期自动入职。", "As 2024-03-01; a later day begins by itself."
	case colLeft:
		return "自该日起离职，账号锁定；在职人员留空。", "From this day on the person is gone and locked; empty for those who stay."
	case colStatus:
		return "在职、停用、离职；留空则按日期判断。", "active, suspended, left; empty: by the dates."
	case colAdmin:
		return "是：系统管理员。", "yes: administers the system."
	}
	return "", ""
}

// DemoCompany is a company of some 60 people to try things with: a head office in
// Beijing and provincial offices in Chengdu and Hangzhou, with a deputy, people
// in two units, a vacant place and a leaver. Useful to know: D1001 林海 is the
// administrator, D1010 周敏 heads the development department, D1013 陈晨 is an
// employee in it.
func DemoCompany() *Import {
	imp, problems := readDemo()
	if len(problems) > 0 {
		// The files are part of the program; a test reads them.
		panic("org: the demo company is broken:\n" + problems.Error())
	}
	return imp
}
