package search

import (
	"encoding/base64"
	"testing"
)

func FuzzCursor(f *testing.F) {
	for _, s := range []string{"t 1 2  ", "r 9 1 room_id !a:b", "t -1 0 sender @a:b c d", "x 1 1  ", "t 1 1 other x"} {
		f.Add(base64.RawURLEncoding.EncodeToString([]byte(s)), false)
	}
	f.Fuzz(func(t *testing.T, s string, byRank bool) {
		c, err := parseCursor(s, byRank)
		if err != nil {
			return
		}
		again, err := parseCursor(c.String(), byRank)
		if err != nil || *again != *c {
			t.Errorf("%q is %+v and then %+v: %v", s, c, again, err)
		}
	})
}
