package rooms

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// CreateRequest is the body of POST /createRoom.
// Spec: client-server-api#post_matrixclientv3createroom
type CreateRequest struct {
	Visibility      string          `json:"visibility"`
	AliasName       string          `json:"room_alias_name"`
	Name            string          `json:"name"`
	Topic           string          `json:"topic"`
	Invite          []matrix.UserID `json:"invite"`
	Version         string          `json:"room_version"`
	CreationContent json.RawMessage `json:"creation_content"`
	InitialState    []InitialState  `json:"initial_state"`
	Preset          string          `json:"preset"`
	IsDirect        bool            `json:"is_direct"`
	PowerLevels     json.RawMessage `json:"power_level_content_override"`
	ThirdParty      []ThirdParty    `json:"invite_3pid"`
}

// InitialState is one event of initial_state.
type InitialState struct {
	Type     string          `json:"type"`
	StateKey string          `json:"state_key"`
	Content  json.RawMessage `json:"content"`
}

// preset is what a preset sets.
type preset struct {
	joinRule, history, guests string
	invite                    int // level needed to invite
}

func presetOf(name string) (preset, bool) {
	switch name {
	case "private_chat", "trusted_private_chat":
		return preset{spec.Invite, "shared", "can_join", 0}, true
	case "public_chat":
		return preset{spec.Public, "shared", "", 50}, true
	}
	return preset{}, false
}

// Create makes a room: all its first events in one commit, then the invitations.
func (r *Rooms) Create(ctx context.Context, creator matrix.UserID, q CreateRequest, ts int64) (matrix.RoomID, error) {
	version, p, err := r.checkCreate(ctx, creator, &q)
	if err != nil {
		return "", err
	}
	impl, err := events.RoomVersion(version)
	if err != nil || !impl.Stable() {
		return "", matrix.UnsupportedRoomVersion(string(version))
	}
	rm := &room{version: version, impl: impl, state: map[state.Key]*entry{}, loaded: true, gen: 1}
	list, err := r.firstEvents(ctx, rm, creator, q, p, ts)
	if err != nil {
		return "", err
	}
	alias := matrix.RoomAlias("")
	if q.AliasName != "" {
		alias = matrix.RoomAlias("#" + q.AliasName + ":" + string(r.o.Signer.Server))
	}
	rm.mu.Lock()
	w, err := r.start(ctx, rm, list, func(tx *sqldb.Tx, _ stream.Pos) error {
		if alias != "" && r.o.ClaimAlias != nil {
			if err := r.o.ClaimAlias(tx, alias, rm.id, creator); err != nil {
				return err
			}
		}
		if q.Visibility == "public" && r.o.Publish != nil {
			return r.o.Publish(tx, rm.id)
		}
		return nil
	})
	rm.mu.Unlock()
	if err == nil {
		_, err = w.Wait()
	}
	if err != nil {
		return "", err
	}
	r.adopt(rm, list)
	for _, u := range q.Invite {
		err := r.Invite(ctx, MemberChange{Room: rm.id, Sender: creator, Target: u, Direct: q.IsDirect, TS: ts})
		if err != nil {
			log.WithError(err).WithField("room_id", rm.id).WithField("user_id", u).Info("an invitation to a new room failed")
		}
	}
	for _, p := range q.ThirdParty {
		if err := r.InviteThirdParty(ctx, MemberChange{Room: rm.id, Sender: creator, Direct: q.IsDirect, TS: ts}, p); err != nil {
			log.WithError(err).WithField("room_id", rm.id).Info("an invitation by address to a new room failed")
		}
	}
	return rm.id, nil
}

// adopt keeps a room that has just been created in memory: the next events
// follow at once.
func (r *Rooms) adopt(rm *room, list []*built) {
	rm.mu.Lock()
	defer rm.mu.Unlock()
	r.settle(rm, list, rm.gen, nil)
	r.mu.Lock()
	taken := r.cached[rm.id] != nil // somebody was faster and has read it
	if !taken {
		rm.used = r.o.Now().UnixNano()
		r.cached[rm.id] = rm
	}
	r.mu.Unlock()
	if !taken {
		r.weigh(rm, eventWeight*len(list))
	}
}

