package stories_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice"
	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/test/freeport"
	"github.com/carillon-chat/carillon/test/program"
)

// site is a machine on which the program runs.
type site struct {
	t      testing.TB
	whole  testing.TB // when it ends, the program does
	dir    string
	config string
	url    string
	bin    string
	args   []string // of the server

	cmd  *exec.Cmd
	out  *program.Output
	done chan struct{}
}

// newSite writes a configuration.
func newSite(t testing.TB, more string) *site {
	t.Helper()
	s := &site{t: t, whole: t, dir: t.TempDir(), bin: program.Path(t)}
	addr := freeport.Address(t)
	s.url = "http://" + addr
	s.config = filepath.Join(s.dir, "carillon.yaml")
	text := fmt.Sprintf(`server_name: %s
data_dir: %s
listen: %s
homeserver:
  database: %q
  federation: {enabled: false}
  rate_limits: {enabled: false}
appservice:
  database: %q
%s`, serverName, s.dir, addr, databaseOf(t, s.dir, "homeserver.db"), databaseOf(t, s.dir, "appservice.db"), more)
	if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.args = []string{"serve", "-c", s.config}
	return s
}

// databaseOf is a file of the site, or a PostgreSQL schema where that is tested.
func databaseOf(t testing.TB, dir, name string) string {
	if os.Getenv("CARILLON_TEST_POSTGRES") != "" {
		return sqldbtest.DSN(t)
	}
	return filepath.Join(dir, name)
}

// start starts the server and waits until it answers.
func (s *site) start() {
	s.t.Helper()
	s.cmd, s.out, s.done = exec.Command(s.bin, s.args...), &program.Output{}, make(chan struct{})
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	cmd, done := s.cmd, s.done
	go func() { _ = cmd.Wait(); close(done) }()
	s.whole.Cleanup(func() { _ = cmd.Process.Kill(); <-done })
	eventually(s.t, "the program answers", func() bool {
		select {
		case <-done:
			s.t.Fatalf("the program ended: %s", s.out)
		default:
		}
		resp, err := http.Get(s.url + "/_matrix/client/versions")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// kill ends the program as a power cut would.
func (s *site) kill() {
	_ = s.cmd.Process.Kill()
	<-s.done
}

// stop asks the program to end.
func (s *site) stop() (code int, took time.Duration) {
	s.t.Helper()
	began := time.Now()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	<-s.done
	return s.cmd.ProcessState.ExitCode(), time.Since(began)
}

// run runs a command of the program.
func (s *site) run(args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(s.t.Context(), s.bin, append(args, "-c", s.config)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// must runs a command that has to succeed.
func (s *site) must(args ...string) (stdout string) {
	s.t.Helper()
	code, out, errs := s.run(args...)
	if code != 0 {
		s.t.Fatalf("carillon %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// service is a client with the enterprise service's token, which can look at everything.
func (s *site) service() *mxclient.Client {
	s.t.Helper()
	reg, err := appservice.LoadRegistration(filepath.Join(filepath.Dir(s.config), "appservice-registration.yaml"))
	if err != nil {
		s.t.Fatal(err)
	}
	mx, err := mxclient.New(mxclient.Config{HomeserverURL: s.url, ServerName: serverName, ASToken: reg.ASToken, BotLocalpart: reg.SenderLocalpart})
	if err != nil {
		s.t.Fatal(err)
	}
	return mx
}

// get asks the API with a token.
func (s *site) get(token, path string) map[string]any {
	s.t.Helper()
	a, err := call(s.t.Context(), s.url, token, http.MethodGet, "/_carillon/v1"+path, "", nil)
	if err != nil || a.status != http.StatusOK {
		s.t.Fatalf("%s: %d %v %v", path, a.status, a.body, err)
	}
	return a.body
}

// roomEvents are all events of a room in their order.
func roomEvents(t testing.TB, c *mautrix.Client, room id.RoomID) []*event.Event {
	t.Helper()
	var all []*event.Event
	from := ""
	for {
		page, err := c.Messages(t.Context(), room, from, "", 'b', nil, 500)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, page.Chunk...)
		if page.End == "" || len(page.Chunk) == 0 {
			break
		}
		from = page.End
	}
	slices.Reverse(all)
	return all
}
