package derive

import (
	"context"
	"encoding/json"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
)

// OnMember notes who leaves a room of the company on his own or by a moderator's hand, and who comes back. What the
// service itself does is known by the sender or by the reason, and passed over.
func (r *Reconciler) OnMember(ctx context.Context, ev *mxclient.Event) error {
	if ev.Type != "m.room.member" || ev.StateKey == nil {
		return nil
	}
	user := id.UserID(*ev.StateKey)
	r.mu.RLock()
	person, isPerson := r.people[user]
	key, ours := r.byRoom[id.RoomID(ev.Room)]
	owner, isDing := r.dingOf[id.RoomID(ev.Room)]
	_, away := r.away[memberKey{key, person}]
	r.mu.RUnlock()
	if !isPerson || ev.Sender == string(r.mx.BotID()) {
		return nil
	}
	membership := ev.Membership()
	gone := membership == "leave" || membership == "ban"
	switch {
	case isDing && owner == person && gone:
		return r.leftDing(ctx, person)
	case !ours:
		return nil
	case membership == "join" && away:
		return r.saveMembers(ctx, []memberChange{{memberKey{key, person}, memberRow{true, reasonSelf}}})
	case gone:
		if reason := r.reasonOf(ev); reason != reasonSync {
			return r.wentAway(ctx, memberKey{key, person}, reason)
		}
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
	if json.Unmarshal(ev.Content, &c) != nil || ev.Sender == string(r.mx.BotID()) || c.Reason == reasonTextZH || c.Reason == reasonTextEN {
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
