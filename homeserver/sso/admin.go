package sso

import (
	"errors"
	"fmt"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// identityView is an identity as administrators see it.
type identityView struct {
	Provider string `json:"provider"`
	Subject  string `json:"subject"`
}

func (s *SSO) theUser(c *httpapi.Call) (matrix.UserID, error) {
	user, err := c.UserVar("userId")
	if err != nil {
		return "", err
	}
	if !s.accounts.Exists(user) {
		return "", matrix.NotFound("no user %s", user)
	}
	return user, nil
}

// listIdentities shows with which identities a user is linked.
func (s *SSO) listIdentities(c *httpapi.Call) (any, error) {
	user, err := s.theUser(c)
	if err != nil {
		return nil, err
	}
	list, err := s.of(c.Ctx(), user)
	if err != nil {
		return nil, err
	}
	out := make([]identityView, len(list))
	for i, l := range list {
		out[i] = identityView(l)
	}
	return map[string]any{"identities": out}, nil
}

// addIdentity links a user by hand.
func (s *SSO) addIdentity(c *httpapi.Call) (any, error) {
	user, err := s.theUser(c)
	if err != nil {
		return nil, err
	}
	var req identityView
	if err := c.Body(&req); err != nil {
		return nil, err
	}
	switch {
	case s.provider(req.Provider) == nil:
		return nil, matrix.NotFound("no provider %q", req.Provider)
	case req.Subject == "" || len(req.Subject) > 255:
		return nil, matrix.InvalidParam("subject has 1 to 255 bytes")
	}
	for i := range len(req.Subject) {
		if req.Subject[i] == 0 {
			return nil, matrix.InvalidParam("subject holds a NUL")
		}
	}
	err = s.db.Write(c.Ctx(), func(tx *sqldb.Tx) error { return s.link(tx, identity(req), user, s.now()) })
	if errors.Is(err, errLinked) {
		return nil, matrix.NewError(409, "M_UNKNOWN", "this identity has an account already")
	}
	if err != nil {
		return nil, fmt.Errorf("storing identity: %w", err)
	}
	return nil, nil
}

// removeIdentity takes an account from an identity.
func (s *SSO) removeIdentity(c *httpapi.Call) (any, error) {
	user, err := s.theUser(c)
	if err != nil {
		return nil, err
	}
	var n int64
	err = s.db.Write(c.Ctx(), func(tx *sqldb.Tx) (err error) {
		n, err = tx.Exec(qUnlink, c.Var("provider"), c.Var("subject"), string(user))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("removing identity: %w", err)
	}
	if n == 0 {
		return nil, matrix.NotFound("%s has no such identity", user)
	}
	return nil, nil
}
