package sso

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"text/template"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Provider is an OpenID Connect provider by configuration.
type Provider struct {
	ID           string // in addresses: letters, digits, - and _
	Name         string // on buttons
	Icon         string // mxc:// address
	Brand        string // see the specification's list of brands
	Issuer       string
	ClientID     string
	ClientSecret string   // empty for a public client
	Scopes       []string // besides openid
	Localpart    string   // template of a new user's name, as "{{.preferred_username}}"
	DisplayName  string   // template; empty: none
	LinkExisting bool     // an account of that name belongs to the same person
	Create       bool     // make accounts for people who have none
}

// provider is a Provider at work. Its addresses and keys are read when they are first needed.
type provider struct {
	Provider
	callback        string
	client          *http.Client
	now             matrix.Now
	local, display  *template.Template
	mu              sync.Mutex
	found           *oidc.Provider
	style           oauth2.AuthStyle
	failed          error
	nextTry         time.Time
	issuerInAnswers bool // the provider says who it is in each answer (RFC 9207)
}

// Times of talking to a provider.
const (
	askTimeout = 10 * time.Second
	retryAfter = 3 * time.Second
)

func newHTTPClient(extraCAs []byte) (*http.Client, error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if len(extraCAs) > 0 && !roots.AppendCertsFromPEM(extraCAs) {
		return nil, errors.New("the additional authorities hold no certificate")
	}
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: askTimeout, ResponseHeaderTimeout: askTimeout, MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute,
		ForceAttemptHTTP2: true,
	}
	return &http.Client{Timeout: askTimeout, Transport: bounded{t}}, nil
}

// bounded keeps answers to a megabyte.
type bounded struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, 1<<20), resp.Body}
	}
	return resp, err
}

// ValidID says whether a provider may have the ID.
func ValidID(id string) bool {
	return id != "" && len(id) <= 64 && strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
}

func newProvider(o Provider, client *http.Client, callback string, now matrix.Now) (*provider, error) {
	p := &provider{Provider: o, callback: callback, client: client, now: now}
	u, err := url.Parse(o.Issuer)
	switch {
	case !ValidID(o.ID):
		return nil, errors.New("id has letters, digits, - and _ only")
	case o.Name == "" || o.ClientID == "":
		return nil, errors.New("name and client_id are needed")
	case err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || !local(u.Hostname())):
		return nil, errors.New("issuer must be an https address")
	}
	if p.local, err = parseTemplate(o.Localpart); err != nil {
		return nil, fmt.Errorf("localpart: %w", err)
	}
	if p.display, err = parseTemplate(o.DisplayName); err != nil {
		return nil, fmt.Errorf("display_name: %w", err)
	}
	return p, nil
}

