package sites_test

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
)

// TestOneCompanyOverThreeSites is the main story: the head office imports the company, and everybody is in the rooms on
// all sites; a message has one read list, a DING to everybody is confirmed from all sites; people move, leave, and a
// unit goes to another site.
func TestOneCompanyOverThreeSites(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "总部", "四川", "广东")
	c.start(3)
	hq, sc, gd := c.sites[0], c.sites[1], c.sites[2]
	c.imports(staff())
	all := everybody(staff())
	c.members("company", c.sites, all...)
	c.members("all-staff", c.sites, all...)
	c.members("unit:hq", []*site{hq}, "1001", "1002")
	c.members("unit:sales", []*site{hq}, "1003", "1004")
	c.members("unit:sc", []*site{sc}, "2001", "2002", "2003")
	c.members("unit:cd", []*site{sc}, "2003", "2001")
	c.members("unit:gd", []*site{gd}, "3001", "3002")
	c.quiet()
	c.homes(map[string]*site{"company": hq, "all-staff": hq, "unit:sales": hq, "unit:sc": sc, "unit:cd": sc, "unit:gd": gd, "site:四川": hq})

	c.readListAcross()
	c.dingAcross(all)

	// Somebody moves to a unit of another site: the account stays, the rooms change.
	imp := moved(staff(), "1004", "gd")
	c.imports(imp)
	c.members("unit:gd", []*site{hq, gd}, "3001", "3002", "1004")
	c.members("unit:sales", []*site{hq}, "1003")
	// Somebody leaves.
	imp = moved(staff(), "1004", "gd")
	for _, p := range imp.People {
		if p.ID == "2002" {
			p.Left = "2020-01-01"
		}
	}
	c.imports(imp)
	c.members("all-staff", c.sites, slices.DeleteFunc(slices.Clone(all), func(p string) bool { return p == "2002" })...)
	c.members("unit:sc", []*site{sc}, "2001", "2003")
	c.quiet()
	// A unit goes to another site: the room stays the same, and has another home.
	room := sc.room("unit:cd")
	eventually(t, "广东 knows the room", func() bool { r, ok := gd.Service().Rooms().Room("unit:cd"); return ok && r == room })
	for _, u := range imp.Units {
		if u.ID == "cd" {
			u.Site, u.OwnSite, u.Name = "广东", true, "成都中心"
		}
	}
	c.imports(imp)
	eventually(t, "广东 looks after 成都办", func() bool {
		r, ok := gd.Service().Rooms().Room("unit:cd")
		return ok && r == room && c.name(gd, "unit:cd") == "成都中心"
	})
	c.members("unit:cd", []*site{sc, gd}, "2003", "2001")
	c.quiet()
	for _, s := range c.sites {
		eventually(t, "looking at the homeserver finds nothing to mend at "+s.Name, func() bool { return s.run(true) == 0 })
	}
}

// name is what a room is called, as a site sees it.
func (c *company) name(s *site, key string) string {
	return c.state(s, key, "m.room.name", "").Get("name").Str
}

func (c *company) state(s *site, key, typ, stateKey string) gjson.Result {
	c.t.Helper()
	a := s.HS.Do(s.Reg.ASToken, "GET", "/_matrix/client/v3/rooms/"+url.PathEscape(string(s.room(key)))+"/state/"+typ+"/"+url.PathEscape(stateKey), nil)
	return gjson.ParseBytes(a.Body)
}

// homes asserts who made which rooms, and that the bots of all sites are creators.
func (c *company) homes(want map[string]*site) {
	c.t.Helper()
	for key, s := range want {
		room := s.room(key)
		a := s.HS.Do(s.Reg.ASToken, "GET", "/_matrix/client/v3/rooms/"+url.PathEscape(string(room))+"/state", nil)
		create := gjson.ParseBytes(a.Body).Get(`#(type=="m.room.create")`)
		if create.Get("sender").Str != string(s.Service().Client().BotID()) {
			c.t.Errorf("%s was made by %s, not at %s", key, create.Get("sender"), s.Name)
		}
		if n := create.Get("content.additional_creators.#").Int(); n != int64(len(c.sites)-1) || create.Get("content.room_version").Str != "12" {
			c.t.Errorf("%s: %s", key, create.Get("content"))
		}
		for _, o := range c.sites {
			if r, ok := o.Service().Rooms().Room(key); ok && r != room {
				c.t.Errorf("%s is %s at %s and %s at %s", key, room, s.Name, r, o.Name)
			}
		}
	}
}

