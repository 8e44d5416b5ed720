// Package ding sends urgent notices inside the app and counts who has confirmed them.
//
// A DING is a row; the events in rooms show it. Its receivers (people, units with all below them, everybody, those who
// have not read a message) are resolved when it is fired. Each receiver gets, in their DING room, the record
// im.carillon.ding and a message that any client shows; the sender gets a card that is edited as confirmations come in.
// People confirm by reaction, by a word, by the event im.carillon.ding.confirm or by the API. Everything that goes out
// goes through the outbox, put there in the transaction that decides it.
//
// Where the company has several sites, the site of the sender keeps the DING and its card; each site delivers to its own
// people and reports what became of it (see sites.go).
//
// It owns the tables as_dings, as_ding_deliveries and as_ding_journal. DINGs that are not over, and lately used ones,
// are kept in memory as a copy of the tables, so that confirming asks the database nothing. Invariants: a person gets a
// DING once, whatever units name them; the first confirmation stands; one that comes after the end is kept as late;
// what went out is never forgotten; a card's last edit shows the final state.
package ding

import (
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/lang"
	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/appservice/readlist"
	"github.com/carillon-chat/carillon/appservice/schemas"
	"github.com/carillon-chat/carillon/appservice/sites"
	"github.com/carillon-chat/carillon/bridges/bridge"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

//go:embed schema/*.sql
var schemaFS embed.FS

// State is how a DING stands.
type State string

// The states of a DING. All but Scheduled and Open are ends.
const (
	Scheduled State = "scheduled"
	Open      State = "open"
	Confirmed State = "confirmed" // by every receiver whom it reached
	Expired   State = "expired"
	Recalled  State = "recalled"
	Missed    State = "missed"    // its time passed while the service was down
	Cancelled State = "cancelled" // the sender left before its time
	Refused   State = "refused"   // when its time came, it was not allowed or had no receivers
)

// The states of a delivery, beside Recalled, Expired and Confirmed, which deliveries share with DINGs.
const (
	Queued State = "queued"
	Sent   State = "sent"
	Failed State = "failed"
)

// Kinds of DING.
const (
	Text      = "text"
	Emergency = "emergency" // by managers and administrators, without quota
)

// Receivers are whom a DING is for.
type Receivers struct {
	Persons   []string `json:"persons,omitempty"` // job numbers
	Units     []string `json:"units,omitempty"`   // unit IDs, with all units below
	Everybody bool     `json:"everybody,omitempty"`
	UnreadOf  *Source  `json:"unread_of,omitempty"`
}

// Source is a message that a DING is about.
type Source struct {
	Room  string `json:"room_id"`
	Event string `json:"event_id"`
}

// Request asks for a DING. FireAt and ExpiresAt in milliseconds, 0 for now and for the default.
type Request struct {
	UUID      string    `json:"uuid"` // the same one again gives the same DING
	Kind      string    `json:"kind"`
	Body      string    `json:"body"`
	Receivers Receivers `json:"receivers"`
	FireAt    int64     `json:"fire_at"`
	ExpiresAt int64     `json:"expires_at"`
}

// Skip is somebody whom a DING passes over.
type Skip struct {
	Person string `json:"person_id"`
	Name   string `json:"name"`
	Reason string `json:"reason"` // self, left, not_active, suspended, unknown, unit_removed
}

// Ding is a DING without its deliveries.
type Ding struct {
	ID          string
	UUID        string
	Sender      string // job number
	SenderUser  string
	Kind        string
	Body        string
	Receivers   Receivers
	State       State
	Reason      string
	CreatedAt   int64
	FireAt      int64
	FiredAt     int64
	ExpiresAt   int64
	EndedAt     int64
	Skipped     []Skip
	AlreadyRead int
	Origin      string // the site of its sender, "" for this one; a DING of another site is kept for the people of this one

	held                bool // not sent before its site has said that it still stands
	cardEvent, cardRoom string
	cardRev             int64
	cardShown           string
	cardDone            bool
}

// Delivery is what became of a DING for one receiver.
type Delivery struct {
	Person      string
	User        string
	Units       []string // in which units of the DING the person received it
	State       State
	Reason      string
	Room        string
	Event       string // the message
	Record      string // the im.carillon.ding event
	SentAt      int64
	ConfirmedAt int64
	Via         string
	Late        bool
	Site        string // that makes it, "" for this one
	told        bool   // the site of a DING's sender knows how this stands
	seen        bool   // its message was seen in the room before the outbox has said that it is out
}

// Matrix is the part of *mxclient.Client that is needed here.
type Matrix interface {
	BotID() id.UserID
	SendEvent(ctx context.Context, room id.RoomID, sender id.UserID, typ string, content any, txn string) (id.EventID, error)
	Event(ctx context.Context, as id.UserID, room id.RoomID, event id.EventID) (*mxclient.Event, error)
}

// Rooms knows whose DING room a room is.
type Rooms interface {
	DingPerson(room id.RoomID) (person string, ok bool)
}

// Unread knows who has not read a message.
type Unread interface {
	Unread(ctx context.Context, v readlist.Viewer, room, event string) (*readlist.Missing, error)
}

// Options are what Dings need. Zero fields of the second group take the values in brackets.
type Options struct {
	Tree       func() *org.Tree
	Outbox     *bridge.Outbox
	Matrix     Matrix
	Rooms      Rooms
	Unread     Unread
	Lang       *lang.Book
	ServerName string
	Sites      *sites.Sites           // nil where there is one site
	IsAdmin    func(user string) bool // besides the people whom the company file calls administrators

	PerMinute    int           // DINGs of one sender [10]
	MaxReceivers int           // receivers outside of what the sender manages [100]
	Grace        time.Duration // how late a scheduled DING is still sent [15 min]
	Expires      time.Duration // how long confirmations are waited for [72 h]
	SenderLeft   string        // "cancel" or "send" the scheduled DINGs of those who left ["cancel"]
	ConfirmWords []string      // besides the usual ones
	Reactions    []string      // that confirm [✅ ☑ ✔ 👍 👌 🆗 OK]
	Location     *time.Location
	Now          matrix.Now
}

// Dings are all urgent notices. Safe for concurrent use.
type Dings struct {
	db        *sqldb.DB
	opts      Options
	schemas   *schemas.Set
	words     map[string]bool
	reactions map[string]bool

	mu      sync.Mutex // guards everything below, held without waiting for anything
	live    map[string]*live
	events  map[string]ref    // messages of loaded DINGs
	cards   map[string]string // card event -> DING
	dirty   map[string]bool   // cards to look at
	clock   int64
	wakeup  chan struct{} // capacity one, for the scheduler: a ring not heard yet stands for all that follow
	cardRun chan struct{} // the same for the cards
	tellRun chan struct{} // the same for the reports to other sites
}

// live is a DING in memory. Its fields are guarded by Dings.mu.
type live struct {
	Ding
	to       []Delivery
	index    map[string]int // person -> to
	n        Counts
	touched  int64
	edited   time.Time // last edit of the card
	failures int       // of card edits in a row
}

type ref struct {
	l *live
	i int
}

// Counts are the figures of a DING.
type Counts struct {
	Total       int `json:"total"`
	Queued      int `json:"queued"`
	Sent        int `json:"sent"` // out, and not confirmed in time
	Confirmed   int `json:"confirmed"`
	Failed      int `json:"failed"`
	Expired     int `json:"expired"`
	Recalled    int `json:"recalled"`
	Late        int `json:"late"`     // confirmed after the end
	WentOut     int `json:"went_out"` // reached the receiver's room, whatever came then
	Skipped     int `json:"skipped"`
	AlreadyRead int `json:"already_read,omitempty"`
}

// New opens the DINGs on db and takes up what was under way.
func New(ctx context.Context, db *sqldb.DB, opts Options) (*Dings, error) {
	if opts.Tree == nil || opts.Outbox == nil || opts.Matrix == nil || opts.Rooms == nil || opts.Unread == nil || opts.Lang == nil || opts.ServerName == "" {
		return nil, errors.New("DINGs need everything of the first group of their options")
	}
	if err := db.Migrate(ctx, "ding", schemaFS); err != nil {
		return nil, err
	}
	set, err := schemas.Load()
	if err != nil {
		return nil, err
	}
	setDefaults(&opts)
	d := &Dings{
		db: db, opts: opts, schemas: set, words: confirmWords(opts.ConfirmWords), reactions: confirmReactions(opts.Reactions),
		live: map[string]*live{}, events: map[string]ref{}, cards: map[string]string{}, dirty: map[string]bool{},
		wakeup: make(chan struct{}, 1), cardRun: make(chan struct{}, 1), tellRun: make(chan struct{}, 1),
	}
	if d.many() {
		d.listen()
	}
	opts.Outbox.OnResult(d.onResults)
	if err := d.resume(ctx); err != nil {
		return nil, fmt.Errorf("taking up DINGs: %w", err)
	}
	return d, nil
}

func setDefaults(o *Options) {
	if o.PerMinute <= 0 {
		o.PerMinute = 10
	}
	if o.MaxReceivers <= 0 {
		o.MaxReceivers = 100
	}
	if o.Grace <= 0 {
		o.Grace = 15 * time.Minute
	}
	if o.Expires <= 0 {
		o.Expires = 72 * time.Hour
	}
	if o.SenderLeft == "" {
		o.SenderLeft = "cancel"
	}
	if o.Location == nil {
		o.Location = time.FixedZone("CST", 8*3600)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.IsAdmin == nil {
		o.IsAdmin = func(string) bool { return false }
	}
}

// Run fires scheduled DINGs, ends expired ones and keeps the cards true until ctx ends.
func (d *Dings) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { d.schedule(ctx) })
	wg.Go(func() { d.showCards(ctx) })
	wg.Go(func() { d.tellSites(ctx) })
	wg.Wait()
	return nil
}

