package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/config"
)

type serveCmd struct {
	Demo   bool   `help:"Make a demo company at the first start, and a configuration for this machine alone."`
	Data   string `default:"./data" placeholder:"DIR" help:"Data folder of the demo."`
	Listen string `placeholder:"ADDR" help:"Listening address of the demo; 127.0.0.1:8008 at the first start."`
}

// Help shows examples.
func (serveCmd) Help() string {
	return "Ends on SIGTERM or Ctrl-C within ten seconds: requests that are being answered are finished, waiting clients are sent home. A second signal ends it at once; nothing that was acknowledged is lost either way.\n\n" +
		"Examples:\n  carillon serve -c /etc/carillon/carillon.yaml\n  carillon serve --demo"
}

// Run runs homeserver and enterprise service in one process.
func (c serveCmd) Run(a *app) error {
	if !c.Demo {
		cfg, err := a.load()
		if err != nil {
			return err
		}
		if cfg.AppService.Enabled && cfg.AppService.HomeserverURL != "" {
			return usagef("appservice.homeserver_url is set, which is for a service beside another homeserver: take it out, or run carillon homeserver and carillon appservice")
		}
		return a.serve(cfg, parts{homeserver: true, appservice: cfg.AppService.Enabled}, nil)
	}
	cfg, err := c.demoConfig(a)
	if err != nil {
		return err
	}
	return a.serve(cfg, parts{homeserver: true, appservice: true}, a.demo)
}

type homeserverCmd struct{}

// Help shows examples.
func (homeserverCmd) Help() string {
	return "Example:\n  carillon homeserver -c /etc/carillon/carillon.yaml"
}

// Run runs the homeserver alone.
func (homeserverCmd) Run(a *app) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	return a.serve(cfg, parts{homeserver: true}, nil)
}

type appserviceCmd struct {
	PrintRegistration bool `help:"Print the registration file for the homeserver (made if there is none), and stop."`
}

// Help shows examples.
func (appserviceCmd) Help() string {
	return "The other homeserver needs the registration file, and its bot (@carillon) the rights of a server administrator to lock leavers.\n\n" +
		"Examples:\n  carillon appservice -c carillon.yaml --print-registration > carillon-registration.yaml\n  carillon appservice -c carillon.yaml"
}

// Run runs the enterprise service beside another homeserver.
func (c appserviceCmd) Run(a *app) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	if c.PrintRegistration {
		return a.printRegistration(cfg)
	}
	if err := cfg.CheckAlone(); err != nil {
		return err
	}
	return a.serve(cfg, parts{appservice: true}, nil)
}

// parts says what runs in this process.
type parts struct{ homeserver, appservice bool }

// serve runs until a signal or until something breaks. ready is called once
// everything answers; what it returns in error ends the process.
func (a *app) serve(cfg *config.Config, p parts, ready func(context.Context, *stack) error) error {
	setUpLog(a.stderr, cfg.Log)
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	ports, err := openPorts(cfg, p)
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range ports.all {
			l.ln.Close()
		}
	}()
	s, err := build(a.ctx, cfg, p)
	if err != nil {
		return err
	}
	defer s.close()
	if err := ports.openSockets(cfg, p); err != nil {
		return err
	}

	broken := make(chan error, 16) // one for each port and part; only the first counts
	fail := func(err error) {
		select {
		case broken <- err:
		default:
		}
	}
	stop := s.start(fail)
	ports.serve(s, fail)
	if ports.auto != nil {
		defer ports.auto.close()
		if err := ports.auto.start(a.ctx, fail); err != nil {
			fail(err)
		}
	}
	if ready != nil {
		go func() {
			if err := ready(a.ctx, s); err != nil && a.ctx.Err() == nil {
				fail(err)
			}
		}()
	}
	select {
	case <-a.ctx.Done():
		log.Info("stopping")
	case err = <-broken:
		log.WithError(err).Error("stopping")
	}
	// Whatever hangs, the process is gone in time: all that was acknowledged is committed.
	overdue := time.AfterFunc(shutdownTime, func() {
		log.Error("not everything stopped in time")
		os.Exit(exitFailed)
	})
	defer overdue.Stop()
	closed := ports.shut()
	stop()
	closed()
	return err
}

