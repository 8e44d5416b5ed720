package org

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// maxListed is how many absent names and remarks of a kind a text shows.
const maxListed = 20

// WriteText writes the plan for people to read, in English or Chinese.
func (p *Plan) WriteText(w io.Writer, lang Lang) error {
	b := bufio.NewWriter(w)
	zh := lang == Chinese
	if p.Empty() {
		fmt.Fprintln(b, pick(zh, "没有需要更改的内容。", "Nothing to change."))
	} else {
		fmt.Fprint(b, pick(zh, "将更改：", "Changes: "))
		p.writeSummary(b, zh)
		for _, kind := range changeKinds() {
			p.writeKind(b, kind, zh)
		}
	}
	p.writeAbsent(b, zh)
	p.writeRemarks(b, lang)
	return b.Flush()
}

func (p *Plan) writeSummary(b *bufio.Writer, zh bool) {
	var parts []string
	for _, kind := range changeKinds() {
		if n := p.Count(kind); n > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", kindText(kind, zh), n))
		}
	}
	fmt.Fprintln(b, strings.Join(parts, pick(zh, "，", ", ")))
}

func (p *Plan) writeKind(b *bufio.Writer, kind ChangeKind, zh bool) {
	n := p.Count(kind)
	if n == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s (%d)\n", kindText(kind, zh), n)
	for _, c := range p.Changes {
		if c.Kind != kind {
			continue
		}
		fmt.Fprintf(b, "  %s %s", c.ID, c.Name)
		switch kind {
		case UnitNew, UnitRestored:
			fmt.Fprint(b, p.newUnitText(c.ID, zh))
		case PersonNew:
			fmt.Fprint(b, p.newPersonText(c.ID, zh))
		}
		fmt.Fprintln(b)
		if kind == UnitNew || kind == UnitRestored || kind == PersonNew {
			continue
		}
		for _, f := range c.Fields {
			fmt.Fprintf(b, "      %s: %s → %s\n", fieldText(f.Field, zh), shown(f, f.Old, zh), shown(f, f.New, zh))
		}
	}
}

// newUnitText tells where a new unit stands.
func (p *Plan) newUnitText(id string, zh bool) string {
	var names []string
	for _, u := range p.next.Path(id) {
		names = append(names, u.Name)
	}
	s := "  " + strings.Join(names, " / ")
	if u := p.next.Unit(id); u.Site != "" {
		s += pick(zh, "（"+u.Site+"）", " ("+u.Site+")")
	}
	return s
}

// newPersonText tells where a new person works and how they log in.
func (p *Plan) newPersonText(id string, zh bool) string {
	person := p.next.Person(id)
	s := "  " + pick(zh, "登录名 ", "log-in ") + person.Localpart
	for i, post := range person.Posts {
		name := post.Unit
		if u := p.next.Unit(post.Unit); u != nil {
			name = u.Name
		}
		if post.Title != "" {
			name += " " + post.Title
		}
		s += pick(i == 0, "  ", pick(zh, "；", "; ")) + name
	}
	if person.Status != StatusActive {
		s += "  [" + statusText(string(person.Status), zh) + "]"
	}
	return s
}

func (p *Plan) writeAbsent(b *bufio.Writer, zh bool) {
	list := func(title string, ids []string, name func(id string) string) {
		if len(ids) == 0 {
			return
		}
		fmt.Fprintf(b, "\n%s (%d)\n", title, len(ids))
		for _, id := range ids[:min(len(ids), maxListed)] {
			fmt.Fprintf(b, "  %s %s\n", id, name(id))
		}
		if rest := len(ids) - maxListed; rest > 0 {
			fmt.Fprintf(b, pick(zh, "  …另有 %d 个\n", "  … and %d more\n"), rest)
		}
	}
	list(pick(zh, "文件中没有的部门，保持不变", "Units not in the file, left as they are"), p.AbsentUnits,
		func(id string) string { return p.cur.Unit(id).Name })
	list(pick(zh, "文件中没有的人员，保持不变", "People not in the file, left as they are"), p.AbsentPeople,
		func(id string) string { return p.cur.Person(id).Name })
}

func (p *Plan) writeRemarks(b *bufio.Writer, lang Lang) {
	if len(p.Remarks) == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s (%d)\n", pick(lang == Chinese, "提示", "Remarks"), len(p.Remarks))
	for _, r := range p.Remarks[:min(len(p.Remarks), maxListed)] {
		fmt.Fprintf(b, "  %s\n", r.Text(lang))
	}
	if rest := len(p.Remarks) - maxListed; rest > 0 {
		fmt.Fprintf(b, pick(lang == Chinese, "  …另有 %d 条\n", "  … and %d more\n"), rest)
	}
}

func pick(first bool, a, b string) string {
	if first {
		return a
	}
	return b
}

func kindText(kind ChangeKind, zh bool) string {
	switch kind {
	case UnitNew:
		return pick(zh, "新增部门", "new units")
	case UnitRestored:
		return pick(zh, "恢复部门", "restored units")
	case UnitMoved:
		return pick(zh, "移动部门", "moved units")
	case UnitRenamed:
		return pick(zh, "部门改名", "renamed units")
	case UnitChanged:
		return pick(zh, "修改部门", "changed units")
	case UnitRemoved:
		return pick(zh, "删除部门", "removed units")
	case PersonNew:
		return pick(zh, "新增人员", "new people")
	case PersonReturned:
		return pick(zh, "返聘人员", "people who return")
	case PersonMoved:
		return pick(zh, "调动人员", "moved people")
	case PersonChanged:
		return pick(zh, "修改人员", "changed people")
	case PersonLeft:
		return pick(zh, "离职人员", "people who leave")
	}
	return string(kind)
}

func fieldText(field string, zh bool) string {
	if !zh {
		return field
	}
	switch field {
	case "name":
		return "名称"
	case "parent":
		return "上级部门"
	case "code":
		return "代码"
	case "order":
		return "排序"
	case "site":
		return "地点"
	case "own_site":
		return "单独指定地点"
	case "manager":
		return "负责人/直属上级"
	case "contain_sub":
		return "群含下级"
	case "no_room":
		return "不建群"
	case "login":
		return "登录名"
	case "mobile":
		return "手机"
	case "email":
		return "邮箱"
	case "posts":
		return "任职"
	case "hired":
		return "入职日期"
	case "left":
		return "离职日期"
	case "status":
		return "状态"
	case "admin":
		return "管理员"
	}
	return field
}

// shown is a field's value as people read it.
func shown(f FieldChange, value string, zh bool) string {
	switch {
	case value == "" && (f.Field == "admin" || f.Field == "no_room" || f.Field == "contain_sub" || f.Field == "own_site"):
		return pick(zh, "否", "no")
	case value == "":
		return pick(zh, "（空）", "(none)")
	case value == "yes":
		return pick(zh, "是", "yes")
	case f.Field == "status":
		return statusText(value, zh)
	}
	return value
}

func statusText(s string, zh bool) string {
	if !zh {
		return s
	}
	switch Status(s) {
	case StatusInvited:
		return "待入职"
	case StatusActive:
		return "在职"
	case StatusSuspended:
		return "停用"
	case StatusLeft:
		return "离职"
	}
	return s
}
