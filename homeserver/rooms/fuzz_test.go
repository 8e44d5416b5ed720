package rooms

import (
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// FuzzACL evaluates server ACLs, which come from any member of a room with the
// power to write them.
func FuzzACL(f *testing.F) {
	for _, c := range []string{
		`{"allow":["*"],"deny":["*.evil.example"],"allow_ip_literals":false}`, `{"allow":["*?*?*?*?*?*?b"]}`, `{"allow":"*"}`, `{"deny":[1,null,"*"],"allow":["*"]}`, `{}`, `[]`, `{"allow":["*"],"allow_ip_literals":"no"}`,
	} {
		f.Add([]byte(c), "a.example:8448")
		f.Add([]byte(c), "[::1]:443")
	}
	f.Fuzz(func(t *testing.T, content []byte, server string) {
		begin := time.Now()
		allowed := aclAllows(content, matrix.ServerName(server))
		if again := aclAllows(content, matrix.ServerName(server)); allowed != again {
			t.Errorf("%q is allowed once and not again", server)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("it takes %s", took)
		}
	})
}

// FuzzGlob compares with what a glob means.
func FuzzGlob(f *testing.F) {
	f.Add("*.example", "a.example")
	f.Add("?*?", "ab")
	f.Add("a*b*c", "abcbc")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 12 || len(s) > 12 {
			return
		}
		if got, want := glob(pattern, s), naive(pattern, s); got != want {
			t.Errorf("%q on %q: %v", pattern, s, got)
		}
	})
}

func naive(pattern, s string) bool {
	switch {
	case pattern == "":
		return s == ""
	case pattern[0] == '*':
		return naive(pattern[1:], s) || s != "" && naive(pattern, s[1:])
	case s == "":
		return false
	}
	return (pattern[0] == '?' || pattern[0] == s[0]) && naive(pattern[1:], s[1:])
}
