// Package appservice is the enterprise service: it stands beside a Matrix homeserver as an application service and
// gives a company its rooms, read lists and urgent notices.
//
// It builds its parts (org, derive, readlist, ding) and wires them by plain calls; takes the homeserver's
// transactions, in order and each once; answers /_carillon/v1; and runs the rooms after the company file. It speaks to
// the homeserver through the Matrix APIs only, over the network or in memory.
//
// Table owned: as_transactions. Spec: application-service-api. Invariants: a transaction is answered with 200 only
// when everything in it is stored; callers of /_carillon/v1 are known by the homeserver's word on their token; private
// receipts are dropped unless the company has decided otherwise.
package appservice

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/derive"
	"github.com/carillon-chat/carillon/appservice/ding"
	"github.com/carillon-chat/carillon/appservice/lang"
	"github.com/carillon-chat/carillon/appservice/ldapsync"
	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/appservice/readlist"
	"github.com/carillon-chat/carillon/appservice/sites"
	"github.com/carillon-chat/carillon/bridges/bridge"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

//go:embed schema/*.sql
var schemaFS embed.FS

// Options are what the service needs. DB, ServerName, Registration and either HomeserverURL or Transport must be given.
type Options struct {
	DB           *sqldb.DB
	ServerName   string
	Registration *Registration
	// HomeserverURL is the homeserver's client address; Transport, if given, carries the requests (in memory).
	HomeserverURL string
	Transport     http.RoundTripper
	// ForeignHomeserver tells that the homeserver is not Carillon's: first passwords are sent as they are.
	ForeignHomeserver bool

	// Admins are users who may do everything, besides the people whom the company file calls administrators.
	Admins []string
	// Language is "zh" (default) or "en": of what the service writes to people who chose none.
	Language string
	// Location is where days begin and end; nil is UTC+8.
	Location *time.Location
	// PublicURL is where people reach the API, for hints in messages.
	PublicURL string

	Company         string
	GroupSuffix     string
	NoAllStaff      bool
	AllStaffName    string
	UnitHistory     string  // "joined" (default) or "shared"
	LoginRule       string  // "job_number" (default), "pinyin" or "email_local"
	MaxLeave        float64 // share of people that one import may make leave, 0.1 if zero
	Concurrency     int     // requests at a time, 16 if zero
	PrivateReceipts bool    // count private receipts in read lists
	PasswordsDir    string  // folder of first passwords' files; "" makes accounts without a password

	// SiteGrace is for how long other sites are left to remove their people from the rooms of this one; see derive.Options.
	SiteGrace time.Duration
	// Sites are the company's sites; Own and List are enough. Zero for a company of one site.
	Sites sites.Options

	// Directory is the LDAP directory that the company follows; nil for none.
	Directory *ldapsync.Source

	Ding DingOptions
	// RateLimits bounds calls of /_carillon/v1; zero for none.
	RateLimits     httpapi.RateLimits
	TrustedProxies []netip.Prefix // see httpapi.Options
	Now            func() time.Time
}

// DingOptions bound urgent notices; zero fields take the defaults of package ding.
type DingOptions struct {
	PerMinute    int
	MaxReceivers int
	Grace        time.Duration
	ConfirmWords []string
}

// transactionKept is how long transaction IDs are remembered.
const transactionKept = 30 * 24 * time.Hour

// Service is the enterprise service.
type Service struct {
	db     *sqldb.DB
	opts   Options
	now    func() time.Time
	admins map[string]bool

	mx     *mxclient.Client
	store  *org.Store
	sites  *sites.Sites
	rooms  *derive.Reconciler
	lists  *readlist.Lists
	dings  *ding.Dings
	outbox *bridge.Outbox
	jobs   *jobs
	api    *httpapi.API

	directory directory
	// operatorAPI is the same API for who runs the service.
	operatorAPI *httpapi.API

	taking  sync.Mutex // held while a transaction is taken in
	lastTxn string
}

