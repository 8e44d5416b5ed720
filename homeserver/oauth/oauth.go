// Package oauth is the OAuth 2.0 API: Carillon as its own authorization server, with the pages on which people sign in,
// let a client in, and look after their account and devices.
//
// Tables: oauth_clients, oauth_codes, oauth_device_codes, oauth_browsers, oauth_resets, oauth_keys. The tokens of
// sessions are those of accounts.
//
// Spec: client-server-api#oauth-20-api, RFC 6749, 7009, 7591, 7636, 8252, 8414, 8628, 9207, 9700.
//
// Invariants: a code is good once, for the client, the address and the verifier that it was made for; tokens and the
// end of their code are one commit; a session is a device, and ends with it; what a stranger may make (clients, device
// codes) is bounded in number and goes by itself. Of codes and cookies only the SHA-256 is stored.
package oauth

import (
	"context"
	"crypto/sha256"
	"embed"
	"net/http"
	"strings"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/browser"
	"github.com/carillon-chat/carillon/homeserver/devices"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/profiles"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sso"
)

//go:embed schema
var schema embed.FS

//go:embed pages
var templates embed.FS

// Parts is what an authorization server is built of.
type Parts struct {
	DB       *sqldb.DB
	Accounts *accounts.Accounts
	Devices  *devices.Devices
	Profiles *profiles.Profiles
	Site     *browser.Site
	SSO      *sso.SSO // nil: no provider
	BaseURL  string   // where clients and people reach the server: https, or http on this machine
	Now      matrix.Now
}

// Server is the authorization server. Its methods are safe for concurrent use.
type Server struct {
	Parts
	issuer string
	pages  *browser.Pages
	polls  polls
	typed  *gate.Limiter[matrix.UserID] // user codes that one person may try
	// contacts are the addresses of a user, nil where nobody keeps them.
	contacts func(ctx context.Context, user matrix.UserID) ([]string, error)

	keyMu sync.Mutex
	key   *signingKey
}

// Possible says whether an address can be an issuer: clients accept https, and http on their own machine.
func Possible(baseURL string) bool {
	if strings.HasPrefix(baseURL, "https://") {
		return true
	}
	u := parseURI(baseURL)
	return u != nil && u.Scheme == "http" && isLoopback(u.Hostname())
}

// New prepares the tables.
func New(ctx context.Context, p Parts) (*Server, error) {
	if err := p.DB.Migrate(ctx, "oauth", schema); err != nil {
		return nil, err
	}
	if p.Now == nil {
		p.Now = time.Now
	}
	p.BaseURL = strings.TrimSuffix(p.BaseURL, "/")
	o := &Server{
		Parts: p, issuer: p.BaseURL + "/", pages: p.Site.Parse(templates),
		typed: gate.NewLimiter[matrix.UserID](1.0/6, 10, 20_000, p.Now),
	}
	p.Accounts.OnDeactivate(func(ctx context.Context, user matrix.UserID, _ bool) error { return o.forget(ctx, user) })
	p.Accounts.OnPassword(func(tx *sqldb.Tx, user matrix.UserID) error { // whoever knew the old one is out
		_, err := tx.Exec(qUserBrowsers, string(user))
		return err
	})
	uia := p.Accounts.UIA()
	uia.AddExternal(stageOAuth, accounts.External{Params: o.resetParams})
	uia.AddExternal(stageOAuthOld, accounts.External{Params: o.resetParams})
	if p.SSO != nil {
		p.SSO.OnSignIn(o.signedIn)
	}
	return o, nil
}

// ShowContacts lets the account page show the e-mail addresses and telephone numbers of people. Call it before serving.
func (o *Server) ShowContacts(of func(ctx context.Context, user matrix.UserID) ([]string, error)) {
	o.contacts = of
}

// The addresses of the endpoints and pages.
const (
	pathAuthorize = "/_carillon/oauth/authorize"
	pathToken     = "/_carillon/oauth/token"
	pathRevoke    = "/_carillon/oauth/revoke"
	pathRegister  = "/_carillon/oauth/register"
	pathDevice    = "/_carillon/oauth/device"
	pathKeys      = "/_carillon/oauth/keys"
	pathLink      = "/_carillon/link"
	pathAccount   = "/_carillon/account"
	pathLogin     = pathAccount + "/login"
	pathSignUp    = pathAccount + "/register"
)

// maxForm bounds what a page or an endpoint takes, in bytes.
const maxForm = 64 << 10

