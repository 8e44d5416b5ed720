package derive

import (
	"context"
	"encoding/json"
	"fmt"

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
func creation(key string, space bool) map[string]any {
	c := map[string]any{keyField: map[string]string{"key": key}}
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
	var settle []*want
	missing := 0
	for _, w := range x.wish.rooms {
		row, ok := x.r.row(w.key)
		if !ok {
			for len(levels) <= w.depth {
				levels = append(levels, nil)
			}
			levels[w.depth] = append(levels[w.depth], w)
			missing++
		}
		if !ok || row.closed || row.name != w.name || row.power != w.power || row.parent != w.parent || row.ord != w.order {
			settle = append(settle, w)
		}
	}
	gone := x.gone()
	if len(settle)+len(gone) == 0 {
		return nil
	}
	if err := x.begin(ctx); err != nil {
		return err
	}
	x.phase("rooms", missing+len(settle)+len(gone))
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
		if x.wish.byKey[key] == nil && !row.closed {
			out = append(out, row)
		}
	}
	return out
}

// create makes the room with its name, powers and rules in one request. Its alias makes the request safe to repeat.
func (x *run) create(ctx context.Context, w *want) error {
	r := x.r
	var company id.RoomID
	if !w.gated {
		row, ok := r.row(keyCompany)
		if !ok {
			return fmt.Errorf("its company space is missing")
		}
		company = row.room
	}
	history := r.opts.UnitHistory
	if !w.gated || w.space {
		history = "shared"
	}
	req := createRoom{
		Version: roomVersion, Preset: "private_chat", Name: w.name, Creation: creation(w.key, w.space), Power: json.RawMessage(w.power),
		InitialSet: []stateEvent{
			{"m.room.join_rules", "", r.joinRules(company)},
			{"m.room.history_visibility", "", map[string]string{"history_visibility": history}},
			{"m.room.guest_access", "", map[string]string{"guest_access": "forbidden"}},
		},
	}
	if w.parent != "" {
		parent, ok := r.row(w.parent)
		if !ok {
			return fmt.Errorf("its space %s is missing", w.parent)
		}
		req.InitialSet = append(req.InitialSet, stateEvent{"m.space.parent", string(parent.room), r.parentContent()})
	}
	for _, alias := range []string{w.alias, w.alias + "_" + hashed(w.key)[:6]} {
		req.Alias = alias
		row := roomRow{key: w.key, alias: "#" + alias + ":" + r.mx.ServerName(), name: w.name, power: w.power}
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
			row.name, row.power = "", "" // whatever they are: settle sets them
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

func (r *Reconciler) parentContent() map[string]any {
	return map[string]any{"via": []string{r.mx.ServerName()}, "canonical": true}
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
	if row.name != w.name {
		if err := x.set(ctx, row.room, "m.room.name", "", map[string]string{"name": w.name}); err != nil {
			return err
		}
		row.name = w.name
	}
	if row.power != w.power {
		if err := x.set(ctx, row.room, "m.room.power_levels", "", json.RawMessage(w.power)); err != nil {
			return err
		}
		row.power = w.power
	}
	if row.parent != w.parent || row.ord != w.order {
		if err := x.place(ctx, &row, w); err != nil {
			return err
		}
	}
	row.closed = false
	return nil
}

// place hangs the room into its space, after taking it out of the one it was in.
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
	if !ok {
		return fmt.Errorf("its space %s is missing", w.parent)
	}
	x.mu.Lock()
	adopted := x.adopted[w.key]
	x.mu.Unlock()
	if moved || row.closed || adopted { // a new room was born with its parent
		if err := x.set(ctx, row.room, "m.space.parent", string(parent.room), x.r.parentContent()); err != nil {
			return err
		}
	}
	child := map[string]any{"via": []string{x.r.mx.ServerName()}, "order": w.order, "suggested": true}
	if err := x.set(ctx, parent.room, "m.space.child", string(row.room), child); err != nil {
		return err
	}
	row.parent, row.ord = w.parent, w.order
	return nil
}

// unplace takes the room out of its space.
func (x *run) unplace(ctx context.Context, row *roomRow) error {
	parent, ok := x.r.row(row.parent)
	if ok {
		if err := x.set(ctx, parent.room, "m.space.child", string(row.room), struct{}{}); err != nil {
			return err
		}
		if err := x.set(ctx, row.room, "m.space.parent", string(parent.room), struct{}{}); err != nil {
			return err
		}
	}
	row.parent, row.ord = "", ""
	return nil
}

// close makes a room read-only and takes it out of its space.
func (x *run) close(ctx context.Context, row roomRow) (err error) {
	defer x.keep(ctx, row, &row, &err)
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
