package oauth

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/carillon-chat/carillon/homeserver/browser"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// codeLifetime is how long a client may take to exchange a code.
const codeLifetime = time.Minute

// request is what a client asks at the authorization endpoint. It lives in the address of the page, so that nothing is
// stored before somebody has signed in and agreed.
// Spec: client-server-api#authorisation-code-flow
type request struct {
	client    *client
	redirect  string
	state     string
	fragment  bool
	scope     scope
	challenge string
	nonce     string
	prompt    string
	hint      string // a user name
}

// redirectError is an error that the client is told of by a redirect.
type redirectError struct {
	err *Error
	to  string
}

// Error implements error.
func (e *redirectError) Error() string { return e.err.Error() }

// parseRequest reads an authorization request. Until client and redirect address are proven right an error is for the
// person; after that it is a redirectError, for the client.
func (o *Server) parseRequest(v *browser.Visit) (*request, error) {
	q, err := params(withoutLang(v.Values()))
	if err != nil {
		return nil, err
	}
	r := &request{redirect: q["redirect_uri"], state: q["state"], challenge: q["code_challenge"], nonce: q["nonce"], prompt: q["prompt"], hint: q["login_hint"]}
	if r.client, err = o.client(v.Ctx(), q["client_id"]); err != nil {
		return nil, err
	}
	if r.client == nil {
		return nil, bad("invalid_client", "this client has not registered, or too long ago")
	}
	if !slices.ContainsFunc(r.client.Redirects, func(u string) bool { return sameRedirect(u, r.redirect) }) {
		return nil, bad("invalid_request", "the redirect address is none that the client has registered")
	}
	r.fragment = q["response_mode"] == "fragment"
	if err := r.check(q); err != nil {
		return nil, &redirectError{err, o.back(r, url.Values{"error": {err.Code}, "error_description": {err.Text}})}
	}
	return r, nil
}

func (r *request) check(q map[string]string) *Error {
	var err error
	switch mode := q["response_mode"]; {
	case mode != "" && mode != "query" && mode != "fragment":
		return bad("invalid_request", "response_mode is query or fragment")
	case q["response_type"] != "code":
		return bad("unsupported_response_type", "response_type must be code")
	case !slices.Contains(r.client.Grants, grantCode):
		return bad("unauthorized_client", "the client has not registered for this way to log in")
	case q["request"] != "":
		return bad("request_not_supported", "requests are not taken as objects")
	case q["request_uri"] != "":
		return bad("request_uri_not_supported", "requests are not fetched")
	case q["code_challenge_method"] != "S256":
		return bad("invalid_request", "code_challenge_method must be S256")
	case len(r.challenge) != 43 || !base64URL(r.challenge):
		return bad("invalid_request", "code_challenge must be a SHA-256 in base64url")
	}
	if r.scope, err = parseScope(q["scope"]); err != nil {
		var e *Error
		errors.As(err, &e)
		return e
	}
	if r.prompt == "none" {
		return bad("interaction_required", "people are always asked")
	}
	return nil
}

func withoutLang(q url.Values) url.Values {
	out := url.Values{}
	for k, list := range q {
		if k != "lang" {
			out[k] = list
		}
	}
	return out
}

