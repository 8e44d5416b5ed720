package ding_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/appservice/ding"
	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/org"
)

// crowd is a company of n people under one root, with chief.
func crowd(t testing.TB, n int) *story {
	imp := company()
	for i := range n {
		imp.People = append(imp.People, &org.Person{ID: fmt.Sprintf("p%04d", i), Name: fmt.Sprintf("员工%04d", i), Posts: []org.Post{{Unit: "web", Main: true}}})
	}
	return tellWith(t, imp, ding.Options{})
}

// BenchmarkDing7000 measures a DING to everybody against a homeserver that takes no time: until all are out, and until
// 7,000 confirmations, which come in transactions of a hundred, are counted and shown.
func BenchmarkDing7000(b *testing.B) {
	const n = 7000
	s := crowd(b, n)
	for b.Loop() {
		began := time.Now()
		id, _, err := s.Create(b.Context(), as("chief"), ding.Request{Kind: ding.Emergency, Body: "all", Receivers: ding.Receivers{Units: []string{"web"}}})
		if err != nil {
			b.Fatal(err)
		}
		created := time.Since(began)
		s.eventually("all are out", func() bool { return s.counts(id).Queued == 0 })
		out := time.Since(began)
		messages := map[string]string{}
		for _, e := range s.w.find("", "m.room.message", "all") {
			if k, ok := e.content["im.carillon.ding"].(map[string]any); ok && k["ding_id"] == id {
				messages[k["person_id"].(string)] = e.id
			}
		}
		began = time.Now()
		var batch []*mxclient.Event
		for p, ev := range messages {
			s.n++
			batch = append(batch, &mxclient.Event{
				ID: fmt.Sprintf("$r%d", s.n), Room: "!" + p, Sender: user(p), Type: "m.reaction", TS: time.Now().UnixMilli(),
				Content: []byte(`{"m.relates_to":{"rel_type":"m.annotation","event_id":"` + ev + `","key":"✅"}}`),
			})
			if len(batch) == 100 {
				s.take(batch...)
				batch = batch[:0]
			}
		}
		s.take(batch...)
		counted := time.Since(began)
		if c := s.counts(id); c.Confirmed != c.Total || c.Total < n {
			b.Fatalf("%+v", c)
		}
		s.cardShows("chief", "全部确认")
		b.ReportMetric(created.Seconds(), "s-created")
		b.ReportMetric(out.Seconds(), "s-out")
		b.ReportMetric(counted.Seconds(), "s-counted")
		b.ReportMetric(time.Since(began).Seconds(), "s-shown")
	}
}

// Single confirmations, each in a transaction of its own, as people's clicks come in.
func BenchmarkConfirmOne(b *testing.B) {
	s := crowd(b, 2000)
	id := ""
	i := 0
	for b.Loop() {
		if i%2000 == 0 {
			b.StopTimer()
			var err error
			id, _, err = s.Create(b.Context(), as("chief"), ding.Request{Kind: ding.Emergency, Body: "all", Receivers: ding.Receivers{Units: []string{"web"}}})
			if err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		if _, _, err := s.Confirm(b.Context(), as(fmt.Sprintf("p%04d", i%2000)), id); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
