package oauth

import (
	"errors"
	"fmt"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/browser"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// The stage of interactive authentication for sessions of this API, and its name before it was specified.
// Spec: client-server-api#oauth-authentication
const (
	stageOAuth    = "m.oauth"
	stageOAuthOld = "org.matrix.cross_signing_reset"
)

// resetLifetime is how long after the person has agreed a client may replace the cross-signing keys, once.
const resetLifetime = 10 * time.Minute

func (o *Server) resetParams(string) any {
	return map[string]string{"url": o.AccountURL() + "?action=org.matrix.cross_signing_reset"}
}

// AuthoriseReset is nil when the caller may replace cross-signing keys. Sessions of the legacy API prove who they are
// as always; people with a session of this API agree on the account pages. The agreement is the user's and not that of
// one interactive session, as there are clients that begin a new one with each attempt.
func (o *Server) AuthoriseReset(c *httpapi.Call) error {
	client, err := o.Accounts.ClientOf(c.Ctx(), c.Caller)
	if err != nil {
		return err
	}
	uia := o.Accounts.UIA()
	if client == "" {
		return uia.Require(c)
	}
	allowed, err := o.takeReset(c)
	if err != nil || allowed {
		return err
	}
	return uia.RequireOf(c, accounts.Flow{stageOAuth}, accounts.Flow{stageOAuthOld})
}

// takeReset uses the agreement up.
func (o *Server) takeReset(c *httpapi.Call) (bool, error) {
	var until int64
	err := o.DB.Write(c.Ctx(), func(tx *sqldb.Tx) error {
		until = 0
		err := tx.QueryRow(qTakeReset, string(c.Caller.User)).Scan(&until)
		if errors.Is(err, sqldb.ErrNoRows) {
			return nil
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("reading agreement: %w", err)
	}
	return until > matrix.Millis(o.Now()), nil
}

// resetPage asks whether a client may replace the person's cross-signing keys.
func (o *Server) resetPage(v *browser.Visit) (any, error) {
	s, a, err := o.need(v, true)
	if s == nil {
		return a, err
	}
	return v.Show("reset", browser.View{Bind: s.bind + "reset"})
}

func (o *Server) resetForm(v *browser.Visit) (any, error) {
	s, a, err := o.need(v, true)
	if s == nil {
		return a, err
	}
	if err := v.Check(s.bind + "reset"); err != nil {
		return nil, err
	}
	err = o.DB.Write(v.Ctx(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qAllowReset, string(s.user), matrix.Millis(o.Now().Add(resetLifetime)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("storing agreement: %w", err)
	}
	return v.Show("message", browser.View{
		Done:   true, // for clients that have opened this page as a stage of interactive authentication
		Notice: v.T("已允许重置。请回到您的应用继续，10 分钟内有效。", "The reset is allowed. Go back to your app within 10 minutes."),
	})
}

// resetFallback is where a client sends people that does not know the stage.
func (o *Server) resetFallback(c *httpapi.Call) (any, error) {
	return o.pages.Handle(func(v *browser.Visit) (any, error) { return v.Redirect(pathAccount + "/reset") })(c)
}
