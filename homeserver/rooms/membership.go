package rooms

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
)

// MemberChange is a change of membership that a local user asks for.
type MemberChange struct {
	Room   matrix.RoomID
	Sender matrix.UserID
	Target matrix.UserID
	Reason string
	// Via are servers that know the room, for joins and knocks.
	Via []matrix.ServerName
	// Extra holds further fields of the member event's content, an object.
	Extra json.RawMessage
	TS    int64
	// Service is the application service's own user that makes the change for the target.
	Service matrix.UserID
	// Direct marks an invitation to a direct chat.
	Direct bool
	// Txn is as in Draft, where this server makes the event by itself.
	Txn string
}

// content makes the member event's content; the target's profile is only in
// what his own server makes.
func (r *Rooms) memberContent(ctx context.Context, c MemberChange, membership string) (json.RawMessage, error) {
	m := map[string]any{}
	if len(c.Extra) > 0 {
		if err := json.Unmarshal(c.Extra, &m); err != nil {
			return nil, matrix.BadJSON("the member event's content must be an object")
		}
		delete(m, "join_authorised_via_users_server") // who vouches is not the client's to say
	}
	m["membership"] = membership
	if c.Reason != "" {
		m["reason"] = c.Reason
	}
	if c.Direct && membership == spec.Invite {
		m["is_direct"] = true
	}
	if r.isLocal(c.Target) && (membership == spec.Join || membership == spec.Invite || membership == spec.Knock) && r.o.Profile != nil {
		name, avatar, err := r.o.Profile(ctx, c.Target)
		if err != nil {
			return nil, fmt.Errorf("reading profile: %w", err)
		}
		if _, ok := m["displayname"]; !ok && name != "" {
			m["displayname"] = name
		}
		if _, ok := m["avatar_url"]; !ok && avatar != "" {
			m["avatar_url"] = avatar
		}
	}
	return json.Marshal(m)
}

// member builds and commits a member event in a room that this server is in.
// before looks at the room as it stands; it may refuse, give further fields for
// the content, or say that there is nothing to do.
func (r *Rooms) member(ctx context.Context, c MemberChange, membership string, before func(*room) (extra map[string]any, done bool, err error)) (*events.Event, error) {
	content, err := r.memberContent(ctx, c, membership)
	if err != nil {
		return nil, err
	}
	key := string(c.Target)
	evs, err := r.change(ctx, c.Room, func(rm *room) ([]*built, error) {
		body := content
		if before != nil {
			extra, done, err := before(rm)
			if done || err != nil {
				return nil, err
			}
			for k, v := range extra {
				if body, err = sjson.SetBytes(body, k, v); err != nil {
					return nil, err
				}
			}
		}
		b, err := r.build(ctx, rm, Draft{
			Room: c.Room, Sender: c.Sender, Type: spec.MRoomMember, StateKey: &key, Content: body, TS: c.TS, Txn: c.Txn,
		})
		if err != nil {
			return nil, err
		}
		return []*built{b}, nil
	})
	if err != nil || len(evs) == 0 {
		return nil, err
	}
	return evs[0], nil
}

// participates reports whether this server has a user joined to the room, so
// that it can change it by itself.
func (r *Rooms) participates(id matrix.RoomID) bool { return r.hub.LocalCount(id) > 0 }

// Join joins a local user. It goes through another server where this one is not
// in the room or may not vouch for the user.
// Spec: client-server-api#joining-rooms, rooms/v8#authorization-rules
func (r *Rooms) Join(ctx context.Context, c MemberChange) error {
	if r.hub.Joined(c.Target, c.Room) && len(c.Extra) == 0 {
		return nil
	}
	guest := r.isGuest(c.Target)
	if guest && !r.participates(c.Room) {
		return noGuests() // what the room says of guests is known to those in it
	}
	if !r.participates(c.Room) {
		// One after another: the first brings the room's state in, the others are
		// local users like any.
		unlock, err := r.entering.LockContext(ctx, c.Room)
		if err != nil {
			return err
		}
		defer unlock()
		if !r.participates(c.Room) {
			return r.joinRemote(ctx, c, true)
		}
	}
	elsewhere := false
	_, err := r.member(ctx, c, spec.Join, func(rm *room) (map[string]any, bool, error) {
		elsewhere = false
		if guest {
			if err := rm.admitGuest(); err != nil {
				return nil, false, err
			}
		}
		rule := rm.joinRule()
		if rule != spec.Restricted && rule != spec.KnockRestricted {
			return nil, false, nil
		}
		if m := rm.membership(c.Target); m == spec.Join || m == spec.Invite {
			return nil, false, nil
		}
		ok, known := r.allowedByRooms(rm, c.Target, c.Service)
		if !ok && !known && r.o.Remote != nil {
			elsewhere = true
			return nil, true, nil
		}
		if !ok {
			return nil, false, matrix.Forbidden("you are in none of the rooms whose members may join %s", c.Room)
		}
		via, err := r.voucher(ctx, rm)
		if err != nil {
			return nil, false, err
		}
		if via == "" {
			elsewhere = true
			return nil, true, nil
		}
		return map[string]any{"join_authorised_via_users_server": string(via)}, false, nil
	})
	if err == nil && elsewhere {
		return r.joinRemote(ctx, c, false)
	}
	return err
}

