package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/appservice"
	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/bridges/sms"
	"github.com/carillon-chat/carillon/config"
	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/notices"
	"github.com/carillon-chat/carillon/homeserver/serverkeys"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sso"
)

// stack is what runs in this process.
type stack struct {
	cfg  *config.Config
	hs   *homeserver.Server  // nil when the enterprise service runs alone
	as   *appservice.Service // nil when the homeserver runs alone
	asDB *sqldb.DB
	sms  sms.Provider // nil: no texts
}

// build opens the databases and makes the parts. Nothing runs yet.
func build(ctx context.Context, cfg *config.Config, p parts) (*stack, error) {
	s := &stack{cfg: cfg}
	if err := s.build(ctx, p); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *stack) build(ctx context.Context, p parts) error {
	var reg *appservice.Registration
	if p.appservice {
		var err error
		if reg, err = registration(s.cfg); err != nil {
			return err
		}
	}
	if p.homeserver {
		opts, err := homeserverOptions(s.cfg, reg)
		if err != nil {
			return err
		}
		if reg != nil {
			// The service is made after the homeserver, and called by it only when both run.
			opts.Transports = map[string]http.RoundTripper{reg.ID: mxclient.NewHandlerTransport(
				http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.as.Handler().ServeHTTP(w, r) }),
			)}
		}
		if s.sms, err = smsBridge(&s.cfg.Bridges.SMS.SMPP); err != nil {
			return err
		}
		if s.sms != nil {
			opts.Contacts.SMS = codes(s.sms)
		}
		if s.hs, err = homeserver.New(ctx, opts); err != nil {
			return opening("the homeserver", err)
		}
	}
	if !p.appservice {
		return nil
	}
	var err error
	if s.asDB, err = sqldb.Open(s.cfg.AppServiceDSN()); err != nil {
		return opening("the enterprise service's database", err)
	}
	opts := appserviceOptions(s.cfg, reg, s.asDB)
	if opts.Directory, err = directorySource(&s.cfg.AppService.Directory); err != nil {
		return err
	}
	if s.hs != nil {
		opts.HomeserverURL = "http://homeserver"
		opts.Transport = mxclient.NewHandlerTransport(s.hs.Handler())
		opts.ForeignHomeserver = false
	}
	if s.as, err = appservice.New(ctx, opts); err != nil {
		return opening("the enterprise service", err)
	}
	return nil
}

func opening(what string, err error) error {
	if errors.Is(err, sqldb.ErrInUse) {
		return fmt.Errorf("%s is in use, another carillon runs on this data: %w", what, err)
	}
	return fmt.Errorf("opening %s: %w", what, err)
}

// registration reads the registration of the enterprise service, and makes it first if there is none.
func registration(cfg *config.Config) (*appservice.Registration, error) {
	return appservice.LoadOrCreateRegistration(cfg.RegistrationFile(), cfg.ServerName, cfg.AppServiceAddress())
}

func (a *app) printRegistration(cfg *config.Config) error {
	reg, err := registration(cfg)
	if err != nil {
		return err
	}
	b, err := reg.YAML()
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(b)
	return err
}

// realtime sets what calls of groups need.
func realtime(opts *homeserver.Options, c *config.RTC) error {
	opts.Realtime.MaxDelay, opts.Realtime.MaxScheduled = c.MaxDelay.Std(), c.MaxScheduled
	if c.MaxScheduled == 0 {
		opts.Realtime.MaxScheduled = -1
	}
	opts.Realtime.LiveKitURL, opts.Realtime.LiveKitKey, opts.Realtime.LiveKitSecret = c.SFU.URL, c.SFU.Key, c.SFU.Secret.Value()
	for _, u := range c.LiveKit {
		t, err := json.Marshal(map[string]string{"type": "livekit", "livekit_service_url": u})
		if err != nil {
			return err
		}
		opts.Realtime.Transports = append(opts.Realtime.Transports, t)
	}
	return nil
}

