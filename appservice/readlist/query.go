package readlist

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	log "github.com/sirupsen/logrus"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Viewer is who asks. Admin may see every list; asking is logged.
type Viewer struct {
	User  string
	Admin bool
}

// The three lists of a message.
const (
	Read   = "read"
	Unread = "unread"
	Left   = "left" // left the room or the company without having read it
)

// Query asks for a page of one list of a message.
type Query struct {
	Room, Event string
	State       string // Read, Unread or Left; "" is Read
	FromEdit    bool   // count from the last edit instead of the message itself
	CountsOnly  bool
	Cursor      string // Page.Next of the page before
	Limit       int    // at most MaxLimit; 0 is 100
}

// MaxLimit is the largest page.
const MaxLimit = 500

// Reader is one person of a list.
type Reader struct {
	User       string  `json:"user_id"`
	Person     *Person `json:"person,omitempty"`
	ReadAt     int64   `json:"read_at,omitempty"`     // first time of reading, unless it was too long ago
	Implied    bool    `json:"implied,omitempty"`     // known from a message of their own
	BeforeEdit bool    `json:"before_edit,omitempty"` // read before the last change
	idx        int32
}

// Page is an answer.
type Page struct {
	TotalRead   int   `json:"total_read"`
	TotalUnread int   `json:"total_unread"`
	TotalLeft   int   `json:"total_left"`
	AsOf        int64 `json:"as_of"`
	SentAt      int64 `json:"sent_at"`
	EditedAt    int64 `json:"edited_at,omitempty"`
	Redacted    bool  `json:"redacted,omitempty"`
	// LagBySite has the other sites of which somebody is among the receivers.
	LagBySite map[string]Lag `json:"lag_by_site,omitempty"`
	Readers   []Reader       `json:"readers"`
	Next      string         `json:"next_cursor,omitempty"`
}

// Readers gives a page of a message's list to those who may see it: its sender, people with power 50 or more in the
// room, both sides of a conversation of two, administrators and auditors. Other members may ask for the counts.
func (l *Lists) Readers(ctx context.Context, v Viewer, q Query) (*Page, error) {
	after, limit, err := q.bounds()
	if err != nil {
		return nil, err
	}
	r, e, err := l.message(ctx, q.Room, q.Event)
	if err != nil {
		return nil, err
	}
	may, err := l.may(ctx, v, r, e)
	if err != nil {
		return nil, err
	}
	switch {
	case may == seesNothing:
		return nil, errNoMessage()
	case may == seesCounts && !q.CountsOnly:
		return nil, matrix.Forbidden("the names are for the sender of the message, the room's managers and auditors; counts=true gives the counts")
	}
	page := &Page{AsOf: matrix.Millis(l.opts.Now()), SentAt: e.ts, EditedAt: e.editedTS, Redacted: e.redacted != 0, Readers: []Reader{}}
	if q.CountsOnly {
		limit = 0
	}
	r.mu.RLock()
	pos := e.pos
	if q.FromEdit && e.editedAt != 0 {
		pos = e.editedAt
	}
	missing := l.fill(r, e, pos, q.State, after, limit, page)
	r.mu.RUnlock()
	if len(missing) > 0 {
		if err := l.oldMoves(ctx, r, e, pos, page, missing); err != nil {
			return nil, err
		}
	}
	for i := range page.Readers {
		rd := &page.Readers[i]
		rd.BeforeEdit = e.editedTS != 0 && rd.ReadAt != 0 && rd.ReadAt < e.editedTS
		if p, ok := l.opts.Roster.PersonOf(rd.User); ok {
			rd.Person = &p
		}
	}
	if may == seesAll && !q.CountsOnly {
		log.WithFields(log.Fields{"user_id": v.User, "room_id": q.Room, "event_id": q.Event}).Info("Read list of another's message shown")
	}
	return page, nil
}

func (q *Query) bounds() (after int32, limit int, err error) {
	switch q.State {
	case "":
		q.State = Read
	case Read, Unread, Left:
	default:
		return 0, 0, matrix.InvalidParam("state must be read, unread or left")
	}
	after = -1
	if q.Cursor != "" {
		n, err := strconv.ParseInt(q.Cursor, 10, 32)
		if err != nil || n < 0 {
			return 0, 0, matrix.InvalidParam("cursor is not one that was given out")
		}
		after = int32(n)
	}
	if limit = q.Limit; limit <= 0 {
		limit = 100
	}
	return after, min(limit, MaxLimit), nil
}

