package derive

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
)

// joinRuleService is an allow condition of Carillon's own: "a join that this application service's bot vouches for".
// A Carillon homeserver lets the service bring its people into such rooms, one event each; others pass over a
// condition they do not know, and the service invites first.
const joinRuleService = "im.carillon.application_service"

type allow struct {
	Type string    `json:"type"`
	Room id.RoomID `json:"room_id,omitempty"`
	User id.UserID `json:"user_id,omitempty"`
}

// joinRules is the content of m.room.join_rules: gated rooms open to the service alone, the others to whoever is in
// the company's space.
//
// Spec: client-server-api#mroomjoin_rules
func (r *Reconciler) joinRules(company id.RoomID) map[string]any {
	list := []allow{{Type: joinRuleService, User: r.mx.BotID()}}
	for _, bot := range r.otherBots() {
		list = append(list, allow{Type: joinRuleService, User: id.UserID(bot)})
	}
	if company != "" {
		list = append(list, allow{Type: "m.room_membership", Room: company})
	}
	return map[string]any{"join_rule": "restricted", "allow": list}
}

type stateEvent struct {
	Type    string `json:"type"`
	Key     string `json:"state_key"`
	Content any    `json:"content"`
}

// createRoom is the body of POST /createRoom as this package sends it.
type createRoom struct {
	Version    string          `json:"room_version"`
	Preset     string          `json:"preset"`
	Name       string          `json:"name,omitempty"`
	Alias      string          `json:"room_alias_name,omitempty"`
	Invite     []id.UserID     `json:"invite,omitempty"`
	Direct     bool            `json:"is_direct,omitempty"`
	Creation   map[string]any  `json:"creation_content"`
	Power      json.RawMessage `json:"power_level_content_override"`
	InitialSet []stateEvent    `json:"initial_state"`
}

// keyField is where the create event of a room says which room of the company it is.
const keyField = "im.carillon.room"

// creation is the content of the create event. It names the room, so that a room whose record was lost in a crash is
// found again, and so that nobody else's room is taken for ours.
// creators are the bots of the other sites.
func creation(key string, space bool, creators []string) map[string]any {
	c := map[string]any{keyField: map[string]string{"key": key}}
	if len(creators) > 0 {
		c["additional_creators"] = creators
	}
	if space {
		c["type"] = "m.space"
	}
	return c
}

func (r *Reconciler) row(key string) (roomRow, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	row, ok := r.rooms[key]
	return row, ok
}

// roomsPhase makes missing rooms, parents before children, and brings names, powers and places up to date. Rooms
// that the tree no longer has become read-only.
func (x *run) roomsPhase(ctx context.Context) error {
	var levels [][]*want
	var settle, empower []*want
	missing := 0
	unheard, err := x.unheard(ctx)
	if err != nil {
		return err
	}
	for _, w := range x.wish.rooms {
		row, ok := x.r.row(w.key)
		if ok && row.home == "" && w.home != "" && (row.power != x.r.power(w, &row) || row.rules != x.r.rules(w)) {
			empower = append(empower, w)
		}
		if x.elsewhere(w, row, ok) {
			continue
		}
		if unheard && !ok && !ofHead(w.key) {
			x.later(time.Second)
			continue
		}
		if !ok {
			for len(levels) <= w.depth {
				levels = append(levels, nil)
			}
			levels[w.depth] = append(levels[w.depth], w)
			missing++
		}
		if !ok || x.unsettled(w, &row) {
			settle = append(settle, w)
		}
	}
	gone := x.gone()
	if len(settle)+len(gone)+len(empower) == 0 {
		return nil
	}
	if err := x.begin(ctx); err != nil {
		return err
	}
	x.phase("rooms", missing+len(settle)+len(gone)+len(empower))
	if err := each(ctx, x, empower, x.guardRoom("room", x.empower)); err != nil {
		return err
	}
	for _, level := range levels {
		if err := each(ctx, x, level, x.guardRoom("room", x.create)); err != nil {
			return err
		}
	}
	if err := each(ctx, x, settle, x.guardRoom("room", x.settle)); err != nil {
		return err
	}
	return each(ctx, x, gone, func(ctx context.Context, row roomRow) error {
		defer x.tick(1)
		if err := x.close(ctx, row); err != nil {
			return x.fail(ctx, Failure{What: "closing a room", Room: row.key}, err)
		}
		return nil
	})
}

