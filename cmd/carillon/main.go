// Command carillon is the whole of Carillon in one binary: the Matrix homeserver,
// the enterprise service and the tools of its operators.
//
// Exit codes: 0 success; 1 something failed; 2 the command line or the
// configuration is wrong; 3 the input was understood and refused, nothing changed.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/carillon-chat/carillon/config"
)

// version is set by the build.
var version = "development"

// Exit codes, a contract with scripts.
const (
	exitOK      = 0
	exitFailed  = 1
	exitUsage   = 2
	exitRefused = 3
)

// refused is an error that means: understood, and nothing was changed.
type refused struct{ error }

func (r refused) Unwrap() error { return r.error }

// usage is an error in how the command was called.
type usage struct{ error }

func (u usage) Unwrap() error { return u.error }

func usagef(format string, args ...any) error { return usage{fmt.Errorf(format, args...)} }

// cli is the command line.
type cli struct {
	Config string `short:"c" placeholder:"FILE" env:"CARILLON_CONFIG" help:"Configuration file, - for standard input. Without it: carillon.yaml here, data/carillon.yaml, /etc/carillon/carillon.yaml, whichever is found first."`

	Serve       serveCmd       `cmd:"" help:"Run everything in one process: homeserver and enterprise service."`
	Homeserver  homeserverCmd  `cmd:"" help:"Run the homeserver alone."`
	AppService  appserviceCmd  `cmd:"" name:"appservice" help:"Run the enterprise service alone, beside another homeserver."`
	Org         orgCmd         `cmd:"" help:"The company's people and units: import, look, make templates."`
	User        userCmd        `cmd:"" help:"Accounts: create, list, lock, unlock, set a password, make an administrator."`
	Media       mediaCmd       `cmd:"" help:"The media store: copy it to an object store or back."`
	Migrate     migrateCmd     `cmd:"" help:"Bring the databases to this version's schema, and stop."`
	CheckConfig checkConfigCmd `cmd:"" name:"check-config" help:"Say what is wrong in the configuration and what to write instead."`
	Healthcheck healthcheckCmd `cmd:"" help:"Ask the running server whether it is well."`
	Version     versionCmd     `cmd:"" help:"Print the version."`
	DecodeAVIF  decodeAVIFCmd  `cmd:"" name:"decode-avif" hidden:"" help:"Decode a picture for the media store."`
}

// app is what commands get.
type app struct {
	ctx            context.Context
	stdin          io.Reader
	stdout, stderr io.Writer
	configPath     string
}

func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.stdout, format, args...) }

func main() {
	os.Exit(process())
}

// process is the program with the process's own signals, arguments and files.
func process() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	return run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

// helpShown is how kong's exit after --help leaves the parser.
type helpShown int

// run is the program without the process around it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	defer func() {
		if p := recover(); p != nil {
			shown, ok := p.(helpShown)
			if !ok {
				panic(p)
			}
			code = int(shown)
		}
	}()
	var c cli
	parser, err := kong.New(
		&c,
		kong.Name("carillon"),
		kong.Description("Carillon, a Matrix homeserver for companies.\n\nExit codes: 0 success, 1 failure, 2 wrong command line or configuration, 3 input refused and nothing changed."),
		kong.Writers(stdout, stderr),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.Exit(func(code int) { panic(helpShown(code)) }),
	)
	if err != nil {
		fmt.Fprintln(stderr, "carillon:", err)
		return exitFailed
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(stderr, "carillon: %v\nTry: carillon --help\n", err)
		return exitUsage
	}
	err = parsed.Run(&app{ctx: ctx, stdin: stdin, stdout: stdout, stderr: stderr, configPath: c.Config})
	return report(stderr, err)
}

// report prints an error and gives its exit code.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	var problems config.Problems
	var no refused
	var use usage
	switch {
	case errors.As(err, &problems):
		fmt.Fprintf(stderr, "The configuration cannot be used:\n%v\n", problems)
		return exitUsage
	case errors.As(err, &use):
		fmt.Fprintln(stderr, "carillon:", err)
		return exitUsage
	case errors.As(err, &no):
		fmt.Fprintln(stderr, err)
		return exitRefused
	}
	fmt.Fprintln(stderr, "carillon:", err)
	return exitFailed
}

// configPlaces is where a configuration is looked for when none is named.
var configPlaces = [...]string{"carillon.yaml", "data/carillon.yaml", "/etc/carillon/carillon.yaml"}

// load reads the configuration.
func (a *app) load() (*config.Config, error) {
	path := a.configPath
	if path == "" {
		for _, p := range configPlaces {
			if _, err := os.Stat(p); err == nil {
				path = p
				break
			}
		}
	}
	if path == "" {
		return nil, usagef("no configuration was found: name one with -c FILE, or write three lines into carillon.yaml:\n\n" +
			"server_name: example.org\ndata_dir: ./data\nlisten: 127.0.0.1:8008\n\nTo try things out: carillon serve --demo")
	}
	cfg, err := config.Load(path)
	var problems config.Problems
	if err != nil && !errors.As(err, &problems) {
		return nil, usage{err}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return cfg, nil
}