// readListAcross: somebody of the head office writes to everybody, two of other sites read it.
func (c *company) readListAcross() {
	c.t.Helper()
	room := c.sites[0].room("all-staff")
	ev := c.say("1001", room, "各位同事，明天开会")
	c.reads("2003", room, ev)
	c.reads("3001", room, ev)
	path := "/messages/" + url.PathEscape(string(room)) + "/" + url.PathEscape(string(ev)) + "/readers"
	var page gjson.Result
	eventually(c.t, "the receipts of other sites", func() bool {
		_, page = c.api("1001", "GET", path, nil)
		return page.Get("total_read").Int() == 2
	})
	if n := page.Get("total_unread").Int(); n != 6 {
		c.t.Errorf("%d have not read it, want 6: %s", n, page.Raw)
	}
	for _, want := range []string{"周成都", "吴广"} {
		if !page.Get(`readers.#(person.name=="` + want + `")`).Exists() {
			c.t.Errorf("%s is not among the readers: %s", want, page.Raw)
		}
	}
	for _, s := range []string{"四川", "广东"} {
		if lag := page.Get("lag_by_site." + s); !lag.Exists() || lag.Get("behind_ms").Int() > 60_000 {
			c.t.Errorf("the lag of %s: %s", s, page.Raw)
		}
	}
	if page.Get("lag_by_site.总部").Exists() {
		c.t.Errorf("the own site has a lag: %s", page.Raw)
	}
	// Who is no manager and did not write it sees figures only, at the other site too.
	other := "/messages/" + url.PathEscape(string(room)) + "/" + url.PathEscape(string(ev)) + "/readers"
	eventually(c.t, "the figures at the other site", func() bool {
		_, out := c.api("2003", "GET", other+"?counts=true", nil)
		return out.Get("total_read").Int() >= 1
	})
	if code, out := c.api("2003", "GET", other, nil); code != 403 {
		c.t.Errorf("a member of another site sees names: %d %s", code, out.Raw)
	}
}

// dingAcross: a DING to everybody, confirmed from every site.
func (c *company) dingAcross(all []string) {
	c.t.Helper()
	made := c.must("1001", "POST", "/dings", map[string]any{"uuid": "all", "body": "马上到会议室", "receivers": map[string]any{"everybody": true}})
	id := made.Get("id").Str
	receivers := slices.DeleteFunc(slices.Clone(all), func(p string) bool { return p == "1001" })
	for _, p := range receivers {
		c.confirms(p, id)
	}
	var out gjson.Result
	eventually(c.t, "all have confirmed", func() bool {
		out = c.must("1001", "GET", "/dings/"+id, nil)
		return out.Get("state").Str == "confirmed"
	})
	if n := out.Get("counts.confirmed").Int(); n != int64(len(receivers)) {
		c.t.Errorf("%d have confirmed: %s", n, out.Raw)
	}
	for s, n := range map[string]int64{"总部": 3, "四川": 3, "广东": 2} {
		site := out.Get(`sites.#(site=="` + s + `")`)
		if site.Get("total").Int() != n || site.Get("confirmed").Int() != n || site.Get("waiting").Int() != 0 {
			c.t.Errorf("%s: %s", s, site.Raw)
		}
	}
	for _, p := range receivers {
		if events, retracted := c.dings(p, id); len(events) != 1 || retracted != 0 {
			c.t.Errorf("%s has the DING %d times, %d retracted", p, len(events), retracted)
		}
	}
	// The card says it by site.
	eventually(c.t, "the card says how it stands at each site", func() bool {
		for _, ev := range c.said("1001") {
			body := ev.Get("content.m\\.new_content.body").Str
			if contains(body, "四川: 3: 3 confirmed", "广东: 2: 2 confirmed", "总部: 3: 3 confirmed") {
				return true
			}
		}
		return false
	})
	// The receivers see it at their site, others do not; its site alone recalls it.
	if out := c.must("2003", "GET", "/dings/"+id, nil); out.Get("mine.state").Str != "confirmed" || out.Get("site").Str != "总部" || out.Get("deliveries").Exists() {
		c.t.Errorf("a receiver of another site sees %s", out.Raw)
	}
	if list := c.must("2003", "GET", "/dings?box=received", nil); list.Get("dings.0.id").Str != id {
		c.t.Errorf("the received DINGs at the other site: %s", list.Raw)
	}
	if code, out := c.api("2003", "POST", "/dings/"+id+"/recall", nil); code != 403 {
		c.t.Errorf("a receiver recalls it: %d %s", code, out.Raw)
	}
	only := c.must("1001", "POST", "/dings", map[string]any{"body": "只给你", "receivers": map[string]any{"persons": []string{"2001"}}}).Get("id").Str
	c.confirms("2001", only)
	if code, out := c.api("2003", "GET", "/dings/"+only, nil); code != 404 {
		c.t.Errorf("somebody else of the site sees it: %d %s", code, out.Raw)
	}
}

func contains(s string, parts ...string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}
