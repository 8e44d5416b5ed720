package push

import (
	"encoding/json"
	"slices"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Kind is one of the lists of a ruleset.
type Kind string

// The kinds of rules, in the order in which they are checked.
const (
	Override Kind = "override"
	Content  Kind = "content"
	// PostContent holds predefined rules alone, and those only where threads
	// notify by subscription. Spec: MSC4306
	PostContent Kind = "postcontent"
	RoomRule    Kind = "room"
	Sender      Kind = "sender"
	Underride   Kind = "underride"
)

var kinds = [...]Kind{Override, Content, PostContent, RoomRule, Sender, Underride}

func parseKind(s string) (Kind, error) {
	if k := Kind(s); slices.Contains(kinds[:], k) {
		return k, nil
	}
	return "", matrix.InvalidParam("%q is not a kind of push rule", s)
}

// Rule is one push rule as clients see it.
type Rule struct {
	ID         string            `json:"rule_id"`
	Default    bool              `json:"default"`
	Enabled    bool              `json:"enabled"`
	Conditions []json.RawMessage `json:"conditions,omitzero"`
	Pattern    *string           `json:"pattern,omitempty"`
	Actions    []json.RawMessage `json:"actions"`
}

// Ruleset is the whole of a user's rules, ready to be evaluated. It never changes.
type Ruleset struct {
	lists map[Kind][]Rule
	rules []compiled // enabled rules only, in order of evaluation
	json  []byte     // the content of m.push_rules

	threads bool // a rule asks who follows a thread
}

type compiled struct {
	kind       Kind
	id         string
	conditions []condition
	result     Result
}

// Result is what the rule that matched asks for.
type Result struct {
	Notify    bool
	Highlight bool
	Rule      string            // the rule that matched
	Actions   []json.RawMessage // as they stand in the rule, without historical ones
	Tweaks    map[string]any
}

// changes are a user's departures from the default rules: what is stored.
type changes struct {
	Rules   map[Kind][]userRule          `json:"rules,omitempty"` // most important first
	Enabled map[string]bool              `json:"enabled,omitempty"`
	Actions map[string][]json.RawMessage `json:"actions,omitempty"` // of default rules; keys are kind/rule_id
}

type userRule struct {
	ID         string            `json:"id"`
	Conditions []json.RawMessage `json:"conditions,omitempty"`
	Pattern    string            `json:"pattern,omitempty"`
	Actions    []json.RawMessage `json:"actions"`
	Disabled   bool              `json:"disabled,omitempty"`
}

func (c *changes) empty() bool {
	for _, l := range c.Rules {
		if len(l) > 0 {
			return false
		}
	}
	return len(c.Enabled) == 0 && len(c.Actions) == 0
}

func defaultKey(k Kind, id string) string { return string(k) + "/" + id }

// build joins the default rules with a user's changes. A nil c is a user
// without any.
func (p *Push) build(user matrix.UserID, c *changes) *Ruleset {
	if c == nil {
		c = &changes{}
	}
	defaults := p.defaultRules(user)
	rs := &Ruleset{lists: make(map[Kind][]Rule, len(kinds))}
	for _, k := range kinds {
		list := []Rule{}
		if k == PostContent && len(defaults[k]) == 0 {
			continue // clients need not hear of it
		}
		own := c.Rules[k]
		def := defaults[k]
		if k == Override { // the master rule stands above the user's own
			list = append(list, changed(k, def[0], c))
			def = def[1:]
		}
		for _, r := range own {
			list = append(list, r.rule(k))
		}
		for _, r := range def {
			list = append(list, changed(k, r, c))
		}
		rs.lists[k] = list
		for _, r := range list {
			if r.Enabled {
				rs.threads = rs.threads || slices.ContainsFunc(r.Conditions, asksThread)
				rs.rules = append(rs.rules, compile(k, r))
			}
		}
	}
	rs.json, _ = json.Marshal(map[string]any{"global": rs.lists}) // plain data: cannot fail
	return rs
}

func changed(k Kind, r Rule, c *changes) Rule {
	key := defaultKey(k, r.ID)
	if on, ok := c.Enabled[key]; ok {
		r.Enabled = on
	}
	if a, ok := c.Actions[key]; ok {
		r.Actions = a
	}
	return r
}

func (u userRule) rule(k Kind) Rule {
	r := Rule{ID: u.ID, Enabled: !u.Disabled, Actions: u.Actions}
	switch k {
	case Override, Underride:
		r.Conditions = u.Conditions
		if r.Conditions == nil {
			r.Conditions = []json.RawMessage{}
		}
	case Content:
		r.Pattern = &u.Pattern
	}
	if r.Actions == nil {
		r.Actions = []json.RawMessage{}
	}
	return r
}

// asksThread reports whether a condition asks who follows a thread.
func asksThread(raw json.RawMessage) bool {
	var c rawCondition
	return json.Unmarshal(raw, &c) == nil && (c.Kind == condThread || c.Kind == condThreadUnstable)
}

func compile(k Kind, r Rule) compiled {
	c := compiled{kind: k, id: r.ID, result: result(r.ID, r.Actions)}
	if r.Default {
		if own := personal(r.ID); own != nil {
			c.conditions = own
			return c
		}
	}
	for _, raw := range r.Conditions {
		c.conditions = append(c.conditions, compileCondition(raw))
	}
	if k == Content {
		pattern := ""
		if r.Pattern != nil {
			pattern = *r.Pattern
		}
		c.conditions = append(c.conditions, eventMatch("content.body", pattern))
	}
	return c
}

// personal are the conditions of the predefined rules that name the user, or that
// are for old clients.
// They take the name from the evaluation, so that one compiled set of the
// default rules serves everybody.
func personal(id string) []condition {
	switch id {
	case ".m.rule.invite_for_me":
		return []condition{
			eventMatch("type", "m.room.member"), eventMatch("content.membership", "invite"),
			func(s *Subject, user matrix.UserID, _ Room) bool {
				return s.StateKey != nil && *s.StateKey == string(user)
			},
		}
	case ".m.rule.is_user_mention":
		path := splitPath(`content.m\.mentions.user_ids`)
		return []condition{
			func(s *Subject, user matrix.UserID, _ Room) bool { return contains(s, path, string(user)) },
		}
	case ".m.rule.contains_display_name":
		return []condition{mentionsNobody, containsDisplayName}
	case ".m.rule.roomnotif":
		return []condition{
			mentionsNobody, eventMatch("content.body", "@room"),
			func(s *Subject, _ matrix.UserID, room Room) bool { return room.MayNotify(s.Sender, "room") },
		}
	case ".m.rule.contains_user_name":
		return []condition{mentionsNobody, func(s *Subject, user matrix.UserID, _ Room) bool {
			body, ok := s.body()
			return ok && containsWord(body, user.Localpart())
		}}
	}
	return nil
}

// result reads the actions of a rule.
//
// Spec: client-server-api#actions
func result(rule string, actions []json.RawMessage) Result {
	res := Result{Rule: rule, Actions: stripHistorical(actions), Tweaks: map[string]any{}}
	for _, raw := range res.Actions {
		var name string
		if json.Unmarshal(raw, &name) == nil {
			res.Notify = res.Notify || name == "notify"
			continue
		}
		var t struct {
			Tweak string `json:"set_tweak"`
			Value any    `json:"value"`
		}
		if json.Unmarshal(raw, &t) != nil || t.Tweak == "" {
			continue
		}
		if t.Tweak == "highlight" && t.Value == nil {
			t.Value = true
		}
		res.Tweaks[t.Tweak] = t.Value
	}
	on, _ := res.Tweaks["highlight"].(bool)
	res.Highlight = res.Notify && on
	return res
}

// stripHistorical drops dont_notify and coalesce.
//
// Spec: client-server-api#historical-actions
func stripHistorical(actions []json.RawMessage) []json.RawMessage {
	out := make([]json.RawMessage, 0, len(actions))
	for _, raw := range actions {
		var name string
		if json.Unmarshal(raw, &name) == nil && (name == "dont_notify" || name == "coalesce") {
			continue
		}
		out = append(out, raw)
	}
	return out
}

// JSON is the content of the user's m.push_rules event. Do not change it.
func (rs *Ruleset) JSON() []byte { return rs.json }

// Evaluate returns what the first matching rule asks for; without one, the
// zero Result. A user's own events never notify.
//
// Spec: client-server-api#push-rules
func (rs *Ruleset) Evaluate(s *Subject, user matrix.UserID, room Room) Result {
	if s.Sender == user {
		return Result{}
	}
next:
	for i := range rs.rules {
		r := &rs.rules[i]
		switch r.kind {
		case RoomRule:
			if r.id != string(s.Room) {
				continue
			}
		case Sender:
			if r.id != string(s.Sender) {
				continue
			}
		}
		for _, holds := range r.conditions {
			if !holds(s, user, room) {
				continue next
			}
		}
		return r.result
	}
	return Result{}
}

// rule finds a rule by kind and ID.
func (rs *Ruleset) rule(k Kind, id string) (Rule, error) {
	for _, r := range rs.lists[k] {
		if r.ID == id {
			return r, nil
		}
	}
	return Rule{}, matrix.NotFound("there is no push rule %q of kind %s", id, k)
}
