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
	"os"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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
	figures   *prometheus.Registry // nil where nobody reads them
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
	s.api = httpapi.New(httpapi.Options{RateLimits: o.RateLimits, TrustedProxies: o.TrustedProxies, Now: o.Now, Observe: s.measure()})
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
	ring, err := serverkeys.NewRing(ctx, db, own, s.client, serverkeys.Options{Now: o.Now, Notaries: o.Federation.Notaries})
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
		Metrics: s.registerer(),
	})
	if err != nil {
		return err
	}

	if err := s.calls(ctx, fed, remote); err != nil {
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

	var others *fedclient.Client
	if o.Federation.Enabled {
		others = s.client
	}
	readers := map[string]accountdata.Reader{
		push.EventType: func(_ context.Context, u matrix.UserID) (json.RawMessage, error) { return notify.Rules(u), nil },
	}
	for _, routes := range [][]httpapi.Route{
		s.discovery(), acc.Routes(), signIn, contacts.Routes(), dev.Routes(acc), data.Routes(readers), crypto.Routes(), r.Routes(), rec.Routes(),
		typ.Routes(), pres.Routes(), notify.Routes(), prof.Routes(), dir.Routes(), tree.Routes(), syn.Routes(), slidingsync.New(syn, followed).Routes(), hist.Routes(), old.Routes(), followed.Routes(hist), rel.Routes(hist), rel.GraphRoutes(hist, r, others), finder.Routes(), apps.Routes(), files.Routes(), mod.Routes(), fed.OpenIDRoutes(),
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
	s.runs = append(s.runs, run{"accounts", acc.Run}, run{"contacts", contacts.Run}, run{"devices", dev.Run}, run{"keys", keys.Run}, run{"guests", r.RunGuests}, run{"ends", r.RunEnds}, run{"silences", r.RunSilences}, run{"receipts", rec.Run},
		run{"typing", typ.Run}, run{"presence", pres.Run}, run{"push", notify.Run}, run{"profiles", prof.Run}, run{"applications", apps.Run}, run{"media", files.Run}, run{"search", finder.Run}, run{"previews", pages.Run}, run{"moderation", mod.Run})
	return acc.CheckStages()
}
