package sso

import (
	"context"
	"crypto/subtle"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	log "github.com/sirupsen/logrus"
	"golang.org/x/oauth2"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/browser"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Purpose is what somebody signs in for.
type Purpose struct {
	Then   string `json:"t,omitempty"` // a page of this server
	Client string `json:"c,omitempty"` // the address of a client that wants a log-in token
	UIA    string `json:"u,omitempty"` // a session of interactive authentication
	Fresh  bool   `json:"f,omitempty"` // the provider has to ask the person again

	authAt int64 // when the person has proven who they are, in milliseconds; known in the end
}

// ToPage is to see a page of this server.
func ToPage(then string, fresh bool) Purpose { return Purpose{Then: then, Fresh: fresh} }

// flow is a sign-in under way, as the browser carries it.
type flow struct {
	Provider string  `json:"p"`
	State    string  `json:"s"`
	Nonce    string  `json:"n"`
	Verifier string  `json:"v"`
	Purpose  Purpose `json:"w"`
}

const (
	flowLifetime = 10 * time.Minute
	sealFlow     = "flow"
	sealConfirm  = "confirm"
	sealLink     = "link"
)

// flowCookie is the cookie of one sign-in: a browser may have several under way.
func flowCookie(state string) string { return "sso_" + state[:8] }

// Begin sends the browser to a provider.
func (s *SSO) Begin(v *browser.Visit, provider string, w Purpose) (any, error) {
	v = v.In(s.pages)
	p := s.provider(provider)
	if p == nil {
		return v.Show("problem", browser.View{Status: http.StatusNotFound, Error: v.T("没有这个登录方式。", "There is no such way to sign in.")})
	}
	f := &flow{
		Provider: p.ID, State: matrix.RandomString(32), Nonce: matrix.RandomString(32), Verifier: oauth2.GenerateVerifier(), Purpose: w,
	}
	to, err := p.address(v.Ctx(), f)
	if err != nil {
		return s.unreachable(v, err)
	}
	box, err := s.seal.close(sealFlow, f, flowLifetime)
	if err != nil {
		return nil, err
	}
	if len(box) > 3500 { // what browsers keep in a cookie
		return nil, matrix.InvalidParam("the address to go on to is too long")
	}
	v.SetCookie(flowCookie(f.State), box, flowLifetime)
	return v.Redirect(to)
}

func (s *SSO) unreachable(v *browser.Visit, err error) (any, error) {
	log.WithError(err).WithField("request", v.ID()).Error("the sign-in provider cannot be reached")
	return v.Show("problem", browser.View{
		Status: http.StatusBadGateway,
		Error:  v.T("暂时无法连接统一登录服务，请稍后再试。", "The sign-in service cannot be reached now. Please try again later."),
	})
}

// redirect is the beginning of m.login.sso without a provider.
// Spec: client-server-api#get_matrixclientv3loginssoredirect
func (s *SSO) redirect(v *browser.Visit) (any, error) {
	target, err := s.target(v)
	if err != nil {
		return nil, err
	}
	switch {
	case s.aware != nil:
		return s.aware(v, target, v.Query("action"))
	case len(s.providers) == 1:
		return s.Begin(v, s.providers[0].ID, Purpose{Client: target})
	case len(s.providers) == 0:
		return nil, matrix.NewError(http.StatusNotFound, "M_UNRECOGNIZED", "there is no single sign-on on this server")
	}
	return v.Show("choose", browser.View{Body: s.choices(func(id string) string {
		return pathRedirect + "/" + url.PathEscape(id) + "?" + url.Values{"redirectUrl": {target}}.Encode()
	})})
}

// button is a provider to choose.
type button struct{ Name, URL string }

func (s *SSO) choices(address func(id string) string) []button {
	var list []button
	for _, p := range s.providers {
		list = append(list, button{p.Name, address(p.ID)})
	}
	return list
}

// redirectTo is the beginning of m.login.sso at a provider.
func (s *SSO) redirectTo(v *browser.Visit) (any, error) {
	target, err := s.target(v)
	if err != nil {
		return nil, err
	}
	return s.Begin(v, v.Var("idpId"), Purpose{Client: target})
}

func (s *SSO) target(v *browser.Visit) (string, error) {
	t := v.Query("redirectUrl")
	if t == "" {
		return "", matrix.MissingParam("redirectUrl is needed")
	}
	if !ClientAddress(t) {
		return "", matrix.InvalidParam("redirectUrl is no address of a client")
	}
	return t, nil
}

// callback takes the answer of a provider.
func (s *SSO) callback(v *browser.Visit) (any, error) {
	state := v.Query("state")
	var f flow
	if len(state) != 32 || s.seal.open(sealFlow, v.Cookie(flowCookie(state)), &f) != nil ||
		subtle.ConstantTimeCompare([]byte(f.State), []byte(state)) != 1 || f.Provider != v.Var("provider") {
		return v.Show("problem", browser.View{
			Status: http.StatusBadRequest,
			Error:  v.T("此登录不是从这个浏览器开始的，或已超时。请重新登录。", "This sign-in did not begin in this browser, or took too long. Please start again."),
		})
	}
	v.DropCookie(flowCookie(state))
	p := s.provider(f.Provider)
	if p == nil {
		return nil, matrix.NotFound("no provider %q", f.Provider)
	}
	if iss := v.Query("iss"); iss != p.Issuer && (iss != "" || p.issuerInAnswers) {
		log.WithField("provider", p.ID).Warn("an answer of another issuer was refused")
		return v.Show("problem", browser.View{Status: http.StatusBadRequest, Error: v.T("登录服务的应答有误，请重新登录。", "The sign-in service gave a wrong answer. Please start again.")})
	}
	if code := v.Query("error"); code != "" || v.Query("code") == "" {
		log.WithFields(log.Fields{"provider": p.ID, "error": shortened(code)}).Info("a sign-in was not completed at the provider")
		return v.Show("problem", browser.View{Status: http.StatusForbidden, Error: v.T("登录未完成或已取消。", "The sign-in was not completed.")})
	}
	who, err := p.exchange(v.Ctx(), &f, v.Query("code"))
	switch {
	case errors.Is(err, errNotFresh):
		return v.Show("problem", browser.View{Status: http.StatusForbidden, Error: v.T("需要您在统一登录服务中重新验证身份，请先在那里退出后再试。", "You have to prove who you are anew. Sign out at the sign-in service first, then try again.")})
	case errors.Is(err, errNoToken):
		log.WithError(err).WithField("provider", p.ID).Error("the answer of the sign-in provider was refused")
		return v.Show("problem", browser.View{Status: http.StatusForbidden, Error: v.T("登录服务的应答有误，请重新登录。", "The sign-in service gave a wrong answer. Please start again.")})
	case err != nil:
		return s.unreachable(v, err)
	}
	f.Purpose.authAt = who.authAt
	return s.arrive(v, p, who, f.Purpose)
}

func shortened(s string) string {
	if len(s) > 50 {
		s = s[:50]
	}
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return '?'
		}
		return r
	}, s)
}

