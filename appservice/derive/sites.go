package derive

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	log "github.com/sirupsen/logrus"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/appservice/sites"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// The kinds of messages between the sites.
const (
	kindRooms = "derive.rooms" // rooms that the sender looks after
	kindAsk   = "derive.ask"   // please tell all of yours
)

// announced is a room as its home tells the other sites of it.
type announced struct {
	Key   string    `json:"key"`
	Room  id.RoomID `json:"room_id"`
	Alias string    `json:"alias"`
	// Creators are the bots that made the room, separated by spaces.
	Creators string `json:"creators"`
	Closed   bool   `json:"closed,omitempty"`
	site     string // who has told it
}

// maxAnnounced bounds the rooms of one message.
const maxAnnounced = 500

const (
	qToldRooms = `UPDATE as_rooms SET told = TRUE WHERE room_key = $1`
	qToldSites = `SELECT site, told_at, heard_at FROM as_sites_told`
	qToldSite  = `INSERT INTO as_sites_told (site, told_at, heard_at) VALUES ($1, $2, 0) ON CONFLICT (site) DO UPDATE SET told_at = excluded.told_at`
	qHeardSite = `INSERT INTO as_sites_told (site, told_at, heard_at) VALUES ($1, 0, $2) ON CONFLICT (site) DO UPDATE SET heard_at = excluded.heard_at`
	qAnnounced = `SELECT room_key, site, room_id, alias, creators, closed FROM as_room_announced ORDER BY room_key, site`
	qAnnounce  = `INSERT INTO as_room_announced (room_key, site, room_id, alias, creators, closed) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (room_key, site) DO UPDATE SET room_id = excluded.room_id, alias = excluded.alias, creators = excluded.creators, closed = excluded.closed`
	qForgetRoom  = `DELETE FROM as_rooms WHERE room_key = $1`
	qRekeyPeople = `UPDATE as_room_members SET room_key = $2 WHERE room_key = $1`
	qNoPeople    = `DELETE FROM as_room_members WHERE room_key = $1`
)

// many reports whether the company has several sites.
func (r *Reconciler) many() bool { return r.opts.Sites != nil && r.opts.Sites.Many() }

// isBot reports whether a user is the bot of one of the sites.
func (r *Reconciler) isBot(user id.UserID) bool {
	return user == r.mx.BotID() || r.many() && r.opts.Sites.IsBot(user)
}

// account is the person's user ID.
func (r *Reconciler) account(p *org.Person) id.UserID {
	if r.many() {
		return r.opts.Sites.UserOf(p)
	}
	return r.mx.UserID(p.Localpart)
}

// siteOf is the name of the site that holds the person's account, "" for this one.
func (r *Reconciler) siteOf(p *org.Person) string {
	if !r.many() {
		return ""
	}
	return r.nameOf(r.opts.Sites.SiteOf(p))
}

// nameOf is how a site is recorded: "" is this one.
func (r *Reconciler) nameOf(s sites.Site) string {
	if s.Name == r.opts.Sites.Own().Name {
		return ""
	}
	return s.Name
}

// place finds out who looks after which room.
func (r *Reconciler) place() *placing {
	if !r.many() {
		return nil
	}
	return &placing{siteOf: r.siteOf, head: r.nameOf(r.opts.Sites.Head()), named: func(site string) string { return r.nameOf(r.opts.Sites.Named(site)) }}
}

// personOf is the person behind an account of any site, "" for nobody.
func (r *Reconciler) personOf(user id.UserID) string {
	if user.Homeserver() == r.mx.ServerName() {
		return r.people[user]
	}
	if !r.many() || r.opts.Tree == nil {
		return ""
	}
	if p := r.opts.Sites.PersonOf(r.opts.Tree(), user); p != nil {
		return p.ID
	}
	return ""
}

// userOf is the account of a recorded member. The lock is held.
func (r *Reconciler) userOf(person string) (id.UserID, bool) {
	if r.many() && r.opts.Tree != nil {
		if p := r.opts.Tree().Person(person); p != nil && r.siteOf(p) != "" {
			return r.account(p), true
		}
	}
	u, ok := r.users[person]
	return r.mx.UserID(u.localpart), ok
}

