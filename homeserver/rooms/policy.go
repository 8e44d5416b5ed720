package rooms

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	log "github.com/sirupsen/logrus"
	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/serverkeys"
)

const (
	// PolicyType is the state event that names a room's policy server.
	PolicyType = "m.room.policy"
	// PolicyKey is the ID of every policy server's key.
	PolicyKey = "ed25519:policy_server"
	// policyRest is how long events of others are not asked for at a policy server
	// that did not answer: each would wait for it again.
	policyRest = 5 * time.Second
	// maxResting bounds the policy servers that are remembered as silent.
	maxResting = 1024
)

// policy is a room's policy server.
// Spec: server-server-api#policy-servers
type policy struct {
	via    matrix.ServerName
	key    ed25519.PublicKey // nil where the state holds none that can be read: then nothing is ever signed
	joined int               // users of the server in the room; without any the room has no policy server
}

// policy gives the room's policy server, nil if it has none. The room is locked
// and loaded.
func (rm *room) policy() *policy {
	if !rm.policyRead {
		rm.policyRead, rm.policyServer = true, rm.readPolicy()
	}
	if p := rm.policyServer; p != nil && p.joined > 0 {
		return p
	}
	return nil
}

func (rm *room) readPolicy() *policy {
	e := rm.current(PolicyType, "")
	if e == nil {
		return nil
	}
	via, key := gjson.GetBytes(e.JSON, "content.via"), gjson.GetBytes(e.JSON, "content.public_keys.ed25519")
	if via.Type != gjson.String || key.Type != gjson.String || via.Str == "" {
		return nil
	}
	p := &policy{via: matrix.ServerName(via.Str), key: decodeKey(key.Str)}
	for k, e := range rm.state {
		if k.Type == "m.room.member" && e.membership == "join" && matrix.UserID(k.StateKey).Server() == p.via {
			p.joined++
		}
	}
	return p
}

// decodeKey reads a public key in either alphabet of Base64.
func decodeKey(s string) ed25519.PublicKey {
	s = strings.TrimRight(s, "=")
	enc := base64.RawStdEncoding
	if strings.ContainsAny(s, "-_") {
		enc = base64.RawURLEncoding
	}
	key, err := enc.DecodeString(s)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return nil
	}
	return key
}

// move keeps the count of the policy server's users true.
func (p *policy) move(user string, was, is *entry) {
	if matrix.UserID(user).Server() != p.via {
		return
	}
	if was != nil && was.membership == "join" {
		p.joined--
	}
	if is != nil && is.membership == "join" {
		p.joined++
	}
}

// exempt reports whether an event needs no word of the policy server: that which
// names it, so that it can always be dismissed.
func exempt(e *events.Event) bool {
	return e.Type == PolicyType && e.StateKey != nil && *e.StateKey == ""
}

// approves reports whether the policy server has signed an event.
func (p *policy) approves(e *events.Event) bool {
	if p.key == nil || e.Signature(p.via, PolicyKey) == "" {
		return false
	}
	form, err := e.SignedForm()
	return err == nil && serverkeys.VerifyWith(p.via, PolicyKey, p.key, form) == nil
}

// resting remembers policy servers that did not answer.
type resting struct {
	mu    sync.Mutex
	until map[matrix.ServerName]time.Time
}

func (s *resting) rests(name matrix.ServerName, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return now.Before(s.until[name])
}

func (s *resting) note(name matrix.ServerName, silent bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !silent {
		delete(s.until, name)
		return
	}
	if s.until == nil || len(s.until) >= maxResting {
		s.until = map[matrix.ServerName]time.Time{}
	}
	s.until[name] = now.Add(policyRest)
}

// approve returns an event with the signature of the room's policy server. The
// room must not be locked: the network is waited for.
// Spec: server-server-api#asking-for-a-policy-server-signature-on-an-event
func (r *Rooms) approve(ctx context.Context, p *policy, e *events.Event) (*events.Event, error) {
	if exempt(e) || p.approves(e) {
		return e, nil
	}
	ask := r.o.AskPolicy
	if ask == nil {
		return nil, matrix.NewError(502, "M_UNKNOWN", "the room's policy server %s cannot be reached", p.via)
	}
	raw, err := ask(ctx, p.via, e.JSON)
	var refused *matrix.Error
	r.silent.note(p.via, err != nil && (!errors.As(err, &refused) || refused.Status >= 500), r.o.Now())
	if err != nil {
		return nil, err
	}
	sig := gjson.GetBytes(raw, gjson.Escape(string(p.via))+"."+gjson.Escape(PolicyKey))
	signed := e
	if sig.Type == gjson.String {
		if signed, err = e.WithSignature(p.via, PolicyKey, sig.Str); err != nil {
			return nil, err
		}
	}
	if !p.approves(signed) {
		return nil, matrix.Forbidden("the room's policy server %s gave no signature by the key that the room trusts", p.via)
	}
	return signed, nil
}

