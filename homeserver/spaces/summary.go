package spaces

import (
	"encoding/json"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/directory"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// summaryAnswer is a summary with the reader's own membership.
type summaryAnswer struct {
	Summary
	Membership string `json:"membership,omitempty"`
}

// getSummary shows a room to who may join or read it.
//
// Spec: get_matrixclientv1room_summaryroomidoralias
func (s *Spaces) getSummary(c *httpapi.Call) (any, error) {
	room, via, err := s.target(c)
	if err != nil {
		return nil, err
	}
	var user matrix.UserID
	membership := ""
	if c.Caller != nil {
		user = c.Caller.User
		if membership, err = s.rooms.Membership(c.Ctx(), room, user); err != nil {
			return nil, err
		}
	}
	sum, err := s.anySummary(c, user, room, via)
	if err != nil {
		return nil, err
	}
	switch {
	case sum == nil,
		user == "" && !sum.open(),
		user != "" && !s.shown(user, sum, membership):
		return nil, matrix.NotFound("Room not found.")
	}
	if user != "" && membership == "" {
		membership = "leave"
	}
	return summaryAnswer{*sum, membership}, nil
}

// target reads the room of a request and the servers that may know it.
func (s *Spaces) target(c *httpapi.Call) (room matrix.RoomID, via []matrix.ServerName, err error) {
	for _, name := range c.Values()["via"] {
		if matrix.ValidServerName(name) && len(via) < mostVia {
			via = append(via, matrix.ServerName(name))
		}
	}
	raw := c.Var("roomIdOrAlias")
	if len(raw) == 0 || raw[0] != '#' {
		room, err = matrix.ParseRoomID(raw)
		return room, via, err
	}
	alias, err := matrix.ParseRoomAlias(raw)
	if err != nil {
		return "", nil, err
	}
	if alias.Server() != s.opts.Server && c.Caller == nil { // or the server could be used to reach others
		return "", nil, matrix.MissingToken()
	}
	room, servers, err := s.dir.Resolve(c.Ctx(), alias)
	return room, append(via, servers...), err
}

// anySummary is the summary of a room wherever it is; nil if nobody tells.
func (s *Spaces) anySummary(c *httpapi.Call, user matrix.UserID, room matrix.RoomID, via []matrix.ServerName) (*Summary, error) {
	if s.here(room) {
		return s.summary(c.Ctx(), room)
	}
	if user == "" { // as in target
		if s.opts.Remote == nil {
			return nil, nil
		}
		return nil, matrix.MissingToken()
	}
	servers, err := s.routes(c.Ctx(), user, room, via)
	if err != nil {
		return nil, err
	}
	if a := s.ask(c.Ctx(), servers, question{room: room}); a != nil {
		return &a.Room.Summary, nil
	}
	m, err := s.rooms.MembershipOf(c.Ctx(), user, room)
	if err != nil || m == nil || m.Membership != "invite" && m.Membership != "knock" {
		return nil, err
	}
	return fromStripped(room, m.Stripped), nil
}

// fromStripped makes a summary of what came with an invitation or a knock.
func fromStripped(room matrix.RoomID, stripped json.RawMessage) *Summary {
	sum := &Summary{Entry: directory.Entry{Room: room, JoinRule: "invite"}}
	gjson.ParseBytes(stripped).ForEach(func(_, e gjson.Result) bool {
		c := e.Get("content")
		switch e.Get("type").Str {
		case "m.room.name":
			sum.Name = c.Get("name").Str
		case "m.room.topic":
			sum.Topic = c.Get("topic").Str
		case "m.room.avatar":
			sum.Avatar = c.Get("url").Str
		case "m.room.canonical_alias":
			sum.Alias = c.Get("alias").Str
		case "m.room.join_rules":
			sum.JoinRule = c.Get("join_rule").Str
		case "m.room.encryption":
			sum.Encryption = c.Get("algorithm").Str
		case "m.room.create":
			sum.Type, sum.Version = c.Get("type").Str, c.Get("room_version").Str
		}
		return true
	})
	return sum
}
