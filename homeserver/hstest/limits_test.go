package hstest_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
)

// TestWhatTheSpecificationLimitsIsLimited calls each endpoint that the
// specification has rate limited until it is refused.
func TestWhatTheSpecificationLimitsIsLimited(t *testing.T) {
	t.Parallel()
	w := newWalkWith(t, func(o *homeserver.Options) {
		o.RateLimits = httpapi.RateLimits{PerSecond: 1e-6, Burst: 1, Classes: map[httpapi.Class]httpapi.Rate{
			httpapi.ClassRegistrations: {PerSecond: 1e-6, Burst: 20}, httpapi.ClassAddresses: {PerSecond: 1e-6, Burst: 20},
		}}
	})
	limited := 0
	for _, o := range w.spec.ops {
		if !o.rateLimited || slices.Contains(pending, o.id) {
			continue
		}
		var args []any
		for range strings.Count(o.path, "{") {
			args = append(args, "x")
		}
		u := w.alice
		if o.auth == "none" {
			u = nil
		}
		var a hstest.Answer
		for range 25 {
			if a = w.call(u, o.id, args...); a.Status == 429 {
				break
			}
		}
		if a.Status != 429 || a.Code() != "M_LIMIT_EXCEEDED" || a.Get("retry_after_ms").Int() <= 0 || a.Header.Get("Retry-After") == "" {
			t.Errorf("%s %s is answered with %d %s, Retry-After %q", o.method, o.path, a.Status, a.Body, a.Header.Get("Retry-After"))
			continue
		}
		if bad := w.mismatches[o.id]; bad != "" {
			t.Errorf("%s: %s", o.id, bad)
		}
		limited++
	}
	t.Logf("%d endpoints are limited", limited)
	// The service of a company is not.
	for i := range 30 {
		if a := w.s.Do("gone-secret", "POST", hstest.Path("createRoom"), map[string]any{}); a.Status != 200 {
			t.Fatalf("room %d of an application service: %d %s", i, a.Status, a.Body)
		}
	}
}