// mine reports whether a person's account is at this site. The lock is held.
func (x *run) mine(person string) bool {
	if p := x.tree.Person(person); p != nil {
		return x.r.siteOf(p) == ""
	}
	_, ok := x.r.users[person]
	return ok
}

// otherBots are the bots of the other sites, sorted.
func (r *Reconciler) otherBots() []string {
	if !r.many() {
		return nil
	}
	var out []string
	for _, s := range r.opts.Sites.Others() {
		out = append(out, string(s.Bot))
	}
	slices.Sort(out)
	return out
}

// rules is the mark of a room's join rules: the other sites' bots that they name, and the company's space where it is
// another site's.
func (r *Reconciler) rules(w *want) string {
	mark := strings.Join(r.otherBots(), " ")
	if !r.many() || w.gated {
		return mark
	}
	if row, ok := r.row(keyCompany); ok && row.home != "" {
		mark += " " + string(row.room)
	}
	return mark
}

// creatorsOf are the bots that made a room; those of a company of one site were made by its own.
func (r *Reconciler) creatorsOf(row *roomRow) string {
	return cmp.Or(row.creators, string(r.mx.BotID()))
}

// power is the content of a room's power levels: those of the tree, and 100 for the bots of sites that came after the
// room was made.
func (r *Reconciler) power(w *want, row *roomRow) string {
	var late []string
	if r.many() {
		creators := strings.Fields(r.creatorsOf(row))
		for _, s := range r.opts.Sites.All() {
			if !slices.Contains(creators, string(s.Bot)) {
				late = append(late, string(s.Bot))
			}
		}
	}
	if len(late) == 0 {
		return w.power
	}
	var p powerLevels
	if err := json.Unmarshal([]byte(w.power), &p); err != nil { // our own text
		panic(err)
	}
	if p.Users == nil {
		p.Users = map[id.UserID]int{}
	}
	for _, bot := range late {
		p.Users[id.UserID(bot)] = powerBot
	}
	return p.text()
}

// listen registers what handles other sites' messages.
func (r *Reconciler) listen() {
	r.opts.Sites.Handle(kindRooms, r.takeRooms)
	r.opts.Sites.Handle(kindAsk, func(_ context.Context, tx *sqldb.Tx, from sites.Site, _ json.RawMessage) error {
		return r.tell(tx, []sites.Site{from}, r.ownRooms(false), true)
	})
}

// roomsMessage tells of rooms; All says, in the last of several, that these are all of its sender's.
type roomsMessage struct {
	Rooms []announced `json:"rooms"`
	All   bool        `json:"all"`
}

// readRooms reads a message of another site.
func readRooms(body []byte, head bool) (*roomsMessage, error) {
	msg := new(roomsMessage)
	if err := json.Unmarshal(body, msg); err != nil {
		return nil, fmt.Errorf("reading rooms: %w", err)
	}
	for _, a := range msg.Rooms {
		if !head && ofHead(a.Key) {
			return nil, errors.New("a room that the head office looks after")
		}
		if a.Key == "" || len(a.Key) > 255 || len(a.Room) > 255 || len(a.Alias) > 255 || len(a.Creators) > 1<<15 ||
			!strings.HasPrefix(string(a.Room), "!") || strings.ContainsRune(a.Key+string(a.Room)+a.Alias+a.Creators, 0) {
			return nil, errors.New("no room that there can be")
		}
	}
	return msg, nil
}

// takeRooms keeps what another site says of its rooms; the next run makes something of it.
func (r *Reconciler) takeRooms(ctx context.Context, tx *sqldb.Tx, from sites.Site, body json.RawMessage) error {
	msg, err := readRooms(body, from.Head)
	if err != nil {
		return sites.Refuse(err)
	}
	for _, a := range msg.Rooms {
		if _, err := tx.Exec(qAnnounce, a.Key, from.Name, string(a.Room), a.Alias, a.Creators, a.Closed); err != nil {
			return err
		}
	}
	if msg.All {
		if _, err := tx.Exec(qHeardSite, from.Name, r.now()); err != nil {
			return err
		}
	}
	sites.After(ctx, r.wake)
	return nil
}

