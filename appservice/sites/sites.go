// Package sites makes several Carillons one company: each site has a homeserver and an enterprise service of its own,
// one of them is the head office, and the services speak to each other in a room of their bots.
//
// Messages between the services are rows of an outbox, written in the transaction of whoever sends, numbered for each
// destination, and handled exactly once in the transaction that records them as handled. They travel as events
// im.carillon.site.message, so that the link between two homeservers is the only one that is needed. On top of them
// the organisation is replicated: the head office alone writes it, every site holds all of it and answers from it when
// the link is cut.
//
// Tables owned: as_site_self, as_site_peers, as_site_messages, as_site_out, as_site_in, as_site_trees,
// as_site_delegated, as_site_proposals.
//
// Invariants:
//   - a message counts when its event was sent by the listed bot of a listed site, in the sites' room, and bears the
//     signature of the key known for that site; anything else is refused and logged without its content;
//   - of two trees the one of the higher epoch is later, then the one of the higher version; no clock decides;
//   - a site never goes back to an earlier tree, and never takes a change that does not begin at the tree it has;
//   - with one site there is no room, no message and no query.
package sites

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

//go:embed schema/*.sql
var schemaFS embed.FS

// Site is one of the company's places that has a homeserver.
type Site struct {
	// Name is that of the units' column "site"; "" where there is one site only.
	Name       string
	ServerName string
	Bot        id.UserID
	Head       bool
	// Units are the roots of what the site may import by itself. Of the own site and at the head office alone.
	Units []string
}

// NewSite is a site as it is configured; without a bot it has the usual one of its server.
func NewSite(name, server, bot string, head bool, units []string) Site {
	return Site{Name: name, ServerName: server, Bot: id.UserID(bot), Head: head, Units: units}
}

