package derive_test

import (
	"testing"

	"github.com/carillon-chat/carillon/appservice/astest"
	"github.com/carillon-chat/carillon/appservice/derive"
	"github.com/carillon-chat/carillon/appservice/org"
)

// BenchmarkCompany makes a whole company from nothing beside the homeserver in memory: what is measured is the
// service's own cost for an account with its five memberships.
func BenchmarkCompany(b *testing.B) {
	const people = 700
	for b.Loop() {
		b.StopTimer()
		c := benchCompany(b, people)
		b.StartTimer()
		report, err := c.rec.Reconcile(b.Context(), c.store.Tree(), nil)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(report.Operations)/people, "operations/person")
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/people, "µs/person")
}

func benchCompany(b *testing.B, people int) *company {
	b.Helper()
	c := found(b, func(o *derive.Options, _ *astest.Server) { o.PasswordsDir = b.TempDir() })
	c.becomes(org.Generate(1, people, people/17, 5))
	return c
}
