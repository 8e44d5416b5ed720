// Package peer has the programs of others that tests run against: each is built or fetched once, into the user's cache
// folder, and found there by all later runs.
package peer

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// Folder is where a peer of some name is kept. make puts it there, once; tests of several packages, which run at the
// same time, wait for each other. The name is to hold the version.
func Folder(t testing.TB, name string, make func(dir string) error) string {
	t.Helper()
	dir := folder(t, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if has(t, name) {
		return dir
	}
	if err := make(dir); err != nil {
		var missing Missing
		if errors.As(err, &missing) {
			t.Skip(string(missing))
		}
		t.Fatalf("getting %s: %v", name, err)
	}
	if err := os.WriteFile(done(dir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Missing is the error of a peer that cannot be had here. It says what to install, and skips the test.
type Missing string

// Error implements error.
func (m Missing) Error() string { return string(m) }

func has(t testing.TB, name string) bool {
	t.Helper()
	_, err := os.Stat(done(folder(t, name)))
	return err == nil
}

func folder(t testing.TB, name string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(cache, "carillon-test", name)
}

func done(dir string) string { return filepath.Join(dir, "done") }

// Command is a program of a Go module at an exact version.
type Command struct{ Module, Path, Version string }

// name is that of the folder.
func (c Command) name() string { return filepath.Base(c.Module) + "-" + c.Version }

// Built reports whether the program is there already.
func (c Command) Built(t testing.TB) bool {
	t.Helper()
	return has(t, c.name())
}

// Program is the path of the program, which is built if need be.
func (c Command) Program(t testing.TB) string {
	t.Helper()
	dir := Folder(t, c.name(), func(dir string) error {
		// In a module of its own, so that nothing of this one's versions counts.
		mod := fmt.Sprintf("module peer\n\ngo 1.24\n\nrequire %s %s\n", c.Module, c.Version)
		if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(mod), 0o600); err != nil {
			return err
		}
		build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", "program", c.Module+c.Path)
		build.Dir = dir
		build.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off", "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("building it: %w: %s", err, out)
		}
		return nil
	})
	return filepath.Join(dir, "program")
}
