package main

import (
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/test/freeport"
)

// Figures are shown at an address of their own, to those with the token, and nowhere else.
func TestMetrics(t *testing.T) {
	site := newSite(t, "")
	addr := freeport.Address(t)
	text, err := os.ReadFile(site.config)
	if err != nil {
		t.Fatal(err)
	}
	more := strings.Replace(string(text), "homeserver:\n", "homeserver:\n  metrics: {listen: \""+addr+"\", token: env:METRICS_TOKEN}\n", 1)
	if err := os.WriteFile(site.config, []byte(more), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, site.base, []string{"METRICS_TOKEN=open sesame"}, os.Args[0], "serve", "-c", site.config)
	get := func(url, token string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	if status, body := get("http://"+addr+"/metrics", "open sesame"); status != http.StatusOK ||
		!strings.Contains(body, `route="/_matrix/client/versions",status="200"} `) || !strings.Contains(body, "carillon_database_statements_total") {
		t.Errorf("with the token: %d\n%s", status, body)
	}
	if status, body := get("http://"+addr+"/metrics", ""); status != http.StatusUnauthorized || strings.Contains(body, "carillon_") {
		t.Errorf("without the token: %d", status)
	}
	for _, path := range []string{"/metrics", "/_carillon/metrics"} {
		if status, _ := get(site.base+path, "open sesame"); status != http.StatusNotFound {
			t.Errorf("%s on the address of clients: %d", path, status)
		}
	}
}
