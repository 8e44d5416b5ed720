package oauth

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
)

// FuzzClient reads metadata; what is accepted is read again the same.
func TryClient(t *testing.T, b []byte) {
	if !json.Valid(b) {
		return
	}
	c, err := parseClient(b)
	if err != nil {
		return
	}
	stored, err := c.stored()
	if err != nil {
		t.Fatal(err)
	}
	var again client
	if err := again.load(string(stored)); err != nil {
		t.Fatal(err)
	}
	second, err := again.stored()
	if err != nil || string(second) != string(stored) {
		t.Errorf("%s became %s, %v", stored, second, err)
	}
	base := httpsURI(c.URI)
	for _, r := range c.Redirects {
		u := parseURI(r)
		if u == nil || u.Scheme == "javascript" || u.Scheme == "data" || u.Fragment != "" || u.User != nil {
			t.Errorf("accepted %q", r)
		}
		if u.Scheme == "https" && !below(u, base) {
			t.Errorf("%q is not below %q", r, c.URI)
		}
	}
}

// FuzzRedirect compares addresses and adds parameters: what was added is there, on the same host.
func TryRedirect(t *testing.T, registered, given string, fragment bool) {
	if !sameRedirect(registered, given) {
		return
	}
	r, g := parseURI(registered), parseURI(given)
	if registered != given && (r == nil || g == nil || r.Hostname() != g.Hostname() || r.Path != g.Path || r.RawQuery != g.RawQuery) {
		t.Errorf("%q is taken for %q", given, registered)
	}
	if g == nil || strings.Contains(given, "#") {
		return
	}
	to, err := url.Parse(withParams(given, url.Values{"code": {"a&b"}}, fragment))
	if err != nil {
		t.Fatal(err)
	}
	q := to.RawQuery
	if fragment {
		q = to.EscapedFragment()
	}
	got, _ := url.ParseQuery(q)
	if list := got["code"]; len(list) == 0 || list[len(list)-1] != "a&b" || to.Host != g.Host || to.Scheme != g.Scheme {
		t.Errorf("%q became %q", given, to)
	}
}

// FuzzScope reads scopes: what is granted is read again the same.
func TryScope(t *testing.T, s string) {
	sc, err := parseScope(s)
	if err != nil {
		return
	}
	again, err := parseScope(sc.text)
	if err != nil || again != sc || sc.device == "" || strings.ContainsAny(string(sc.device), " \"\\\x00") {
		t.Errorf("%q: %+v, then %+v, %v", s, sc, again, err)
	}
}

// FuzzUserCode reads what somebody typed.
func TryUserCode(t *testing.T, s string) {
	code := tidyUserCode(s)
	if code == "" {
		return
	}
	if len(code) != 8 || strings.Trim(code, userCodeLetters) != "" || tidyUserCode(shownUserCode(code)) != code {
		t.Errorf("%q became %q", s, code)
	}
}
