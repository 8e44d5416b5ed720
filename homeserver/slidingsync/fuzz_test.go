package slidingsync

import (
	"testing"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/stream"
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

// FuzzBody reads requests.
func FuzzBody(f *testing.F) {
	for _, s := range []string{
		`{"conn_id":"a","lists":{"all":{"ranges":[[0,19]],"timeline_limit":1,"required_state":[["m.room.name",""]],"filters":{"is_dm":true,"room_types":[null,"m.space"]}}}}`,
		`{"room_subscriptions":{"!a:b":{"timeline_limit":50,"required_state":{"include":[{"type":"m.room.member"}],"lazy_members":true}}}}`,
		`{"extensions":{"to_device":{"enabled":true,"limit":100,"since":"s1_2"},"e2ee":{"enabled":true},"receipts":{"enabled":true,"rooms":["*"]},"org.matrix.msc4354.sticky_events":{"enabled":true,"limit":1}}}`,
		`{"lists":{"":{"range":[1]}},"timeout":-1}`, `{"lists":{"x":{"ranges":[[5,1]],"timeline_limit":-3}}}`, `{"lists":null,"extensions":7}`,
	} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, raw []byte, unstable bool) {
		var b body
		if httpapi.Decode(raw, &b) != nil {
			return
		}
		const head = stream.Pos(1000)
		q := &request{user: "@alice:a.example", unstable: unstable}
		if q.parseRooms(&b) != nil || q.parseExtensions(&b, head) != nil {
			return
		}
		for _, l := range q.lists {
			if l.name == "" || len(l.name) > maxName || len(l.ranges) > maxRanges || l.config.limit < 0 || l.config.limit > maxLimit {
				t.Errorf("a list is read as %+v", l)
			}
			for _, r := range l.ranges {
				if r[0] < 0 || r[1] < r[0] {
					t.Errorf("a range is read as %v", r)
				}
			}
		}
		for _, p := range []*paged{q.ext.threads, q.ext.sticky} {
			if p != nil && (p.limit < 1 || p.limit > maxPaged || p.since > head) {
				t.Errorf("an extension is read as %+v", p)
			}
		}
		if d := q.ext.toDevice; d != nil && (d.limit < 1 || d.limit > maxToDevice || d.since > head) {
			t.Errorf("messages to devices are read as %+v", d)
		}
	})
}
