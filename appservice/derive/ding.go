package derive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// ErrNoAccount is returned for people who have no account in use: not yet registered, or left.
var ErrNoAccount = errors.New("the person has no account in use")

const dingKey = "ding:"

// DingRoom is the room of the bot and one person, in which the service speaks to that person alone. It is made when
// it is first asked for, and there is never a second one: before it is made that is written down, and a room whose
// making was cut off is found again by its create event.
func (r *Reconciler) DingRoom(ctx context.Context, person string) (id.RoomID, error) {
	if room, ok := r.readyDing(person); ok {
		return room, nil
	}
	unlock, err := r.dingLocks.LockContext(ctx, person)
	if err != nil {
		return "", err
	}
	defer unlock()
	if room, ok := r.readyDing(person); ok {
		return room, nil
	}
	r.mu.RLock()
	u, ok := r.users[person]
	d, begun := r.dings[person]
	r.mu.RUnlock()
	if !ok || u.state != stateActive { // suspended people may not join; the room they have stays theirs
		return "", ErrNoAccount
	}
	if begun && d.room == "" {
		if d, err = r.adoptDing(ctx, person); err != nil {
			return "", err
		}
	}
	user := r.mx.UserID(u.localpart)
	if d.room == "" {
		if !begun {
			if err := r.saveDing(ctx, person, dingRow{}); err != nil {
				return "", err
			}
		}
		if d.room, err = r.createDing(ctx, person, user); err != nil {
			return "", err
		}
	}
	// Room and membership are recorded together: what a crash leaves unrecorded is found again by its create event.
	if err = r.joinDing(ctx, d.room, user); err != nil {
		err = fmt.Errorf("joining a DING room: %w", err)
	}
	d.joined = err == nil
	if saveErr := r.saveDing(context.WithoutCancel(ctx), person, d); saveErr != nil {
		r.doubtDing(person)
		err = errors.Join(err, saveErr)
	}
	if err != nil {
		return "", err
	}
	return d.room, nil
}

// doubtDing notes that a person's room may exist without a record.
func (r *Reconciler) doubtDing(person string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.doubt[person] = true
}

// DingPerson is whose DING room the room is.
func (r *Reconciler) DingPerson(room id.RoomID) (person string, ok bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	person, ok = r.dingOf[room]
	return person, ok
}

func (r *Reconciler) readyDing(person string) (id.RoomID, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	d := r.dings[person]
	if u := r.users[person]; u.state != stateActive && u.state != stateSuspended {
		return "", false
	}
	return d.room, d.room != "" && d.joined
}

// EnsureDingRooms makes the DING rooms of many people, several at a time. People without an account are passed over;
// the first other error ends it.
func (r *Reconciler) EnsureDingRooms(ctx context.Context, people []string) error {
	var missing []string
	r.mu.RLock()
	for _, p := range people {
		u := r.users[p]
		if d := r.dings[p]; (d.room == "" || !d.joined) && u.state == stateActive {
			missing = append(missing, p)
		}
	}
	r.mu.RUnlock()
	if err := r.beginDings(ctx, missing); err != nil {
		return err
	}
	x := &run{r: r, report: &Report{ByKind: map[string]int{}}}
	return each(ctx, x, missing, func(ctx context.Context, p string) error {
		_, err := r.DingRoom(ctx, p)
		if errors.Is(err, ErrNoAccount) {
			return nil
		}
		return err
	})
}

