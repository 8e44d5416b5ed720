package push

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"sync"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Room answers what conditions ask about the room of an event. The answers may
// be worked out only when asked.
type Room interface {
	// MemberCount is the number of joined members.
	MemberCount() int
	// DisplayName is the user's name in the room.
	DisplayName(user matrix.UserID) string
	// MayNotify says whether the sender's power suffices for
	// notifications.<key> of the power levels.
	MayNotify(sender matrix.UserID, key string) bool
	// Follows says whether the event is in a thread, and whether the user follows
	// that.
	Follows(s *Subject, user matrix.UserID) (inThread, follows bool)
}

// Subject is an event as the rules see it.
type Subject struct {
	Room     matrix.RoomID
	Sender   matrix.UserID
	Type     string
	StateKey *string

	json   []byte
	decode sync.Once
	doc    map[string]any

	of *events.Event // nil for one that is known by its JSON alone
}

// NewSubject prepares an event, given as its JSON with the top-level fields of
// a client event, for evaluation. The JSON is decoded only when a rule asks.
func NewSubject(room matrix.RoomID, sender matrix.UserID, typ string, stateKey *string, eventJSON []byte) *Subject {
	return &Subject{Room: room, Sender: sender, Type: typ, StateKey: stateKey, json: eventJSON}
}

// property finds the value at a path of the event.
func (s *Subject) property(path []string) (any, bool) {
	switch {
	case len(path) == 1 && path[0] == "type":
		return s.Type, true
	case len(path) == 1 && path[0] == "sender":
		return string(s.Sender), true
	case len(path) == 1 && path[0] == "room_id":
		return string(s.Room), true
	case len(path) == 1 && path[0] == "state_key":
		if s.StateKey == nil {
			return nil, false
		}
		return *s.StateKey, true
	}
	s.decode.Do(func() {
		d := json.NewDecoder(bytes.NewReader(s.json))
		d.UseNumber()
		_ = d.Decode(&s.doc) // an event that does not decode has no properties
	})
	var v any = s.doc
	for _, p := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		if v, ok = m[p]; !ok {
			return nil, false
		}
	}
	return v, true
}

// splitPath undoes the escapes of a dot-separated property path.
//
// Spec: appendices#dot-separated-property-paths
func splitPath(key string) []string {
	var parts []string
	var b strings.Builder
	for i := 0; i < len(key); i++ {
		switch c := key[i]; {
		case c == '\\' && i+1 < len(key) && (key[i+1] == '.' || key[i+1] == '\\'):
			i++
			b.WriteByte(key[i])
		case c == '.':
			parts = append(parts, b.String())
			b.Reset()
		default:
			b.WriteByte(c)
		}
	}
	return append(parts, b.String())
}

// condition is compiled once for each rule. It says whether it holds for an
// event and the user whose rule it is.
type condition func(s *Subject, user matrix.UserID, room Room) bool

// The names of the condition on threads: that of the proposal while it is no part
// of the specification, and its later one.
const (
	condThreadUnstable = "io.element.msc4306.thread_subscription"
	condThread         = "thread_subscription"
)

func never(*Subject, matrix.UserID, Room) bool { return false }

// rawCondition is a condition as written in a rule.
type rawCondition struct {
	Kind    string          `json:"kind"`
	Key     *string         `json:"key"`
	Pattern *string         `json:"pattern"`
	Is      string          `json:"is"`
	Value   json.RawMessage `json:"value"`
	Follows *bool           `json:"subscribed"`
}

