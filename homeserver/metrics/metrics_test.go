package metrics_test

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/metrics"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

func get(h http.Handler, path, authorization string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestWhoMayRead(t *testing.T) {
	r := metrics.New("1.2.3")
	for _, tt := range []struct {
		token, authorization, path string
		status                     int
	}{
		{"", "", "/metrics", 200},
		{"", "Bearer whatever", "/metrics", 200},
		{"secret", "", "/metrics", 401},
		{"secret", "secret", "/metrics", 401},
		{"secret", "Basic secret", "/metrics", 401},
		{"secret", "Bearer secrets", "/metrics", 401},
		{"secret", "Bearer secret", "/metrics", 200},
		{"secret", "bearer  secret", "/metrics", 200},
		{"secret", "Bearer secret", "/", 404},
	} {
		w := get(metrics.Handler(r, tt.token), tt.path, tt.authorization)
		if w.Code != tt.status {
			t.Errorf("token %q, %q: %d, want %d", tt.token, tt.authorization, w.Code, tt.status)
		}
		if shown := strings.Contains(w.Body.String(), `carillon_build_info{version="1.2.3"} 1`); shown != (tt.status == 200) {
			t.Errorf("token %q, %q: shown is %v", tt.token, tt.authorization, shown)
		}
	}
}

func TestFigures(t *testing.T) {
	db, err := sqldb.Open(filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	l, err := stream.Open(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	r := metrics.New("x")
	metrics.Database(r, db, l)
	observe := metrics.Requests(r)
	observe("GET", "/_matrix/client/v3/sync", 200, 20*time.Second)
	observe("PUT", "/_matrix/federation/v1/send/{txnId}", 403, time.Millisecond)
	for range 3 {
		observe("BREW", "", 404, time.Millisecond) // what strangers invent makes no series of its own
	}
	body := get(metrics.Handler(r, ""), "/metrics", "").Body.String()
	for _, want := range []string{
		"go_goroutines ", "process_open_fds ", "carillon_database_statements_total ", "carillon_database_connections 5", "carillon_database_connections_in_use 0",
		"carillon_database_connections_max 17", "carillon_log_position 0",
		`carillon_http_requests_total{method="other",route="none",status="404"} 3`,
		`carillon_http_requests_total{method="PUT",route="/_matrix/federation/v1/send/{txnId}",status="403"} 1`,
		`carillon_http_request_seconds_bucket{interface="sync",le="30"} 1`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if strings.Contains(body, "BREW") {
		t.Error("a method that is none is shown")
	}
}