func (x *run) guardRoom(what string, do func(context.Context, *want) error) func(context.Context, *want) error {
	return func(ctx context.Context, w *want) error {
		defer x.tick(1)
		if err := do(ctx, w); err != nil {
			return x.fail(ctx, Failure{What: what, Room: w.key}, err)
		}
		return nil
	}
}

// gone are the rooms the tree no longer has.
func (x *run) gone() []roomRow {
	x.r.mu.RLock()
	defer x.r.mu.RUnlock()
	var out []roomRow
	for key, row := range x.r.rooms {
		if x.wish.byKey[key] == nil && (!row.closed || row.home != "" && row.parent != "") {
			out = append(out, row)
		}
	}
	return out
}

// elsewhere reports whether there is nothing to do for a room because another site looks after it, or is about to.
func (x *run) elsewhere(w *want, row roomRow, known bool) bool {
	switch {
	case w.home == "" && (!known || row.home == "" || row.inside):
		return false
	case w.home == "", !known, row.home == "": // to be taken over, to be heard of, to be handed over
		x.later(time.Minute)
		return true
	}
	return false
}

// unsettled reports whether a room is not as the tree wants it. Of another site's room, its place in a space of this
// one is all that counts.
func (x *run) unsettled(w *want, row *roomRow) bool {
	if w.home != "" {
		if parent, ok := x.r.row(w.parent); ok && parent.home == "" {
			return row.parent != w.parent || row.ord != w.order
		}
		return row.parent != ""
	}
	return row.home != "" || row.closed || row.name != w.name || row.power != x.r.power(w, row) || row.parent != w.parent || row.ord != w.order ||
		row.rules != x.r.rules(w)
}

// create makes the room with its name, powers and rules in one request. Its alias makes the request safe to repeat.
func (x *run) create(ctx context.Context, w *want) error {
	r := x.r
	var company id.RoomID
	if !w.gated {
		row, ok := r.row(keyCompany)
		if !ok && x.wish.byKey[keyCompany].home == "" {
			return fmt.Errorf("its company space is missing")
		}
		company = row.room // none yet where another site makes it: the rules are set again then
	}
	bots := r.otherBots()
	made := roomRow{rules: r.rules(w), inside: true}
	if len(bots) > 0 {
		made.creators = strings.Join(append(bots, string(r.mx.BotID())), " ")
	}
	made.power = r.power(w, &made)
	history := r.opts.UnitHistory
	if !w.gated || w.space {
		history = "shared"
	}
	req := createRoom{
		Version: roomVersion, Preset: "private_chat", Name: w.name, Creation: creation(w.key, w.space, bots), Power: json.RawMessage(made.power),
		InitialSet: []stateEvent{
			{"m.room.join_rules", "", r.joinRules(company)},
			{"m.room.history_visibility", "", map[string]string{"history_visibility": history}},
			{"m.room.guest_access", "", map[string]string{"guest_access": "forbidden"}},
		},
	}
	if w.parent != "" {
		parent, ok := r.row(w.parent)
		switch {
		case ok:
			req.InitialSet = append(req.InitialSet, stateEvent{"m.space.parent", string(parent.room), r.parentContent(&parent)})
			x.mu.Lock()
			x.born[w.key] = true
			x.mu.Unlock()
		case x.wish.byKey[w.parent].home == "":
			return fmt.Errorf("its space %s is missing", w.parent)
		}
	}
	for _, alias := range []string{w.alias, w.alias + "_" + hashed(w.key)[:6]} {
		req.Alias = alias
		row := made
		row.key, row.alias, row.name = w.key, "#"+alias+":"+r.mx.ServerName(), w.name
		room, err := r.mx.CreateRoom(ctx, "", req, true)
		switch {
		case err == nil:
			x.count("create", 1)
			row.room = room
		case mxclient.IsCode(err, "M_ROOM_IN_USE"):
			if row.room, err = x.ours(ctx, row.alias, w.key); err != nil {
				return err
			}
			if row.room == "" {
				continue // the alias is somebody else's
			}
			row.name, row.power, row.rules = "", "", "?" // whatever they are: settle sets them
			x.mu.Lock()
			x.adopted[w.key] = true
			x.mu.Unlock()
		default:
			return fmt.Errorf("creating: %w", err)
		}
		return r.saveRoom(context.WithoutCancel(ctx), row)
	}
	return fmt.Errorf("the alias %s belongs to another room", w.alias)
}

