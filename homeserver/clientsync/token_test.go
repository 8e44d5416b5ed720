package clientsync_test

import (
	"testing"

	"github.com/carillon-chat/carillon/homeserver/clientsync"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

func FuzzParseToken(f *testing.F) {
	for _, s := range []string{"s0_0", "s12_345", "s12_345_6", "s1", "", "s", "s-1_0", "s1_2_3_4", "t1_2", "s9223372036854775808_1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := clientsync.ParseToken(s)
		if err != nil {
			if !matrix.IsCode(err, "M_INVALID_PARAM") {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		again, err := clientsync.ParseToken(tok.String())
		if err != nil || again != tok {
			t.Fatalf("%q: %+v, then %+v, %v", s, tok, again, err)
		}
	})
}
