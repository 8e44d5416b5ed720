package push

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Bounds on what a user may store.
const (
	maxRules     = 1000 // of a kind
	maxRulesSize = 256 << 10
	maxRuleID    = 255
	maxActions   = 32
	maxConds     = 32
)

// Routes are the endpoints of the module.
func (p *Push) Routes() []httpapi.Route {
	const rules = "/_matrix/client/v3/pushrules/"
	const rule = rules + "global/{kind}/{ruleId}"
	get := func(path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: http.MethodGet, Path: path, Auth: httpapi.AuthUser, AllowSuspended: true, Handler: h}
	}
	put := func(path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: http.MethodPut, Path: path, Auth: httpapi.AuthUser, RateLimit: true, AllowSuspended: true, Handler: h}
	}
	return append(p.leaveRoutes(), []httpapi.Route{
		get(rules, p.getAll),
		get(rules+"global/", p.getGlobal),
		get(rules+"global/{kind}/", p.getKind),
		get(rule, p.getRule),
		put(rule, p.putRule),
		{Method: http.MethodDelete, Path: rule, Auth: httpapi.AuthUser, AllowSuspended: true, Handler: p.deleteRule},
		get(rule+"/enabled", p.getEnabled),
		put(rule+"/enabled", p.putEnabled),
		get(rule+"/actions", p.getActions),
		put(rule+"/actions", p.putActions),
		get("/_matrix/client/v3/pushers", p.getPushers),
		{
			Method: http.MethodPost, Path: "/_matrix/client/v3/pushers/set", Auth: httpapi.AuthUser,
			RateLimit: true, AllowSuspended: true, Handler: p.setPusher,
		},
		get("/_matrix/client/v3/notifications", p.getNotifications),
	}...)
}

func (p *Push) getAll(c *httpapi.Call) (any, error) {
	return httpapi.Raw(p.Rules(c.Caller.User)), nil
}

func (p *Push) getGlobal(c *httpapi.Call) (any, error) {
	return p.Ruleset(c.Caller.User).lists, nil
}

func (p *Push) getKind(c *httpapi.Call) (any, error) {
	k, err := parseKind(c.Var("kind"))
	if err != nil {
		return nil, err
	}
	list := p.Ruleset(c.Caller.User).lists[k]
	if list == nil {
		list = []Rule{}
	}
	return list, nil
}

// named is the rule that the path of a call names.
func (p *Push) named(c *httpapi.Call) (Rule, error) {
	k, err := parseKind(c.Var("kind"))
	if err != nil {
		return Rule{}, matrix.NotFound("there are no push rules of kind %q", c.Var("kind"))
	}
	return p.Ruleset(c.Caller.User).rule(k, c.Var("ruleId"))
}

