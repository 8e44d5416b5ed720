package applications

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// protocolsKept is how long the description of a protocol is good.
const protocolsKept = 5 * time.Minute

// protocols remembers what services say of the networks they lead to.
type protocols struct {
	mu    sync.Mutex
	known map[protocolKey]protocolEntry
}

type protocolKey struct{ service, protocol string }

type protocolEntry struct {
	doc   protocolDoc // nil: the service had none
	until time.Time
}

// protocolDoc is a description; only its instances are looked into.
type protocolDoc map[string]json.RawMessage

// thirdPartyRoutes are the look-ups of third-party networks. Spec: client-server-api#third-party-networks
func (a *Applications) thirdPartyRoutes() []httpapi.Route {
	const base = "/_matrix/client/v3/thirdparty"
	get := func(path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: http.MethodGet, Path: base + path, Auth: httpapi.AuthUser, AllowSuspended: true, Handler: h}
	}
	return []httpapi.Route{
		get("/protocols", a.serveProtocols),
		get("/protocol/{protocol}", a.serveProtocol),
		get("/location/{protocol}", func(c *httpapi.Call) (any, error) { return a.serveLookup(c, "location", c.Var("protocol")) }),
		get("/user/{protocol}", func(c *httpapi.Call) (any, error) { return a.serveLookup(c, "user", c.Var("protocol")) }),
		get("/location", func(c *httpapi.Call) (any, error) { return a.serveReverse(c, "location", "alias") }),
		get("/user", func(c *httpapi.Call) (any, error) { return a.serveReverse(c, "user", "userid") }),
	}
}

// speaking lists the services that lead to a network; all with traffic when protocol is empty.
func (a *Applications) speaking(protocol string) []*service {
	var out []*service
	for _, s := range a.services {
		if s.http != nil && (protocol == "" || slices.Contains(s.reg.Protocols, protocol)) {
			out = append(out, s)
		}
	}
	return out
}

func (a *Applications) serveProtocols(c *httpapi.Call) (any, error) {
	out := map[string]protocolDoc{}
	for _, s := range a.speaking("") {
		for _, p := range s.reg.Protocols {
			if _, done := out[p]; done {
				continue
			}
			if doc := a.protocol(c.Ctx(), p); doc != nil {
				out[p] = doc
			}
		}
	}
	return out, nil
}

func (a *Applications) serveProtocol(c *httpapi.Call) (any, error) {
	doc := a.protocol(c.Ctx(), c.Var("protocol"))
	if doc == nil {
		return nil, matrix.NotFound("the protocol %q is not known", c.Var("protocol"))
	}
	return doc, nil
}

// protocol joins what the services say of a network: the first describes it, all name their instances.
func (a *Applications) protocol(ctx context.Context, protocol string) protocolDoc {
	var out protocolDoc
	instances := []map[string]json.RawMessage{}
	for _, s := range a.speaking(protocol) {
		doc := s.protocol(ctx, protocol)
		if doc == nil {
			continue
		}
		if out == nil {
			out = protocolDoc{}
			for k, v := range doc {
				out[k] = v
			}
		}
		var own []map[string]json.RawMessage
		if json.Unmarshal(doc["instances"], &own) != nil {
			continue
		}
		for _, i := range own {
			var network string
			if json.Unmarshal(i["network_id"], &network) != nil {
				continue
			}
			i["instance_id"], _ = json.Marshal(s.reg.ID + "|" + network) // a string always encodes
			instances = append(instances, i)
		}
	}
	if out != nil {
		out["instances"], _ = json.Marshal(instances) // so do maps of JSON
	}
	return out
}

// protocol asks a service for its description of a network; nil if it has none.
func (s *service) protocol(ctx context.Context, protocol string) protocolDoc {
	p, key, now := &s.a.protocols, protocolKey{s.reg.ID, protocol}, s.a.opts.Now()
	p.mu.Lock()
	e, ok := p.known[key]
	p.mu.Unlock()
	if ok && now.Before(e.until) {
		return e.doc
	}
	e = protocolEntry{until: now.Add(protocolsKept)}
	if err := s.ask(ctx, []string{"thirdparty", "protocol", protocol}, nil, &e.doc); err != nil {
		s.mute(err)
		e.until = now.Add(10 * time.Second)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil {
		p.known = map[protocolKey]protocolEntry{}
	}
	p.known[key] = e // bounded by the registrations
	return e.doc
}

var errNothing = errors.New("it has nothing")

// ask sends a query to a service and decodes a 200 answer.
func (s *service) ask(ctx context.Context, segments []string, query url.Values, out any) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	status, body, err := s.request(ctx, http.MethodGet, "/_matrix/app/v1", segments, query, nil)
	switch {
	case err != nil:
		return err
	case status != http.StatusOK:
		return errNothing
	}
	return json.Unmarshal(body, out)
}

func (s *service) mute(err error) {
	if !errors.Is(err, errNothing) {
		log.WithError(err).WithField("service", s.reg.ID).Debug("a look-up at an application service failed")
	}
}

// serveLookup finds the rooms or users behind fields of a network.
func (a *Applications) serveLookup(c *httpapi.Call, kind, protocol string) (any, error) {
	services := a.speaking(protocol)
	if len(services) == 0 || protocol == "" {
		return nil, matrix.NotFound("the protocol %q is not known", protocol)
	}
	query := url.Values{}
	for k, v := range c.Values() {
		if k != "access_token" {
			query[k] = v
		}
	}
	return gatherAnswers(c.Ctx(), services, []string{"thirdparty", kind, protocol}, query)
}

// serveReverse finds what a room or user stands for in other networks.
func (a *Applications) serveReverse(c *httpapi.Call, kind, param string) (any, error) {
	v := c.Query(param)
	if v == "" {
		return nil, matrix.MissingParam("%s is missing", param)
	}
	return gatherAnswers(c.Ctx(), a.speaking(""), []string{"thirdparty", kind}, url.Values{param: {v}})
}

// gatherAnswers joins the lists that services answer with.
func gatherAnswers(ctx context.Context, services []*service, segments []string, query url.Values) (any, error) {
	lists := make([][]json.RawMessage, len(services))
	var wg sync.WaitGroup
	for i, s := range services {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := s.ask(ctx, segments, query, &lists[i]); err != nil {
				s.mute(err)
				lists[i] = nil
			}
		}()
	}
	wg.Wait()
	all := slices.Concat(lists...)
	if len(all) == 0 {
		return nil, matrix.NotFound("nothing was found")
	}
	return all, nil
}
