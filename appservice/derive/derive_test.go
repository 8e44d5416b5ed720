package derive_test

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/astest"
	"github.com/carillon-chat/carillon/appservice/derive"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

// company is an organisation, a homeserver and a reconciler between them.
type company struct {
	t     testing.TB
	db    *sqldb.DB
	hs    *astest.Server
	store *org.Store
	opts  derive.Options
	rec   *derive.Reconciler
}

// staff is the company of the stories: a head office with a technical department of two groups, and a branch.
//
//	总公司 (root, 北京): 001 王总
//	  技术部 tech (北京): 002 李工 manager, 003 赵四
//	    一组 g1: 004 孙一
//	  分公司 branch (成都): 005 钱五 manager, 006 周六
func staff() *org.Import {
	post := func(unit string, leader org.Leader) []org.Post {
		return []org.Post{{Unit: unit, Title: "职员", Main: true, Leader: leader}}
	}
	person := func(n, name string, posts []org.Post) *org.Person {
		return &org.Person{ID: n, Name: name, Posts: posts, Status: org.StatusActive}
	}
	return &org.Import{
		HasUnits: true, HasPeople: true,
		Units: []*org.Unit{
			{ID: "root", Name: "总公司", Code: "hq", Site: "北京", OwnSite: true, Managers: []string{"001"}},
			{ID: "tech", ParentID: "root", Name: "技术部", Code: "tech", Site: "北京", Managers: []string{"002"}, ContainSub: true, Order: 1},
			{ID: "g1", ParentID: "tech", Name: "一组", Site: "北京", Order: 1},
			{ID: "branch", ParentID: "root", Name: "分公司", Code: "成都", Site: "成都", OwnSite: true, Managers: []string{"005"}, Order: 2},
		},
		People: []*org.Person{
			person("001", "王总", post("root", org.LeaderMain)),
			person("002", "李工", post("tech", org.LeaderMain)),
			person("003", "赵四", post("tech", org.LeaderDeputy)),
			person("004", "孙一", post("g1", org.LeaderNone)),
			person("005", "钱五", post("branch", org.LeaderMain)),
			person("006", "周六", post("branch", org.LeaderNone)),
		},
	}
}

func found(t testing.TB, change ...func(*derive.Options, *astest.Server)) *company {
	t.Helper()
	c := &company{t: t, db: sqldbtest.Open(t), hs: astest.New()}
	var err error
	if c.store, err = org.NewStore(t.Context(), c.db); err != nil {
		t.Fatal(err)
	}
	c.opts = derive.Options{Company: "集团", PasswordsDir: filepath.Join(t.TempDir(), "pw")}
	for _, f := range change {
		f(&c.opts, c.hs)
	}
	c.restart()
	return c
}

// restart makes a new reconciler from what the database knows.
func (c *company) restart() {
	c.t.Helper()
	rec, err := derive.New(c.t.Context(), c.db, c.hs.Client(c.t), c.opts)
	if err != nil {
		c.t.Fatal(err)
	}
	c.rec = rec
}

// becomes imports an organisation, without running.
func (c *company) becomes(imp *org.Import) {
	c.t.Helper()
	plan, problems := c.store.PlanWith(imp, org.PlanOptions{RemoveMissing: true, Force: true})
	if len(problems) > 0 {
		c.t.Fatal(problems)
	}
	if _, err := c.store.Apply(c.t.Context(), plan, "test"); err != nil {
		c.t.Fatal(err)
	}
}

