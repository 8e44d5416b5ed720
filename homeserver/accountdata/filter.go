package accountdata

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Formats in which a filter may ask for events.
const (
	FormatClient     = "client"
	FormatFederation = "federation"
)

// Filter is a compiled filter of /sync. It is immutable. A nil Filter lets
// everything through; so does every nil EventFilter in it.
//
// Spec: client-server-api#filtering
type Filter struct {
	Format      string // FormatClient or FormatFederation
	Presence    *EventFilter
	AccountData *EventFilter
	Room        RoomFilter

	fields *fieldTree // nil: all fields
}

// RoomFilter is the part of a filter that concerns rooms.
type RoomFilter struct {
	IncludeLeave bool
	State        *EventFilter
	Timeline     *EventFilter
	Ephemeral    *EventFilter
	AccountData  *EventFilter

	rooms, notRooms set[matrix.RoomID]
}

// EventFilter says which events are wanted. It is immutable, and nil wants all.
type EventFilter struct {
	LazyLoadMembers         bool
	IncludeRedundantMembers bool
	UnreadThreads           bool

	limit             int // below 0: not given
	types, notTypes   *patterns
	senders, notSends set[matrix.UserID]
	rooms, notRooms   set[matrix.RoomID]
	containsURL       *bool
	rels, notRels     set[string] // relation types
}

// maxFilterList is the number of entries that a list of a filter may have.
const maxFilterList = 10_000

type eventFilterJSON struct {
	Limit      *int      `json:"limit"`
	Types      *[]string `json:"types"`
	NotTypes   *[]string `json:"not_types"`
	Senders    *[]string `json:"senders"`
	NotSenders *[]string `json:"not_senders"`
	Rooms      *[]string `json:"rooms"`
	NotRooms   *[]string `json:"not_rooms"`
	URL        *bool     `json:"contains_url"`
	Lazy       bool      `json:"lazy_load_members"`
	Redundant  bool      `json:"include_redundant_members"`
	Threads    bool      `json:"unread_thread_notifications"`

	// MSC3874: kinds of relations.
	Rels     *[]string `json:"org.matrix.msc3874.rel_types"`
	NotRels  *[]string `json:"org.matrix.msc3874.not_rel_types"`
	Rels2    *[]string `json:"rel_types"`
	NotRels2 *[]string `json:"not_rel_types"`
}

type filterJSON struct {
	Fields      *[]string        `json:"event_fields"`
	Format      string           `json:"event_format"`
	Presence    *eventFilterJSON `json:"presence"`
	AccountData *eventFilterJSON `json:"account_data"`
	Room        *struct {
		Rooms        *[]string        `json:"rooms"`
		NotRooms     *[]string        `json:"not_rooms"`
		IncludeLeave bool             `json:"include_leave"`
		State        *eventFilterJSON `json:"state"`
		Timeline     *eventFilterJSON `json:"timeline"`
		Ephemeral    *eventFilterJSON `json:"ephemeral"`
		AccountData  *eventFilterJSON `json:"account_data"`
	} `json:"room"`
}

// ParseFilter compiles the filter of a /sync request. What does not fit is M_BAD_JSON or M_NOT_JSON.
func ParseFilter(definition []byte) (*Filter, error) {
	var j filterJSON
	if err := decode(definition, &j); err != nil {
		return nil, err
	}
	f := &Filter{Format: FormatClient}
	switch j.Format {
	case "", FormatClient:
	case FormatFederation:
		f.Format = FormatFederation
	default:
		return nil, matrix.BadJSON("event_format must be %q or %q", FormatClient, FormatFederation)
	}
	if j.Fields != nil {
		if len(*j.Fields) > maxFilterList {
			return nil, matrix.BadJSON("event_fields has too many entries")
		}
		f.fields = parseFields(*j.Fields)
	}
	b := builder{}
	f.Presence, f.AccountData = b.events(j.Presence), b.events(j.AccountData)
	if r := j.Room; r != nil {
		f.Room = RoomFilter{
			IncludeLeave: r.IncludeLeave,
			State:        b.events(r.State), Timeline: b.events(r.Timeline),
			Ephemeral: b.events(r.Ephemeral), AccountData: b.events(r.AccountData),
			rooms: b.rooms(r.Rooms), notRooms: b.rooms(r.NotRooms),
		}
	}
	if b.err != nil {
		return nil, b.err
	}
	return f, nil
}

// ParseEventFilter compiles the filter of /messages, /context and their like. Empty input is no filter.
func ParseEventFilter(definition []byte) (*EventFilter, error) {
	if len(bytes.TrimSpace(definition)) == 0 {
		return nil, nil //nolint:nilnil // a nil filter wants everything
	}
	var j eventFilterJSON
	if err := decode(definition, &j); err != nil {
		return nil, err
	}
	b := builder{}
	f := b.events(&j)
	if b.err != nil {
		return nil, b.err
	}
	return f, nil
}

