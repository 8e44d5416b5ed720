package derive

import (
	"context"
	"encoding/json"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
)

// OnMember takes one event; see OnMembers.
func (r *Reconciler) OnMember(ctx context.Context, ev *mxclient.Event) error {
	return r.OnMembers(ctx, []*mxclient.Event{ev})
}

// OnMembers notes who leaves a room of the company on his own or by a moderator's hand, and who comes back; what people
// and bots of other sites do in the rooms of this one; and what other sites' bots invite to. What the service itself
// does is known by the sender or by the reason, and passed over.
func (r *Reconciler) OnMembers(ctx context.Context, evs []*mxclient.Event) error {
	c := &memberNotes{r: r}
	for _, ev := range evs {
		if ev.Type == "m.room.member" && ev.StateKey != nil {
			if err := c.take(ctx, ev); err != nil {
				return err
			}
		}
	}
	if err := c.flush(ctx); err != nil {
		return err
	}
	if c.wake {
		r.wake()
	}
	return nil
}

// memberNotes gathers what the events of one transaction say of people of other sites: there can be many.
type memberNotes struct {
	r     *Reconciler
	list  []memberChange
	index map[memberKey]int
	wake  bool
}

func (c *memberNotes) note(k memberKey, m memberRow) {
	if i, ok := c.index[k]; ok {
		c.list[i].memberRow = m
		return
	}
	if c.index == nil {
		c.index = map[memberKey]int{}
	}
	c.index[k] = len(c.list)
	c.list = append(c.list, memberChange{k, m})
}

func (c *memberNotes) flush(ctx context.Context) error { return c.r.saveMembers(ctx, c.list) }

func (c *memberNotes) take(ctx context.Context, ev *mxclient.Event) error {
	r := c.r
	user := id.UserID(*ev.StateKey)
	r.mu.RLock()
	person := r.personOf(user)
	key, ours := r.byRoom[id.RoomID(ev.Room)]
	row := r.rooms[key]
	owner, isDing := r.dingOf[id.RoomID(ev.Room)]
	_, away := r.away[memberKey{key, person}]
	wanted := true
	if r.last != nil && ours {
		w := r.last.byKey[key]
		wanted = w != nil && containsSorted(w.people, person)
	}
	r.mu.RUnlock()
	membership := ev.Membership()
	if r.many() && r.isBot(user) {
		return c.takeBot(ctx, ev, user, row, ours)
	}
	if person == "" || ev.Sender == string(r.mx.BotID()) {
		return nil
	}
	gone := membership == "leave" || membership == "ban"
	local := user.Homeserver() == r.mx.ServerName()
	switch {
	case isDing && owner == person && gone:
		return r.leftDing(ctx, person)
	case local && membership == "invite" && r.isBot(id.UserID(ev.Sender)):
		c.wake = true
		return r.exec(ctx, "recording an invitation", qSaveInvitation, ev.Room, string(user), ev.Sender, r.now())
	case !ours:
		return nil
	case !local && row.home != "": // its home looks after it
		return nil
	case !local && membership == "join":
		c.note(memberKey{key, person}, memberRow{true, reasonSync})
		c.wake = c.wake || !wanted
	case !local && gone:
		c.note(memberKey{key, person}, memberRow{false, r.reasonOf(ev)})
	case membership == "join" && away:
		return r.saveMembers(ctx, []memberChange{{memberKey{key, person}, memberRow{true, reasonSelf}}})
	case gone:
		reason := r.reasonOf(ev)
		if reason != reasonSync || r.isBot(id.UserID(ev.Sender)) { // a bot of another site's: by a tree that may be another
			c.wake = c.wake || reason == reasonSync
			return r.wentAway(ctx, memberKey{key, person}, reason)
		}
	}
	return nil
}

// takeBot takes what happens to a site's bot: an invitation to the own one, others' coming and going.
func (c *memberNotes) takeBot(ctx context.Context, ev *mxclient.Event, user id.UserID, row roomRow, ours bool) error {
	r := c.r
	membership := ev.Membership()
	gone := membership == "leave" || membership == "ban"
	if user == r.mx.BotID() {
		switch {
		case membership == "invite" && ev.Sender != string(user) && r.isBot(id.UserID(ev.Sender)):
			c.wake = true
			return r.exec(ctx, "recording an invitation", qSaveInvitation, ev.Room, string(user), ev.Sender, r.now())
		case gone && ours && row.home != "" && row.inside && ev.Sender != string(user):
			row.inside, c.wake = false, true
			return r.saveRoom(ctx, row)
		}
		return nil
	}
	site, _ := r.opts.Sites.OfServer(user.Homeserver())
	switch {
	case !ours:
	case membership == "join":
		c.wake = c.wake || row.home != ""
		return r.saveRoomSite(ctx, row.key, site.Name, siteJoined)
	case gone:
		return r.saveRoomSite(ctx, row.key, site.Name, siteLeft)
	}
	return nil
}

// reasonOf tells from the event by which somebody went whose doing it was. Who has no membership any more but an
// invitation was asked in again; that is no reason to stay away.
func (r *Reconciler) reasonOf(ev *mxclient.Event) string {
	var c struct {
		Membership string `json:"membership"`
		Reason     string `json:"reason"`
	}
	if json.Unmarshal(ev.Content, &c) != nil || r.isBot(id.UserID(ev.Sender)) || c.Reason == reasonTextZH || c.Reason == reasonTextEN {
		return reasonSync
	}
	switch {
	case c.Membership != "leave" && c.Membership != "ban":
		return reasonSync
	case ev.StateKey != nil && ev.Sender == *ev.StateKey:
		return reasonSelf
	}
	return reasonAdmin
}

// wentAway records a leave of somebody who is recorded as joined.
func (r *Reconciler) wentAway(ctx context.Context, k memberKey, reason string) error {
	joined, err := r.isJoined(ctx, k)
	if err != nil || !joined {
		return err
	}
	return r.saveMembers(ctx, []memberChange{{k, memberRow{false, reason}}})
}
