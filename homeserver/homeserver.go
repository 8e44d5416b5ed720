// Package homeserver builds a whole Matrix homeserver of its parts, in one
// visible function, in the order of the floors: what stands later may use what
// stands earlier. The parts have no registry and find each other nowhere else.
//
// A server owns its database alone. Handler serves clients and other servers,
// FederationHandler other servers only, for a listener of its own.
package homeserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/accountdata"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/applications"
	"github.com/carillon-chat/carillon/homeserver/clientsync"
	"github.com/carillon-chat/carillon/homeserver/delayed"
	"github.com/carillon-chat/carillon/homeserver/devices"
	"github.com/carillon-chat/carillon/homeserver/directory"
	"github.com/carillon-chat/carillon/homeserver/e2ee"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/federation"
	"github.com/carillon-chat/carillon/homeserver/history"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/hub"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/media"
	"github.com/carillon-chat/carillon/homeserver/moderation"
	"github.com/carillon-chat/carillon/homeserver/notices"
	"github.com/carillon-chat/carillon/homeserver/oauth"
	"github.com/carillon-chat/carillon/homeserver/oldsync"
	"github.com/carillon-chat/carillon/homeserver/presence"
	"github.com/carillon-chat/carillon/homeserver/previews"
	"github.com/carillon-chat/carillon/homeserver/profiles"
	"github.com/carillon-chat/carillon/homeserver/push"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/relations"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/search"
	"github.com/carillon-chat/carillon/homeserver/serverkeys"
	"github.com/carillon-chat/carillon/homeserver/slidingsync"
	"github.com/carillon-chat/carillon/homeserver/spaces"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
	"github.com/carillon-chat/carillon/homeserver/subscriptions"
	"github.com/carillon-chat/carillon/homeserver/threepids"
	"github.com/carillon-chat/carillon/homeserver/typing"
)

// Options is what a server is built of. The zero values are usable but for
// ServerName, DataDir and Database.
type Options struct {
	ServerName matrix.ServerName
	DataDir    string // signing key and media
	Database   string // see sqldb.Open
	Version    string // of the program, shown to other servers

	DefaultRoomVersion string
	Registration       accounts.Registration
	Passwords          accounts.PasswordCost
	MinPassword        int
	LoginAttempts      float64 // a second, for one account; 0: not limited
	Admins             []matrix.UserID
	RateLimits         httpapi.RateLimits
	TrustedProxies     []netip.Prefix // see httpapi.Options
	Presence           bool

	ApplicationServices []*accounts.ApplicationService
	// Transports reaches application services in the same process, by ID.
	Transports map[string]http.RoundTripper

	Federation   Federation
	Media        Media
	Previews     Previews
	TURN         TURN
	Support      Support
	Realtime     Realtime
	Notices      *notices.Options // nil: no server notices. Server is filled in
	PolicyServer PolicyServer
	Contacts     Contacts
	SignIn       SignIn
	PublicURL    string // for /.well-known/matrix/client
	AllUsers     bool   // the user directory finds everybody of this server
	InsecurePush bool   // push gateways may be plain HTTP
	// ThreadRules and LegacyMentions add predefined push rules; see push.Options.
	ThreadRules, LegacyMentions bool
	Now                         matrix.Now
}

// Federation says how other servers are reached.
type Federation struct {
	Enabled bool
	// AllowPrivate permits connections to loopback and private addresses.
	AllowPrivate bool
	ExtraCAs     []byte // PEM
	// Allow are the only servers to talk to, "*.example.org" for all below;
	// empty: all.
	Allow     []string
	WellKnown string // host:port for /.well-known/matrix/server
}

// Media bounds files.
type Media struct {
	Dir               string
	MaxUpload         int64 // bytes
	MaxRemote         int64 // bytes
	MaxPixels         int
	DynamicThumbnails bool
	OpenDownloads     bool // new files on the deprecated endpoints too, without a token

	// The rest is as in media.Options.
	TypeLimits     []media.TypeLimit
	UserBytes      int64
	UserFiles      int64
	ServerBytes    int64
	RemoteBytes    int64
	RemoteFor      time.Duration
	LocalFor       time.Duration
	ThumbnailBytes int64
	MaxPending     int
	PendingFor     time.Duration
	Bucket         *media.Bucket
	Redirect       bool
	RedirectFrom   int64
	AVIF           []string
}

