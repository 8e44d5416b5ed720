package clients_test

import (
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/test/program"
)

// demo starts the demo as a newcomer does and gives the people whom it introduces.
func demo(t *testing.T) input {
	t.Helper()
	out := &program.Output{}
	cmd := exec.Command(program.Path(t), "serve", "--demo", "--data", filepath.Join(t.TempDir(), "data"), "--listen", "127.0.0.1:0")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for end := time.Now().Add(time.Minute); !strings.Contains(out.String(), "Ctrl-C"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the demo does not greet: %s", out)
		}
	}
	in := input{Server: "localhost", People: map[string]person{}}
	if m := regexp.MustCompile(`address="(127.0.0.1:\d+)" for=clients`).FindStringSubmatch(out.String()); m != nil {
		in.URL = "http://" + m[1]
	}
	if resp, err := http.Get(in.URL + "/_matrix/client/versions"); err != nil {
		t.Fatalf("%s: %v\n%s", in.URL, err, out)
	} else {
		resp.Body.Close()
	}
	line := regexp.MustCompile(`(?m)^    ([a-z]+) +([A-Z2-7]{4}(?:-[A-Z2-7]{4}){3}) +\S+ \(`)
	for _, m := range line.FindAllStringSubmatch(out.String(), -1) {
		in.People[m[1]] = person{UserID: "@" + m[1] + ":localhost", Name: m[1], Password: m[2]}
	}
	if len(in.People) != 3 {
		t.Fatalf("the demo introduces\n%s", out)
	}
	return in
}

// What the README proposes to try, in a real client.
func TestDemo(t *testing.T) {
	t.Parallel()
	needScripts(t)
	script(t, "demo.mjs", demo(t))
}
