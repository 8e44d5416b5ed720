// Package derive turns the organisation's tree into Matrix accounts, spaces and rooms, and keeps them so.
//
// It reconciles and never replays: from a tree it computes what there should be (desire.go), compares that with what
// it has made before, and makes the difference. A second run over the same tree makes no request at all. Every
// operation is written down after it succeeded, and every operation may be repeated, so a run that was cut off is
// simply run again; after such a cut the rooms in doubt are asked for their members, so that no membership doubles.
//
// With several sites, each makes the accounts of its own people, makes and looks after the rooms of its own units (the
// head office also those of the company), and brings its own people into every room and out of it, its bot being a
// creator of each. The home of a room tells the others of it and invites their bots where they have people; it removes
// people of other sites who should no longer be there only when their site does not. What waits for another site is
// looked at again and stops nothing else.
//
// Tables owned: as_users, as_rooms, as_room_members, as_ding_rooms, as_derive_state, as_room_sites, as_room_announced,
// as_invitations, as_sites_told.
//
// Invariants:
//   - people join by themselves, one event a membership: unit rooms let in whom the service brings (see joinRules);
//   - the reason of every leave is kept: one who left by himself is brought back by Verify alone, one whom an
//     administrator removed is left alone, one whom the organisation moved comes back when it moves him back;
//   - invitations are accepted by themselves when a listed bot sends them, and never otherwise;
//   - leavers are locked first and then leave every room; accounts and rooms are never deleted;
//   - first passwords are written to a file for the personnel department, never to the log or the database.
package derive

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/appservice/sites"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

//go:embed schema/*.sql
var schemaFS embed.FS

