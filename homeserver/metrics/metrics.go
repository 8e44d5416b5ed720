// Package metrics is what an operator's monitoring reads: figures of the process, of the database and of the
// requests, in the text format of Prometheus, and the place where other parts hang theirs.
//
// It owns no tables. Invariants: no label takes values that strangers choose without a bound; a figure costs
// nothing but its counter until somebody reads it; whoever reads has the token, if there is one.
package metrics

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// Seconds are the bounds of the histograms of durations, in seconds.
func Seconds() []float64 {
	return []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
}

// readers is how many may read at a time; more are sent away with 503.
const readers = 4

// New makes a registry with the figures of the process and the program's version.
func New(version string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "carillon_build_info", Help: "Always 1; the label says which version runs.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), build)
	return r
}

// Handler shows the figures of a registry at GET /metrics, to those who send the token as a bearer token; an empty
// token lets everybody in who reaches the address.
func Handler(r *prometheus.Registry, token string) http.Handler {
	show := promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: readers, Timeout: 30 * time.Second})
	want := sha256.Sum256([]byte(token))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, req *http.Request) {
		if token != "" {
			scheme, given, _ := strings.Cut(req.Header.Get("Authorization"), " ")
			got := sha256.Sum256([]byte(strings.TrimSpace(given)))
			if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
				w.Header().Set("WWW-Authenticate", `Bearer realm="metrics"`)
				http.Error(w, "the token is missing or wrong", http.StatusUnauthorized)
				return
			}
		}
		show.ServeHTTP(w, req)
	})
	return mux
}

// Database adds figures of the database and of the log.
func Database(r prometheus.Registerer, db *sqldb.DB, l *stream.Log) {
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	counter := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, value)
	}
	r.MustRegister(
		counter("carillon_database_statements_total", "SQL statements run, those that begin and end transactions included.", func() float64 { return float64(db.Statements()) }),
		gauge("carillon_database_connections", "Open connections to the database.", func() float64 { return float64(db.Load().Open) }),
		gauge("carillon_database_connections_in_use", "Connections that are at work just now.", func() float64 { return float64(db.Load().InUse) }),
		gauge("carillon_database_connections_max", "Most connections that are opened.", func() float64 { return float64(db.Load().Max) }),
		gauge("carillon_database_writes_waiting", "Writes that wait for the next commit (SQLite).", func() float64 { return float64(db.Load().Waiting) }),
		counter("carillon_log_position", "The newest position of the log: what has happened since the server was set up.", func() float64 { return float64(l.Head()) }),
	)
}

// Requests adds figures of the requests that are answered, and gives the function that counts one; it fits
// httpapi.Options.Observe. Routes are the paths as they are registered, so their number is bounded.
func Requests(r prometheus.Registerer) func(method, route string, status int, took time.Duration) {
	count := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "carillon_http_requests_total", Help: "Requests answered, by route and by status.",
	}, []string{"method", "route", "status"})
	took := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "carillon_http_request_seconds", Help: "How long answers took, by interface; syncs wait for news.", Buckets: Seconds(),
	}, []string{"interface"})
	r.MustRegister(count, took)
	return func(method, route string, status int, d time.Duration) {
		if route == "" {
			method, route = "other", "none"
		}
		count.WithLabelValues(method, route, strconv.Itoa(status)).Inc()
		took.WithLabelValues(face(route)).Observe(d.Seconds())
	}
}

// face is the interface that a route belongs to.
func face(route string) string {
	switch {
	case strings.HasSuffix(route, "/sync"), strings.HasSuffix(route, "/events"):
		return "sync"
	case strings.HasPrefix(route, "/_matrix/client/v1/media/"), strings.HasPrefix(route, "/_matrix/media/"):
		return "media"
	case strings.HasPrefix(route, "/_matrix/client/"):
		return "client"
	case strings.HasPrefix(route, "/_matrix/federation/"), strings.HasPrefix(route, "/_matrix/key/"):
		return "federation"
	case strings.HasPrefix(route, "/_carillon/"), strings.HasPrefix(route, "/_synapse/"):
		return "operator"
	}
	return "other"
}