// confirmation is what is sealed while somebody is asked.
type confirmation struct {
	User    matrix.UserID `json:"u"`
	Purpose Purpose       `json:"w"`
}

// finish does what somebody has signed in for.
func (s *SSO) finish(v *browser.Visit, user matrix.UserID, w Purpose) (any, error) {
	if err := s.accounts.MayLogin(user); err != nil {
		return nil, err
	}
	switch {
	case w.Client != "" && s.trusted(w.Client):
		return s.toClient(v, w.Client, user)
	case w.Client != "":
		return s.ask(v, "client", user, w, clientBody{Host: shownAddress(w.Client), User: user}, w.Client)
	case w.UIA != "":
		who, operation, err := s.accounts.UIA().Pending(v.Ctx(), w.UIA)
		if err != nil {
			return nil, err
		}
		if who != user {
			return v.Show("problem", browser.View{Status: http.StatusForbidden, Error: v.T("您登录的是另一个账号，无法确认此操作。", "You have signed in as somebody else, who cannot confirm this.")})
		}
		return s.ask(v, "operation", user, w, operationText(v, operation), "")
	case s.signedIn != nil:
		return s.signedIn(v, user, w.Then, w.authAt)
	}
	return nil, matrix.NotFound("there is no page to go on to")
}

// clientBody is what the page shows that asks about a client.
type clientBody struct {
	Host string
	User matrix.UserID
}

