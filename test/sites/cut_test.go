package sites_test

import (
	"net/url"
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"
)

// TestACutLink cuts the link between two sites while people move, leave and are DINGed. Each site goes on alone, and
// when the link is back both come to the same.
func TestACutLink(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "总部", "四川")
	c.start(2)
	hq, sc := c.sites[0], c.sites[1]
	imp := staff()
	c.imports(imp)
	all := everybody(imp)
	c.members("all-staff", c.sites, all...)
	c.members("unit:gd", []*site{hq}, "3001", "3002") // no site of that name: the head office's
	c.members("unit:sc", []*site{sc}, "2001", "2002", "2003")
	c.quiet()

	before := c.ding("1001", "断线前", "2001", "1002")
	c.confirms("1002", before)
	eventually(t, "四川 has the first DING", func() bool { events, _ := c.dings("2001", before); return len(events) == 1 })

	c.cut()
	// At the head office: somebody moves to 四川's unit, somebody of 四川 leaves the company, a DING goes out, one is
	// recalled, one waits.
	imp = moved(staff(), "1004", "sc")
	for _, p := range imp.People {
		if p.ID == "2002" {
			p.Left = "2020-01-01"
		}
	}
	c.imports(imp)
	c.members("unit:sales", []*site{hq}, "1003")
	during := c.ding("1001", "断线时", "2001", "2003", "1003")
	c.confirms("1003", during)
	recalled := c.ding("1001", "收回的", "2001", "1003")
	eventually(t, "the head office's own receiver has it", func() bool { events, _ := c.dings("1003", recalled); return len(events) == 1 })
	c.must("1001", "POST", "/dings/"+recalled+"/recall", nil)
	out := c.must("1001", "GET", "/dings/"+during, nil)
	if w := out.Get(`sites.#(site=="四川").waiting`).Int(); w != 2 || out.Get("counts.failed").Int() != 0 || out.Get("state").Str != "open" {
		t.Errorf("while the link is cut: %s", out.Raw)
	}
	eventually(t, "the lag of 四川 grows", func() bool {
		return c.must("1001", "GET", "/dings/"+during, nil).Get(`sites.#(site=="四川").behind_ms`).Int() > 3000
	})
	// The home removes who should be gone though the person's own site does not hear of it.
	c.members("all-staff", []*site{hq}, slices.DeleteFunc(slices.Clone(all), func(p string) bool { return p == "2002" })...)
	// At 四川 people go on talking and confirm what they have.
	c.confirms("2001", before)
	c.say("2001", sc.room("unit:sc"), "自己先聊")
	if got := sc.joined("unit:sc"); !slices.Equal(got, []string{"2001", "2002", "2003"}) {
		t.Errorf("cut off, 四川 has %v", got)
	}

	c.heal()
	c.members("unit:sc", c.sites, "1004", "2001", "2003")
	c.members("all-staff", c.sites, slices.DeleteFunc(slices.Clone(all), func(p string) bool { return p == "2002" })...)
	for _, p := range []string{"2001", "2003"} {
		c.confirms(p, during)
	}
	for _, ding := range []string{before, during} {
		eventually(t, "all have confirmed", func() bool { return c.must("1001", "GET", "/dings/"+ding, nil).Get("state").Str == "confirmed" })
	}
	if events, _ := c.dings("2001", recalled); len(events) != 0 {
		t.Errorf("a recalled DING was delivered: %v", events)
	}
	eventually(t, "the recalled DING has reached nobody at 四川", func() bool {
		out := c.must("1001", "GET", "/dings/"+recalled, nil)
		return out.Get(`sites.#(site=="四川").recalled`).Int() == 1 && out.Get("counts.went_out").Int() == 1
	})
	for _, p := range []string{"2001", "2003"} {
		if events, _ := c.dings(p, during); len(events) != 1 {
			t.Errorf("%s has the DING %d times", p, len(events))
		}
	}
	c.quiet()
}