// vet is approve for an event that came from another server: without a signature
// it is to be soft-failed.
// Spec: server-server-api#validating-policy-server-signatures
func (r *Rooms) vet(ctx context.Context, e *events.Event) (*events.Event, error) {
	rm, err := r.locked(ctx, e.Room)
	if err != nil {
		return nil, err
	}
	p := rm.policy()
	rm.mu.Unlock()
	if p == nil || exempt(e) || p.approves(e) {
		return e, nil
	}
	if r.silent.rests(p.via, r.o.Now()) {
		err = fmt.Errorf("%s does not answer", p.via)
	} else {
		var signed *events.Event
		if signed, err = r.approve(ctx, p, e); err == nil {
			return signed, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	log.WithError(err).WithField("room_id", e.Room).WithField("event_id", e.ID).Info("an event without its policy server's signature is not shown")
	spam := e.Placed(e.NID, e.Pos, e.Replaces)
	spam.Flags |= events.FlagPolicy
	return spam, nil
}

// changeApproved is change in a room with a policy server. The event is built on
// the room as it stands and shown to the policy server with the room unlocked;
// then it is placed like an event of another server, beside whatever has come in
// the meantime. The room is locked, and unlocked here.
func (r *Rooms) changeApproved(ctx context.Context, rm *room, p *policy, build func(*room) ([]*built, error)) ([]*events.Event, error) {
	var list []*built
	rm.dry = true
	err := rm.guarded(func() (err error) {
		list, err = build(rm)
		return err
	})
	rm.dry = false
	rm.mu.Unlock()
	if err != nil {
		return nil, err
	}
	evs := make([]*events.Event, 0, len(list))
	for _, b := range list {
		signed, err := r.approve(ctx, p, b.ev)
		if err != nil {
			return nil, err
		}
		placed, err := r.placeOwn(ctx, signed)
		if err != nil {
			return nil, err
		}
		evs = append(evs, placed)
	}
	return evs, nil
}

// placeOwn stores an event of this server that was built on what may no longer be
// the newest. One that is not allowed is dropped.
func (r *Rooms) placeOwn(ctx context.Context, ev *events.Event) (*events.Event, error) {
	for attempt := 0; ; attempt++ {
		rm, err := r.locked(ctx, ev.Room)
		if err != nil {
			return nil, err
		}
		b := &built{ev: ev.Placed(ev.NID, 0, 0)}
		var verdict error
		err = rm.guarded(func() (err error) {
			verdict, err = r.judge(ctx, rm, b, nil, nil)
			return err
		})
		if err == nil && verdict == nil && b.ev.Dead() {
			verdict = matrix.Forbidden("the room has changed in the meantime, and the event is no longer allowed")
		}
		if err != nil {
			rm.loaded = false
		} else {
			err = verdict
		}
		if err != nil {
			rm.mu.Unlock()
			return nil, err
		}
		err = r.commit(ctx, rm, []*built{b})
		if errors.Is(err, errRoomMoved) && attempt < maxAttempts {
			continue
		}
		if err != nil {
			return nil, err
		}
		return b.placed, nil
	}
}

// Inspect checks an event that another server shows to this one as a policy
// server: format, signatures, and that the room is one of this server's. It also
// says whom the room has as its policy server, "" for none.
func (r *Rooms) Inspect(ctx context.Context, origin matrix.ServerName, raw json.RawMessage) (ev *events.Event, via matrix.ServerName, err error) {
	room, err := roomOf(raw)
	if err != nil {
		return nil, "", err
	}
	if !r.participates(room) {
		return nil, "", matrix.NotFound("this server is not in %s", room)
	}
	if ok, err := r.ACLAllows(ctx, room, origin); err != nil {
		return nil, "", err
	} else if !ok {
		return nil, "", matrix.Forbidden("%s is not allowed in this room", origin)
	}
	rm, err := r.locked(ctx, room)
	if err != nil {
		return nil, "", err
	}
	p, version := rm.policy(), string(rm.version)
	rm.mu.Unlock()
	if p == nil {
		return nil, "", matrix.NotFound("the room %s has no policy server", room)
	}
	if ev, err = events.Parse(raw, gomatrixserverlib.RoomVersion(version)); err != nil {
		return nil, "", err
	}
	// An invitation is shown before the server of the invited has signed it.
	if origin != r.o.Signer.Server && ev.Membership != "invite" {
		err = r.signed(ctx, ev)
	}
	return ev, p.via, err
}
