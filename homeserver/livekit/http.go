package livekit

import (
	"errors"
	"net/http"
	"slices"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Base is what the addresses for clients begin with. Clients that know a service
// beside the homeserver are given it, behind the homeserver's own address.
const Base = "/_matrix/client/v1/rtc/livekit"

const (
	// maxName bounds names of slots, devices and participants, in bytes.
	maxName = 255
	// roomSlot is the slot of a room's one call, for clients that know no slots.
	roomSlot = "m.call#ROOM"
	maxBody  = 64 << 10
)

// Routes are the endpoints of the proposal, and those of clients that know the
// service beside the homeserver. Suspended users may not call.
func (k *LiveKit) Routes() []httpapi.Route {
	post := func(path string, auth httpapi.Auth, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: http.MethodPost, Path: path, Auth: auth, RateLimit: true, AllowGuest: true, MaxBody: maxBody, Handler: h}
	}
	return []httpapi.Route{
		post(Base+"/get_token", httpapi.AuthOptional, k.postToken),
		post(Base+"/delegate_delayed_leave", httpapi.AuthOptional, k.postLeave),
		post(Base+"/sfu/get", httpapi.AuthNone, k.postOld), // compat
		// Not limited: the media server tells of everybody who comes and goes.
		{Method: http.MethodPost, Path: Base + "/sfu_webhook", MaxBody: maxBody, Handler: k.postHook},
		post("/_matrix/federation/v1/rtc/livekit/get_token", httpapi.AuthServer, k.postServer),
	}
}

// request is what a token is asked for with.
type request struct {
	Room   matrix.RoomID `json:"room_id"`
	Slot   string        `json:"slot_id"`
	Member *member       `json:"member"`
}

// member is the part of a participant's event that names him. The proposal's text
// does not say how another server learns whose member it is, which the name on the
// media server is made of; deployed services have the claimed user in here.
type member struct {
	ID     string        `json:"id"`
	Device string        `json:"claimed_device_id"`
	User   matrix.UserID `json:"claimed_user_id,omitempty"`
}

// openID is a token by which somebody else can learn who one is.
type openID struct {
	Token  string            `json:"access_token"`
	Server matrix.ServerName `json:"matrix_server_name"`
}

func (r *request) check() error {
	switch {
	case r.Room == "" || r.Slot == "" || r.Member == nil:
		return matrix.MissingParam("room_id, slot_id and member are needed")
	case r.Member.ID == "" || r.Member.Device == "":
		return matrix.MissingParam("member needs id and claimed_device_id")
	case len(r.Slot) > maxName || len(r.Member.ID) > maxName || len(r.Member.Device) > maxName:
		return matrix.InvalidParam("slot_id, id and claimed_device_id may have %d bytes each", maxName)
	}
	_, err := matrix.ParseRoomID(string(r.Room))
	return err
}

// unauthorized is what everybody hears who gets no token, whatever the reason:
// nobody learns from it which rooms or users there are. Source: MSC4195
func unauthorized() *matrix.Error {
	return matrix.NewError(http.StatusUnauthorized, "M_UNAUTHORIZED", "no token is given for this room")
}

// absent is said where there is no media server.
func absent() *matrix.Error { return matrix.NotFound("this server has no server for calls") }

// postToken gives an own user a token, for this server's calls or those of another
// one, and whoever shows a token of OpenID for this server's.
func (k *LiveKit) postToken(c *httpapi.Call) (any, error) {
	var in struct {
		request
		Server matrix.ServerName `json:"server_name"`
		OpenID *openID           `json:"openid_token"`
	}
	if err := c.Body(&in); err != nil {
		return nil, err
	}
	if c.Caller == nil && in.OpenID == nil {
		return nil, matrix.MissingToken()
	}
	if err := in.check(); err != nil {
		return nil, err
	}
	if c.Caller == nil {
		user, err := k.whose(c, in.Room, in.OpenID)
		if err != nil {
			return nil, err
		}
		if in.Member.User != "" && in.Member.User != user {
			return nil, unauthorized()
		}
		return k.admit(c, user, in.request)
	}
	user := c.Caller.User
	if in.Server == "" || in.Server == k.o.Server {
		return k.admit(c, user, in.request)
	}
	if !matrix.ValidServerName(string(in.Server)) {
		return nil, matrix.InvalidParam("server_name is no name of a server")
	}
	if err := k.joined(c, in.Room, user); err != nil {
		return nil, err
	}
	return k.abroad(c, user, in.Server, in.request)
}

