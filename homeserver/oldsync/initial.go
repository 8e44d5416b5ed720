package oldsync

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/history"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// roomInfo is a room as it stands.
type roomInfo struct {
	Room       matrix.RoomID   `json:"room_id"`
	Membership string          `json:"membership,omitempty"`
	Invite     json.RawMessage `json:"invite,omitempty"`
	Messages   *messages       `json:"messages,omitempty"`
	State      json.RawMessage `json:"state,omitempty"`
	Visibility string          `json:"visibility,omitempty"`
	Data       []entryJSON     `json:"account_data,omitempty"`
}

type messages struct {
	Start string          `json:"start,omitempty"`
	End   string          `json:"end"`
	Chunk json.RawMessage `json:"chunk"`
}

// entryJSON is a value of account data as an event.
type entryJSON struct {
	Type    string          `json:"type"`
	Content json.RawMessage `json:"content"`
}

func dataOf(list []accountdata.Entry) []entryJSON {
	out := make([]entryJSON, len(list))
	for i, e := range list {
		out[i] = entryJSON{e.Type, e.Content}
	}
	return out
}

// shown are the memberships that the old endpoints know.
func shown(membership string) string {
	if membership == "knock" {
		return ""
	}
	return membership
}

// getAll is the state of all of the user's rooms.
func (s *OldSync) getAll(c *httpapi.Call) (any, error) {
	limit, err := c.QueryInt("limit", defaultLimit, 0, maxLimit)
	if err != nil {
		return nil, err
	}
	archived, err := c.Bool("archived")
	if err != nil {
		return nil, err
	}
	user := c.Caller.User
	out := struct {
		End      string            `json:"end"`
		Rooms    []*roomInfo       `json:"rooms"`
		Presence []json.RawMessage `json:"presence"`
		Data     []entryJSON       `json:"account_data"`
	}{}
	to := s.Log.Head()
	err = s.DB.Read(c.Ctx(), func(tx *sqldb.Tx) error {
		out.Rooms = []*roomInfo{}
		list, err := s.Rooms.Memberships(tx, user)
		if err != nil {
			return err
		}
		global, data, err := s.Data.All(c.Ctx(), tx, user)
		if err != nil {
			return err
		}
		out.Data = dataOf(global)
		for _, m := range list {
			if m.Forgotten || m.Pos > to {
				continue
			}
			info, err := s.standing(c, tx, m, archived, limit, to)
			if err != nil {
				return err
			}
			if info != nil {
				info.Data = dataOf(data[m.Room])
				out.Rooms = append(out.Rooms, info)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading rooms: %w", err)
	}
	for _, info := range out.Rooms {
		if info.Visibility, err = s.visibility(c.Ctx(), info.Room); err != nil {
			return nil, err
		}
	}
	out.End, out.Presence = history.Token(to), s.presences(user)
	return out, nil
}

// standing is what the user is shown of a room by his membership; nil is nothing.
func (s *OldSync) standing(c *httpapi.Call, tx *sqldb.Tx, m rooms.Member, archived bool, limit int, to stream.Pos) (*roomInfo, error) {
	switch m.Membership {
	case "join":
	case "invite":
		return s.invitation(c, tx, m)
	case "leave", "ban":
		if !archived || !m.WasJoined {
			return nil, nil
		}
	default:
		return nil, nil
	}
	info := &roomInfo{Room: m.Room, Membership: m.Membership}
	return info, s.fill(c.Ctx(), tx, info, history.Standing(m, c.Caller.Device), limit, to)
}

func (s *OldSync) invitation(c *httpapi.Call, tx *sqldb.Tx, m rooms.Member) (*roomInfo, error) {
	if s.InviteBlocked != nil && s.InviteBlocked(m.Sender, m.User) || s.Data.Ignored(m.User).Has(m.Sender) {
		return nil, nil
	}
	info := &roomInfo{Room: m.Room, Membership: m.Membership}
	e, err := s.Events.Get(tx, m.Event)
	if err != nil || e == nil {
		return info, err
	}
	info.Invite = e.AppendClient(nil, events.ClientFormat{User: m.User, Device: c.Caller.Device, Now: s.Now()})
	return info, nil
}

// fill reads state and newest messages of a room, up to a position.
func (s *OldSync) fill(ctx context.Context, tx *sqldb.Tx, info *roomInfo, a history.Access, limit int, to stream.Pos) error {
	to = min(to, a.UpTo())
	read, err := s.History.Reader(tx, a, nil)
	if err != nil {
		return err
	}
	rows, err := state.At(tx, info.Room, to)
	if err != nil {
		return err
	}
	list, err := s.Rooms.EventsOf(tx, rows)
	if err != nil {
		return err
	}
	if err := read.CompleteState(tx, list); err != nil {
		return err
	}
	info.State = read.AppendList(nil, list)
	newest, start, err := s.newest(tx, read, info.Room, to, limit)
	if err != nil {
		return err
	}
	if err := read.Complete(ctx, tx, newest); err != nil {
		return err
	}
	info.Messages = &messages{End: history.Token(to), Chunk: read.AppendList(nil, newest)}
	if len(newest) == 0 || newest[0].Type != "m.room.create" {
		info.Messages.Start = history.Token(start)
	}
	return nil
}

// newest reads the newest messages up to a position, the oldest first, and the
// place before them.
func (s *OldSync) newest(tx *sqldb.Tx, read *history.Reader, room matrix.RoomID, to stream.Pos, limit int) (list []*events.Event, start stream.Pos, err error) {
	start = to
	for scanned := 0; len(list) < limit && scanned < mostScanned; {
		n := limit - len(list)
		if scanned > 0 {
			n = 100
		}
		page, err := s.Events.Timeline(tx, room, 0, start, n, false)
		if err != nil {
			return nil, 0, err
		}
		for _, e := range page {
			start = e.Pos - 1
			if read.Wants(e) {
				if list = append(list, e); len(list) == limit {
					break
				}
			}
		}
		if scanned += len(page); len(page) < n {
			break
		}
	}
	slices.Reverse(list)
	return list, start, nil
}

// getRoom is one room as it stands, also for those who only look in.
func (s *OldSync) getRoom(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	limit, err := c.QueryInt("limit", defaultLimit, 0, maxLimit)
	if err != nil {
		return nil, err
	}
	a, err := s.History.Open(c.Ctx(), c.Caller.User, c.Caller.Device, room)
	if err != nil {
		return nil, err
	}
	m, err := s.Rooms.MembershipOf(c.Ctx(), c.Caller.User, room)
	if err != nil {
		return nil, err
	}
	info := &roomInfo{Room: room}
	to := s.Log.Head()
	err = s.DB.Read(c.Ctx(), func(tx *sqldb.Tx) error {
		data, err := s.Data.In(tx, c.Caller.User, room)
		if err != nil {
			return err
		}
		info.Data = dataOf(data)
		return s.fill(c.Ctx(), tx, info, a, limit, to)
	})
	if err != nil {
		return nil, fmt.Errorf("reading the room: %w", err)
	}
	if m != nil {
		info.Membership = shown(m.Membership)
	}
	info.Visibility, err = s.visibility(c.Ctx(), room)
	return info, err
}

func (s *OldSync) visibility(ctx context.Context, room matrix.RoomID) (string, error) {
	on, err := s.Published(ctx, room)
	if on {
		return "public", err
	}
	return "private", err
}

// presences are those of everybody the user shares a room with.
func (s *OldSync) presences(user matrix.UserID) []json.RawMessage {
	out := []json.RawMessage{}
	if s.Presence == nil {
		return out
	}
	now := s.Now()
	ignored := s.Data.Ignored(user)
	for _, st := range s.Presence.Since(user, 0) {
		if !ignored.Has(st.User) {
			out = append(out, st.Event(now))
		}
	}
	return out
}