// Routes are the endpoints and pages of this package.
func (o *Server) Routes() []httpapi.Route {
	const get, post = http.MethodGet, http.MethodPost
	open := func(method, path string, limited bool, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: method, Path: path, RateLimit: limited, MaxBody: maxForm, Handler: h}
	}
	routes := []httpapi.Route{
		open(get, "/_matrix/client/v1/auth_metadata", false, o.metadata),
		open(get, "/_matrix/client/unstable/org.matrix.msc2965/auth_metadata", false, o.metadata),
		open(get, "/_matrix/client/unstable/org.matrix.msc2965/auth_issuer", false, o.authIssuer),
		open(get, "/.well-known/openid-configuration", false, o.metadata),
		open(get, "/.well-known/oauth-authorization-server", false, o.metadata),
		open(get, pathKeys, false, o.publicKeys),
		open(post, pathRegister, true, o.register),
		// Not limited: clients take a refusal to refresh as the end of their session, and tokens cannot be guessed.
		open(post, pathToken, false, o.token),
		open(post, pathRevoke, true, o.revoke),
		open(post, pathDevice, true, o.deviceAuthorization),
		open(get, "/_matrix/client/v3/auth/"+stageOAuth+"/fallback/web", false, o.resetFallback),
		open(get, "/_matrix/client/v3/auth/"+stageOAuthOld+"/fallback/web", false, o.resetFallback),
	}
	if u := parseURI(o.issuer); u != nil && strings.Trim(u.Path, "/") != "" {
		// RFC 8414 puts the well-known part before the path of the issuer.
		routes = append(routes, open(get, "/.well-known/oauth-authorization-server"+strings.TrimSuffix(u.Path, "/"), false, o.metadata))
	}
	for _, p := range []struct {
		path      string
		get, post browser.Handler
	}{
		{pathAuthorize, o.authorizePage, o.authorizeForm},
		{pathLink, o.linkPage, o.linkForm},
		{pathLogin, o.loginPage, o.loginForm},
		{pathSignUp, o.signUpPage, o.signUpForm},
		{pathAccount + "/sso/{provider}", o.ssoPage, nil},
		{pathAccount + "/logout", nil, o.logoutForm},
		{pathAccount + "/client", o.awarePage, o.awareForm},
		{pathAccount, o.accountPage, o.accountForm},
		{pathAccount + "/password", o.passwordPage, o.passwordForm},
		{pathAccount + "/devices", o.devicesPage, nil},
		{pathAccount + "/devices/{deviceId}", o.devicePage, o.deviceForm},
		{pathAccount + "/reset", o.resetPage, o.resetForm},
		{pathAccount + "/deactivate", o.deactivatePage, o.deactivateForm},
	} {
		if p.get != nil {
			routes = append(routes, open(get, p.path, false, o.pages.Handle(p.get)))
		}
		if p.post != nil {
			routes = append(routes, open(post, p.path, false, o.pages.Handle(p.post)))
		}
	}
	return routes
}

func hash(s string) []byte {
	h := sha256.Sum256([]byte(s))
	return h[:]
}

// forget ends what a user has in the browser and under way.
func (o *Server) forget(ctx context.Context, user matrix.UserID) error {
	return o.DB.Write(ctx, func(tx *sqldb.Tx) error {
		for _, q := range []string{qUserCodes, qUserDevices, qUserReset} {
			if _, err := tx.Exec(q, string(user)); err != nil {
				return err
			}
		}
		_, err := tx.Exec(qUserBrowsers, string(user))
		return err
	})
}

// cleanupEvery is how often what has expired is removed.
const cleanupEvery = 30 * time.Minute

// Run removes what has expired, and clients that nobody uses, until ctx ends.
func (o *Server) Run(ctx context.Context) error {
	for {
		if err := o.Cleanup(ctx); err != nil && ctx.Err() == nil {
			log.WithError(err).Warn("removing expired grants failed")
		}
		if gate.Sleep(ctx, gate.Spread(cleanupEvery, 0.2)) != nil {
			return nil
		}
	}
}

// Cleanup removes what has expired, once.
func (o *Server) Cleanup(ctx context.Context) error {
	now := o.Now()
	o.polls.cleanup(now)
	err := o.DB.Write(ctx, func(tx *sqldb.Tx) error {
		for _, q := range []string{qOldBrowsers, qOldResets} {
			if _, err := tx.Exec(q, matrix.Millis(now)); err != nil {
				return err
			}
		}
		// Kept a little, so that a code shown twice is recognised and a late poll is told the reason.
		for _, q := range []string{qOldCodes, qOldDevices} {
			if _, err := tx.Exec(q, matrix.Millis(now.Add(-10*time.Minute))); err != nil {
				return err
			}
		}
		_, err := tx.Exec(qDropUnused, matrix.Millis(now.Add(-unusedKept)))
		return err
	})
	if err != nil {
		return err
	}
	return o.dropClients(ctx, now)
}
