package accountdata

import (
	"encoding/json"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Match reports whether events of this type and sender are wanted. Lists of rooms and contains_url have checks of
// their own, MatchRoom and MatchContent; MatchEvent makes all of them.
func (f *EventFilter) Match(typ string, sender matrix.UserID) bool {
	return f == nil || f.MatchType(typ) && allows(f.senders, f.notSends, sender)
}

// MatchType reports whether events of this type are wanted.
func (f *EventFilter) MatchType(typ string) bool {
	if f == nil {
		return true
	}
	if f.notTypes != nil && f.notTypes.match(typ) {
		return false
	}
	return f.types == nil || f.types.match(typ)
}

// MatchSender reports whether events of this sender are wanted.
func (f *EventFilter) MatchSender(sender matrix.UserID) bool {
	return f == nil || allows(f.senders, f.notSends, sender)
}

// MatchRoom reports whether events of this room are wanted.
func (f *EventFilter) MatchRoom(room matrix.RoomID) bool {
	return f == nil || allows(f.rooms, f.notRooms, room)
}

// MatchContent applies contains_url, and the lists of relation types, to the content of an event. One without a
// relation is in no list.
//
// Spec: MSC3874
func (f *EventFilter) MatchContent(content []byte) bool {
	if !f.NeedsContent() {
		return true
	}
	if f.containsURL != nil && gjson.GetBytes(content, "url").Exists() != *f.containsURL {
		return false
	}
	return f.rels == nil && len(f.notRels) == 0 || allows(f.rels, f.notRels, gjson.GetBytes(content, `m\.relates_to.rel_type`).Str)
}

// NeedsContent reports whether MatchContent looks at contents at all.
func (f *EventFilter) NeedsContent() bool {
	return f != nil && (f.containsURL != nil || f.rels != nil || len(f.notRels) > 0)
}

// MatchEvent makes every check on one event of a room.
func (f *EventFilter) MatchEvent(room matrix.RoomID, typ string, sender matrix.UserID, content []byte) bool {
	return f == nil || f.MatchRoom(room) && f.Match(typ, sender) && f.MatchContent(content)
}

// MatchesAll reports whether no event is ever turned away.
func (f *EventFilter) MatchesAll() bool {
	return f == nil || f.types == nil && f.notTypes == nil && f.senders == nil && len(f.notSends) == 0 &&
		f.rooms == nil && len(f.notRooms) == 0 && !f.NeedsContent()
}

// MatchesNothing reports whether every event is turned away, because an include list is empty or all types are
// excluded: the section need not be looked up.
func (f *EventFilter) MatchesNothing() bool {
	return f != nil && (f.types != nil && f.types.empty() || f.notTypes != nil && f.notTypes.all ||
		f.senders != nil && len(f.senders) == 0 || f.rels != nil && len(f.rels) == 0 || f.rooms != nil && len(f.rooms) == 0)
}

// Limit is the number of events to return: the filter's, at most most, or def when it has none.
func (f *EventFilter) Limit(def, most int) int {
	if f == nil || f.limit < 0 {
		return def
	}
	return min(f.limit, most)
}

// MatchRoom reports whether a room is wanted at all.
func (f *Filter) MatchRoom(room matrix.RoomID) bool {
	return f == nil || allows(f.Room.rooms, f.Room.notRooms, room)
}

// IncludeLeave reports whether rooms that the user has left are wanted.
func (f *Filter) IncludeLeave() bool { return f != nil && f.Room.IncludeLeave }

// Federation reports whether events are wanted as they went between servers.
func (f *Filter) Federation() bool { return f != nil && f.Format == FormatFederation }

// State is the filter of a room's state; nil wants all, as for its siblings.
func (f *Filter) State() *EventFilter {
	if f == nil {
		return nil
	}
	return f.Room.State
}

// Timeline is the filter of a room's timeline.
func (f *Filter) Timeline() *EventFilter {
	if f == nil {
		return nil
	}
	return f.Room.Timeline
}

// Ephemeral is the filter of receipts and typing.
func (f *Filter) Ephemeral() *EventFilter {
	if f == nil {
		return nil
	}
	return f.Room.Ephemeral
}

// RoomAccountData is the filter of account data of rooms.
func (f *Filter) RoomAccountData() *EventFilter {
	if f == nil {
		return nil
	}
	return f.Room.AccountData
}

// GlobalAccountData is the filter of account data outside rooms.
func (f *Filter) GlobalAccountData() *EventFilter {
	if f == nil {
		return nil
	}
	return f.AccountData
}

// PresenceFilter is the filter of presence.
func (f *Filter) PresenceFilter() *EventFilter {
	if f == nil {
		return nil
	}
	return f.Presence
}

// LazyMembers reports whether membership events are wanted only for those who speak.
func (f *Filter) LazyMembers() bool {
	s := f.State()
	return s != nil && s.LazyLoadMembers
}

// HasFields reports whether events are to be cut down to some fields.
func (f *Filter) HasFields() bool { return f != nil && f.fields != nil }

// Project cuts an event in client form down to the fields that the filter names; without such a list it returns
// the event itself.
func (f *Filter) Project(event []byte) []byte {
	if !f.HasFields() {
		return event
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(event, &fields) != nil {
		return event
	}
	b, err := json.Marshal(f.fields.cut(fields))
	if err != nil {
		return event
	}
	return b
}

// fieldTree is a set of dot-separated property paths; a node without children takes everything beneath it.
type fieldTree struct {
	children map[string]*fieldTree
	whole    bool
}

// maxFieldDepth bounds how deep a path may go; deeper ones take what is at this depth.
const maxFieldDepth = 32

func parseFields(paths []string) *fieldTree {
	root := &fieldTree{}
	for _, p := range paths {
		n := root
		for i, name := range splitPath(p) {
			if i == maxFieldDepth {
				break
			}
			next := n.children[name]
			if next == nil {
				next = &fieldTree{}
				if n.children == nil {
					n.children = map[string]*fieldTree{}
				}
				n.children[name] = next
			}
			n = next
		}
		if n != root {
			n.whole = true
		}
	}
	return root
}

// splitPath splits at dots; a backslash escapes a dot or a backslash.
//
// Spec: appendices#dot-separated-property-paths
func splitPath(path string) []string {
	var (
		out  []string
		part []byte
	)
	for i := 0; i < len(path); i++ {
		switch {
		case path[i] == '\\' && i+1 < len(path) && (path[i+1] == '.' || path[i+1] == '\\'):
			i++
			part = append(part, path[i])
		case path[i] == '.':
			out = append(out, string(part))
			part = part[:0]
		default:
			part = append(part, path[i])
		}
	}
	return append(out, string(part))
}

func (t *fieldTree) cut(fields map[string]json.RawMessage) map[string]json.RawMessage {
	out := map[string]json.RawMessage{}
	for name, sub := range t.children {
		v, ok := fields[name]
		if !ok {
			continue
		}
		if sub.whole {
			out[name] = v
			continue
		}
		var inner map[string]json.RawMessage
		if json.Unmarshal(v, &inner) != nil || inner == nil {
			continue
		}
		if inner = sub.cut(inner); len(inner) > 0 {
			if b, err := json.Marshal(inner); err == nil {
				out[name] = b
			}
		}
	}
	return out
}
