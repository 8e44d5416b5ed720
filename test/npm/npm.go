// Package npm installs what the tests' JavaScript peers need, of a package-lock.json, once for all runs.
package npm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Install runs npm ci in a folder whose node_modules are not those of its package-lock.json.
func Install(dir string) error {
	lock, err := os.Open(filepath.Join(dir, "package-lock.json"))
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil { // another run of the tests may be installing
		return err
	}
	text, err := io.ReadAll(lock)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(text)
	stamp := filepath.Join(dir, "node_modules", ".carillon-lock")
	if have, _ := os.ReadFile(stamp); string(have) == hex.EncodeToString(sum[:]) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("npm ci: %w: %s", err, bytes.TrimSpace(out))
	}
	return os.WriteFile(stamp, []byte(hex.EncodeToString(sum[:])), 0o600)
}

// Need is Install for a test. Without Node.js the test is skipped, and fails where that has to be there: in make test
// and in CI.
func Need(t testing.TB, dir string) {
	t.Helper()
	err := Install(dir)
	if errors.Is(err, exec.ErrNotFound) && os.Getenv("CARILLON_TEST_CLIENTS") == "" && os.Getenv("CI") == "" {
		t.Skip("this test needs Node.js 20 or newer with npm")
	}
	if err != nil {
		t.Fatal(err)
	}
}