// New builds the service. It reads its database and makes no request.
func New(ctx context.Context, opts Options) (*Service, error) {
	if opts.DB == nil || opts.ServerName == "" || opts.Registration == nil {
		return nil, errors.New("the enterprise service needs a database, a server name and a registration")
	}
	if err := opts.Registration.check(); err != nil {
		return nil, err
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Location == nil {
		opts.Location = time.FixedZone("CST", 8*3600)
	}
	if opts.Language == "" {
		opts.Language = string(lang.Chinese)
	}
	s := &Service{db: opts.DB, opts: opts, now: opts.Now, admins: map[string]bool{}}
	s.jobs = &jobs{ready: make(chan struct{}, 1), now: opts.Now}
	s.directory.source = opts.Directory
	for _, a := range opts.Admins {
		s.admins[a] = true
	}
	if err := s.db.Migrate(ctx, "appservice", schemaFS); err != nil {
		return nil, fmt.Errorf("migrating the enterprise service: %w", err)
	}
	if err := s.build(ctx); err != nil {
		return nil, err
	}
	return s, s.buildAPI()
}

// build makes the parts, the lower ones first.
func (s *Service) build(ctx context.Context) (err error) {
	o := &s.opts
	s.mx, err = mxclient.New(mxclient.Config{
		HomeserverURL: o.HomeserverURL, ServerName: o.ServerName, ASToken: o.Registration.ASToken,
		BotLocalpart: o.Registration.SenderLocalpart, Transport: o.Transport,
	})
	if err != nil {
		return err
	}
	storeOptions := []org.Option{org.WithReserved(o.Registration.SenderLocalpart), org.WithNow(o.Now)}
	if o.LoginRule != "" {
		storeOptions = append(storeOptions, org.WithLoginRule(org.LoginRule(o.LoginRule)))
	}
	storeOptions = append(storeOptions, o.Sites.StoreOptions()...)
	if s.store, err = org.NewStore(ctx, s.db, storeOptions...); err != nil {
		return err
	}
	so := o.Sites
	so.Changed, so.IsAdmin, so.Now = func() { s.jobs.submit(false) }, s.isAdmin, o.Now
	if s.sites, err = sites.New(ctx, s.db, s.mx, s.store, so); err != nil {
		return fmt.Errorf("sites: %w", err)
	}
	admins := make([]id.UserID, len(o.Admins))
	for i, a := range o.Admins {
		admins[i] = id.UserID(a)
	}
	s.rooms, err = derive.New(ctx, s.db, s.mx, derive.Options{
		Company: o.Company, NoAllStaff: o.NoAllStaff, AllStaffName: o.AllStaffName, GroupSuffix: o.GroupSuffix,
		Language: o.Language, Concurrency: o.Concurrency, UnitHistory: o.UnitHistory, Admins: admins,
		PasswordsDir: o.PasswordsDir, PlainPasswords: o.ForeignHomeserver, Now: o.Now,
		Sites: s.sites, Tree: s.store.Tree, Wake: func() { s.jobs.submit(false) }, Grace: o.SiteGrace,
	})
	if err != nil {
		return err
	}
	return s.buildFeatures(ctx)
}

func (s *Service) buildFeatures(ctx context.Context) error {
	o := &s.opts
	book, err := lang.New(ctx, s.db, o.Language)
	if err != nil {
		return fmt.Errorf("languages: %w", err)
	}
	s.outbox, err = bridge.NewOutbox(ctx, s.db, o.Now, bridge.NewApp(s.rooms, s.mx, bridge.Bounds{}))
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	bots := make([]string, 0, len(s.sites.All()))
	for _, site := range s.sites.All() {
		bots = append(bots, string(site.Bot))
	}
	s.lists, err = readlist.New(ctx, s.db, readlist.Options{
		Roster: roster{s}, Homeserver: s.mx, Outbox: s.outbox, Lang: book, Auditors: o.Admins, IsAdmin: s.isAdmin,
		Bots: bots, Lag: s.lagOf, CountPrivate: o.PrivateReceipts, Location: o.Location, BaseURL: o.PublicURL, Now: o.Now,
	})
	if err != nil {
		return fmt.Errorf("read lists: %w", err)
	}
	s.dings, err = ding.New(ctx, s.db, ding.Options{
		Tree: s.store.Tree, Outbox: s.outbox, Matrix: s.mx, Rooms: s.rooms, Unread: s.lists, Lang: book,
		ServerName: o.ServerName, Sites: s.sites, IsAdmin: s.isAdmin, PerMinute: o.Ding.PerMinute, MaxReceivers: o.Ding.MaxReceivers,
		Grace: o.Ding.Grace, ConfirmWords: o.Ding.ConfirmWords, Location: o.Location, Now: o.Now,
	})
	if err != nil {
		return fmt.Errorf("DINGs: %w", err)
	}
	return nil
}

// lagOf is how far this site is behind another one, for read lists.
func (s *Service) lagOf(name string) (readlist.Lag, bool) {
	if !s.sites.Many() || name == s.sites.Own().Name {
		return readlist.Lag{}, false
	}
	lag := s.sites.Lag(s.sites.Named(name))
	out := readlist.Lag{Behind: lag.Behind.Milliseconds()}
	if !lag.Heard.IsZero() {
		out.HeardAt = lag.Heard.UnixMilli()
	}
	return out, true
}

// roster finds people for the read lists.
type roster struct{ s *Service }

// PersonOf implements readlist.Roster.
func (r roster) PersonOf(user string) (readlist.Person, bool) {
	p := r.s.personOf(user)
	if p == nil {
		return readlist.Person{}, false
	}
	out := readlist.Person{ID: p.ID, Name: p.Name, Gone: p.Status == org.StatusLeft}
	if r.s.sites.Many() {
		site := r.s.sites.SiteOf(p)
		out.Site, out.Elsewhere = site.Name, site.Name != r.s.sites.Own().Name
	}
	if u := r.s.store.Tree().Unit(p.MainPost().Unit); u != nil {
		out.Unit = u.Name
	}
	return out, true
}

func (s *Service) buildAPI() error {
	spec, err := openAPI()
	if err != nil {
		return err
	}
	s.api = httpapi.New(httpapi.Options{
		Authenticator: &authenticator{svc: s, tokens: map[[32]byte]tokenOwner{}}, RateLimits: s.opts.RateLimits, TrustedProxies: s.opts.TrustedProxies, Now: s.opts.Now,
	})
	s.api.Add(s.homeserverRoutes()...)
	s.operatorAPI = httpapi.New(httpapi.Options{Authenticator: operator{s.mx.BotID()}, Now: s.opts.Now})
	for _, api := range []*httpapi.API{s.api, s.operatorAPI} {
		api.Add(s.Routes()...)
		api.Add(openAPIRoute(spec))
	}
	return nil
}

// Routes are the endpoints of /_carillon/v1, of this package and of the parts.
func (s *Service) Routes() []httpapi.Route {
	routes := append(s.orgRoutes(), s.directoryRoutes()...)
	routes = append(routes, s.sites.Routes()...)
	routes = append(routes, s.lists.Routes()...)
	return append(routes, s.dings.Routes()...)
}

// Handler answers the homeserver and /_carillon/v1.
func (s *Service) Handler() http.Handler { return s.api }

// Operator answers /_carillon/v1 without asking for a token, everything allowed: for a socket that only the operator
// can open.
func (s *Service) Operator() http.Handler { return s.operatorAPI }

// Org is the organisation.
func (s *Service) Org() *org.Store { return s.store }

// Sites are the company's sites.
func (s *Service) Sites() *sites.Sites { return s.sites }

// Rooms is what follows the organisation.
func (s *Service) Rooms() *derive.Reconciler { return s.rooms }

// Client is the service's Matrix client.
func (s *Service) Client() *mxclient.Client { return s.mx }

// Drain answers waiting requests and refuses new ones.
func (s *Service) Drain(ctx context.Context) error {
	err := s.api.Drain(ctx)
	return errors.Join(err, s.operatorAPI.Drain(ctx))
}

// Run does the work in the background until ctx ends: it follows the organisation, empties the outbox, fires DINGs.
func (s *Service) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	start := func(name string, run func(context.Context) error) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() {
				if p := recover(); p != nil {
					log.WithFields(log.Fields{"part": name, "panic": p}).Errorf("a part of the enterprise service panicked\n%s", debug.Stack())
					cancel(fmt.Errorf("%s panicked", name))
				}
			}()
			if err := run(ctx); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		}()
	}
	start("rooms", func(ctx context.Context) error { s.runJobs(ctx); return nil })
	start("outbox", s.outbox.Run)
	start("sites", s.sites.Run)
	start("directory", s.followDirectory)
	start("read lists", s.lists.Run)
	start("DINGs", s.dings.Run)
	<-ctx.Done()
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return fmt.Errorf("running the enterprise service: %w", err)
	}
	return nil
}

func (s *Service) forgetTransactions(ctx context.Context, before int64) error {
	return s.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qForgetTxn, before)
		return err
	})
}
