package slidingsync

import (
	"cmp"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/clientsync"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	// maxTimeout bounds how long a client may wait.
	maxTimeout = 5 * time.Minute
	// maxLimit bounds the timeline of a room.
	maxLimit = 100
	// maxLists, maxSubs, maxRanges and maxPatterns bound what a request may name.
	maxLists, maxSubs, maxRanges, maxPatterns = 100, 100, 100, 500
	// maxSubsUnstable is as maxSubs, for clients that know of no such bound.
	maxSubsUnstable = 1000
	// maxName bounds the names of connections and lists.
	maxName = 255
	// maxToDevice is how many to-device messages go into one answer.
	maxToDevice = 100
	// maxPaged is how many thread subscriptions and sticky events go into one answer.
	maxPaged = 100
)

// request is one call.
type request struct {
	user     matrix.UserID
	device   matrix.DeviceID
	unstable bool // in the form of the unstable path
	conn     string
	pos      string
	txn      string
	timeout  time.Duration
	presence string
	lists    []*roomList // by name
	subs     map[matrix.RoomID]config
	ext      extensions
	ignored  accountdata.Ignored
}

// config is what a client wants of a room.
type config struct {
	limit int
	want  *want
}

// roomList is a window on the user's rooms.
type roomList struct {
	name    string
	config  config
	ranges  [][2]int // nil: everything
	filters *filters

	count int // rooms that match the filters
}

// filters select rooms of a list.
type filters struct {
	DM           *bool     `json:"is_dm"`
	Spaces       []string  `json:"spaces"`
	Encrypted    *bool     `json:"is_encrypted"`
	Invite       *bool     `json:"is_invite"`
	Invited      *bool     `json:"is_invited"`
	RoomTypes    []*string `json:"room_types"`
	NotRoomTypes []*string `json:"not_room_types"`
	Tags         []string  `json:"tags"`
	NotTags      []string  `json:"not_tags"`
	Name         string    `json:"room_name_like"` // of MSC3575, which clients of today still know
}

type (
	roomBody struct {
		Limit int             `json:"timeline_limit"`
		State json.RawMessage `json:"required_state"`
	}
	listBody struct {
		roomBody
		Ranges  [][]int  `json:"ranges"`
		Range   []int    `json:"range"`
		Filters *filters `json:"filters"`
	}
	extBody struct {
		Enabled bool     `json:"enabled"`
		Lists   []string `json:"lists"`
		Rooms   []string `json:"rooms"`
		Limit   *int     `json:"limit"`
		Since   string   `json:"since"`
	}
	body struct {
		Conn     string              `json:"conn_id"`
		Pos      string              `json:"pos"`
		Txn      string              `json:"txn_id"`
		Timeout  *int64              `json:"timeout"`
		Presence string              `json:"set_presence"`
		Lists    map[string]listBody `json:"lists"`
		Subs     map[string]roomBody `json:"room_subscriptions"`
		Ext      struct {
			ToDevice    *extBody `json:"to_device"`
			E2EE        *extBody `json:"e2ee"`
			AccountData *extBody `json:"account_data"`
			Receipts    *extBody `json:"receipts"`
			Typing      *extBody `json:"typing"`
			Threads     *extBody `json:"thread_subscriptions"`
			Sticky      *extBody `json:"sticky_events"`
			StickyName  *extBody `json:"org.matrix.msc4354.sticky_events"`
			ThreadsName *extBody `json:"io.element.msc4308.thread_subscriptions"`
		} `json:"extensions"`
	}
)

// extensions are those that are enabled.
type extensions struct {
	toDevice                      *toDevice
	e2ee                          bool
	accountData, receipts, typing *extBody
	threads, sticky               *paged
}

// paged is an extension of which an answer holds so many things at most, under
// the name that the client uses for it.
type paged struct {
	name  string
	limit int
	since stream.Pos
}

type toDevice struct {
	limit int
	since stream.Pos
}

