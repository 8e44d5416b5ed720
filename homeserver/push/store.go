package push

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tidwall/sjson"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	qRules     = `SELECT user_id, pos, changes FROM push_rules`
	qSaveRules = `INSERT INTO push_rules (user_id, pos, changes) VALUES ($1, $2, $3)
ON CONFLICT (user_id) DO UPDATE SET pos = excluded.pos, changes = excluded.changes`
)

// EventType is the type of the account data event that carries the rules.
const EventType = "m.push_rules"

// userRules is what is kept of a user who has changed a rule once. It is
// replaced, never changed.
type userRules struct {
	pos     stream.Pos
	changes *changes
	set     *Ruleset
	custom  bool // differs from the default rules
}

// RulesChange is the payload of the log's change when a user's rules change;
// its kind is account data.
type RulesChange struct {
	User  matrix.UserID
	rules *userRules
}

// load reads the rules of all users who have changed any.
func (p *Push) load(ctx context.Context) error {
	type row struct {
		user matrix.UserID
		pos  stream.Pos
		doc  string
	}
	var rows []row
	err := p.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		rows, err = sqldb.Select(tx, func(r *sqldb.Rows) (x row, err error) {
			err = r.Scan(&x.user, &x.pos, &x.doc)
			return x, err
		}, qRules)
		return err
	})
	if err != nil {
		return fmt.Errorf("reading push rules: %w", err)
	}
	for _, r := range rows {
		c := &changes{}
		if err := json.Unmarshal([]byte(r.doc), c); err != nil {
			return fmt.Errorf("push rules of %s: %w", r.user, err)
		}
		p.rules[r.user] = &userRules{pos: r.pos, changes: c, set: p.build(r.user, c), custom: !c.empty()}
	}
	return nil
}

func (p *Push) userRules(user matrix.UserID) *userRules {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.rules[user]
}

// Ruleset is the user's rules as they stand.
func (p *Push) Ruleset(user matrix.UserID) *Ruleset {
	if u := p.userRules(user); u != nil {
		return u.set
	}
	return p.build(user, nil)
}

// Rules is the content of the user's m.push_rules event.
func (p *Push) Rules(user matrix.UserID) []byte { return p.Ruleset(user).JSON() }

// RulesSince is the content of m.push_rules if the rules have changed in
// (from, to], else nil.
func (p *Push) RulesSince(user matrix.UserID, from, to stream.Pos) []byte {
	if u := p.userRules(user); u != nil && u.pos > from && u.pos <= to {
		return u.set.JSON()
	}
	return nil
}

// change applies fn to a copy of the user's changes and stores the outcome.
func (p *Push) change(ctx context.Context, user matrix.UserID, fn func(c *changes) error) error {
	unlock, err := p.locks.LockContext(ctx, user)
	if err != nil {
		return err
	}
	defer unlock()
	c := &changes{}
	if old := p.userRules(user); old != nil {
		c = old.changes.clone()
	}
	if err := fn(c); err != nil {
		return err
	}
	doc, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encoding push rules: %w", err)
	}
	if len(doc) > maxRulesSize {
		return matrix.TooLarge("the push rules would take more than %d bytes", maxRulesSize)
	}
	set, text := p.build(user, c), string(doc)
	_, err = p.log.Append(ctx, 1, func(tx *sqldb.Tx, pos stream.Pos) ([]stream.Change, error) {
		if _, err := tx.Exec(qSaveRules, string(user), int64(pos), text); err != nil {
			return nil, err
		}
		u := &userRules{pos: pos, changes: c, set: set, custom: !c.empty()}
		return []stream.Change{{Pos: pos, Kind: stream.KindAccountData, User: user, Payload: &RulesChange{user, u}}}, nil
	})
	if err != nil {
		return fmt.Errorf("storing push rules: %w", err)
	}
	return nil
}

// clone copies everything that fn of change may write to.
func (c *changes) clone() *changes {
	n := &changes{Rules: make(map[Kind][]userRule, len(c.Rules)), Enabled: maps.Clone(c.Enabled), Actions: maps.Clone(c.Actions)}
	for k, l := range c.Rules {
		n.Rules[k] = slices.Clone(l)
	}
	return n
}

func (c *changes) find(k Kind, id string) int {
	return slices.IndexFunc(c.Rules[k], func(r userRule) bool { return r.ID == id })
}

