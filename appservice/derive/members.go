package derive

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/org"
)

// personJob is all that changes for one person: the rooms to join, parents first, and those to leave.
type personJob struct {
	person string
	user   userRow
	joins  []*want
	leaves []string // room keys
	// everywhere: the person has left the company and leaves every room, also those not made here.
	everywhere bool
	forget     []memberChange // records to mend without a request
}

func (j *personJob) size() int { return len(j.joins) + len(j.leaves) }

// membersPhase makes people join and leave.
func (x *run) membersPhase(ctx context.Context) error {
	if x.r.many() {
		bots, err := x.r.readRoomSites(ctx)
		if err != nil {
			return err
		}
		x.bots = bots
	}
	if !x.state.clean && !x.heal {
		if err := x.resolveDoubts(ctx); err != nil {
			return err
		}
	}
	jobs := x.personJobs()
	if len(jobs) == 0 {
		return nil
	}
	if err := x.begin(ctx); err != nil {
		return err
	}
	total := 0
	for _, j := range jobs {
		total += j.size()
	}
	x.phase("members", total)
	return each(ctx, x, jobs, x.movePerson)
}

// personJobs compares the wish with the record.
func (x *run) personJobs() []*personJob {
	byPerson := map[string]*personJob{}
	var order []*personJob
	job := func(person string) *personJob {
		j := byPerson[person]
		if j == nil {
			j = &personJob{person: person}
			byPerson[person] = j
			order = append(order, j)
		}
		return j
	}
	x.r.mu.RLock()
	defer x.r.mu.RUnlock()
	for _, w := range x.wish.rooms {
		row, made := x.r.rooms[w.key]
		if !made {
			continue
		}
		rows := x.members[w.key]
		wanted := make(map[string]bool, len(w.people))
		enter := row.inside && !x.gathering(w, &row)
		for _, p := range w.people {
			wanted[p] = true
			if enter && x.mine(p) && x.mayJoin(p, rows) {
				j := job(p)
				j.joins = append(j.joins, w)
			}
		}
		for p, m := range rows {
			switch {
			case wanted[p] || !x.mine(p):
			case m.joined:
				j := job(p)
				j.leaves = append(j.leaves, w.key)
			case m.reason != reasonSync: // no longer wanted here: should he come back, nothing of the past counts
				j := job(p)
				j.forget = append(j.forget, memberChange{memberKey{w.key, p}, memberRow{false, reasonSync}})
			}
		}
	}
	x.closedJobs(job)
	for p, u := range x.r.users {
		if u.state == stateLocking {
			job(p).everywhere = true
		}
	}
	for _, j := range order {
		j.user = x.r.users[j.person]
	}
	return order
}

// mayJoin reports whether the person has an account that may join and has not gone away on his own. Suspended people
// keep their rooms and get new ones when they are back. The lock is held.
func (x *run) mayJoin(person string, rows map[string]memberRow) bool {
	if x.r.users[person].state != stateActive {
		return false
	}
	m, known := rows[person]
	switch {
	case !known:
		return true
	case m.joined:
		return false
	}
	return m.reason == reasonSync || m.reason == reasonSelf && x.heal
}

// closedJobs empties closed spaces; closed rooms keep those who still work here, to read what was said.
func (x *run) closedJobs(job func(string) *personJob) {
	for key, row := range x.r.rooms {
		if !row.closed {
			continue
		}
		space := isSpace(key)
		for p, m := range x.members[key] {
			person := x.tree.Person(p)
			if m.joined && x.mine(p) && (space || person == nil || person.Status == org.StatusLeft) {
				j := job(p)
				j.leaves = append(j.leaves, key)
			}
		}
	}
}

func isSpace(key string) bool {
	return strings.HasPrefix(key, "space:") || strings.HasPrefix(key, "site:")
}

// resolveDoubts asks for the members of the rooms in which the run that was cut off may have done more than it
// could write down.
func (x *run) resolveDoubts(ctx context.Context) error {
	pending := map[string]bool{}
	for _, j := range x.personJobs() {
		for _, w := range j.joins {
			pending[w.key] = true
		}
		for _, key := range j.leaves {
			pending[key] = true
		}
	}
	keys := make([]string, 0, len(pending))
	for k := range pending {
		keys = append(keys, k)
	}
	return each(ctx, x, keys, func(ctx context.Context, key string) error {
		row, _ := x.r.row(key)
		if !row.inside {
			return nil
		}
		joined, err := x.r.mx.JoinedMembers(ctx, "", row.room)
		if err != nil {
			return x.fail(ctx, Failure{What: "reading members", Room: key}, err)
		}
		wanted := x.wanted(key)
		x.mu.Lock()
		missed := x.r.missed(joined, x.members[key], wanted)
		x.mu.Unlock()
		var went map[id.UserID]string
		if missed {
			if went, err = x.r.whoWent(ctx, row.room); err != nil {
				return x.fail(ctx, Failure{What: "reading members", Room: key}, err)
			}
		}
		x.mu.Lock()
		changes := x.r.compare(row, joined, went, x.members, wanted, x.hasLeft)
		x.mu.Unlock()
		return x.r.saveMembers(ctx, changes)
	})
}

