package history_test

import (
	"testing"

	"github.com/carillon-chat/carillon/homeserver/history"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

func FuzzToken(f *testing.F) {
	for _, s := range []string{"s1_0", "s-5_0", "s9223372036854775807_1_2", "s", "s_", "t1", "s1", "s99999999999999999999_0", "s+1_0", "s0x1_0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		pos, err := history.ParseToken(s)
		if err != nil {
			if !matrix.IsCode(err, "M_INVALID_PARAM") {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		if again, err := history.ParseToken(history.Token(pos)); err != nil || again != pos {
			t.Errorf("%q is %d, and then %d: %v", s, pos, again, err)
		}
	})
}
