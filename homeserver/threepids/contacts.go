package threepids

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Contact is an address of an account.
type Contact struct {
	Medium      string `json:"medium"`
	Address     string `json:"address"`
	ValidatedAt int64  `json:"validated_at"` // ms
	AddedAt     int64  `json:"added_at"`     // ms
}

// inUse is said of an address that has an account.
func inUse() *matrix.Error {
	return matrix.NewError(http.StatusBadRequest, "M_THREEPID_IN_USE", "this address belongs to an account already")
}

// UserOf is the account that has an address, in any spelling; "" if none has.
func (t *Threepids) UserOf(ctx context.Context, medium, address string) (matrix.UserID, error) {
	address, err := Canonical(medium, address)
	if err != nil {
		return "", nil // nobody can have it
	}
	var user matrix.UserID
	err = t.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qUserOf, medium, address).Scan(&user) })
	if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
		return "", fmt.Errorf("reading contact address: %w", err)
	}
	return user, nil
}

// Owns says whether a proven address is the user's.
func (t *Threepids) Owns(ctx context.Context, user matrix.UserID, medium, address string) (bool, error) {
	owner, err := t.UserOf(ctx, medium, address)
	return owner == user && user != "", err
}

// Of lists the addresses of a user, the oldest first.
func (t *Threepids) Of(ctx context.Context, user matrix.UserID) ([]Contact, error) {
	var list []Contact
	err := t.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		list, err = sqldb.Select(tx, func(r *sqldb.Rows) (c Contact, err error) {
			err = r.Scan(&c.Medium, &c.Address, &c.ValidatedAt, &c.AddedAt)
			return c, err
		}, qOfUser, string(user))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading contact addresses: %w", err)
	}
	return list, nil
}

// addTx gives a proven address to an account.
func (t *Threepids) addTx(tx *sqldb.Tx, user matrix.UserID, medium, address string, validated int64) error {
	var owner matrix.UserID
	err := tx.QueryRow(qUserOf, medium, address).Scan(&owner)
	switch {
	case errors.Is(err, sqldb.ErrNoRows):
	case err != nil:
		return err
	case owner != user:
		return inUse()
	default:
		_, err := tx.Exec(qRenew, medium, address, string(user), validated)
		return err
	}
	var n int
	if err := tx.QueryRow(qCount, string(user)).Scan(&n); err != nil {
		return err
	}
	if n >= maxAddresses {
		return matrix.InvalidParam("an account has at most %d addresses", maxAddresses)
	}
	_, err = tx.Exec(qInsert, medium, address, string(user), validated, matrix.Millis(t.opts.Now()))
	return err
}

// Add gives a proven address to an account, such as one that the company vouches for.
func (t *Threepids) Add(ctx context.Context, user matrix.UserID, medium, address string) error {
	address, err := Canonical(medium, address)
	if err != nil {
		return err
	}
	return t.add(ctx, user, medium, address, matrix.Millis(t.opts.Now()), "")
}

// add gives an address to an account and ends the session that has proven it.
func (t *Threepids) add(ctx context.Context, user matrix.UserID, medium, address string, validated int64, sid string) error {
	err := t.db.Write(ctx, func(tx *sqldb.Tx) error {
		if sid != "" {
			if n, err := tx.Exec(qEnd, sid); err != nil || n == 0 {
				return errors.Join(err, ended(n))
			}
		}
		return t.addTx(tx, user, medium, address, validated)
	})
	if errors.Is(err, sqldb.ErrExists) { // somebody was faster
		return inUse()
	}
	if err != nil {
		return fmt.Errorf("adding contact address: %w", err)
	}
	return nil
}

// ended says that a session was gone when it was to be used.
func ended(n int64) error {
	if n == 0 {
		return failed()
	}
	return nil
}

// registered keeps the addresses that were proven for a registration.
func (t *Threepids) registered(tx *sqldb.Tx, user matrix.UserID, evidence map[string]string) error {
	for _, stage := range []string{StageEmail, StageMSISDN} {
		if evidence[stage] == "" {
			continue
		}
		var c Contact
		if err := json.Unmarshal([]byte(evidence[stage]), &c); err != nil {
			return err
		}
		if err := t.addTx(tx, user, c.Medium, c.Address, c.ValidatedAt); err != nil {
			return err
		}
	}
	return nil
}

// remove takes an address from an account; it does nothing when the account has it not.
func (t *Threepids) remove(ctx context.Context, user matrix.UserID, medium, address string) error {
	err := t.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qDelete, medium, address, string(user))
		return err
	})
	if err != nil {
		return fmt.Errorf("removing contact address: %w", err)
	}
	if t.opts.Removed != nil {
		return t.opts.Removed(ctx, user, medium, address)
	}
	return nil
}

// DeleteUser removes all addresses of a user whose account is closed.
func (t *Threepids) DeleteUser(ctx context.Context, user matrix.UserID) error {
	err := t.db.Write(ctx, func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(qDropAll, string(user)); err != nil {
			return err
		}
		_, err := tx.Exec(qDropBinds, string(user))
		return err
	})
	if err != nil {
		return fmt.Errorf("removing contact addresses: %w", err)
	}
	return nil
}