func (r *Rooms) checkCreate(ctx context.Context, creator matrix.UserID, q *CreateRequest) (gomatrixserverlib.RoomVersion, preset, error) {
	version := gomatrixserverlib.RoomVersion(r.o.DefaultVersion)
	if q.Version != "" {
		version = gomatrixserverlib.RoomVersion(q.Version)
	}
	if !Supported(string(version)) {
		return "", preset{}, matrix.UnsupportedRoomVersion(string(version))
	}
	switch q.Visibility {
	case "", "private", "public":
	default:
		return "", preset{}, matrix.InvalidParam("visibility must be public or private, not %q", q.Visibility)
	}
	if q.Preset == "" {
		q.Preset = "private_chat"
		if q.Visibility == "public" {
			q.Preset = "public_chat"
		}
	}
	p, ok := presetOf(q.Preset)
	if !ok {
		return "", preset{}, matrix.InvalidParam("preset must be private_chat, trusted_private_chat or public_chat, not %q", q.Preset)
	}
	for _, u := range q.Invite {
		if _, err := matrix.ParseUserID(string(u)); err != nil {
			return "", preset{}, err
		}
		if r.isLocal(u) && r.o.Exists != nil {
			ok, err := r.o.Exists(ctx, u)
			if err != nil {
				return "", preset{}, err
			}
			if !ok {
				return "", preset{}, matrix.NotFound("%s is not a user of this server", u)
			}
		}
	}
	if len(q.ThirdParty) > 0 && r.identity == nil {
		return "", preset{}, noIdentity()
	}
	for _, p := range q.ThirdParty {
		if err := p.check(); err != nil {
			return "", preset{}, err
		}
	}
	if q.AliasName != "" {
		if _, err := matrix.ParseRoomAlias("#" + q.AliasName + ":" + string(r.o.Signer.Server)); err != nil {
			return "", preset{}, err
		}
	}
	if len(q.PowerLevels) > 0 && !isObject(q.PowerLevels) {
		return "", preset{}, matrix.BadJSON("power_level_content_override must be an object")
	}
	if len(q.CreationContent) > 0 && !isObject(q.CreationContent) {
		return "", preset{}, matrix.BadJSON("creation_content must be an object")
	}
	return version, p, nil
}

func isObject(raw json.RawMessage) bool {
	var m map[string]json.RawMessage
	return json.Unmarshal(raw, &m) == nil && m != nil
}

// foundingTime is the present, in ms, or a little later: no two rooms of this server
// have the same. From version 12 on a room's ID is made of its first event, so that
// two rooms of one person that ask for the same would be one.
func (r *Rooms) foundingTime() int64 {
	for {
		last := r.founded.Load()
		ts := max(matrix.Millis(r.o.Now()), last+1)
		if r.founded.CompareAndSwap(last, ts) {
			return ts
		}
	}
}

