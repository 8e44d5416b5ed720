package sso

import (
	"bytes"
	"net/url"
	"strings"
	"testing"
	"time"
)

// TryAddress adds a token to addresses that are clients': it comes to the same place.
func TryAddress(t *testing.T, s string) {
	if !ClientAddress(s) {
		return
	}
	before, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	after, err := url.Parse(addToken(s, "TOKEN"))
	if err != nil {
		t.Fatalf("%q: %v", addToken(s, "TOKEN"), err)
	}
	if before.Scheme != after.Scheme || before.Host != after.Host || before.EscapedPath() != after.EscapedPath() || before.EscapedFragment() != after.EscapedFragment() {
		t.Errorf("%q became %q", s, after)
	}
	n := 0
	for _, pair := range strings.Split(after.RawQuery, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if u, err := url.QueryUnescape(name); err == nil && u == "loginToken" {
			n++
			if value != "TOKEN" {
				t.Errorf("%q keeps a token of its own: %q", s, after)
			}
		}
	}
	if n != 1 {
		t.Errorf("%q has %d tokens", after, n)
	}
	if strings.EqualFold(after.Scheme, "javascript") || strings.EqualFold(after.Scheme, "data") {
		t.Errorf("accepted %q", s)
	}
}

// TryLocalpart makes user names of any text: different texts, capitals aside, stay different.
func TryLocalpart(t *testing.T, s string) {
	l := localpart(s)
	for i := range len(l) {
		c := l[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte("._-/+=", c) < 0 {
			t.Fatalf("%q became %q", s, l)
		}
	}
	if s != "" && localpart(s+"!") == l {
		t.Errorf("%q and another have one name", s)
	}
}

// TrySealed opens what was not sealed here.
func TrySealed(t *testing.T, s, what string) {
	box, err := newSealer(bytes.Repeat([]byte{1}, 32), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	var f flow
	if box.open(what, s, &f) == nil {
		t.Errorf("%q was opened", s)
	}
	closed, err := box.close(what, flow{State: s}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if err := box.open(what, closed, &f); err != nil {
		t.Error(err)
	}
	if box.open(what+"x", closed, &f) == nil {
		t.Error("one kind stands for another")
	}
	old := &sealer{box.aead, func() time.Time { return time.Now().Add(2 * time.Minute) }}
	if old.open(what, closed, &f) == nil {
		t.Error("an old one was opened")
	}
}
