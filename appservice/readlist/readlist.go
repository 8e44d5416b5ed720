// Package readlist knows who has read a message and who has not.
//
// A receipt is a mark "up to here", so reading is a question of order. Per room the package keeps the order in which
// events arrived, the intervals in which people were members, and how far each person's marks have come, by thread.
// Who has read message M is then one pass over the members: its audience are those joined when it was sent, without the
// sender and bots; it is read by those with a mark at or after it that covers its thread.
//
// It owns the tables as_read_*. It is fed with the transactions of the application service, in order, at least once.
// Invariants: no row per message and reader; marks only move forward; an audience never changes after the message;
// reactions and edits are no messages; the list of a redacted message is frozen. Rooms are kept in memory within a
// budget as a copy of the tables, loaded when needed.
//
// Spec: client-server-api#receipts, client-server-api#threaded-read-receipts
package readlist

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/lang"
	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/bridges/bridge"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

//go:embed schema/*.sql
var schemaFS embed.FS

// Person is what a list shows of a user.
type Person struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Unit string `json:"unit,omitempty"`
	Gone bool   `json:"-"` // has left the company
	// Site is the site that has the person's account, "" where there is one only.
	Site string `json:"site,omitempty"`
	// Elsewhere tells that this is another site, whose service speaks to the person.
	Elsewhere bool `json:"-"`
}

// Roster finds the person behind a user ID.
type Roster interface {
	PersonOf(user string) (Person, bool)
}

// Homeserver is what is asked about rooms that existed before the service saw them; *mxclient.Client answers.
type Homeserver interface {
	BotID() id.UserID
	JoinedMembers(ctx context.Context, as id.UserID, room id.RoomID) (map[id.UserID]mxclient.Member, error)
	State(ctx context.Context, as id.UserID, room id.RoomID, typ, key string, out any) error
	StateAll(ctx context.Context, as id.UserID, room id.RoomID) ([]*mxclient.Event, error)
}

// Lag says how far this site may be behind what people of another site have done.
type Lag struct {
	// Behind is how old what is known of the site may be, in milliseconds; 0 when it answers.
	Behind int64 `json:"behind_ms"`
	// HeardAt is when it was last heard of, 0 for never.
	HeardAt int64 `json:"heard_at,omitempty"`
}

// Options are what Lists need. Roster and Homeserver must be given, and Outbox and Lang for the bot to answer people.
type Options struct {
	Roster     Roster
	Homeserver Homeserver
	Outbox     *bridge.Outbox
	Lang       *lang.Book
	Bots       []string               // users who never count; the service's bot is one without being named
	Auditors   []string               // users who may see every list
	IsAdmin    func(user string) bool // for questions asked in rooms; nil: nobody
	// CountPrivate counts private receipts too: a policy of the company, to be made known to its people.
	CountPrivate bool
	Retain       time.Duration  // how long times of reading are kept; 0 is 90 days
	Location     *time.Location // of times told to people; nil is UTC+8
	// Lag tells of another site, by its name; nil where there is one site.
	Lag     func(site string) (Lag, bool)
	BaseURL string // where the API is reached, for the bot's hint at the whole list
	Budget  int    // bytes of rooms kept in memory, about; 0 is 64 MiB
	Now     matrix.Now
}

// Lists are the read lists of all rooms. Safe for concurrent use; OnEvents and OnReceipts run one at a time.
type Lists struct {
	db   *sqldb.DB
	opts Options
	bots map[string]bool

	feed sync.Mutex // held while events or receipts are taken in

	mu     sync.Mutex // guards the fields below and is held while a room is loaded
	rooms  map[string]*room
	weight int
	clock  int64
}