// asked is the body of a page that asks; Box is sealed.
type asked struct {
	Box  string
	What any
}

func (s *SSO) ask(v *browser.Visit, page string, user matrix.UserID, w Purpose, what any, target string) (any, error) {
	box, err := s.seal.close(sealConfirm, confirmation{user, w}, flowLifetime)
	if err != nil {
		return nil, err
	}
	var targets []string
	if target != "" {
		targets = []string{target}
	}
	return v.Show(page, browser.View{Bind: "confirm", Body: asked{box, what}, Targets: targets})
}

// confirm is the answer of somebody who was asked.
func (s *SSO) confirm(v *browser.Visit) (any, error) {
	if err := v.Check("confirm"); err != nil {
		return nil, err
	}
	var c confirmation
	if s.seal.open(sealConfirm, v.Form("box"), &c) != nil {
		return nil, browser.ErrForm
	}
	if err := s.accounts.MayLogin(c.User); err != nil {
		return nil, err
	}
	if c.Purpose.Client != "" {
		return s.toClient(v, c.Purpose.Client, c.User)
	}
	if err := s.accounts.UIA().Complete(v.Ctx(), c.Purpose.UIA, accounts.StageSSO, c.User); err != nil {
		return nil, err
	}
	return v.Show("done", browser.View{Done: true, Notice: v.T("已确认，您可以回到应用。", "Confirmed. You can go back to your app.")})
}

// loginTokenLifetime is how long a client may take. The specification recommends a few seconds; a web client has to
// load first, on a slow line too.
const loginTokenLifetime = 30 * time.Second

// WithLoginToken is the address of a client with a log-in token for the user.
func (s *SSO) WithLoginToken(ctx context.Context, target string, user matrix.UserID) (string, error) {
	t, err := s.accounts.LoginToken(ctx, user, loginTokenLifetime)
	if err != nil {
		return "", err
	}
	return addToken(target, t), nil
}

func (s *SSO) toClient(v *browser.Visit, target string, user matrix.UserID) (any, error) {
	to, err := s.WithLoginToken(v.Ctx(), target, user)
	if err != nil {
		return nil, err
	}
	return v.Redirect(to)
}

// fallback is the stage m.login.sso of interactive authentication.
// Spec: client-server-api#sso-during-user-interactive-authentication
func (s *SSO) fallback(v *browser.Visit) (any, error) {
	session := v.Query("session")
	user, _, err := s.accounts.UIA().Pending(v.Ctx(), session)
	if err != nil {
		return nil, err
	}
	list, err := s.of(v.Ctx(), user)
	if err != nil {
		return nil, err
	}
	if id := v.Query("provider"); id != "" {
		return s.Begin(v, id, Purpose{UIA: session, Fresh: true})
	}
	switch len(list) {
	case 0:
		return nil, matrix.Forbidden("this account is linked with no provider")
	case 1:
		return s.Begin(v, list[0].Provider, Purpose{UIA: session, Fresh: true})
	}
	return v.Show("choose", browser.View{Body: s.choices(func(id string) string {
		return pathFallback + "?" + url.Values{"session": {session}, "provider": {id}}.Encode()
	})})
}

// operationText says what a client wants to do that has to be confirmed.
func operationText(v *browser.Visit, operation string) string {
	method, path, _ := strings.Cut(operation, " ")
	switch {
	case strings.HasSuffix(path, "/delete_devices"), method == http.MethodDelete && strings.Contains(path, "/devices/"):
		return v.T("让您的设备退出登录", "sign out devices of yours")
	case strings.HasSuffix(path, "/keys/device_signing/upload"):
		return v.T("重置您的加密身份", "reset your encryption identity")
	case strings.HasSuffix(path, "/account/deactivate"):
		return v.T("停用您的账号", "close your account for ever")
	case strings.HasSuffix(path, "/account/password"):
		return v.T("更改您的密码", "change your password")
	case strings.HasSuffix(path, "/login/get_token"):
		return v.T("让另一台设备登录您的账号", "sign in another device to your account")
	}
	return v.T("更改您的账号", "change something of your account")
}