// compileCondition turns a written condition into a check. What is not known
// or not complete never matches.
//
// Spec: client-server-api#conditions-1
func compileCondition(raw json.RawMessage) condition {
	var c rawCondition
	if json.Unmarshal(raw, &c) != nil {
		return never
	}
	switch c.Kind {
	case "event_match":
		if c.Key == nil || c.Pattern == nil {
			return never
		}
		return eventMatch(*c.Key, *c.Pattern)
	case "event_property_is":
		want, ok := scalar(c.Value)
		if c.Key == nil || !ok {
			return never
		}
		path := splitPath(*c.Key)
		return func(s *Subject, _ matrix.UserID, _ Room) bool {
			v, ok := s.property(path)
			return ok && sameScalar(v, want)
		}
	case "event_property_contains":
		want, ok := scalar(c.Value)
		if c.Key == nil || !ok {
			return never
		}
		path := splitPath(*c.Key)
		return func(s *Subject, _ matrix.UserID, _ Room) bool { return contains(s, path, want) }
	case "contains_display_name":
		return containsDisplayName
	case "room_member_count":
		return memberCount(c.Is)
	case "sender_notification_permission":
		if c.Key == nil {
			return never
		}
		key := *c.Key
		return func(s *Subject, _ matrix.UserID, room Room) bool { return room.MayNotify(s.Sender, key) }
	case condThread, condThreadUnstable:
		if c.Follows == nil {
			return never
		}
		want := *c.Follows
		return func(s *Subject, user matrix.UserID, room Room) bool {
			inThread, follows := room.Follows(s, user)
			return inThread && follows == want
		}
	}
	return never
}

func eventMatch(key, pattern string) condition {
	path, g := splitPath(key), compileGlob(pattern, key == "content.body")
	return func(s *Subject, _ matrix.UserID, _ Room) bool {
		v, ok := s.property(path)
		if !ok {
			return false
		}
		text, ok := v.(string)
		return ok && g.match(text)
	}
}

func contains(s *Subject, path []string, want any) bool {
	v, ok := s.property(path)
	if !ok {
		return false
	}
	list, ok := v.([]any)
	if !ok {
		return false
	}
	for _, x := range list {
		if sameScalar(x, want) {
			return true
		}
	}
	return false
}

func containsDisplayName(s *Subject, user matrix.UserID, room Room) bool {
	name := room.DisplayName(user)
	if name == "" {
		return false
	}
	body, ok := s.body()
	return ok && containsWord(body, name)
}

// body is the text of a message.
func (s *Subject) body() (string, bool) {
	v, ok := s.property([]string{"content", "body"})
	if !ok {
		return "", false
	}
	body, ok := v.(string)
	return body, ok
}

// mentionsNobody reports whether an event is of a client that does not say whom
// it mentions; the rules for such are for those alone.
func mentionsNobody(s *Subject, _ matrix.UserID, _ Room) bool {
	_, says := s.property([]string{"content", "m.mentions"})
	if says {
		return false
	}
	_, hasText := s.body()
	return hasText
}

// containsWord looks for word, letters of either case alike, between word
// boundaries of text.
func containsWord(text, word string) bool {
	text, word = strings.ToLower(text), strings.ToLower(word)
	for from := 0; ; {
		i := strings.Index(text[from:], word)
		if i < 0 {
			return false
		}
		start, end := from+i, from+i+len(word)
		if (start == 0 || !wordByte(text[start-1]) || !wordByte(word[0])) &&
			(end == len(text) || !wordByte(text[end]) || !wordByte(word[len(word)-1])) {
			return true
		}
		from = start + 1
	}
}

func wordByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
}

func memberCount(is string) condition {
	op := strings.TrimRight(is, "0123456789")
	n, err := strconv.Atoi(is[len(op):])
	if err != nil {
		return never
	}
	var holds func(have int) bool
	switch op {
	case "", "==":
		holds = func(have int) bool { return have == n }
	case "<":
		holds = func(have int) bool { return have < n }
	case ">":
		holds = func(have int) bool { return have > n }
	case "<=":
		holds = func(have int) bool { return have <= n }
	case ">=":
		holds = func(have int) bool { return have >= n }
	default:
		return never
	}
	return func(_ *Subject, _ matrix.UserID, room Room) bool { return holds(room.MemberCount()) }
}

// scalar decodes a string, integer, boolean or null; integers come as int64.
func scalar(raw json.RawMessage) (any, bool) {
	if len(raw) == 0 {
		return nil, false
	}
	var v any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if d.Decode(&v) != nil {
		return nil, false
	}
	return normal(v)
}

func normal(v any) (any, bool) {
	switch x := v.(type) {
	case nil, string, bool:
		return x, true
	case json.Number:
		n, err := x.Int64()
		const limit = 1<<53 - 1
		if err != nil || n > limit || n < -limit {
			return nil, false
		}
		return n, true
	}
	return nil, false
}

func sameScalar(have, want any) bool {
	n, ok := normal(have)
	return ok && n == want
}
