// Package clients_test lets real clients use a real Carillon: matrix-js-sdk with the Rust crypto, in Node.js and in
// Chromium, and mautrix-go with goolm. The scripts are beside this file; README.md says how to write one.
package clients_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/test/npm"
	"github.com/carillon-chat/carillon/test/program"
)

// scriptTime bounds a script. Its steps have bounds of their own.
const scriptTime = 4 * time.Minute

func TestMain(m *testing.M) {
	if os.Getenv("CARILLON_TEST_LOG") == "" {
		log.SetOutput(io.Discard)
	}
	os.Exit(program.Main(m))
}

// installed is whether what the scripts need is there.
var installed struct {
	once sync.Once
	err  error
}

// needScripts installs the packages of package-lock.json once. Without Node.js or Chromium it skips the test, and fails
// it where they have to be there: in make test and in CI.
func needScripts(t testing.TB) {
	t.Helper()
	installed.once.Do(func() { installed.err = install() })
	var exit *exec.ExitError
	if errors.As(installed.err, &exit) && os.Getenv("CARILLON_TEST_CLIENTS") == "" && os.Getenv("CI") == "" {
		t.Skip(strings.TrimSpace(string(exit.Stderr)))
	}
	if installed.err != nil {
		if exit != nil {
			t.Fatal(strings.TrimSpace(string(exit.Stderr)))
		}
		t.Fatal(installed.err)
	}
}

// install installs the packages, if the tools are here that need them.
func install() error {
	if _, err := exec.Command("./tools").Output(); err != nil {
		return err
	}
	if err := npm.Install("."); err != nil {
		return errors.New(err.Error()) // no ExitError: a registry that is away is no missing tool
	}
	return nil
}

// told is one line of a script: a step and how it went, or a note.
type told struct {
	Step  string `json:"step"`
	Note  string `json:"note"`
	Error string `json:"error"`
	MS    int    `json:"ms"`
}

// script runs a script of this folder. What it prints as steps become subtests; input reaches it as CARILLON_TEST.
func script(t *testing.T, name string, input any) {
	t.Helper()
	needScripts(t)
	in, err := json.Marshal(input)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), scriptTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "--no-warnings", name)
	cmd.Env = append(os.Environ(), "CARILLON_TEST="+string(in), "CARILLON_TEST_DIR="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a browser that the script started ends with it
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var other, stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	steps := 0
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var l told
		if json.Unmarshal(lines.Bytes(), &l) != nil || l.Step == "" && l.Note == "" {
			other.Write(append(lines.Bytes(), '\n'))
			continue
		}
		if l.Note != "" {
			t.Log(l.Note)
			continue
		}
		steps++
		t.Run(l.Step, func(t *testing.T) {
			if l.Error != "" {
				t.Errorf("after %d ms: %s", l.MS, l.Error)
			} else {
				t.Logf("%d ms", l.MS)
			}
		})
	}
	err = cmd.Wait()
	if err != nil || steps == 0 {
		t.Errorf("%s: %v after %d steps\n%s%s", name, err, steps, tail(&other), tail(&stderr))
	}
}

// tail is the end of what a script said.
func tail(b *bytes.Buffer) []byte {
	const most = 8 << 10
	return b.Bytes()[max(0, b.Len()-most):]
}

// person is how a script gets an account.
type person struct {
	UserID   string `json:"user_id"`
	Name     string `json:"name"`
	Password string `json:"password"`
}

// input is what every script gets.
type input struct {
	URL    string            `json:"url"`
	Server string            `json:"server"`
	People map[string]person `json:"people"`
	More   map[string]any    `json:"more,omitempty"`
}
