// Package sso lets people sign in at the company's OpenID Connect provider: m.login.sso for clients, the same for the
// pages of the OAuth 2.0 API, and as a stage of interactive authentication.
//
// Tables: sso_identities (who is who), sso_keys.
//
// Spec: client-server-api#sso-client-loginauthentication, OpenID Connect Core 1.0, RFC 7636, RFC 9700
//
// Invariants: what a sign-in under way has to remember is sealed in a cookie of that browser, for ten minutes, and an
// answer of the provider is taken only from the browser that was sent there; each provider has a callback of its own,
// so that one cannot answer for another; an existing account is given to an identity only by the administrator's rule
// or by its password; a log-in token goes to an address only that is trusted or that the person was shown.
package sso

import (
	"context"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/browser"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

//go:embed schema
var schema embed.FS

//go:embed pages
var templates embed.FS

// Options are the providers and what to trust.
type Options struct {
	Providers      []Provider
	TrustedClients []string // beginnings of addresses that get a log-in token without the person being asked
	BaseURL        string   // where people reach the server
	ExtraCAs       []byte   // PEM, beside the system's
	Now            matrix.Now
}

// SSO is the package's door. Its methods are safe for concurrent use.
type SSO struct {
	db        *sqldb.DB
	accounts  *accounts.Accounts
	opts      Options
	now       matrix.Now
	pages     *browser.Pages
	providers []*provider
	seal      *sealer

	signedIn func(v *browser.Visit, user matrix.UserID, then string, authAt int64) (any, error)
	aware    func(v *browser.Visit, redirectURL, action string) (any, error)
}

const (
	qSecret       = `SELECT secret FROM sso_keys WHERE id = 1`
	qInsertSecret = `INSERT INTO sso_keys (id, secret) VALUES (1, $1)`
	qIdentity     = `SELECT user_id FROM sso_identities WHERE provider = $1 AND subject = $2`
	qOfUser       = `SELECT provider, subject FROM sso_identities WHERE user_id = $1 ORDER BY provider, subject LIMIT 100`
	qLink         = `INSERT INTO sso_identities (provider, subject, user_id, created_at) VALUES ($1, $2, $3, $4)
 ON CONFLICT (provider, subject) DO NOTHING`
	qUnlink = `DELETE FROM sso_identities WHERE provider = $1 AND subject = $2 AND user_id = $3`
)

// New checks the providers, without reaching for them, and offers them to clients.
func New(ctx context.Context, db *sqldb.DB, acc *accounts.Accounts, site *browser.Site, opts Options) (*SSO, error) {
	if err := db.Migrate(ctx, "sso", schema); err != nil {
		return nil, err
	}
	s := &SSO{db: db, accounts: acc, opts: opts, now: opts.Now, pages: site.Parse(templates)}
	if s.now == nil {
		s.now = time.Now
	}
	client, err := newHTTPClient(opts.ExtraCAs)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, o := range opts.Providers {
		p, err := newProvider(o, client, site.URL(pathCallback+o.ID), s.now)
		if err != nil {
			return nil, fmt.Errorf("provider %q: %w", o.ID, err)
		}
		if seen[o.ID] {
			return nil, fmt.Errorf("two providers have the id %q", o.ID)
		}
		seen[o.ID] = true
		s.providers = append(s.providers, p)
	}
	secret, err := s.secret(ctx)
	if err != nil {
		return nil, err
	}
	if s.seal, err = newSealer(secret, s.now); err != nil {
		return nil, err
	}
	if len(s.providers) > 0 {
		acc.OfferSSO(s.flow)
		acc.UIA().AddExternal(accounts.StageSSO, accounts.External{})
		acc.UIA().UseSSO(func(ctx context.Context, user matrix.UserID) (bool, error) {
			list, err := s.of(ctx, user)
			return len(list) > 0, err
		})
	}
	return s, nil
}

// OnSignIn says what happens when somebody comes back who wanted to see a page of this server. authAt is when they have
// proven to the provider who they are, in milliseconds, 0 if that is not known. Call it before serving.
func (s *SSO) OnSignIn(fn func(v *browser.Visit, user matrix.UserID, then string, authAt int64) (any, error)) {
	s.signedIn = fn
}

// UseSignIn sends clients that name no provider to a sign-in page of another package, which has the providers on it
// and passwords too. Clients are told to prefer it. Call it before serving.
func (s *SSO) UseSignIn(fn func(v *browser.Visit, redirectURL, action string) (any, error)) {
	s.aware = fn
}

// secret reads the sealing key, or makes it.
func (s *SSO) secret(ctx context.Context) (secret []byte, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qSecret).Scan(&secret) })
	if err == nil {
		return secret, nil
	}
	if !errors.Is(err, sqldb.ErrNoRows) {
		return nil, fmt.Errorf("reading key: %w", err)
	}
	secret = make([]byte, 32)
	rand.Read(secret) // never fails: it ends the program instead
	err = s.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qInsertSecret, secret)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("storing key: %w", err)
	}
	return secret, nil
}

