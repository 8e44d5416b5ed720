package rooms

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/state"
)

// userIDForSender: in all stable room versions the sender is the user ID.
func userIDForSender(_ spec.RoomID, sender spec.SenderID) (*spec.UserID, error) {
	return spec.NewUserID(string(sender), true)
}

// provider gives the authorisation rules the room's state as it stands.
type provider struct {
	ctx context.Context
	r   *Rooms
	rm  *room
	err *error // of reading the state
}

func (p provider) get(typ, key string) (gomatrixserverlib.PDU, error) {
	e := p.rm.state[state.Key{Type: typ, StateKey: key}]
	if e == nil {
		return nil, nil
	}
	pdu, err := p.r.pduOf(p.ctx, p.rm, e)
	if err != nil {
		*p.err = err
	}
	return pdu, err
}

// maxKept is how many members' PDUs a room keeps: those who act for others, such
// as who vouches for joins, are needed again and again.
const maxKept = 64

func (r *Rooms) pduOf(ctx context.Context, rm *room, e *entry) (gomatrixserverlib.PDU, error) {
	if e.pdu != nil {
		return e.pdu, nil
	}
	ev, err := r.event(ctx, e)
	if err != nil {
		return nil, err
	}
	pdu, err := ev.PDU()
	if err != nil {
		return nil, err
	}
	if e.ev == nil { // members are many: the PDUs of a few are kept
		if rm.kept == maxKept {
			return pdu, nil
		}
		rm.kept++
	}
	e.pdu = pdu
	return pdu, nil
}

func (p provider) Create() (gomatrixserverlib.PDU, error)    { return p.get(spec.MRoomCreate, "") }
func (p provider) JoinRules() (gomatrixserverlib.PDU, error) { return p.get(spec.MRoomJoinRules, "") }

func (p provider) PowerLevels() (gomatrixserverlib.PDU, error) {
	return p.get(spec.MRoomPowerLevels, "")
}

func (p provider) Member(u spec.SenderID) (gomatrixserverlib.PDU, error) {
	return p.get(spec.MRoomMember, string(u))
}

func (p provider) ThirdPartyInvite(key string) (gomatrixserverlib.PDU, error) {
	return p.get(spec.MRoomThirdPartyInvite, key)
}
func (p provider) Valid() bool { return true }

// authEventIDs selects the events that authorise a new event.
// Spec: server-server-api#auth-events-selection
func (r *Rooms) authEventIDs(ctx context.Context, rm *room, p *events.Proto) ([]matrix.EventID, error) {
	keys := []state.Key{{Type: spec.MRoomCreate}, {Type: spec.MRoomPowerLevels}, memberKey(p.Sender)}
	if p.Type == spec.MRoomMember && p.StateKey != nil {
		needed, err := gomatrixserverlib.StateNeededForProtoEvent(&gomatrixserverlib.ProtoEvent{
			Type: p.Type, StateKey: p.StateKey, Content: spec.RawJSON(p.Content), SenderID: string(p.Sender), Version: rm.impl,
		})
		if err != nil {
			return nil, matrix.BadJSON("malformed member event: %s", err)
		}
		keys = keys[:0]
		for _, t := range needed.Tuples() {
			keys = append(keys, state.Key{Type: t.EventType, StateKey: t.StateKey})
		}
	}
	ids := make([]matrix.EventID, 0, len(keys))
	for _, k := range keys {
		e := rm.state[k]
		if e == nil {
			continue
		}
		if e.id == "" {
			if _, err := r.event(ctx, e); err != nil {
				return nil, err
			}
		}
		ids = append(ids, e.id)
	}
	return ids, nil
}

// authorise checks a new event against the room's state.
// Spec: rooms/v12#authorization-rules and those of the other versions
func (r *Rooms) authorise(ctx context.Context, rm *room, ev *events.Event) error {
	if ev.StateKey == nil && ev.Type != spec.MRoomRedaction {
		return r.authoriseMessage(ctx, rm, ev)
	}
	pdu, err := ev.PDU()
	if err != nil {
		return err
	}
	var failed error
	err = allowed(ev, pdu, provider{ctx, r, rm, &failed})
	if failed != nil {
		return fmt.Errorf("reading the state that authorises: %w", failed)
	}
	return err
}

// allowed applies the authorisation rules.
func allowed(ev *events.Event, pdu gomatrixserverlib.PDU, p gomatrixserverlib.AuthEventProvider) error {
	if isThirdParty(ev) {
		return thirdPartyAllowed(ev, p)
	}
	pdu, err := ownedForm(ev, pdu, p)
	if err != nil {
		return err
	}
	err = gomatrixserverlib.Allowed(pdu, p, userIDForSender)
	if err != nil && ev.Type == spec.MRoomPowerLevels && strings.Contains(err.Error(), "notification level") {
		err = notificationLevels(ev, pdu, p)
	}
	if err != nil {
		return notAllowed(err)
	}
	return nil
}