// Previews says whether pages that people link to are fetched for them.
type Previews struct {
	Enabled bool
	// AllowPrivate permits pages on loopback and private addresses.
	AllowPrivate bool
	// AllowNetworks are private networks whose pages are permitted, DenyNetworks those from which none is.
	AllowNetworks, DenyNetworks []netip.Prefix
	// Allow are the only hosts, Deny those that are left alone; see previews.Options.
	Allow, Deny []string
	Language    string // for clients that name none
}

// Server is a homeserver.
type Server struct {
	opts Options
	db   *sqldb.DB
	log  *stream.Log
	api  *httpapi.API
	hub  *hub.Hub

	accounts *accounts.Accounts
	oauth    *oauth.Server // nil when it is off
	rooms    *rooms.Rooms
	delayed  *delayed.Delayed
	// askPolicy shows an event to a policy server; see rooms.Options.
	askPolicy func(ctx context.Context, server matrix.ServerName, pdu json.RawMessage) (json.RawMessage, error)
	mayChange bool // people may change their addresses themselves
	client    *fedclient.Client
	runs      []run
}

// run is a part that works in the background.
type run struct {
	name string
	fn   func(context.Context) error
}

// New builds a server. Close it when done, also when Run was not called.
func New(ctx context.Context, o Options) (s *Server, err error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	db, err := sqldb.Open(o.Database)
	if err != nil {
		return nil, err
	}
	s = &Server{opts: o, db: db}
	if err := s.build(ctx); err != nil {
		s.Close()
		return nil, fmt.Errorf("building the homeserver: %w", err)
	}
	return s, nil
}

