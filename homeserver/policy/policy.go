// Package policy makes this server a policy server: rooms that name it in
// m.room.policy show it every event before it is sent, and it signs those that
// it has nothing against. What it is against is the operator's to say: users,
// servers, texts, and too much at once.
//
// It owns no tables; the key is in the data folder, beside the server's signing
// key and apart from it, as the specification asks.
//
// Spec: server-server-api#policy-servers, client-server-api#policy-servers
//
// Invariants: an event is judged once, and whoever asks again for it hears the
// same; only events of rooms that name this server are signed.
package policy

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
)

// FileName is the name of the key file inside the data folder.
const FileName = "policy_server.key"

const (
	maxBody = 128 << 10 // bytes of a request
	// kept is how many verdicts are remembered; older ones are made anew.
	kept = 8192
	// maxSenders bounds the senders whose pace is watched.
	maxSenders = 50_000
)

// Options is what a policy server is built of.
type Options struct {
	Server  matrix.ServerName
	DataDir string
	// Enabled: sign events. Else only the endpoints are there, and say that this
	// server is no policy server.
	Enabled bool
	// DenyUsers and DenyServers are patterns with * and ?, DenyTexts parts of a text
	// in any case of letters. What they match is not signed.
	DenyUsers, DenyServers, DenyTexts []string
	// PerMinute is how many events a user may send in a minute, with as many at
	// once; 0: any number.
	PerMinute int
	Now       matrix.Now
}

// Policy is this server as a policy server.
type Policy struct {
	o        Options
	rooms    *rooms.Rooms
	key      ed25519.PrivateKey
	users    []*regexp.Regexp
	servers  []*regexp.Regexp
	texts    []string
	limiter  *gate.Limiter[matrix.UserID]
	mu       sync.Mutex
	verdicts map[matrix.EventID]verdict
	order    []matrix.EventID
}

// verdict is a signature, or why there is none.
type verdict struct {
	signature string
	refused   *matrix.Error
}

// New opens the policy server; where it is enabled it makes its key at the first
// start.
func New(r *rooms.Rooms, o Options) (*Policy, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	p := &Policy{o: o, rooms: r, verdicts: map[matrix.EventID]verdict{}}
	if !o.Enabled {
		return p, nil
	}
	var err error
	if p.key, err = loadKey(filepath.Join(o.DataDir, FileName)); err != nil {
		return nil, err
	}
	for _, s := range o.DenyUsers {
		p.users = append(p.users, glob(s))
	}
	for _, s := range o.DenyServers {
		p.servers = append(p.servers, glob(s))
	}
	for _, s := range o.DenyTexts {
		if s = strings.ToLower(strings.TrimSpace(s)); s != "" {
			p.texts = append(p.texts, s)
		}
	}
	if o.PerMinute > 0 {
		p.limiter = gate.NewLimiter[matrix.UserID](float64(o.PerMinute)/60, o.PerMinute, maxSenders, o.Now)
	}
	return p, nil
}

// glob makes a pattern with * and ? of one that is compared without regard to case.
func glob(s string) *regexp.Regexp {
	q := regexp.QuoteMeta(s)
	q = strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(q)
	return regexp.MustCompile(`(?is)^` + q + `$`)
}

// loadKey reads the key's seed, making one if there is none.
func loadKey(name string) (ed25519.PrivateKey, error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("making the policy server's key: %w", err)
		}
		line := base64.RawStdEncoding.EncodeToString(key.Seed()) + "\n"
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, fmt.Errorf("storing the policy server's key: %w", err)
		}
		_, err = f.WriteString(line)
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return nil, fmt.Errorf("storing the policy server's key: %w", err)
		}
		return key, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the policy server's key: %w", err)
	}
	seed, err := base64.RawStdEncoding.DecodeString(strings.TrimSpace(string(data)))
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("%s holds no key", name)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// Routes are the endpoint that signs, and where clients find the key.
func (p *Policy) Routes() []httpapi.Route {
	return []httpapi.Route{
		{Method: "POST", Path: "/_matrix/policy/v1/sign", Auth: httpapi.AuthServer, MaxBody: maxBody, RateLimit: true, Handler: p.postSign},
		{Method: "GET", Path: "/.well-known/matrix/policy_server", Auth: httpapi.AuthNone, Handler: p.getWellKnown},
	}
}