func (s *Sync) parse(c *httpapi.Call, unstable bool) (*request, error) {
	var b body
	if err := c.Body(&b); err != nil {
		return nil, err
	}
	q := &request{user: c.Caller.User, device: c.Caller.Device, unstable: unstable, conn: b.Conn, pos: b.Pos, txn: b.Txn, presence: b.Presence}
	if b.Timeout != nil {
		if *b.Timeout < 0 {
			return nil, matrix.InvalidParam("timeout must not be negative")
		}
		q.timeout = time.Duration(min(*b.Timeout, int64(maxTimeout/time.Millisecond))) * time.Millisecond
	}
	if unstable { // the proposal has moved these into the body since
		ms, err := c.QueryInt("timeout", int(q.timeout/time.Millisecond), 0, int(maxTimeout/time.Millisecond))
		if err != nil {
			return nil, err
		}
		q.timeout = time.Duration(ms) * time.Millisecond
		q.pos, q.presence = cmp.Or(c.Query("pos"), q.pos), cmp.Or(c.Query("set_presence"), q.presence)
	}
	switch q.presence {
	case "", "online", "offline", "unavailable":
	default:
		return nil, matrix.InvalidParam("set_presence must be online, offline or unavailable")
	}
	if len(q.conn) > maxName || len(q.txn) > maxName {
		return nil, matrix.InvalidParam("conn_id and txn_id have at most %d bytes", maxName)
	}
	if err := q.parseRooms(&b); err != nil {
		return nil, err
	}
	if err := q.parseExtensions(&b, s.Hub.Head()); err != nil {
		return nil, err
	}
	q.ignored = s.Data.Ignored(q.user)
	return q, nil
}

func (q *request) parseRooms(b *body) error {
	most := maxSubs
	if q.unstable {
		most = maxSubsUnstable
	}
	if len(b.Lists) > maxLists || len(b.Subs) > most {
		return matrix.InvalidParam("at most %d lists and %d rooms may be named", maxLists, most)
	}
	for name, l := range b.Lists {
		if name == "" || len(name) > maxName {
			return matrix.InvalidParam("the name of a list has 1 to %d bytes", maxName)
		}
		out := &roomList{name: name, filters: l.Filters}
		var err error
		if out.config, err = l.config(q.user); err != nil {
			return err
		}
		if l.Range != nil {
			l.Ranges = append(l.Ranges, l.Range)
		}
		if len(l.Ranges) > maxRanges {
			return matrix.InvalidParam("a list has at most %d ranges", maxRanges)
		}
		for _, r := range l.Ranges {
			if len(r) != 2 || r[0] < 0 || r[1] < r[0] {
				return matrix.InvalidParam("a range is the first and the last place in the list, from 0")
			}
			out.ranges = append(out.ranges, [2]int{r[0], r[1]})
		}
		q.lists = append(q.lists, out)
	}
	slices.SortFunc(q.lists, func(a, b *roomList) int { return strings.Compare(a.name, b.name) })
	q.subs = make(map[matrix.RoomID]config, len(b.Subs))
	for id, r := range b.Subs {
		room, err := matrix.ParseRoomID(id)
		if err != nil {
			return err
		}
		if q.subs[room], err = r.config(q.user); err != nil {
			return err
		}
	}
	return nil
}

func (r *roomBody) config(user matrix.UserID) (config, error) {
	if r.Limit < 0 {
		return config{}, matrix.InvalidParam("timeline_limit must not be negative")
	}
	w, err := parseWant(r.State, user)
	return config{min(r.Limit, maxLimit), w}, err
}

func (q *request) parseExtensions(b *body, head stream.Pos) error {
	on := func(e *extBody) *extBody {
		if e == nil || !e.Enabled {
			return nil
		}
		return e
	}
	x := &b.Ext
	q.ext = extensions{e2ee: on(x.E2EE) != nil, accountData: on(x.AccountData), receipts: on(x.Receipts), typing: on(x.Typing)}
	var err error
	for _, t := range []struct {
		to   **paged
		name string
		e    *extBody
	}{
		{&q.ext.threads, "thread_subscriptions", on(x.Threads)},
		{&q.ext.threads, "io.element.msc4308.thread_subscriptions", on(x.ThreadsName)},
		{&q.ext.sticky, "sticky_events", on(x.Sticky)},
		{&q.ext.sticky, "org.matrix.msc4354.sticky_events", on(x.StickyName)},
	} {
		if t.e == nil {
			continue
		}
		p := &paged{name: t.name}
		if p.limit, p.since, err = t.e.page(maxPaged, head); err != nil {
			return err
		}
		*t.to = p
	}
	if e := on(x.ToDevice); e != nil {
		t := &toDevice{}
		if t.limit, t.since, err = e.page(maxToDevice, head); err != nil {
			return err
		}
		q.ext.toDevice = t
	}
	return nil
}