// ofHead reports whether a room is one of those that the head office looks after, whatever the units.
func ofHead(key string) bool {
	return !strings.HasPrefix(key, "unit:") && !strings.HasPrefix(key, "space:")
}

func (r *Reconciler) wake() {
	if r.opts.Wake != nil {
		r.opts.Wake()
	}
}

// ownRooms are the rooms that this site looks after; with fresh, only those that the others do not know as they are.
func (r *Reconciler) ownRooms(fresh bool) []announced {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []announced
	for _, row := range r.rooms {
		if row.home == "" && (!fresh || !row.told) && !strings.HasPrefix(row.key, movedKey) {
			out = append(out, announced{Key: row.key, Room: row.room, Alias: row.alias, Creators: r.creatorsOf(&row), Closed: row.closed})
		}
	}
	slices.SortFunc(out, func(a, b announced) int { return cmp.Compare(a.Key, b.Key) })
	return out
}

// tell sends rooms to other sites. all says, with the last of them, that these are all rooms of this one.
func (r *Reconciler) tell(tx *sqldb.Tx, to []sites.Site, rooms []announced, all bool) error {
	for len(rooms) > 0 || all {
		n := min(len(rooms), maxAnnounced)
		last := all && n == len(rooms)
		if err := r.opts.Sites.Send(tx, to, kindRooms, map[string]any{"rooms": rooms[:n], "all": last}); err != nil {
			return err
		}
		rooms = rooms[n:]
		if last {
			return nil
		}
	}
	return nil
}

// firstWords is for how long a site that begins makes no rooms of units while others have not told which there are: a unit
// may have come from one of them with its room. A site that is away is not waited for longer.
const firstWords = 20 * time.Second