// decode reads a JSON object.
func decode(b []byte, v any) error {
	if !json.Valid(b) {
		return matrix.NotJSON("the filter is not valid JSON")
	}
	if t := bytes.TrimLeft(b, " \t\r\n"); t[0] != '{' {
		return matrix.BadJSON("the filter must be a JSON object")
	}
	if err := json.Unmarshal(b, v); err != nil {
		return matrix.BadJSON("the filter does not have the form of the specification")
	}
	return nil
}

// builder compiles the parts of a filter and keeps the first error.
type builder struct{ err error }

func (b *builder) fail(format string, args ...any) {
	if b.err == nil {
		b.err = matrix.BadJSON(format, args...)
	}
}

func (b *builder) events(j *eventFilterJSON) *EventFilter {
	if j == nil {
		return nil
	}
	f := &EventFilter{
		LazyLoadMembers: j.Lazy, IncludeRedundantMembers: j.Redundant, UnreadThreads: j.Threads,
		types: b.patterns(j.Types), notTypes: b.patterns(j.NotTypes),
		senders: b.users(j.Senders), notSends: b.users(j.NotSenders),
		rooms: b.rooms(j.Rooms), notRooms: b.rooms(j.NotRooms),
		containsURL: j.URL,
		rels:        b.words(cmp.Or(j.Rels2, j.Rels)), notRels: b.words(cmp.Or(j.NotRels2, j.NotRels)),
	}
	f.limit = -1
	if j.Limit != nil {
		if *j.Limit < 0 {
			b.fail("limit must not be below 0")
		}
		f.limit = *j.Limit
	}
	if f.notTypes != nil && f.notTypes.empty() {
		f.notTypes = nil
	}
	return f
}

func (b *builder) tooLong(list []string) bool {
	if len(list) > maxFilterList {
		b.fail("a list of the filter has more than %d entries", maxFilterList)
		return true
	}
	return false
}

func (b *builder) users(list *[]string) set[matrix.UserID] {
	if list == nil || b.tooLong(*list) {
		return nil
	}
	s := make(set[matrix.UserID], len(*list))
	for _, v := range *list {
		u, err := matrix.ParseUserID(v)
		if err != nil {
			b.fail("senders must be user IDs")
			return nil
		}
		s[u] = struct{}{}
	}
	return s
}

func (b *builder) words(list *[]string) set[string] {
	if list == nil || b.tooLong(*list) {
		return nil
	}
	s := make(set[string], len(*list))
	for _, v := range *list {
		s[v] = struct{}{}
	}
	return s
}

func (b *builder) rooms(list *[]string) set[matrix.RoomID] {
	if list == nil || b.tooLong(*list) {
		return nil
	}
	s := make(set[matrix.RoomID], len(*list))
	for _, v := range *list {
		r, err := matrix.ParseRoomID(v)
		if err != nil {
			b.fail("rooms must be room IDs")
			return nil
		}
		s[r] = struct{}{}
	}
	return s
}

func (b *builder) patterns(list *[]string) *patterns {
	if list == nil || b.tooLong(*list) {
		return nil
	}
	return newPatterns(*list)
}

// set is a list of a filter; nil means that the list was not given, which an empty one is not.
type set[T comparable] map[T]struct{}

func (s set[T]) has(v T) bool {
	_, ok := s[v]
	return ok
}

// allows applies an include list and an exclude list.
func allows[T comparable](in, out set[T], v T) bool {
	return !(len(out) > 0 && out.has(v)) && (in == nil || in.has(v))
}

// patterns matches event types, in which "*" stands for any characters.
type patterns struct {
	exact    map[string]struct{}
	prefixes []string   // "abc*"
	globs    [][]string // the literal parts between the stars
	all      bool       // "*"
}

func newPatterns(list []string) *patterns {
	p := &patterns{exact: make(map[string]struct{}, len(list))}
	for _, v := range list {
		star := strings.IndexByte(v, '*')
		switch {
		case star < 0:
			p.exact[v] = struct{}{}
		case strings.Trim(v, "*") == "":
			p.all = true
		case star == len(v)-1:
			p.prefixes = append(p.prefixes, v[:star])
		default:
			p.globs = append(p.globs, strings.Split(v, "*"))
		}
	}
	return p
}

func (p *patterns) empty() bool {
	return !p.all && len(p.exact) == 0 && len(p.prefixes) == 0 && len(p.globs) == 0
}

func (p *patterns) match(s string) bool {
	if p.all {
		return true
	}
	if _, ok := p.exact[s]; ok {
		return true
	}
	for _, prefix := range p.prefixes {
		if strings.HasPrefix(s, prefix) {
			return true
		}
	}
	return slices.ContainsFunc(p.globs, func(parts []string) bool { return globMatch(parts, s) })
}

// globMatch places the parts one after another, the first at the beginning and the last at the end. Taking the
// earliest place for each is enough, so the work is linear in the length of s for each part.
func globMatch(parts []string, s string) bool {
	first, last := parts[0], parts[len(parts)-1]
	if !strings.HasPrefix(s, first) {
		return false
	}
	s = s[len(first):]
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return strings.HasSuffix(s, last)
}
