// Package accounts knows who may use the server: users, their passwords, access and refresh tokens, log-in,
// registration, interactive authentication, and the application services' right to act as users.
//
// Tables: users, access_tokens, refresh_tokens, login_tokens, registration_tokens, uia_sessions, accepted_policies,
// deactivations. Of tokens only the SHA-256 is stored.
//
// Spec: client-server-api#client-authentication, client-server-api#account-moderation,
// client-server-api#server-administration, application-service-api#identity-assertion
//
// Invariants: all local users are in memory, and so is each session that has been used; both change only after
// the commit of what changed them, so a request with a known token asks no database. A user ID is never given out
// twice, not even after deactivation.
package accounts

import (
	"context"
	"crypto/sha256"
	"embed"
	"fmt"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/pages"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

//go:embed schema
var schema embed.FS

// Devices is what accounts needs of the devices package.
type Devices interface {
	// Ensure makes the device if the user has none of this ID.
	Ensure(tx *sqldb.Tx, user matrix.UserID, device matrix.DeviceID, displayName, ip string, now time.Time) error
	// Has says whether the user has the device.
	Has(ctx context.Context, user matrix.UserID, device matrix.DeviceID) (bool, error)
	// Delete removes devices and all that hangs on them; DeleteOthers all but one (none: "").
	Delete(ctx context.Context, user matrix.UserID, devices []matrix.DeviceID) error
	DeleteOthers(ctx context.Context, user matrix.UserID, keep matrix.DeviceID) error
	// Seen notes that a device made a request; it must not block.
	Seen(user matrix.UserID, device matrix.DeviceID, ip, agent string, now time.Time)
	// OnDelete registers what has to happen with a device's deletion.
	OnDelete(hook DeviceHook)
}

// DeviceHook is told of deleted devices: InTx in the deleting transaction (it may run twice: SQL only), After
// once it is committed. Either may be nil.
type DeviceHook struct {
	InTx  func(tx *sqldb.Tx, user matrix.UserID, devices []matrix.DeviceID) error
	After func(user matrix.UserID, devices []matrix.DeviceID)
}

// Registration says who may make an account.
type Registration struct {
	Enabled      bool   // anybody, by one of the flows
	Dummy        bool   // flow m.login.dummy
	Tokens       bool   // flow m.login.registration_token
	Guests       bool   // kind=guest
	SharedSecret string // switches /_synapse/admin/v1/register on
	// Flows take the place of Dummy and Tokens, each a list of stages.
	Flows []Flow
	// Policies have to be accepted, in a stage that is added to the flows which do not name it.
	Policies []Policy
}

// Options are what accounts takes from the configuration.
type Options struct {
	ServerName          matrix.ServerName
	Registration        Registration
	Passwords           PasswordCost
	MinPassword         int           // characters; shorter ones are M_WEAK_PASSWORD
	NoPasswords         bool          // nobody logs in by password
	AccessLifetime      time.Duration // of access tokens of clients that refresh; 0: one hour
	LoginAttempts       float64       // log-in attempts a second for one account; 0: not limited
	LoginBurst          int           // attempts at once; 0: 5
	ApplicationServices []*ApplicationService
	Admins              []matrix.UserID // administrators by configuration, beside those in the database
	Language            string          // of pages for browsers that name none: zh or en; empty: zh
	Now                 matrix.Now
}

// Accounts is the package's door. Its methods are safe for concurrent use.
type Accounts struct {
	db      *sqldb.DB
	devices Devices
	opts    Options
	now     matrix.Now
	hasher  *hasher
	uia     *UIA
	logins  *gate.Limiter[string]
	nonces  nonces
	ssoFlow func() any // m.login.sso in the answer of GET /login; nil: none

	services map[[sha256.Size]byte]*ApplicationService // by the hash of as_token
	byID     map[string]*ApplicationService
	admins   map[matrix.UserID]bool

	onDeactivate      []func(ctx context.Context, user matrix.UserID, erase bool) error
	onDeactivateLater []func(ctx context.Context, user matrix.UserID, erase bool) error
	onCreate          []func(ctx context.Context, user matrix.UserID, displayName string) error
	onPassword        []func(tx *sqldb.Tx, user matrix.UserID) error
	contacts          Contacts
	closing           closing

	mu       sync.RWMutex
	users    map[matrix.UserID]*User
	reserved map[matrix.UserID]bool // registrations under way

	sessions sessions
}

// New loads the users and makes the application services' own users.
func New(ctx context.Context, db *sqldb.DB, devices Devices, opts Options) (*Accounts, error) {
	if err := db.Migrate(ctx, "accounts", schema); err != nil {
		return nil, err
	}
	a := &Accounts{
		db: db, devices: devices, opts: opts, now: opts.Now,
		services: make(map[[sha256.Size]byte]*ApplicationService), byID: make(map[string]*ApplicationService),
		admins: make(map[matrix.UserID]bool), users: make(map[matrix.UserID]*User), reserved: make(map[matrix.UserID]bool),
	}
	if a.now == nil {
		a.now = time.Now
	}
	if a.opts.AccessLifetime == 0 {
		a.opts.AccessLifetime = time.Hour
	}
	if opts.LoginAttempts > 0 {
		burst := opts.LoginBurst
		if burst == 0 {
			burst = 5
		}
		a.logins = gate.NewLimiter[string](opts.LoginAttempts, burst, 50_000, a.now)
	}
	a.hasher = newHasher(opts.Passwords)
	a.uia = &UIA{a: a}
	a.uia.addStages()
	a.closing.bell = make(chan struct{}, 1)
	if a.opts.Language == "" {
		a.opts.Language = pages.Chinese
	}
	a.sessions.init()
	for _, u := range opts.Admins {
		a.admins[u] = true
	}
	if err := checkDistinct(opts.ApplicationServices); err != nil {
		return nil, err
	}
	for _, as := range opts.ApplicationServices {
		if err := as.Check(); err != nil {
			return nil, fmt.Errorf("application service %s: %w", as.ID, err)
		}
		a.services[sha256.Sum256([]byte(as.ASToken))] = as
		a.byID[as.ID] = as
		if as.Admin {
			a.admins[as.Sender(opts.ServerName)] = true
		}
	}
	if err := a.load(ctx); err != nil {
		return nil, fmt.Errorf("loading users: %w", err)
	}
	for _, as := range opts.ApplicationServices {
		if err := a.ensureSender(ctx, as); err != nil {
			return nil, fmt.Errorf("user of application service %s: %w", as.ID, err)
		}
	}
	devices.OnDelete(DeviceHook{InTx: a.deleteDeviceTokens, After: a.sessions.dropDevices})
	return a, nil
}

func (a *Accounts) ensureSender(ctx context.Context, as *ApplicationService) error {
	id := as.Sender(a.opts.ServerName)
	if a.Exists(id) {
		return nil
	}
	return a.Create(ctx, NewUser{ID: id, AppService: as.ID})
}

// OnCreate adds what has to happen after an account was made; displayName may be empty. Call it before serving.
func (a *Accounts) OnCreate(fn func(ctx context.Context, user matrix.UserID, displayName string) error) {
	a.onCreate = append(a.onCreate, fn)
}

// OnPassword adds what has to happen, in the same transaction, which may run twice, when a password changes. Call it
// before serving.
func (a *Accounts) OnPassword(fn func(tx *sqldb.Tx, user matrix.UserID) error) {
	a.onPassword = append(a.onPassword, fn)
}

// UIA is the interactive authentication other packages may ask for.
func (a *Accounts) UIA() *UIA { return a.uia }

// ApplicationServices lists the registered services.
func (a *Accounts) ApplicationServices() []*ApplicationService { return a.opts.ApplicationServices }

// ApplicationService is the service of an ID, or nil.
func (a *Accounts) ApplicationService(id string) *ApplicationService { return a.byID[id] }

// ExclusiveUser is the service that has claimed a user ID for itself alone, or nil.
func (a *Accounts) ExclusiveUser(user matrix.UserID) *ApplicationService {
	for _, as := range a.opts.ApplicationServices {
		if user == as.Sender(a.opts.ServerName) || matchAny(as.Namespaces.Users, string(user), true) {
			return as
		}
	}
	return nil
}

// ExclusiveAlias is the service that has claimed an alias for itself alone, or nil.
func (a *Accounts) ExclusiveAlias(alias matrix.RoomAlias) *ApplicationService {
	for _, as := range a.opts.ApplicationServices {
		if matchAny(as.Namespaces.Aliases, string(alias), true) {
			return as
		}
	}
	return nil
}

// Kept times of what ends by itself.
const (
	uiaLifetime  = 24 * time.Hour
	cleanupEvery = time.Hour
	// expiredKept is how long an expired access token is remembered, so that its client is told to refresh and not
	// to forget its data.
	expiredKept = 30 * 24 * time.Hour
)

// Run removes what has expired, and what closed accounts have left, until ctx ends.
func (a *Accounts) Run(ctx context.Context) error {
	var closing sync.WaitGroup
	defer closing.Wait()
	closing.Go(func() { a.runClosing(ctx) })
	for {
		if err := a.cleanup(ctx); err != nil && ctx.Err() == nil {
			log.WithError(err).Warn("removing expired tokens failed")
		}
		if gate.Sleep(ctx, gate.Spread(cleanupEvery, 0.2)) != nil {
			return nil
		}
	}
}

func (a *Accounts) cleanup(ctx context.Context) error {
	now := a.now()
	a.nonces.cleanup(now)
	return a.db.Write(ctx, func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(qOldUIA, matrix.Millis(now.Add(-uiaLifetime))); err != nil {
			return err
		}
		if _, err := tx.Exec(qExpiredLogin, matrix.Millis(now)); err != nil {
			return err
		}
		_, err := tx.Exec(qExpiredAccess, matrix.Millis(now.Add(-expiredKept)))
		return err
	})
}
