package search_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/search"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

// talk makes sentences of the length and variety of office talk.
func talk(r *rand.Rand) string {
	var b strings.Builder
	for range 8 + r.IntN(24) {
		if r.IntN(6) == 0 {
			fmt.Fprintf(&b, " word%d ", r.IntN(2000))
			continue
		}
		// A few characters are frequent, most are rare.
		b.WriteRune(rune(0x4e00 + int(r.Float64()*r.Float64()*r.Float64()*6000)))
	}
	return b.String()
}

func BenchmarkTerms(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	texts := make([]string, 100)
	for i := range texts {
		texts[i] = talk(r)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		search.Terms(texts[i%100])
	}
}

// BenchmarkIndex is what one message costs the index.
func BenchmarkIndex(b *testing.B) {
	w := open(b, sqldbtest.Open(b))
	var list []matrix.RoomID
	for range 20 {
		list = append(list, w.Room(alice, bob))
	}
	r := rand.New(rand.NewPCG(1, 2))
	var spent time.Duration
	n := 0
	for b.Loop() {
		done := make(chan bool)
		for range 10 {
			room, text := list[r.IntN(len(list))], make([]string, 20)
			for i := range text {
				text[i] = talk(r)
			}
			go func() {
				for _, t := range text {
					w.Say(room, alice, t)
				}
				done <- true
			}()
		}
		for range 10 {
			<-done
		}
		n += 200
		start := time.Now()
		w.search(bob, "nothing", "", "") // waits for the index
		spent += time.Since(start)
	}
	b.ReportMetric(float64(spent.Microseconds())/float64(n), "µs/message")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkSearch is what a search costs where much has been said.
func BenchmarkSearch(b *testing.B) {
	w := open(b, sqldbtest.Open(b))
	r := rand.New(rand.NewPCG(1, 2))
	const n = 50_000
	room := fill(b, w, r, n)
	w.Say(room, alice, "罕见的词")
	for _, term := range []string{"罕见", "丁万", "word7", "word", "一"} {
		for _, order := range []string{"recent", "rank"} {
			b.Run(term+"/"+order, func(b *testing.B) {
				count := 0
				for b.Loop() {
					count = w.search(bob, term, fmt.Sprintf(`,"order_by":%q`, order), "").Count
				}
				b.ReportMetric(float64(count), "hits")
			})
		}
	}
}

// fill says much, quickly.
func fill(b *testing.B, w *world, r *rand.Rand, n int) matrix.RoomID {
	b.Helper()
	var list []matrix.RoomID
	for range 50 {
		list = append(list, w.Room(alice, bob))
	}
	texts := make(chan string, 100)
	done := make(chan bool)
	for i := range 50 {
		go func() {
			for t := range texts {
				w.Say(list[i], alice, t)
			}
			done <- true
		}()
	}
	for range n {
		texts <- talk(r)
	}
	close(texts)
	for range 50 {
		<-done
	}
	for w.search(bob, "nothing", "", "").Count != 0 {
	}
	return list[0]
}
