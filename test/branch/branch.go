// Package branch starts the places of a company of several sites for tests: at each a homeserver, which federates with
// the others over real TLS, and an enterprise service beside it, which may be stopped and started anew.
package branch

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/appservice"
	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

// Branch is one place.
type Branch struct {
	T    testing.TB
	Name string // of the site
	HS   *hstest.Server
	Reg  *appservice.Registration
	DSN  string    // of the service's database
	DB   *sqldb.DB // of the service that runs, or has run last

	mu   sync.Mutex
	svc  *appservice.Service
	stop func()
}

// Open starts a homeserver for each name. Their services are yet to be started; they end with the test.
func Open(t testing.TB, names ...string) []*Branch {
	t.Helper()
	authority := httpapitest.NewAuthority(t)
	var out []*Branch
	for _, name := range names {
		b := &Branch{T: t, Name: name, DSN: sqldbtest.DSN(t), stop: func() {}}
		b.HS = hstest.Among(t, authority, func(o *homeserver.Options) {
			b.Reg = appservice.NewRegistration(string(o.ServerName), "http://service")
			yaml, err := b.Reg.YAML()
			if err != nil {
				t.Fatal(err)
			}
			reg, err := accounts.ParseRegistration(yaml)
			if err != nil {
				t.Fatal(err)
			}
			o.ApplicationServices = append(o.ApplicationServices, reg)
			o.Transports = map[string]http.RoundTripper{reg.ID: mxclient.NewHandlerTransport(http.HandlerFunc(b.serve))}
		})
		t.Cleanup(b.End)
		out = append(out, b)
	}
	return out
}

// serve hands the homeserver's transactions to the service, which may be down.
func (b *Branch) serve(w http.ResponseWriter, r *http.Request) {
	svc := b.Service()
	if svc == nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	svc.Handler().ServeHTTP(w, r)
}

// Service is the one that runs, nil where none does.
func (b *Branch) Service() *appservice.Service {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.svc
}

// Start starts the service. What leads to database and homeserver is filled in; prepare is called before it runs.
func (b *Branch) Start(o appservice.Options, prepare func(*appservice.Service)) {
	b.T.Helper()
	var err error
	for range 200 { // a PostgreSQL server takes a moment to notice that its client has gone
		if b.DB, err = sqldb.Open(b.DSN); !errors.Is(err, sqldb.ErrInUse) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		b.T.Fatal(err)
	}
	db := b.DB
	o.DB, o.ServerName, o.Registration, o.HomeserverURL = db, string(b.HS.Name), b.Reg, "http://homeserver"
	o.Transport = mxclient.NewHandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { b.HS.Handler().ServeHTTP(w, r) }))
	svc, err := appservice.New(context.Background(), o)
	if err != nil {
		b.T.Fatal(err)
	}
	if prepare != nil {
		prepare(svc)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = svc.Run(ctx) }() // a test may take its database away
	b.mu.Lock()
	b.svc = svc
	b.mu.Unlock()
	b.stop = sync.OnceFunc(func() {
		b.mu.Lock()
		b.svc = nil
		b.mu.Unlock()
		cancel()
		<-done
		db.Close()
	})
}

// End stops the service, if it runs.
func (b *Branch) End() { b.stop() }
