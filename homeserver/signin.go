package homeserver

import (
	"context"
	"errors"
	"strings"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/browser"
	"github.com/carillon-chat/carillon/homeserver/devices"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/oauth"
	"github.com/carillon-chat/carillon/homeserver/profiles"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sso"
	"github.com/carillon-chat/carillon/homeserver/threepids"
)

// SignIn says how people sign in, beside their password at the clients that they use.
type SignIn struct {
	// OAuth switches the OAuth 2.0 API on, where PublicURL is an address that clients accept for it.
	OAuth       bool
	NoPasswords bool // nobody logs in by password
	Providers   []sso.Provider
	// TrustedClients get log-in tokens without the person being asked; see sso.Options.
	TrustedClients []string
	ExtraCAs       []byte // PEM, for the providers
}

// signIn builds the pages of sign-in and account.
func (s *Server) signIn(ctx context.Context, db *sqldb.DB, acc *accounts.Accounts, dev *devices.Devices, prof *profiles.Profiles) ([]httpapi.Route, error) {
	o := s.opts.SignIn
	base := strings.TrimSuffix(s.opts.PublicURL, "/")
	switch {
	case len(o.Providers) > 0 && base == "":
		return nil, errors.New("the providers of single sign-on need the public address of the server")
	case o.OAuth && base != "" && !oauth.Possible(base):
		log.WithField("address", base).Warn("clients accept the OAuth 2.0 API over https only: it stays off")
		o.OAuth = false
	}
	o.OAuth = o.OAuth && base != ""
	if !o.OAuth && len(o.Providers) == 0 {
		return nil, nil
	}
	site := browser.New(browser.Options{
		BaseURL: base, PerSecond: s.opts.RateLimits.PerSecond, Burst: s.opts.RateLimits.Burst, Now: s.opts.Now,
	})
	var (
		routes []httpapi.Route
		single *sso.SSO
		err    error
	)
	if len(o.Providers) > 0 {
		single, err = sso.New(ctx, db, acc, site, sso.Options{
			Providers: o.Providers, TrustedClients: o.TrustedClients, BaseURL: base, ExtraCAs: o.ExtraCAs, Now: s.opts.Now,
		})
		if err != nil {
			return nil, err
		}
		routes = append(routes, single.Routes()...)
	}
	if o.OAuth {
		s.oauth, err = oauth.New(ctx, oauth.Parts{
			DB: db, Accounts: acc, Devices: dev, Profiles: prof, Site: site, SSO: single, BaseURL: base, Now: s.opts.Now,
		})
		if err != nil {
			return nil, err
		}
		if single != nil {
			single.UseSignIn(s.oauth.AwareLogin)
		}
		routes = append(routes, s.oauth.Routes()...)
		s.runs = append(s.runs, run{"oauth", s.oauth.Run})
	}
	return routes, nil
}

// showContacts lets the account page show how people are reached.
func (s *Server) showContacts(t *threepids.Threepids) {
	if s.oauth == nil {
		return
	}
	s.oauth.ShowContacts(func(ctx context.Context, user matrix.UserID) ([]string, error) {
		list, err := t.Of(ctx, user)
		if err != nil {
			return nil, err
		}
		shown := make([]string, len(list))
		for i, c := range list {
			shown[i] = c.Address
			if c.Medium == "msisdn" { // kept without the sign
				shown[i] = "+" + c.Address
			}
		}
		return shown, nil
	})
}

// authoriseReset makes the caller prove who they are before cross-signing keys are replaced.
func (s *Server) authoriseReset(c *httpapi.Call) error {
	if s.oauth != nil {
		return s.oauth.AuthoriseReset(c)
	}
	return s.accounts.UIA().Require(c)
}
