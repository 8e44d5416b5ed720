package moderation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	log "github.com/sirupsen/logrus"
	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
)

// bansAbreast is how many bans are repeated at a time, so that they share commits.
const bansAbreast = 16

// transferred are the types of state that a replacement takes over as it is.
//
// Spec: client-server-api#room-upgrades
var transferred = []string{
	"m.room.server_acl", "m.room.encryption", "m.room.name", "m.room.avatar", "m.room.topic",
	"m.room.guest_access", "m.room.history_visibility", "m.room.join_rules",
}

// upgrade is a room being replaced.
type upgrade struct {
	room, to     matrix.RoomID
	by           matrix.UserID
	version      string
	oldCreators  bool // the old room's creators stand above all levels
	newCreators  bool // those of the new one do
	first, final *levels
	closing      json.RawMessage // power levels that close the old room, nil if it needs none
	bans         []*events.Event
	public       bool // the old room is in the directory
}

func (m *Moderation) postUpgrade(c *httpapi.Call) (any, error) {
	room, err := c.RoomVar("roomId")
	if err != nil {
		return nil, err
	}
	var body struct {
		Version  *string  `json:"new_version"`
		Creators []string `json:"additional_creators"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.Version == nil {
		return nil, matrix.MissingParam("new_version is needed")
	}
	var creators []matrix.UserID
	for _, s := range body.Creators {
		u, err := matrix.ParseUserID(s)
		if err != nil {
			return nil, matrix.InvalidParam("additional_creators must be a list of user IDs")
		}
		if u != c.Caller.User && !slices.Contains(creators, u) {
			creators = append(creators, u)
		}
	}
	to, err := m.Upgrade(c.Ctx(), c.Caller.User, room, *body.Version, creators)
	if err != nil {
		return nil, err
	}
	return map[string]any{"replacement_room": to}, nil
}

// Upgrade replaces a room by one of another version. Asked again for what was
// done already it answers with the same room.
//
// Spec: post_matrixclientv3roomsroomidupgrade
func (m *Moderation) Upgrade(ctx context.Context, user matrix.UserID, room matrix.RoomID, version string, creators []matrix.UserID) (matrix.RoomID, error) {
	if !rooms.Supported(version) {
		return "", matrix.UnsupportedRoomVersion(version)
	}
	if !m.Hub.Joined(user, room) {
		return "", matrix.Forbidden("you are not in room %s", room)
	}
	unlock, err := m.upgrading.LockContext(ctx, room)
	if err != nil {
		return "", err
	}
	defer unlock()
	power, err := m.Rooms.Power(ctx, room, user)
	if err != nil {
		return "", err
	}
	if !power.May(tombstoneType, true) {
		return "", matrix.Forbidden("You cannot upgrade this room")
	}
	if to, err := m.upgraded(ctx, user, room, version); err != nil || to != "" {
		return to, err
	}
	// From here on the work is finished, even if the client does not wait.
	ctx = context.WithoutCancel(ctx)
	u := &upgrade{room: room, by: user, version: version, newCreators: privileged(version)}
	request, err := m.plan(ctx, u, creators)
	if err != nil {
		return "", err
	}
	if u.to, err = m.Rooms.Create(ctx, user, *request, 0); err != nil {
		return "", fmt.Errorf("creating the replacement: %w", err)
	}
	if err := m.ban(ctx, u); err != nil {
		return "", err
	}
	if u.final != nil {
		levels, err := u.final.content()
		if err == nil {
			err = m.set(ctx, u.to, user, "m.room.power_levels", levels)
		}
		if err != nil {
			return "", fmt.Errorf("power levels of the replacement: %w", err)
		}
	}
	if err := m.replace(ctx, u); err != nil {
		return "", err
	}
	log.WithField("room_id", room).WithField("replacement", u.to).WithField("user_id", user).Info("a room has been upgraded")
	return u.to, nil
}

// privileged reports whether creators stand above all levels.
func privileged(version string) bool {
	n, err := strconv.Atoi(version)
	return err == nil && n >= 12
}

// upgraded finds the replacement that this very upgrade has made before.
func (m *Moderation) upgraded(ctx context.Context, user matrix.UserID, room matrix.RoomID, version string) (matrix.RoomID, error) {
	tombstone, err := m.Rooms.State(ctx, room, tombstoneType, "")
	if err != nil || tombstone == nil || tombstone.Sender != user {
		return "", err
	}
	to, err := m.reference(ctx, room, tombstoneType, "replacement_room")
	if err != nil || to == "" || !m.Hub.Joined(user, to) {
		return "", err
	}
	create, err := m.Rooms.State(ctx, to, "m.room.create", "")
	if err != nil || create == nil || create.Sender != user || string(create.Version) != version ||
		create.ContentString("predecessor.room_id") != string(room) {
		return "", err
	}
	return to, nil
}

// plan reads the old room and says how the new one is made.
func (m *Moderation) plan(ctx context.Context, u *upgrade, creators []matrix.UserID) (*rooms.CreateRequest, error) {
	create, err := m.Rooms.State(ctx, u.room, "m.room.create", "")
	if err != nil {
		return nil, err
	}
	if create == nil {
		return nil, matrix.NotFound("the room %s has no create event", u.room)
	}
	u.oldCreators = privileged(string(create.Version))
	q := &rooms.CreateRequest{Version: u.version, Preset: "private_chat"}
	if q.CreationContent, err = m.createContent(ctx, u, create, creators); err != nil {
		return nil, err
	}
	if q.InitialState, err = m.initialState(ctx, u, create); err != nil {
		return nil, err
	}
	levels, err := m.Rooms.State(ctx, u.room, "m.room.power_levels", "")
	if err != nil {
		return nil, err
	}
	if err := u.levels(create, levels, creators); err != nil {
		return nil, err
	}
	if q.PowerLevels, err = u.first.content(); err != nil {
		return nil, err
	}
	if u.public, err = m.Directory.Published(ctx, u.room); u.public {
		q.Visibility = "public"
	}
	return q, err
}

func (m *Moderation) createContent(ctx context.Context, u *upgrade, create *events.Event, creators []matrix.UserID) (json.RawMessage, error) {
	predecessor := map[string]any{"room_id": u.room}
	if !u.newCreators {
		// The tombstone names the new room and cannot be known before it.
		var last []*events.Event
		err := m.DB.Read(ctx, func(tx *sqldb.Tx) (err error) {
			last, err = m.Events.Timeline(tx, u.room, 0, state.Open, 1, false)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("reading the last event: %w", err)
		}
		if len(last) > 0 {
			predecessor["event_id"] = last[0].ID
		}
	}
	content := map[string]any{"predecessor": predecessor}
	old := create.Content()
	for _, k := range []string{"type", "m.federate"} {
		if v := gjson.GetBytes(old, gjson.Escape(k)); v.Exists() {
			content[k] = json.RawMessage(v.Raw)
		}
	}
	if u.newCreators && len(creators) > 0 {
		content["additional_creators"] = creators
	}
	return json.Marshal(content)
}

// initialState are the state events that the new room takes over.
func (m *Moderation) initialState(ctx context.Context, u *upgrade, create *events.Event) (list []rooms.InitialState, err error) {
	var children []*events.Event
	err = m.DB.Read(ctx, func(tx *sqldb.Tx) error {
		members, err := state.TypeAt(tx, u.room, "m.room.member", state.Open-1)
		if err != nil {
			return err
		}
		banned := slices.DeleteFunc(members, func(r state.Row) bool { return r.Membership != "ban" })
		if u.bans, err = m.Rooms.EventsOf(tx, banned); err != nil {
			return err
		}
		children = nil
		if create.ContentString("type") != "m.space" {
			return nil
		}
		rows, err := state.TypeAt(tx, u.room, "m.space.child", state.Open-1)
		if err == nil {
			children, err = m.Rooms.EventsOf(tx, rows)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading state: %w", err)
	}
	// What a room without these events means is said, for the preset says more.
	defaults := map[string]string{
		"m.room.guest_access":       `{"guest_access":"forbidden"}`,
		"m.room.history_visibility": `{"history_visibility":"shared"}`,
		"m.room.join_rules":         `{"join_rule":"invite"}`,
	}
	for _, typ := range transferred {
		e, err := m.Rooms.State(ctx, u.room, typ, "")
		if err != nil {
			return nil, err
		}
		content := json.RawMessage(defaults[typ])
		if e != nil && !e.Redacted() && transferable(e.Content()) {
			content = e.Content()
		}
		if typ == "m.room.join_rules" && !knowsRule(u.version, gjson.GetBytes(content, "join_rule").Str) {
			content = json.RawMessage(defaults[typ])
		}
		if len(content) > 0 {
			list = append(list, rooms.InitialState{Type: typ, Content: content})
		}
	}
	for _, e := range children {
		if gjson.GetBytes(e.Content(), "via").IsArray() && transferable(e.Content()) {
			list = append(list, rooms.InitialState{Type: e.Type, StateKey: e.Key(), Content: e.Content()})
		}
	}
	return list, nil
}

// transferable reports whether a room of any version takes the content: old
// versions have taken numbers that new ones refuse.
func transferable(content []byte) bool {
	_, err := matrix.CanonicalJSON(content, true)
	return err == nil
}

// knowsRule reports whether a room version has a join rule.
func knowsRule(version, rule string) bool {
	n, err := strconv.Atoi(version)
	if err != nil {
		return true
	}
	switch rule {
	case "public", "invite", "private":
		return true
	case "knock":
		return n >= 7
	case "restricted":
		return n >= 8
	case "knock_restricted":
		return n >= 10
	}
	return false
}

// levels plans the power levels of the new room: those to begin with, and those
// in the end where the one who upgrades needs more power than he had.
func (u *upgrade) levels(create, power *events.Event, creators []matrix.UserID) (err error) {
	var content []byte
	if power != nil {
		content = power.Content()
	}
	creator := create.Sender
	if u.oldCreators {
		creator = ""
	}
	l := readLevels(content, creator)
	u.first = l
	if u.closing, err = closing(content, l); err != nil {
		return fmt.Errorf("power levels of the old room: %w", err)
	}
	if u.newCreators {
		delete(l.Users, string(u.by))
		for _, c := range creators {
			delete(l.Users, string(c))
		}
		if !u.oldCreators || l.event(tombstoneType) <= l.Single["state_default"] {
			l.Events[tombstoneType] = max(l.event(tombstoneType), tombstoneLevel, min(l.Single["state_default"]+1, maxLevel))
		}
		return nil
	}
	var banned []matrix.UserID
	for _, e := range u.bans {
		banned = append(banned, matrix.UserID(e.Key()))
	}
	if u.oldCreators { // they have no level there
		top := max(100, l.highest(nil))
		l.Users[string(create.Sender)] = top
		gjson.GetBytes(create.Content(), "additional_creators").ForEach(func(_, v gjson.Result) bool {
			if _, err := matrix.ParseUserID(v.Str); err == nil {
				l.Users[v.Str] = top
			}
			return true
		})
	}
	if need := l.highest(banned); l.of(u.by) < need {
		final := *l
		u.final = &final
		l.Users = maps.Clone(final.Users)
		l.Users[string(u.by)] = need
	}
	return nil
}

// ban repeats the bans of the old room.
func (m *Moderation) ban(ctx context.Context, u *upgrade) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	places := make(chan struct{}, bansAbreast)
	for _, e := range u.bans {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			target := matrix.UserID(e.Key())
			err := m.Rooms.Ban(ctx, rooms.MemberChange{Room: u.to, Sender: u.by, Target: target, Reason: e.ContentString("reason")})
			if err != nil && !refused(err, u.to, "a ban was not carried over") {
				mu.Lock()
				failed = fmt.Errorf("banning in the replacement: %w", err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return failed
}

// refused reports whether an error is the room's refusal, which does not stop an
// upgrade; it goes to the log.
func refused(err error, room matrix.RoomID, what string) bool {
	var me *matrix.Error
	if !errors.As(err, &me) {
		return false
	}
	log.WithError(err).WithField("room_id", room).Info("room upgrade: " + what)
	return true
}

// replace moves the aliases and closes the old room.
func (m *Moderation) replace(ctx context.Context, u *upgrade) error {
	aliases, err := m.Directory.Aliases(ctx, u.room)
	if err != nil {
		return err
	}
	move := func(from, to matrix.RoomID) error {
		return m.DB.Write(ctx, func(tx *sqldb.Tx) error { return m.Directory.MoveAliases(tx, from, to) })
	}
	if err := move(u.room, u.to); err != nil {
		return fmt.Errorf("moving aliases: %w", err)
	}
	content, err := json.Marshal(map[string]any{"body": "This room has been replaced", "replacement_room": u.to})
	if err == nil {
		err = m.set(ctx, u.room, u.by, tombstoneType, content)
	}
	if err != nil { // the old room stays in use
		if back := move(u.to, u.room); back != nil {
			err = errors.Join(err, back)
		}
		return fmt.Errorf("closing the old room: %w", err)
	}
	if err := m.moveCanonical(ctx, u, aliases); err != nil {
		return err
	}
	if u.public {
		if err := m.Directory.SetPublished(ctx, "", u.room, false); err != nil {
			return err
		}
	}
	if u.closing != nil {
		err := m.set(ctx, u.room, u.by, "m.room.power_levels", u.closing)
		if err != nil && !refused(err, u.room, "people may go on in the old room") {
			return err
		}
	}
	return nil
}

// moveCanonical takes the aliases that have moved out of the old room's canonical
// alias event and puts them into that of the new one.
func (m *Moderation) moveCanonical(ctx context.Context, u *upgrade, moved []matrix.RoomAlias) error {
	e, err := m.Rooms.State(ctx, u.room, "m.room.canonical_alias", "")
	if err != nil || e == nil || len(moved) == 0 {
		return err
	}
	var c struct {
		Alias matrix.RoomAlias   `json:"alias"`
		Alt   []matrix.RoomAlias `json:"alt_aliases"`
	}
	if json.Unmarshal(e.Content(), &c) != nil {
		return nil
	}
	here, there, content := map[string]any{}, []matrix.RoomAlias{}, e.Content()
	if slices.Contains(moved, c.Alias) {
		here["alias"] = c.Alias
		if content, err = sjson.DeleteBytes(content, "alias"); err != nil {
			return err
		}
	}
	var alt []matrix.RoomAlias
	for _, a := range c.Alt {
		if slices.Contains(moved, a) {
			alt = append(alt, a)
		} else {
			there = append(there, a)
		}
	}
	if len(alt) > 0 {
		here["alt_aliases"] = alt
		if content, err = sjson.SetBytes(content, "alt_aliases", there); err != nil {
			return err
		}
	}
	if len(here) == 0 {
		return nil
	}
	now, err := json.Marshal(here)
	if err != nil {
		return err
	}
	if err := m.set(ctx, u.to, u.by, "m.room.canonical_alias", now); err != nil && !refused(err, u.to, "the new room has no canonical alias") {
		return err
	}
	if err := m.set(ctx, u.room, u.by, "m.room.canonical_alias", content); err != nil && !refused(err, u.room, "the old room keeps its canonical alias") {
		return err
	}
	return nil
}

func (m *Moderation) set(ctx context.Context, room matrix.RoomID, user matrix.UserID, typ string, content json.RawMessage) error {
	key := ""
	_, err := m.Rooms.Send(ctx, rooms.Draft{Room: room, Sender: user, Type: typ, StateKey: &key, Content: content})
	return err
}
