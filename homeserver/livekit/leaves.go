package livekit

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

const (
	// leavesPage is how many participants are looked for in one go.
	leavesPage = 100
	// A participant is looked for four times in his delay, at least every lookMost;
	// who has not come yet, every lookFirst. The media server's own word makes it
	// sooner.
	lookMost, lookFirst, lookLeast = 30 * time.Second, 5 * time.Second, time.Second
	// lookAgain is the pause after the media server did not answer.
	lookAgain = 10 * time.Second
)

const (
	qDropLeave = `DELETE FROM livekit_leaves WHERE delay_id = $1 OR alias = $2 AND identity = $3`
	qPutLeave  = `INSERT INTO livekit_leaves (delay_id, alias, identity, user_id, delay, connected, restarted, due) VALUES ($1, $2, $3, $4, $5, $6, 0, $7)`
	qEndLeave  = `DELETE FROM livekit_leaves WHERE delay_id = $1`
	qDueLeaves = `SELECT delay_id, alias, identity, user_id, delay, connected, restarted, due FROM livekit_leaves WHERE due <= $1 ORDER BY due, delay_id LIMIT $2`
	qNextLeave = `SELECT coalesce(min(due), 0) FROM livekit_leaves`
	qLookLeave = `UPDATE livekit_leaves SET connected = $2, restarted = $3, due = $4 WHERE delay_id = $1`
	qHintLeave = `UPDATE livekit_leaves SET due = $3 WHERE alias = $1 AND identity = $2 AND due > $3`
)

// leave is a delayed event that a participant has left to this server.
type leave struct {
	delayID         string
	alias, identity string
	user            matrix.UserID
	delay           int64 // ms
	connected       bool  // he was there
	restarted, due  int64
}

func scanLeave(r *sqldb.Rows) (l leave, err error) {
	err = r.Scan(&l.delayID, &l.alias, &l.identity, &l.user, &l.delay, &l.connected, &l.restarted, &l.due)
	return l, err
}

// postLeave takes over a delayed event of a user: it is put off while he is in the
// call, and sent when he is gone. Source: MSC4195, delegate_delayed_leave
func (k *LiveKit) postLeave(c *httpapi.Call) (any, error) {
	var in struct {
		request
		DelayID string  `json:"delay_id"`
		OpenID  *openID `json:"openid_token"`
	}
	if err := c.Body(&in); err != nil {
		return nil, err
	}
	if c.Caller == nil && in.OpenID == nil {
		return nil, matrix.MissingToken()
	}
	if err := in.check(); err != nil {
		return nil, err
	}
	if in.DelayID == "" {
		return nil, matrix.MissingParam("delay_id is needed")
	}
	var user matrix.UserID
	if c.Caller != nil {
		user = c.Caller.User
	} else {
		var err error
		if user, err = k.whose(c, in.Room, in.OpenID); err != nil {
			return nil, err
		}
	}
	if user.Server() != k.o.Server { // his events are kept elsewhere
		return nil, unauthorized()
	}
	if err := k.joined(c, in.Room, user); err != nil {
		return nil, err
	}
	if k.signer == nil {
		return nil, absent()
	}
	return nil, k.take(c.Ctx(), user, in.request, in.DelayID)
}

func (k *LiveKit) take(ctx context.Context, user matrix.UserID, in request, delayID string) error {
	room, delay, err := k.o.Delays.Scheduled(ctx, delayID, user)
	if err != nil {
		return err
	}
	if room != in.Room {
		return matrix.NotFound("there is no such delayed event in this room")
	}
	identity, err := hash(string(user), in.Member.Device, in.Member.ID)
	if err != nil {
		return err
	}
	alias, err := k.alias(in.Room, in.Slot)
	if err != nil {
		return err
	}
	err = k.db.Write(ctx, func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(qDropLeave, delayID, alias, identity); err != nil {
			return err
		}
		_, err := tx.Exec(qPutLeave, delayID, alias, identity, string(user), delay.Milliseconds(), false, matrix.Millis(k.o.Now()))
		return err
	})
	if err != nil {
		return fmt.Errorf("storing a delegated event: %w", err)
	}
	k.ring()
	return nil
}

// ring has Run look at once.
func (k *LiveKit) ring() {
	select {
	case k.bell <- struct{}{}:
	default:
	}
}

// Run looks for the participants whose delayed events are kept, until ctx ends.
func (k *LiveKit) Run(ctx context.Context) error {
	if k.signer == nil {
		return nil
	}
	for ctx.Err() == nil {
		pause, err := k.round(ctx)
		if err != nil && ctx.Err() == nil {
			log.WithError(err).Warn("participants of calls could not be looked for; trying again")
			pause = lookAgain
		}
		select {
		case <-time.After(pause):
		case <-k.bell:
		case <-ctx.Done():
		}
	}
	return nil
}

// round looks for those who are due, and returns how long there is nothing to do.
func (k *LiveKit) round(ctx context.Context) (time.Duration, error) {
	now := matrix.Millis(k.o.Now())
	var list []leave
	var next int64
	err := k.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		if list, err = sqldb.Select(tx, scanLeave, qDueLeaves, now, leavesPage); err != nil || len(list) > 0 {
			return err
		}
		return tx.QueryRow(qNextLeave).Scan(&next)
	})
	switch {
	case err != nil:
		return 0, fmt.Errorf("reading delegated events: %w", err)
	case len(list) == 0 && next == 0:
		return time.Hour, nil
	case len(list) == 0:
		return time.Duration(max(next-now, 1)) * time.Millisecond, nil
	}
	for _, l := range list {
		if err := k.look(ctx, l); err != nil {
			return 0, err
		}
	}
	return 0, nil // there may be more
}

