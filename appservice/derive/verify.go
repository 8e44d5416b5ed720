package derive

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"sync"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/org"
)

// sight is what a look at the homeserver has found beside what it mended.
type sight struct{ strangers int }

// look compares the record with the homeserver and mends the record, so that the run that follows makes right what
// is wrong there: memberships, names, powers, places in spaces, names of people, locks.
func (r *Reconciler) look(ctx context.Context, tree *org.Tree) (*sight, error) {
	members, err := r.readMembers(ctx)
	if err != nil {
		return nil, err
	}
	r.mu.RLock()
	rooms := make([]roomRow, 0, len(r.rooms))
	for _, row := range r.rooms {
		if row.inside {
			rooms = append(rooms, row)
		}
	}
	var leavers []userRow
	for _, u := range r.users {
		if u.state == stateLocked {
			leavers = append(leavers, u)
		}
	}
	r.mu.RUnlock()
	states, err := r.readRoomSites(ctx)
	if err != nil {
		return nil, err
	}
	s := &sight{}
	var mu sync.Mutex // guards members and s
	x := &run{r: r, tree: tree, report: &Report{ByKind: map[string]int{}}}
	x.wish = desire(tree, &r.opts, r.account, r.place())
	err = each(ctx, x, rooms, func(ctx context.Context, row roomRow) error {
		joined, err := r.mx.JoinedMembers(ctx, "", row.room)
		if err != nil {
			return fmt.Errorf("reading the members of %s: %w", row.key, err)
		}
		wanted := x.wanted(row.key)
		mu.Lock()
		missed := r.missed(joined, members[row.key], wanted)
		mu.Unlock()
		var went map[id.UserID]string
		if missed {
			if went, err = r.whoWent(ctx, row.room); err != nil {
				return fmt.Errorf("reading the members of %s: %w", row.key, err)
			}
		}
		mu.Lock()
		changes := r.compare(row, joined, went, members, wanted, x.hasLeft)
		s.strangers += r.strangers(row, joined, members[row.key])
		mu.Unlock()
		if err := r.saveMembers(ctx, changes); err != nil {
			return err
		}
		if row.key == keyCompany {
			if err := r.compareNames(ctx, joined); err != nil {
				return err
			}
		}
		if row.home == "" {
			if err := r.compareSites(ctx, row, joined, states[row.key]); err != nil {
				return err
			}
		}
		if row.closed || row.home != "" {
			return nil
		}
		return r.compareState(ctx, row)
	})
	if err != nil {
		return nil, err
	}
	return s, each(ctx, x, leavers, func(ctx context.Context, u userRow) error {
		locked, err := r.mx.IsLocked(ctx, r.mx.UserID(u.localpart))
		if mxclient.IsPermanent(err) || err == nil && locked {
			return nil // a homeserver that does not tell is believed
		}
		if err != nil {
			return fmt.Errorf("reading whether an account is locked: %w", err)
		}
		u.state = stateActive
		return r.saveUser(ctx, u)
	})
}

// strangers counts the joined members without a record: somebody with the right to has asked them in.
func (r *Reconciler) strangers(row roomRow, joined map[id.UserID]mxclient.Member, rows map[string]memberRow) int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	n := 0
	for user := range joined {
		if r.isBot(user) || row.home != "" && user.Homeserver() != r.mx.ServerName() {
			continue
		}
		if person := r.personOf(user); person == "" || !rows[person].joined {
			n++
		}
	}
	return n
}

// compareSites mends the record of which sites' bots are in a room of this site.
func (r *Reconciler) compareSites(ctx context.Context, row roomRow, joined map[id.UserID]mxclient.Member, states map[string]string) error {
	if !r.many() {
		return nil
	}
	for _, s := range r.opts.Sites.Others() {
		_, in := joined[s.Bot]
		state := states[s.Name]
		switch {
		case in && state != siteJoined:
			state = siteJoined
		case !in && state != "" && state != siteLeft: // an invitation that came to nothing is made again
			state = siteLeft
		default:
			continue
		}
		if err := r.saveRoomSite(ctx, row.key, s.Name, state); err != nil {
			return err
		}
	}
	return nil
}

// compareNames forgets the recorded names that the homeserver does not show.
func (r *Reconciler) compareNames(ctx context.Context, joined map[id.UserID]mxclient.Member) error {
	var wrong []userRow
	r.mu.RLock()
	for user, m := range joined {
		if u, ok := r.users[r.people[user]]; ok && m.DisplayName != u.name && u.state == stateActive {
			u.name = ""
			wrong = append(wrong, u)
		}
	}
	r.mu.RUnlock()
	for _, u := range wrong {
		if err := r.saveUser(ctx, u); err != nil {
			return err
		}
	}
	return nil
}

// compareState forgets what the homeserver does not have as it was set.
func (r *Reconciler) compareState(ctx context.Context, row roomRow) error {
	before := row
	var name struct {
		Name string `json:"name"`
	}
	if err := r.stateOrNothing(ctx, row.room, "m.room.name", "", &name); err != nil {
		return err
	}
	if name.Name != row.name {
		row.name = ""
	}
	var power, wanted any
	if err := r.stateOrNothing(ctx, row.room, "m.room.power_levels", "", &power); err != nil {
		return err
	}
	if json.Unmarshal([]byte(row.power), &wanted) != nil || !reflect.DeepEqual(power, wanted) {
		row.power = ""
	}
	if parent, ok := r.row(row.parent); ok && parent.home == "" {
		var child struct {
			Via []string `json:"via"`
		}
		if err := r.stateOrNothing(ctx, parent.room, "m.space.child", string(row.room), &child); err != nil {
			return err
		}
		if len(child.Via) == 0 {
			row.ord = "missing" // no order of ours, so it is set again
		}
	}
	if row == before {
		return nil
	}
	return r.saveRoom(ctx, row)
}

func (r *Reconciler) stateOrNothing(ctx context.Context, room id.RoomID, typ, key string, out any) error {
	err := r.mx.State(ctx, "", room, typ, key, out)
	if err == nil || mxclient.IsCode(err, "M_NOT_FOUND") {
		return nil
	}
	return fmt.Errorf("reading %s: %w", typ, err)
}
