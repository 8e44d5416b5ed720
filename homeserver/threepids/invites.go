package threepids

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
)

var _ rooms.Identity = (*Threepids)(nil)

// maxOnBind bounds the invitations that one notification brings.
const maxOnBind = 50

// KeyValid implements rooms.Identity.
func (t *Threepids) KeyValid(ctx context.Context, validity, key string) (bool, error) {
	return t.stillValid(ctx, validity, key)
}

// Invite implements rooms.Identity.
//
// Spec: client-server-api#third-party-invites
func (t *Threepids) Invite(ctx context.Context, q rooms.Inviting) (matrix.UserID, *rooms.Kept, error) {
	server, err := t.trusted(q.IDServer)
	if err != nil {
		return "", nil, err
	}
	address, err := Canonical(q.Medium, q.Address)
	if err != nil {
		return "", nil, err
	}
	user, err := t.lookup(ctx, server, q.IDToken, q.Medium, address)
	if err != nil || user != "" {
		return user, nil, err
	}
	body := map[string]string{"medium": q.Medium, "address": address, "room_id": string(q.Room), "sender": string(q.Sender)}
	for k, v := range map[string]string{
		"room_alias": q.Alias, "room_avatar_url": q.Avatar, "room_join_rules": q.JoinRule, "room_name": q.Name, "room_type": q.Type,
		"sender_display_name": q.SenderName, "sender_avatar_url": q.SenderAvatar,
	} {
		if v != "" {
			body[k] = v
		}
	}
	var kept struct {
		Token       string            `json:"token"`
		Keys        []rooms.InviteKey `json:"public_keys"`
		DisplayName string            `json:"display_name"`
	}
	err = t.identity(ctx, fedclient.PlaceRequest{Method: http.MethodPost, Host: server, Path: identityV2 + "/store-invite", Token: q.IDToken, Body: body}, &kept)
	if err != nil {
		return "", nil, err
	}
	if kept.Token == "" || len(kept.Token) > 255 || len(kept.Keys) == 0 || len(kept.Keys) > 20 {
		return "", nil, matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "the identity server %s answered nonsense", server)
	}
	return "", &rooms.Kept{Token: kept.Token, DisplayName: kept.DisplayName, Keys: kept.Keys}, nil
}

// onBind is told by an identity server that a user of this server has proven an address, and of the invitations that
// were kept for it. It believes nothing of that: each is worth what its signature is, which the room judges.
//
// Spec: put_matrixfederationv13pidonbind
func (t *Threepids) onBind(c *httpapi.Call) (any, error) {
	var q struct {
		User    string `json:"mxid"`
		Invites []struct {
			User   string          `json:"mxid"`
			Room   string          `json:"room_id"`
			Sender string          `json:"sender"`
			Signed json.RawMessage `json:"signed"`
		} `json:"invites"`
	}
	if err := c.Body(&q); err != nil {
		return nil, err
	}
	user, err := matrix.ParseUserID(q.User)
	if err != nil {
		return nil, err
	}
	// Each invitation may cost a request to another server.
	if ok, retry := t.onbind.Allow(c.RemoteIP()); !ok {
		return nil, matrix.LimitExceeded(retry)
	}
	if q.Invites == nil {
		return nil, matrix.MissingParam("invites is needed")
	}
	if len(q.Invites) > maxOnBind {
		return nil, matrix.InvalidParam("at most %d invitations at a time", maxOnBind)
	}
	if user.Server() != t.opts.Server || !t.accounts.Active(user) {
		return nil, matrix.NotFound("%s is not a user of this server", user)
	}
	var failed error
	for _, i := range q.Invites {
		room, err := matrix.ParseRoomID(i.Room)
		if err == nil && (i.User != string(user) || len(i.Signed) == 0) {
			err = matrix.InvalidParam("an invitation is not for %s or not signed", user)
		}
		var sender matrix.UserID
		if err == nil {
			sender, err = matrix.ParseUserID(i.Sender)
		}
		if err == nil {
			err = t.rooms.AcceptThirdParty(c.Ctx(), room, rooms.Proof{Sender: sender, User: user, Signed: i.Signed})
		}
		if err != nil {
			log.WithError(err).WithField("user_id", user).Info("an invitation that was kept for an address could not be taken")
			failed = errors.Join(failed, err)
		}
	}
	var e *matrix.Error
	if errors.As(failed, &e) {
		return nil, e
	}
	return nil, failed
}