// wanted is who should be in the room.
func (x *run) wanted(key string) map[string]bool {
	out := map[string]bool{}
	if w := x.wish.byKey[key]; w != nil {
		for _, p := range w.people {
			out[p] = true
		}
	}
	return out
}

func (x *run) hasLeft(person string) bool {
	p := x.tree.Person(person)
	return p != nil && p.Status == org.StatusLeft
}

// missed reports whether somebody is wanted and recorded as joined who is not.
func (r *Reconciler) missed(joined map[id.UserID]mxclient.Member, rows map[string]memberRow, wanted map[string]bool) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for person, m := range rows {
		user, _ := r.userOf(person)
		if _, in := joined[user]; m.joined && wanted[person] && !in {
			return true
		}
	}
	return false
}

// whoWent asks why those who are not in a room went: the event that took somebody out may not have come to the
// service yet, or may have come while it was away.
func (r *Reconciler) whoWent(ctx context.Context, room id.RoomID) (map[id.UserID]string, error) {
	gone, err := r.mx.Gone(ctx, "", room)
	if err != nil {
		return nil, fmt.Errorf("asking who went: %w", err)
	}
	went := make(map[id.UserID]string, len(gone))
	for _, ev := range gone {
		if ev.StateKey != nil {
			went[id.UserID(*ev.StateKey)] = r.reasonOf(ev)
		}
	}
	return went, nil
}