// Options say which sites there are. The zero value is the company of one site.
type Options struct {
	// Own is the name of this site.
	Own string
	// List has all sites; one of them is the head office.
	List []Site
	// Changed is called after a tree from elsewhere has become the current one.
	Changed func()
	// IsAdmin reports whether a user may see how the sites stand.
	IsAdmin func(user string) bool
	// Beat is how often a site is heard of when it has nothing to say; 0 is 20 seconds.
	Beat time.Duration
	// Retry is the wait before what was not acknowledged is sent again, doubled each time; 0 is 10 seconds.
	Retry time.Duration
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// StoreOptions are what the store of the organisation has to know of the sites.
func (o *Options) StoreOptions() []org.Option {
	if len(o.List) < 2 {
		return nil
	}
	var head string
	names := make([]string, len(o.List))
	for i, site := range o.List {
		names[i] = site.Name
		if site.Head {
			head = site.Name
		}
	}
	return []org.Option{org.WithSites(o.Own, head, names...)}
}

// Handler handles one message in the transaction that records it as handled. An error leaves the message waiting, and
// those behind it from the same site; one made by Refuse gives it up. A handler may not wait for a later organisation:
// that comes from the head office behind its other messages.
type Handler func(ctx context.Context, tx *sqldb.Tx, from Site, body json.RawMessage) error

// Sites are the company's sites as this one sees them. It is safe for concurrent use.
type Sites struct {
	db    *sqldb.DB
	mx    *mxclient.Client
	store *org.Store
	opts  Options

	own      Site
	head     Site
	all      []Site
	byName   map[string]Site
	byServer map[string]Site
	handlers map[string]Handler // written before Run alone

	began     time.Time
	wake      chan struct{} // capacity one: something was sent, or has come
	lookAgain atomic.Bool   // who is in the sites' room may have changed
	moved     atomic.Bool   // the sites' room may be another one

	mu       sync.Mutex
	room     id.RoomID
	public   string // key of this site's service
	lags     map[string]lag
	typed    map[id.UserID]time.Time // when a bot was last seen typing
	shown    map[id.UserID]bool      // bots that have shown a key since it was looked for
	marks    map[string]org.Mark     // the tree that each site has
	keys     map[string][2]string    // the key of each site that counts, and another one
	inviting map[string]bool         // sites whose bots are being invited
	granted  map[string][]string     // delegated units by site, as the head office says
	wholeID  string                  // the message that carries all of wholeOf
	wholeOf  org.Mark
}

// lag is a Lag and since when something waits.
type lag struct {
	Lag
	oldest time.Time
}

// New reads what was sent and handled before. It makes no request.
func New(ctx context.Context, db *sqldb.DB, mx *mxclient.Client, store *org.Store, opts Options) (*Sites, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	s := &Sites{
		db: db, mx: mx, store: store, opts: opts, wake: make(chan struct{}, 1), handlers: map[string]Handler{},
		byName: map[string]Site{}, byServer: map[string]Site{}, lags: map[string]lag{}, typed: map[id.UserID]time.Time{}, shown: map[id.UserID]bool{},
		began: time.Now(), marks: map[string]org.Mark{}, keys: map[string][2]string{}, granted: map[string][]string{}, inviting: map[string]bool{},
	}
	if err := s.name(); err != nil {
		return nil, err
	}
	if err := db.Migrate(ctx, "sites", schemaFS); err != nil {
		return nil, fmt.Errorf("migrating the sites: %w", err)
	}
	s.Handle(kindWant, s.answerWant)
	s.Handle(kindDecide, s.takeDecision)
	if s.Many() {
		store.OnChange(func(*org.Tree) { s.Wake() })
	}
	return s, s.load(ctx)
}

// load reads what Lag and others answer before Run has begun.
func (s *Sites) load(ctx context.Context) error {
	if !s.Many() {
		return nil
	}
	err := s.db.Read(ctx, func(tx *sqldb.Tx) error {
		list, err := sqldb.Select(tx, scanPeer, qPeers)
		if err != nil {
			return err
		}
		for _, p := range list {
			s.lags[p.name] = lag{Lag: Lag{Heard: p.heard, Sent: p.outSeq, Acknowledged: p.acked, Waiting: int(p.outSeq - p.acked)}}
			s.marks[p.name], s.keys[p.name] = p.tree, [2]string{p.key, p.offered}
		}
		rows, err := sqldb.Select(tx, func(r *sqldb.Rows) (d [2]string, err error) { err = r.Scan(&d[0], &d[1]); return d, err }, qDelegated)
		for _, d := range rows {
			s.granted[d[0]] = append(s.granted[d[0]], d[1])
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("reading the sites: %w", err)
	}
	return nil
}

// name makes the list of sites of the options.
func (s *Sites) name() error {
	list := s.opts.List
	if len(list) == 0 {
		list = []Site{{Name: s.opts.Own, ServerName: s.mx.ServerName(), Bot: s.mx.BotID(), Head: true}}
	}
	for _, site := range list {
		if site.Bot == "" {
			site.Bot = id.NewUserID(s.mx.BotID().Localpart(), site.ServerName)
		}
		if _, double := s.byName[site.Name]; double {
			return fmt.Errorf("two sites are called %q", site.Name)
		}
		if _, double := s.byServer[site.ServerName]; double {
			return fmt.Errorf("two sites have the server %q", site.ServerName)
		}
		s.all, s.byName[site.Name], s.byServer[site.ServerName] = append(s.all, site), site, site
		if site.Head {
			s.head = site
		}
		if site.Name == s.opts.Own {
			s.own = site
		}
	}
	switch {
	case s.own.ServerName == "":
		return fmt.Errorf("the own site %q is not among the sites", s.opts.Own)
	case s.head.ServerName == "":
		return errors.New("none of the sites is the head office")
	case s.own.ServerName != s.mx.ServerName() || s.own.Bot != s.mx.BotID():
		return fmt.Errorf("the own site %q has the server %q and the bot %s, but this is %s", s.own.Name, s.own.ServerName, s.own.Bot, s.mx.BotID())
	}
	return nil
}

// Many reports whether there is more than one site.
func (s *Sites) Many() bool { return len(s.all) > 1 }

// Own is this site.
func (s *Sites) Own() Site { return s.own }

// Head is the head office.
func (s *Sites) Head() Site { return s.head }

// All are all sites in the order of the configuration, this one included.
func (s *Sites) All() []Site { return slices.Clip(s.all) }

// Others are all sites but this one.
func (s *Sites) Others() []Site {
	return slices.DeleteFunc(slices.Clone(s.all), func(o Site) bool { return o.Name == s.own.Name })
}

// Named is the site of a unit or a person; what is unknown, or "", is the head office.
func (s *Sites) Named(name string) Site {
	if site, ok := s.byName[name]; ok {
		return site
	}
	return s.head
}

// OfServer is the site of a homeserver.
func (s *Sites) OfServer(server string) (Site, bool) {
	site, ok := s.byServer[server]
	return site, ok
}

// IsBot reports whether a user is the bot of one of the sites.
func (s *Sites) IsBot(user id.UserID) bool {
	site, ok := s.byServer[user.Homeserver()]
	return ok && site.Bot == user
}

// SiteOf is the site whose homeserver holds a person's account.
func (s *Sites) SiteOf(p *org.Person) Site { return s.Named(p.Site) }

// UserOf is a person's account.
func (s *Sites) UserOf(p *org.Person) id.UserID {
	return id.NewUserID(p.Localpart, s.SiteOf(p).ServerName)
}

// PersonOf is the person behind an account of any site, nil if there is none.
func (s *Sites) PersonOf(tree *org.Tree, user id.UserID) *org.Person {
	site, ok := s.byServer[user.Homeserver()]
	if !ok {
		return nil
	}
	p := tree.ByLocalpart(user.Localpart())
	if p == nil || s.SiteOf(p).Name != site.Name {
		return nil
	}
	return p
}

// Handle says what handles the messages of a kind. It is called before Run, once for a kind.
func (s *Sites) Handle(kind string, f Handler) {
	if s.handlers[kind] != nil {
		panic("sites: two handlers of " + kind)
	}
	s.handlers[kind] = f
}

// refusal is the error of a message that is given up.
type refusal struct{ error }

// Unwrap is why.
func (r refusal) Unwrap() error { return r.error }

// Refuse makes err one that gives a message up: what was done in the transaction is undone, and the message counts as
// handled. It is logged.
func Refuse(err error) error { return refusal{err} }

// Send puts a message into the outbox in the caller's transaction. Each destination handles it after all that was sent
// to it before, exactly once; this site may be one of them. What Send wrote is noticed by itself soon after the
// transaction; Wake makes that at once.
func (s *Sites) Send(tx *sqldb.Tx, to []Site, kind string, body any) error {
	_, err := s.queue(tx, to, kind, body)
	return err
}

// queue is Send; it answers the message's ID.
func (s *Sites) queue(tx *sqldb.Tx, to []Site, kind string, body any) (string, error) {
	if len(to) == 0 {
		return "", nil
	}
	b, err := json.Marshal(body)
	if err != nil {
		return "", fmt.Errorf("encoding a message to other sites: %w", err)
	}
	message := matrix.RandomString(20)
	if _, err := tx.Exec(qInsertMessage, message, kind, string(b), time.Now().UnixMilli()); err != nil {
		return "", fmt.Errorf("keeping a message to other sites: %w", err)
	}
	for _, site := range to {
		if err := s.enqueue(tx, site.Name, message); err != nil {
			return "", fmt.Errorf("keeping a message to site %q: %w", site.Name, err)
		}
	}
	time.AfterFunc(wakeAfter, s.Wake)
	return message, nil
}

// wakeAfter is when what was sent is looked for, if the sender does not call Wake.
const wakeAfter = 25 * time.Millisecond

func (s *Sites) enqueue(tx *sqldb.Tx, site, message string) error {
	var seq int64
	if err := tx.QueryRow(qNextSeq, site).Scan(&seq); err != nil {
		return err
	}
	_, err := tx.Exec(qInsertOut, site, seq, message)
	return err
}

// Wake lets Run look at the outbox now; it is called after a transaction with Send.
func (s *Sites) Wake() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Lag says how far this site and another one are apart.
type Lag struct {
	// Heard is when the other site was last heard of, the zero time if never.
	Heard time.Time
	// Sent and Acknowledged count the messages to the other site.
	Sent, Acknowledged int64
	// Waiting is how many messages to the other site it has not acknowledged.
	Waiting int
	// Behind is how old what is known of the other site may be: zero for one that answers.
	Behind time.Duration
}

// Lag of another site; nothing for the own one.
func (s *Sites) Lag(site Site) Lag {
	if site.Name == s.own.Name {
		return Lag{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lags[site.Name]
	if typed := s.typed[site.Bot]; typed.After(l.Heard) {
		l.Heard = typed
	}
	since := l.Heard
	if since.IsZero() {
		since = s.began
	}
	switch silent := time.Since(since); {
	case silent > 3*s.beatEvery():
		l.Behind = silent
	case !l.oldest.IsZero():
		l.Behind = time.Since(l.oldest)
	}
	return l.Lag
}