// beginDings writes down in few commits that rooms are about to be made.
func (r *Reconciler) beginDings(ctx context.Context, people []string) error {
	var fresh []string
	r.mu.RLock()
	for _, p := range people {
		if _, begun := r.dings[p]; !begun {
			fresh = append(fresh, p)
		}
	}
	r.mu.RUnlock()
	now := r.now()
	for len(fresh) > 0 {
		batch := fresh[:min(len(fresh), 500)]
		fresh = fresh[len(batch):]
		err := r.db.Write(ctx, func(tx *sqldb.Tx) error {
			for _, p := range batch {
				if _, err := tx.Exec(qBeginDing, p, now); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("recording DING rooms: %w", err)
		}
		r.mu.Lock()
		for _, p := range batch {
			if _, begun := r.dings[p]; !begun {
				r.dings[p] = dingRow{}
			}
		}
		r.mu.Unlock()
	}
	return nil
}

func (r *Reconciler) createDing(ctx context.Context, person string, user id.UserID) (id.RoomID, error) {
	req := createRoom{
		Version: roomVersion, Preset: "private_chat", Direct: true, Creation: creation(dingKey+person, false, nil),
		Power: json.RawMessage(dingPower()),
		InitialSet: []stateEvent{
			{"m.room.join_rules", "", r.dingRules()},
			{"m.room.guest_access", "", map[string]string{"guest_access": "forbidden"}},
		},
	}
	if r.inviteFirst.Load() {
		req.Invite = []id.UserID{user}
	}
	room, err := r.mx.CreateRoom(ctx, "", req, false)
	if err != nil {
		if !mxclient.IsPermanent(err) { // it may exist all the same
			r.doubtDing(person)
		}
		return "", fmt.Errorf("creating a DING room: %w", err)
	}
	return room, nil
}

// dingRules lets the service alone bring the person in.
func (r *Reconciler) dingRules() map[string]any {
	return map[string]any{"join_rule": "restricted", "allow": []allow{{Type: joinRuleService, User: r.mx.BotID()}}}
}

func (r *Reconciler) joinDing(ctx context.Context, room id.RoomID, user id.UserID) error {
	err := r.mx.Join(ctx, user, room)
	if !mxclient.IsCode(err, "M_FORBIDDEN") {
		return err
	}
	if err := r.mx.Invite(ctx, "", room, user); err != nil && !mxclient.IsCode(err, "M_FORBIDDEN") {
		return fmt.Errorf("inviting: %w", err)
	}
	if err := r.mx.Join(ctx, user, room); err != nil {
		return err
	}
	r.inviteFirst.Store(true)
	return nil
}

// adoptDing looks for the room of a person whose making was begun. Only rooms in doubt cost requests: then all the
// bot's rooms without a record are looked through once, for everybody.
func (r *Reconciler) adoptDing(ctx context.Context, person string) (dingRow, error) {
	r.adopting.Lock()
	defer r.adopting.Unlock()
	r.mu.RLock()
	inDoubt := r.doubt[person]
	d := r.dings[person]
	everyone := make([]string, 0, len(r.doubt))
	for p := range r.doubt {
		everyone = append(everyone, p)
	}
	r.mu.RUnlock()
	if !inDoubt {
		return d, nil
	}
	rooms, err := r.mx.JoinedRooms(ctx, "")
	if err != nil {
		return d, fmt.Errorf("listing the bot's rooms: %w", err)
	}
	for _, room := range rooms {
		r.mu.RLock()
		_, known := r.byRoom[room]
		_, ding := r.dingOf[room]
		r.mu.RUnlock()
		if known || ding {
			continue
		}
		key, err := r.keyOf(ctx, room)
		if err != nil {
			return d, err
		}
		owner, isDing := strings.CutPrefix(key, dingKey)
		r.mu.RLock()
		wanted := isDing && r.doubt[owner] && r.dings[owner].room == ""
		r.mu.RUnlock()
		if wanted {
			if err := r.saveDing(ctx, owner, dingRow{room: room}); err != nil {
				return d, err
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range everyone {
		delete(r.doubt, p)
	}
	return r.dings[person], nil
}

// leftDing records that a person is no longer in the DING room; the next DING brings him back if he has an account.
func (r *Reconciler) leftDing(ctx context.Context, person string) error {
	r.mu.RLock()
	d, ok := r.dings[person]
	r.mu.RUnlock()
	if !ok || !d.joined {
		return nil
	}
	d.joined = false
	return r.saveDing(ctx, person, d)
}