// build is the plan of the house, from the ground up.
func (s *Server) build(ctx context.Context) error {
	o, db := s.opts, s.db
	l, err := stream.Open(ctx, db)
	if err != nil {
		return err
	}
	s.log = l
	s.api = httpapi.New(httpapi.Options{RateLimits: o.RateLimits, TrustedProxies: o.TrustedProxies, Now: o.Now})
	s.hub = hub.New(l, o.ServerName)

	// Keys, and the way to other servers.
	own, err := serverkeys.Load(o.DataDir, o.ServerName)
	if err != nil {
		return err
	}
	guard := fedclient.Guard{}
	if o.Federation.AllowPrivate {
		guard = fedclient.Everywhere()
	}
	s.client, err = fedclient.New(fedclient.Options{
		Own: own, Guard: guard, ExtraCAs: o.Federation.ExtraCAs, UserAgent: "Carillon/" + o.Version, Now: o.Now,
		Allow: fedclient.AllowList(o.Federation.Allow),
	})
	if err != nil {
		return err
	}
	ring, err := serverkeys.NewRing(ctx, db, own, s.client, serverkeys.Options{Now: o.Now})
	if err != nil {
		return err
	}
	remote := federation.NewRemote(s.client, ring)

	// Accounts and what belongs to them.
	keys, err := e2ee.New(ctx, db, l, o.ServerName, o.Now)
	if err != nil {
		return err
	}
	dev, err := devices.New(ctx, db, l, keys)
	if err != nil {
		return err
	}
	acc, err := accounts.New(ctx, db, dev, accounts.Options{
		ServerName: o.ServerName, Registration: o.Registration, Passwords: o.Passwords, MinPassword: o.MinPassword,
		NoPasswords: o.SignIn.NoPasswords, LoginAttempts: o.LoginAttempts, ApplicationServices: o.ApplicationServices, Admins: o.Admins, Language: o.Contacts.Language, Now: o.Now,
	})
	if err != nil {
		return err
	}
	s.accounts = acc
	s.api.SetAuthenticator(acc)
	data, err := accountdata.New(ctx, db, l)
	if err != nil {
		return err
	}

	// Events and rooms. Profiles, the directory and application services stand
	// above rooms and are reached through these variables.
	store, err := events.New(ctx, db)
	if err != nil {
		return err
	}
	var (
		prof *profiles.Profiles
		dir  *directory.Directory
		apps *applications.Applications
		told *notices.Notices
	)
	// Whoever wants no invitations still gets those of application services' own
	// users, by which a company tells its people of rooms, and of the server itself.
	invite := func(sender, target matrix.UserID) accountdata.Verdict {
		v := data.Invites(sender, target)
		if v == accountdata.Allow || told != nil && told.Sender() == sender ||
			slices.ContainsFunc(acc.ApplicationServices(), func(as *accounts.ApplicationService) bool { return as.Sender(o.ServerName) == sender }) {
			return accountdata.Allow
		}
		return v
	}
	inviteBlocked := func(sender, target matrix.UserID) bool { return invite(sender, target) == accountdata.Block }
	inviteHidden := func(sender, target matrix.UserID) bool { return invite(sender, target) != accountdata.Allow }
	ro := rooms.Options{
		InviteBlocked:  inviteBlocked,
		Signer:         events.Signer{Server: o.ServerName, KeyID: string(own.KeyID()), Key: own.Private()},
		Now:            o.Now,
		DefaultVersion: o.DefaultRoomVersion,
		Profile: func(_ context.Context, u matrix.UserID) (string, string, error) {
			n := prof.Name(u)
			return n.DisplayName, n.AvatarURL, nil
		},
		Exists: func(ctx context.Context, u matrix.UserID) (bool, error) {
			if acc.Exists(u) {
				return true, nil
			}
			if ok, err := apps.QueryUser(ctx, u); !ok || err != nil {
				return false, err
			}
			return acc.Exists(u), nil
		},
		IsGuest: acc.IsGuest, Guests: acc.Guests,
		ClaimAlias: func(tx *sqldb.Tx, alias matrix.RoomAlias, room matrix.RoomID, creator matrix.UserID) error {
			return dir.ClaimAlias(tx, alias, room, creator)
		},
		Publish: func(tx *sqldb.Tx, room matrix.RoomID) error { return dir.Publish(tx, room) },
		AskPolicy: func(ctx context.Context, server matrix.ServerName, pdu json.RawMessage) (json.RawMessage, error) {
			return s.askPolicy(ctx, server, pdu)
		},
		Delay: func(c *httpapi.Call, d rooms.Draft) (any, error) { return s.delayed.Accept(c, d) },
		ResolveAlias: func(ctx context.Context, alias matrix.RoomAlias) (matrix.RoomID, []matrix.ServerName, error) {
			return dir.Resolve(ctx, alias)
		},
	}
	if o.Federation.Enabled {
		ro.Remote = remote
	}
	if o.Notices != nil {
		ro.MayLeave = func(ctx context.Context, u matrix.UserID, room matrix.RoomID) error {
			return told.MayLeave(ctx, u, room)
		}
	}
	r, err := rooms.New(ctx, db, l, store, s.hub, ro)
	if err != nil {
		return err
	}
	s.rooms = r
	if err := s.policy(remote); err != nil {
		return err
	}
	eo := e2ee.Deps{
		Devices: dev, Dehydration: dev, Rooms: s.hub, ShareNames: true,
		Authorise: s.authoriseReset,
	}
	po := profiles.Options{Server: o.ServerName, Now: o.Now}
	do := directory.Options{
		Log: l, Server: o.ServerName, AllUsers: o.AllUsers, Now: o.Now,
		AskServices: func(ctx context.Context, alias matrix.RoomAlias) (bool, error) { return apps.QueryAlias(ctx, alias) },
	}
	var far media.Remote
	if o.Federation.Enabled {
		eo.Remote, po.Remote, do.Remote, far = remote, remote, remote, s.client
	}

	sender, err := o.Contacts.sender()
	if err != nil {
		return fmt.Errorf("e-mail: %w", err)
	}

	// Features.
	places := receipts.NewPlaces(store, l)
	rec, err := receipts.New(ctx, db, l, o.ServerName, places, s.hub, data, o.Now)
	if err != nil {
		return err
	}
	typ := typing.New(l, s.hub, o.ServerName, o.Now)
	pres, err := presence.New(ctx, db, l, o.Presence, o.ServerName, s.hub, o.Now)
	if err != nil {
		return err
	}
	followed, err := subscriptions.New(ctx, db, l, places)
	if err != nil {
		return err
	}
	var contacts *threepids.Threepids
	ownsAddress := func(ctx context.Context, u matrix.UserID, address string) (bool, error) {
		return contacts.Owns(ctx, u, threepids.Email, address)
	}
	notify, err := push.New(ctx, db, l, store, s.hub, places, rec, push.Options{
		AllowInsecure: o.InsecurePush, Data: data, InviteHidden: inviteHidden, Threads: followed, ThreadRules: o.ThreadRules, LegacyMentions: o.LegacyMentions,
		Email: s.notifier(sender, own, ownsAddress), Now: o.Now,
	})
	if err != nil {
		return err
	}
	if prof, err = profiles.New(ctx, db, acc, r, po); err != nil {
		return err
	}
	if dir, err = directory.New(ctx, db, acc, prof, r, s.hub, do); err != nil {
		return err
	}

	so := spaces.Options{Server: o.ServerName, Now: o.Now}
	if o.Federation.Enabled {
		so.Remote = remote
	}
	tree := spaces.New(db, r, s.hub, dir, so)
	files, err := media.New(ctx, db, far, s.mediaOptions(func(u matrix.UserID, uri string) bool { return prof.Name(u).AvatarURL == uri }))
	if err != nil {
		return err
	}

	mod, err := moderation.New(ctx, moderation.Parts{
		DB: db, Log: l, Events: store, Hub: s.hub, Rooms: r, Accounts: acc, Data: data, Push: notify, Directory: dir, Now: o.Now,
	})
	if err != nil {
		return err
	}
	if err := s.realtime(ctx, acc, store); err != nil {
		return err
	}
	pages, err := s.previews(ctx, files)
	if err != nil {
		return err
	}

	rel, err := relations.New(ctx, db, l, store, data, o.Now)
	if err != nil {
		return err
	}
	rel.SetErasure(r.Erased)
	finder, err := search.New(ctx, search.Parts{DB: db, Log: l, Events: store, Rooms: r, Data: data, Bundler: rel, Now: o.Now})
	if err != nil {
		return err
	}

	// Readers of the log.
	syn := clientsync.New(clientsync.Parts{
		DB: db, Hub: s.hub, Events: store, Rooms: r, Data: data, Keys: keys, Receipts: rec, Typing: typ,
		Presence: pres, Push: notify, Bundler: rel, InviteBlocked: inviteHidden, Now: o.Now,
	})
	eo.Changes = syn.Changes
	crypto := e2ee.NewService(keys, eo)
	hist := history.New(history.Parts{
		DB: db, Log: l, Events: store, Hub: s.hub, Rooms: r, Data: data, Bundler: rel, Now: o.Now,
	})
	old := oldsync.New(oldsync.Parts{
		DB: db, Log: l, Hub: s.hub, Events: store, Rooms: r, Data: data, Presence: pres, History: hist,
		Published: dir.Published, InviteBlocked: inviteHidden, Now: o.Now,
	})
	apps, err = applications.New(ctx, db, l, applications.Sources{
		Events: store, Hub: s.hub, Receipts: rec, Typing: typ, Presence: pres, Aliases: dir,
	}, applications.Options{Server: o.ServerName, Services: o.ApplicationServices, Transports: o.Transports, Now: o.Now})
	if err != nil {
		return err
	}
	fed, err := federation.New(ctx, db, l, federation.Parts{
		Client: s.client, Hub: s.hub, Rooms: r, Events: store, Receipts: rec, Typing: typ, Presence: pres,
		Keys: crypto, Profiles: prof, Directory: dir, Media: files, Version: o.Version, Now: o.Now,
	})
	if err != nil {
		return err
	}

	if o.Notices != nil {
		no := *o.Notices
		no.Server = o.ServerName
		told, err = notices.New(ctx, notices.Parts{DB: db, Hub: s.hub, Rooms: r, Accounts: acc, Profiles: prof, Data: data}, no)
		if err != nil {
			return err
		}
		s.api.Add(told.Routes()...)
		acc.OnDeactivate(func(ctx context.Context, u matrix.UserID, _ bool) error {
			return db.Write(ctx, func(tx *sqldb.Tx) error { return told.DeleteUser(tx, u) })
		})
	}

	acc.OnCreate(prof.Created)
	signIn, err := s.signIn(ctx, db, acc, dev, prof)
	if err != nil {
		return err
	}
	contacts, err = s.contacts(ctx, db, acc, r, sender, func(ctx context.Context, u matrix.UserID, medium, address string) error {
		if medium != threepids.Email {
			return nil
		}
		return notify.DropEmail(ctx, u, address)
	})
	if err != nil {
		return err
	}
	s.showContacts(contacts)
	s.mayChange = contacts.MayChange()
	acc.OnDeactivate(func(ctx context.Context, u matrix.UserID, erase bool) error {
		if !erase {
			return nil
		}
		return r.Erase(ctx, u)
	})
	acc.OnDeactivateLater(func(ctx context.Context, u matrix.UserID, _ bool) error { return r.LeaveAll(ctx, u) })
	acc.OnDeactivate(func(ctx context.Context, u matrix.UserID, _ bool) error {
		return db.Write(ctx, func(tx *sqldb.Tx) error {
			if err := keys.DeleteUser(tx, u); err != nil {
				return err
			}
			if err := followed.DeleteUser(tx, u); err != nil {
				return err
			}
			return data.DeleteUser(tx, u)
		})
	})
	acc.OnDeactivate(func(ctx context.Context, u matrix.UserID, _ bool) error {
		return errors.Join(prof.Delete(ctx, u), notify.DeleteUser(ctx, u))
	})
	dev.OnDelete(accounts.DeviceHook{After: func(u matrix.UserID, ids []matrix.DeviceID) {
		for _, id := range ids {
			if err := notify.DeleteDevice(context.Background(), u, id); err != nil {
				log.WithError(err).WithField("user_id", u).Error("pushers of a deleted device are left")
			}
			if err := data.DeleteDevice(context.Background(), u, id); err != nil {
				log.WithError(err).WithField("user_id", u).Error("settings of a deleted device are left")
			}
		}
	}})

	readers := map[string]accountdata.Reader{
		push.EventType: func(_ context.Context, u matrix.UserID) (json.RawMessage, error) { return notify.Rules(u), nil },
	}
	for _, routes := range [][]httpapi.Route{
		s.discovery(), acc.Routes(), signIn, contacts.Routes(), dev.Routes(acc), data.Routes(readers), crypto.Routes(), r.Routes(), rec.Routes(),
		typ.Routes(), pres.Routes(), notify.Routes(), prof.Routes(), dir.Routes(), tree.Routes(), syn.Routes(), slidingsync.New(syn, followed).Routes(), hist.Routes(), old.Routes(), followed.Routes(hist), rel.Routes(hist), finder.Routes(), apps.Routes(), files.Routes(), mod.Routes(), fed.OpenIDRoutes(),
	} {
		s.api.Add(limited(routes)...)
	}
	if o.Previews.Enabled {
		s.api.Add(pages.Routes()...)
	}
	if o.Federation.Enabled {
		s.api.SetOriginVerifier(federation.NewVerifier(ring, fed.Alive).Only(s.client.Allowed))
		s.api.Add(fed.Routes()...)
		s.api.Add(fed.AdminRoutes()...)
		s.api.Add(tree.FederationRoutes()...)
		s.api.Add(ring.Routes()...)
		s.runs = append(s.runs, run{"federation", fed.Run})
	}
	s.runs = append(s.runs, run{"accounts", acc.Run}, run{"contacts", contacts.Run}, run{"devices", dev.Run}, run{"keys", keys.Run}, run{"guests", r.RunGuests}, run{"receipts", rec.Run},
		run{"typing", typ.Run}, run{"presence", pres.Run}, run{"push", notify.Run}, run{"profiles", prof.Run}, run{"applications", apps.Run}, run{"media", files.Run}, run{"search", finder.Run}, run{"previews", pages.Run}, run{"moderation", mod.Run})
	return acc.CheckStages()
}