func (c *company) run() *derive.Report {
	c.t.Helper()
	report, err := c.rec.Reconcile(c.t.Context(), c.store.Tree(), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return report
}

func (c *company) verify() *derive.Report {
	c.t.Helper()
	report, err := c.rec.Verify(c.t.Context(), c.store.Tree(), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return report
}

// nothing asserts that a run makes no request at all.
func (c *company) nothing() {
	c.t.Helper()
	before := c.hs.Requests()
	if r := c.run(); r.Operations != 0 || c.hs.Requests() != before {
		c.t.Errorf("a second run made %d operations and %d requests: %v", r.Operations, c.hs.Requests()-before, r.ByKind)
	}
}

func (c *company) room(key string) string {
	c.t.Helper()
	r, ok := c.rec.Room(key)
	if !ok {
		c.t.Fatalf("there is no room %s", key)
	}
	return string(r)
}

func user(n string) string { return "@" + n + ":" + astest.ServerName }

// members asserts who is in a room, beside the bot.
func (c *company) members(key string, people ...string) {
	c.t.Helper()
	want := []string{astest.Bot}
	for _, p := range people {
		want = append(want, user(p))
	}
	slices.Sort(want)
	if got := c.hs.Joined(c.room(key)); !slices.Equal(got, want) {
		c.t.Errorf("in %s are %v, want %v", key, got, want)
	}
}

func state[T any](c *company, room, typ, key string) T {
	c.t.Helper()
	var v T
	if raw := c.hs.State(room, typ, key); raw != nil {
		if err := json.Unmarshal(raw, &v); err != nil {
			c.t.Fatal(err)
		}
	}
	return v
}

type powers struct {
	Users         map[string]int `json:"users"`
	EventsDefault int            `json:"events_default"`
	Notifications map[string]int `json:"notifications"`
}

func TestCompanyFromNothing(t *testing.T) {
	c := found(t)
	c.becomes(staff())
	c.run()

	everybody := []string{"001", "002", "003", "004", "005", "006"}
	c.members("company", everybody...)
	c.members("all-staff", everybody...)
	c.members("site:北京", "001", "002", "003", "004")
	c.members("site:成都", "005", "006")
	c.members("space:tech", "002", "003")
	c.members("unit:root", "001")
	c.members("unit:tech", "002", "003", "004")
	c.members("unit:g1", "004", "002") // vacant: the manager above owns it
	c.members("unit:branch", "005", "006")

	for key, parent := range map[string]string{
		"site:北京": "company", "space:tech": "site:北京", "space:g1": "space:tech", "space:branch": "site:成都",
		"unit:root": "company", "unit:tech": "space:tech", "all-staff": "company",
	} {
		if state[struct{ Via []string }](c, c.room(parent), "m.space.child", c.room(key)).Via == nil {
			t.Errorf("%s is not in %s", key, parent)
		}
		if state[struct{ Via []string }](c, c.room(key), "m.space.parent", c.room(parent)).Via == nil {
			t.Errorf("%s does not name %s as its parent", key, parent)
		}
	}
	if got := state[map[string]string](c, c.room("unit:tech"), "m.room.canonical_alias", "")["alias"]; got != "#carillon_tech:example.com" {
		t.Errorf("alias %q", got)
	}
	if name, _, _, _ := c.hs.User(user("002")); name != "李工" {
		t.Errorf("display name %q", name)
	}
	all := state[powers](c, c.room("all-staff"), "m.room.power_levels", "")
	if all.EventsDefault != 50 || all.Notifications["room"] != 50 || all.Users[user("002")] != 50 || all.Users[user("003")] != 0 {
		t.Errorf("all-staff powers %+v", all)
	}
	tech := state[powers](c, c.room("unit:tech"), "m.room.power_levels", "")
	if tech.EventsDefault != 0 || tech.Users[user("002")] != 60 || tech.Users[user("003")] != 50 || len(tech.Users) != 2 {
		t.Errorf("department powers %+v", tech)
	}
	if g1 := state[powers](c, c.room("unit:g1"), "m.room.power_levels", ""); g1.Users[user("002")] != 60 {
		t.Errorf("the vacant group has the powers %+v", g1)
	}
	for _, p := range everybody {
		if n := c.hs.MemberEvents(c.room("all-staff"), user(p), "invite") + c.hs.MemberEvents(c.room("all-staff"), user(p), "join"); n != 1 {
			t.Errorf("%s has %d membership events, want one", p, n)
		}
	}
	c.nothing()
	c.restart()
	c.nothing()
}

func TestFirstPasswords(t *testing.T) {
	c := found(t)
	c.hs.Register(user("006"))
	c.becomes(staff())
	report := c.run()
	info, err := os.Stat(report.PasswordFile)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("password file: %v %v", info, err)
	}
	b, err := os.ReadFile(report.PasswordFile)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\r\n")
	if len(lines) != 8 || !strings.HasPrefix(lines[1], "001,王总,001,") || !strings.Contains(lines[7], "006,周六,006,,") {
		t.Errorf("password file:\n%s", b)
	}
	password := strings.Split(lines[1], ",")[3]
	if len(password) != 19 {
		t.Errorf("password of %d characters", len(password))
	}
	_, kept, _, _ := c.hs.User(user("001"))
	if !strings.HasPrefix(kept, "$carillon-sha256$") || strings.Contains(kept, password) {
		t.Errorf("registered with %q", kept)
	}
	if report := c.run(); report.PasswordFile != "" {
		t.Error("a second run wrote passwords")
	}
}

func TestPlainPasswords(t *testing.T) {
	c := found(t, func(o *derive.Options, _ *astest.Server) { o.PlainPasswords = true })
	c.becomes(staff())
	c.run()
	if _, password, _, _ := c.hs.User(user("001")); len(password) != 19 {
		t.Errorf("registered with a password of %d characters", len(password))
	}
}

func TestTransfer(t *testing.T) {
	c := found(t)
	c.becomes(staff())
	c.run()
	imp := staff()
	imp.People[2].Posts = []org.Post{{Unit: "branch", Title: "职员", Main: true}} // 003: tech -> branch
	c.becomes(imp)
	r := c.run()
	c.members("unit:tech", "002", "004")
	c.members("space:tech", "002")
	c.members("unit:branch", "003", "005", "006")
	c.members("site:成都", "003", "005", "006")
	c.members("site:北京", "001", "002", "004")
	// 3 joins, 3 leaves, and the deputy's power in tech
	if r.Operations != 7 || r.ByKind["join"] != 3 || r.ByKind["leave"] != 3 {
		t.Errorf("operations %v", r.ByKind)
	}
	c.nothing()
	c.becomes(staff()) // and back again
	c.run()
	c.members("unit:tech", "002", "003", "004")
	c.nothing()
}

func TestLeaverAndReturn(t *testing.T) {
	for _, mayNotAct := range []bool{false, true} {
		c := found(t, func(_ *derive.Options, hs *astest.Server) { hs.LockedMayNotAct = mayNotAct })
		c.becomes(staff())
		c.run()
		private := c.hs.MakeRoom(user("003"), user("004"))
		ding, err := c.rec.DingRoom(t.Context(), "003")
		if err != nil {
			t.Fatal(err)
		}
		gone := staff()
		gone.People[2].Status, gone.People[2].Left = org.StatusLeft, time.Now().AddDate(0, 0, -1).Format("2006-01-02")
		c.becomes(gone)
		c.run()
		if _, _, locked, _ := c.hs.User(user("003")); !locked {
			t.Error("the leaver is not locked")
		}
		if rooms := c.hs.RoomsOf(user("003")); len(rooms) != 0 {
			t.Errorf("the leaver is still in %v (private %s)", rooms, private)
		}
		if _, err := c.rec.DingRoom(t.Context(), "003"); !errors.Is(err, derive.ErrNoAccount) {
			t.Errorf("a leaver's DING room: %v", err)
		}
		c.nothing()

		c.becomes(staff())
		c.run()
		if _, _, locked, _ := c.hs.User(user("003")); locked {
			t.Error("who came back is still locked")
		}
		c.members("unit:tech", "002", "003", "004")
		c.members("all-staff", "001", "002", "003", "004", "005", "006")
		if again, err := c.rec.DingRoom(t.Context(), "003"); err != nil || again != ding || c.hs.Membership(string(ding), user("003")) != "join" {
			t.Errorf("DING room after the return: %s %v", again, err)
		}
		c.nothing()
	}
}

func TestRenameAndMove(t *testing.T) {
	c := found(t)
	c.becomes(staff())
	c.run()
	imp := staff()
	imp.Units[1].Name = "研发部"
	imp.Units[2].ParentID = "branch" // 一组 goes under the branch
	imp.Units[2].Site = "成都"
	imp.People[0].Name = "王董"
	c.becomes(imp)
	c.run()
	if got := state[map[string]string](c, c.room("unit:tech"), "m.room.name", "")["name"]; got != "研发部" {
		t.Errorf("room name %q", got)
	}
	if got := state[map[string]string](c, c.room("space:tech"), "m.room.name", "")["name"]; got != "研发部" {
		t.Errorf("space name %q", got)
	}
	if c.hs.RoomByAlias("#carillon_tech:example.com") != c.room("unit:tech") {
		t.Error("the alias did not stay")
	}
	if name, _, _, _ := c.hs.User(user("001")); name != "王董" {
		t.Errorf("display name %q", name)
	}
	type link struct{ Via []string }
	if state[link](c, c.room("space:tech"), "m.space.child", c.room("space:g1")).Via != nil ||
		state[link](c, c.room("space:branch"), "m.space.child", c.room("space:g1")).Via == nil ||
		state[link](c, c.room("space:g1"), "m.space.parent", c.room("space:branch")).Via == nil ||
		state[link](c, c.room("space:g1"), "m.space.parent", c.room("space:tech")).Via != nil {
		t.Error("the moved unit hangs in the wrong place")
	}
	c.members("unit:tech", "002", "003")
	c.members("unit:g1", "004", "005")
	c.members("site:成都", "004", "005", "006")
	c.nothing()
}

func TestRemovedUnitAndBack(t *testing.T) {
	c := found(t)
	c.becomes(staff())
	c.run()
	room, space, site := c.room("unit:g1"), c.room("space:g1"), c.room("space:tech")
	imp := staff()
	imp.Units = slices.Delete(imp.Units, 2, 3)
	imp.People[3].Posts[0].Unit = "tech"
	c.becomes(imp)
	c.run()
	if _, ok := c.rec.Room("unit:g1"); ok {
		t.Error("the room of a removed unit is still in use")
	}
	if p := state[powers](c, room, "m.room.power_levels", ""); p.EventsDefault != 100 || len(p.Users) != 0 {
		t.Errorf("the closed room has the powers %+v", p)
	}
	if state[struct{ Via []string }](c, site, "m.space.child", space).Via != nil {
		t.Error("the closed space is still in its parent")
	}
	if c.hs.Membership(room, user("004")) != "join" || c.hs.Membership(space, user("004")) != "leave" {
		t.Error("people should keep the closed room and leave the closed space")
	}
	c.nothing()
	c.becomes(staff())
	c.run()
	if c.room("unit:g1") != room {
		t.Error("the unit that came back got another room")
	}
	c.members("unit:g1", "002", "004")
	if p := state[powers](c, room, "m.room.power_levels", ""); p.EventsDefault != 0 || p.Users[user("002")] != 60 {
		t.Errorf("the opened room has the powers %+v", p)
	}
	if state[struct{ Via []string }](c, space, "m.space.child", room).Via == nil {
		t.Error("the opened room is not in its space")
	}
	c.nothing()
}

func TestOwnLeaveIsHealedByVerifyAlone(t *testing.T) {
	c := found(t)
	c.becomes(staff())
	c.run()
	room := c.room("unit:tech")
	feed := func() {
		t.Helper()
		for _, ev := range c.hs.Events(room) {
			if err := c.rec.OnMember(t.Context(), ev); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.hs.Act(t, room, user("004"), "leave", "")
	c.hs.Act(t, room, user("002"), "kick", user("003"))
	feed()
	feed() // again: deliveries repeat
	c.nothing()
	c.members("unit:tech", "002")
	c.verify()
	c.members("unit:tech", "002", "004") // the removed one stays away
	c.nothing()
	c.restart()
	c.verify()
	c.members("unit:tech", "002", "004")

	// the organisation moves him away and back: then he is in again, whatever was
	c.hs.Act(t, room, user("004"), "leave", "")
	feed()
	imp := staff()
	imp.People[3].Posts[0].Unit = "branch"
	imp.People[2].Posts[0].Unit = "branch"
	c.becomes(imp)
	c.run()
	c.becomes(staff())
	c.run()
	c.members("unit:tech", "002", "003", "004")
}

// Verifying may be quicker than the event that tells of it, which then comes to a record that is ahead of it.
func TestRemovalsUnheardOfAreNoOwnLeaves(t *testing.T) {
	c := found(t)
	c.becomes(staff())
	c.run()
	room := c.room("unit:tech")
	c.hs.Act(t, room, user("004"), "leave", "")
	c.hs.Act(t, room, user("002"), "kick", user("003"))
	for range 2 {
		c.verify()
		c.members("unit:tech", "002", "004")
	}
	for _, ev := range c.hs.Events(room) {
		if err := c.rec.OnMember(t.Context(), ev); err != nil {
			t.Fatal(err)
		}
	}
	c.nothing()
	c.members("unit:tech", "002", "004")
	if r := c.verify(); r.Operations != 0 {
		t.Errorf("verifying again made %v", r.ByKind)
	}
}

func TestVerifyHeals(t *testing.T) {
	c := found(t)
	c.becomes(staff())
	c.run()
	if r := c.verify(); r.Operations != 0 || r.Strangers != 0 {
		t.Errorf("verifying a good state made %v, strangers %d", r.ByKind, r.Strangers)
	}
	room := c.room("unit:tech")
	c.hs.Act(t, room, user("003"), "leave", "") // unnoticed: no event came
	c.hs.Act(t, room, user("006"), "join", "")  // a guest of the manager
	bot := c.hs.Client(t)
	if _, err := bot.SetState(t.Context(), id.RoomID(room), "", "m.room.name", "", map[string]string{"name": "x"}); err != nil {
		t.Fatal(err)
	}
	if _, err := bot.SetState(t.Context(), id.RoomID(c.room("space:tech")), "", "m.space.child", room, struct{}{}); err != nil {
		t.Fatal(err)
	}
	if err := bot.SetDisplayName(t.Context(), id.UserID(user("001")), "joker"); err != nil {
		t.Fatal(err)
	}
	c.nothing()
	r := c.verify()
	c.members("unit:tech", "002", "003", "004", "006")
	if r.Strangers != 1 {
		t.Errorf("%d strangers", r.Strangers)
	}
	if got := state[map[string]string](c, room, "m.room.name", "")["name"]; got != "技术部" {
		t.Errorf("room name %q", got)
	}
	if state[struct{ Via []string }](c, c.room("space:tech"), "m.space.child", room).Via == nil {
		t.Error("the room did not come back into its space")
	}
	if name, _, _, _ := c.hs.User(user("001")); name != "王总" {
		t.Errorf("display name %q", name)
	}
	if r := c.verify(); r.Operations != 0 {
		t.Errorf("a second verify made %v", r.ByKind)
	}
}

func TestBannedPeopleStayBanned(t *testing.T) {
	c := found(t)
	c.becomes(staff())
	c.run()
	imp := staff()
	imp.People[2].Posts[0].Unit = "branch"
	c.becomes(imp)
	c.run()
	c.hs.Act(t, c.room("unit:tech"), user("002"), "ban", user("003"))
	c.becomes(staff())
	c.run()
	if m := c.hs.Membership(c.room("unit:tech"), user("003")); m != "ban" {
		t.Errorf("membership %q", m)
	}
	c.nothing()
}

func TestBesideAnotherHomeserver(t *testing.T) {
	c := found(t, func(_ *derive.Options, hs *astest.Server) { hs.NoServiceJoins = true })
	c.becomes(staff())
	c.run()
	c.members("unit:tech", "002", "003", "004")
	c.members("all-staff", "001", "002", "003", "004", "005", "006")
	// gated rooms cost an invitation, the others let in whoever is in the company's space
	if n := c.hs.MemberEvents(c.room("all-staff"), user("003"), "invite"); n != 0 {
		t.Errorf("%d invitations to the all-staff room", n)
	}
	if n := c.hs.MemberEvents(c.room("unit:tech"), user("003"), "invite"); n != 1 {
		t.Errorf("%d invitations to the department", n)
	}
	room, err := c.rec.DingRoom(t.Context(), "003")
	if err != nil || c.hs.Membership(string(room), user("003")) != "join" {
		t.Errorf("DING room %s: %v", room, err)
	}
	c.nothing()
}

func TestSuspension(t *testing.T) {
	c := found(t)
	c.becomes(staff())
	c.run()
	imp := staff()
	imp.People[5].Status = org.StatusSuspended
	c.becomes(imp)
	c.run()
	if _, _, _, suspended := c.hs.User(user("006")); !suspended {
		t.Error("not suspended")
	}
	c.members("unit:branch", "005", "006")
	c.nothing()
	// moved and renamed while suspended: old rooms are left at once, all else waits
	imp.People[5].Name, imp.People[5].Posts[0].Unit = "周七", "tech"
	c.becomes(imp)
	c.run()
	c.members("unit:branch", "005")
	c.members("unit:tech", "002", "003", "004")
	c.nothing()
	back := staff()
	back.People[5].Name, back.People[5].Posts[0].Unit = "周七", "tech"
	c.becomes(back)
	c.run()
	if name, _, _, suspended := c.hs.User(user("006")); suspended || name != "周七" {
		t.Errorf("%s suspended %v", name, suspended)
	}
	c.members("unit:tech", "002", "003", "004", "006")
	c.nothing()
}

func TestForeignAliasIsLeftAlone(t *testing.T) {
	c := found(t)
	bot := c.hs.Client(t)
	other, err := bot.CreateRoom(t.Context(), "", map[string]any{"room_version": "12", "room_alias_name": "carillon_tech"}, true)
	if err != nil {
		t.Fatal(err)
	}
	c.becomes(staff())
	c.run()
	if c.room("unit:tech") == string(other) || !c.rec.HasAlias(state[map[string]string](c, c.room("unit:tech"), "m.room.canonical_alias", "")["alias"]) {
		t.Error("a room that is not ours was taken")
	}
	c.nothing()
}

func TestProgress(t *testing.T) {
	c := found(t)
	c.becomes(staff())
	last := map[string]derive.Progress{}
	if _, err := c.rec.Reconcile(t.Context(), c.store.Tree(), func(p derive.Progress) {
		if p.Done < last[p.Phase].Done || p.Done > p.Total {
			t.Errorf("progress %+v after %+v", p, last[p.Phase])
		}
		last[p.Phase] = p
	}); err != nil {
		t.Fatal(err)
	}
	for _, phase := range []string{"users", "rooms", "members"} {
		if p := last[phase]; p.Total == 0 || p.Done != p.Total {
			t.Errorf("%s ended at %+v", phase, p)
		}
	}
	if len(last) != 3 {
		t.Errorf("phases %v", slices.Collect(maps.Keys(last)))
	}
}

func TestDeepTreesStayWithinTheDepth(t *testing.T) {
	c := found(t, func(o *derive.Options, _ *astest.Server) { o.MaxSpaceDepth = 3 })
	imp := staff()
	parent := "g1"
	for _, n := range []string{"d1", "d2", "d3"} {
		imp.Units = append(imp.Units, &org.Unit{ID: n, ParentID: parent, Name: "层" + n, Site: "北京"})
		parent = n
	}
	c.becomes(imp)
	c.run()
	if _, ok := c.rec.Room("space:g1"); ok {
		t.Error("a space too deep was made")
	}
	if state[struct{ Via []string }](c, c.room("space:tech"), "m.space.child", c.room("unit:d3")).Via == nil {
		t.Error("the deep unit's room is not in the nearest space")
	}
	c.nothing()
}
