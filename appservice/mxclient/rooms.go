package mxclient

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"

	"maunium.net/go/mautrix/id"
)

const (
	clientV1    = "/_matrix/client/v1"
	clientV3    = "/_matrix/client/v3"
	clientRooms = clientV3 + "/rooms"
)

// SendEvent sends a message event as sender ("" is the bot). The same txn of the same sender gives the same event ID.
func (c *Client) SendEvent(ctx context.Context, room id.RoomID, sender id.UserID, typ string, content any, txn string) (id.EventID, error) {
	var out struct {
		ID id.EventID `json:"event_id"`
	}
	err := c.Do(ctx, Request{Method: http.MethodPut, Path: Path(clientRooms, string(room), "send", typ, txn), As: sender, Body: content}, &out)
	return out.ID, err
}

// Redact redacts an event as sender ("" is the bot).
func (c *Client) Redact(ctx context.Context, room id.RoomID, sender id.UserID, event id.EventID, reason, txn string) (id.EventID, error) {
	body := map[string]string{}
	if reason != "" {
		body["reason"] = reason
	}
	var out struct {
		ID id.EventID `json:"event_id"`
	}
	err := c.Do(ctx, Request{Method: http.MethodPut, Path: Path(clientRooms, string(room), "redact", string(event), txn), As: sender, Body: body}, &out)
	return out.ID, err
}

// CreateRoom creates a room as user ("" is the bot); req is the body of POST /createRoom. A request without
// room_alias_name is made once only: repeated after an unclear failure it could make a second room.
func (c *Client) CreateRoom(ctx context.Context, as id.UserID, req any, hasAlias bool) (id.RoomID, error) {
	var out struct {
		Room id.RoomID `json:"room_id"`
	}
	err := c.Do(ctx, Request{Method: http.MethodPost, Path: clientV3 + "/createRoom", As: as, Body: req, Once: !hasAlias}, &out)
	return out.Room, err
}

// Join makes user join the room by itself. Joining twice changes nothing.
func (c *Client) Join(ctx context.Context, user id.UserID, room id.RoomID) error {
	return c.Do(ctx, Request{Method: http.MethodPost, Path: Path(clientRooms, string(room), "join"), As: user}, nil)
}

// JoinVia makes user join a room that may be on other servers, through one of those named. It is tried once: who calls
// it comes again.
func (c *Client) JoinVia(ctx context.Context, user id.UserID, room id.RoomID, via ...string) error {
	// Older servers know the other name.
	q := url.Values{"via": via, "server_name": via}
	return c.Do(ctx, Request{Method: http.MethodPost, Path: Path(clientV3+"/join", string(room)), Query: q, As: user, Once: true}, nil)
}

// InviteOnce makes the bot invite a user of another server; it is tried once.
func (c *Client) InviteOnce(ctx context.Context, room id.RoomID, user id.UserID) error {
	body := struct {
		User id.UserID `json:"user_id"`
	}{user}
	return c.Do(ctx, Request{Method: http.MethodPost, Path: Path(clientRooms, string(room), "invite"), Body: body, Once: true}, nil)
}

// Invite invites user to the room.
func (c *Client) Invite(ctx context.Context, by id.UserID, room id.RoomID, user id.UserID) error {
	return c.member(ctx, by, room, "invite", user, "")
}

// Leave makes user leave the room (or refuse an invitation).
func (c *Client) Leave(ctx context.Context, user id.UserID, room id.RoomID, reason string) error {
	return c.member(ctx, user, room, "leave", "", reason)
}

// Kick removes user from the room.
func (c *Client) Kick(ctx context.Context, by id.UserID, room id.RoomID, user id.UserID, reason string) error {
	return c.member(ctx, by, room, "kick", user, reason)
}

func (c *Client) member(ctx context.Context, as id.UserID, room id.RoomID, verb string, user id.UserID, reason string) error {
	body := struct {
		User   id.UserID `json:"user_id,omitempty"`
		Reason string    `json:"reason,omitempty"`
	}{user, reason}
	return c.Do(ctx, Request{Method: http.MethodPost, Path: Path(clientRooms, string(room), verb), As: as, Body: body}, nil)
}

// State reads the content of one state event into out; mautrix.MNotFound when there is none.
func (c *Client) State(ctx context.Context, as id.UserID, room id.RoomID, typ, key string, out any) error {
	return c.Do(ctx, Request{Method: http.MethodGet, Path: Path(clientRooms, string(room), "state", typ) + "/" + url.PathEscape(key), As: as}, out)
}

