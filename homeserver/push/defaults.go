package push

import (
	"encoding/json"
	"slices"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Events of polls, in the names that clients use until they are part of the
// specification. Spec: MSC3381, MSC3930
const (
	pollStart    = "org.matrix.msc3381.poll.start"
	pollResponse = "org.matrix.msc3381.poll.response"
	pollEnd      = "org.matrix.msc3381.poll.end"
)

// defaultRules are the predefined rules for a user, most important first.
//
// Spec: client-server-api#predefined-rules
func (p *Push) defaultRules(user matrix.UserID) map[Kind][]Rule {
	me := string(user)
	sound := tweak("sound", "default")
	highlight := tweak("highlight", nil)
	notify := quoted("notify")
	rule := func(id string, actions []json.RawMessage, conditions ...json.RawMessage) Rule {
		if conditions == nil {
			conditions = []json.RawMessage{}
		}
		if actions == nil {
			actions = []json.RawMessage{}
		}
		return Rule{ID: id, Default: true, Enabled: id != ".m.rule.master", Conditions: conditions, Actions: actions}
	}
	do := func(a ...json.RawMessage) []json.RawMessage { return a }
	rules := map[Kind][]Rule{
		Override: {
			rule(".m.rule.master", nil),
			rule(".m.rule.suppress_notices", nil, match("content.msgtype", "m.notice")),
			rule(".m.rule.invite_for_me", do(notify, sound),
				match("type", "m.room.member"), match("content.membership", "invite"), match("state_key", me)),
			rule(".m.rule.member_event", nil, match("type", "m.room.member")),
			rule(".m.rule.is_user_mention", do(notify, sound, highlight),
				property("event_property_contains", `content.m\.mentions.user_ids`, me)),
			rule(".m.rule.is_room_mention", do(notify, highlight),
				property("event_property_is", `content.m\.mentions.room`, true), permission("room")),
			rule(".m.rule.tombstone", do(notify, highlight), match("type", "m.room.tombstone"), match("state_key", "")),
			rule(".m.rule.reaction", nil, match("type", "m.reaction")),
			rule(".m.rule.room.server_acl", nil, match("type", "m.room.server_acl"), match("state_key", "")),
			rule(".org.matrix.msc3930.rule.poll_response", nil, match("type", pollResponse)),
			rule(".m.rule.suppress_edits", nil, property("event_property_is", `content.m\.relates_to.rel_type`, "m.replace")),
		},
		Content:  {},
		RoomRule: {},
		Sender:   {},
		Underride: {
			rule(".m.rule.call", do(notify, tweak("sound", "ring")), match("type", "m.call.invite")),
			rule(".m.rule.encrypted_room_one_to_one", do(notify, sound), members("2"), match("type", "m.room.encrypted")),
			rule(".m.rule.room_one_to_one", do(notify, sound), members("2"), match("type", "m.room.message")),
			rule(".m.rule.message", do(notify), match("type", "m.room.message")),
			rule(".m.rule.encrypted", do(notify), match("type", "m.room.encrypted")),
			rule(".org.matrix.msc3930.rule.poll_start_one_to_one", do(notify, sound), members("2"), match("type", pollStart)),
			rule(".org.matrix.msc3930.rule.poll_start", do(notify), match("type", pollStart)),
			rule(".org.matrix.msc3930.rule.poll_end_one_to_one", do(notify, sound), members("2"), match("type", pollEnd)),
			rule(".org.matrix.msc3930.rule.poll_end", do(notify), match("type", pollEnd)),
		},
	}
	if p.opts.ThreadRules {
		follows := func(yes bool) json.RawMessage {
			return encode(struct {
				Kind string `json:"kind"`
				Yes  bool   `json:"subscribed"`
			}{condThreadUnstable, yes})
		}
		rules[PostContent] = []Rule{
			rule(".io.element.msc4306.rule.unsubscribed_thread", nil, follows(false)),
			rule(".io.element.msc4306.rule.subscribed_thread", do(notify, sound), follows(true)),
		}
	}
	if p.opts.LegacyMentions {
		legacy(rules, user, do(notify, sound, highlight), do(notify, highlight))
	}
	return rules
}

// legacy puts the rules for clients that do not say whom they mention where they
// stood until version 1.16.
func legacy(rules map[Kind][]Rule, user matrix.UserID, loud, all []json.RawMessage) {
	before := func(id string, r Rule) {
		list := rules[Override]
		i := slices.IndexFunc(list, func(o Rule) bool { return o.ID == id })
		rules[Override] = slices.Insert(list, i, r)
	}
	before(".m.rule.is_room_mention", Rule{
		ID: ".m.rule.contains_display_name", Default: true, Enabled: true, Actions: loud,
		Conditions: []json.RawMessage{encode(map[string]string{"kind": "contains_display_name"})},
	})
	before(".m.rule.tombstone", Rule{
		ID: ".m.rule.roomnotif", Default: true, Enabled: true, Actions: all,
		Conditions: []json.RawMessage{match("content.body", "@room"), permission("room")},
	})
	name := user.Localpart()
	rules[Content] = []Rule{{ID: ".m.rule.contains_user_name", Default: true, Enabled: true, Pattern: &name, Actions: loud}}
}

// The functions below spell actions and conditions; their data always encodes.

func quoted(s string) json.RawMessage { return encode(s) }

func tweak(name string, value any) json.RawMessage {
	if value == nil {
		return encode(struct {
			Tweak string `json:"set_tweak"`
		}{name})
	}
	return encode(struct {
		Tweak string `json:"set_tweak"`
		Value any    `json:"value"`
	}{name, value})
}

func match(key, pattern string) json.RawMessage {
	return encode(struct {
		Kind    string `json:"kind"`
		Key     string `json:"key"`
		Pattern string `json:"pattern"`
	}{"event_match", key, pattern})
}

func property(kind, key string, value any) json.RawMessage {
	return encode(struct {
		Kind  string `json:"kind"`
		Key   string `json:"key"`
		Value any    `json:"value"`
	}{kind, key, value})
}

func members(is string) json.RawMessage {
	return encode(struct {
		Kind string `json:"kind"`
		Is   string `json:"is"`
	}{"room_member_count", is})
}

func permission(key string) json.RawMessage {
	return encode(struct {
		Kind string `json:"kind"`
		Key  string `json:"key"`
	}{"sender_notification_permission", key})
}

func encode(v any) json.RawMessage {
	b, _ := json.Marshal(v)
	return b
}