func local(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// discover is the provider's own description, read once; after a failure it is tried again with the next sign-in.
func (p *provider) discover(ctx context.Context) (*oidc.Provider, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.found != nil {
		return p.found, nil
	}
	if p.failed != nil && p.now().Before(p.nextTry) {
		return nil, p.failed
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout) // others wait for it too
	defer cancel()
	found, err := oidc.NewProvider(oidc.ClientContext(ctx, p.client), p.Issuer)
	if err != nil {
		p.failed, p.nextTry = fmt.Errorf("reaching %s: %w", p.Issuer, err), p.now().Add(retryAfter)
		return nil, p.failed
	}
	var more struct {
		Methods []string `json:"token_endpoint_auth_methods_supported"`
		Issuer  bool     `json:"authorization_response_iss_parameter_supported"`
	}
	if err := found.Claims(&more); err != nil {
		return nil, fmt.Errorf("reading the description of %s: %w", p.Issuer, err)
	}
	p.style = oauth2.AuthStyleInHeader
	if p.ClientSecret == "" || len(more.Methods) > 0 && !slices.Contains(more.Methods, "client_secret_basic") {
		p.style = oauth2.AuthStyleInParams
	}
	p.found, p.failed, p.issuerInAnswers = found, nil, more.Issuer
	return found, nil
}

func (p *provider) config(found *oidc.Provider) *oauth2.Config {
	e := found.Endpoint()
	e.AuthStyle = p.style
	scopes := []string{oidc.ScopeOpenID}
	for _, s := range p.Scopes {
		if !slices.Contains(scopes, s) {
			scopes = append(scopes, s)
		}
	}
	return &oauth2.Config{ClientID: p.ClientID, ClientSecret: p.ClientSecret, Endpoint: e, RedirectURL: p.callback, Scopes: scopes}
}

// maxAge is how long ago people may have proven who they are, where it has to be just now.
const maxAge = 5 * time.Minute

// address is where the browser is sent.
func (p *provider) address(ctx context.Context, f *flow) (string, error) {
	found, err := p.discover(ctx)
	if err != nil {
		return "", err
	}
	opts := []oauth2.AuthCodeOption{oidc.Nonce(f.Nonce), oauth2.S256ChallengeOption(f.Verifier)}
	if f.Purpose.Fresh {
		opts = append(opts, oauth2.SetAuthURLParam("prompt", "login"),
			oauth2.SetAuthURLParam("max_age", fmt.Sprint(int(maxAge.Seconds()))))
	}
	return p.config(found).AuthCodeURL(f.State, opts...), nil
}

// person is what a provider says of somebody.
type person struct {
	Subject string
	authAt  int64 // when they have last proven who they are, in milliseconds; 0: the provider does not tell
	claims  map[string]any
}

var (
	errNotFresh = errors.New("the provider did not ask the person again")
	errNoToken  = errors.New("the provider's answer holds no valid ID token")
)

// exchange takes the code of an answer to the provider and checks what comes back.
func (p *provider) exchange(ctx context.Context, f *flow, code string) (*person, error) {
	found, err := p.discover(ctx)
	if err != nil {
		return nil, err
	}
	ctx = oidc.ClientContext(ctx, p.client)
	t, err := p.config(found).Exchange(ctx, code, oauth2.VerifierOption(f.Verifier))
	if err != nil {
		return nil, fmt.Errorf("exchanging the code: %w", withoutBody(err))
	}
	raw, _ := t.Extra("id_token").(string)
	id, err := found.Verifier(&oidc.Config{ClientID: p.ClientID, Now: p.now}).Verify(ctx, raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoToken, err)
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(f.Nonce)) != 1 || id.Subject == "" || len(id.Subject) > 255 {
		return nil, fmt.Errorf("%w: nonce or subject are wrong", errNoToken)
	}
	if id.AccessTokenHash != "" {
		if err := id.VerifyAccessToken(t.AccessToken); err != nil {
			return nil, fmt.Errorf("%w: %w", errNoToken, err)
		}
	}
	who := &person{Subject: id.Subject}
	if err := id.Claims(&who.claims); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoToken, err)
	}
	if azp, ok := who.claims["azp"].(string); len(id.Audience) > 1 && (!ok || azp != p.ClientID) {
		return nil, fmt.Errorf("%w: it is for somebody else", errNoToken)
	}
	at, ok := who.claims["auth_time"].(float64)
	switch {
	case ok && f.Purpose.Fresh && p.now().Sub(time.Unix(int64(at), 0)) > 2*maxAge:
		return nil, errNotFresh
	case f.Purpose.Fresh:
		who.authAt = matrix.Millis(p.now())
	case ok && at > 0:
		who.authAt = min(int64(at)*1000, matrix.Millis(p.now()))
	}
	return who, p.complete(ctx, found, who, t)
}

// withoutBody keeps the provider's answer, which may hold secrets, out of the log.
func withoutBody(err error) error {
	var r *oauth2.RetrieveError
	if errors.As(err, &r) {
		return fmt.Errorf("%d %s", r.Response.StatusCode, r.ErrorCode)
	}
	return err
}

// complete asks the provider for claims that the templates need and the ID token does not hold.
func (p *provider) complete(ctx context.Context, found *oidc.Provider, who *person, t *oauth2.Token) error {
	_, err1 := render(p.local, who.claims)
	_, err2 := render(p.display, who.claims)
	if err1 == nil && err2 == nil || found.UserInfoEndpoint() == "" {
		return nil
	}
	info, err := found.UserInfo(ctx, oauth2.StaticTokenSource(t))
	if err != nil {
		return fmt.Errorf("asking for the person's data: %w", err)
	}
	if info.Subject != who.Subject {
		return errors.New("the person's data are somebody else's")
	}
	more := map[string]any{}
	if err := info.Claims(&more); err != nil {
		return fmt.Errorf("reading the person's data: %w", err)
	}
	for k, v := range more {
		if _, has := who.claims[k]; !has {
			who.claims[k] = v
		}
	}
	return nil
}
