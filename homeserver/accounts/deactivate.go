package accounts

import (
	"context"
	"errors"
	"fmt"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// closing is how a deactivation goes on after its request.
type closing struct {
	bell  chan struct{} // capacity one: there is something to do; full is as good
	users gate.Keyed[matrix.UserID]
}

// OnDeactivate adds what has to happen when an account closes (forget profile, …) and is quick. It may run again, until
// all has succeeded. Call it before serving.
func (a *Accounts) OnDeactivate(fn func(ctx context.Context, user matrix.UserID, erase bool) error) {
	a.onDeactivate = append(a.onDeactivate, fn)
}

// OnDeactivateLater is OnDeactivate for what takes time (leave rooms, …): it runs in the background, in the order of
// these calls, after a restart too. Without a running Accounts it waits for the next one.
func (a *Accounts) OnDeactivateLater(fn func(ctx context.Context, user matrix.UserID, erase bool) error) {
	a.onDeactivateLater = append(a.onDeactivateLater, fn)
}

// Deactivate closes an account for ever: password, sessions and devices are gone when it returns, as is what the quick
// hooks remove; the rest follows in the background. Deactivating twice repeats the hooks.
func (a *Accounts) Deactivate(ctx context.Context, id matrix.UserID, erase bool) error {
	if !a.Exists(id) {
		return matrix.NotFound("no user %s", id)
	}
	err := a.db.Write(ctx, func(tx *sqldb.Tx) error {
		for _, q := range []string{qUserAccess, qUserRefresh, qUserLogin, qUserUIA} {
			if _, err := tx.Exec(q, string(id)); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(qInsertDeactivation, string(id), erase, matrix.Millis(a.now())); err != nil {
			return err
		}
		_, err := tx.Exec(qDeactivate, string(id), erase)
		return err
	})
	if err != nil {
		return fmt.Errorf("deactivating account: %w", err)
	}
	a.change(id, func(u *User) {
		u.Deactivated, u.HasPassword = true, false
		u.Erased = u.Erased || erase
	})
	// Whatever fails from here on is tried again in the background: the account is closed in any case.
	if err := a.devices.DeleteOthers(ctx, id, ""); err != nil {
		log.WithError(err).WithField("user_id", id).Warn("removing the devices of a closed account failed; trying again later")
	}
	for _, fn := range a.onDeactivate {
		if err := fn(ctx, id, erase); err != nil {
			log.WithError(err).WithField("user_id", id).Warn("removing what a closed account has left failed; trying again later")
		}
	}
	select {
	case a.closing.bell <- struct{}{}:
	default:
	}
	return nil
}

// deactivation is a closed account of which something may be left.
type deactivation struct {
	user  matrix.UserID
	erase bool
}

const (
	deactivationPage = 100
	againFirst       = 10 * time.Second
	againLast        = time.Hour
)

// runClosing removes in the background what closed accounts have left.
func (a *Accounts) runClosing(ctx context.Context) {
	pause := gate.Backoff{Min: againFirst, Max: againLast}
	for {
		failed, err := a.closeAll(ctx)
		wait := time.Hour
		switch {
		case ctx.Err() != nil:
			return
		case err != nil || failed > 0:
			if err != nil {
				log.WithError(err).Warn("reading closed accounts failed")
			}
			wait = pause.Next()
		default:
			pause.Reset()
		}
		t := time.NewTimer(wait)
		select {
		case <-a.closing.bell:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// closeAll goes through the closed accounts once; it says how many are not done.
func (a *Accounts) closeAll(ctx context.Context) (failed int, err error) {
	after := matrix.UserID("")
	for {
		var list []deactivation
		err := a.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
			list, err = sqldb.Select(tx, func(r *sqldb.Rows) (d deactivation, err error) {
				err = r.Scan(&d.user, &d.erase)
				return d, err
			}, qDeactivations, string(after), deactivationPage)
			return err
		})
		if err != nil {
			return failed, fmt.Errorf("reading closed accounts: %w", err)
		}
		for _, d := range list {
			if err := a.closeOne(ctx, d); err != nil {
				if ctx.Err() != nil {
					return failed, nil
				}
				failed++
				log.WithError(err).WithField("user_id", d.user).Warn("removing what a closed account has left failed; trying again later")
			}
			after = d.user
		}
		if len(list) < deactivationPage {
			return failed, nil
		}
	}
}

func (a *Accounts) closeOne(ctx context.Context, d deactivation) error {
	unlock, err := a.closing.users.LockContext(ctx, d.user)
	if err != nil {
		return err
	}
	defer unlock()
	failed := a.devices.DeleteOthers(ctx, d.user, "")
	for _, fn := range a.onDeactivate {
		failed = errors.Join(failed, fn(ctx, d.user, d.erase))
	}
	for _, fn := range a.onDeactivateLater {
		failed = errors.Join(failed, fn(ctx, d.user, d.erase))
	}
	if failed != nil {
		return failed
	}
	return a.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qEndDeactivation, string(d.user), d.erase)
		return err
	})
}
