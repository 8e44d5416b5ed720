package rooms

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// ThirdParty is a person of whom an address is known and who is invited by it.
// Spec: client-server-api#third-party-invites
type ThirdParty struct {
	Medium   string `json:"medium"`
	Address  string `json:"address"`
	IDServer string `json:"id_server"`
	IDToken  string `json:"id_access_token"`
}

func (p ThirdParty) check() error {
	if p.Medium == "" || p.Address == "" || p.IDServer == "" || p.IDToken == "" {
		return matrix.MissingParam("medium, address, id_server and id_access_token are needed")
	}
	return nil
}

// Inviting is what an identity server is told of an invitation.
type Inviting struct {
	ThirdParty
	Room   matrix.RoomID
	Sender matrix.UserID
	// Alias, Avatar, JoinRule, Name, Type, SenderName and SenderAvatar may be empty.
	Alias, Avatar, JoinRule, Name, Type, SenderName, SenderAvatar string
}

// Kept is an invitation that an identity server keeps until somebody has proven the address.
type Kept struct {
	Token       string
	DisplayName string
	Keys        []InviteKey // by one of which the proof will be signed
}

// InviteKey is a key of an identity server.
type InviteKey struct {
	Key      string `json:"public_key"`
	Validity string `json:"key_validity_url,omitempty"`
}

// Identity reaches identity servers.
type Identity interface {
	// Invite finds the user of an address; when there is none, it has the identity server keep the invitation.
	Invite(ctx context.Context, q Inviting) (user matrix.UserID, kept *Kept, err error)
	// KeyValid asks at an address whether a key is in force.
	KeyValid(ctx context.Context, validity, key string) (bool, error)
}

// SetIdentity connects the way to identity servers, which is built later. Call it before serving.
func (r *Rooms) SetIdentity(i Identity) { r.identity = i }

func noIdentity() *matrix.Error {
	return matrix.NewError(http.StatusForbidden, "M_THREEPID_DENIED", "invitations by address need an identity server; this server uses none")
}

// InviteThirdParty invites somebody by an address: as the user who has it, or by an event that waits for him.
func (r *Rooms) InviteThirdParty(ctx context.Context, c MemberChange, p ThirdParty) error {
	if r.identity == nil {
		return noIdentity()
	}
	if err := p.check(); err != nil {
		return err
	}
	q, err := r.inviting(ctx, c, p)
	if err != nil {
		return err
	}
	user, kept, err := r.identity.Invite(ctx, q)
	if err != nil {
		return err
	}
	if user != "" {
		c.Target = user
		return r.Invite(ctx, c)
	}
	content := map[string]any{"display_name": kept.DisplayName, "public_keys": kept.Keys}
	if len(kept.Keys) > 0 { // what servers of old look at
		content["public_key"], content["key_validity_url"] = kept.Keys[0].Key, kept.Keys[0].Validity
	}
	body, err := json.Marshal(content)
	if err != nil {
		return err
	}
	_, err = r.Send(ctx, Draft{
		Room: c.Room, Sender: c.Sender, Type: spec.MRoomThirdPartyInvite, StateKey: &kept.Token, Content: body, TS: c.TS,
	})
	return err
}

// inviting checks that the sender may invite at all, before anybody else hears of it, and says what the identity server
// will tell the invited.
func (r *Rooms) inviting(ctx context.Context, c MemberChange, p ThirdParty) (Inviting, error) {
	q := Inviting{ThirdParty: p, Room: c.Room, Sender: c.Sender}
	rm, err := r.locked(ctx, c.Room)
	if err != nil {
		return q, err
	}
	defer rm.mu.Unlock()
	if rm.membership(c.Sender) != spec.Join {
		return q, matrix.Forbidden("%s is not joined to %s", c.Sender, c.Room)
	}
	l, err := rm.powerLevels(func(e *entry) (*events.Event, error) { return r.event(ctx, e) })
	if err != nil {
		return q, err
	}
	if l.user(c.Sender) < l.c.Invite {
		return q, matrix.Forbidden("inviting to this room needs power level %d, yours is %d", l.c.Invite, l.user(c.Sender))
	}
	q.Alias, q.Name = rm.contentString("m.room.canonical_alias", "alias"), rm.contentString("m.room.name", "name")
	q.Avatar, q.JoinRule = rm.contentString("m.room.avatar", "url"), rm.joinRule()
	q.Type = rm.contentString(spec.MRoomCreate, "type")
	if e := rm.state[memberKey(c.Sender)]; e != nil {
		member, err := r.event(ctx, e)
		if err != nil {
			return q, err
		}
		q.SenderName, q.SenderAvatar = member.ContentString("displayname"), member.ContentString("avatar_url")
	}
	return q, nil
}