// firstEvents builds what the room begins with, in the order that the
// specification gives. The room is not shared yet.
func (r *Rooms) firstEvents(ctx context.Context, rm *room, creator matrix.UserID, q CreateRequest, p preset, ts int64) ([]*built, error) {
	var list []*built
	add := func(typ, key string, content any) error {
		raw, ok := content.(json.RawMessage)
		if !ok {
			var err error
			if raw, err = json.Marshal(content); err != nil {
				return err
			}
		}
		b, err := r.build(ctx, rm, Draft{Room: rm.id, Sender: creator, Type: typ, StateKey: &key, Content: raw, TS: ts})
		if err != nil {
			return err
		}
		list = append(list, b)
		if typ == spec.MRoomCreate {
			rm.id = b.ev.Room
		}
		return nil
	}
	create, err := r.createContent(rm, creator, q)
	if err != nil {
		return nil, err
	}
	if !rm.impl.DomainlessRoomIDs() {
		rm.id = matrix.RoomID("!" + matrix.RandomString(18) + ":" + string(r.o.Signer.Server))
	}
	now := ts
	if ts == 0 {
		ts = r.foundingTime()
	}
	err = add(spec.MRoomCreate, "", create)
	if ts = now; err != nil {
		return nil, err
	}
	join, err := r.memberContent(ctx, MemberChange{Room: rm.id, Sender: creator, Target: creator}, spec.Join)
	if err != nil {
		return nil, err
	}
	if err := add(spec.MRoomMember, string(creator), join); err != nil {
		return nil, err
	}
	levels, err := powerLevelContent(rm, creator, q, p)
	if err != nil {
		return nil, err
	}
	if err := add(spec.MRoomPowerLevels, "", levels); err != nil {
		return nil, err
	}
	rest, err := r.furtherState(q, p)
	if err != nil {
		return nil, err
	}
	for _, f := range rest {
		if err := add(f.typ, f.key, f.content); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// firstState is a state event that a new room begins with.
type firstState struct {
	typ, key string
	content  any
}

// furtherState is what follows the power levels, in the order that the
// specification gives: what the preset says unless the request says it itself,
// then the request's own state, name and topic.
func (r *Rooms) furtherState(q CreateRequest, p preset) (list []firstState, err error) {
	add := func(typ, key string, content any) { list = append(list, firstState{typ, key, content}) }
	if q.AliasName != "" {
		alias := "#" + q.AliasName + ":" + string(r.o.Signer.Server)
		add("m.room.canonical_alias", "", map[string]any{"alias": alias})
	}
	given := func(typ string) bool {
		return slices.ContainsFunc(q.InitialState, func(s InitialState) bool { return s.Type == typ && s.StateKey == "" })
	}
	for _, s := range []struct{ typ, field, value string }{
		{spec.MRoomJoinRules, "join_rule", p.joinRule},
		{spec.MRoomHistoryVisibility, "history_visibility", p.history},
		{"m.room.guest_access", "guest_access", p.guests},
	} {
		if s.value != "" && !given(s.typ) { // guests are forbidden where nothing is said
			add(s.typ, "", map[string]any{s.field: s.value})
		}
	}
	for _, s := range q.InitialState {
		if s.Type == "" || s.Type == spec.MRoomCreate || s.Type == spec.MRoomMember {
			return nil, matrix.InvalidParam("initial_state cannot hold %q", s.Type)
		}
		if len(s.Content) == 0 {
			s.Content = json.RawMessage("{}")
		}
		add(s.Type, s.StateKey, s.Content)
	}
	if q.Name != "" {
		add("m.room.name", "", map[string]any{"name": q.Name})
	}
	if q.Topic != "" {
		add("m.room.topic", "", map[string]any{"topic": q.Topic, "m.topic": map[string]any{"m.text": []any{map[string]any{"body": q.Topic}}}})
	}
	return list, nil
}

func (r *Rooms) createContent(rm *room, creator matrix.UserID, q CreateRequest) (map[string]any, error) {
	c := map[string]any{}
	if len(q.CreationContent) > 0 {
		if err := json.Unmarshal(q.CreationContent, &c); err != nil {
			return nil, matrix.BadJSON("creation_content must be an object")
		}
	}
	c["room_version"] = string(rm.version)
	delete(c, "creator")
	if rm.impl.CreatorInCreateEvent() {
		c["creator"] = string(creator)
	}
	if !rm.impl.PrivilegedCreators() {
		return c, nil
	}
	var more []string
	if list, ok := c["additional_creators"]; ok {
		raw, ok := list.([]any)
		if !ok {
			return nil, matrix.InvalidParam("additional_creators must be a list of user IDs")
		}
		for _, v := range raw {
			s, _ := v.(string)
			if _, err := matrix.ParseUserID(s); err != nil {
				return nil, matrix.InvalidParam("additional_creators must be a list of user IDs")
			}
			more = append(more, s)
		}
	}
	if q.Preset == "trusted_private_chat" {
		for _, u := range q.Invite {
			if !slices.Contains(more, string(u)) {
				more = append(more, string(u))
			}
		}
	}
	if len(more) > 0 {
		c["additional_creators"] = more
	}
	return c, nil
}

// powerLevelContent is the default levels with the client's over them.
func powerLevelContent(rm *room, creator matrix.UserID, q CreateRequest, p preset) (map[string]any, error) {
	users := map[string]any{}
	tombstone := 100
	if rm.impl.PrivilegedCreators() {
		tombstone = 150
	} else {
		users[string(creator)] = 100
		if q.Preset == "trusted_private_chat" {
			for _, u := range q.Invite {
				users[string(u)] = 100
			}
		}
	}
	c := map[string]any{
		"users": users, "users_default": 0, "events_default": 0, "state_default": 50,
		"ban": 50, "kick": 50, "redact": 50, "invite": p.invite,
		"events": map[string]any{
			"m.room.name": 50, "m.room.power_levels": 100, "m.room.history_visibility": 100, "m.room.canonical_alias": 50,
			"m.room.avatar": 50, "m.room.tombstone": tombstone, "m.room.server_acl": 100, "m.room.encryption": 100,
		},
		"notifications": map[string]any{"room": 50},
	}
	if len(q.PowerLevels) > 0 {
		var over map[string]json.RawMessage
		if err := json.Unmarshal(q.PowerLevels, &over); err != nil {
			return nil, matrix.BadJSON("power_level_content_override must be an object")
		}
		for k, v := range over {
			c[k] = v
		}
	}
	return c, nil
}