func errNoMessage() error { return matrix.NotFound("no such message, or you are not in its room") }

// message finds a message in its room.
func (l *Lists) message(ctx context.Context, roomID, eventID string) (*room, *event, error) {
	r, err := l.room(ctx, roomID)
	if err != nil {
		return nil, nil, err
	}
	if r == nil {
		return nil, nil, errNoMessage()
	}
	found, err := l.find(ctx, r, eventID)
	if err != nil {
		return nil, nil, err
	}
	e := found[eventID]
	if e == nil || e.kind != kindMessage {
		return nil, nil, errNoMessage()
	}
	return r, e, nil
}

// judge says in which list of e member i stands, "" for none. pos is from where reading counts.
func (l *Lists) judge(r *room, e *event, pos, i int32) string {
	if r.bot[i] || r.users[i] == e.sender {
		return ""
	}
	s, ok := r.spanAt(i, e.pos)
	if !ok {
		return ""
	}
	if e.redacted != 0 { // as it was then
		switch {
		case bit(e.frozen, i):
			return Read
		case s.to != 0 && s.to <= e.redacted:
			return Left
		}
		return Unread
	}
	switch {
	case r.hasRead(i, e.thread, pos):
		return Read
	case s.to != 0 && !r.isIn(i):
		return Left
	}
	if p, ok := l.opts.Roster.PersonOf(r.users[i]); ok && p.Gone {
		return Left
	}
	return Unread
}

// fill counts everybody in one pass and takes a page of one list. It returns which entries of the page have their time
// of reading in the database only. The caller holds the room's lock.
func (l *Lists) fill(r *room, e *event, pos int32, state string, after int32, limit int, page *Page) (missing []int) {
	seen := map[string]bool{}
	for i := range int32(len(r.users)) {
		is := l.judge(r, e, pos, i)
		switch is {
		case "":
			continue
		case Read:
			page.TotalRead++
		case Unread:
			page.TotalUnread++
		case Left:
			page.TotalLeft++
		}
		l.lag(r.users[i], page, seen)
		if is != state || i <= after || limit == 0 {
			continue
		}
		if len(page.Readers) == limit {
			page.Next = strconv.Itoa(int(page.Readers[limit-1].idx))
			continue
		}
		rd := Reader{User: r.users[i], idx: i}
		if state == Read {
			m, found, known := r.firstMove(i, e.thread, pos)
			if found && known {
				rd.ReadAt, rd.Implied = m.ts, m.implied
			} else {
				missing = append(missing, len(page.Readers))
			}
		}
		page.Readers = append(page.Readers, rd)
	}
	return missing
}

// lag adds how far the site of a receiver may be behind; each server is looked at once.
func (l *Lists) lag(user string, page *Page, seen map[string]bool) {
	if l.opts.Lag == nil {
		return
	}
	_, server, _ := strings.Cut(user, ":")
	if seen[server] {
		return
	}
	p, ok := l.opts.Roster.PersonOf(user)
	if !ok {
		return
	}
	seen[server] = true
	if lag, ok := l.opts.Lag(p.Site); ok && p.Elsewhere {
		if page.LagBySite == nil {
			page.LagBySite = map[string]Lag{}
		}
		page.LagBySite[p.Site] = lag
	}
}