// New opens the lists on db.
func New(ctx context.Context, db *sqldb.DB, opts Options) (*Lists, error) {
	if opts.Roster == nil || opts.Homeserver == nil {
		return nil, errors.New("read lists need a roster and a homeserver")
	}
	if err := db.Migrate(ctx, "readlist", schemaFS); err != nil {
		return nil, err
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Retain <= 0 {
		opts.Retain = 90 * 24 * time.Hour
	}
	if opts.Location == nil {
		opts.Location = time.FixedZone("CST", 8*3600)
	}
	if opts.Budget <= 0 {
		opts.Budget = 64 << 20
	}
	l := &Lists{db: db, opts: opts, bots: map[string]bool{string(opts.Homeserver.BotID()): true}, rooms: map[string]*room{}}
	for _, b := range opts.Bots {
		l.bots[b] = true
	}
	return l, nil
}

// Run drops what is older than it needs to be, now and then daily, until ctx ends.
func (l *Lists) Run(ctx context.Context) error {
	for {
		if err := l.Compact(ctx); err != nil && ctx.Err() == nil {
			log.WithError(err).Error("Dropping old read times failed")
		}
		t := time.NewTimer(24 * time.Hour)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// parkedFor is how long a receipt waits for its event.
const parkedFor = 7 * 24 * time.Hour

// Compact drops times of reading beyond Options.Retain and receipts whose events never came.
func (l *Lists) Compact(ctx context.Context) error {
	now := l.opts.Now()
	return l.db.Write(ctx, func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(qDropMoves, matrix.Millis(now.Add(-l.opts.Retain))); err != nil {
			return err
		}
		_, err := tx.Exec(qDropParked, matrix.Millis(now.Add(-parkedFor)))
		return err
	})
}

// room returns a room from memory or the tables, or nil if the service has never seen it.
func (l *Lists) room(ctx context.Context, roomID string) (*room, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock++
	if r := l.rooms[roomID]; r != nil {
		r.touched = l.clock
		return r, nil
	}
	r, err := l.load(ctx, roomID)
	if err != nil || r == nil {
		return nil, err
	}
	r.touched = l.clock
	l.rooms[roomID] = r
	l.weight += r.size()
	r.counted = r.size()
	return r, nil
}

// drop forgets the memory of rooms whose changes could not be stored.
func (l *Lists) drop(rooms map[*room]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for r := range rooms {
		if l.rooms[r.id] == r {
			delete(l.rooms, r.id)
			l.weight -= r.counted
		}
	}
}

// reweigh counts changed rooms again and, over the budget, forgets those not used for longest. The caller holds feed,
// so that no room is forgotten between its change in memory and in the tables.
func (l *Lists) reweigh(changed map[*room]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for r := range changed {
		if l.rooms[r.id] == r {
			l.weight += r.size() - r.counted
			r.counted = r.size()
		}
	}
	if l.weight <= l.opts.Budget {
		return
	}
	all := make([]*room, 0, len(l.rooms))
	for _, r := range l.rooms {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *room) int { return int(a.touched - b.touched) })
	for _, r := range all {
		if l.weight <= l.opts.Budget*3/4 {
			break
		}
		delete(l.rooms, r.id)
		l.weight -= r.counted
	}
}

// firstSight makes a room known. Unless its history begins with first, its members are asked of the homeserver once.
func (l *Lists) firstSight(ctx context.Context, roomID string, first *mxclient.Event, asker string) (*room, error) {
	var members []string
	if first == nil || first.Type != "m.room.create" {
		var err error
		if members, err = l.membersNow(ctx, roomID, asker); err != nil {
			return nil, err
		}
	}
	err := l.db.Write(ctx, func(tx *sqldb.Tx) error {
		var nid int64
		if err := tx.QueryRow(qInsertRoom, roomID).Scan(&nid); err != nil {
			return err
		}
		for i, user := range members {
			if _, err := tx.Exec(qPutMember, nid, int64(i), user, int64(0), int64(0)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("storing a new room: %w", err)
	}
	return l.room(ctx, roomID)
}

// membersNow asks for the joined members, as the bot or, where it is not in the room, as the user that acts there.
func (l *Lists) membersNow(ctx context.Context, roomID, asker string) ([]string, error) {
	var err error
	for _, as := range []id.UserID{"", id.UserID(asker)} {
		var joined map[id.UserID]mxclient.Member
		if joined, err = l.opts.Homeserver.JoinedMembers(ctx, as, id.RoomID(roomID)); err == nil {
			members := make([]string, 0, len(joined))
			for user := range joined {
				members = append(members, string(user))
			}
			slices.Sort(members)
			return members, nil
		}
		if !mxclient.IsPermanent(err) {
			return nil, fmt.Errorf("asking for the members of a room: %w", err)
		}
	}
	log.WithField("room_id", roomID).WithError(err).Info("The members of a room are unknown until they move")
	return nil, nil
}