// StateAll reads all state events of a room.
func (c *Client) StateAll(ctx context.Context, as id.UserID, room id.RoomID) ([]*Event, error) {
	var raw []json.RawMessage
	if err := c.Do(ctx, Request{Method: http.MethodGet, Path: Path(clientRooms, string(room), "state"), As: as}, &raw); err != nil {
		return nil, err
	}
	return parseEvents(raw)
}

func parseEvents(raw []json.RawMessage) ([]*Event, error) {
	out := make([]*Event, 0, len(raw))
	for _, r := range raw {
		ev, err := ParseEvent(r)
		if err != nil {
			return nil, err
		}
		out = append(out, ev)
	}
	return out, nil
}

// SetState writes a state event as sender ("" is the bot).
func (c *Client) SetState(ctx context.Context, room id.RoomID, sender id.UserID, typ, key string, content any) (id.EventID, error) {
	var out struct {
		ID id.EventID `json:"event_id"`
	}
	err := c.Do(ctx, Request{Method: http.MethodPut, Path: Path(clientRooms, string(room), "state", typ) + "/" + url.PathEscape(key), As: sender, Body: content}, &out)
	return out.ID, err
}

// Member is one joined member of a room.
type Member struct {
	DisplayName string `json:"display_name"`
	AvatarURL   string `json:"avatar_url"`
}

// JoinedMembers lists who is joined.
func (c *Client) JoinedMembers(ctx context.Context, as id.UserID, room id.RoomID) (map[id.UserID]Member, error) {
	var out struct {
		Joined map[id.UserID]Member `json:"joined"`
	}
	err := c.Do(ctx, Request{Method: http.MethodGet, Path: Path(clientRooms, string(room), "joined_members"), As: as}, &out)
	return out.Joined, err
}

// Gone lists the member events of those who are not joined, with who made them.
func (c *Client) Gone(ctx context.Context, as id.UserID, room id.RoomID) ([]*Event, error) {
	var out struct {
		Chunk []json.RawMessage `json:"chunk"`
	}
	q := url.Values{"not_membership": {"join"}}
	if err := c.Do(ctx, Request{Method: http.MethodGet, Path: Path(clientRooms, string(room), "members"), Query: q, As: as}, &out); err != nil {
		return nil, err
	}
	return parseEvents(out.Chunk)
}

// JoinedRooms lists the rooms user is joined to.
func (c *Client) JoinedRooms(ctx context.Context, user id.UserID) ([]id.RoomID, error) {
	var out struct {
		Rooms []id.RoomID `json:"joined_rooms"`
	}
	err := c.Do(ctx, Request{Method: http.MethodGet, Path: clientV3 + "/joined_rooms", As: user}, &out)
	return out.Rooms, err
}

// Event reads one event as user ("" is the bot).
func (c *Client) Event(ctx context.Context, as id.UserID, room id.RoomID, event id.EventID) (*Event, error) {
	var raw json.RawMessage
	if err := c.Do(ctx, Request{Method: http.MethodGet, Path: Path(clientRooms, string(room), "event", string(event)), As: as}, &raw); err != nil {
		return nil, err
	}
	return ParseEvent(raw)
}

// Messages is one page of a room's history.
type Messages struct {
	Start  string   `json:"start"`
	End    string   `json:"end"`
	Events []*Event `json:"chunk"`
}

// Messages reads a page of history; dir is "b" or "f", from may be empty.
func (c *Client) Messages(ctx context.Context, as id.UserID, room id.RoomID, dir, from string, limit int) (*Messages, error) {
	q := url.Values{"dir": {dir}, "limit": {strconv.Itoa(limit)}}
	if from != "" {
		q.Set("from", from)
	}
	out := new(Messages)
	if err := c.Do(ctx, Request{Method: http.MethodGet, Path: Path(clientRooms, string(room), "messages"), Query: q, As: as}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// ResolveAlias finds the room of an alias; mautrix.MNotFound when there is none.
func (c *Client) ResolveAlias(ctx context.Context, alias string) (id.RoomID, error) {
	var out struct {
		Room id.RoomID `json:"room_id"`
	}
	err := c.Do(ctx, Request{Method: http.MethodGet, Path: Path(clientV3+"/directory/room", alias)}, &out)
	return out.Room, err
}