// oldMoves reads times of reading that are no longer in memory. Where they have been dropped, none is given.
func (l *Lists) oldMoves(ctx context.Context, r *room, e *event, pos int32, page *Page, missing []int) error {
	err := l.db.Read(ctx, func(tx *sqldb.Tx) error {
		for _, n := range missing {
			rd := &page.Readers[n]
			rd.ReadAt, rd.Implied = 0, false
			for _, thread := range []int32{unthreaded, e.thread} {
				var ts int64
				var implied bool
				switch err := tx.QueryRow(qFirstMove, r.nid, int64(rd.idx), int64(thread), int64(pos)).Scan(&ts, &implied); {
				case errors.Is(err, sqldb.ErrNoRows):
				case err != nil:
					return err
				case rd.ReadAt == 0 || ts < rd.ReadAt:
					rd.ReadAt, rd.Implied = ts, implied
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading times of reading: %w", err)
	}
	return nil
}

// Missing are those who have not read a message, as far as viewer may know it.
type Missing struct {
	Users []string
	Read  int // how many have
}

// Unread lists everybody who has not read a message; for those who may see its list.
func (l *Lists) Unread(ctx context.Context, v Viewer, roomID, eventID string) (*Missing, error) {
	r, e, err := l.message(ctx, roomID, eventID)
	if err != nil {
		return nil, err
	}
	may, err := l.may(ctx, v, r, e)
	if err != nil {
		return nil, err
	}
	switch may {
	case seesNothing:
		return nil, errNoMessage()
	case seesCounts:
		return nil, matrix.Forbidden("who has not read a message is for its sender, the room's managers and auditors")
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	m := &Missing{}
	for i := range int32(len(r.users)) {
		switch l.judge(r, e, e.pos, i) {
		case Read:
			m.Read++
		case Unread:
			m.Users = append(m.Users, r.users[i])
		}
	}
	return m, nil
}

// sight is how much of a list somebody may see.
type sight int

const (
	seesNothing sight = iota
	seesCounts
	seesNames
	seesAll // by office: administrators and auditors
)

func (l *Lists) may(ctx context.Context, v Viewer, r *room, e *event) (sight, error) {
	office := v.Admin
	for _, a := range l.opts.Auditors {
		office = office || a == v.User
	}
	if office {
		if v.User == e.sender {
			return seesNames, nil
		}
		return seesAll, nil
	}
	r.mu.RLock()
	in, pair, p := r.joined(v.User), r.pair(l, v.User, e), r.power
	r.mu.RUnlock()
	switch {
	case !in && v.User != e.sender:
		return seesNothing, nil
	case e.redacted != 0:
		return seesCounts, nil
	case v.User == e.sender, pair:
		return seesNames, nil
	}
	if p == nil {
		var err error
		if p, err = l.askPower(ctx, r, v.User); err != nil {
			return seesNothing, err
		}
	}
	if p.of(v.User) >= 50 {
		return seesNames, nil
	}
	return seesCounts, nil
}

// pair reports whether user is the only one to whom e was written.
func (r *room) pair(l *Lists, user string, e *event) bool {
	n, among := 0, false
	for i := range int32(len(r.users)) {
		if n > 1 {
			return false
		}
		if r.bot[i] || r.users[i] == e.sender {
			continue
		}
		if _, ok := r.spanAt(i, e.pos); ok {
			n++
			among = among || r.users[i] == user
		}
	}
	return n == 1 && among
}

// power is who may manage a room.
type power struct {
	creators map[string]bool
	users    map[string]int64
	def      int64
}

func (p *power) of(user string) int64 {
	if p.creators[user] {
		return 1 << 53
	}
	if n, ok := p.users[user]; ok {
		return n
	}
	return p.def
}

// creators are the sender of a creation and whom it names beside.
func creators(ev *mxclient.Event) []string {
	var c struct {
		Additional []string `json:"additional_creators"`
	}
	_ = json.Unmarshal(ev.Content, &c)
	return append([]string{ev.Sender}, c.Additional...)
}

// askPower reads a room's power levels, as the bot or as the member who asks, and keeps them until they change.
func (l *Lists) askPower(ctx context.Context, r *room, viewer string) (*power, error) {
	r.mu.RLock()
	made := r.creators
	r.mu.RUnlock()
	p := &power{creators: map[string]bool{}}
	var err error
	for _, as := range []id.UserID{"", id.UserID(viewer)} {
		if err = l.readPower(ctx, r.id, as, p, &made); err == nil {
			break
		}
		if !mxclient.IsPermanent(err) {
			return nil, fmt.Errorf("asking for power levels: %w", err)
		}
	}
	if err != nil {
		return p, nil // the homeserver does not tell: nobody manages
	}
	for _, u := range made {
		p.creators[u] = true
	}
	r.mu.Lock()
	r.power, r.creators = p, made
	r.mu.Unlock()
	return p, nil
}

func (l *Lists) readPower(ctx context.Context, roomID string, as id.UserID, p *power, made *[]string) error {
	var levels struct {
		Users   map[string]int64 `json:"users"`
		Default int64            `json:"users_default"`
	}
	err := l.opts.Homeserver.State(ctx, as, id.RoomID(roomID), "m.room.power_levels", "", &levels)
	if err != nil && !mxclient.IsCode(err, "M_NOT_FOUND") {
		return err
	}
	p.users, p.def = levels.Users, levels.Default
	if *made != nil {
		return nil
	}
	state, err := l.opts.Homeserver.StateAll(ctx, as, id.RoomID(roomID))
	if err != nil {
		return err
	}
	for _, ev := range state {
		if ev.Type == "m.room.create" {
			*made = creators(ev)
		}
	}
	return nil
}
