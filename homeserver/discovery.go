package homeserver

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
)

// TURN is what clients are told about the TURN server.
type TURN struct {
	URIs         []string
	SharedSecret string // log-ins are made from it
	Username     string // fixed, where there is no shared secret
	Password     string
	Lifetime     time.Duration
}

// Support says whom to turn to about this server. Spec: getwell-knownmatrixsupport
type Support struct {
	Contacts []SupportContact
	Page     string // address
}

// SupportContact is somebody to turn to; User, Email or both are set.
type SupportContact struct {
	User  matrix.UserID `json:"matrix_id,omitempty"`
	Email string        `json:"email_address,omitempty"`
	Role  string        `json:"role"` // m.role.admin, m.role.security, or one of the company's own
}

// discovery is what a client asks before anything else.
// Spec: client-server-api#server-discovery, client-server-api#capabilities-negotiation
func (s *Server) discovery() []httpapi.Route {
	routes := []httpapi.Route{
		{Method: "GET", Path: "/_matrix/client/versions", Auth: httpapi.AuthOptional, AllowSuspended: true, AllowGuest: true, Handler: s.getVersions},
		{Method: "GET", Path: "/_matrix/client/v3/capabilities", Auth: httpapi.AuthUser, AllowSuspended: true, AllowGuest: true, Handler: s.getCapabilities},
		{Method: "GET", Path: "/_matrix/client/v3/voip/turnServer", Auth: httpapi.AuthUser, AllowGuest: true, Handler: s.getTURN},
		{Method: "GET", Path: "/.well-known/matrix/client", Auth: httpapi.AuthNone, Handler: s.getWellKnown},
		{Method: "GET", Path: "/.well-known/matrix/support", Auth: httpapi.AuthNone, Handler: s.getSupport},
	}
	if s.opts.Federation.WellKnown != "" {
		routes = append(routes, httpapi.Route{
			Method: "GET", Path: "/.well-known/matrix/server", Auth: httpapi.AuthNone,
			Handler: func(*httpapi.Call) (any, error) {
				return map[string]any{"m.server": s.opts.Federation.WellKnown}, nil
			},
		})
	}
	return routes
}

func (s *Server) getVersions(*httpapi.Call) (any, error) {
	return map[string]any{
		"versions": []string{
			"r0.0.1", "r0.1.0", "r0.2.0", "r0.3.0", "r0.4.0", "r0.5.0", "r0.6.0", "r0.6.1",
			"v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12",
			"v1.13", "v1.14", "v1.15", "v1.16", "v1.17", "v1.18", "v1.19",
		},
		"unstable_features": map[string]bool{
			"org.matrix.msc4140":                             s.opts.Realtime.MaxScheduled >= 0, // delayed events
			"org.matrix.msc4143":                             true,                              // transports of calls
			"org.matrix.msc4354":                             true,                              // sticky events
			"org.matrix.msc3391":                             true,                              // deletion of account data
			"org.matrix.msc3814":                             true,                              // dehydrated devices
			"org.matrix.msc4155":                             true,                              // filters of invitations
			"org.matrix.msc3874":                             true,                              // filters by relation
			"org.matrix.msc2836":                             true,                              // relations by m.relationship
			"org.matrix.msc4222":                             true,                              // state_after
			"uk.tcpip.msc4133.stable":                        true,                              // profile fields
			"com.beeper.msc4169":                             true,                              // redactions like other events
			"uk.half-shot.msc2666.query_mutual_rooms":        true,                              // rooms in common
			"uk.half-shot.msc2666.query_mutual_rooms.stable": true,
			"org.matrix.simplified_msc3575":                  true,               // sliding sync
			"org.matrix.msc4306":                             s.opts.ThreadRules, // thread subscriptions
		},
	}, nil
}

func (s *Server) getCapabilities(c *httpapi.Call) (any, error) {
	// With a session of the OAuth 2.0 API such things are done on the account pages.
	client, err := s.accounts.ClientOf(c.Ctx(), c.Caller)
	if err != nil {
		return nil, err
	}
	legacy := client == ""
	available := map[string]string{}
	for _, v := range rooms.Versions() {
		available[v] = "stable"
	}
	for _, v := range rooms.UnstableVersions() {
		available[v] = "unstable"
	}
	capabilities := map[string]any{
		"org.matrix.msc4140.delayed_events": s.delayed.Capability(),
		"m.room_versions":                   map[string]any{"default": s.rooms.DefaultVersion(), "available": available},
		"m.change_password":                 map[string]bool{"enabled": legacy && s.accounts.PasswordsAllowed()},
		"m.set_displayname":                 map[string]bool{"enabled": true},
		"m.set_avatar_url":                  map[string]bool{"enabled": true},
		"m.profile_fields":                  map[string]bool{"enabled": true},
		"m.3pid_changes":                    map[string]bool{"enabled": legacy && s.mayChange},
		"m.get_login_token":                 map[string]bool{"enabled": legacy},
	}
	if c.Caller.Admin {
		capabilities["m.account_moderation"] = map[string]bool{"suspend": true, "lock": true}
	}
	return map[string]any{"capabilities": capabilities}, nil
}

func (s *Server) getWellKnown(*httpapi.Call) (any, error) {
	if s.opts.PublicURL == "" {
		return nil, matrix.NotFound("nothing is published here")
	}
	body := map[string]any{"m.homeserver": map[string]string{"base_url": strings.TrimSuffix(s.opts.PublicURL, "/")}}
	if list := s.rtcTransports(); len(list) > 0 {
		body["org.matrix.msc4143.rtc_foci"] = list
	}
	if s.oauth != nil { // for clients of before auth_metadata
		auth := map[string]string{"issuer": s.oauth.Issuer(), "account": s.oauth.AccountURL()}
		body["m.authentication"], body["org.matrix.msc2965.authentication"] = auth, auth
	}
	return body, nil
}

func (s *Server) getSupport(*httpapi.Call) (any, error) {
	sup := s.opts.Support
	if len(sup.Contacts) == 0 && sup.Page == "" {
		return nil, matrix.NotFound("nothing is published here")
	}
	return struct {
		Contacts []SupportContact `json:"contacts,omitempty"`
		Page     string           `json:"support_page,omitempty"`
	}{sup.Contacts, sup.Page}, nil
}

// getTURN makes a log-in for the TURN server that is good for a while.
// Spec: client-server-api#voice-over-ip
func (s *Server) getTURN(c *httpapi.Call) (any, error) {
	t := s.opts.TURN
	if len(t.URIs) == 0 {
		return nil, nil
	}
	user, password := t.Username, t.Password
	if t.SharedSecret != "" {
		user = fmt.Sprintf("%d:%s", s.opts.Now().Add(t.Lifetime).Unix(), c.Caller.User)
		mac := hmac.New(sha1.New, []byte(t.SharedSecret)) // what TURN servers ask for
		mac.Write([]byte(user))
		password = base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	return map[string]any{"username": user, "password": password, "uris": t.URIs, "ttl": int(t.Lifetime.Seconds())}, nil
}