// TestConfirmationsAfterTheEnd: what was confirmed in time and is heard of after the end counts; what was recalled while
// it stood in a room is retracted there; a service that dies in between loses nothing.
func TestConfirmationsAfterTheEnd(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "总部", "四川")
	c.start(2)
	hq, sc := c.sites[0], c.sites[1]
	c.imports(staff())
	c.members("unit:sc", []*site{sc}, "2001", "2002", "2003")
	c.members("company", c.sites, everybody(staff())...)
	ding := c.ding("1001", "收到请回", "2001", "2002")
	for _, p := range []string{"2001", "2002"} {
		eventually(t, p+" has it", func() bool { events, _ := c.dings(p, ding); return len(events) == 1 })
	}
	eventually(t, "the head office knows that it is out", func() bool {
		return c.must("1001", "GET", "/dings/"+ding, nil).Get(`sites.#(site=="四川").sent`).Int() == 2
	})
	c.cut()
	c.confirms("2001", ding)
	eventually(t, "四川 has the confirmation", func() bool {
		return c.must("2001", "GET", "/dings/"+ding, nil).Get("mine.state").Str == "confirmed"
	})
	c.must("1001", "POST", "/dings/"+ding+"/recall", nil)
	c.confirmsLate("2002", ding)
	sc.End()
	hq.End()
	hq.start(2)
	sc.start(2)
	c.heal()
	eventually(t, "it is retracted", func() bool { _, retracted := c.dings("2002", ding); return retracted == 1 })
	eventually(t, "the confirmation in time counts", func() bool {
		out := c.must("1001", "GET", "/dings/"+ding, nil)
		return out.Get("counts.confirmed").Int()+out.Get("counts.late").Int() >= 1 &&
			out.Get(`deliveries.#(person.id=="2001").state`).Str == "confirmed" && !out.Get(`deliveries.#(person.id=="2001").late`).Bool()
	})
	// A second confirmation changes nothing.
	c.confirmsLate("2001", ding)
	if out := c.must("1001", "GET", "/dings/"+ding, nil); out.Get("state").Str != "recalled" {
		t.Errorf("the DING is %s", out.Get("state"))
	}
}

// TestUnitsUnreadAndTimes: DINGs to a unit with all below, to those who have not read a message, and later, over sites.
func TestUnitsUnreadAndTimes(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "总部", "四川")
	c.start(2)
	hq, sc := c.sites[0], c.sites[1]
	c.imports(staff())
	c.members("all-staff", c.sites, everybody(staff())...)
	c.members("unit:sc", []*site{sc}, "2001", "2002", "2003")
	unit := c.must("1001", "POST", "/dings", map[string]any{"body": "四川各位", "receivers": map[string]any{"units": []string{"sc"}}}).Get("id").Str
	for _, p := range []string{"2001", "2002", "2003"} {
		c.confirms(p, unit)
	}
	eventually(t, "all of the unit have confirmed", func() bool { return c.must("1001", "GET", "/dings/"+unit, nil).Get("state").Str == "confirmed" })

	room := hq.room("all-staff")
	ev := c.say("1001", room, "请阅")
	for _, p := range []string{"1002", "1003", "1004", "2001", "2002", "3001", "3002"} {
		c.reads(p, room, ev)
	}
	eventually(t, "one has not read it", func() bool {
		_, page := c.api("1001", "GET", "/messages/"+esc(room)+"/"+esc(ev)+"/readers", nil)
		return page.Get("total_unread").Exists() && page.Get("total_unread").Int() == 1
	})
	unread := c.must("1001", "POST", "/dings", map[string]any{"receivers": map[string]any{"unread_of": map[string]string{"room_id": string(room), "event_id": string(ev)}}})
	if unread.Get("counts.total").Int() != 1 || unread.Get("counts.already_read").Int() != 7 {
		t.Errorf("the unread: %s", unread.Raw)
	}
	c.confirms("2003", unread.Get("id").Str)

	// A command in a room is obeyed by the sender's site alone.
	cmd := c.send("1001", room, "m.room.message", map[string]string{"msgtype": "m.text", "body": "!ding @2001 @1002 过来一下"})
	var id string
	eventually(t, "the command's DING", func() bool {
		list := c.must("1001", "GET", "/dings", nil)
		id = list.Get(`dings.#(uuid=="event:` + string(cmd) + `").id`).Str
		return id != ""
	})
	c.confirms("2001", id)
	received := func() int64 { return c.must("2001", "GET", "/dings?box=received", nil).Get("dings.#").Int() }
	eventually(t, "2001 has received both", func() bool { return received() >= 2 })
	if n := received(); n != 2 {
		t.Errorf("2001 has received %d DINGs, want 2", n)
	}
}

// ding sends one to people.
func (c *company) ding(sender, body string, people ...string) string {
	c.t.Helper()
	return c.must(sender, "POST", "/dings", map[string]any{"body": body, "receivers": map[string]any{"persons": people}}).Get("id").Str
}

// confirmsLate confirms by the API what may be over.
func (c *company) confirmsLate(person, ding string) {
	c.t.Helper()
	c.must(person, "POST", "/dings/"+ding+"/confirm", nil)
}

func esc[T id.RoomID | id.EventID](s T) string { return url.PathEscape(string(s)) }