// allowedByRooms evaluates the allow rules of a restricted room. known says that
// the answer is certain: this server is in all the rooms that count.
func (r *Rooms) allowedByRooms(rm *room, user, service matrix.UserID) (ok, known bool) {
	known = true
	e := rm.current(spec.MRoomJoinRules, "")
	if e == nil {
		return false, true
	}
	gjson.GetBytes(e.JSON, "content.allow").ForEach(func(_, a gjson.Result) bool {
		if id := matrix.RoomID(a.Get("room_id").Str); a.Get("type").Str == spec.MRoomMembership {
			if !r.participates(id) {
				known = false // what is remembered of it may be out of date
			} else if r.hub.Joined(user, id) {
				ok = true
			}
		}
		if service != "" && a.Get("type").Str == "im.carillon.application_service" && a.Get("user_id").Str == string(service) && rm.membership(service) == spec.Join {
			ok = true
		}
		return !ok
	})
	return ok, known
}

// voucher finds a local user who may invite, "" if there is none.
func (r *Rooms) voucher(ctx context.Context, rm *room) (matrix.UserID, error) {
	l, err := rm.powerLevels(func(e *entry) (*events.Event, error) { return r.event(ctx, e) })
	if err != nil {
		return "", err
	}
	may := func(u matrix.UserID) bool {
		return r.isLocal(u) && rm.membership(u) == spec.Join && l.user(u) >= l.c.Invite
	}
	for _, u := range l.creators {
		if may(u) {
			return u, nil
		}
	}
	for u := range l.c.Users {
		if may(matrix.UserID(u)) {
			return matrix.UserID(u), nil
		}
	}
	for k, e := range rm.state {
		if k.Type == spec.MRoomMember && e.membership == spec.Join && may(matrix.UserID(k.StateKey)) {
			return matrix.UserID(k.StateKey), nil
		}
	}
	return "", nil
}

// Invite invites a user, local or not.
func (r *Rooms) Invite(ctx context.Context, c MemberChange) error {
	if r.isLocal(c.Target) {
		if r.o.Exists != nil {
			ok, err := r.o.Exists(ctx, c.Target)
			if err != nil {
				return err
			}
			if !ok {
				return matrix.NotFound("%s is not a user of this server", c.Target)
			}
		}
		if err := r.mayInvite(c.Sender, c.Target); err != nil {
			return err
		}
		_, err := r.member(ctx, c, spec.Invite, notJoined(c.Target))
		return err
	}
	return r.inviteRemote(ctx, c)
}

// mayInvite refuses invitations that a local user has blocked.
// Spec: client-server-api#invite-permission
func (r *Rooms) mayInvite(sender, target matrix.UserID) error {
	if r.o.InviteBlocked != nil && r.o.InviteBlocked(sender, target) {
		return matrix.NewError(http.StatusForbidden, "M_INVITE_BLOCKED", "%s does not take invitations", target)
	}
	return nil
}

func notJoined(user matrix.UserID) func(*room) (map[string]any, bool, error) {
	return func(rm *room) (map[string]any, bool, error) {
		if rm.membership(user) == spec.Join {
			return nil, false, matrix.Forbidden("%s is in the room already", user)
		}
		return nil, false, nil
	}
}

// Leave takes a local user out of a room, or declines his invitation.
func (r *Rooms) Leave(ctx context.Context, c MemberChange) error {
	if r.o.MayLeave != nil {
		if err := r.o.MayLeave(ctx, c.Target, c.Room); err != nil {
			return err
		}
	}
	return r.leave(ctx, c)
}

func (r *Rooms) leave(ctx context.Context, c MemberChange) error {
	if !r.participates(c.Room) {
		return r.leaveRemote(ctx, c)
	}
	_, err := r.member(ctx, c, spec.Leave, func(rm *room) (map[string]any, bool, error) {
		switch rm.membership(c.Target) {
		case spec.Join, spec.Invite, spec.Knock:
			return nil, false, nil
		case spec.Leave:
			return nil, true, nil
		case spec.Ban:
			return nil, false, matrix.Forbidden("you are banned from %s", c.Room)
		}
		return nil, false, matrix.Forbidden("you are not in %s", c.Room)
	})
	return err
}