func (d *Dings) millis() int64 { return matrix.Millis(d.opts.Now()) }

// userOf is a person's user ID, "" for people without a log-in.
func (d *Dings) userOf(p *org.Person) string {
	if p == nil || p.Localpart == "" {
		return ""
	}
	if d.many() {
		return string(d.opts.Sites.UserOf(p))
	}
	return "@" + p.Localpart + ":" + d.opts.ServerName
}

// personOf is the person behind a user ID of any site, nil if there is none.
func (d *Dings) personOf(user string) *org.Person {
	if d.many() {
		return d.opts.Sites.PersonOf(d.opts.Tree(), id.UserID(user))
	}
	u := matrix.UserID(user)
	if string(u.Server()) != d.opts.ServerName {
		return nil
	}
	return d.opts.Tree().ByLocalpart(u.Localpart())
}

// nameOf is how a person is called in texts.
func (d *Dings) nameOf(person string) string {
	if p := d.opts.Tree().Person(person); p != nil {
		return p.Name
	}
	return person
}

func (s State) over() bool { return s != Scheduled && s != Open }

// keepLoaded is how many DINGs that are over stay in memory.
const keepLoaded = 256

// get returns a DING from memory or the tables, nil if there is none.
func (d *Dings) get(ctx context.Context, dingID string) (*live, error) {
	d.mu.Lock()
	l := d.live[dingID]
	if l != nil {
		d.clock++
		l.touched = d.clock
	}
	d.mu.Unlock()
	if l != nil {
		return l, nil
	}
	err := d.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		l, err = readLive(tx, dingID)
		return err
	})
	if errors.Is(err, sqldb.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading a DING: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if had := d.live[dingID]; had != nil {
		return had, nil
	}
	d.hold(l)
	d.trim()
	return l, nil
}