// ports are the open ports of a process.
type ports struct {
	all                    []*listener
	client, federation, as *listener
	metrics                *listener
	hsSocket, asSocket     *listener
	auto                   *automatic // certificates; nil: none by itself
}

func openPorts(cfg *config.Config, p parts) (*ports, error) {
	var o ports
	auto, err := newAutomatic(cfg)
	if err != nil {
		return nil, err
	}
	open := func(l **listener, name, addr, cert, key string) {
		if err != nil {
			return
		}
		if *l, err = listen(name, addr, cert, key, auto); err == nil {
			o.all = append(o.all, *l)
		}
	}
	if p.homeserver {
		o.auto = auto
		open(&o.client, "clients", cfg.Listen, cfg.TLSCert, cfg.TLSKey)
		if f := cfg.Homeserver.Federation; f.Enabled && f.Listen != "" {
			open(&o.federation, "federation", f.Listen, f.TLSCert, f.TLSKey)
		}
		if m := cfg.Homeserver.Metrics; m.Listen != "" {
			auto = nil
			open(&o.metrics, "metrics", m.Listen, "", "")
		}
	} else {
		auto = nil
		open(&o.as, "homeserver and clients", cfg.AppService.Listen, "", "")
	}
	if err != nil {
		for _, l := range o.all {
			l.ln.Close()
		}
		return nil, err
	}
	return &o, nil
}

// openSockets opens the operator's sockets; after build, which holds the database locks.
func (o *ports) openSockets(cfg *config.Config, p parts) (err error) {
	if p.homeserver {
		if o.hsSocket, err = openSocket(cfg.DataDir, homeserverSocket); err != nil {
			return err
		}
		o.all = append(o.all, o.hsSocket)
	}
	if p.appservice {
		if o.asSocket, err = openSocket(cfg.DataDir, appserviceSocket); err != nil {
			return err
		}
		o.all = append(o.all, o.asSocket)
	}
	return nil
}

func (o *ports) serve(s *stack, fail func(error)) {
	if o.client != nil {
		o.client.park = s.hs.Listener
		o.client.serve(s.clientHandler(), fail)
	}
	if o.federation != nil {
		o.federation.serve(s.hs.FederationHandler(), fail)
	}
	if o.metrics != nil {
		o.metrics.serve(s.hs.Metrics(s.cfg.Homeserver.Metrics.Token.Value()), fail)
	}
	if o.as != nil {
		o.as.serve(s.as.Handler(), fail)
	}
	if o.hsSocket != nil {
		o.hsSocket.serve(s.userControl(), fail)
	}
	if o.asSocket != nil {
		o.asSocket.serve(s.orgControl(), fail)
	}
}

// shut closes all ports to new requests; the function it returns waits until those
// under way are answered.
func (o *ports) shut() (wait func()) {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
	var closing sync.WaitGroup
	for _, l := range o.all {
		closing.Go(func() { l.shut(ctx) })
	}
	return func() {
		closing.Wait()
		cancel()
	}
}

// clientHandler gives /_carillon/v1 to the enterprise service and the rest, with the
// operator API under /_carillon/admin, to the homeserver.
func (s *stack) clientHandler() http.Handler {
	hs := s.hs.Handler()
	if s.as == nil {
		return hs
	}
	as := s.as.Handler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/_carillon/v1/") {
			as.ServeHTTP(w, r)
			return
		}
		hs.ServeHTTP(w, r)
	})
}

type migrateCmd struct{}

// Help shows examples.
func (migrateCmd) Help() string {
	return "A server does this by itself at each start. This command is for operators who want to see it done before. The server must not run.\n\nExample:\n  carillon migrate -c /etc/carillon/carillon.yaml"
}

// Run brings the schemas up to date.
func (migrateCmd) Run(a *app) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	setUpLog(a.stderr, cfg.Log)
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	s, err := build(a.ctx, cfg, parts{homeserver: true, appservice: cfg.AppService.Enabled})
	if err != nil {
		return err
	}
	s.close()
	a.printf("The databases are at the schema of version %s.\n", version)
	return nil
}