// Handler serves clients, and other servers where they have no listener of
// their own.
func (s *Server) Handler() http.Handler { return s.api }

// Listener wraps the listener that Handler is served on, so that clients which
// wait cost less.
func (s *Server) Listener(l net.Listener) *httpapi.Listener { return s.api.Listener(l) }

// FederationHandler serves other servers only.
func (s *Server) FederationHandler() http.Handler {
	return s.api.Only("/_matrix/federation/", "/_matrix/policy/", "/_matrix/key/", "/.well-known/matrix/server", "/.well-known/matrix/policy_server")
}

// Accounts is the server's accounts, for the command line and for tests.
func (s *Server) Accounts() *accounts.Accounts { return s.accounts }

// Rooms is the server's rooms, for tests.
func (s *Server) Rooms() *rooms.Rooms { return s.rooms }

// DB is the server's database, for tests.
func (s *Server) DB() *sqldb.DB { return s.db }

// Hub is the server's read model, for tests.
func (s *Server) Hub() *hub.Hub { return s.hub }

// Run works until ctx ends: the log, and the parts that follow it. Then the
// requests under way are answered, and what was appended is committed.
func (s *Server) Run(ctx context.Context) error {
	logCtx, stopLog := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLog()
	var logged sync.WaitGroup
	logged.Go(func() { s.guard("log", func() error { return s.log.Run(logCtx) }) })
	var parts sync.WaitGroup
	for _, r := range s.runs {
		parts.Go(func() { s.guard(r.name, func() error { return r.fn(ctx) }) })
	}
	<-ctx.Done()
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), 8*time.Second)
	defer cancel()
	if err := s.api.Drain(drain); err != nil {
		log.WithError(err).Warn("some requests were still under way at the end")
	}
	parts.Wait()
	stopLog()
	logged.Wait()
	return nil
}

