package accountdata

import (
	"encoding/json"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Verdict is what becomes of an invitation.
type Verdict uint8

// The verdicts, the strictest last.
const (
	Allow  Verdict = iota
	Ignore         // the invited never hears of it, nor does the inviter hear of that
	Block          // it is refused
)

// inviteRules are a user's rules for invitations: an action for all, as in the
// specification, and lists of patterns.
// Spec: client-server-api#invite-permission, MSC4155
type inviteRules struct {
	Action         string   `json:"default_action"`
	Enabled        *bool    `json:"enabled"`
	AllowedUsers   []string `json:"allowed_users"`
	IgnoredUsers   []string `json:"ignored_users"`
	BlockedUsers   []string `json:"blocked_users"`
	AllowedServers []string `json:"allowed_servers"`
	IgnoredServers []string `json:"ignored_servers"`
	BlockedServers []string `json:"blocked_servers"`
}

// Invites says, from memory, what becomes of an invitation of user by sender.
func (d *Data) Invites(sender, user matrix.UserID) Verdict {
	d.mu.RLock()
	all := d.invites[user]
	d.mu.RUnlock()
	v := Allow
	for _, r := range all {
		v = max(v, r.verdict(sender))
	}
	return v
}

// setInvites takes over rules; malformed ones are none. The map is replaced and
// never changed, as readers use it without the lock.
func (d *Data) setInvites(user matrix.UserID, typ string, content json.RawMessage) {
	r := &inviteRules{}
	if json.Unmarshal(content, r) != nil || r.none() {
		r = nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	fresh := map[string]*inviteRules{}
	for t, o := range d.invites[user] {
		if t != typ {
			fresh[t] = o
		}
	}
	if r != nil {
		fresh[typ] = r
	}
	if len(fresh) == 0 {
		delete(d.invites, user)
		return
	}
	d.invites[user] = fresh
}

func (r *inviteRules) none() bool {
	return r.Action != "block" && len(r.IgnoredUsers)+len(r.BlockedUsers)+len(r.IgnoredServers)+len(r.BlockedServers) == 0
}

// verdict applies the rules in the order that the proposal gives.
func (r *inviteRules) verdict(sender matrix.UserID) Verdict {
	if r.Action == "block" {
		return Block
	}
	if r.Enabled != nil && !*r.Enabled {
		return Allow
	}
	user, server := string(sender), host(sender.Server())
	switch {
	case anyGlob(r.AllowedUsers, user):
		return Allow
	case anyGlob(r.IgnoredUsers, user):
		return Ignore
	case anyGlob(r.BlockedUsers, user):
		return Block
	case anyGlob(r.AllowedServers, server):
		return Allow
	case anyGlob(r.IgnoredServers, server):
		return Ignore
	case anyGlob(r.BlockedServers, server):
		return Block
	}
	return Allow
}

// host is a server's name without its port, as patterns for servers mean it.
func host(s matrix.ServerName) string {
	name := string(s)
	if i := strings.LastIndexByte(name, ':'); i >= 0 && !strings.HasSuffix(name, "]") {
		name = name[:i]
	}
	return strings.ToLower(name)
}

func anyGlob(patterns []string, s string) bool {
	for _, p := range patterns {
		if matchGlob(strings.ToLower(p), strings.ToLower(s)) {
			return true
		}
	}
	return false
}

// matchGlob matches "*" to any run of characters and "?" to any one, in a time
// that grows with the product of both lengths at most.
// Spec: appendices#glob-style-matching
func matchGlob(pattern, s string) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