func (p *Push) getRule(c *httpapi.Call) (any, error) {
	r, err := p.named(c)
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (p *Push) putRule(c *httpapi.Call) (any, error) {
	k, err := parseKind(c.Var("kind"))
	if err != nil {
		return nil, err
	}
	id := c.Var("ruleId")
	switch {
	case k == PostContent:
		return nil, matrix.InvalidParam("rules of kind %s are the server's alone", k)
	case strings.HasPrefix(id, "."):
		return nil, matrix.InvalidParam("rule IDs that begin with a dot are predefined by the server")
	case strings.ContainsAny(id, `/\`):
		return nil, matrix.InvalidParam("a rule ID may not contain a slash or a backslash")
	case id == "" || len(id) > maxRuleID:
		return nil, matrix.InvalidParam("a rule ID has 1 to %d bytes", maxRuleID)
	}
	var body struct {
		Actions    *[]json.RawMessage `json:"actions"`
		Conditions []json.RawMessage  `json:"conditions"`
		Pattern    *string            `json:"pattern"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	r := userRule{ID: id}
	if r.Actions, err = checkActions(body.Actions); err != nil {
		return nil, err
	}
	switch k {
	case Content:
		if body.Pattern == nil {
			return nil, matrix.MissingParam("a content rule needs a pattern")
		}
		r.Pattern = *body.Pattern
	case Override, Underride:
		if err := checkConditions(body.Conditions); err != nil {
			return nil, err
		}
		r.Conditions = body.Conditions
	}
	before, after := c.Query("before"), c.Query("after")
	if strings.HasPrefix(before, ".") || strings.HasPrefix(after, ".") {
		return nil, matrix.InvalidParam("a rule cannot be placed relative to a predefined one")
	}
	return nil, p.change(c.Ctx(), c.Caller.User, func(ch *changes) error { return ch.put(k, r, before, after) })
}

// checkActions lets the historical actions pass: they mean nothing, and clients
// that still set them expect to read them back.
//
// Spec: client-server-api#historical-actions
func checkActions(actions *[]json.RawMessage) ([]json.RawMessage, error) {
	if actions == nil {
		return nil, matrix.MissingParam("actions are needed")
	}
	if len(*actions) > maxActions {
		return nil, matrix.InvalidParam("a rule has at most %d actions", maxActions)
	}
	for _, raw := range *actions {
		var name string
		if json.Unmarshal(raw, &name) == nil && string(raw) != "null" {
			switch name {
			case "notify", "dont_notify", "coalesce":
				continue
			}
			return nil, matrix.InvalidParam("%q is not an action", name)
		}
		var t struct {
			Tweak *string `json:"set_tweak"`
		}
		if json.Unmarshal(raw, &t) != nil || t.Tweak == nil || *t.Tweak == "" {
			return nil, matrix.InvalidParam("an action is a name or an object with set_tweak")
		}
	}
	return *actions, nil
}

func checkConditions(conditions []json.RawMessage) error {
	if len(conditions) > maxConds {
		return matrix.InvalidParam("a rule has at most %d conditions", maxConds)
	}
	for _, raw := range conditions {
		var c rawCondition
		if json.Unmarshal(raw, &c) != nil || c.Kind == "" {
			return matrix.InvalidParam("a condition is an object with a kind")
		}
	}
	return nil
}

func (p *Push) deleteRule(c *httpapi.Call) (any, error) {
	k, err := parseKind(c.Var("kind"))
	if err != nil {
		return nil, err
	}
	id := c.Var("ruleId")
	if _, err := defaultRule(p.defaultRules(c.Caller.User), k, id); err == nil {
		return nil, matrix.InvalidParam("a predefined rule cannot be deleted, but it can be disabled")
	}
	return nil, p.change(c.Ctx(), c.Caller.User, func(ch *changes) error { return ch.delete(k, id) })
}

func (p *Push) getEnabled(c *httpapi.Call) (any, error) {
	r, err := p.named(c)
	if err != nil {
		return nil, err
	}
	return map[string]bool{"enabled": r.Enabled}, nil
}

func (p *Push) putEnabled(c *httpapi.Call) (any, error) {
	k, err := parseKind(c.Var("kind"))
	if err != nil {
		return nil, err
	}
	var body struct {
		Enabled *bool `json:"enabled"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.Enabled == nil {
		return nil, matrix.MissingParam("enabled is needed")
	}
	user, id := c.Caller.User, c.Var("ruleId")
	return nil, p.change(c.Ctx(), user, func(ch *changes) error { return ch.enable(p.defaultRules(user), k, id, *body.Enabled) })
}

func (p *Push) getActions(c *httpapi.Call) (any, error) {
	r, err := p.named(c)
	if err != nil {
		return nil, err
	}
	return map[string]any{"actions": r.Actions}, nil
}

func (p *Push) putActions(c *httpapi.Call) (any, error) {
	k, err := parseKind(c.Var("kind"))
	if err != nil {
		return nil, err
	}
	var body struct {
		Actions *[]json.RawMessage `json:"actions"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	actions, err := checkActions(body.Actions)
	if err != nil {
		return nil, err
	}
	user, id := c.Caller.User, c.Var("ruleId")
	return nil, p.change(c.Ctx(), user, func(ch *changes) error { return ch.act(p.defaultRules(user), k, id, actions) })
}
