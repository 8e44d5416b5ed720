// Package notices lets a server speak to its people in its own name: its
// administrators send notices, and each person gets them in a room of his own.
//
// Tables: notice_rooms, notice_senders.
//
// Spec: client-server-api#server-notices
//
// Invariants: a person has at most one room of notices, and knows it by its tag;
// nobody but the server speaks in it; an invitation to it cannot be rejected; the
// sender is an account that was made for it and that nobody can log in to.
package notices

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/profiles"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

//go:embed schema
var schema embed.FS

const (
	qRoom      = `SELECT room_id FROM notice_rooms WHERE user_id = $1`
	qSetRoom   = `INSERT INTO notice_rooms (user_id, room_id) VALUES ($1, $2) ON CONFLICT (user_id) DO UPDATE SET room_id = excluded.room_id`
	qDropRoom  = `DELETE FROM notice_rooms WHERE user_id = $1`
	qSender    = `SELECT user_id FROM notice_senders WHERE user_id = $1`
	qSetSender = `INSERT INTO notice_senders (user_id) VALUES ($1) ON CONFLICT (user_id) DO NOTHING`
)

const (
	// tag is how clients know the room.
	tag        = "m.server_notice"
	pinnedType = "m.room.pinned_events"
	// maxPinned bounds the notices that are active in a room; the oldest give way.
	maxPinned = 100
)

// Options says who speaks and where.
type Options struct {
	Server      matrix.ServerName
	Localpart   string // of the sender
	DisplayName string
	AvatarURL   string // mxc://, "" for none
	RoomName    string
	RoomTopic   string
	RoomAvatar  string // mxc://, "" for none
	// MayLeave lets people leave the room once they have joined it. They are
	// invited again with the next notice.
	MayLeave bool
}

// Parts is what the module works with.
type Parts struct {
	DB       *sqldb.DB
	Hub      *hub.Hub
	Rooms    *rooms.Rooms
	Accounts *accounts.Accounts
	Profiles *profiles.Profiles
	Data     *accountdata.Data
}

// Notices is the module.
type Notices struct {
	Parts
	o      Options
	sender matrix.UserID
	busy   gate.Keyed[matrix.UserID] // those who are being written to

	mu    sync.Mutex
	ready bool // the sender's account is as it should be
}

// New prepares the module. It fails if the sender's name is somebody's.
func New(ctx context.Context, p Parts, o Options) (*Notices, error) {
	if err := p.DB.Migrate(ctx, "notices", schema); err != nil {
		return nil, err
	}
	n := &Notices{Parts: p, o: o, sender: matrix.NewUserID(o.Localpart, o.Server)}
	if _, err := matrix.ParseUserID(string(n.sender)); err != nil {
		return nil, fmt.Errorf("the sender of server notices: %w", err)
	}
	if !p.Accounts.Exists(n.sender) {
		return n, nil
	}
	own, err := n.lookUp(ctx, qSender, n.sender)
	if err != nil {
		return nil, fmt.Errorf("reading the sender of server notices: %w", err)
	}
	if own == "" {
		return nil, fmt.Errorf("%s cannot send server notices: the account is somebody's", n.sender)
	}
	return n, nil
}

// Sender is the user who sends notices.
func (n *Notices) Sender() matrix.UserID { return n.sender }

// lookUp reads the one value of a user's row; "" if there is none.
func (n *Notices) lookUp(ctx context.Context, query string, user matrix.UserID) (value string, err error) {
	err = n.DB.Read(ctx, func(tx *sqldb.Tx) error {
		value = ""
		err := tx.QueryRow(query, string(user)).Scan(&value)
		if errors.Is(err, sqldb.ErrNoRows) {
			return nil
		}
		return err
	})
	return value, err
}

// Notice is what a person is to be told.
type Notice struct {
	To       matrix.UserID
	Type     string // m.room.message if it is empty
	StateKey *string
	Content  json.RawMessage
	// Pin makes it an active notice, which clients show until it is no longer pinned.
	Pin bool
	// Txn is as in rooms.Draft.
	Txn string
}

