package homeserver

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/delayed"
	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/federation"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/livekit"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/policy"
)

// PolicyServer says whether this server judges the events of rooms that ask it to.
type PolicyServer struct {
	Enabled                           bool
	DenyUsers, DenyServers, DenyTexts []string // see policy.Options
	PerMinute                         int
}

// policy builds this server's part as a policy server.
func (s *Server) policy(remote *federation.Remote) error {
	o := s.opts.PolicyServer
	p, err := policy.New(s.rooms, policy.Options{
		Server: s.opts.ServerName, DataDir: s.opts.DataDir, Enabled: o.Enabled, DenyUsers: o.DenyUsers, DenyServers: o.DenyServers,
		DenyTexts: o.DenyTexts, PerMinute: o.PerMinute, Now: s.opts.Now,
	})
	if err != nil {
		return err
	}
	s.api.Add(p.Routes()...)
	s.askPolicy = func(ctx context.Context, server matrix.ServerName, pdu json.RawMessage) (json.RawMessage, error) {
		switch {
		case server == s.opts.ServerName:
			return p.Sign(ctx, server, pdu)
		case !s.opts.Federation.Enabled:
			return nil, matrix.NewError(502, "M_UNKNOWN", "the room's policy server %s cannot be reached: this server does not federate", server)
		}
		return remote.AskPolicy(ctx, server, pdu)
	}
	return nil
}

// Realtime is what calls and other uses of the moment need.
type Realtime struct {
	MaxDelay     time.Duration // of delayed events; 0: a day
	MaxScheduled int           // delayed events of a user; 0: 100, below 0: none
	// Transports are the servers for calls, as clients get them; each an object
	// with a type.
	Transports []json.RawMessage
	// The company's LiveKit server, where this server lets people into it itself:
	// see livekit.Options.
	LiveKitURL, LiveKitKey, LiveKitSecret string
}

// realtime builds delayed events.
func (s *Server) realtime(ctx context.Context, acc *accounts.Accounts, store *events.Store) error {
	o := &s.opts
	d, err := delayed.New(ctx, s.db, store, s.rooms, delayed.Options{
		MaxDelay: o.Realtime.MaxDelay, MaxScheduled: o.Realtime.MaxScheduled, PerSecond: o.RateLimits.PerSecond, Burst: o.RateLimits.Burst,
		MaySend: func(u matrix.UserID) error { return maySend(acc, u) }, Now: o.Now,
	})
	if err != nil {
		return err
	}
	s.delayed = d
	acc.OnDeactivate(func(ctx context.Context, u matrix.UserID, _ bool) error { return d.DeleteUser(ctx, u) })
	s.api.Add(d.Routes()...)
	s.api.Add(s.transports()...)
	s.runs = append(s.runs, run{"delayed events", d.Run}, run{"sticky events", s.rooms.Sticky().Run})
	return nil
}

// calls builds what lets people into the LiveKit servers, this company's and others'.
func (s *Server) calls(ctx context.Context, fed *federation.Federation, remote *federation.Remote) error {
	o := &s.opts
	lo := livekit.Options{
		Server: o.ServerName, URL: o.Realtime.LiveKitURL, Key: o.Realtime.LiveKitKey, Secret: o.Realtime.LiveKitSecret,
		Whose: fed.OpenIDUser, Delays: s.delayed, Now: o.Now,
	}
	if o.Federation.Enabled {
		lo.Ask = func(ctx context.Context, server matrix.ServerName, body any) (t livekit.Ticket, err error) {
			err = remote.CallToken(ctx, server, body, &t)
			return t, err
		}
	}
	k, err := livekit.New(ctx, s.db, s.rooms, lo)
	if err != nil {
		return err
	}
	s.api.Add(k.Routes()...)
	s.runs = append(s.runs, run{"participants of calls", k.Run})
	return nil
}

// maySend refuses what a user asked for while he still could.
func maySend(acc *accounts.Accounts, id matrix.UserID) error {
	u, ok := acc.User(id)
	switch {
	case !ok || u.Deactivated || u.Locked:
		return matrix.Forbidden("the account of %s is closed", id)
	case u.Suspended:
		return matrix.NewError(403, "M_USER_SUSPENDED", "the account is suspended")
	}
	return nil
}

// transports tell clients which servers carry calls.
// Spec: MSC4143, MSC4195
func (s *Server) transports() []httpapi.Route {
	return []httpapi.Route{{
		Method: "GET", Path: "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports", Auth: httpapi.AuthUser, RateLimit: true,
		AllowGuest: true, AllowSuspended: true,
		Handler: func(*httpapi.Call) (any, error) { return map[string]any{"rtc_transports": s.rtcTransports()}, nil },
	}}
}

// rtcTransports are the transports that clients are told of. Those that know no
// endpoints of the homeserver for them find a service at the address that is named.
func (s *Server) rtcTransports() []json.RawMessage {
	list := []json.RawMessage{}
	if s.opts.Realtime.LiveKitURL != "" {
		own := map[string]string{"type": "livekit"}
		if base := strings.TrimSuffix(s.opts.PublicURL, "/"); base != "" {
			own["livekit_service_url"] = base + livekit.Base
		}
		b, _ := json.Marshal(own) // strings cannot fail
		list = append(list, b)
	}
	return append(list, s.opts.Realtime.Transports...)
}