// unheard reports whether sites that have not told of their rooms yet are waited for.
func (x *run) unheard(ctx context.Context) (bool, error) {
	r := x.r
	if !r.many() {
		return false, nil
	}
	_, heard, err := r.readTold(ctx)
	if err != nil {
		return false, err
	}
	for _, s := range r.opts.Sites.Others() {
		if heard[s.Name] {
			continue
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.began.IsZero() {
			r.began = r.opts.Now()
		}
		return r.opts.Now().Sub(r.began) < firstWords, nil
	}
	return false, nil
}

func (r *Reconciler) readTold(ctx context.Context) (told, heard map[string]bool, err error) {
	told, heard = map[string]bool{}, map[string]bool{}
	err = r.db.Read(ctx, func(tx *sqldb.Tx) error {
		_, err := sqldb.Select(tx, func(rows *sqldb.Rows) (struct{}, error) {
			var site string
			var toldAt, heardAt int64
			err := rows.Scan(&site, &toldAt, &heardAt)
			told[site], heard[site] = toldAt != 0, heardAt != 0
			return struct{}{}, err
		}, qToldSites)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("reading which sites know the rooms: %w", err)
	}
	return told, heard, nil
}

// tellRooms makes the other sites know the rooms of this one: new sites all of them, the others what has changed.
func (r *Reconciler) tellRooms(ctx context.Context) error {
	if !r.many() {
		return nil
	}
	told, _, err := r.readTold(ctx)
	if err != nil {
		return err
	}
	var known, strange []sites.Site
	for _, s := range r.opts.Sites.Others() {
		if told[s.Name] {
			known = append(known, s)
		} else {
			strange = append(strange, s)
		}
	}
	fresh := r.ownRooms(true)
	if len(fresh) == 0 && len(strange) == 0 {
		return nil
	}
	err = r.db.Write(ctx, func(tx *sqldb.Tx) error {
		for _, s := range strange {
			if err := r.tell(tx, []sites.Site{s}, r.ownRooms(false), true); err != nil {
				return err
			}
			if err := r.opts.Sites.Send(tx, []sites.Site{s}, kindAsk, struct{}{}); err != nil {
				return err
			}
			if _, err := tx.Exec(qToldSite, s.Name, r.now()); err != nil {
				return err
			}
		}
		if err := r.tell(tx, known, fresh, false); err != nil {
			return err
		}
		for _, a := range fresh {
			if _, err := tx.Exec(qToldRooms, a.Key); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("telling other sites of rooms: %w", err)
	}
	r.opts.Sites.Wake()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range fresh {
		if row, ok := r.rooms[a.Key]; ok && row.room == a.Room && row.closed == a.Closed {
			row.told = true
			r.rooms[a.Key] = row
		}
	}
	return nil
}

// movedKey begins the keys of rooms that another site has made anew while it could not be reached.
const movedKey = "moved:"

// adopt takes in what the other sites have said of the rooms that they look after.
func (x *run) adopt(ctx context.Context) error {
	if !x.r.many() {
		return nil
	}
	var list []announced
	err := x.r.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		list, err = sqldb.Select(tx, func(rows *sqldb.Rows) (a announced, err error) {
			err = rows.Scan(&a.Key, &a.site, &a.Room, &a.Alias, &a.Creators, &a.Closed)
			return a, err
		}, qAnnounced)
		return err
	})
	if err != nil {
		return fmt.Errorf("reading other sites' rooms: %w", err)
	}
	for _, a := range list {
		if err := x.adoptRoom(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

func (x *run) adoptRoom(ctx context.Context, a announced) error {
	r := x.r
	row, known := r.row(a.Key)
	w := x.wish.byKey[a.Key]
	switch {
	case w != nil && w.home == "" && !known: // a unit has come here with its room, which is taken over
	case w != nil && w.home != a.site, w == nil && (!known || row.home != a.site):
		return nil // it is, or will be, another's
	case known && row.home == a.site && row.room == a.Room && row.alias == a.Alias && row.closed == a.Closed:
		return nil
	}
	next := roomRow{key: a.Key, room: a.Room, alias: a.Alias, closed: a.Closed, home: a.site, creators: a.Creators}
	r.mu.RLock()
	other, taken := r.byRoom[a.Room]
	r.mu.RUnlock()
	switch {
	case taken && other != a.Key:
		log.WithFields(log.Fields{"site": a.site, "room_id": a.Room, "key": a.Key}).Warn("a site calls a room by the key of another")
		return nil
	case known && row.room == a.Room: // it changes hands, or its state
		next.inside, next.parent, next.ord = row.inside, row.parent, row.ord
		if row.home == "" {
			next.parent, next.ord = "", "" // what was told the room itself is its new home's now
		}
	case known:
		if err := x.replaced(ctx, row); err != nil {
			return err
		}
	}
	return r.saveRoom(ctx, next)
}

// replaced makes way for a room that another site has made in the place of row.
func (x *run) replaced(ctx context.Context, row roomRow) error {
	r := x.r
	key := movedKey + row.key + ":" + string(row.room)
	err := r.db.Write(ctx, func(tx *sqldb.Tx) error {
		if row.home != "" { // a foreign one: its home looks after who is in it
			_, err := tx.Exec(qNoPeople, row.key)
			return err
		}
		_, err := tx.Exec(qRekeyPeople, row.key, key)
		return err
	})
	if err == nil {
		err = r.exec(ctx, "giving up a room", qForgetRoom, row.key)
	}
	if err != nil {
		return fmt.Errorf("giving up a room: %w", err)
	}
	r.mu.Lock()
	delete(r.rooms, row.key)
	delete(r.byRoom, row.room)
	r.mu.Unlock()
	if row.home == "" {
		old := row
		old.key, old.alias, old.told = key, "", true
		if err := r.saveRoom(ctx, old); err != nil {
			return err
		}
		x.members[key] = x.members[row.key]
	}
	delete(x.members, row.key)
	return nil
}

// later says that something waits for another site, and when to look again.
func (x *run) later(wait time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.report.Waiting++
	if x.report.Again == 0 || wait < x.report.Again {
		x.report.Again = wait
	}
}
