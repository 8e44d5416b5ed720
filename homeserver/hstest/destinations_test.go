package hstest_test

import (
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// TestAdministratorsSeeTheWaysToOtherServers: what waits for a server that is away, who may see it, and trying anew.
func TestAdministratorsSeeTheWaysToOtherServers(t *testing.T) {
	a, b := hstest.Pair(t, func(o *homeserver.Options) { o.Admins = []matrix.UserID{matrix.NewUserID("chief", o.ServerName)} })
	chief, alice, bob := a.User("chief"), a.User("alice"), b.User("bob")
	room := alice.Room(nil)
	bob.OK("POST", hstest.V3+"/join/"+string(room)+"?via="+string(a.Name), map[string]any{})
	const base = "/_carillon/admin/v1/federation/destinations"
	one := base + "/" + string(b.Name)
	for _, path := range []struct{ method, path string }{{"GET", base}, {"GET", one}, {"POST", one + "/retry"}, {"POST", one + "/reset"}} {
		if r := a.Do(alice.AccessToken, path.method, path.path, nil); r.Status != 403 || r.Code() != "M_FORBIDDEN" {
			t.Errorf("%s %s by anybody: %d %s", path.method, path.path, r.Status, r.Body)
		}
		if r := a.Do("", path.method, path.path, nil); r.Status != 401 {
			t.Errorf("%s %s without a token: %d", path.method, path.path, r.Status)
		}
	}
	get := func(path string) hstest.Answer {
		t.Helper()
		r := a.Do(chief.AccessToken, "GET", path, nil)
		if r.Status != 200 {
			t.Fatalf("%s: %d %s", path, r.Status, r.Body)
		}
		return r
	}
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for range 1000 {
			if ok() {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("%s: never; %s", what, get(one).Body)
	}
	alice.Say(room, "hello")
	eventually("b was sent something", func() bool { return get(one).Get("sent_at").Int() > 0 })
	if r := get(base + "?limit=1"); r.Get("destinations.0.server_name").Str != string(b.Name) {
		t.Errorf("the list is %s", r.Body)
	}
	b.Cut()
	alice.Say(room, "nobody hears")
	eventually("a failure is seen", func() bool {
		r := get(one)
		return r.Get("failures").Int() > 0 && r.Get("failing_since").Int() > 0 && r.Get("waiting_events").Int() > 0 && r.Get("waiting_transactions").Int() > 0 && r.Get("waiting_since").Int() > 0
	})
	b.Heal()
	if r := a.Do(chief.AccessToken, "POST", one+"/reset", nil); r.Status != 200 {
		t.Fatalf("reset: %d %s", r.Status, r.Body)
	}
	eventually("b is back", func() bool {
		a.Do(chief.AccessToken, "POST", one+"/retry", nil)
		r := get(one)
		return r.Get("failures").Int() == 0 && r.Get("waiting_events").Int() == 0
	})
	if r := a.Do(chief.AccessToken, "GET", base+"/not%20a%20name", nil); r.Status != 400 || r.Code() != "M_INVALID_PARAM" {
		t.Errorf("a bad name: %d %s", r.Status, r.Body)
	}
	if r := get(base + "/never.example"); r.Get("failures").Int() != 0 || r.Get("waiting_events").Int() != 0 {
		t.Errorf("a server that nobody knows: %s", r.Body)
	}
}
