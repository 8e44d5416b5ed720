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
	var c struct {
		Membership string `json:"membership"`
		Reason     string `json:"reason"`
	}
	if json.Unmarshal(ev.Content, &c) != nil {
		return nil
	}
	gone := c.Membership == "leave" || c.Membership == "ban"
	switch {
	case isDing && owner == person && gone:
		return r.leftDing(ctx, person)
	case !ours:
		return nil
	case c.Membership == "join" && away:
		return r.saveMembers(ctx, []memberChange{{memberKey{key, person}, memberRow{true, reasonSelf}}})
	case gone && c.Reason != reasonTextZH && c.Reason != reasonTextEN:
		reason := reasonAdmin
		if ev.Sender == *ev.StateKey {
			reason = reasonSelf
		}
		return r.wentAway(ctx, memberKey{key, person}, reason)
	}
	return nil
}

// wentAway records a leave of somebody who is recorded as joined.
func (r *Reconciler) wentAway(ctx context.Context, k memberKey, reason string) error {
	joined, err := r.isJoined(ctx, k)
	if err != nil || !joined {
		return err
	}
	return r.saveMembers(ctx, []memberChange{{k, memberRow{false, reason}}})
}