func base64URL(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// back is where the browser goes with the outcome.
func (o *Server) back(r *request, outcome url.Values) string {
	if r.state != "" {
		outcome.Set("state", r.state)
	}
	outcome.Set("iss", o.issuer) // RFC 9207: a client that knows several servers sees whose answer it is
	return withParams(r.redirect, outcome, r.fragment)
}

// refuse tells an error of an authorization request, to the client or to the person.
func (o *Server) refuse(v *browser.Visit, err error) (any, error) {
	var r *redirectError
	if errors.As(err, &r) {
		return v.Redirect(r.to)
	}
	var e *Error
	if errors.As(err, &e) {
		text := v.T("应用发来的登录请求有误，无法继续。请返回应用重新登录。", "The app's request to sign in is wrong. Go back to the app and try again.")
		return v.Show("message", browser.View{Status: e.Status, Error: text + " (" + e.Text + ")"})
	}
	return nil, err
}

// here is the page's own address within this server.
func here(v *browser.Visit) string {
	q := withoutLang(v.Values())
	if enc := q.Encode(); enc != "" {
		return v.R.URL.Path + "?" + enc
	}
	return v.R.URL.Path
}

// authorizePage asks whether a client may use the account.
func (o *Server) authorizePage(v *browser.Visit) (any, error) {
	r, err := o.parseRequest(v)
	if err != nil {
		return o.refuse(v, err)
	}
	s, err := o.session(v)
	if err != nil {
		return nil, err
	}
	switch {
	case s == nil && r.prompt == "create":
		if open, _ := o.Accounts.RegistrationOpen(); open {
			return v.Redirect(pathSignUp + "?" + url.Values{"then": {here(v)}}.Encode())
		}
		fallthrough
	case s == nil:
		return v.Redirect(loginAddress(here(v), r.hint, false))
	case r.prompt == "login" && !s.recent(v.Now(), loginJustNow):
		return v.Redirect(loginAddress(here(v), string(s.user), true))
	}
	return o.askConsent(v, s, r)
}

// loginJustNow is how old a sign-in may be that answers prompt=login.
const loginJustNow = 2 * time.Minute

// consent is what the page of a client's request shows.
type consent struct {
	Client, Host, Target string
	Terms, Policy        string
	User                 matrix.UserID
	Replaces             string // the name of a device whose session ends
	Again                string // this page, after signing in as somebody else
	UserCode             string // of a device grant
	SignOut              string // the token of the form for it
}

func (o *Server) askConsent(v *browser.Visit, s *session, r *request) (any, error) {
	body, err := o.consent(v, s, r.client, r.scope.device)
	if err != nil {
		return nil, err
	}
	body.Target = targetName(r.redirect)
	return v.Show("consent", browser.View{Bind: s.bind, Body: body, Targets: []string{r.redirect}})
}

func (o *Server) consent(v *browser.Visit, s *session, c *client, device matrix.DeviceID) (*consent, error) {
	body := &consent{
		Client: c.shownName(v.Lang), Host: c.host(), User: s.user, Again: here(v), SignOut: v.Token(s.bind),
		Terms: c.in("tos_uri", c.TermsURI, v.Lang), Policy: c.in("policy_uri", c.PolicyURI, v.Lang),
	}
	has, err := o.Devices.Has(v.Ctx(), s.user, device)
	if err != nil || !has {
		return body, err
	}
	body.Replaces = string(device)
	return body, nil
}

// targetName is the place to which the browser goes back, as people can judge it.
func targetName(redirect string) string {
	u := parseURI(redirect)
	switch {
	case u == nil:
		return ""
	case u.Host != "":
		return u.Host
	}
	return u.Scheme + ":"
}

// authorizeForm is the answer of the person.
func (o *Server) authorizeForm(v *browser.Visit) (any, error) {
	r, err := o.parseRequest(v)
	if err != nil {
		return o.refuse(v, err)
	}
	s, err := o.session(v)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return v.Redirect(loginAddress(here(v), r.hint, false))
	}
	if err := v.Check(s.bind); err != nil {
		return nil, err
	}
	if v.Form("decision") != "allow" {
		return v.Redirect(o.back(r, url.Values{"error": {"access_denied"}, "error_description": {"the person has declined"}}))
	}
	code := matrix.RandomString(43)
	now := o.Now()
	err = o.DB.Write(v.Ctx(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qInsertCode, hash(code), r.client.ID, r.redirect, string(s.user), string(r.scope.device), r.scope.text,
			r.challenge, r.nonce, s.authAt, matrix.Millis(now.Add(codeLifetime)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("storing code: %w", err)
	}
	return v.Redirect(o.back(r, url.Values{"code": {code}}))
}

// loginAddress is the sign-in page that goes on to an address of this server.
func loginAddress(then, hint string, again bool) string {
	q := url.Values{"then": {then}}
	if hint != "" {
		q.Set("login_hint", hint)
	}
	if again {
		q.Set("again", "1")
	}
	return pathLogin + "?" + q.Encode()
}

// ownPath says whether an address is one of this server's pages: where a sign-in may go on to.
func ownPath(s string) bool {
	if !strings.HasPrefix(s, "/_carillon/") || len(s) > 8192 || strings.Contains(s, "\\") {
		return false
	}
	u, err := url.Parse(s)
	return err == nil && u.Host == "" && u.Scheme == "" && u.User == nil && !strings.Contains(u.Path, "..") &&
		(u.Path == pathAuthorize || u.Path == pathLink || u.Path == pathAccount || strings.HasPrefix(u.Path, pathAccount+"/"))
}

// then is where a visitor goes on to after signing in.
func then(v *browser.Visit) string {
	if t := v.Query("then"); ownPath(t) {
		return t
	}
	return pathAccount
}

// clientOf is the client that sends a visitor to the sign-in page, for its name.
func (o *Server) clientOf(v *browser.Visit) (*client, error) {
	u, err := url.Parse(then(v))
	if err != nil || u.Path != pathAuthorize {
		return nil, nil
	}
	return o.client(v.Ctx(), u.Query().Get("client_id"))
}

var errNoClient = &Error{http.StatusUnauthorized, "invalid_client", "this client has not registered, or too long ago"}