// Send sends a notice. The person is invited to the room of notices if he is not
// in it.
func (n *Notices) Send(ctx context.Context, q Notice) (matrix.RoomID, matrix.EventID, error) {
	if q.To.Server() != n.o.Server || !n.Accounts.Active(q.To) || q.To == n.sender {
		return "", "", matrix.NotFound("%s has no account here", q.To)
	}
	unlock, err := n.busy.LockContext(ctx, q.To)
	if err != nil {
		return "", "", err
	}
	defer unlock()
	room, err := n.room(ctx, q.To)
	if err != nil {
		return "", "", err
	}
	if err := n.invite(ctx, q.To, room); err != nil {
		return "", "", err
	}
	if q.Type == "" {
		q.Type = "m.room.message"
	}
	id, err := n.Rooms.Send(ctx, rooms.Draft{Room: room, Sender: n.sender, Type: q.Type, StateKey: q.StateKey, Content: q.Content, Txn: q.Txn})
	if err == nil && q.Pin {
		err = n.pin(ctx, room, id, true)
	}
	return room, id, err
}

// Withdraw ends an active notice: it stays in the room, but is not pinned any more.
func (n *Notices) Withdraw(ctx context.Context, user matrix.UserID, id matrix.EventID) error {
	unlock, err := n.busy.LockContext(ctx, user)
	if err != nil {
		return err
	}
	defer unlock()
	room, err := n.lookUp(ctx, qRoom, user)
	if err != nil {
		return fmt.Errorf("reading the room of notices: %w", err)
	}
	if room == "" {
		return matrix.NotFound("%s has had no notices", user)
	}
	return n.pin(ctx, matrix.RoomID(room), id, false)
}

// account sees to it that the sender exists and has its name and picture.
func (n *Notices) account(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ready {
		return nil
	}
	if !n.Accounts.Exists(n.sender) {
		err := n.DB.Write(ctx, func(tx *sqldb.Tx) error {
			_, err := tx.Exec(qSetSender, string(n.sender))
			return err
		})
		if err != nil {
			return fmt.Errorf("noting the sender of notices: %w", err)
		}
		if err := n.Accounts.Create(ctx, accounts.NewUser{ID: n.sender, DisplayName: n.o.DisplayName}); err != nil {
			return fmt.Errorf("making the sender of notices: %w", err)
		}
	}
	is := n.Profiles.Name(n.sender)
	for field, v := range map[string][2]string{
		profiles.DisplayName: {is.DisplayName, n.o.DisplayName}, profiles.AvatarURL: {is.AvatarURL, n.o.AvatarURL},
	} {
		if v[0] == v[1] {
			continue
		}
		var value json.RawMessage // nil removes it
		if v[1] != "" {
			value, _ = json.Marshal(v[1])
		}
		if err := n.Profiles.Set(ctx, n.sender, field, value); err != nil {
			return fmt.Errorf("profile of the sender of notices: %w", err)
		}
	}
	n.ready = true
	return nil
}

// room is the person's room of notices, a new one if there is none that the
// sender is in. busy is held.
func (n *Notices) room(ctx context.Context, user matrix.UserID) (matrix.RoomID, error) {
	if err := n.account(ctx); err != nil {
		return "", err
	}
	old, err := n.lookUp(ctx, qRoom, user)
	if err != nil {
		return "", fmt.Errorf("reading the room of notices: %w", err)
	}
	if old != "" && n.Hub.Joined(n.sender, matrix.RoomID(old)) {
		return matrix.RoomID(old), nil
	}
	q := rooms.CreateRequest{
		Preset: "private_chat", Name: n.o.RoomName, Topic: n.o.RoomTopic,
		PowerLevels: json.RawMessage(`{"events_default":50,"invite":50,"users_default":0}`),
	}
	if n.o.RoomAvatar != "" {
		avatar, err := json.Marshal(map[string]string{"url": n.o.RoomAvatar})
		if err != nil {
			return "", err
		}
		q.InitialState = []rooms.InitialState{{Type: "m.room.avatar", Content: avatar}}
	}
	room, err := n.Rooms.Create(ctx, n.sender, q, 0)
	if err != nil {
		return "", fmt.Errorf("making a room of notices: %w", err)
	}
	err = n.DB.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qSetRoom, string(user), string(room))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("storing the room of notices: %w", err)
	}
	if old != "" {
		err = n.mark(ctx, user, matrix.RoomID(old), false)
	}
	return room, err
}

