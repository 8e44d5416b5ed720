package gate_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/gate"
)

func TestKeyedExcludesByKeyAndLeavesNothing(t *testing.T) {
	var k gate.Keyed[string]
	var wg sync.WaitGroup
	counts := make([]int, 3)
	for i := range 300 {
		wg.Go(func() {
			unlock := k.Lock(fmt.Sprint(i % 3))
			counts[i%3]++
			unlock()
		})
	}
	wg.Wait()
	for i, n := range counts {
		if n != 100 {
			t.Errorf("key %d counted %d", i, n)
		}
	}
	if k.Len() != 0 {
		t.Errorf("%d keys left behind", k.Len())
	}
	unlock := k.Lock("a")
	if _, ok := k.TryLock("a"); ok {
		t.Error("a held key was given out")
	}
	free, ok := k.TryLock("b")
	if !ok {
		t.Fatal("another key was held")
	}
	free()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := k.LockContext(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting ended with %v", err)
	}
	unlock()
	free, err := k.LockContext(context.Background(), "a")
	if err != nil {
		t.Fatal(err)
	}
	free()
	if k.Len() != 0 {
		t.Errorf("%d keys left behind", k.Len())
	}
}

func TestSemaphoreBounds(t *testing.T) {
	s := gate.NewSemaphore(2)
	var now, most atomic.Int32
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_ = s.Do(context.Background(), func() error {
				n := now.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				time.Sleep(time.Millisecond)
				now.Add(-1)
				return nil
			})
		})
	}
	wg.Wait()
	if most.Load() != 2 {
		t.Errorf("%d ran at once, want 2", most.Load())
	}
	release, err := s.Acquire(context.Background(), 99) // heavier than the whole
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := s.Do(ctx, func() error { return nil }); err == nil {
		t.Error("work ran beside work that takes everything")
	}
	release()
}

func TestBackoffGrowsToItsLimit(t *testing.T) {
	b := gate.Backoff{Min: time.Second, Max: 10 * time.Second, Jitter: -1}
	for i, want := range []int{1, 2, 4, 8, 10, 10} {
		if d := b.Next(); d != time.Duration(want)*time.Second {
			t.Errorf("wait %d is %v", i, d)
		}
	}
	b.Reset()
	if d := b.Next(); d != time.Second {
		t.Errorf("after Reset %v", d)
	}
	for range 100 {
		if d := gate.Spread(time.Second, 0.5); d < 500*time.Millisecond || d > time.Second {
			t.Fatalf("spread to %v", d)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := gate.Sleep(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("sleep ended with %v", err)
	}
}

func TestLimiter(t *testing.T) {
	now := time.Unix(0, 0)
	l := gate.NewLimiter[string](2, 3, 10, func() time.Time { return now })
	for range 3 {
		if ok, _ := l.Allow("a"); !ok {
			t.Fatal("the burst was refused")
		}
	}
	ok, retry := l.Allow("a")
	if ok || retry != 500*time.Millisecond {
		t.Errorf("beyond the burst: %v, retry after %v", ok, retry)
	}
	now = now.Add(retry)
	if ok, _ := l.Allow("a"); !ok {
		t.Error("refused after the wait it was told")
	}
	for i := range 1000 {
		l.Allow(fmt.Sprint(i))
		if l.Len() > 10 {
			t.Fatalf("%d buckets, more than the bound", l.Len())
		}
	}
	l.Forget("999")
	if l.Len() > 10 {
		t.Errorf("%d buckets", l.Len())
	}
}