// look looks for one participant, and does what follows from it.
func (k *LiveKit) look(ctx context.Context, l leave) error {
	now := matrix.Millis(k.o.Now())
	there, err := k.present(ctx, l.alias, l.identity)
	pause := min(time.Duration(l.delay)*time.Millisecond/4, lookMost)
	switch {
	case err != nil && ctx.Err() != nil:
		return err
	case err != nil: // the delay goes on, so the event is sent in the end
		log.WithError(err).Warn("the LiveKit server does not say who is in a call")
		pause = min(pause, lookAgain)
	case there:
		if l.connected = true; now-l.restarted >= l.delay/2 {
			if over, err := ended(k.o.Delays.Restart(ctx, l.delayID, l.user)); over || err != nil {
				return errors.Join(err, k.end(ctx, l, over))
			}
			l.restarted = now
		}
	case l.connected:
		over, err := ended(k.o.Delays.Send(ctx, l.delayID, l.user))
		if refused := (*matrix.Error)(nil); !over && errors.As(err, &refused) {
			log.WithField("user_id", l.user).WithError(err).Info("the leaving of a call could not be sent yet")
			pause = min(pause, lookAgain) // too many at once, or the room says no: its time comes all the same
			break
		}
		if err != nil {
			return err
		}
		return k.end(ctx, l, true)
	default:
		if _, _, err := k.o.Delays.Scheduled(ctx, l.delayID, l.user); err != nil {
			over, err := ended(err)
			return errors.Join(err, k.end(ctx, l, over))
		}
		pause = min(pause, lookFirst)
	}
	l.due = now + max(pause, lookLeast).Milliseconds()
	err = k.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qLookLeave, l.delayID, l.connected, l.restarted, l.due)
		return err
	})
	if err != nil {
		return fmt.Errorf("noting a participant: %w", err)
	}
	return nil
}

// ended reports whether an error says that a delayed event is over: sent, cancelled
// or gone with its user. Other errors stay.
func ended(err error) (bool, error) {
	if e := (*matrix.Error)(nil); errors.As(err, &e) && (e.Status == http.StatusConflict || e.Status == http.StatusNotFound) {
		return true, nil
	}
	return false, err
}

// end forgets a delegated event, if it is over.
func (k *LiveKit) end(ctx context.Context, l leave, over bool) error {
	if !over {
		return nil
	}
	err := k.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qEndLeave, l.delayID)
		return err
	})
	if err != nil {
		return fmt.Errorf("forgetting a delegated event: %w", err)
	}
	return nil
}

// present asks the media server whether somebody is in a call.
func (k *LiveKit) present(ctx context.Context, alias, identity string) (bool, error) {
	said, err := k.call(ctx, "GetParticipant", grant{Room: alias, Admin: true}, map[string]string{"room": alias, "identity": identity})
	if d := (*down)(nil); errors.As(err, &d) && d.code == "not_found" {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var p struct {
		State string `json:"state"`
	}
	if err := json.Unmarshal(said, &p); err != nil {
		return false, &down{cause: fmt.Errorf("its answer is no JSON: %w", err)}
	}
	return p.State != "DISCONNECTED", nil
}

// postHook hears from the media server that somebody has come or gone. It is a hint
// to look; what is done follows from what is seen then.
// Source: docs.livekit.io, "Webhooks"
func (k *LiveKit) postHook(c *httpapi.Call) (any, error) {
	if k.signer == nil {
		return nil, absent()
	}
	body, err := c.RawBody()
	if err != nil {
		return nil, err
	}
	if !k.signed(c.R.Header.Get("Authorization"), body) {
		return nil, matrix.NewError(http.StatusUnauthorized, "M_UNAUTHORIZED", "this is not signed by the LiveKit server")
	}
	var in struct {
		Event string `json:"event"`
		Room  struct {
			Name string `json:"name"`
		} `json:"room"`
		Participant struct {
			Identity string `json:"identity"`
		} `json:"participant"`
	}
	if err := c.Body(&in); err != nil {
		return nil, err
	}
	switch in.Event {
	case "participant_joined", "participant_left", "participant_connection_aborted":
	default:
		return nil, nil
	}
	err = k.db.Write(c.Ctx(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qHintLeave, in.Room.Name, in.Participant.Identity, matrix.Millis(k.o.Now()))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("noting what the LiveKit server says: %w", err)
	}
	k.ring()
	return nil, nil
}

// signed checks the token that comes with a message of the media server: it is made
// with the secret, for this body.
func (k *LiveKit) signed(token string, body []byte) bool {
	t, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.HS256})
	if err != nil {
		return false
	}
	var std jwt.Claims
	var own struct {
		Sum string `json:"sha256"`
	}
	if t.Claims([]byte(k.o.Secret), &std, &own) != nil {
		return false
	}
	sum := sha256.Sum256(body)
	return std.ValidateWithLeeway(jwt.Expected{Issuer: k.o.Key, Time: k.o.Now()}, skew) == nil && own.Sum == base64.StdEncoding.EncodeToString(sum[:])
}
