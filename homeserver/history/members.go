package history

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// memberCache keeps encoded lists of members: many clients open the same large
// room. A change of a membership drops the room's lists.
type memberCache struct {
	mu    sync.Mutex
	rooms map[matrix.RoomID]*memberLists
	size  int // bytes
}

type memberLists struct {
	changes int // how many changes were heard
	lists   map[string]memberList
}

// memberList is what was asked for most recently of a room.
type memberList struct {
	body  []byte
	since stream.Pos // the newest membership in it
}

// maxMemberCache bounds the lists, over all rooms, in bytes.
const maxMemberCache = 64 << 20

func (m *memberCache) init() { m.rooms = make(map[matrix.RoomID]*memberLists) }

// hear drops the lists of rooms whose members change.
func (m *memberCache) hear(changes []stream.Change) {
	for i := range changes {
		e, ok := changes[i].Payload.(*events.Event)
		if !ok || e.Type != "m.room.member" && e.Resolved == nil {
			continue
		}
		m.mu.Lock()
		if r := m.rooms[e.Room]; r != nil {
			r.changes++
			for _, l := range r.lists {
				m.size -= len(l.body)
			}
			clear(r.lists)
		}
		m.mu.Unlock()
	}
}

// get returns a list, if it is kept, and a mark for put.
func (m *memberCache) get(room matrix.RoomID, which string) (l memberList, ok bool, mark int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.rooms[room]
	if r == nil {
		r = &memberLists{lists: make(map[string]memberList)}
		m.rooms[room] = r
	}
	l, ok = r.lists[which]
	return l, ok, r.changes
}

// put keeps a list, unless the members have changed since get.
func (m *memberCache) put(room matrix.RoomID, which string, mark int, l memberList) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.rooms[room]
	if r == nil || r.changes != mark || len(l.body) > maxMemberCache/4 {
		return
	}
	if m.size+len(l.body) > maxMemberCache {
		for _, o := range m.rooms {
			clear(o.lists)
		}
		m.size = 0
	}
	m.size += len(l.body) - len(r.lists[which].body)
	r.lists[which] = l
}

var memberships = map[string]bool{"join": true, "invite": true, "leave": true, "ban": true, "knock": true}

func (h *History) getMembers(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	with, without := c.Query("membership"), c.Query("not_membership")
	for _, m := range []string{with, without} {
		if m != "" && !memberships[m] {
			return nil, matrix.InvalidParam("%q is not a membership", m)
		}
	}
	at := last
	if s := c.Query("at"); s != "" {
		if at, err = ParseToken(s); err != nil {
			return nil, err
		}
	}
	a, err := h.Open(c.Ctx(), c.Caller.User, c.Caller.Device, room)
	if err != nil {
		return nil, err
	}
	wanted := func(m string) bool { return (with == "" || m == with) && (without == "" || m != without) }
	body, err := h.memberList(c.Ctx(), room, min(at, a.upTo), with+"/"+without, wanted, encodeMembers)
	if err != nil {
		return nil, err
	}
	return httpapi.Raw(body), nil
}

func (h *History) getJoinedMembers(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	if !h.Hub.Joined(c.Caller.User, room) {
		return nil, matrix.Forbidden("you are not in room %s", room)
	}
	joined := func(m string) bool { return m == "join" }
	body, err := h.memberList(c.Ctx(), room, last, "joined", joined, encodeJoined)
	if err != nil {
		return nil, err
	}
	return httpapi.Raw(body), nil
}

// memberList is the encoded list of the members at a position; the present one
// is kept.
func (h *History) memberList(ctx context.Context, room matrix.RoomID, at stream.Pos, which string, wanted func(string) bool, encode func([]*events.Event) []byte) ([]byte, error) {
	kept, ok, mark := h.members.get(room, which)
	if ok && at >= kept.since {
		return kept.body, nil
	}
	list, since, err := h.membersAt(ctx, room, last, wanted)
	if err != nil {
		return nil, err
	}
	body := encode(list)
	if !ok {
		h.members.put(room, which, mark, memberList{body, since})
	}
	if at >= since { // nothing has changed after it
		return body, nil
	}
	// Before the room there is nobody: a token of there belongs to a timeline
	// that holds the room's beginning, and means its first members.
	begin, err := h.firstMembers(ctx, room)
	if err != nil {
		return nil, err
	}
	if list, _, err = h.membersAt(ctx, room, max(at, begin), wanted); err != nil {
		return nil, err
	}
	return encode(list), nil
}

// firstMembers is where a room has its first member, right after its creation
// or after the state that this server joined with.
func (h *History) firstMembers(ctx context.Context, room matrix.RoomID) (pos stream.Pos, err error) {
	err = h.DB.Read(ctx, func(tx *sqldb.Tx) error {
		rows, err := state.History(tx, room, state.Key{Type: "m.room.create"})
		if err == nil && len(rows) > 0 {
			pos = rows[0].From + 1
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("reading the first members: %w", err)
	}
	return pos, nil
}

// membersAt reads the member events at a position, and where the newest of all
// memberships stands.
func (h *History) membersAt(ctx context.Context, room matrix.RoomID, at stream.Pos, wanted func(string) bool) (list []*events.Event, since stream.Pos, err error) {
	err = h.DB.Read(ctx, func(tx *sqldb.Tx) error {
		rows, err := state.TypeAt(tx, room, "m.room.member", at)
		if err != nil {
			return err
		}
		var nids []int64
		since = 0
		for _, r := range rows {
			since = max(since, r.From)
			if wanted(r.Membership) {
				nids = append(nids, r.NID)
			}
		}
		r := &Reader{h: h}
		list, err = r.byNID(tx, nids)
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("reading members: %w", err)
	}
	return list, since, nil
}

func encodeMembers(list []*events.Event) []byte {
	b := make([]byte, 0, 512*len(list)+16)
	b = append(b, `{"chunk":[`...)
	for i, e := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = e.AppendClient(b, events.ClientFormat{}) // the same for everybody
	}
	return append(b, `]}`...)
}

func encodeJoined(list []*events.Event) []byte {
	type member struct {
		// null for none: clients have come to expect the fields.
		Name   *string `json:"display_name"`
		Avatar *string `json:"avatar_url"`
	}
	joined := make(map[string]member, len(list))
	for _, e := range list {
		var m member
		r := gjson.GetManyBytes(e.JSON, "content.displayname", "content.avatar_url")
		if r[0].Type == gjson.String {
			m.Name = &r[0].Str
		}
		if r[1].Type == gjson.String {
			m.Avatar = &r[1].Str
		}
		joined[e.Key()] = m
	}
	b, _ := json.Marshal(map[string]any{"joined": joined}) // plain data: cannot fail
	return b
}
