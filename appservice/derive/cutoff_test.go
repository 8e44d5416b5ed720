package derive_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/appservice/astest"
	"github.com/carillon-chat/carillon/appservice/derive"
)

// TestCutOff ends runs in the middle, in every phase, and checks that the runs that follow come to the same company
// without a membership, an account or a room too much.
func TestCutOff(t *testing.T) {
	for _, after := range []astest.Fault{astest.FaultBefore, astest.FaultAfter} {
		c := found(t, func(o *derive.Options, _ *astest.Server) { o.Concurrency = 3 })
		c.becomes(staff())
		done := false
		runs := 0
		for limit := 3; !done; limit += 7 {
			runs++
			c.restart()
			ctx, cancel := context.WithCancel(t.Context())
			n := 0
			c.hs.SetFault(func(*http.Request) astest.Fault {
				if n++; n <= limit {
					return astest.FaultNone
				}
				cancel() // the process dies while this request is on its way
				return after
			})
			_, err := c.rec.Reconcile(ctx, c.store.Tree(), nil)
			cancel()
			done = err == nil
			if runs > 200 {
				t.Fatal(err)
			}
		}
		c.hs.SetFault(nil)
		if runs < 5 {
			t.Errorf("only %d runs were cut off", runs)
		}
		c.members("unit:tech", "002", "003", "004")
		c.members("all-staff", "001", "002", "003", "004", "005", "006")
		if n := len(c.hs.Rooms()); n != 11 {
			t.Errorf("%d rooms were made, want 11", n)
		}
		for _, room := range c.hs.Rooms() {
			for _, u := range c.hs.Joined(room) {
				if n := c.hs.MemberEvents(room, u, "join"); n != 1 {
					t.Errorf("%s joined %s %d times", u, room, n)
				}
			}
		}
		// a person has one first password, whatever happened
		passwords := map[string]map[string]bool{}
		files, _ := filepath.Glob(filepath.Join(c.opts.PasswordsDir, "*.csv"))
		for _, f := range files {
			b, _ := os.ReadFile(f)
			for _, line := range strings.Split(string(b), "\r\n")[1:] {
				if rec := strings.Split(line, ","); len(rec) > 3 && rec[3] != "" {
					if passwords[rec[0]] == nil {
						passwords[rec[0]] = map[string]bool{}
					}
					passwords[rec[0]][rec[3]] = true
				}
			}
		}
		if len(passwords) != 6 {
			t.Errorf("passwords of %d people", len(passwords))
		}
		for p, list := range passwords {
			if len(list) != 1 {
				t.Errorf("%s has %d passwords", p, len(list))
			}
		}
		c.nothing()
	}
}

func TestHomeserverAwayEndsTheRun(t *testing.T) {
	c := found(t)
	c.becomes(staff())
	c.hs.SetFault(func(*http.Request) astest.Fault { return astest.FaultBefore })
	if _, err := c.rec.Reconcile(t.Context(), c.store.Tree(), nil); err == nil {
		t.Fatal("no error while the homeserver is away")
	}
	if pending, err := c.rec.Pending(t.Context(), c.store.Tree()); err != nil || !pending {
		t.Errorf("pending %v %v", pending, err)
	}
	c.hs.SetFault(nil)
	c.run()
	if pending, err := c.rec.Pending(t.Context(), c.store.Tree()); err != nil || pending {
		t.Errorf("pending %v %v", pending, err)
	}
	c.members("all-staff", "001", "002", "003", "004", "005", "006")
}

func TestOneRefusalDoesNotStopTheRest(t *testing.T) {
	c := found(t)
	c.becomes(staff())
	c.hs.SetFault(func(r *http.Request) astest.Fault {
		if strings.Contains(r.URL.Path, "/profile/@003:") {
			return astest.FaultBefore
		}
		return astest.FaultNone
	})
	report, err := c.rec.Reconcile(t.Context(), c.store.Tree(), nil)
	if !errors.Is(err, derive.ErrIncomplete) || report.Failed != 1 || report.Failures[0].Who != "003" {
		t.Fatalf("%v %+v", err, report)
	}
	c.members("unit:branch", "005", "006")
	c.hs.SetFault(nil)
	c.run()
	if name, _, _, _ := c.hs.User(user("003")); name != "赵四" {
		t.Errorf("display name %q", name)
	}
	c.nothing()
}
