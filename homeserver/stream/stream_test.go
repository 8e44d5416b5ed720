package stream_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

func open(t testing.TB, db *sqldb.DB) (*stream.Log, func()) {
	t.Helper()
	l, err := stream.Open(context.Background(), db)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { l.Run(ctx); close(done) }()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return l, stop
}

func change(room string) func(*sqldb.Tx, stream.Pos) ([]stream.Change, error) {
	return func(_ *sqldb.Tx, pos stream.Pos) ([]stream.Change, error) {
		return []stream.Change{{Pos: pos, Kind: stream.KindEvent, Room: matrix.RoomID(room)}}, nil
	}
}

// Many writers, some of which fail, and a reader that never looks back: the
// reader must see each committed change exactly once, in order.
func TestOrder(t *testing.T) {
	ctx := t.Context()
	l, _ := open(t, sqldbtest.Open(t))
	var seen []stream.Change
	l2 := make(chan struct{})
	var mu sync.Mutex
	go func() {
		defer close(l2)
		l.Follow(ctx, "reader", func(ctx context.Context, from, to stream.Pos) error {
			cs, err := l.Changes(ctx, from, to, 1<<20)
			mu.Lock()
			seen = append(seen, cs...)
			mu.Unlock()
			return err
		})
	}()
	// The follower begins at the head: make sure that it has begun.
	for {
		if _, err := l.Append(ctx, 1, change("!first")); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		n := len(seen)
		mu.Unlock()
		if n > 0 {
			break
		}
	}
	start := l.Head()
	boom := errors.New("boom")
	var wg sync.WaitGroup
	var committed sync.Map
	for w := range 16 {
		wg.Go(func() {
			for i := range 50 {
				fail := (w+i)%7 == 0
				pos, err := l.Append(ctx, 1, func(tx *sqldb.Tx, pos stream.Pos) ([]stream.Change, error) {
					if fail {
						return nil, boom
					}
					return change("!r")(tx, pos)
				})
				switch {
				case fail && !errors.Is(err, boom):
					t.Errorf("a failing append gave %v", err)
				case !fail && err != nil:
					t.Errorf("append: %v", err)
				case !fail:
					committed.Store(pos, true)
				}
			}
		})
	}
	wg.Wait()
	want := 0
	committed.Range(func(any, any) bool { want++; return true })
	for {
		mu.Lock()
		var got []stream.Change
		for _, c := range seen {
			if c.Pos > start {
				got = append(got, c)
			}
		}
		mu.Unlock()
		if len(got) < want {
			continue
		}
		last := start
		for _, c := range got {
			if c.Pos <= last {
				t.Fatalf("position %d after %d", c.Pos, last)
			}
			last = c.Pos
			if _, ok := committed.Load(c.Pos); !ok {
				t.Fatalf("position %d was never acknowledged", c.Pos)
			}
		}
		if len(got) != want {
			t.Fatalf("%d changes for %d appends", len(got), want)
		}
		return
	}
}

func TestFollowerRepeatsAfterFailure(t *testing.T) {
	db := sqldbtest.Open(t)
	l, _ := open(t, db)
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan struct{}, 1)
	calls := 0
	var ranges [][2]stream.Pos
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Follow(ctx, "f", func(_ context.Context, from, to stream.Pos) error {
			ranges = append(ranges, [2]stream.Pos{from, to})
			if calls++; calls == 1 {
				started <- struct{}{}
				return errors.New("not yet")
			}
			cancel()
			return nil
		})
	}()
	for {
		if _, err := l.Append(t.Context(), 1, change("!a")); err != nil {
			t.Fatal(err)
		}
		select {
		case <-started:
			<-done
			if ranges[1][0] != ranges[0][0] {
				t.Fatalf("second call began at %d, not at %d", ranges[1][0], ranges[0][0])
			}
			return
		default:
		}
	}
}

func TestSubscribersSeeBeforeAppendReturns(t *testing.T) {
	l, err := stream.Open(t.Context(), sqldbtest.Open(t))
	if err != nil {
		t.Fatal(err)
	}
	var last stream.Pos
	l.Subscribe(func(cs []stream.Change) { last = cs[len(cs)-1].Pos })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { l.Run(ctx); close(done) }()
	for range 20 {
		pos, err := l.Append(t.Context(), 3, change("!a"))
		if err != nil {
			t.Fatal(err)
		}
		if last != pos {
			t.Fatalf("subscriber is at %d, Append returned %d", last, pos)
		}
		if l.Head() != pos+2 {
			t.Fatalf("head %d, want %d", l.Head(), pos+2)
		}
	}
	cancel()
	<-done
	if _, err := l.Append(context.Background(), 1, change("!a")); !errors.Is(err, stream.ErrStopped) {
		t.Fatalf("after the end: %v", err)
	}
}

func BenchmarkAppend(b *testing.B) {
	l, _ := open(b, sqldbtest.Open(b))
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := l.Append(b.Context(), 1, change("!a")); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