// The addresses of this package.
const (
	pathCallback = "/_carillon/sso/callback/"
	pathConfirm  = "/_carillon/sso/confirm"
	pathLink     = "/_carillon/sso/link"
	pathFallback = "/_matrix/client/v3/auth/m.login.sso/fallback/web"
	pathRedirect = "/_matrix/client/v3/login/sso/redirect"
	adminUsers   = "/_carillon/admin/v1/users/{userId}/identities"
)

// Routes are the endpoints and pages of this package.
func (s *SSO) Routes() []httpapi.Route {
	page := func(method, path string, h browser.Handler) httpapi.Route {
		return httpapi.Route{Method: method, Path: path, MaxBody: 64 << 10, Handler: s.pages.Handle(h)}
	}
	admin := func(method, path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: method, Path: path, Auth: httpapi.AuthAdmin, MaxBody: 64 << 10, Handler: h}
	}
	return []httpapi.Route{
		page(http.MethodGet, pathRedirect, s.redirect),
		page(http.MethodGet, pathRedirect+"/{idpId}", s.redirectTo),
		page(http.MethodGet, pathFallback, s.fallback),
		page(http.MethodGet, pathCallback+"{provider}", s.callback),
		page(http.MethodPost, pathConfirm, s.confirm),
		page(http.MethodPost, pathLink, s.linkForm),
		admin(http.MethodGet, adminUsers, s.listIdentities),
		admin(http.MethodPost, adminUsers, s.addIdentity),
		admin(http.MethodDelete, adminUsers+"/{provider}/{subject}", s.removeIdentity),
	}
}

// Choice is a provider as people see it.
type Choice struct{ ID, Name string }

// Providers are those that people can choose from.
func (s *SSO) Providers() []Choice {
	list := make([]Choice, len(s.providers))
	for i, p := range s.providers {
		list[i] = Choice{p.ID, p.Name}
	}
	return list
}

func (s *SSO) provider(id string) *provider {
	for _, p := range s.providers {
		if p.ID == id {
			return p
		}
	}
	return nil
}

// flow is m.login.sso in the answer of GET /login.
// Spec: client-server-api#definition-mloginsso-flow-schema
func (s *SSO) flow() any {
	type idp struct {
		ID    string `json:"id"`
		Name  string `json:"name"`
		Icon  string `json:"icon,omitempty"`
		Brand string `json:"brand,omitempty"`
	}
	f := struct {
		Type      string `json:"type"`
		Providers []idp  `json:"identity_providers"`
		Preferred bool   `json:"oauth_aware_preferred,omitempty"`
		Old       bool   `json:"org.matrix.msc3824.delegated_oidc_compatibility,omitempty"`
	}{Type: accounts.StageSSO, Preferred: s.aware != nil, Old: s.aware != nil}
	for _, p := range s.providers {
		f.Providers = append(f.Providers, idp{p.ID, p.Name, p.Icon, p.Brand})
	}
	return f
}

// identity is who somebody is at a provider.
type identity struct{ Provider, Subject string }

// of are the identities of a user at the providers that there are.
func (s *SSO) of(ctx context.Context, user matrix.UserID) ([]identity, error) {
	var list []identity
	err := s.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		list, err = sqldb.Select(tx, func(r *sqldb.Rows) (i identity, err error) {
			err = r.Scan(&i.Provider, &i.Subject)
			return i, err
		}, qOfUser, string(user))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading identities: %w", err)
	}
	there := list[:0]
	for _, i := range list {
		if s.provider(i.Provider) != nil {
			there = append(there, i)
		}
	}
	return there, nil
}

// Linked names the providers at which a user can sign in.
func (s *SSO) Linked(ctx context.Context, user matrix.UserID) ([]string, error) {
	list, err := s.of(ctx, user)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, i := range list {
		names = append(names, s.provider(i.Provider).Name)
	}
	return names, nil
}

// link gives an account to an identity, which must not have one.
func (s *SSO) link(tx *sqldb.Tx, i identity, user matrix.UserID, now time.Time) error {
	n, err := tx.Exec(qLink, i.Provider, i.Subject, string(user), matrix.Millis(now))
	if err == nil && n == 0 {
		return errLinked
	}
	return err
}

var errLinked = errors.New("this identity has an account already")