// invite brings a person into the room who is neither in it nor invited.
func (n *Notices) invite(ctx context.Context, user matrix.UserID, room matrix.RoomID) error {
	m, err := n.Rooms.MembershipOf(ctx, user, room)
	if err != nil || m != nil && (m.Membership == "join" || m.Membership == "invite") {
		return err
	}
	if err := n.mark(ctx, user, room, true); err != nil {
		return err
	}
	return n.Rooms.Invite(ctx, rooms.MemberChange{Room: room, Sender: n.sender, Target: user})
}

// mark gives a room the tag by which clients know it, or takes it away.
func (n *Notices) mark(ctx context.Context, user matrix.UserID, room matrix.RoomID, on bool) error {
	return n.Data.Update(ctx, user, room, accountdata.TypeTag, func(old json.RawMessage) (json.RawMessage, error) {
		var content struct {
			Tags map[string]json.RawMessage `json:"tags"`
		}
		_ = json.Unmarshal(old, &content) // what cannot be read holds no tags
		if _, has := content.Tags[tag]; has == on {
			return nil, nil
		}
		if content.Tags == nil {
			content.Tags = map[string]json.RawMessage{}
		}
		if on {
			content.Tags[tag] = json.RawMessage(`{}`)
		} else {
			delete(content.Tags, tag)
		}
		return json.Marshal(content)
	})
}

// pin adds a notice to the active ones of a room, or takes it out of them. busy is held.
func (n *Notices) pin(ctx context.Context, room matrix.RoomID, id matrix.EventID, on bool) error {
	e, err := n.Rooms.State(ctx, room, pinnedType, "")
	if err != nil && !matrix.IsCode(err, "M_NOT_FOUND") {
		return err
	}
	pinned := []matrix.EventID{}
	if e != nil {
		for _, v := range gjson.GetBytes(e.Content(), "pinned").Array() {
			pinned = append(pinned, matrix.EventID(v.Str))
		}
	}
	if slices.Contains(pinned, id) == on {
		return nil
	}
	if on {
		pinned = append(pinned, id)
		pinned = pinned[max(len(pinned)-maxPinned, 0):]
	} else {
		pinned = slices.DeleteFunc(pinned, func(p matrix.EventID) bool { return p == id })
	}
	content, err := json.Marshal(map[string]any{"pinned": pinned})
	if err != nil {
		return err
	}
	key := ""
	_, err = n.Rooms.Send(ctx, rooms.Draft{Room: room, Sender: n.sender, Type: pinnedType, StateKey: &key, Content: content})
	return err
}

// MayLeave refuses to let a person reject the invitation to the room of notices,
// or leave it where that is not allowed.
func (n *Notices) MayLeave(ctx context.Context, user matrix.UserID, room matrix.RoomID) error {
	own, err := n.lookUp(ctx, qRoom, user)
	if err != nil {
		return fmt.Errorf("reading the room of notices: %w", err)
	}
	if own != string(room) {
		return nil
	}
	m, err := n.Rooms.MembershipOf(ctx, user, room)
	if err != nil {
		return err
	}
	if m != nil && (m.Membership == "invite" || m.Membership == "join" && !n.o.MayLeave) {
		return matrix.NewError(http.StatusForbidden, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM", "the room of the server's notices cannot be left")
	}
	return nil
}

// DeleteUser forgets the room of somebody whose account is closed.
func (n *Notices) DeleteUser(tx *sqldb.Tx, user matrix.UserID) error {
	_, err := tx.Exec(qDropRoom, string(user))
	return err
}
