package mxclient

import (
	"encoding/json"
	"fmt"
)

// Event is a room event as an application service receives it. Fields keep the wire's spelling, content stays raw.
type Event struct {
	ID       string          `json:"event_id"`
	Room     string          `json:"room_id"`
	Sender   string          `json:"sender"`
	Type     string          `json:"type"`
	StateKey *string         `json:"state_key,omitempty"`
	TS       int64           `json:"origin_server_ts"`
	Content  json.RawMessage `json:"content"`
	Unsigned json.RawMessage `json:"unsigned,omitempty"`
	Redacts  string          `json:"redacts,omitempty"`
}

// ParseEvent decodes one event. For redactions of room version 11 and later, Redacts is taken from the content.
func ParseEvent(data []byte) (*Event, error) {
	ev := new(Event)
	if err := json.Unmarshal(data, ev); err != nil {
		return nil, fmt.Errorf("decoding event: %w", err)
	}
	if ev.Redacts == "" && ev.Type == "m.room.redaction" {
		var c struct {
			Redacts string `json:"redacts"`
		}
		if json.Unmarshal(ev.Content, &c) == nil {
			ev.Redacts = c.Redacts
		}
	}
	return ev, nil
}

// Membership is the membership of an m.room.member event, else "".
func (ev *Event) Membership() string {
	if ev.Type != "m.room.member" || ev.StateKey == nil {
		return ""
	}
	var c struct {
		Membership string `json:"membership"`
	}
	if json.Unmarshal(ev.Content, &c) != nil {
		return ""
	}
	return c.Membership
}

// Receipt is one entry of an m.receipt ephemeral event: Kind is m.read or m.read.private, Thread is "", "main" or a root's event ID.
type Receipt struct {
	Room, User, Event, Thread, Kind string
	TS                              int64
}

// ParseReceipts flattens the content of an m.receipt event. Entries of a wrong shape are left out.
func ParseReceipts(room string, content []byte) []Receipt {
	var c map[string]map[string]map[string]json.RawMessage
	if json.Unmarshal(content, &c) != nil {
		return parseReceiptsLoosely(room, content)
	}
	var out []Receipt
	for event, kinds := range c {
		for kind, users := range kinds {
			out = appendReceipts(out, room, event, kind, users)
		}
	}
	return out
}

// parseReceiptsLoosely is for content of which a part has a wrong shape: the good parts still count.
func parseReceiptsLoosely(room string, content []byte) []Receipt {
	var c map[string]json.RawMessage
	if json.Unmarshal(content, &c) != nil {
		return nil
	}
	var out []Receipt
	for event, raw := range c {
		var kinds map[string]json.RawMessage
		if json.Unmarshal(raw, &kinds) != nil {
			continue
		}
		for kind, raw := range kinds {
			var users map[string]json.RawMessage
			if json.Unmarshal(raw, &users) == nil {
				out = appendReceipts(out, room, event, kind, users)
			}
		}
	}
	return out
}

func appendReceipts(out []Receipt, room, event, kind string, users map[string]json.RawMessage) []Receipt {
	if kind != "m.read" && kind != "m.read.private" {
		return out
	}
	for user, raw := range users {
		var r struct {
			TS     int64  `json:"ts"`
			Thread string `json:"thread_id"`
		}
		if json.Unmarshal(raw, &r) != nil {
			continue
		}
		out = append(out, Receipt{Room: room, User: user, Event: event, Thread: r.Thread, Kind: kind, TS: r.TS})
	}
	return out
}
