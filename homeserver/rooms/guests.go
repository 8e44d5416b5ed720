package rooms

import (
	"context"
	"net/http"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const guestAccess = "m.room.guest_access"

// mostReviews is how many rooms wait for a look at their guests; beyond that all
// guests are looked at instead.
const mostReviews = 1000

// guests sees to it that guests are in no room that does not want them.
//
// Spec: client-server-api#guest-access
type guests struct {
	review chan matrix.RoomID // rooms whose guest access may have changed
	all    chan struct{}      // review was full: all guests
}

func (r *Rooms) isGuest(u matrix.UserID) bool { return r.o.IsGuest != nil && r.o.IsGuest(u) }

// admitGuest refuses a guest where the room does not let guests in.
func (rm *room) admitGuest() error {
	if rm.contentString(guestAccess, "guest_access") == "can_join" {
		return nil
	}
	return noGuests()
}

func noGuests() error {
	return matrix.NewError(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "guests may not join this room")
}

// hear notes the rooms whose guest access may have changed.
func (g *guests) hear(changes []stream.Change) {
	for i := range changes {
		e, ok := changes[i].Payload.(*events.Event)
		if !ok || e.Resolved == nil && (e.Type != guestAccess || e.StateKey == nil) {
			continue
		}
		select {
		case g.review <- e.Room:
		default:
			select {
			case g.all <- struct{}{}:
			default: // it is noted already
			}
		}
	}
}

// RunGuests has guests leave the rooms that close to them. It begins with all of
// them, as it may have been stopped in between.
func (r *Rooms) RunGuests(ctx context.Context) error {
	r.reviewAll(ctx)
	for {
		select {
		case room := <-r.guests.review:
			r.reviewGuests(ctx, room)
		case <-r.guests.all:
			r.reviewAll(ctx)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *Rooms) reviewAll(ctx context.Context) {
	if r.o.Guests == nil {
		return
	}
	seen := map[matrix.RoomID]bool{}
	for _, u := range r.o.Guests() {
		for _, room := range r.hub.RoomsOf(u) {
			if !seen[room] {
				seen[room] = true
				r.reviewGuests(ctx, room)
			}
		}
	}
}

// reviewGuests has the guests in a room leave, if it does not let them in.
func (r *Rooms) reviewGuests(ctx context.Context, room matrix.RoomID) {
	var list []matrix.UserID
	for _, u := range r.hub.LocalMembers(room) {
		if r.isGuest(u) {
			list = append(list, u)
		}
	}
	if len(list) == 0 {
		return
	}
	access, err := r.State(ctx, room, guestAccess, "")
	switch {
	case err != nil:
		log.WithError(err).WithField("room_id", room).Warn("the guests of a room could not be looked at")
		return
	case access != nil && access.ContentString("guest_access") == "can_join":
		return
	}
	for _, u := range list {
		err := r.leave(ctx, MemberChange{Room: room, Sender: u, Target: u, Reason: "guests may not be in this room any more"})
		if err != nil && ctx.Err() == nil {
			log.WithError(err).WithFields(log.Fields{"room_id": room, "user_id": u}).Warn("a guest could not be taken out of a room")
		}
	}
}
