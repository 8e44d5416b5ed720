package derive

import (
	"encoding/json"

	"maunium.net/go/mautrix/id"
)

// Powers in rooms of the company. The bot as creator stands above all of them (room version 12).
const (
	powerAdmin   = 90
	powerManager = 60
	powerSpeaker = 50
	powerBot     = 100 // what only the service does
)

// powerLevels is the content of m.room.power_levels. Maps are encoded in the order of their keys, so equal powers
// give equal text.
//
// Spec: client-server-api#mroompower_levels
type powerLevels struct {
	Users         map[id.UserID]int `json:"users"`
	UsersDefault  int               `json:"users_default"`
	Events        map[string]int    `json:"events"`
	EventsDefault int               `json:"events_default"`
	StateDefault  int               `json:"state_default"`
	Ban           int               `json:"ban"`
	Kick          int               `json:"kick"`
	Redact        int               `json:"redact"`
	Invite        int               `json:"invite"`
	Notifications map[string]int    `json:"notifications"`
}

func (p powerLevels) text() string {
	if p.Users == nil {
		p.Users = map[id.UserID]int{}
	}
	b, err := json.Marshal(p)
	if err != nil { // maps of strings and numbers always encode
		panic(err)
	}
	return string(b)
}

// serviceEvents are the state events that follow the organisation and belong to the service alone.
func serviceEvents() map[string]int {
	return map[string]int{
		"m.room.name": powerBot, "m.room.canonical_alias": powerBot, "m.room.power_levels": powerBot,
		"m.room.join_rules": powerBot, "m.room.history_visibility": powerBot, "m.room.guest_access": powerBot,
		"m.room.encryption": powerBot, "m.room.server_acl": powerBot, "m.room.tombstone": 150,
		"m.space.child": powerBot, "m.space.parent": powerBot,
		"m.room.topic": 50, "m.room.avatar": 50, "m.room.pinned_events": 50,
	}
}

// unitPower lets everybody write and the unit's leaders moderate.
func unitPower(owners, deputies []id.UserID) string {
	p := powerLevels{
		Users: map[id.UserID]int{}, Events: serviceEvents(), StateDefault: 50,
		Ban: 50, Kick: 50, Redact: 50, Invite: 50, Notifications: map[string]int{"room": 50},
	}
	for _, u := range deputies {
		p.Users[u] = powerSpeaker
	}
	for _, u := range owners {
		p.Users[u] = powerManager
	}
	return p.text()
}

// allStaffPower lets managers write and everybody react.
func allStaffPower(users map[id.UserID]int) string {
	events := serviceEvents()
	events["m.reaction"], events["m.room.redaction"] = 0, 0
	return powerLevels{
		Users: users, Events: events, EventsDefault: 50, StateDefault: 50,
		Ban: powerAdmin, Kick: powerAdmin, Redact: 50, Invite: powerBot, Notifications: map[string]int{"room": 50},
	}.text()
}

// spacePower leaves everything to the service.
func spacePower() string {
	return powerLevels{
		Events: serviceEvents(), EventsDefault: powerBot, StateDefault: powerBot,
		Ban: powerBot, Kick: powerBot, Redact: powerBot, Invite: powerBot, Notifications: map[string]int{"room": powerBot},
	}.text()
}

// dingPower is for the room of one person and the bot.
func dingPower() string {
	return powerLevels{
		Events: serviceEvents(), StateDefault: powerBot,
		Ban: powerBot, Kick: powerBot, Redact: powerBot, Invite: powerBot, Notifications: map[string]int{"room": powerBot},
	}.text()
}

// closedPower makes a room read-only.
func closedPower() string { return spacePower() }