// PublicKey is the key as m.room.policy holds it, "" where the server is no policy
// server.
func (p *Policy) PublicKey() string {
	if p.key == nil {
		return ""
	}
	return base64.RawStdEncoding.EncodeToString(p.key.Public().(ed25519.PublicKey))
}

func (p *Policy) getWellKnown(*httpapi.Call) (any, error) {
	if p.key == nil {
		return nil, matrix.NotFound("this server is no policy server")
	}
	return map[string]any{"public_keys": map[string]string{"ed25519": p.PublicKey()}}, nil
}

func (p *Policy) postSign(c *httpapi.Call) (any, error) {
	if p.key == nil {
		return nil, matrix.Unrecognized()
	}
	raw, err := c.RawBody()
	if err != nil {
		return nil, err
	}
	body, err := p.Sign(c.Ctx(), c.Origin, raw)
	if err != nil {
		return nil, err
	}
	return httpapi.Raw(body), nil
}

// Sign judges an event that a server shows, and returns the signature as the
// endpoint does.
func (p *Policy) Sign(ctx context.Context, origin matrix.ServerName, pdu json.RawMessage) (json.RawMessage, error) {
	if p.key == nil {
		return nil, matrix.NotFound("this server is no policy server")
	}
	ev, via, err := p.rooms.Inspect(ctx, origin, pdu)
	switch {
	case err != nil:
		return nil, err
	case via != p.o.Server:
		return nil, matrix.NotFound("the room does not name this server as its policy server")
	case ev.Type == rooms.PolicyType && ev.StateKey != nil && *ev.StateKey == "":
		return nil, refuse("the event that names the policy server is not for it to judge")
	}
	v, err := p.judge(ev)
	if err != nil {
		return nil, err
	}
	if v.refused != nil {
		return nil, v.refused
	}
	return json.Marshal(map[matrix.ServerName]map[string]string{p.o.Server: {rooms.PolicyKey: v.signature}})
}

// judge gives the verdict on an event, the same as before if it has been given.
func (p *Policy) judge(ev *events.Event) (verdict, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if v, ok := p.verdicts[ev.ID]; ok {
		return v, nil
	}
	v := verdict{refused: p.against(ev)}
	if v.refused == nil {
		signed, err := ev.Sign(events.Signer{Server: p.o.Server, KeyID: rooms.PolicyKey, Key: p.key})
		if err != nil {
			return v, err
		}
		v.signature = signed.Signature(p.o.Server, rooms.PolicyKey)
	} else if v.refused.Code == "M_LIMIT_EXCEEDED" {
		return v, nil // he may try again
	}
	if len(p.order) >= kept {
		delete(p.verdicts, p.order[0])
		p.order = p.order[1:]
	}
	p.verdicts[ev.ID] = v
	p.order = append(p.order, ev.ID)
	return v, nil
}

// refuse is how a policy server says no. Spec: post_matrixpolicyv1sign
func refuse(why string) *matrix.Error {
	return matrix.NewError(http.StatusBadRequest, "M_FORBIDDEN", "%s", why)
}

// against says what there is against an event, nil if nothing.
func (p *Policy) against(ev *events.Event) *matrix.Error {
	for _, g := range p.users {
		if g.MatchString(string(ev.Sender)) {
			return refuse("the sender is not welcome here")
		}
	}
	for _, g := range p.servers {
		if g.MatchString(string(ev.Sender.Server())) {
			return refuse("the sender's server is not welcome here")
		}
	}
	if len(p.texts) > 0 {
		for _, field := range []string{
			"body", "formatted_body", `m\.new_content.body`, `m\.new_content.formatted_body`, "filename", "displayname", "reason", "name", "topic",
		} {
			text := strings.ToLower(gjson.GetBytes(ev.JSON, "content."+field).Str)
			for _, t := range p.texts {
				if text != "" && strings.Contains(text, t) {
					return refuse("the event holds a text that is not welcome here")
				}
			}
		}
	}
	if p.limiter != nil {
		if ok, wait := p.limiter.Allow(ev.Sender); !ok {
			return matrix.LimitExceeded(wait)
		}
	}
	return nil
}