// Proof is an identity server's word that a user has proven an address to which an invitation was kept.
type Proof struct {
	Sender      matrix.UserID   // who has invited
	User        matrix.UserID   // who has the address
	DisplayName string          // of the invitation; may be empty
	Signed      json.RawMessage // mxid, token and signatures, as the identity server has signed it
}

// AcceptThirdParty makes an invitation for a local user out of a kept one: here if the inviter is of this server, else
// at his.
// Spec: server-server-api#third-party-invites
func (r *Rooms) AcceptThirdParty(ctx context.Context, room matrix.RoomID, p Proof) error {
	if p.Sender.Server() == r.o.Signer.Server {
		return r.exchange(ctx, room, p)
	}
	if r.o.Remote == nil {
		return matrix.Forbidden("this server does not federate")
	}
	event, err := json.Marshal(map[string]any{
		"type": spec.MRoomMember, "room_id": room, "sender": p.Sender, "state_key": p.User,
		"content": map[string]any{"membership": spec.Invite, "third_party_invite": p.content()},
	})
	if err != nil {
		return err
	}
	return r.o.Remote.ExchangeThirdParty(ctx, p.Sender.Server(), room, event)
}

func (p Proof) content() map[string]any {
	return map[string]any{"display_name": p.DisplayName, "signed": p.Signed}
}

// ExchangeThirdParty makes an invitation for a user of another server out of one that was kept for him.
// Spec: put_matrixfederationv1exchange_third_party_inviteroomid
func (r *Rooms) ExchangeThirdParty(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, raw json.RawMessage) error {
	doc := gjson.ParseBytes(raw)
	signed := doc.Get("content.third_party_invite.signed")
	p := Proof{
		Sender: matrix.UserID(doc.Get("sender").Str), User: matrix.UserID(doc.Get("state_key").Str),
		DisplayName: doc.Get("content.third_party_invite.display_name").Str, Signed: json.RawMessage(signed.Raw),
	}
	switch {
	case doc.Get("type").Str != spec.MRoomMember || doc.Get("content.membership").Str != spec.Invite || !signed.IsObject():
		return matrix.BadJSON("an invitation with content.third_party_invite.signed is needed")
	case doc.Get("room_id").Str != string(room):
		return matrix.BadJSON("room_id is not that of the path")
	}
	if _, err := matrix.ParseUserID(string(p.User)); err != nil {
		return matrix.BadJSON("state_key must be the ID of the invited user")
	}
	switch {
	case p.User.Server() != origin:
		return matrix.Forbidden("%s is not a user of %s", p.User, origin)
	case !r.isLocal(p.Sender):
		return matrix.Forbidden("%s is not a user of this server", p.Sender)
	}
	return r.exchange(ctx, room, p)
}

// exchange turns a kept invitation of a local user into one for the user who has proven the address.
func (r *Rooms) exchange(ctx context.Context, room matrix.RoomID, p Proof) error {
	if !r.participates(room) {
		return matrix.NotFound("this server is not in %s", room)
	}
	token := gjson.GetBytes(p.Signed, "token").Str
	waiting, err := r.State(ctx, room, spec.MRoomThirdPartyInvite, token)
	if err != nil {
		return err
	}
	switch {
	case waiting == nil || token == "":
		return matrix.Forbidden("there is no such invitation in the room")
	case waiting.Sender != p.Sender:
		return matrix.Forbidden("%s has not made this invitation", p.Sender)
	case gjson.GetBytes(p.Signed, "mxid").Str != string(p.User):
		return matrix.Forbidden("this is the proof of somebody else")
	}
	key, ok := signedBy(p.Signed, waiting.Content())
	if !ok {
		return matrix.Forbidden("the proof is not signed by the identity server of the invitation")
	}
	if r.identity == nil {
		return noIdentity()
	}
	valid, err := r.identity.KeyValid(ctx, key.Validity, key.Key)
	if err != nil {
		return err
	}
	if !valid {
		return matrix.Forbidden("the identity server's key is no longer in force")
	}
	if p.DisplayName == "" {
		p.DisplayName = waiting.ContentString("display_name")
	}
	extra, err := json.Marshal(map[string]any{"third_party_invite": p.content()})
	if err != nil {
		return err
	}
	return r.Invite(ctx, MemberChange{Room: room, Sender: p.Sender, Target: p.User, Extra: extra})
}

