package rooms

import (
	"net/netip"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// aclAllows evaluates the content of m.room.server_acl; names are compared
// without regard to case since v1.19 of the specification.
func aclAllows(content []byte, server matrix.ServerName) bool {
	host := strings.ToLower(string(server))
	if strings.HasPrefix(host, "[") {
		if i := strings.IndexByte(host, ']'); i > 0 {
			host = host[:i+1]
		}
	} else if i := strings.LastIndexByte(host, ':'); i >= 0 {
		host = host[:i]
	}
	if lit := gjson.GetBytes(content, "allow_ip_literals"); lit.Exists() && lit.Type == gjson.False {
		if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
			return false
		}
	}
	matches := func(field string) bool {
		found := false
		gjson.GetBytes(content, field).ForEach(func(_, v gjson.Result) bool {
			found = v.Type == gjson.String && glob(strings.ToLower(v.Str), host)
			return !found
		})
		return found
	}
	return !matches("deny") && matches("allow")
}

// glob matches "*" to any run of characters and "?" to any one.
func glob(pattern, s string) bool {
	p, i := 0, 0
	star, mark := -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]) && pattern[p] != '*':
			p++
			i++
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
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
