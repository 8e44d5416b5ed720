package state_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/homeserver/state"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const room matrix.RoomID = "!r:a"

func open(t testing.TB) *sqldb.DB {
	t.Helper()
	db := sqldbtest.Open(t)
	if err := state.Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	return db
}

func write(t testing.TB, db *sqldb.DB, fn func(tx *sqldb.Tx) error) {
	t.Helper()
	if err := db.Write(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func asMap(rows []state.Row) map[state.Key]int64 {
	m := map[state.Key]int64{}
	for _, r := range rows {
		m[r.Key] = r.NID
	}
	return m
}

// A random history against a plain list of maps: the state at every position,
// the change between any two, single entries, and views.
func TestAgainstAPlainModel(t *testing.T) {
	db := open(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	const last = 60
	model := make([]map[state.Key]int64, last+1)
	model[0] = map[state.Key]int64{}
	for pos := 1; pos <= last; pos++ {
		m := map[state.Key]int64{}
		for k, v := range model[pos-1] {
			m[k] = v
		}
		write(t, db, func(tx *sqldb.Tx) error {
			for range rnd.IntN(3) {
				k := state.Key{Type: fmt.Sprint("t", rnd.IntN(3)), StateKey: fmt.Sprint("k", rnd.IntN(4))}
				if rnd.IntN(5) == 0 {
					delete(m, k)
					if err := state.Unset(tx, room, stream.Pos(pos), k); err != nil {
						return err
					}
					continue
				}
				nid := int64(pos*10 + rnd.IntN(10))
				m[k] = nid
				if err := state.Set(tx, room, stream.Pos(pos), k, nid, "join"); err != nil {
					return err
				}
			}
			return nil
		})
		model[pos] = m
	}
	err := db.Read(t.Context(), func(tx *sqldb.Tx) error {
		now, err := state.Current(tx, room)
		if err != nil || fmt.Sprint(asMap(now)) != fmt.Sprint(model[last]) {
			t.Errorf("now %v, want %v (%v)", asMap(now), model[last], err)
		}
		for pos, want := range model {
			rows, err := state.At(tx, room, stream.Pos(pos))
			if err != nil || fmt.Sprint(asMap(rows)) != fmt.Sprint(want) {
				t.Errorf("at %d: %v, want %v (%v)", pos, asMap(rows), want, err)
			}
			view, err := state.View{Base: stream.Pos(pos), Delta: map[state.Key]int64{{Type: "t0", StateKey: "k0"}: 0, {Type: "new"}: 7}}.All(tx, room)
			if err != nil || view[state.Key{Type: "new"}] != 7 || view[state.Key{Type: "t0", StateKey: "k0"}] != 0 {
				t.Errorf("view at %d: %v, %v", pos, view, err)
			}
		}
		for range 100 {
			from, to := rnd.IntN(last), rnd.IntN(last)
			if from > to {
				from, to = to, from
			}
			rows, err := state.Delta(tx, room, stream.Pos(from), stream.Pos(to))
			if err != nil {
				return err
			}
			for k, nid := range model[to] {
				if model[from][k] != nid && asMap(rows)[k] != nid {
					t.Errorf("from %d to %d: %v is %d, the delta says %d", from, to, k, nid, asMap(rows)[k])
				}
			}
			for k, nid := range asMap(rows) {
				if model[to][k] != nid {
					t.Errorf("from %d to %d: the delta has %v as %d, it is %d", from, to, k, nid, model[to][k])
				}
			}
			diff, err := state.Differences(tx, room, []state.View{{Base: stream.Pos(from)}, {Base: stream.Pos(to)}})
			if err != nil {
				return err
			}
			for k, nids := range diff {
				if nids[0] != model[from][k] || nids[1] != model[to][k] || nids[0] == nids[1] {
					t.Errorf("difference of %d and %d: %v %v", from, to, k, nids)
				}
			}
			for i := range 3 {
				for j := range 4 {
					k := state.Key{Type: fmt.Sprint("t", i), StateKey: fmt.Sprint("k", j)}
					if model[from][k] != model[to][k] && diff[k] == nil {
						t.Errorf("difference of %d and %d misses %v", from, to, k)
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The state before an event: that of its position, or the view kept with it.
func TestViewBefore(t *testing.T) {
	db := open(t)
	k := state.Key{Type: "m.room.topic"}
	write(t, db, func(tx *sqldb.Tx) error {
		if err := state.Set(tx, room, 1, k, 1, ""); err != nil {
			return err
		}
		if err := state.Set(tx, room, 5, k, 5, ""); err != nil {
			return err
		}
		return state.SaveView(tx, 7, state.View{Base: 2}.With(state.Key{Type: "x", StateKey: "y"}, 6))
	})
	err := db.Read(t.Context(), func(tx *sqldb.Tx) error {
		for _, c := range []struct {
			nid  int64
			pos  stream.Pos
			want int64
		}{{5, 5, 1}, {6, 6, 5}, {7, 7, 1}} {
			v, err := state.ViewBefore(tx, c.nid, c.pos)
			if err != nil {
				return err
			}
			if got, err := v.Get(tx, room, k); err != nil || got != c.want {
				t.Errorf("before event %d the topic is %d, want %d (%v)", c.nid, got, c.want, err)
			}
		}
		v, err := state.ViewBefore(tx, 7, 7)
		if err != nil {
			return err
		}
		if got, _ := v.Get(tx, room, state.Key{Type: "x", StateKey: "y"}); got != 6 {
			t.Errorf("the view lost its own entry: %+v", v)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// BenchmarkSet is one change of state in a room of ten thousand members.
func BenchmarkSet(b *testing.B) {
	db := open(b)
	write(b, db, func(tx *sqldb.Tx) error {
		for i := range 10_000 {
			if err := state.Set(tx, room, 1, state.Key{Type: "m.room.member", StateKey: fmt.Sprint("@u", i, ":a")}, int64(i), "join"); err != nil {
				return err
			}
		}
		return nil
	})
	pos := stream.Pos(1)
	b.ResetTimer()
	write(b, db, func(tx *sqldb.Tx) error {
		for range b.N {
			pos++
			if err := state.Set(tx, room, pos, state.Key{Type: "m.room.member", StateKey: fmt.Sprint("@u", pos%10_000, ":a")}, int64(pos), "join"); err != nil {
				return err
			}
		}
		return nil
	})
}

// What differs between two near places of a large room is found without reading the room.
func TestDifferencesOfALargeRoom(t *testing.T) {
	db := open(t)
	const members = 20_000
	write(t, db, func(tx *sqldb.Tx) error {
		for i := range members {
			k := state.Key{Type: "m.room.member", StateKey: fmt.Sprintf("@u%d:a", i)}
			if err := state.Set(tx, room, stream.Pos(i+1), k, int64(i+1), "join"); err != nil {
				return err
			}
		}
		return nil
	})
	err := db.Read(t.Context(), func(tx *sqldb.Tx) error {
		whole, quickest := time.Hour, time.Hour
		for range 4 {
			began := time.Now()
			if rows, err := state.At(tx, room, members-2); err != nil || len(rows) != members-2 {
				t.Errorf("%d entries, %v", len(rows), err)
			}
			whole = min(whole, time.Since(began))
			began = time.Now()
			diff, err := state.Differences(tx, room, []state.View{{Base: members}, {Base: members - 2}})
			if err != nil || len(diff) != 2 {
				t.Errorf("differences %v, %v", diff, err)
			}
			quickest = min(quickest, time.Since(began))
		}
		if quickest > whole/4 { // as much as the whole room would be twice that
			t.Errorf("two differences were found in %s, the whole room is read in %s", quickest, whole)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