// inviteKeys are those of an m.room.third_party_invite event.
func inviteKeys(content json.RawMessage) []InviteKey {
	var keys []InviteKey
	add := func(v gjson.Result) {
		if k := v.Get("public_key").Str; k != "" {
			keys = append(keys, InviteKey{k, v.Get("key_validity_url").Str})
		}
	}
	doc := gjson.ParseBytes(content)
	doc.Get("public_keys").ForEach(func(_, v gjson.Result) bool {
		add(v)
		return true
	})
	add(doc)
	return keys
}

// signedBy finds the key of the invitation that has signed a proof.
func signedBy(signed, content json.RawMessage) (InviteKey, bool) {
	for _, k := range inviteKeys(content) {
		raw := strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(k.Key, "="))
		public, err := base64.RawStdEncoding.DecodeString(raw)
		if err != nil || len(public) != 32 {
			continue
		}
		for domain, list := range gjson.GetBytes(signed, "signatures").Map() {
			for id := range list.Map() {
				if strings.HasPrefix(id, "ed25519:") && gomatrixserverlib.VerifyJSON(domain, gomatrixserverlib.KeyID(id), public, signed) == nil {
					return k, true
				}
			}
		}
	}
	return InviteKey{}, false
}

// thirdPartyAllowed judges an invitation that comes of a kept one, of which the library checks the signature alone, and
// only by part of the keys.
// Spec: rooms/v12#authorization-rules, 5.4.1
func thirdPartyAllowed(ev *events.Event, p gomatrixserverlib.AuthEventProvider) error {
	create, err := p.Create()
	if err != nil {
		return err
	}
	if create == nil || create.RoomID().String() != string(ev.Room) {
		return matrix.Forbidden("the room has no create event")
	}
	if gjson.GetBytes(create.Content(), "m\\.federate").Type == gjson.False && ev.Sender.Server() != matrix.UserID(create.SenderID()).Server() {
		return matrix.Forbidden("the room is for users of its own server only")
	}
	target := ""
	if ev.StateKey != nil {
		target = *ev.StateKey
	}
	member, err := p.Member(spec.SenderID(target))
	if err != nil {
		return err
	}
	if member != nil && gjson.GetBytes(member.Content(), "membership").Str == spec.Ban {
		return matrix.Forbidden("%s is banned from the room", target)
	}
	signed := gjson.GetBytes(ev.JSON, "content.third_party_invite.signed")
	token := signed.Get("token")
	if !signed.IsObject() || token.Type != gjson.String || signed.Get("mxid").Str != target {
		return matrix.Forbidden("the invitation holds no proof for %s", target)
	}
	waiting, err := p.ThirdPartyInvite(token.Str)
	if err != nil {
		return err
	}
	if waiting == nil {
		return matrix.Forbidden("there is no such invitation in the room")
	}
	if string(waiting.SenderID()) != string(ev.Sender) {
		return matrix.Forbidden("%s has not made this invitation", ev.Sender)
	}
	if _, ok := signedBy(json.RawMessage(signed.Raw), json.RawMessage(waiting.Content())); !ok {
		return matrix.Forbidden("the proof is not signed by the identity server of the invitation")
	}
	return nil
}

// isThirdParty reports whether an event is an invitation that comes of a kept one.
func isThirdParty(ev *events.Event) bool {
	return ev.Type == spec.MRoomMember && ev.Membership == spec.Invite && gjson.GetBytes(ev.JSON, "content.third_party_invite").Exists()
}

// signedJoin is the proof in the body of a join, which lets who is not yet invited in.
// Spec: post_matrixclientv3roomsroomidjoin
func (r *Rooms) signedJoin(ctx context.Context, user matrix.UserID, room matrix.RoomID, body json.RawMessage) error {
	signed := gjson.GetBytes(body, "third_party_signed")
	if !signed.Exists() || r.hub.Joined(user, room) {
		return nil
	}
	sender, err := matrix.ParseUserID(signed.Get("sender").Str)
	if err != nil || !signed.Get("signatures").IsObject() || signed.Get("token").Str == "" {
		return matrix.BadJSON("third_party_signed needs sender, mxid, token and signatures")
	}
	if signed.Get("mxid").Str != string(user) {
		return matrix.Forbidden("this is the proof of somebody else")
	}
	err = r.AcceptThirdParty(ctx, room, Proof{Sender: sender, User: user, Signed: json.RawMessage(signed.Raw)})
	if matrix.IsCode(err, "M_FORBIDDEN") {
		// An identity server that has told of the invitation by itself has not signed the sender.
		bare, e := sjson.DeleteBytes([]byte(signed.Raw), "sender")
		if e != nil {
			return e
		}
		err = r.AcceptThirdParty(ctx, room, Proof{Sender: sender, User: user, Signed: bare})
	}
	return err
}
