package sites_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// TestALaterSite: a third site is added to a company of two. Its bot gets the power that the creators have, it takes over
// the room of its unit, and new people there get their accounts at it.
func TestALaterSite(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "总部", "四川", "广东")
	c.start(2)
	hq, sc, gd := c.sites[0], c.sites[1], c.sites[2]
	c.imports(staff())
	c.members("all-staff", c.sites[:2], everybody(staff())...)
	c.members("unit:gd", []*site{hq}, "3001", "3002")
	room := hq.room("unit:gd")
	c.start(3)
	imp := staff()
	imp.People = append(imp.People, &org.Person{ID: "3003", Name: "新广", Posts: []org.Post{{Unit: "gd", Main: true}}})
	c.imports(imp)
	c.members("all-staff", c.sites, everybody(imp)...)
	c.members("unit:gd", []*site{hq, gd}, "3001", "3002", "3003") // the old accounts stay at the head office
	if s := c.of("3003"); s != gd {
		t.Errorf("the new account is at %s", s.Name)
	}
	if got := gd.room("unit:gd"); got != room {
		t.Errorf("the unit's room is %s now, it was %s", got, room)
	}
	bot := string(gd.Service().Client().BotID())
	for _, key := range []string{"company", "all-staff", "unit:sc"} {
		eventually(t, "the new bot has power in "+key, func() bool {
			s := hq
			if key == "unit:sc" {
				s = sc
			}
			return c.state(s, key, "m.room.power_levels", "").Get("users."+escapeDots(bot)).Int() == 100
		})
	}
	// The new home rules the room: a new name is its doing.
	for _, u := range imp.Units {
		if u.ID == "gd" {
			u.Name = "广东新公司"
		}
	}
	c.imports(imp)
	eventually(t, "the new home names the room", func() bool {
		a := hq.HS.Do(hq.Reg.ASToken, "GET", "/_matrix/client/v3/rooms/"+url.PathEscape(string(room))+"/state", nil)
		ev := a.Get(`#(type=="m.room.name")`)
		return ev.Get("content.name").Str == "广东新公司" && ev.Get("sender").Str == bot
	})
	c.quiet()
}

// TestInvitations: an invitation by the bot of a listed site is accepted by the person's own site; one by anybody else
// is the person's to answer.
func TestInvitations(t *testing.T) {
	t.Parallel()
	c := newCompany(t, "总部", "四川", "广东")
	c.start(2) // the third server is a stranger's
	hq, sc := c.sites[0], c.sites[1]
	c.imports(staff())
	c.members("all-staff", c.sites[:2], everybody(staff())...)
	invite := func(s *site, by string) id.RoomID {
		a := s.HS.Do(by, "POST", hstest.Path("createRoom"), map[string]any{"preset": "private_chat", "invite": []string{string(c.user("2001"))}})
		if a.Status != http.StatusOK {
			t.Fatalf("creating: %d %s", a.Status, a.Body)
		}
		return id.RoomID(a.Get("room_id").Str)
	}
	strange := invite(c.sites[2], c.sites[2].Reg.ASToken) // a bot of the same name
	colleague := invite(hq, c.token("1001"))
	known := invite(hq, hq.Reg.ASToken)
	standing := func(room id.RoomID) string {
		m, err := sc.HS.Rooms().MembershipOf(t.Context(), matrix.UserID(c.user("2001")), matrix.RoomID(room))
		if err != nil || m == nil {
			return ""
		}
		return m.Membership
	}
	eventually(t, "the listed bot's invitation is accepted", func() bool { return standing(known) == "join" })
	eventually(t, "the others have come", func() bool { return standing(strange) == "invite" && standing(colleague) == "invite" })
	sc.run(false)
	time.Sleep(300 * time.Millisecond)
	if a, b := standing(strange), standing(colleague); a != "invite" || b != "invite" {
		t.Errorf("invitations of others: %s and %s", a, b)
	}
}

// escapeDots makes a user ID part of a path in JSON.
func escapeDots(s string) string { return strings.NewReplacer(".", `\.`, "@", `\@`).Replace(s) }
