package accounts

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// RegistrationToken lets people register who were given it.
type RegistrationToken struct {
	Token       string `json:"token"`
	UsesAllowed *int64 `json:"uses_allowed"` // nil: any number
	Pending     int64  `json:"pending"`      // registrations under way
	Completed   int64  `json:"completed"`
	ExpiryTime  *int64 `json:"expiry_time"` // milliseconds; nil: never
}

func (t *RegistrationToken) valid(now time.Time) bool {
	return (t.UsesAllowed == nil || t.Completed+t.Pending < *t.UsesAllowed) &&
		(t.ExpiryTime == nil || matrix.Millis(now) < *t.ExpiryTime)
}

func scanRegToken(scan func(...any) error) (*RegistrationToken, error) {
	t := new(RegistrationToken)
	var uses, expires int64
	if err := scan(&t.Token, &uses, &t.Completed, &expires, &t.Pending); err != nil {
		return nil, err
	}
	if uses >= 0 {
		t.UsesAllowed = &uses
	}
	if expires > 0 {
		t.ExpiryTime = &expires
	}
	return t, nil
}

// registrationToken reads a token, not counting the pending use by one session; nil if there is none.
func (a *Accounts) registrationToken(ctx context.Context, token, session string) (*RegistrationToken, error) {
	if !validRegToken(token) {
		return nil, nil
	}
	var t *RegistrationToken
	err := a.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		t, err = scanRegToken(tx.QueryRow(qRegToken, token, session).Scan)
		return err
	})
	if errors.Is(err, sqldb.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading registration token: %w", err)
	}
	return t, nil
}

// RegistrationTokens lists the tokens, the oldest first.
func (a *Accounts) RegistrationTokens(ctx context.Context) ([]*RegistrationToken, error) {
	var list []*RegistrationToken
	err := a.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		list, err = sqldb.Select(tx, func(r *sqldb.Rows) (*RegistrationToken, error) { return scanRegToken(r.Scan) }, qRegTokens)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading registration tokens: %w", err)
	}
	return list, nil
}

func orElse(p *int64, absent int64) int64 {
	if p == nil {
		return absent
	}
	return *p
}

// CreateRegistrationToken stores a token; an empty one is made up.
func (a *Accounts) CreateRegistrationToken(ctx context.Context, t RegistrationToken) (*RegistrationToken, error) {
	if t.Token == "" {
		t.Token = matrix.RandomString(16)
	}
	if !validRegToken(t.Token) {
		return nil, matrix.InvalidParam("a token has 1 to 64 characters of A-Z, a-z, 0-9 and . _ ~ -")
	}
	if err := a.checkRegToken(&t); err != nil {
		return nil, err
	}
	err := a.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qInsertRegToken, t.Token, orElse(t.UsesAllowed, -1), orElse(t.ExpiryTime, 0), matrix.Millis(a.now()))
		return err
	})
	if errors.Is(err, sqldb.ErrExists) {
		return nil, matrix.InvalidParam("there is such a token already")
	}
	if err != nil {
		return nil, fmt.Errorf("storing registration token: %w", err)
	}
	t.Pending, t.Completed = 0, 0
	return &t, nil
}

// changeRegistrationToken stores other limits for a token.
func (a *Accounts) changeRegistrationToken(ctx context.Context, t RegistrationToken) error {
	if err := a.checkRegToken(&t); err != nil {
		return err
	}
	return a.execRegToken(ctx, qSetRegToken, t.Token, orElse(t.UsesAllowed, -1), orElse(t.ExpiryTime, 0))
}

func (a *Accounts) deleteRegistrationToken(ctx context.Context, token string) error {
	return a.execRegToken(ctx, qDeleteRegToken, token)
}

func (a *Accounts) execRegToken(ctx context.Context, q string, args ...any) error {
	var n int64
	err := a.db.Write(ctx, func(tx *sqldb.Tx) (err error) {
		n, err = tx.Exec(q, args...)
		return err
	})
	if err != nil {
		return fmt.Errorf("changing registration token: %w", err)
	}
	if n == 0 {
		return matrix.NotFound("no such registration token")
	}
	return nil
}

func (a *Accounts) checkRegToken(t *RegistrationToken) error {
	if t.UsesAllowed != nil && *t.UsesAllowed < 0 {
		return matrix.InvalidParam("uses_allowed must not be negative")
	}
	if t.ExpiryTime != nil && *t.ExpiryTime <= matrix.Millis(a.now()) {
		return matrix.InvalidParam("expiry_time is in the past")
	}
	return nil
}

// Spec: client-server-api#token-authenticated-registration
func validRegToken(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '~' || c == '-'
		if !ok {
			return false
		}
	}
	return true
}
