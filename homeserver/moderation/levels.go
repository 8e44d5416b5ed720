package moderation

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

const (
	tombstoneType = "m.room.tombstone"
	// maxLevel is the largest whole number that all clients can read.
	maxLevel = 1<<53 - 1
	// tombstoneLevel is what replacing a room needs where its creators stand
	// above all levels.
	tombstoneLevel = 150
)

// levels are the power levels of a room, with the values of what is not said.
//
// Spec: client-server-api#mroompower_levels
type levels struct {
	Single        map[string]int64 // ban, invite, users_default …
	Events        map[string]int64
	Users         map[string]int64
	Notifications map[string]int64
	other         map[string]json.RawMessage
}

// readLevels reads the content of a power level event; nil is a room without
// one, in which the creator alone has power, by a level if he is given here.
func readLevels(content []byte, creator matrix.UserID) *levels {
	l := &levels{
		Single: map[string]int64{
			"ban": 50, "kick": 50, "redact": 50, "invite": 0, "events_default": 0, "state_default": 50, "users_default": 0,
		},
		Events: map[string]int64{}, Users: map[string]int64{}, Notifications: map[string]int64{"room": 50},
		other: map[string]json.RawMessage{},
	}
	if content == nil {
		l.Single["state_default"] = 0
		if creator != "" {
			l.Users[string(creator)] = 100
		}
		return l
	}
	gjson.ParseBytes(content).ForEach(func(k, v gjson.Result) bool {
		switch k.Str {
		case "events":
			readMap(l.Events, v)
		case "users":
			readMap(l.Users, v)
		case "notifications":
			readMap(l.Notifications, v)
		default:
			if _, ok := l.Single[k.Str]; !ok {
				l.other[k.Str] = json.RawMessage(v.Raw)
			} else if n, ok := number(v); ok {
				l.Single[k.Str] = n
			}
		}
		return true
	})
	for u := range l.Users {
		if _, err := matrix.ParseUserID(u); err != nil {
			delete(l.Users, u)
		}
	}
	return l
}

func readMap(into map[string]int64, v gjson.Result) {
	v.ForEach(func(k, v gjson.Result) bool {
		if n, ok := number(v); ok {
			into[k.Str] = n
		}
		return true
	})
}

// number reads a level. Room versions before 10 have taken text and fractions.
func number(v gjson.Result) (int64, bool) {
	switch v.Type {
	case gjson.Number:
		return clamp(v.Num), true
	case gjson.String:
		n, err := strconv.ParseInt(strings.TrimSpace(v.Str), 10, 64)
		return clamp(float64(n)), err == nil
	}
	return 0, false
}

func clamp(f float64) int64 { return int64(math.Max(math.Min(math.Trunc(f), maxLevel), -maxLevel)) }

// content writes the levels.
func (l *levels) content() (json.RawMessage, error) {
	m := map[string]any{"events": l.Events, "users": l.Users, "notifications": l.Notifications}
	for k, v := range l.other {
		m[k] = v
	}
	for k, v := range l.Single {
		m[k] = v
	}
	return json.Marshal(m)
}

func (l *levels) of(user matrix.UserID) int64 {
	if n, ok := l.Users[string(user)]; ok {
		return n
	}
	return l.Single["users_default"]
}

func (l *levels) event(typ string) int64 {
	if n, ok := l.Events[typ]; ok {
		return n
	}
	return l.Single["state_default"]
}

// highest is the level with which everything in the room may be done, and these
// users be banned.
func (l *levels) highest(banned []matrix.UserID) int64 {
	n := int64(0)
	for _, v := range l.Single {
		n = max(n, v)
	}
	for _, v := range l.Events {
		n = max(n, v)
	}
	for _, u := range banned {
		n = max(n, min(l.of(u)+1, maxLevel))
	}
	return n
}

// closing is the content with which people cannot go on in a room that has been
// replaced; nil if they cannot already.
func closing(content []byte, l *levels) (json.RawMessage, error) {
	least := max(50, min(l.Single["users_default"]+1, maxLevel))
	var err error
	if content == nil {
		if content, err = l.content(); err != nil {
			return nil, err
		}
	}
	var out json.RawMessage
	for _, k := range []string{"events_default", "invite"} {
		if l.Single[k] < least {
			if content, err = sjson.SetBytes(content, k, least); err != nil {
				return nil, err
			}
			out = content
		}
	}
	return out, nil
}