// Kick removes another user; Ban removes him for good, Unban undoes that.
func (r *Rooms) Kick(ctx context.Context, c MemberChange) error {
	_, err := r.member(ctx, c, spec.Leave, func(rm *room) (map[string]any, bool, error) {
		switch rm.membership(c.Target) {
		case spec.Join, spec.Invite, spec.Knock:
			return nil, false, nil
		}
		return nil, false, matrix.Forbidden("%s is not in the room", c.Target)
	})
	return err
}

// Ban is described at Kick.
func (r *Rooms) Ban(ctx context.Context, c MemberChange) error {
	_, err := r.member(ctx, c, spec.Ban, func(rm *room) (map[string]any, bool, error) {
		return nil, rm.membership(c.Target) == spec.Ban, nil
	})
	return err
}

// Unban is described at Kick.
func (r *Rooms) Unban(ctx context.Context, c MemberChange) error {
	_, err := r.member(ctx, c, spec.Leave, func(rm *room) (map[string]any, bool, error) {
		if rm.membership(c.Target) != spec.Ban {
			return nil, false, matrix.Forbidden("%s is not banned from the room", c.Target)
		}
		return nil, false, nil
	})
	return err
}

// Knock asks to be let in.
func (r *Rooms) Knock(ctx context.Context, c MemberChange) error {
	if !r.participates(c.Room) {
		return r.knockRemote(ctx, c)
	}
	_, err := r.member(ctx, c, spec.Knock, func(rm *room) (map[string]any, bool, error) {
		return nil, rm.membership(c.Target) == spec.Knock, nil
	})
	return err
}

// UpdateMember rewrites a local user's member events after a change of profile;
// rooms that refuse are left as they are.
func (r *Rooms) UpdateMember(ctx context.Context, user matrix.UserID, id matrix.RoomID) error {
	var old *events.Event
	c := MemberChange{Room: id, Sender: user, Target: user}
	name, avatar := "", ""
	if r.o.Profile != nil {
		var err error
		if name, avatar, err = r.o.Profile(ctx, user); err != nil {
			return err
		}
	}
	_, err := r.change(ctx, id, func(rm *room) ([]*built, error) {
		e := rm.state[memberKey(user)]
		if e == nil || e.membership != spec.Join {
			return nil, nil
		}
		var err error
		if old, err = r.event(ctx, e); err != nil {
			return nil, err
		}
		body := old.Content()
		for field, v := range map[string]string{"displayname": name, "avatar_url": avatar} {
			if v == "" {
				body, err = sjson.DeleteBytes(body, field)
			} else {
				body, err = sjson.SetBytes(body, field, v)
			}
			if err != nil {
				return nil, err
			}
		}
		if same(old.Content(), body) {
			return nil, nil
		}
		key := string(user)
		b, err := r.build(ctx, rm, Draft{Room: id, Sender: user, Type: spec.MRoomMember, StateKey: &key, Content: body, TS: c.TS})
		if err != nil {
			return nil, err
		}
		return []*built{b}, nil
	})
	if matrix.IsCode(err, "M_FORBIDDEN") {
		return nil
	}
	return err
}

// LeaveAll takes a user out of every room, as when his account is closed.
func (r *Rooms) LeaveAll(ctx context.Context, user matrix.UserID) error {
	var list []Member
	err := r.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		list, err = r.Memberships(tx, user)
		return err
	})
	if err != nil {
		return fmt.Errorf("reading memberships: %w", err)
	}
	for _, m := range list {
		if slices.Contains([]string{spec.Join, spec.Invite, spec.Knock}, m.Membership) {
			if err := r.leave(ctx, MemberChange{Room: m.Room, Sender: user, Target: user}); err != nil {
				return fmt.Errorf("leaving %s: %w", m.Room, err)
			}
		}
	}
	return nil
}

// ACLAllows reports whether a server may take part in a room.
// Spec: client-server-api#server-access-control-lists-acls-for-rooms
func (r *Rooms) ACLAllows(ctx context.Context, id matrix.RoomID, server matrix.ServerName) (bool, error) {
	rm, err := r.locked(ctx, id)
	if matrix.IsCode(err, "M_NOT_FOUND") {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer rm.mu.Unlock()
	e := rm.state[state.Key{Type: "m.room.server_acl"}]
	if e == nil || e.ev == nil {
		return true, nil
	}
	return aclAllows(e.ev.Content(), server), nil
}
