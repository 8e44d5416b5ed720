package derive

import (
	"strings"
	"testing"
)

// FuzzRooms reads what another site may say of its rooms.
func FuzzRooms(f *testing.F) {
	f.Add([]byte(`{"rooms":[{"key":"unit:sc","room_id":"!abc","alias":"#carillon_sc:b.example","creators":"@carillon:b.example","closed":true}],"all":true}`), false)
	f.Add([]byte(`{"rooms":[{"key":"company","room_id":"!abc"}]}`), false)
	f.Add([]byte(`{"rooms":[{"key":"unit:\u0000","room_id":"!"}]}`), true)
	f.Fuzz(func(t *testing.T, body []byte, head bool) {
		msg, err := readRooms(body, head)
		if err != nil {
			return
		}
		for _, a := range msg.Rooms {
			if !head && ofHead(a.Key) || a.Key == "" || !strings.HasPrefix(string(a.Room), "!") || strings.ContainsRune(a.Key, 0) {
				t.Errorf("taken: %+v", a)
			}
		}
	})
}
