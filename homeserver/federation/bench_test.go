package federation_test

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
)

// cpu is the processor time that this process has taken: that of all servers in it.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// quiet is two servers with a room, whose log is off.
func quiet(b *testing.B) (w *world, x, y *server, room matrix.RoomID, alice matrix.UserID) {
	b.Helper()
	log.SetOutput(io.Discard)
	w = newWorld(b)
	x, y = w.start("a.test", newDisk(b)), w.start("b.test", newDisk(b))
	room, alice, _ = joined(b, x, y, "12")
	return w, x, y, room, alice
}

// BenchmarkAcross sends as fast as it goes in one room of A, by 16 at a time, until all is on B. Both servers are in
// this process, so the processor time is that of both.
func BenchmarkAcross(b *testing.B) {
	_, x, y, room, alice := quiet(b)
	head, before := int(y.log.Head()), cpu()
	b.ResetTimer()
	many(b.N, 16, func() { x.send(room, alice, "hello over there") })
	until(b, "all on b", func() bool { return int(y.log.Head())-head >= b.N })
	b.StopTimer()
	b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "sends/s")
}

// many calls fn n times, so many at a time.
func many(n, atATime int, fn func()) {
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for range atATime {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				fn()
			}
		})
	}
	wg.Wait()
}

// BenchmarkSteady sends 50 a second on A, and measures from the call until a commit on B.
func BenchmarkSteady(b *testing.B) {
	_, x, y, room, alice := quiet(b)
	head := int(y.log.Head())
	sent, took := make([]time.Time, b.N), make([]time.Duration, b.N)
	var began atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for arrived := 0; arrived < b.N; time.Sleep(200 * time.Microsecond) {
			for now := min(int(y.log.Head())-head, int(began.Load())); arrived < now; arrived++ {
				took[arrived] = time.Since(sent[arrived])
			}
		}
	}()
	before := cpu()
	b.ResetTimer()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i := range b.N {
		<-tick.C
		sent[i] = time.Now()
		began.Add(1)
		x.send(room, alice, "hello over there")
	}
	<-done
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[b.N/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[b.N*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

// BenchmarkMissed has B miss so many events of a room (go test -benchtime 100000x), and measures from when it can be
// reached again until it has the newest.
func BenchmarkMissed(b *testing.B) {
	w, x, y, room, alice := quiet(b)
	w.mu.Lock()
	addr := w.addrs["b.test:8448"]
	delete(w.addrs, "b.test:8448")
	w.mu.Unlock()
	x.client.Close()
	many(b.N, 32, func() { x.send(room, alice, "not heard there") })
	for range 5 {
		x.fed.Alive("b.test")
		time.Sleep(50 * time.Millisecond)
	}
	last := x.send(room, alice, "last")
	until(b, "the queue is up to date", func() bool { return x.count(`SELECT pos FROM fed_position WHERE id = 1`) >= int(x.log.Head()) })
	rows := x.count(`SELECT (SELECT count(*) FROM fed_queue) + (SELECT count(*) FROM fed_behind)`)
	w.mu.Lock()
	w.addrs["b.test:8448"] = addr
	w.mu.Unlock()
	before := cpu()
	b.ResetTimer()
	x.fed.Alive("b.test")
	until(b, "the newest on b", func() bool {
		e, err := y.events.ByID(context.Background(), last)
		return err == nil && e != nil && e.Pos > 0
	})
	b.StopTimer()
	b.ReportMetric(float64(rows), "rows")
	b.ReportMetric(b.Elapsed().Seconds(), "s")
	b.ReportMetric((cpu() - before).Seconds(), "cpu-s")
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "heap-MiB")
}

// BenchmarkJoinLarge has a user of B join a room of A with 7,000 members: until B knows the whole room, and until the
// user has said something that is on A.
func BenchmarkJoinLarge(b *testing.B) {
	const people = 7000
	_, x, y, _, alice := quiet(b)
	ctx := context.Background()
	room := x.room(alice, "public_chat", "12")
	var n atomic.Int64
	many(people-1, 32, func() {
		u := x.user(fmt.Sprint("p", n.Add(1)))
		ok(b, x.rooms.Join(ctx, rooms.MemberChange{Room: room, Sender: u, Target: u}))
	})
	carol := y.user("carol")
	before := cpu()
	b.ResetTimer()
	start := time.Now()
	ok(b, y.rooms.Join(ctx, rooms.MemberChange{Room: room, Sender: carol, Target: carol, Via: []matrix.ServerName{x.name}}))
	whole := time.Since(start)
	if m := y.hub.MemberCount(room); m != people+1 {
		b.Fatalf("b knows %d members", m)
	}
	said := y.send(room, carol, "here I am")
	until(b, "the first message on a", func() bool {
		e, err := x.events.ByID(ctx, said)
		return err == nil && e != nil && e.Pos > 0
	})
	b.StopTimer()
	b.ReportMetric(whole.Seconds(), "s-whole")
	b.ReportMetric(time.Since(start).Seconds(), "s-said")
	b.ReportMetric((cpu() - before).Seconds(), "cpu-s")
}