func homeserverOptions(cfg *config.Config, reg *appservice.Registration) (homeserver.Options, error) {
	h := &cfg.Homeserver
	opts := homeserver.Options{
		ServerName: matrix.ServerName(cfg.ServerName), DataDir: cfg.DataDir, Database: cfg.HomeserverDSN(), Version: version,
		DefaultRoomVersion: h.DefaultRoomVers,
		Registration: accounts.Registration{
			Enabled: h.Registration.Enabled, Dummy: h.Registration.Open, Tokens: !h.Registration.Open,
			Guests: h.Registration.Guests, SharedSecret: h.Registration.SharedSecret.Value(),
		},
		Passwords:   accounts.PasswordCost{MemoryKiB: uint32(h.Passwords.Memory >> 10), Passes: uint32(h.Passwords.Time)},
		MinPassword: h.Passwords.MinLength, Presence: h.Presence, AllUsers: h.DirectoryAll, InsecurePush: h.InsecurePush,
		ThreadRules: h.ThreadRules, LegacyMentions: h.LegacyMentions,
		Metrics:   h.Metrics.Listen != "",
		PublicURL: cfg.PublicBaseURL, TrustedProxies: cfg.TrustedProxies(),
		Federation: homeserver.Federation{
			Enabled: h.Federation.Enabled, AllowPrivate: h.Federation.AllowPrivate, Allow: h.Federation.Allow,
			WellKnown: h.Federation.WellKnown, Notaries: notaries(h.Federation.Notaries),
		},
		TURN: homeserver.TURN{
			URIs: h.TURN.URIs, SharedSecret: h.TURN.SharedSecret.Value(), Username: h.TURN.Username,
			Password: h.TURN.Password.Value(), Lifetime: h.TURN.Lifetime.Std(),
		},
	}
	if n := h.Notices; n.Enabled {
		opts.Notices = &notices.Options{
			Localpart: n.Localpart, DisplayName: n.DisplayName, AvatarURL: n.AvatarURL,
			RoomName: n.RoomName, RoomTopic: n.RoomTopic, RoomAvatar: n.RoomAvatar, MayLeave: n.MayLeave,
		}
	}
	opts.PolicyServer = homeserver.PolicyServer{
		Enabled: h.PolicyServer.Enabled, DenyUsers: h.PolicyServer.DenyUsers, DenyServers: h.PolicyServer.DenyServers,
		DenyTexts: h.PolicyServer.DenyTexts, PerMinute: h.PolicyServer.PerMinute,
	}
	if err := realtime(&opts, &h.RTC); err != nil {
		return opts, err
	}
	if err := mediaOptions(&opts, cfg); err != nil {
		return opts, err
	}
	if l := h.RateLimits; l.Enabled {
		opts.RateLimits = rateLimits(l)
		opts.LoginAttempts = float64(l.LogIns) / 60
	}
	signIn(&opts, h)
	opts.Support.Page = h.Support.Page
	for _, c := range h.Support.Contacts {
		opts.Support.Contacts = append(opts.Support.Contacts, homeserver.SupportContact{User: matrix.UserID(c.User), Email: c.Email, Role: c.Role})
	}
	for _, a := range h.Admins {
		opts.Admins = append(opts.Admins, matrix.UserID(a))
	}
	if err := setContacts(&opts, cfg); err != nil {
		return opts, err
	}
	var err error
	if h.SSO.CAFile != "" {
		if opts.SignIn.ExtraCAs, err = os.ReadFile(h.SSO.CAFile); err != nil {
			return opts, fmt.Errorf("reading homeserver.sso.ca_file: %w", err)
		}
	}
	if h.Federation.CAFile != "" {
		if opts.Federation.ExtraCAs, err = os.ReadFile(h.Federation.CAFile); err != nil {
			return opts, fmt.Errorf("reading homeserver.federation.ca_file: %w", err)
		}
	}
	opts.ApplicationServices, err = applicationServices(h.AppServices, reg)
	return opts, err
}

// notaries are those of the configuration, which has been checked.
func notaries(list []config.Notary) (out []serverkeys.Notary) {
	for _, n := range list {
		if keys, err := n.PublicKeys(); err == nil {
			out = append(out, serverkeys.NewNotary(matrix.ServerName(n.ServerName), keys))
		}
	}
	return out
}

// signIn takes over how people sign in.
func signIn(opts *homeserver.Options, h *config.Homeserver) {
	opts.SignIn = homeserver.SignIn{OAuth: h.OAuth.Enabled, NoPasswords: !h.Passwords.LogIn, TrustedClients: h.SSO.TrustedClients}
	for _, p := range h.SSO.Providers {
		opts.SignIn.Providers = append(opts.SignIn.Providers, sso.Provider{
			ID: p.ID, Name: p.Name, Icon: p.Icon, Brand: p.Brand, Issuer: p.Issuer, ClientID: p.ClientID,
			ClientSecret: p.ClientSecret.Value(), Scopes: p.Scopes, Localpart: p.Localpart, DisplayName: p.DisplayName,
			LinkExisting: p.LinkExisting, Create: p.Create,
		})
	}
}

