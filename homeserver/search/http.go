package search

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	defaultLimit  = 10
	largestLimit  = 100
	defaultAround = 5
	// maxSearch is how long a search may be, in characters.
	maxSearch = 1000
	// patience is how long a search waits for messages on their way into the index.
	patience = 1500 * time.Millisecond
)

// request is the body of the endpoint.
type request struct {
	Categories *struct {
		RoomEvents *criteria `json:"room_events"`
	} `json:"search_categories"`
}

type criteria struct {
	Term    *string         `json:"search_term"`
	Keys    []string        `json:"keys"`
	Filter  json.RawMessage `json:"filter"`
	OrderBy string          `json:"order_by"`
	Context *struct {
		Before  *int `json:"before_limit"`
		After   *int `json:"after_limit"`
		Profile bool `json:"include_profile"`
	} `json:"event_context"`
	State     bool `json:"include_state"`
	Groupings struct {
		By []struct {
			Key string `json:"key"`
		} `json:"group_by"`
	} `json:"groupings"`
}

// question is a request that has been checked.
type question struct {
	user    matrix.UserID
	device  matrix.DeviceID
	ignored accountdata.Ignored

	clauses []clause
	written []string
	fields  []field
	filter  filter
	byRank  bool
	limit   int

	context       bool
	before, after int
	profiles      bool
	state         bool
	groups        []string
	cursor        *cursor
}

// filter is a filter of events, with the rooms and senders that it names.
type filter struct {
	*accountdata.EventFilter                 // without the rooms
	rooms                    []matrix.RoomID // nil: all
	senders                  []matrix.UserID
}

// cursor is the last result of a page, and the group that it is of.
type cursor struct {
	doc    stream.Pos
	terms  int
	byRank bool
	// Where results are read by recency and not by group: how many there were up to
	// here, and how many were counted; else 0.
	seen, count int
	key, value  string
}

// The keys to group by.
const (
	byRoom   = "room_id"
	bySender = "sender"
)

func (c cursor) String() string {
	order := "t"
	if c.byRank {
		order = "r"
	}
	return base64.RawURLEncoding.EncodeToString([]byte(fmt.Sprintf("%s %d %d %d %d %s %s", order, c.doc, c.terms, c.seen, c.count, c.key, c.value)))
}

func parseCursor(s string, byRank bool) (*cursor, error) {
	bad := matrix.InvalidParam("next_batch is not a token of this search")
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return nil, bad
	}
	part := strings.SplitN(string(b), " ", 7)
	if len(part) != 7 || part[0] != "t" && part[0] != "r" || (part[0] == "r") != byRank {
		return nil, bad
	}
	var n [4]int64
	for i := range n {
		if n[i], err = strconv.ParseInt(part[1+i], 10, 64); err != nil || i > 0 && (n[i] < 0 || n[i] > math.MaxInt32) {
			return nil, bad
		}
	}
	c := &cursor{stream.Pos(n[0]), int(n[1]), byRank, int(n[2]), int(n[3]), part[5], part[6]}
	if c.seen > 0 && (byRank || c.key != "") || c.key != "" && c.key != byRoom && c.key != bySender {
		return nil, bad
	}
	return c, nil
}

// after reports whether a result comes after the cursor, and in its group.
func (c *cursor) after(h hit) bool {
	if c.key != "" && c.value != h.group(c.key) {
		return false
	}
	if c.byRank && h.terms != c.terms {
		return h.terms > c.terms
	}
	return h.doc < c.doc
}

// group is the group that a result belongs to.
func (h hit) group(key string) string {
	if key == byRoom {
		return string(h.room)
	}
	return string(h.sender)
}