// notificationLevels judges changes of notification levels, where the library is
// stricter than the rules: it does not know that creators stand above all levels,
// and refuses to change a level that is the sender's own. All else that it checks
// of the event it has checked before or is checked here.
// Spec: rooms/v12#authorization-rules, 9.5 and 9.10
func notificationLevels(ev *events.Event, pdu gomatrixserverlib.PDU, p gomatrixserverlib.AuthEventProvider) error {
	create, err := p.Create()
	if err != nil || create == nil {
		return matrix.Forbidden("the room has no create event")
	}
	impl, err := events.RoomVersion(ev.Version)
	if err != nil {
		return err
	}
	old, err := gomatrixserverlib.NewPowerLevelContentFromAuthEvents(p, string(create.SenderID()))
	if err != nil {
		return err
	}
	now, err := gomatrixserverlib.NewPowerLevelContentFromEvent(pdu)
	if err != nil {
		return err
	}
	level := old.UserLevel(spec.SenderID(ev.Sender))
	if impl.PrivilegedCreators() {
		creators := gomatrixserverlib.CreatorsFromCreateEvent(create)
		for u := range now.Users {
			if slices.Contains(creators, u) {
				return matrix.Forbidden("%s is a creator of the room and has no level", u)
			}
		}
		if slices.Contains(creators, string(ev.Sender)) {
			return nil
		}
	}
	for _, m := range []map[string]int64{old.Notifications, now.Notifications} {
		for k := range m {
			was, is := old.NotificationLevel(k), now.NotificationLevel(k)
			if was != is && (was > level || is > level) {
				return matrix.Forbidden("changing the level of notification %s from %d to %d needs a level above yours, %d", k, was, is, level)
			}
		}
	}
	for u := range old.Users {
		if was := old.Users[u]; was != now.UserLevel(spec.SenderID(u)) && was >= level && u != string(ev.Sender) {
			return matrix.Forbidden("%s has a level not below yours", u)
		}
	}
	for u, is := range now.Users {
		if is != old.UserLevel(spec.SenderID(u)) && is > level {
			return matrix.Forbidden("you cannot give a level above your own")
		}
	}
	return nil
}

// authoriseMessage is the same for message events, without parsing anything:
// the sender is joined and his level suffices.
func (r *Rooms) authoriseMessage(ctx context.Context, rm *room, ev *events.Event) error {
	if rm.membership(ev.Sender) != spec.Join {
		return matrix.Forbidden("%s is not joined to %s", ev.Sender, rm.id)
	}
	l, err := rm.powerLevels(func(e *entry) (*events.Event, error) { return r.event(ctx, e) })
	if err != nil {
		return err
	}
	if need, have := l.c.EventLevel(ev.Type, false), l.user(ev.Sender); have < need {
		return matrix.Forbidden("sending %s in this room needs power level %d, yours is %d", ev.Type, need, have)
	}
	return nil
}

// notAllowed words what the rules say against an event. Whatever they cannot
// make sense of is not allowed either.
func notAllowed(err error) error {
	var me *matrix.Error
	var na *gomatrixserverlib.NotAllowed
	switch {
	case errors.As(err, &me):
		return me
	case errors.As(err, &na):
		return matrix.Forbidden("%s", na.Message)
	}
	return matrix.Forbidden("%s", err)
}

// checkLevels refuses power levels that give creators a level, as a mistake of
// the client and not as something forbidden.
// Spec: rooms/v12#authorization-rules, 9.4
func (r *Rooms) checkLevels(ctx context.Context, rm *room, d Draft) error {
	if d.Type != spec.MRoomPowerLevels || d.StateKey == nil || *d.StateKey != "" {
		return nil
	}
	if err := rm.impl.ParsePowerLevels(d.Content, &gomatrixserverlib.PowerLevelContent{}); err != nil {
		return matrix.BadJSON("the power levels cannot be read: %s", err)
	}
	if !rm.impl.PrivilegedCreators() {
		return nil
	}
	l, err := rm.powerLevels(func(e *entry) (*events.Event, error) { return r.event(ctx, e) })
	if err != nil {
		return err
	}
	users := gjson.GetBytes(d.Content, "users").Map()
	for _, u := range l.creators {
		if _, ok := users[string(u)]; ok {
			return matrix.InvalidParam("%s is a creator of the room and has no power level", u)
		}
	}
	return nil
}