// rateLimits are those of the configuration.
func rateLimits(l config.RateLimits) httpapi.RateLimits {
	out := httpapi.RateLimits{PerSecond: l.PerSecond, Burst: l.Burst, Classes: map[httpapi.Class]httpapi.Rate{}}
	for class, rate := range map[httpapi.Class]config.Rate{
		httpapi.ClassMessages: l.Messages, httpapi.ClassJoins: l.Joins, httpapi.ClassInvites: l.Invites, httpapi.ClassMedia: l.Media,
		httpapi.ClassAddresses: l.Addresses, httpapi.ClassLogIns: l.LogInsFrom, httpapi.ClassRegistrations: l.Registrations,
	} {
		perSecond, burst := rate.Limit()
		out.Classes[class] = httpapi.Rate{PerSecond: perSecond, Burst: burst}
	}
	return out
}

// applicationServices are the registered ones, with the enterprise service of this process.
func applicationServices(paths []string, reg *appservice.Registration) ([]*accounts.ApplicationService, error) {
	list, err := accounts.LoadRegistrations(paths...)
	if err != nil {
		return nil, usage{err}
	}
	if reg == nil {
		return list, nil
	}
	b, err := reg.YAML()
	if err != nil {
		return nil, err
	}
	own, err := accounts.ParseRegistration(b)
	if err != nil {
		return nil, err
	}
	return append(list, own), nil
}

func appserviceOptions(cfg *config.Config, reg *appservice.Registration, db *sqldb.DB) appservice.Options {
	a := &cfg.AppService
	opts := appservice.Options{
		DB: db, ServerName: cfg.ServerName, Registration: reg, HomeserverURL: a.HomeserverURL,
		ForeignHomeserver: a.PlainPasswords, Admins: a.Admins, Language: a.Language, Location: a.Location(),
		PublicURL: cfg.ClientAddress(), TrustedProxies: cfg.TrustedProxies(), Company: a.Company, GroupSuffix: a.GroupSuffix, NoAllStaff: !a.AllStaff,
		AllStaffName: a.AllStaffName, UnitHistory: a.UnitHistory, LoginRule: a.LoginRule, MaxLeave: a.MaxLeave,
		Concurrency: a.Concurrency, PrivateReceipts: a.PrivateReceipts, PasswordsDir: cfg.PasswordsDir(),
		Ding: appservice.DingOptions{
			PerMinute: a.DING.PerMinute, MaxReceivers: a.DING.MaxReceivers, Grace: a.DING.Grace.Std(),
			ConfirmWords: a.DING.Confirm,
		},
	}
	opts.Sites = siteOptions(&a.Sites)
	if l := cfg.Homeserver.RateLimits; l.Enabled {
		opts.RateLimits = httpapi.RateLimits{PerSecond: l.PerSecond, Burst: l.Burst}
	}
	return opts
}

// orgParts is what a command about the company needs when no server runs.
func orgParts(cfg *config.Config) parts {
	return parts{homeserver: cfg.AppService.HomeserverURL == "", appservice: true}
}

// orgControl answers the org commands.
func (s *stack) orgControl() http.Handler { return s.as.Operator() }

// start runs the background work. The function it returns stops it and waits: the
// enterprise service first, as it needs the homeserver. Each part sends its waiting
// clients home and answers the requests under way before it ends.
func (s *stack) start(fail func(error)) (stop func()) {
	var stops []func()
	if s.as != nil {
		stops = append(stops, background("enterprise service", func(ctx context.Context) error {
			err := s.as.Run(ctx)
			drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), partTime)
			defer cancel()
			return errors.Join(err, s.as.Drain(drain))
		}, fail))
	}
	if s.hs != nil {
		stops = append(stops, background("homeserver", s.hs.Run, fail))
	}
	if s.sms != nil {
		stops = append(stops, background("SMS bridge", func(ctx context.Context) error { return s.sms.Run(ctx, sms.Events{}) }, fail))
	}
	return func() {
		for _, stop := range stops {
			stop()
		}
	}
}

// background runs fn until stop, which waits a while for its end.
func background(name string, fn func(context.Context) error, fail func(error)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		err := fn(ctx)
		switch {
		case ctx.Err() != nil && err != nil:
			log.WithError(err).WithField("part", name).Warn("stopping")
		case ctx.Err() == nil:
			fail(fmt.Errorf("%s ended: %w", name, err))
		}
	}()
	return func() {
		cancel()
		select {
		case <-finished:
		case <-time.After(partTime):
			log.WithField("part", name).Warn("background work did not stop in time")
		}
	}
}

// close closes the databases.
func (s *stack) close() {
	if s.asDB != nil {
		if err := s.asDB.Close(); err != nil {
			log.WithError(err).Warn("closing the enterprise service's database")
		}
	}
	if s.hs != nil {
		if err := s.hs.Close(); err != nil {
			log.WithError(err).Warn("closing the homeserver")
		}
	}
}