// page is how many things a client wants at once, at most most, and what it has.
func (e *extBody) page(most int, head stream.Pos) (limit int, since stream.Pos, err error) {
	limit = most
	if e.Limit != nil {
		if *e.Limit < 1 {
			return 0, 0, matrix.InvalidParam("limit must be positive")
		}
		limit = min(*e.Limit, most)
	}
	if e.Since != "" {
		token, err := clientsync.ParseToken(e.Since)
		if err != nil {
			return 0, 0, err
		}
		since = min(token.Pos, head)
	}
	return limit, since, nil
}

// pattern matches state; an empty pointer matches everything.
type pattern struct{ typ, key *string }

func (p pattern) matches(typ, key string) bool {
	return (p.typ == nil || *p.typ == typ) && (p.key == nil || *p.key == key)
}

// want is which state of a room a client wants: required_state.
type want struct {
	include, exclude []pattern
	lazy             bool   // members only of those who speak
	text             string // the same text is the same want
}

// parseWant reads both forms: pairs of type and key with "*", "$ME" and "$LAZY",
// and the object of the accepted proposal.
func parseWant(raw json.RawMessage, user matrix.UserID) (*want, error) {
	w := &want{}
	switch {
	case len(raw) == 0 || string(raw) == "null":
	case raw[0] == '[':
		var pairs [][]string
		if err := json.Unmarshal(raw, &pairs); err != nil {
			return nil, matrix.BadJSON("required_state is not a list of types and state keys")
		}
		for _, p := range pairs {
			if len(p) != 2 {
				return nil, matrix.BadJSON("an element of required_state is a type and a state key")
			}
			w.pair(p[0], p[1], user)
		}
	default:
		var obj struct {
			Include, Exclude []struct {
				Type *string `json:"type"`
				Key  *string `json:"state_key"`
			}
			Lazy bool `json:"lazy_members"`
		}
		if err := json.Unmarshal(raw, &obj); err != nil {
			return nil, matrix.BadJSON("required_state does not fit")
		}
		w.lazy = obj.Lazy
		for _, p := range obj.Include {
			w.include = append(w.include, pattern{p.Type, p.Key})
		}
		for _, p := range obj.Exclude {
			w.exclude = append(w.exclude, pattern{p.Type, p.Key})
		}
	}
	if len(w.include)+len(w.exclude) > maxPatterns {
		return nil, matrix.InvalidParam("required_state has at most %d elements", maxPatterns)
	}
	w.text = w.String()
	return w, nil
}

func (w *want) pair(typ, key string, user matrix.UserID) {
	var p pattern
	if typ != "*" {
		p.typ = &typ
	}
	switch key {
	case "*":
	case "$LAZY":
		if typ == "m.room.member" {
			w.lazy = true
			return
		}
		p.key = &key
	case "$ME":
		me := string(user)
		p.key = &me
	default:
		p.key = &key
	}
	w.include = append(w.include, p)
}

// String is the same for the same want.
func (w *want) String() string {
	b := strconv.AppendBool(nil, w.lazy)
	for i, list := range [][]pattern{w.include, w.exclude} {
		for _, p := range list {
			b = append(b, "+-"[i])
			for _, s := range []*string{p.typ, p.key} {
				if s == nil {
					b = append(b, '*')
					continue
				}
				b = strconv.AppendQuote(b, *s)
			}
		}
	}
	return string(b)
}

// matches reports whether a state entry is wanted. Where members are wanted
// lazily, a pattern for everything does not mean them.
func (w *want) matches(typ, key string) bool {
	ok := slices.ContainsFunc(w.include, func(p pattern) bool {
		if p.typ == nil && p.key == nil && w.lazy && typ == "m.room.member" {
			return false
		}
		return p.matches(typ, key)
	})
	return ok && !slices.ContainsFunc(w.exclude, func(p pattern) bool { return p.matches(typ, key) })
}

// anyMatches reports whether one of several wants matches.
func anyMatches(list []*want, typ, key string) bool {
	return slices.ContainsFunc(list, func(w *want) bool { return w.matches(typ, key) })
}

// lacks lists the wants that are not among others.
func lacks(list, others []*want) (out []*want) {
	for _, w := range list {
		if !slices.ContainsFunc(others, func(o *want) bool { return o.text == w.text }) {
			out = append(out, w)
		}
	}
	return out
}