// hold takes a DING into memory. The caller holds mu.
func (d *Dings) hold(l *live) {
	d.clock++
	l.touched = d.clock
	l.index = make(map[string]int, len(l.to))
	for i := range l.to {
		l.index[l.to[i].Person] = i
		if ev := l.to[i].Event; ev != "" {
			d.events[ev] = ref{l, i}
		}
	}
	l.recount()
	d.live[l.ID] = l
	if l.cardEvent != "" {
		d.cards[l.cardEvent] = l.ID
	}
}

// trim lets go of the DINGs that are over and were not used for longest. The caller holds mu.
func (d *Dings) trim() {
	if len(d.live) <= keepLoaded {
		return
	}
	var over []*live
	for _, l := range d.live {
		if l.State.over() && l.cardDone && !d.dirty[l.ID] {
			over = append(over, l)
		}
	}
	if len(over) <= keepLoaded {
		return
	}
	slices.SortFunc(over, func(a, b *live) int { return cmp.Compare(a.touched, b.touched) })
	for _, l := range over[:len(over)-keepLoaded*3/4] {
		delete(d.live, l.ID)
		delete(d.cards, l.cardEvent)
		for i := range l.to {
			delete(d.events, l.to[i].Event)
		}
	}
}

// recount makes the figures from the deliveries.
func (l *live) recount() {
	l.n = Counts{Total: len(l.to), Skipped: len(l.Skipped), AlreadyRead: l.AlreadyRead}
	for i := range l.to {
		l.n.add(&l.to[i], 1)
	}
}

// add counts a delivery in (by 1) or out (by -1).
func (n *Counts) add(t *Delivery, by int) {
	switch t.State {
	case Queued:
		n.Queued += by
	case Sent:
		n.Sent += by
	case Confirmed:
		n.Confirmed += by
	case Failed:
		n.Failed += by
	case Expired:
		n.Expired += by
	case Recalled:
		n.Recalled += by
	}
	if t.Late {
		n.Late += by
	}
	if t.SentAt != 0 {
		n.WentOut += by
	}
}

func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// touch asks for a look at a DING's card. The caller holds mu.
func (d *Dings) touch(l *live) {
	d.dirty[l.ID] = true
	ring(d.cardRun)
	if l.Origin != "" {
		ring(d.tellRun)
	}
}

// newID makes IDs that sort by time in any collation.
func newID(now int64) string {
	const digits = "0123456789abcdef"
	random := []byte(matrix.RandomString(12))
	for i, c := range random {
		random[i] = digits[c%16]
	}
	return fmt.Sprintf("%011x%s", now, random)
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil { // only plain structs come here
		panic(err)
	}
	return string(b)
}
