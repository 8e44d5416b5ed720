package profiles

import (
	"context"
	"errors"
	"fmt"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

func (p *Profiles) ring() {
	select {
	case p.bell <- struct{}{}:
	default:
	}
}

// Run spreads changed names and pictures into rooms, those left from before the
// last stop too.
func (p *Profiles) Run(ctx context.Context) error {
	p.ring()
	pause := time.Second
	for {
		select {
		case <-p.bell:
		case <-ctx.Done():
			return nil
		}
		if err := p.spreadAll(ctx); err != nil && ctx.Err() == nil {
			log.WithError(err).Warn("spreading profiles into rooms; trying again")
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			pause = min(2*pause, time.Minute)
			p.ring()
			continue
		}
		pause = time.Second
	}
}

func (p *Profiles) spreadAll(ctx context.Context) error {
	type row struct {
		user    matrix.UserID
		version int64
	}
	for {
		var rows []row
		err := p.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
			rows, err = sqldb.Select(tx, func(r *sqldb.Rows) (x row, err error) {
				err = r.Scan(&x.user, &x.version)
				return x, err
			}, qSpreads)
			return err
		})
		if err != nil {
			return fmt.Errorf("reading profiles to spread: %w", err)
		}
		if len(rows) == 0 {
			return nil
		}
		for _, x := range rows {
			// Who has just stored the change holds the lock until it is in memory, too.
			unlock, err := p.locks.LockContext(ctx, x.user)
			if err != nil {
				return err
			}
			unlock()
			if err := p.spread(ctx, x.user); err != nil {
				return err
			}
			err = p.db.Write(ctx, func(tx *sqldb.Tx) error { // a newer change stays
				_, err := tx.Exec(qSpreadDone, string(x.user), x.version)
				return err
			})
			if err != nil {
				return fmt.Errorf("noting a spread profile: %w", err)
			}
		}
	}
}

func (p *Profiles) spread(ctx context.Context, user matrix.UserID) error {
	for _, room := range p.rooms.JoinedRooms(user) {
		err := p.rooms.UpdateMember(ctx, user, room)
		var e *matrix.Error
		if errors.As(err, &e) { // the room refuses; its affair
			log.WithFields(log.Fields{"user_id": user, "room_id": room}).WithError(err).Debug("a room refuses a new profile")
			continue
		}
		if err != nil {
			return fmt.Errorf("spreading the profile of %s: %w", user, err)
		}
	}
	return nil
}