// guard names a part in the log when it fails or panics.
func (s *Server) guard(name string, fn func() error) {
	defer func() {
		if p := recover(); p != nil {
			log.WithField("part", name).WithField("panic", p).Error("a part of the server failed")
		}
	}()
	if err := fn(); err != nil && !errors.Is(err, context.Canceled) {
		log.WithError(err).WithField("part", name).Error("a part of the server ended early")
	}
}

// Close lets go of the database and of connections.
func (s *Server) Close() error {
	if s.client != nil {
		s.client.Close()
	}
	return s.db.Close()
}

// previews are built also where none are given, so that old ones go.
func (s *Server) previews(ctx context.Context, files *media.Store) (*previews.Previews, error) {
	o := &s.opts.Previews
	guard := fedclient.Guard{}
	if o.AllowPrivate {
		guard = fedclient.Everywhere()
	}
	guard.Allow, guard.Deny = append(guard.Allow, o.AllowNetworks...), o.DenyNetworks
	return previews.New(ctx, s.db, files, previews.Options{
		Server: s.opts.ServerName, Guard: guard, UserAgent: "Carillon/" + s.opts.Version + " (link preview bot)", Now: s.opts.Now,
		Allow: o.Allow, Deny: o.Deny, Language: o.Language,
	})
}

