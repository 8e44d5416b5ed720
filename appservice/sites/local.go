package sites

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// loopBack handles the messages that this site has sent to itself.
func (s *Sites) loopBack(ctx context.Context) error {
	for {
		var seq int64
		var message, kind, body string
		err := s.db.Read(ctx, func(tx *sqldb.Tx) error {
			return tx.QueryRow(qFirstOut, s.own.Name).Scan(&seq, &message, &kind, &body)
		})
		if errors.Is(err, sqldb.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading messages to this site: %w", err)
		}
		done := func(tx *sqldb.Tx) error {
			if _, err := tx.Exec(qDeleteOut, s.own.Name, seq); err != nil {
				return err
			}
			_, err := tx.Exec(qDeleteMessage, message)
			return err
		}
		if err := s.handle(ctx, s.own, kind, []byte(body), done); err != nil {
			return err
		}
	}
}

// handle runs a message's handler and done in one transaction; a message that is refused is done all the same.
func (s *Sites) handle(ctx context.Context, from Site, kind string, body json.RawMessage, done func(*sqldb.Tx) error) error {
	h := s.handlers[kind]
	if h == nil {
		h = func(context.Context, *sqldb.Tx, Site, json.RawMessage) error {
			return Refuse(errors.New("nothing handles messages of this kind"))
		}
	}
	hctx, after := withAfter(ctx)
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		*after = nil
		if err := h(hctx, tx, from, body); err != nil {
			return err
		}
		return done(tx)
	})
	if err == nil {
		for _, f := range *after {
			f()
		}
	}
	var refused refusal
	if errors.As(err, &refused) {
		log.WithFields(log.Fields{"site": from.Name, "kind": kind}).WithError(err).Warn("a message of a site is refused")
		err = s.db.Write(ctx, done)
	}
	if err != nil {
		return fmt.Errorf("handling a message of kind %s from site %q: %w", kind, from.Name, err)
	}
	return nil
}
