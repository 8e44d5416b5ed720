package appservice

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"sync"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// How long the homeserver's word on a token is believed, and on how many tokens.
const (
	tokenBelieved = time.Minute
	tokenRefused  = 5 * time.Second
	maxTokens     = 20_000
)

// authenticator knows the callers of /_carillon/v1 by asking the homeserver whose token they bear. Tokens are kept as
// hashes only.
type authenticator struct {
	svc *Service

	mu     sync.Mutex
	tokens map[[sha256.Size]byte]tokenOwner
}

type tokenOwner struct {
	who   mxclient.WhoAmI
	err   *matrix.Error // the refusal, if it is one
	until time.Time
}

// Authenticate implements httpapi.Authenticator. What the tree says of the person counts at once; the cache only
// spares the question whose token it is.
func (a *authenticator) Authenticate(r *http.Request) (*httpapi.Caller, error) {
	token := bearer(r)
	if token == "" {
		return nil, matrix.MissingToken()
	}
	owner, err := a.owner(r.Context(), token)
	if err != nil {
		return nil, err
	}
	if owner.err != nil {
		return nil, owner.err
	}
	user := string(owner.who.User)
	if p := a.svc.personOf(user); p != nil && p.Status == org.StatusLeft {
		return nil, matrix.Forbidden("%s has left the company", user)
	}
	return &httpapi.Caller{
		User: matrix.UserID(user), Device: matrix.DeviceID(owner.who.Device), Guest: owner.who.Guest, Admin: a.svc.isAdmin(user),
	}, nil
}

func (a *authenticator) owner(ctx context.Context, token string) (tokenOwner, error) {
	key := sha256.Sum256([]byte(token))
	now := a.svc.now()
	a.mu.Lock()
	o, ok := a.tokens[key]
	a.mu.Unlock()
	if ok && now.Before(o.until) {
		return o, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	who, err := a.svc.mx.WhoAmI(ctx, token)
	var refused mautrix.RespError
	switch {
	case err == nil:
		o = tokenOwner{who: *who, until: now.Add(tokenBelieved)}
	case errors.As(err, &refused) && (refused.StatusCode == http.StatusUnauthorized || refused.StatusCode == http.StatusForbidden):
		e := matrix.NewError(refused.StatusCode, refused.ErrCode, "the homeserver refuses the token")
		if soft, ok := refused.ExtraData["soft_logout"].(bool); ok {
			e = e.With("soft_logout", soft)
		}
		o = tokenOwner{err: e, until: now.Add(tokenRefused)}
	default:
		return o, matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "the homeserver does not say whose token this is")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.tokens) >= maxTokens {
		a.shrink(now)
	}
	a.tokens[key] = o
	return o, nil
}

// shrink drops what is no longer believed, and some of the rest if that is not enough. The lock is held.
func (a *authenticator) shrink(now time.Time) {
	for k, o := range a.tokens {
		if now.After(o.until) {
			delete(a.tokens, k)
		}
	}
	for k := range a.tokens {
		if len(a.tokens) < maxTokens*3/4 {
			return
		}
		delete(a.tokens, k)
	}
}

// operator is the authenticator of the operator's own socket: who can open it is the administrator.
type operator struct{ bot id.UserID }

// Authenticate implements httpapi.Authenticator.
func (o operator) Authenticate(*http.Request) (*httpapi.Caller, error) {
	return &httpapi.Caller{User: matrix.UserID(o.bot), Admin: true}, nil
}

// personOf is the person behind a user of any site, nil if there is none.
func (s *Service) personOf(user string) *org.Person {
	return s.sites.PersonOf(s.store.Tree(), id.UserID(user))
}

// isAdmin reports whether a user may do everything: by configuration, by the company file, or as the service itself.
func (s *Service) isAdmin(user string) bool {
	if s.admins[user] || user == string(s.mx.BotID()) {
		return true
	}
	p := s.personOf(user)
	return p != nil && p.Admin && p.Working()
}

// employee is the person of the caller. Administrators need not be one; then it is nil without an error.
func (s *Service) employee(c *httpapi.Call) (*org.Person, error) {
	p := s.personOf(string(c.Caller.User))
	if p != nil && p.Working() || c.Caller.Admin {
		return p, nil
	}
	return nil, matrix.Forbidden("only people of the company may do this")
}
