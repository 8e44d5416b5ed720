package push

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// verdict is what the default rules say of an event to all members at once: to
// everybody, and to those whom it names.
type verdict struct {
	notify    bool // everybody but the sender
	highlight bool
	named     []matrix.UserID // they are highlighted
	quiet     bool            // no rule says anything of it: in a thread it notifies those who follow
}

// classify applies the default rules in their order. It must say the same as
// build(user, nil).Evaluate, but for the rules on threads, which count looks after; a test compares the two. Invites do not matter
// here: who is invited has no counts yet.
//
// Spec: client-server-api#predefined-rules
func classify(e *events.Event, mayNotifyRoom func(sender matrix.UserID) bool) (v verdict) {
	content := gjson.GetBytes(e.JSON, "content")
	if t := content.Get("msgtype"); t.Type == gjson.String && strings.EqualFold(t.Str, "m.notice") {
		return v
	}
	if strings.EqualFold(e.Type, "m.room.member") {
		return v
	}
	mentions := content.Get(`m\.mentions`)
	if mentions.IsObject() {
		if ids := mentions.Get("user_ids"); ids.IsArray() {
			for _, id := range ids.Array() {
				if u := matrix.UserID(id.Str); id.Type == gjson.String && u != e.Sender && !slices.Contains(v.named, u) {
					v.named = append(v.named, u)
				}
			}
		}
		if mentions.Get("room").Type == gjson.True && mayNotifyRoom(e.Sender) {
			v.notify, v.highlight = true, true
			return v
		}
	}
	isEmpty := e.StateKey != nil && *e.StateKey == ""
	switch typ := strings.ToLower(e.Type); {
	case typ == "m.room.tombstone" && isEmpty:
		v.notify, v.highlight = true, true
	case typ == "m.reaction", typ == "m.room.server_acl" && isEmpty, typ == pollResponse:
	case content.Get(`m\.relates_to.rel_type`).Str == "m.replace":
	case typ == "m.call.invite", typ == "m.room.message", typ == "m.room.encrypted", typ == pollStart, typ == pollEnd:
		v.notify = true
	default:
		v.quiet = true
	}
	return v
}

// saysNotWhom reports whether an event is a message of a client that does not say
// whom it mentions.
func saysNotWhom(e *events.Event) bool {
	c := gjson.GetBytes(e.JSON, "content")
	return c.Get("body").Type == gjson.String && !c.Get(`m\.mentions`).Exists()
}

// powers is who may notify a whole room.
type powers struct {
	users    map[matrix.UserID]int64
	def      int64
	needed   map[string]int64
	creators []matrix.UserID // room version 12 on: above all levels
}

// parsePowers reads the content of m.room.power_levels; nil is a room without.
//
// Spec: client-server-api#mroompower_levels
func parsePowers(content []byte, creators []matrix.UserID) *powers {
	w := &powers{users: map[matrix.UserID]int64{}, needed: map[string]int64{}, creators: creators}
	if content == nil {
		return w
	}
	var c struct {
		Users         map[matrix.UserID]json.Number `json:"users"`
		UsersDefault  json.Number                   `json:"users_default"`
		Notifications map[string]json.Number        `json:"notifications"`
	}
	if json.Unmarshal(content, &c) != nil {
		return w
	}
	w.def = level(c.UsersDefault, 0)
	for u, n := range c.Users {
		w.users[u] = level(n, w.def)
	}
	for k, n := range c.Notifications {
		w.needed[k] = level(n, 50)
	}
	return w
}

func level(n json.Number, def int64) int64 {
	if v, err := n.Int64(); err == nil {
		return v
	}
	if f, err := n.Float64(); err == nil {
		return int64(f)
	}
	return def
}

func (w *powers) mayNotify(sender matrix.UserID, key string) bool {
	if slices.Contains(w.creators, sender) {
		return true
	}
	needed, ok := w.needed[key]
	if !ok {
		needed = 50
	}
	have, ok := w.users[sender]
	if !ok {
		have = w.def
	}
	return have >= needed
}

// creatorsOf lists those whose power has no bound: in room version 12 on the
// sender of the create event and its additional creators.
//
// Spec: rooms/v12
func creatorsOf(create *events.Event) []matrix.UserID {
	switch create.Version {
	case "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11":
		return nil
	}
	list := []matrix.UserID{create.Sender}
	for _, id := range gjson.GetBytes(create.JSON, "content.additional_creators").Array() {
		list = append(list, matrix.UserID(id.Str))
	}
	return list
}
