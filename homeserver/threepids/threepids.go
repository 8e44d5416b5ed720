// Package threepids keeps the e-mail addresses and telephone numbers of accounts: it proves that they are their
// users', lets people log in and reset their password with them, publishes them on identity servers, and invites
// people to rooms of whom nothing but an address is known.
//
// Tables: threepids, threepid_binds, validation_sessions. Of secrets, tokens and codes only hashes are stored.
//
// Spec: client-server-api#adding-account-administrative-contact-information, client-server-api#third-party-invites,
// client-server-api#email-based-identity--homeserver, identity-service-api
//
// Invariants: an address belongs to one account at most, and to none before its owner has shown what was sent to it; a
// proof serves the purpose it was asked for, once; nobody learns from an answer whether an address has an account (the
// message that is sent says it to its owner); the number of messages to an address and for a client is bounded.
// Addresses go into no log.
package threepids

import (
	"context"
	"embed"
	"fmt"
	"net/url"
	"strings"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/mail"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/pages"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

//go:embed schema
var schema embed.FS

// The media of addresses.
const (
	Email  = "email"
	MSISDN = "msisdn"
)

// Stages of interactive authentication.
const (
	StageEmail  = "m.login.email.identity"
	StageMSISDN = "m.login.msisdn"
)

// SMS sends a text to a number such as +8613800138000.
type SMS func(ctx context.Context, number, text string) error

// Options are what may be set.
type Options struct {
	Server    matrix.ServerName
	PublicURL string       // under which people reach this server; needed where Mail or SMS is set
	Mail      *mail.Sender // nil: no e-mail
	SMS       SMS          // nil: no telephone numbers
	Company   string       // how messages call this server; empty: Carillon
	Signature pages.Text   // the small print below e-mails; may be empty
	Language  string       // of messages to clients that name none: zh or en; empty: zh

	Fixed     bool     // people cannot change their addresses themselves
	Domains   []string // the only domains of new e-mail addresses, "*.example.org" for all below; empty: all
	Prefixes  []string // the only beginnings of new telephone numbers, such as +86; empty: all
	NextHosts []string // hosts besides the public address's to which next_link may lead without being asked

	PerAddress float64 // messages an hour to one address; 0: 6
	PerClient  float64 // messages an hour for one client address; 0: 60

	// Identity reaches identity servers; nil: none are used.
	Identity *fedclient.Client
	// Trusted says which identity servers may be used; nil: all.
	Trusted func(matrix.ServerName) bool
	// Removed is told of an address that an account has no longer. May be nil.
	Removed func(ctx context.Context, user matrix.UserID, medium, address string) error
	Now     matrix.Now
}

// Lifetimes.
const (
	sessionLifetime = time.Hour // until a message's code and link are no longer good, and again for a proof to be used
	cleanupEvery    = time.Hour
	maxAddresses    = 20 // of one account
)

// Threepids is the module.
type Threepids struct {
	db       *sqldb.DB
	accounts *accounts.Accounts
	rooms    *rooms.Rooms
	opts     Options
	public   *url.URL

	busy    gate.Keyed[string] // sessions in use
	address *gate.Limiter[string]
	client  *gate.Limiter[string]
	onbind  *gate.Limiter[string] // notifications of identity servers, by their network address
}

// New prepares the module and makes it known to accounts.
func New(ctx context.Context, db *sqldb.DB, acc *accounts.Accounts, r *rooms.Rooms, o Options) (*Threepids, error) {
	if err := db.Migrate(ctx, "threepids", schema); err != nil {
		return nil, err
	}
	t := &Threepids{db: db, accounts: acc, rooms: r, opts: o}
	if t.opts.Now == nil {
		t.opts.Now = time.Now
	}
	if t.opts.Company == "" {
		t.opts.Company = "Carillon"
	}
	if t.opts.Language == "" {
		t.opts.Language = pages.Chinese
	}
	if o.Mail != nil || o.SMS != nil {
		u, err := url.Parse(strings.TrimSuffix(o.PublicURL, "/"))
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			return nil, fmt.Errorf("the public address %q cannot be used in messages", o.PublicURL)
		}
		t.public = u
	}
	perAddress, perClient := o.PerAddress, o.PerClient
	if perAddress <= 0 {
		perAddress = 6
	}
	if perClient <= 0 {
		perClient = 60
	}
	t.address = gate.NewLimiter[string](perAddress/3600, int(perAddress), 50_000, t.opts.Now)
	t.client = gate.NewLimiter[string](perClient/3600, int(perClient), 50_000, t.opts.Now)
	t.onbind = gate.NewLimiter[string](1, 30, 10_000, t.opts.Now)
	acc.SetContacts(accounts.Contacts{UserOf: t.UserOf, Phone: Phone, Registered: t.registered, Unbind: t.unbindAll})
	if o.Mail != nil {
		acc.UIA().AddStage(t.stage(StageEmail, Email))
	}
	if o.SMS != nil {
		acc.UIA().AddStage(t.stage(StageMSISDN, MSISDN))
	}
	return t, nil
}

// supports says whether addresses of a medium can be proven.
func (t *Threepids) supports(medium string) bool {
	return medium == Email && t.opts.Mail != nil || medium == MSISDN && t.opts.SMS != nil
}

// MayChange says whether people may add and remove addresses themselves, for m.3pid_changes.
func (t *Threepids) MayChange() bool {
	return !t.opts.Fixed && (t.opts.Mail != nil || t.opts.SMS != nil)
}

// Run removes what has expired until ctx ends.
func (t *Threepids) Run(ctx context.Context) error {
	for {
		err := t.db.Write(ctx, func(tx *sqldb.Tx) error {
			_, err := tx.Exec(qExpired, matrix.Millis(t.opts.Now()))
			return err
		})
		if err != nil && ctx.Err() == nil {
			log.WithError(err).Warn("removing expired validation sessions failed")
		}
		if gate.Sleep(ctx, gate.Spread(cleanupEvery, 0.2)) != nil {
			return nil
		}
	}
}
