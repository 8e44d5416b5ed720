package readlist_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/readlist"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// crowd is a room of n members.
func crowd(t testing.TB, n int) (s *story, message string) {
	s = tell(t)
	evs := make([]*mxclient.Event, 0, n)
	for i := range n {
		key := fmt.Sprintf("@u%04d:c.cn", i)
		s.c.people[key] = readlist.Person{ID: key[1:6], Name: "张三", Unit: "研发部"}
		evs = append(evs, &mxclient.Event{ID: "$j" + key, Room: room, Sender: key, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"join"}`)})
	}
	if err := s.OnEvents(t.Context(), evs); err != nil {
		t.Fatal(err)
	}
	return s, s.says("founder", "")
}

func TestPagesOfACrowd(t *testing.T) {
	const n = 2100
	s, m := crowd(t, n)
	var receipts []mxclient.Receipt
	for i := 0; i < n; i += 2 {
		receipts = append(receipts, mxclient.Receipt{Room: room, User: fmt.Sprintf("@u%04d:c.cn", i), Event: m, TS: s.now.UnixMilli(), Kind: "m.read"})
	}
	if err := s.OnReceipts(t.Context(), receipts); err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{"read", "unread"} {
		seen := map[string]bool{}
		q := readlist.Query{Room: room, Event: m, State: state, Limit: 500}
		for pages := 0; ; pages++ {
			p, err := s.Readers(t.Context(), readlist.Viewer{User: user("founder")}, q)
			if err != nil {
				t.Fatal(err)
			}
			if p.TotalRead != n/2 || p.TotalUnread != n/2 {
				t.Fatalf("%d read, %d unread", p.TotalRead, p.TotalUnread)
			}
			for _, r := range p.Readers {
				if seen[r.User] || state == "read" && r.ReadAt == 0 {
					t.Fatalf("%+v twice or without time", r)
				}
				seen[r.User] = true
			}
			if q.Cursor = p.Next; q.Cursor == "" {
				if pages != 2 {
					t.Errorf("%d pages", pages+1)
				}
				break
			}
		}
		if len(seen) != n/2 {
			t.Errorf("%d %s", len(seen), state)
		}
	}
	miss, err := s.Unread(t.Context(), readlist.Viewer{User: user("founder")}, room, m)
	if err != nil || len(miss.Users) != n/2 || miss.Read != n/2 {
		t.Errorf("%v", err)
	}
	if _, err := s.Unread(t.Context(), readlist.Viewer{User: user("u0001")}, room, m); !matrix.IsCode(err, "M_FORBIDDEN") {
		t.Error(err)
	}
}

func BenchmarkReaders7000(b *testing.B) {
	s, m := crowd(b, 7000)
	var receipts []mxclient.Receipt
	for i := range 3500 {
		receipts = append(receipts, mxclient.Receipt{Room: room, User: fmt.Sprintf("@u%04d:c.cn", 2*i), Event: m, TS: s.now.UnixMilli(), Kind: "m.read"})
	}
	began := time.Now()
	if err := s.OnReceipts(b.Context(), receipts); err != nil {
		b.Fatal(err)
	}
	b.Logf("3500 receipts in %s", time.Since(began))
	for _, state := range []string{"read", "unread"} {
		b.Run(state, func(b *testing.B) {
			for b.Loop() {
				p, err := s.Readers(b.Context(), readlist.Viewer{User: user("founder")}, readlist.Query{Room: room, Event: m, State: state, Limit: 500})
				if err != nil || len(p.Readers) != 500 {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("load", func(b *testing.B) {
		for b.Loop() {
			s.restart()
			s.list(m, "read")
		}
	})
}

// BenchmarkEvents takes in messages and joins as they come in transactions of a hundred, in 50 rooms.
func BenchmarkEvents(b *testing.B) {
	s := tell(b)
	n := 0
	var evs []*mxclient.Event
	for b.Loop() {
		n++
		key := fmt.Sprintf("@u%05d:c.cn", n)
		ev := &mxclient.Event{ID: fmt.Sprintf("$event-with-an-id-as-long-as-usual-%08d", n), Room: fmt.Sprintf("!room%d", n%50), Sender: key, Type: "m.room.member", StateKey: &key, TS: 1, Content: []byte(`{"membership":"join","displayname":"张三"}`)}
		if n <= 50 {
			ev.Type, ev.StateKey = "m.room.create", new(string)
		} else if n%2 == 0 {
			ev.Type, ev.StateKey, ev.Content = "m.room.message", nil, []byte(`{"msgtype":"m.text","body":"x"}`)
		}
		if evs = append(evs, ev); len(evs) == 100 {
			if err := s.OnEvents(b.Context(), evs); err != nil {
				b.Fatal(err)
			}
			evs = evs[:0]
		}
	}
}

// BenchmarkReceipts takes in receipts of one message in a room of 7,000, in transactions of a hundred.
func BenchmarkReceipts(b *testing.B) {
	s, m := crowd(b, 7000)
	n := 0
	var rs []mxclient.Receipt
	for b.Loop() {
		if n++; n%7000 == 0 {
			m = s.says("founder", "")
		}
		rs = append(rs, mxclient.Receipt{Room: room, User: fmt.Sprintf("@u%04d:c.cn", n%7000), Event: m, TS: s.now.UnixMilli(), Kind: "m.read"})
		if len(rs) == 100 {
			if err := s.OnReceipts(b.Context(), rs); err != nil {
				b.Fatal(err)
			}
			rs = rs[:0]
		}
	}
}