// compare mends the record of one room by what the homeserver says, in members, and returns the changes to save. went
// says how those went who are wanted but gone. Joined people without a record are taken in when they are wanted, or
// leavers.
func (r *Reconciler) compare(row roomRow, joined map[id.UserID]mxclient.Member, went map[id.UserID]string, members map[string]map[string]memberRow, wanted map[string]bool, left func(string) bool) []memberChange {
	key := row.key
	rows := members[key]
	if rows == nil {
		rows = map[string]memberRow{}
		members[key] = rows
	}
	var changes []memberChange
	set := func(person string, m memberRow) {
		rows[person] = m
		changes = append(changes, memberChange{memberKey{key, person}, m})
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for user := range joined {
		person := r.personOf(user)
		if person == "" || row.home != "" && user.Homeserver() != r.mx.ServerName() {
			continue
		}
		m, known := rows[person]
		if known && !m.joined || !known && (wanted[person] || left(person)) {
			set(person, memberRow{true, reasonSync})
		}
	}
	for person, m := range rows {
		if !m.joined {
			continue
		}
		user, ok := r.userOf(person)
		if _, in := joined[user]; ok && in {
			continue
		}
		reason := reasonSync
		if wanted[person] {
			reason = cmp.Or(went[user], reasonSelf)
		}
		set(person, memberRow{false, reason})
	}
	return changes
}

// movePerson does one person's job and records in one commit what was done.
func (x *run) movePerson(ctx context.Context, j *personJob) (err error) {
	done := j.forget
	defer func() {
		x.tick(j.size())
		if saveErr := x.r.saveMembers(context.WithoutCancel(ctx), done); err == nil {
			err = saveErr
		}
	}()
	user := x.r.mx.UserID(j.user.localpart)
	complete := true
	for _, key := range j.leaves {
		row, _ := x.r.row(key)
		if err := x.leave(ctx, user, row.room); err != nil {
			complete = false
			if err := x.fail(ctx, Failure{What: "leave", Room: key, Who: j.person}, err); err != nil {
				return err
			}
			continue
		}
		done = append(done, memberChange{memberKey{key, j.person}, memberRow{false, reasonSync}})
	}
	if j.everywhere && complete {
		if err := x.leaveEverywhere(ctx, j, user); err != nil {
			return x.fail(ctx, Failure{What: "leaving every room", Who: j.person}, err)
		}
	}
	for _, w := range j.joins {
		row, _ := x.r.row(w.key)
		banned, err := x.join(ctx, w, user, row.room)
		if err != nil {
			if err := x.fail(ctx, Failure{What: "join", Room: w.key, Who: j.person}, err); err != nil {
				return err
			}
			continue
		}
		m := memberRow{true, reasonSync}
		if banned {
			m = memberRow{false, reasonAdmin}
		}
		done = append(done, memberChange{memberKey{w.key, j.person}, m})
	}
	return nil
}

// join brings a person into a room: by the room's own rule where the homeserver honours it, else after an invitation.
// banned tells that a moderator has banned him, which is not ours to undo.
func (x *run) join(ctx context.Context, w *want, user id.UserID, room id.RoomID) (banned bool, err error) {
	invited := w.gated && x.r.inviteFirst.Load()
	if invited {
		if err := x.invite(ctx, room, user); err != nil {
			return x.isBanned(ctx, room, user, err)
		}
	}
	err = x.r.mx.Join(ctx, user, room)
	if mxclient.IsCode(err, "M_FORBIDDEN") && !invited {
		if banned, _ := x.isBanned(ctx, room, user, nil); banned {
			return true, nil
		}
		if err := x.invite(ctx, room, user); err != nil {
			return false, err
		}
		if err = x.r.mx.Join(ctx, user, room); err == nil && w.gated {
			x.r.inviteFirst.Store(true)
		}
	}
	if err != nil {
		return x.isBanned(ctx, room, user, err)
	}
	x.count("join", 1)
	return false, nil
}

func (x *run) invite(ctx context.Context, room id.RoomID, user id.UserID) error {
	err := x.r.mx.Invite(ctx, "", room, user)
	if mxclient.IsCode(err, "M_FORBIDDEN") {
		if m, mErr := x.membership(ctx, room, user); mErr == nil && (m == "join" || m == "invite") {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("inviting: %w", err)
	}
	x.count("invite", 1)
	return nil
}

// isBanned turns a refusal into "banned" when that is its cause.
func (x *run) isBanned(ctx context.Context, room id.RoomID, user id.UserID, err error) (bool, error) {
	if err == nil || mxclient.IsPermanent(err) {
		if m, mErr := x.membership(ctx, room, user); mErr == nil && m == "ban" {
			return true, nil
		}
	}
	return false, err
}

// membership asks the homeserver; "" when there is none.
func (x *run) membership(ctx context.Context, room id.RoomID, user id.UserID) (string, error) {
	var c struct {
		Membership string `json:"membership"`
	}
	err := x.r.mx.State(ctx, "", room, "m.room.member", string(user), &c)
	if mxclient.IsCode(err, "M_NOT_FOUND") {
		return "", nil
	}
	return c.Membership, err
}

// leave makes the person leave; who may not act any more is removed by the bot. Not being there is success.
func (x *run) leave(ctx context.Context, user id.UserID, room id.RoomID) error {
	reason := x.r.opts.leaveReason()
	err := x.r.mx.Leave(ctx, user, room, reason)
	switch {
	case err == nil:
		x.count("leave", 1)
		return nil
	case mxclient.IsCode(err, "M_NOT_FOUND"):
		return nil
	case !mxclient.IsPermanent(err):
		return err
	}
	m, mErr := x.membership(ctx, room, user)
	if mErr != nil {
		return err
	}
	if m != "join" && m != "invite" && m != "knock" {
		return nil
	}
	if err := x.r.mx.Kick(ctx, "", room, user, reason); err != nil {
		return fmt.Errorf("removing: %w", err)
	}
	x.count("leave", 1)
	return nil
}

// leaveEverywhere makes a locked person leave what is left, and closes the account's case. Where the homeserver lets
// nobody act for a locked account, it is opened for that moment.
func (x *run) leaveEverywhere(ctx context.Context, j *personJob, user id.UserID) (err error) {
	mx := x.r.mx
	rooms, err := mx.JoinedRooms(ctx, user)
	if mxclient.IsCode(err, "M_USER_LOCKED") {
		if err := mx.LockUser(ctx, user, false); err != nil {
			return fmt.Errorf("opening the account to leave rooms: %w", err)
		}
		defer func() {
			if lockErr := mx.LockUser(context.WithoutCancel(ctx), user, true); err == nil && lockErr != nil {
				err = fmt.Errorf("locking: %w", lockErr)
			}
		}()
		rooms, err = mx.JoinedRooms(ctx, user)
	}
	if err != nil {
		return fmt.Errorf("listing rooms: %w", err)
	}
	for _, room := range rooms {
		if err := x.leave(ctx, user, room); err != nil {
			return err
		}
	}
	if err := x.r.leftDing(ctx, j.person); err != nil {
		return err
	}
	u := j.user
	u.state = stateLocked
	return x.r.saveUser(context.WithoutCancel(ctx), u)
}

// leaveReason is what people read when the organisation takes somebody out of a room. OnMember knows the service's
// own doing by it.
func (o *Options) leaveReason() string {
	if o.Language == "en" {
		return reasonTextEN
	}
	return reasonTextZH
}

const (
	reasonTextEN = "change of the organisation"
	reasonTextZH = "组织架构调整"
)
