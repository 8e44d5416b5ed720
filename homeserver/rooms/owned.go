package rooms

import (
	"context"
	"strings"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/sjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// maxSuffix is how long a state key may be behind the ID of its owner, in bytes,
// with the character that parts them.
const maxSuffix = 256

// ownerOf finds whose a state key is: it begins with his ID, up to the first
// underscore behind the name.
// Spec: MSC3757
func ownerOf(key string) (matrix.UserID, error) {
	end := len(key)
	if colon := strings.IndexByte(key, ':'); colon >= 0 {
		if i := strings.IndexByte(key[colon:], '_'); i >= 0 {
			end = colon + i
		}
	}
	owner, err := matrix.ParseUserID(key[:end])
	if err != nil {
		return "", matrix.BadJSON("the state key begins with what is no user ID")
	}
	if len(key)-end > maxSuffix {
		return "", matrix.BadJSON("a state key may have %d bytes behind the ID of its owner", maxSuffix)
	}
	return owner, nil
}

// isOwned reports whether an event's state key begins with a user's ID; member
// events have rules of their own.
func isOwned(ev *events.Event) bool {
	switch ev.Type {
	case spec.MRoomMember, spec.MRoomCreate:
		return false
	}
	return strings.HasPrefix(ev.Key(), "@")
}

// ownedForm is an event of a room version with rules of its own for state that
// belongs to a user, in a form that the library judges by all the other rules.
// Spec: MSC3757, MSC3779
func ownedForm(ev *events.Event, pdu gomatrixserverlib.PDU, p gomatrixserverlib.AuthEventProvider) (gomatrixserverlib.PDU, error) {
	switch {
	case ev.StateKey == nil:
		return pdu, nil
	case events.ProtectsOwned(ev.Version) && isOwned(ev):
		if err := mayOverwrite(ev, p); err != nil {
			return nil, err
		}
		return rekeyed(ev, ptrTo(string(ev.Sender)))
	case events.ProtectsOwned(ev.Version) && len(ev.Key()) > maxSuffix-1:
		return nil, matrix.Forbidden("the state key has %d bytes", len(ev.Key()))
	case events.FreesOwned(ev.Version) && isOwned(ev) && (ev.Key() == string(ev.Sender) || strings.HasPrefix(ev.Key(), string(ev.Sender)+"_")):
		return rekeyed(ev, nil) // as a message, which has the level that is wanted
	}
	return pdu, nil
}

func ptrTo(s string) *string { return &s }

// mayOverwrite refuses to set what belongs to somebody else, unless the sender is
// above him.
func mayOverwrite(ev *events.Event, p gomatrixserverlib.AuthEventProvider) error {
	owner, err := ownerOf(ev.Key())
	if err != nil {
		return matrix.Forbidden("the state key is not that of a user's state")
	}
	if owner == ev.Sender {
		return nil
	}
	create, err := p.Create()
	if err != nil || create == nil {
		return matrix.Forbidden("the room has no create event")
	}
	levels, err := gomatrixserverlib.NewPowerLevelContentFromAuthEvents(p, string(create.SenderID()))
	if err != nil {
		return notAllowed(err)
	}
	if mine, his := levels.UserLevel(spec.SenderID(ev.Sender)), levels.UserLevel(spec.SenderID(owner)); mine <= his {
		return matrix.Forbidden("this belongs to %s, whose level of %d is not below yours, %d", owner, his, mine)
	}
	return nil
}

// rekeyed is the event with another state key, nil for none, as the library reads it.
func rekeyed(ev *events.Event, key *string) (gomatrixserverlib.PDU, error) {
	form := ev.Placed(ev.NID, ev.Pos, 0)
	var err error
	if key == nil {
		form.JSON, err = sjson.DeleteBytes(ev.JSON, "state_key")
	} else {
		form.JSON, err = sjson.SetBytes(ev.JSON, "state_key", *key)
	}
	if err != nil {
		return nil, err
	}
	return form.PDU()
}

// checkKey tells a client that a state key cannot be, where the room's version has
// rules for those that begin with a user's ID.
func (r *Rooms) checkKey(ctx context.Context, id matrix.RoomID, key string) error {
	if !strings.HasPrefix(key, "@") && len(key) < maxSuffix {
		return nil
	}
	version, err := r.Version(ctx, id)
	if err != nil || !events.ProtectsOwned(gomatrixserverlib.RoomVersion(version)) {
		return nil //nolint:nilerr // whoever sends will hear of it
	}
	if !strings.HasPrefix(key, "@") {
		return matrix.TooLarge("a state key may have %d bytes", maxSuffix-1)
	}
	_, err = ownerOf(key)
	return err
}