// abroad asks another server, which must be in the room too: we ask nobody else
// at the word of a client.
func (k *LiveKit) abroad(c *httpapi.Call, user matrix.UserID, server matrix.ServerName, in request) (any, error) {
	if k.o.Ask == nil || !slices.Contains(k.rooms.ServersIn(in.Room), server) {
		return nil, unauthorized()
	}
	m := *in.Member
	m.User = user
	in.Member = &m
	t, err := k.o.Ask(c.Ctx(), server, in)
	if err != nil {
		return nil, err
	}
	if t.JWT == "" || t.URL == "" {
		return nil, matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "%s returned no token", server)
	}
	return t, nil
}

// postServer gives a user of another server a token for this server's calls.
func (k *LiveKit) postServer(c *httpapi.Call) (any, error) {
	if k.signer == nil {
		return nil, absent()
	}
	var in request
	if err := c.Body(&in); err != nil {
		return nil, err
	}
	if err := in.check(); err != nil {
		return nil, err
	}
	user, err := matrix.ParseUserID(string(in.Member.User))
	if err != nil {
		return nil, matrix.MissingParam("member needs claimed_user_id")
	}
	if user.Server() != c.Origin {
		return nil, unauthorized()
	}
	return k.admit(c, user, in)
}

// admit gives a user a token for a call of this server.
func (k *LiveKit) admit(c *httpapi.Call, user matrix.UserID, in request) (any, error) {
	if err := k.joined(c, in.Room, user); err != nil {
		return nil, err
	}
	if k.signer == nil {
		return nil, absent()
	}
	identity, err := hash(string(user), in.Member.Device, in.Member.ID)
	if err != nil {
		return nil, err
	}
	alias, err := k.alias(in.Room, in.Slot)
	if err != nil {
		return nil, err
	}
	own := user.Server() == k.o.Server
	return k.ticket(c.Ctx(), alias, identity, own, own)
}

// postOld is the endpoint of clients that know no slots. In their calls all send
// to one media server, that of whoever came first, so guests from elsewhere send
// there, too. Source: element-hq/lk-jwt-service, /sfu/get
func (k *LiveKit) postOld(c *httpapi.Call) (any, error) {
	var in struct {
		Room   matrix.RoomID `json:"room"`
		Device string        `json:"device_id"`
		OpenID *openID       `json:"openid_token"`
	}
	if err := c.Body(&in); err != nil {
		return nil, err
	}
	if in.Room == "" || in.Device == "" || in.OpenID == nil {
		return nil, matrix.MissingParam("room, device_id and openid_token are needed")
	}
	if len(in.Device) > maxName {
		return nil, matrix.InvalidParam("device_id may have %d bytes", maxName)
	}
	if _, err := matrix.ParseRoomID(string(in.Room)); err != nil {
		return nil, err
	}
	user, err := k.whose(c, in.Room, in.OpenID)
	if err != nil {
		return nil, err
	}
	if err := k.joined(c, in.Room, user); err != nil {
		return nil, err
	}
	if k.signer == nil {
		return nil, absent()
	}
	alias, err := k.alias(in.Room, roomSlot)
	if err != nil {
		return nil, err
	}
	return k.ticket(c.Ctx(), alias, string(user)+":"+in.Device, true, user.Server() == k.o.Server)
}

// whose finds out who shows a token of OpenID. Servers that are not in the room are
// not asked: no stranger makes this server knock at doors.
func (k *LiveKit) whose(c *httpapi.Call, room matrix.RoomID, id *openID) (matrix.UserID, error) {
	if id.Token == "" || !matrix.ValidServerName(string(id.Server)) {
		return "", matrix.MissingParam("openid_token needs access_token and matrix_server_name")
	}
	if !slices.Contains(k.rooms.ServersIn(room), id.Server) {
		return "", unauthorized()
	}
	user, err := k.o.Whose(c.Ctx(), id.Server, id.Token)
	if err != nil {
		if e := (*matrix.Error)(nil); !errors.As(err, &e) {
			return "", err
		}
		log.WithError(err).WithField("server", id.Server).Info("a token for a call is refused: its OpenID token is not confirmed")
		return "", unauthorized()
	}
	if user.Server() != id.Server {
		return "", unauthorized()
	}
	return user, nil
}

// joined lets only members of a room pass.
func (k *LiveKit) joined(c *httpapi.Call, room matrix.RoomID, user matrix.UserID) error {
	m, err := k.rooms.Membership(c.Ctx(), room, user)
	if err != nil {
		return err
	}
	if m != "join" {
		return unauthorized()
	}
	return nil
}
