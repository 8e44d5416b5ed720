package slidingsync

import (
	"testing"
)

func FuzzPos(f *testing.F) {
	for _, s := range []string{"s1_2_3.abc", "s1_2_-3.", "s_1_2", "s99999999999999999999_0_1.x", "1", "s1_2_3_4.x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		token, n, id, err := parsePos(s)
		if err != nil {
			return
		}
		again, m, other, err := parsePos((&conn{id: id}).pos(&place{token: token, n: n}))
		if err != nil || again != token || m != n || other != id {
			t.Errorf("%q is %v %d %q and then %v %d %q: %v", s, token, n, id, again, m, other, err)
		}
	})
}

func FuzzRequiredState(f *testing.F) {
	for _, s := range []string{`[["*","*"]]`, `[["m.room.member","$LAZY"],["m.room.member","$ME"]]`, `{"include":[{"type":"a"}],"exclude":[{"state_key":""}],"lazy_members":true}`, `[["a"]]`, `[null]`, `null`, `{"include":1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		w, err := parseWant(raw, "@alice:a.example")
		if err == nil && w.text != w.String() {
			t.Errorf("%q has two texts", raw)
		}
	})
}
