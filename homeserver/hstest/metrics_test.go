package hstest_test

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/hstest"
)

// TestFiguresOfTheWaysToOtherServers: what monitoring sees of a server that is reached, away, and back.
func TestFiguresOfTheWaysToOtherServers(t *testing.T) {
	a, b := hstest.Pair(t, func(o *homeserver.Options) { o.Metrics = true })
	alice, bob := a.User("alice"), b.User("bob")
	room := alice.Room(nil)
	bob.OK("POST", hstest.V3+"/join/"+string(room)+"?via="+string(a.Name), map[string]any{})
	var body string
	shows := func(parts ...string) func() bool {
		return func() bool {
			w := httptest.NewRecorder()
			a.Metrics("").ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
			body = w.Body.String()
			for _, p := range parts {
				if !strings.Contains(body, p) {
					return false
				}
			}
			return true
		}
	}
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: never;\n%s", what, body)
			}
		}
	}
	server := `{server="` + string(b.Name) + `"}`
	alice.Say(room, "hello")
	eventually("b has taken something", shows("carillon_federation_destination_success_timestamp_seconds"+server+" 1", `carillon_federation_sent_total{kind="pdu"} 1`,
		`carillon_federation_transactions_sent_total{result="ok"}`, `carillon_http_requests_total{method="PUT",route="/_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}",status="200"} 1`))
	b.Cut()
	alice.Say(room, "nobody hears")
	eventually("b is away", shows(`carillon_federation_destinations{state="failing"} 1`, "carillon_federation_destination_transactions_waiting"+server+" 1",
		"carillon_federation_destination_waiting"+server+" 1", "carillon_federation_destination_retry_timestamp_seconds"+server+" 1", "carillon_federation_waiting 1"))
	if shows("carillon_federation_destination_oldest_seconds" + server + " 0\n")() {
		t.Error("the oldest has no age")
	}
	b.Heal()
	bob.Say(room, "here I am")
	eventually("b is back", shows(`carillon_federation_destinations{state="failing"} 0`, "carillon_federation_waiting 0", `carillon_federation_received_total{kind="pdu",result="ok"} 1`))
}