func parse(c *httpapi.Call, in *criteria) (*question, error) {
	q := &question{user: c.Caller.User, device: c.Caller.Device, state: in.State}
	if in.Term == nil {
		return nil, matrix.MissingParam("search_term is needed")
	}
	if utf8.RuneCountInString(*in.Term) > maxSearch {
		return nil, matrix.InvalidParam("search_term may have %d characters at most", maxSearch)
	}
	q.clauses, q.written = compile(*in.Term)
	switch in.OrderBy {
	case "", "rank":
		q.byRank = true
	case "recent":
	default:
		return nil, matrix.InvalidParam("order_by must be rank or recent")
	}
	if err := q.filter.parse(in.Filter); err != nil {
		return nil, err
	}
	q.limit = q.filter.Limit(defaultLimit, largestLimit)
	if err := q.parseKeys(in.Keys); err != nil {
		return nil, err
	}
	for _, g := range in.Groupings.By {
		if g.Key != byRoom && g.Key != bySender {
			return nil, matrix.InvalidParam("results can be grouped by room_id and sender")
		}
		if !slices.Contains(q.groups, g.Key) {
			q.groups = append(q.groups, g.Key)
		}
	}
	if x := in.Context; x != nil {
		q.context, q.profiles = true, x.Profile
		var err error
		if q.before, err = aroundLimit("before_limit", x.Before); err != nil {
			return nil, err
		}
		if q.after, err = aroundLimit("after_limit", x.After); err != nil {
			return nil, err
		}
	}
	var err error
	if s := c.Query("next_batch"); s != "" {
		q.cursor, err = parseCursor(s, q.byRank)
	}
	return q, err
}

func (q *question) parseKeys(keys []string) error {
	wanted := map[field]bool{}
	for _, k := range keys {
		f, ok := fieldsByKey[k]
		if !ok {
			return matrix.InvalidParam("keys may be content.body, content.name and content.topic")
		}
		wanted[f] = true
	}
	for f := bodyField; f <= topicField; f++ {
		if (len(keys) == 0 || wanted[f]) && q.filter.MatchType(typesOf[f]) {
			q.fields = append(q.fields, f)
		}
	}
	return nil
}

func aroundLimit(name string, n *int) (int, error) {
	if n == nil {
		return defaultAround, nil
	}
	if *n < 0 {
		return 0, matrix.InvalidParam("%s must be at least 0", name)
	}
	return min(*n, mostAround), nil
}

// parse reads a filter. The rooms are taken out of it: their predecessors count
// as wanted too.
func (f *filter) parse(raw json.RawMessage) error {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	if _, err := accountdata.ParseEventFilter(raw); err != nil {
		return err
	}
	var lists struct {
		Rooms   []matrix.RoomID `json:"rooms"`
		Senders []matrix.UserID `json:"senders"`
	}
	parts := map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &lists); err != nil {
		return matrix.BadJSON("the filter does not have the form of the specification")
	}
	if err := json.Unmarshal(raw, &parts); err != nil {
		return matrix.BadJSON("the filter does not have the form of the specification")
	}
	delete(parts, "rooms")
	rest, err := json.Marshal(parts)
	if err != nil {
		return err
	}
	f.rooms, f.senders = lists.Rooms, lists.Senders
	f.EventFilter, err = accountdata.ParseEventFilter(rest)
	return err
}

func (s *Search) postSearch(c *httpapi.Call) (any, error) {
	var in request
	if err := c.Body(&in); err != nil {
		return nil, err
	}
	if in.Categories == nil {
		return nil, matrix.MissingParam("search_categories is needed")
	}
	if in.Categories.RoomEvents == nil {
		return map[string]any{"search_categories": struct{}{}}, nil
	}
	q, err := parse(c, in.Categories.RoomEvents)
	if err != nil {
		return nil, err
	}
	q.ignored = s.Data.Ignored(q.user)
	s.settle(c.Ctx())
	release, err := s.searching.Acquire(c.Ctx(), 1)
	if err != nil {
		return nil, err
	}
	defer release()
	var out *results
	err = s.DB.Read(c.Ctx(), func(tx *sqldb.Tx) (err error) {
		run := &search{Search: s, tx: tx, q: q, sights: map[matrix.RoomID]*sight{}}
		out, err = run.answer(c.Ctx())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("searching: %w", err)
	}
	return map[string]any{"search_categories": map[string]any{"room_events": out}}, nil
}

// settle waits for what was sent before the search, but not for long: what is in
// the index already is better than nothing.
func (s *Search) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_ = s.catchUp(ctx) // Run tells of what fails for longer
}
