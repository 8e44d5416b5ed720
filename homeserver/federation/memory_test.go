package federation

import (
	"fmt"
	"io"
	"runtime"
	"testing"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

// BenchmarkQueued queues messages to devices, of which each is kept, for fifteen servers that cannot be reached: so
// many for each (go test -benchtime 100000x). It shows what they take in memory and what the start costs.
func BenchmarkQueued(b *testing.B) {
	log.SetOutput(io.Discard)
	db := sqldbtest.Open(b)
	if err := db.Migrate(b.Context(), "federation", schemaFS); err != nil {
		b.Fatal(err)
	}
	f := &far{news: make(chan struct{}, 1), down: true}
	q := newQueue(db, "here.test", f, time.Now, nil)
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	before := heap()
	edu := newEDU("m.direct_to_device", map[string]string{"sender": "@somebody:here.test", "type": "m.room.encrypted", "message_id": "0123456789abcdef"})
	b.ResetTimer()
	for first := 0; first < b.N; first += 200 {
		var rows []row
		for range min(200, b.N-first) {
			for s := range 15 {
				rows = append(rows, row{server: matrix.ServerName(fmt.Sprintf("s%d.test", s)), edu: edu})
			}
		}
		if err := q.put(b.Context(), rows, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric((heap()-before)/(1<<20), "heap-MiB")
	again := newQueue(db, "here.test", f, time.Now, nil)
	b.StartTimer()
	if err := again.load(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	if len(again.dests) != 15 {
		b.Errorf("%d servers after a start", len(again.dests))
	}
	runtime.KeepAlive(q)
}