// ours finds the room of an alias if its create event bears the key.
func (x *run) ours(ctx context.Context, alias, key string) (id.RoomID, error) {
	room, err := x.r.mx.ResolveAlias(ctx, alias)
	if err != nil {
		return "", fmt.Errorf("resolving %s: %w", alias, err)
	}
	found, err := x.r.keyOf(ctx, room)
	if err != nil || found != key {
		return "", err
	}
	return room, nil
}

// keyOf reads which room of the company a room is; "" when it is none or not to be seen.
func (r *Reconciler) keyOf(ctx context.Context, room id.RoomID) (string, error) {
	var content struct {
		Room struct {
			Key string `json:"key"`
		} `json:"im.carillon.room"`
	}
	err := r.mx.State(ctx, "", room, "m.room.create", "", &content)
	if mxclient.IsPermanent(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading a create event: %w", err)
	}
	return content.Room.Key, nil
}

func (r *Reconciler) parentContent(parent *roomRow) map[string]any {
	return map[string]any{"via": []string{r.serverOf(parent)}, "canonical": true}
}

// serverOf is the homeserver of the site that looks after a room.
func (r *Reconciler) serverOf(row *roomRow) string {
	if row.home == "" || !r.many() {
		return r.mx.ServerName()
	}
	return r.opts.Sites.Named(row.home).ServerName
}

// keep records how far a room came from what it was, also when the work on it failed.
func (x *run) keep(ctx context.Context, before roomRow, row *roomRow, err *error) {
	if *row == before {
		return
	}
	if saveErr := x.r.saveRoom(context.WithoutCancel(ctx), *row); *err == nil {
		*err = saveErr
	}
}

// settle brings one room up to date and records how far it came.
func (x *run) settle(ctx context.Context, w *want) (err error) {
	row, ok := x.r.row(w.key)
	if !ok {
		return nil // creating it failed and is in the report
	}
	defer x.keep(ctx, row, &row, &err)
	if w.home != "" {
		return x.place(ctx, &row, w)
	}
	if row.home != "" {
		if err := x.takeOver(ctx, &row); err != nil {
			return err
		}
	}
	if err := x.powers(ctx, &row, w); err != nil {
		return err
	}
	if row.name != w.name {
		if err := x.set(ctx, row.room, "m.room.name", "", map[string]string{"name": w.name}); err != nil {
			return err
		}
		row.name = w.name
	}
	if row.parent != w.parent || row.ord != w.order {
		if err := x.place(ctx, &row, w); err != nil {
			return err
		}
	}
	row.closed = false
	return nil
}

// empower gives the site that is to look after a room the powers to do so.
func (x *run) empower(ctx context.Context, w *want) (err error) {
	row, _ := x.r.row(w.key)
	defer x.keep(ctx, row, &row, &err)
	return x.powers(ctx, &row, w)
}

// powers sets who may do what, and who may join.
func (x *run) powers(ctx context.Context, row *roomRow, w *want) error {
	if power := x.r.power(w, row); row.power != power {
		if err := x.set(ctx, row.room, "m.room.power_levels", "", json.RawMessage(power)); err != nil {
			return err
		}
		row.power = power
	}
	if rules := x.r.rules(w); row.rules != rules {
		return x.setRules(ctx, row, w, rules)
	}
	return nil
}

