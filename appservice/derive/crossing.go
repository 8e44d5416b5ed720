package derive

import (
	"context"
	"fmt"
	"slices"
	"time"

	log "github.com/sirupsen/logrus"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// How a site's bot stands in a room of this site.
const (
	siteInvited = "invited"
	siteJoined  = "joined"
	siteLeft    = "left"
)

// sitePrefix begins what stands for a site's bot among the unwanted, where people stand by their job numbers.
const sitePrefix = "\x00site:"

// siteRetry is when a site that did not answer is tried again.
const siteRetry = 15 * time.Second

const (
	qRoomSites      = `SELECT room_key, site, state FROM as_room_sites`
	qSaveRoomSite   = `INSERT INTO as_room_sites (room_key, site, state, changed_at) VALUES ($1, $2, $3, $4) ON CONFLICT (room_key, site) DO UPDATE SET state = excluded.state, changed_at = excluded.changed_at`
	qInvitations    = `SELECT room_id, user_id, inviter, created_at FROM as_invitations ORDER BY created_at, room_id, user_id`
	qSaveInvitation = `INSERT INTO as_invitations (room_id, user_id, inviter, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT (room_id, user_id) DO UPDATE SET inviter = excluded.inviter, created_at = excluded.created_at`
	qDropInvitation = `DELETE FROM as_invitations WHERE room_id = $1 AND user_id = $2`
)

// invitation is one by a bot of another site.
type invitation struct {
	room    id.RoomID
	user    id.UserID
	inviter id.UserID
	at      int64 // when it came, in milliseconds
}

// crossing is one thing to do together with another site, named as it is recorded.
type crossing struct {
	site string
	what string
	room string // key
	do   func(context.Context) error
}

// sitesPhase does what takes other sites: it invites their bots and accepts their invitations, and removes theirs who
// should be gone. A site that does not answer stops nothing and is tried again later.
func (x *run) sitesPhase(ctx context.Context) error {
	if !x.r.many() {
		return nil
	}
	states, err := x.r.readRoomSites(ctx)
	if err != nil {
		return err
	}
	invited, err := x.r.readInvitations(ctx)
	if err != nil {
		return err
	}
	jobs := slices.Concat(x.inviteBots(states), x.acceptInvitations(invited), x.withdraw())
	before := x.insides()
	if err := x.cross(ctx, jobs); err != nil {
		return err
	}
	if err := x.removeStrangers(ctx, states); err != nil {
		return err
	}
	if x.insides() == before {
		return nil
	}
	if err := x.roomsPhase(ctx); err != nil { // what was taken over
		return err
	}
	if err := x.r.tellRooms(ctx); err != nil {
		return err
	}
	if x.members, err = x.r.readMembers(ctx); err != nil {
		return err
	}
	return x.membersPhase(ctx)
}

func (x *run) insides() (n int) {
	x.r.mu.RLock()
	defer x.r.mu.RUnlock()
	for _, row := range x.r.rooms {
		if row.inside {
			n++
		}
	}
	return n
}

// cross does the jobs, and those of a site only as long as it answers.
func (x *run) cross(ctx context.Context, jobs []crossing) error {
	if len(jobs) == 0 {
		return nil
	}
	if err := x.begin(ctx); err != nil {
		return err
	}
	x.phase("sites", len(jobs))
	return each(ctx, x, jobs, func(ctx context.Context, j crossing) error {
		defer x.tick(1)
		x.mu.Lock()
		down := x.down[j.site]
		x.mu.Unlock()
		if down {
			x.later(siteRetry)
			return nil
		}
		err := j.do(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		log.WithError(err).WithFields(log.Fields{"site": j.site, "room": j.room}).Debug(j.what + " failed, will be tried again")
		if !mxclient.IsPermanent(err) {
			x.mu.Lock()
			x.down[j.site] = true
			x.mu.Unlock()
		}
		x.later(siteRetry)
		return nil
	})
}

// inviteBots are the invitations to the sites that have people in the rooms of this one, or are to look after them.
func (x *run) inviteBots(states map[string]map[string]string) (jobs []crossing) {
	for _, w := range x.wish.rooms {
		row, ok := x.r.row(w.key)
		if !ok || row.home != "" || row.closed {
			continue
		}
		wanted := w.sites
		if w.home != "" && !slices.Contains(wanted, w.home) {
			wanted = append(slices.Clone(wanted), w.home)
		}
		for _, site := range wanted {
			switch states[w.key][site] {
			case siteJoined:
			case siteInvited:
				x.later(time.Minute)
			default:
				jobs = append(jobs, crossing{site, "inviting a site's bot", w.key, func(ctx context.Context) error { return x.inviteBot(ctx, row, site) }})
			}
		}
	}
	return jobs
}

func (x *run) inviteBot(ctx context.Context, row roomRow, site string) error {
	bot := x.r.opts.Sites.Named(site).Bot
	err := x.r.mx.InviteOnce(ctx, row.room, bot)
	state := siteInvited
	if mxclient.IsCode(err, "M_FORBIDDEN") {
		if m, mErr := x.membership(ctx, row.room, bot); mErr == nil && m == "join" {
			err, state = nil, siteJoined
		}
	}
	if err != nil {
		return fmt.Errorf("inviting: %w", err)
	}
	if state == siteInvited {
		x.count("invite-site", 1)
		x.later(time.Minute)
	}
	return x.r.saveRoomSite(ctx, row.key, site, state)
}

// acceptInvitations are the rooms of other sites in which this one has people or which it is to look after, and what
// else its people were invited to by other sites' bots.
func (x *run) acceptInvitations(list []invitation) (jobs []crossing) {
	bot := x.r.mx.BotID()
	byRoom := map[id.RoomID]invitation{}
	for _, inv := range list {
		if inv.user == bot {
			byRoom[inv.room] = inv
			continue
		}
		jobs = append(jobs, crossing{x.siteOfBot(inv.inviter), "accepting an invitation", string(inv.room), func(ctx context.Context) error { return x.accept(ctx, inv) }})
	}
	for _, w := range x.wish.rooms {
		row, ok := x.r.row(w.key)
		if !ok || row.home == "" || row.inside || !x.wants(w) {
			continue
		}
		inv, ok := byRoom[row.room]
		if !ok {
			if !x.heal {
				x.later(time.Minute)
				continue
			}
			inv = invitation{room: row.room, user: bot, inviter: x.r.opts.Sites.Named(row.home).Bot}
		}
		jobs = append(jobs, crossing{row.home, "joining another site's room", w.key, func(ctx context.Context) error {
			if err := x.r.mx.JoinVia(ctx, bot, inv.room, inv.inviter.Homeserver(), x.r.serverOf(&row)); err != nil {
				return fmt.Errorf("joining: %w", err)
			}
			x.count("join-site", 1)
			return x.entered(ctx, row, inv)
		}})
	}
	return jobs
}

// entered records that the bot is in a room of another site, and who else's are.
func (x *run) entered(ctx context.Context, row roomRow, inv invitation) error {
	r := x.r
	joined, err := r.mx.JoinedMembers(ctx, "", row.room)
	if err != nil {
		return fmt.Errorf("reading the members of a room: %w", err)
	}
	for _, s := range r.opts.Sites.Others() {
		if _, in := joined[s.Bot]; in {
			if err := r.saveRoomSite(ctx, row.key, s.Name, siteJoined); err != nil {
				return err
			}
		}
	}
	row.inside = true
	r.mu.Lock()
	r.entered[row.key] = r.opts.Now()
	r.mu.Unlock()
	if err := r.saveRoom(ctx, row); err != nil {
		return err
	}
	return r.dropInvitation(ctx, inv)
}

// gatherFor is how long a site that has entered a room waits for the bots of the other sites before it brings its people:
// what a server sends before it knows of another one does not reach that. A site that is away is not waited for longer.
const gatherFor = 15 * time.Second

// gathering reports whether bots of other sites are still waited for. The lock is held.
func (x *run) gathering(w *want, row *roomRow) bool {
	since, ok := x.r.entered[w.key]
	if !ok || row.home == "" || x.r.opts.Now().Sub(since) > gatherFor {
		return false
	}
	for _, site := range w.sites {
		if site != row.home && x.bots[w.key][site] != siteJoined {
			x.later(time.Second)
			return true
		}
	}
	return false
}

// wants reports whether this site should be in a room of another one.
func (x *run) wants(w *want) bool {
	if w.home == "" {
		return true
	}
	return slices.ContainsFunc(w.people, func(p string) bool { return x.siteOfPerson(p) == "" })
}

func (x *run) siteOfPerson(person string) string {
	if p := x.tree.Person(person); p != nil {
		return x.r.siteOf(p)
	}
	return ""
}

func (x *run) siteOfBot(bot id.UserID) string {
	s, _ := x.r.opts.Sites.OfServer(bot.Homeserver())
	return s.Name
}

// An invitation is here before the room that it is to has it: the server that is invited signs it first. So one that
// the room does not know is tried again before it is taken for void.
const (
	voidAfter   = 5 * time.Minute
	unknownTime = 2 * time.Second
)

// accept makes a person join a room to which another site's bot has invited him. An invitation that is void by now is
// forgotten.
func (x *run) accept(ctx context.Context, inv invitation) error {
	err := x.r.mx.JoinVia(ctx, inv.user, inv.room, inv.inviter.Homeserver())
	switch {
	case err == nil:
		x.count("join", 1)
	case !mxclient.IsPermanent(err):
		return fmt.Errorf("joining: %w", err)
	case x.r.now()-inv.at < voidAfter.Milliseconds():
		x.later(unknownTime)
		return nil
	}
	return x.r.dropInvitation(ctx, inv)
}

// withdraw takes the bot out of the rooms of other sites in which nobody of this one is any more.
func (x *run) withdraw() (jobs []crossing) {
	x.r.mu.RLock()
	rows := make([]roomRow, 0, len(x.r.rooms))
	for _, row := range x.r.rooms {
		if row.home != "" && row.inside {
			rows = append(rows, row)
		}
	}
	x.r.mu.RUnlock()
	for _, row := range rows {
		if w := x.wish.byKey[row.key]; w != nil && x.wants(w) || x.anyJoined(row.key) {
			continue
		}
		jobs = append(jobs, crossing{"", "leaving another site's room", row.key, func(ctx context.Context) error {
			err := x.r.mx.Leave(ctx, x.r.mx.BotID(), row.room, x.r.opts.leaveReason())
			if err != nil && !mxclient.IsPermanent(err) {
				return err
			}
			x.count("leave-site", 1)
			row.inside = false
			return x.r.saveRoom(ctx, row)
		}})
	}
	return jobs
}

func (x *run) anyJoined(key string) bool {
	x.r.mu.RLock()
	defer x.r.mu.RUnlock()
	for p, m := range x.members[key] {
		if m.joined && x.mine(p) {
			return true
		}
	}
	return false
}

// removal is somebody of another site who should no longer be in a room of this one.
type removal struct {
	row  roomRow
	who  string // person, or a site behind sitePrefix
	user id.UserID
}

// removeStrangers removes people and bots of other sites from the rooms of this one when their own site has not done so
// within the time of grace.
func (x *run) removeStrangers(ctx context.Context, states map[string]map[string]string) error {
	list := x.unwantedNow(states)
	now := x.r.opts.Now()
	var due []removal
	x.r.mu.Lock()
	seen := make(map[memberKey]time.Time, len(list))
	for _, rm := range list {
		k := memberKey{rm.row.key, rm.who}
		since, ok := x.r.unwanted[k]
		if !ok {
			since = now
		}
		seen[k] = since
		if wait := since.Add(x.r.opts.Grace).Sub(now); wait > 0 {
			x.later(wait)
			continue
		}
		due = append(due, rm)
	}
	x.r.unwanted = seen
	x.r.mu.Unlock()
	if len(due) == 0 {
		return nil
	}
	if err := x.begin(ctx); err != nil {
		return err
	}
	return each(ctx, x, due, func(ctx context.Context, rm removal) error {
		if err := x.remove(ctx, rm); err != nil {
			return x.fail(ctx, Failure{What: "removing", Room: rm.row.key, Who: string(rm.user)}, err)
		}
		return nil
	})
}

func (x *run) remove(ctx context.Context, rm removal) error {
	err := x.r.mx.Kick(ctx, "", rm.row.room, rm.user, x.r.opts.leaveReason())
	if mxclient.IsPermanent(err) {
		m, mErr := x.membership(ctx, rm.row.room, rm.user)
		if mErr != nil || m == "join" || m == "invite" || m == "knock" {
			return err
		}
		err = nil
	} else if err == nil {
		x.count("remove", 1)
	}
	if err != nil {
		return err
	}
	if site, ok := cutSite(rm.who); ok {
		return x.r.saveRoomSite(ctx, rm.row.key, site, siteLeft)
	}
	return x.r.saveMembers(ctx, []memberChange{{memberKey{rm.row.key, rm.who}, memberRow{false, reasonSync}}})
}

func cutSite(who string) (string, bool) {
	if len(who) < len(sitePrefix) || who[:len(sitePrefix)] != sitePrefix {
		return "", false
	}
	return who[len(sitePrefix):], true
}

// unwantedNow finds who of other sites is in a room of this one and should not be. A closed room keeps those who still
// work here, a closed space nobody.
func (x *run) unwantedNow(states map[string]map[string]string) (out []removal) {
	x.r.mu.RLock()
	defer x.r.mu.RUnlock()
	for key, row := range x.r.rooms {
		if row.home != "" || !row.inside {
			continue
		}
		w := x.wish.byKey[key]
		if w == nil && !row.closed {
			continue
		}
		sites := map[string]bool{}
		for p, m := range x.members[key] {
			if !m.joined || x.mine(p) {
				continue
			}
			person := x.tree.Person(p)
			if w != nil && containsSorted(w.people, p) || w == nil && !isSpace(key) && person != nil && person.Status != org.StatusLeft {
				sites[x.siteOfPerson(p)] = true
				continue
			}
			if user, ok := x.r.userOf(p); ok {
				out = append(out, removal{row, p, user})
			}
		}
		for site, state := range states[key] {
			if state == siteLeft || sites[site] || w != nil && (w.home == site || slices.Contains(w.sites, site)) {
				continue
			}
			if bot := x.r.opts.Sites.Named(site).Bot; x.r.opts.Sites.Named(site).Name == site {
				out = append(out, removal{row, sitePrefix + site, bot})
			}
		}
	}
	return out
}

func containsSorted(list []string, s string) bool {
	_, ok := slices.BinarySearch(list, s)
	return ok
}

func (r *Reconciler) readRoomSites(ctx context.Context) (map[string]map[string]string, error) {
	out := map[string]map[string]string{}
	err := r.db.Read(ctx, func(tx *sqldb.Tx) error {
		rows, err := tx.Query(qRoomSites)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var key, site, state string
			if err := rows.Scan(&key, &site, &state); err != nil {
				return err
			}
			if out[key] == nil {
				out[key] = map[string]string{}
			}
			out[key][site] = state
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("reading which sites are in the rooms: %w", err)
	}
	return out, nil
}

func (r *Reconciler) saveRoomSite(ctx context.Context, key, site, state string) error {
	return r.exec(ctx, "recording a site's bot", qSaveRoomSite, key, site, state, r.now())
}

func (r *Reconciler) readInvitations(ctx context.Context) (list []invitation, err error) {
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		list, err = sqldb.Select(tx, func(rows *sqldb.Rows) (i invitation, err error) {
			err = rows.Scan(&i.room, &i.user, &i.inviter, &i.at)
			return i, err
		}, qInvitations)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading invitations: %w", err)
	}
	return list, nil
}

func (r *Reconciler) dropInvitation(ctx context.Context, i invitation) error {
	return r.exec(ctx, "forgetting an invitation", qDropInvitation, string(i.room), string(i.user))
}

// takeOver makes this site the home of a room that another one has looked after: the unit has moved here. What is set
// in it is set anew, and who is in it is asked once.
func (x *run) takeOver(ctx context.Context, row *roomRow) error {
	r := x.r
	joined, err := r.mx.JoinedMembers(ctx, "", row.room)
	if err != nil {
		return fmt.Errorf("reading the members of a room that is taken over: %w", err)
	}
	for _, s := range r.opts.Sites.Others() {
		if _, in := joined[s.Bot]; in {
			if err := r.saveRoomSite(ctx, row.key, s.Name, siteJoined); err != nil {
				return err
			}
		}
	}
	row.home, row.name, row.power, row.rules, row.parent, row.ord = "", "", "", "?", "", ""
	x.mu.Lock()
	x.adopted[row.key] = true
	changes := r.compare(*row, joined, nil, x.members, x.wanted(row.key), x.hasLeft)
	x.mu.Unlock()
	return r.saveMembers(ctx, changes)
}