// mediaOptions are the settings of the media store. inUse says that an upload is somebody's avatar.
func (s *Server) mediaOptions(inUse func(matrix.UserID, string) bool) media.Options {
	m := &s.opts.Media
	return media.Options{
		Server: s.opts.ServerName, Dir: s.mediaDir(), Bucket: m.Bucket, Redirect: m.Redirect, RedirectFrom: m.RedirectFrom,
		MaxUpload: m.MaxUpload, MaxRemote: m.MaxRemote, MaxPixels: m.MaxPixels, TypeLimits: m.TypeLimits,
		FixedSizes: !m.DynamicThumbnails, OpenDownloads: m.OpenDownloads,
		UserBytes: m.UserBytes, UserFiles: m.UserFiles, ServerBytes: m.ServerBytes, RemoteBytes: m.RemoteBytes,
		RemoteFor: m.RemoteFor, LocalFor: m.LocalFor, ThumbnailBytes: m.ThumbnailBytes,
		InUse:  func(u matrix.UserID, uri string) bool { return inUse(u, uri) || s.isIcon(uri) },
		Public: s.isIcon, AVIF: m.AVIF, MaxPending: m.MaxPending, PendingFor: m.PendingFor, Now: s.opts.Now,
	}
}

// mediaDir is where files are kept.
func (s *Server) mediaDir() string {
	if s.opts.Media.Dir != "" {
		return s.opts.Media.Dir
	}
	return filepath.Join(s.opts.DataDir, "media")
}

// isIcon says that a picture stands on a button of the sign-in page, which people see who have no token yet.
func (s *Server) isIcon(uri string) bool {
	for _, p := range s.opts.SignIn.Providers {
		if p.Icon == uri {
			return true
		}
	}
	return false
}
