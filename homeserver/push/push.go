// Package push decides what notifies a user: the push rules and their
// evaluation, the unread counts of /sync, the list of notifications, and the
// pushers that tell phones.
//
// Tables: push_rules (of users who have changed a rule: their changes alone),
// pushers, push_position.
//
// Spec: client-server-api#push-notifications, push-gateway-api
//
// Nothing is stored for a member and a message. A room keeps in memory where its
// notifying events stand under the default rules, so that the counts of a user
// with the default rules are a search from the position read up to. For users
// with rules of their own the events after that position are evaluated when
// their client asks, each once. Only users with a pusher are looked at when a
// message is sent.
//
// Invariants: a user's own events never notify, nor do those of ignored users; an own message marks what stands
// before it in its thread as read; redacted events are not counted.
package push

import (
	"context"
	"embed"
	"net/http"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
	"github.com/carillon-chat/carillon/homeserver/subscriptions"
)

// Options are what may be set.
type Options struct {
	Client        *http.Client // for push gateways; nil: one with a timeout of 10 s
	AllowInsecure bool         // accept gateways with http: URLs
	// Data knows whom users ignore: their events do not notify. May be nil.
	Data *accountdata.Data
	// InviteHidden reports whether a user is not to hear of invitations by a sender.
	// May be nil.
	InviteHidden func(sender, user matrix.UserID) bool
	// Threads knows who follows which thread. May be nil.
	Threads *subscriptions.Subscriptions
	// ThreadRules adds the predefined rules by which a thread notifies those who
	// follow it, and of others those alone who are mentioned. It needs Threads.
	//
	// Spec: MSC4306
	ThreadRules bool
	// LegacyMentions adds the predefined rules by which messages of old clients,
	// which do not say whom they mention, mention by the words of their text.
	//
	// Spec: removed by MSC4210 in version 1.17
	LegacyMentions bool
	// Email sends notifications by e-mail; nil: there are none.
	Email *Email
	Now   matrix.Now
}

// Push is the module.
type Push struct {
	db       *sqldb.DB
	log      *stream.Log
	store    *events.Store
	hub      *hub.Hub
	places   *receipts.Places
	receipts *receipts.Receipts
	opts     Options

	locks gate.Keyed[matrix.UserID] // changes of one user's rules or pushers
	mu    sync.RWMutex
	rules map[matrix.UserID]*userRules
	// followed is when a user began or ceased to follow a thread last, since the start.
	followed map[matrix.UserID]stream.Pos

	tailsMu sync.RWMutex
	tails   map[matrix.RoomID]*tail

	defaults *Ruleset // evaluates for everybody without changes
	pushers  pusherSet
	dispatch dispatcher
	mail     mailer
}

//go:embed schema
var schema embed.FS

// New prepares the module. Call it before the log runs.
func New(ctx context.Context, db *sqldb.DB, l *stream.Log, store *events.Store, h *hub.Hub, places *receipts.Places, rec *receipts.Receipts, opts Options) (*Push, error) {
	if err := db.Migrate(ctx, "push", schema); err != nil {
		return nil, err
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Email != nil {
		e := *opts.Email
		if e.After <= 0 {
			e.After = 10 * time.Minute
		}
		if e.Every <= 0 {
			e.Every = time.Hour
		}
		opts.Email = &e
	}
	if opts.Client == nil {
		opts.Client = &http.Client{Timeout: 10 * time.Second}
	}
	p := &Push{
		db: db, log: l, store: store, hub: h, places: places, receipts: rec, opts: opts,
		rules: make(map[matrix.UserID]*userRules), tails: make(map[matrix.RoomID]*tail),
		followed: make(map[matrix.UserID]stream.Pos),
	}
	p.defaults = p.build("", nil)
	if err := p.load(ctx); err != nil {
		return nil, err
	}
	if err := p.loadPushers(ctx); err != nil {
		return nil, err
	}
	l.Subscribe(p.hear)
	return p, nil
}

// hides reports whether an event is an invitation that the user is not to hear of.
func (p *Push) hides(e *events.Event, user matrix.UserID) bool {
	return p.opts.InviteHidden != nil && e.Type == "m.room.member" && e.Membership == "invite" && e.Key() == string(user) &&
		p.opts.InviteHidden(e.Sender, user)
}

// ignored are the users whose events do not notify this one.
func (p *Push) ignored(user matrix.UserID) accountdata.Ignored {
	if p.opts.Data == nil {
		return nil
	}
	return p.opts.Data.Ignored(user)
}

// hear is told of every commit, on the log's goroutine.
func (p *Push) hear(changes []stream.Change) {
	for i := range changes {
		if c := &changes[i]; c.Kind == stream.KindThreadSubscription {
			p.mu.Lock()
			p.followed[c.User] = c.Pos
			p.mu.Unlock()
			continue
		}
		switch x := changes[i].Payload.(type) {
		case *events.Event:
			p.tailsMu.RLock()
			t := p.tails[x.Room]
			p.tailsMu.RUnlock()
			switch {
			case t == nil:
			case x.Resolved != nil: // levels and members may be others now: read anew when asked for
				p.tailsMu.Lock()
				delete(p.tails, x.Room)
				p.tailsMu.Unlock()
			default:
				t.hear(p, x)
			}
		case *RulesChange:
			p.mu.Lock()
			p.rules[x.User] = x.rules
			p.mu.Unlock()
		}
	}
	p.pushers.ring()
}