// put creates or updates a rule and places it. before and after are IDs of
// other rules of the user, or "".
//
// Spec: put_matrixclientv3pushrulesglobalkindruleid
func (c *changes) put(k Kind, r userRule, before, after string) error {
	if c.Rules == nil {
		c.Rules = map[Kind][]userRule{}
	}
	list := c.Rules[k]
	at := 0
	if i := c.find(k, r.ID); i >= 0 {
		r.Disabled = list[i].Disabled
		if before == r.ID || after == r.ID {
			before, after = "", ""
		}
		list = slices.Delete(list, i, i+1)
		at = i
	} else if len(list) >= maxRules {
		return matrix.InvalidParam("there are %d rules of kind %s already", maxRules, k)
	}
	anchor := before // it decides when both are given
	if anchor == "" {
		anchor = after
	}
	if anchor != "" {
		i := slices.IndexFunc(list, func(o userRule) bool { return o.ID == anchor })
		if i < 0 {
			return matrix.Unknown("before/after rule not found: %s", anchor)
		}
		// Most important first: next-most important than an anchor is right
		// above it, next-less important right below.
		at = i
		if before == "" {
			at = i + 1
		}
	}
	c.Rules[k] = slices.Insert(list, at, r)
	return nil
}

func (c *changes) delete(k Kind, id string) error {
	i := c.find(k, id)
	if i < 0 {
		return matrix.NotFound("there is no push rule %q of kind %s", id, k)
	}
	c.Rules[k] = slices.Delete(c.Rules[k], i, i+1)
	return nil
}

// enable switches a rule on or off, whether of the user's own or predefined.
func (c *changes) enable(defaults map[Kind][]Rule, k Kind, id string, on bool) error {
	if i := c.find(k, id); i >= 0 {
		c.Rules[k][i].Disabled = !on
		return nil
	}
	def, err := defaultRule(defaults, k, id)
	if err != nil {
		return err
	}
	if c.Enabled == nil {
		c.Enabled = map[string]bool{}
	}
	if key := defaultKey(k, id); def.Enabled == on {
		delete(c.Enabled, key)
	} else {
		c.Enabled[key] = on
	}
	return nil
}

// act sets the actions of a rule, whether of the user's own or predefined.
func (c *changes) act(defaults map[Kind][]Rule, k Kind, id string, actions []json.RawMessage) error {
	if i := c.find(k, id); i >= 0 {
		c.Rules[k][i].Actions = actions
		return nil
	}
	if _, err := defaultRule(defaults, k, id); err != nil {
		return err
	}
	if c.Actions == nil {
		c.Actions = map[string][]json.RawMessage{}
	}
	c.Actions[defaultKey(k, id)] = actions
	return nil
}

func defaultRule(defaults map[Kind][]Rule, k Kind, id string) (Rule, error) {
	for _, r := range defaults[k] {
		if r.ID == id {
			return r, nil
		}
	}
	return Rule{}, matrix.NotFound("there is no push rule %q of kind %s", id, k)
}

// CopyRoomRules gives a user the rules of a room also for the room that
// replaces it: its room rule, and others with the condition that an event is in
// that room, as some clients mute one. What there is for the new room stays.
func (p *Push) CopyRoomRules(ctx context.Context, user matrix.UserID, from, to matrix.RoomID) error {
	u := p.userRules(user)
	if u == nil || len(u.changes.moved(from, to)) == 0 {
		return nil
	}
	return p.change(ctx, user, func(c *changes) error {
		for _, m := range c.moved(from, to) {
			if err := c.put(m.kind, m.rule, "", m.after); err != nil {
				return err
			}
		}
		return nil
	})
}

// movedRule is a rule of a room as that of another, less important than its
// original.
type movedRule struct {
	kind  Kind
	rule  userRule
	after string
}

// moved are the rules that a room has and its replacement lacks.
func (c *changes) moved(from, to matrix.RoomID) (list []movedRule) {
	for _, k := range []Kind{Override, RoomRule, Underride} {
		for _, r := range c.Rules[k] {
			n := r
			if k == RoomRule {
				if r.ID != string(from) {
					continue
				}
			} else if n.Conditions = movedConditions(r.Conditions, from, to); n.Conditions == nil {
				continue
			}
			if n.ID = strings.ReplaceAll(r.ID, string(from), string(to)); n.ID == r.ID {
				n.ID += "|" + string(to)
			}
			if c.find(k, n.ID) < 0 {
				list = append(list, movedRule{k, n, r.ID})
			}
		}
	}
	return list
}

// movedConditions are conditions with one room in place of another; nil if they
// do not name it.
func movedConditions(list []json.RawMessage, from, to matrix.RoomID) []json.RawMessage {
	var out []json.RawMessage
	for i, raw := range list {
		var c struct {
			Kind    string `json:"kind"`
			Key     string `json:"key"`
			Pattern string `json:"pattern"`
		}
		if json.Unmarshal(raw, &c) != nil || c.Kind != "event_match" || c.Key != "room_id" || c.Pattern != string(from) {
			continue
		}
		if b, err := sjson.SetBytes(slices.Clone(raw), "pattern", string(to)); err == nil {
			if out == nil {
				out = slices.Clone(list)
			}
			out[i] = b
		}
	}
	return out
}