// Options say how the tree becomes rooms.
type Options struct {
	// Company names the company's space when the tree has several roots; a single root gives its own name.
	Company string
	// BotName is the display name of the service's bot; "" is "Carillon".
	BotName string
	// NoAllStaff leaves out the room of everybody; AllStaffName is its name, "" for one made of the company's name.
	NoAllStaff   bool
	AllStaffName string
	// GroupSuffix follows the unit's name in the name of its room.
	GroupSuffix string
	// Language is "zh" or "en": of the names and reasons the service makes up.
	Language string
	// Concurrency is the number of requests at a time; 0 is 16.
	Concurrency int
	// MaxSpaceDepth is how deep spaces nest, the company's counted; 0 is 6.
	MaxSpaceDepth int
	// UnitHistory is the history visibility of unit rooms: "joined" (default: newcomers do not see the past) or "shared".
	UnitHistory string
	// Admins are users with power in the all-staff room, besides the people whom the tree calls administrators.
	Admins []id.UserID
	// PasswordsDir is the folder of the first passwords' files; "" makes accounts without a password.
	PasswordsDir string
	// PlainPasswords registers with the password itself, for homeservers that do not take Carillon's hash.
	PlainPasswords bool
	// Sites are the company's sites; nil where there is one. Tree is the current tree, and Wake asks for a run: both are
	// needed where there are several.
	Sites *sites.Sites
	Tree  func() *org.Tree
	Wake  func()
	// Grace is how long the home of a room leaves another site's people and bots in it who no longer belong there: it is
	// for their own site to make them leave, unless that is cut off. 0 is two minutes.
	Grace time.Duration
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// roomVersion is that of all rooms made here: the bot as creator outranks everybody and cannot be demoted.
const roomVersion = "12"

func (o *Options) setDefaults() {
	if o.Company == "" {
		o.Company = "Carillon"
	}
	if o.BotName == "" {
		o.BotName = "Carillon"
	}
	if o.Concurrency <= 0 {
		o.Concurrency = 16
	}
	if o.MaxSpaceDepth <= 0 {
		o.MaxSpaceDepth = 6
	}
	if o.UnitHistory == "" {
		o.UnitHistory = "joined"
	}
	if o.Grace <= 0 {
		o.Grace = 2 * time.Minute
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// Reconciler makes accounts, rooms and memberships follow the tree. It is safe for concurrent use; one run at a time.
type Reconciler struct {
	db   *sqldb.DB
	mx   *mxclient.Client
	opts Options

	running sync.Mutex // held by the one run under way

	// inviteFirst is set when the homeserver does not let the service bring people into its gated rooms.
	inviteFirst atomic.Bool

	mu     sync.RWMutex // guards the maps, which mirror the tables of their names
	users  map[string]userRow
	rooms  map[string]roomRow
	byRoom map[id.RoomID]string // room keys
	away   map[memberKey]string // reasons of leaves that were not the service's
	dings  map[string]dingRow   // by person
	dingOf map[id.RoomID]string // persons
	people map[id.UserID]string // persons by account
	doubt  map[string]bool      // persons whose DING room may exist without a record

	last     *wish                   // of the last run
	began    time.Time               // when other sites were first waited for
	entered  map[string]time.Time    // rooms of other sites that the bot has joined, and when
	unwanted map[memberKey]time.Time // others' people and bots who should not be in our rooms, since when

	dingLocks gate.Keyed[string]
	adopting  sync.Mutex // held while rooms without a record are looked for
}

// New reads what has been made before. It makes no request.
func New(ctx context.Context, db *sqldb.DB, mx *mxclient.Client, opts Options) (*Reconciler, error) {
	opts.setDefaults()
	if opts.UnitHistory != "joined" && opts.UnitHistory != "shared" {
		return nil, fmt.Errorf("the history of unit rooms is %q, it must be joined or shared", opts.UnitHistory)
	}
	if err := db.Migrate(ctx, "derive", schemaFS); err != nil {
		return nil, fmt.Errorf("migrating derived rooms: %w", err)
	}
	r := &Reconciler{
		db: db, mx: mx, opts: opts,
		users: map[string]userRow{}, rooms: map[string]roomRow{}, byRoom: map[id.RoomID]string{},
		away: map[memberKey]string{}, dings: map[string]dingRow{}, dingOf: map[id.RoomID]string{},
		people: map[id.UserID]string{}, doubt: map[string]bool{}, unwanted: map[memberKey]time.Time{}, entered: map[string]time.Time{},
	}
	if r.many() {
		if opts.Tree == nil || opts.Wake == nil {
			return nil, errors.New("rooms over several sites need the tree and somebody who runs them")
		}
		r.listen()
	}
	if err := r.load(ctx); err != nil {
		return nil, fmt.Errorf("reading derived rooms: %w", err)
	}
	return r, nil
}

// Progress tells how far a phase of a run has come.
type Progress struct {
	Phase string `json:"phase"` // users, rooms, members
	Done  int    `json:"done"`
	Total int    `json:"total"`
}

// Failure is one thing that could not be done.
type Failure struct {
	What  string `json:"what"`
	Room  string `json:"room,omitempty"` // room key
	Who   string `json:"person,omitempty"`
	Error string `json:"error"`
}

// Report says what a run has done.
type Report struct {
	// Operations counts requests that changed something at the homeserver.
	Operations int            `json:"operations"`
	ByKind     map[string]int `json:"by_kind,omitempty"`
	// Failed counts what could not be done; Failures are the first hundred of it.
	Failed   int       `json:"failed"`
	Failures []Failure `json:"failures,omitempty"`
	// PasswordFile holds the first passwords of new people; "" when there are none.
	PasswordFile string `json:"password_file,omitempty"`
	// Waiting counts what waits for other sites: rooms that they have not made, invitations that they have not answered,
	// sites that cannot be reached. It is not a failure; Again is when to look again, zero for not before something
	// changes.
	Waiting int           `json:"waiting,omitempty"`
	Again   time.Duration `json:"-"`
	// Strangers counts joined members of the company's rooms whom the tree does not want there (Verify only).
	Strangers int           `json:"strangers,omitempty"`
	Took      time.Duration `json:"-"`
}

// Add counts what an earlier run over the same tree has done.
func (r *Report) Add(earlier *Report) {
	if r == nil || earlier == nil {
		return
	}
	r.Operations += earlier.Operations
	r.Took += earlier.Took
	r.Strangers += earlier.Strangers
	if r.PasswordFile == "" {
		r.PasswordFile = earlier.PasswordFile
	}
	for k, n := range earlier.ByKind {
		r.ByKind[k] += n
	}
}

// ErrIncomplete is returned beside a report with failures: the rest was done, running again tries them again.
var ErrIncomplete = errors.New("some operations failed")

// Reconcile makes the homeserver follow the tree. It asks the homeserver nothing it knows from before.
func (r *Reconciler) Reconcile(ctx context.Context, tree *org.Tree, progress func(Progress)) (*Report, error) {
	r.running.Lock()
	defer r.running.Unlock()
	return r.reconcile(ctx, tree, progress, nil)
}

// Verify compares what was made with what the homeserver has, mends the difference, and brings back people who
// have left a room of theirs by themselves.
func (r *Reconciler) Verify(ctx context.Context, tree *org.Tree, progress func(Progress)) (*Report, error) {
	r.running.Lock()
	defer r.running.Unlock()
	seen, err := r.look(ctx, tree)
	if err != nil {
		return nil, fmt.Errorf("comparing with the homeserver: %w", err)
	}
	return r.reconcile(ctx, tree, progress, seen)
}

// Pending reports whether the last run did not finish or ran over another version of the tree.
func (r *Reconciler) Pending(ctx context.Context, tree *org.Tree) (bool, error) {
	s, err := r.readState(ctx)
	if err != nil {
		return false, err
	}
	return !s.clean || s.version != tree.Version, nil
}

// UnitRoom is the room of a unit, if it has one.
func (r *Reconciler) UnitRoom(unit string) (id.RoomID, bool) { return r.Room("unit:" + unit) }

// Room is the room of a key: company, all-staff, site:NAME, space:UNIT or unit:UNIT.
func (r *Reconciler) Room(key string) (id.RoomID, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	row, ok := r.rooms[key]
	return row.room, ok && !row.closed
}

// HasAlias reports whether the alias belongs to a room made here.
func (r *Reconciler) HasAlias(alias string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, row := range r.rooms {
		if row.alias == alias {
			return true
		}
	}
	return false
}

// HasUser reports whether the account was made here (or is the bot's).
func (r *Reconciler) HasUser(user id.UserID) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	_, ok := r.people[user]
	return ok || user == r.mx.BotID()
}