// setRules sets who may join.
func (x *run) setRules(ctx context.Context, row *roomRow, w *want, rules string) error {
	var company id.RoomID
	if !w.gated {
		c, _ := x.r.row(keyCompany)
		company = c.room
	}
	if err := x.set(ctx, row.room, "m.room.join_rules", "", x.r.joinRules(company)); err != nil {
		return err
	}
	row.rules = rules
	return nil
}

// place hangs the room into its space, after taking it out of the one it was in. A room's own event is for its home to
// set, the space's for the home of the space.
func (x *run) place(ctx context.Context, row *roomRow, w *want) error {
	moved := row.parent != "" && row.parent != w.parent
	if moved {
		if err := x.unplace(ctx, row); err != nil {
			return err
		}
	}
	if w.parent == "" {
		row.ord = w.order
		return nil
	}
	parent, ok := x.r.row(w.parent)
	switch {
	case !ok && x.wish.byKey[w.parent].home != "":
		x.later(time.Minute)
		return nil
	case !ok:
		return fmt.Errorf("its space %s is missing", w.parent)
	case w.home != "" && parent.home != "":
		return nil
	}
	x.mu.Lock()
	adopted := x.adopted[w.key] || parent.home != "" && !x.born[w.key]
	x.mu.Unlock()
	if row.home == "" && (moved || row.closed || adopted) { // a new room was born with its parent
		if err := x.set(ctx, row.room, "m.space.parent", string(parent.room), x.r.parentContent(&parent)); err != nil {
			return err
		}
	}
	if parent.home == "" {
		child := map[string]any{"via": []string{x.r.serverOf(row)}, "order": w.order, "suggested": true}
		if err := x.set(ctx, parent.room, "m.space.child", string(row.room), child); err != nil {
			return err
		}
	}
	row.parent, row.ord = w.parent, w.order
	return nil
}

// unplace takes the room out of its space.
func (x *run) unplace(ctx context.Context, row *roomRow) error {
	parent, ok := x.r.row(row.parent)
	if ok && parent.home == "" {
		if err := x.set(ctx, parent.room, "m.space.child", string(row.room), struct{}{}); err != nil {
			return err
		}
	}
	if ok && row.home == "" {
		if err := x.set(ctx, row.room, "m.space.parent", string(parent.room), struct{}{}); err != nil {
			return err
		}
	}
	row.parent, row.ord = "", ""
	return nil
}

// entomb points a room that another site has made anew to the new one.
func (x *run) entomb(ctx context.Context, row *roomRow, key string) error {
	next, ok := x.r.row(strings.TrimSuffix(key, ":"+string(row.room)))
	if !ok {
		return nil
	}
	return x.set(ctx, row.room, "m.room.tombstone", "", map[string]string{"body": x.r.opts.leaveReason(), "replacement_room": string(next.room)})
}

// close makes a room read-only and takes it out of its space.
func (x *run) close(ctx context.Context, row roomRow) (err error) {
	defer x.keep(ctx, row, &row, &err)
	if row.home != "" { // its home makes it read-only
		if row.parent != "" {
			err = x.unplace(ctx, &row)
		}
		row.closed = row.closed || err == nil
		return err
	}
	if key, ok := strings.CutPrefix(row.key, movedKey); ok {
		if err := x.entomb(ctx, &row, key); err != nil {
			return err
		}
	}
	if power := closedPower(); row.power != power {
		if err := x.set(ctx, row.room, "m.room.power_levels", "", json.RawMessage(power)); err != nil {
			return err
		}
		row.power = power
	}
	if row.parent != "" {
		if err := x.unplace(ctx, &row); err != nil {
			return err
		}
	}
	row.closed = true
	return nil
}

func (x *run) set(ctx context.Context, room id.RoomID, typ, key string, content any) error {
	if _, err := x.r.mx.SetState(ctx, room, "", typ, key, content); err != nil {
		return fmt.Errorf("setting %s: %w", typ, err)
	}
	x.count(typ, 1)
	return nil
}
