package org

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Generate makes a company for load tests: the same arguments give the same
// company. Units form a tree of four levels under one root, spread over the
// sites; every unit has a manager from among its people while there are enough.
func Generate(seed, people, units, sites int) *Import {
	g := &generator{
		rng: rand.New(rand.NewPCG(uint64(seed), 0x9e3779b97f4a7c15)), //nolint:gosec // names for tests
		imp: &Import{HasUnits: true, HasPeople: true},
	}
	g.units(max(units, 1), max(sites, 1))
	g.people(max(people, 0))
	return g.imp
}

type generator struct {
	rng *rand.Rand
	imp *Import
}

// units makes the root, one branch a site, and departments with sections.
func (g *generator) units(n, sites int) {
	sites = min(sites, max(n-1, 1))
	g.imp.Units = append(g.imp.Units, &Unit{ID: "u0", Name: "集团", Order: 1, Site: siteName(0), OwnSite: true})
	var branches []*Unit
	for i := 0; i < sites && len(g.imp.Units) < n; i++ {
		u := g.unit("u0", siteName(i)+"分公司", i+1)
		u.Site, u.OwnSite, u.ContainSub = siteName(i), true, true
		branches = append(branches, u)
	}
	kinds := []string{"销售", "客服", "研发", "财务", "人力", "采购", "物流", "质量", "法务", "工程", "市场", "安全"}
	var departments []*Unit
	departmentCount := (n - len(g.imp.Units) + 4) / 5
	for i := 0; i < departmentCount && len(g.imp.Units) < n; i++ {
		b := branches[i%len(branches)]
		turn := i / len(branches)
		name := kinds[turn%len(kinds)] + "部"
		if turn >= len(kinds) {
			name += fmt.Sprint(turn/len(kinds) + 1)
		}
		u := g.unit(b.ID, name, turn+1)
		departments = append(departments, u)
	}
	for i := 0; len(g.imp.Units) < n; i++ {
		d := departments[i%len(departments)]
		g.unit(d.ID, fmt.Sprintf("%s%d组", d.Name[:len(d.Name)-len("部")], i/len(departments)+1), i/len(departments)+1)
	}
}

func (g *generator) unit(parent, name string, order int) *Unit {
	id := fmt.Sprintf("u%d", len(g.imp.Units))
	u := &Unit{ID: id, ParentID: parent, Name: name, Code: "C" + id[1:], Order: order}
	g.imp.Units = append(g.imp.Units, u)
	return u
}

// people spreads n people over the units; the first of a unit manages it.
func (g *generator) people(n int) {
	units := g.imp.Units
	day := time.Date(2005, 1, 3, 0, 0, 0, 0, time.UTC)
	managerOf := map[string]string{}
	titles := []string{"专员", "工程师", "主管", "助理", "顾问"}
	for i := range n {
		u := units[i%len(units)]
		p := &Person{
			ID:     fmt.Sprintf("E%06d", i+1),
			Name:   g.name(),
			Mobile: fmt.Sprintf("+86139%08d", i),
			Email:  fmt.Sprintf("e%06d@example.com", i+1),
			Hired:  day.AddDate(0, 0, g.rng.IntN(7000)).Format(dateLayout),
			Posts:  []Post{{Unit: u.ID, Title: titles[g.rng.IntN(len(titles))], Main: true, Order: i/len(units) + 1}},
			Admin:  i == 0,
		}
		switch {
		case i < len(units):
			managerOf[u.ID] = p.ID
			u.Managers = []string{p.ID}
			p.Posts[0].Title, p.Posts[0].Leader = "经理", LeaderMain
			p.Manager = managerOf[u.ParentID]
		default:
			p.Manager = managerOf[u.ID]
			// One in fifty works in two units.
			if other := units[g.rng.IntN(len(units))]; g.rng.IntN(50) == 0 && other != u {
				p.Posts = append(p.Posts, Post{Unit: other.ID, Title: "兼职" + titles[g.rng.IntN(len(titles))]})
			}
		}
		g.imp.People = append(g.imp.People, p)
	}
}

func (g *generator) name() string {
	family := []rune("王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈")
	given := []rune("伟芳娜敏静丽强磊军洋勇艳杰娟涛明超秀霞平刚桂英华玉兰红飞玲建国文斌宇浩凯宁健俊帆雪莹婷琳晨阳佳慧鑫博瑞")
	name := string(family[g.rng.IntN(len(family))]) + string(given[g.rng.IntN(len(given))])
	if g.rng.IntN(3) > 0 {
		name += string(given[g.rng.IntN(len(given))])
	}
	return name
}

func siteName(i int) string {
	names := []string{
		"北京", "上海", "广州", "成都", "杭州", "武汉", "西安", "南京", "沈阳", "济南", "长沙", "郑州", "昆明", "福州", "合肥",
		"南昌", "贵阳", "太原", "兰州", "南宁",
	}
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("%s%d", names[i%len(names)], i/len(names)+1)
}
