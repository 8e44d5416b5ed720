package rooms

import (
	"context"
	"encoding/json"
	"strconv"

	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// delayParam is how clients ask /send and /state to wait, in ms.
// Spec: MSC4140
const delayParam = "org.matrix.msc4140.delay"

// stickyParam reads how long, in ms, an event is to be sticky; nil if it is not.
// Spec: MSC4354
func stickyParam(c *httpapi.Call) (*int64, error) {
	v := c.Query("org.matrix.msc4354.sticky_duration_ms")
	if v == "" {
		return nil, nil
	}
	ms, err := strconv.ParseInt(v, 10, 64)
	if err != nil || ms < 0 || ms > events.MaxSticky {
		return nil, matrix.InvalidParam("sticky_duration_ms must be a number from 0 to %d", events.MaxSticky)
	}
	return &ms, nil
}

// Put sends what a client asks for, with the checks that go beyond the rules of
// the room: relations, aliases and redactions, and member events through the door
// of their membership.
func (r *Rooms) Put(ctx context.Context, d Draft) (matrix.EventID, error) {
	switch {
	case d.StateKey != nil && d.Type == spec.MRoomMember:
		return r.putMember(ctx, d)
	case d.StateKey != nil:
		if err := r.checkState(ctx, d.Room, d.Type, *d.StateKey, d.Content); err != nil {
			return "", err
		}
	case d.Type == spec.MRoomRedaction: // since v1.18 a redaction may come by /send
		var q struct {
			Redacts matrix.EventID `json:"redacts"`
		}
		if err := json.Unmarshal(d.Content, &q); err != nil || q.Redacts == "" {
			return "", matrix.BadJSON("a redaction's content needs redacts, the ID of an event")
		}
		return r.redactEvent(ctx, d, q.Redacts)
	default:
		if err := r.checkRelation(ctx, d); err != nil {
			return "", err
		}
	}
	return r.Send(ctx, d)
}

// putMember sends a member event through the door of its membership, so that
// joins and invitations go the way that they must.
func (r *Rooms) putMember(ctx context.Context, d Draft) (matrix.EventID, error) {
	user, err := matrix.ParseUserID(*d.StateKey)
	if err != nil {
		return "", err
	}
	var q struct {
		Membership string `json:"membership"`
	}
	if err := json.Unmarshal(d.Content, &q); err != nil || q.Membership == "" {
		return "", matrix.BadJSON("a member event needs a membership")
	}
	m := MemberChange{Room: d.Room, Sender: d.Sender, Target: user, Extra: d.Content, TS: d.TS, Txn: d.Txn}
	switch {
	case q.Membership == spec.Join && user != d.Sender:
		return "", matrix.Forbidden("only %s may join as %s", user, user)
	case q.Membership == spec.Join:
		err = r.Join(ctx, m)
	case q.Membership == spec.Invite:
		err = r.Invite(ctx, m)
	case q.Membership == spec.Ban:
		err = r.Ban(ctx, m)
	case q.Membership == spec.Leave && user == d.Sender:
		err = r.Leave(ctx, m)
	case q.Membership == spec.Leave:
		err = r.Kick(ctx, m)
	case q.Membership == spec.Knock && user == d.Sender:
		err = r.Knock(ctx, m)
	default:
		return "", matrix.BadJSON("%q is not a membership", q.Membership)
	}
	if err != nil {
		return "", err
	}
	e, err := r.State(ctx, d.Room, spec.MRoomMember, *d.StateKey)
	if err != nil || e == nil {
		return "", err
	}
	return e.ID, nil
}
