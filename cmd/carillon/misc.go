package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/carillon-chat/carillon/config"
)

type versionCmd struct{}

// Run prints the version.
func (versionCmd) Run(a *app) error {
	a.printf("carillon %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return nil
}

type checkConfigCmd struct {
	PrintExample   bool   `help:"Print an example file with every setting and its default."`
	PrintReference bool   `help:"Print the reference page of all settings (Markdown)."`
	Output         string `short:"o" placeholder:"FILE" help:"Write there instead of printing."`
}

// Help shows examples.
func (checkConfigCmd) Help() string {
	return "Examples:\n  carillon check-config -c /etc/carillon/carillon.yaml\n  carillon check-config --print-example > carillon.yaml"
}

// Run checks the configuration, or prints an example of one.
func (c checkConfigCmd) Run(a *app) error {
	write := config.WriteExample
	switch {
	case c.PrintExample && c.PrintReference:
		return usagef("--print-example and --print-reference are two things: choose one")
	case c.PrintReference:
		write = config.WriteReference
	case !c.PrintExample:
		cfg, err := a.load()
		if err != nil {
			return err
		}
		a.printf("The configuration is good: %s on %s, data in %s.\n", cfg.ServerName, cfg.Listen, cfg.DataDir)
		return nil
	}
	return a.output(c.Output, 0o644, write)
}

// output writes to a file that appears whole or not at all, or to standard output.
func (a *app) output(path string, mode os.FileMode, write func(io.Writer) error) error {
	if path == "" || path == "-" {
		return write(a.stdout)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".carillon-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := write(f); err != nil {
		f.Close()
		return err
	}
	if err := f.Chmod(mode); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

type healthcheckCmd struct {
	URL     string        `placeholder:"URL" help:"Address of the server. Without it, the configuration's listening address."`
	Timeout time.Duration `default:"5s" help:"How long to wait for an answer."`
}

// Help shows examples.
func (healthcheckCmd) Help() string {
	return "Ends with 0 if the server answers and with 1 if not, for service managers and containers.\n\nExamples:\n  carillon healthcheck\n  carillon healthcheck --url https://chat.example.org"
}

// Run asks the server for the versions it speaks.
func (h healthcheckCmd) Run(a *app) error {
	base := h.URL
	if base == "" {
		cfg, err := a.load()
		if err != nil {
			return err
		}
		base = cfg.LocalAddress()
	}
	ctx, cancel := context.WithTimeout(a.ctx, h.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/_matrix/client/versions", nil)
	if err != nil {
		return usage{err}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("the server does not answer: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the server is not well: %s answers %s", base, resp.Status)
	}
	a.printf("well\n")
	return nil
}
