// Package program builds the carillon binary for the tests that run it as a process, and keeps what it prints.
package program

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

var binary struct {
	once sync.Once
	dir  string
	path string
	err  error
}

// Path is the binary, built once for the tests of a package, with the tags of a release. CARILLON_BIN names one that is
// there already. Main must run the tests.
func Path(t testing.TB) string {
	t.Helper()
	binary.once.Do(func() {
		if binary.path = os.Getenv("CARILLON_BIN"); binary.path != "" {
			return
		}
		if binary.dir, binary.err = os.MkdirTemp("", "carillon"); binary.err != nil {
			return
		}
		binary.path = filepath.Join(binary.dir, "carillon")
		build := exec.Command("go", "build", "-tags", "goolm,nodynamic", "-o", binary.path, "github.com/carillon-chat/carillon/cmd/carillon")
		if out, err := build.CombinedOutput(); err != nil {
			binary.err = fmt.Errorf("building carillon: %w\n%s", err, out)
		}
	})
	if binary.err != nil {
		t.Fatal(binary.err)
	}
	return binary.path
}

// Main runs the tests and removes the binary.
func Main(m *testing.M) int {
	code := m.Run()
	if binary.dir != "" {
		_ = os.RemoveAll(binary.dir)
	}
	return code
}

// Output is what a process has printed so far.
type Output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

// String is all of it.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
