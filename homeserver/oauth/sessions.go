package oauth

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/carillon-chat/carillon/homeserver/browser"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sso"
)

// session is a browser that is signed in.
type session struct {
	user   matrix.UserID
	authAt int64  // when the person last proved who they are, milliseconds
	bind   string // ties forms to this session
	key    []byte
}

const (
	sessionCookie   = "account"
	sessionLifetime = 12 * time.Hour
	// sudoLifetime is how old a sign-in may be for what cannot be undone.
	sudoLifetime = 10 * time.Minute
)

// recent says whether the person has signed in within a time.
func (s *session) recent(now time.Time, within time.Duration) bool {
	return now.Sub(time.UnixMilli(s.authAt)) < within
}

// session is the visitor's, nil if the browser is not signed in.
func (o *Server) session(v *browser.Visit) (*session, error) {
	t := v.Cookie(sessionCookie)
	if t == "" || len(t) > 100 {
		return nil, nil
	}
	s := &session{key: hash(t), bind: t}
	var expires int64
	err := o.DB.Read(v.Ctx(), func(tx *sqldb.Tx) error {
		return tx.QueryRow(qBrowser, s.key).Scan(&s.user, &s.authAt, &expires)
	})
	if errors.Is(err, sqldb.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading browser session: %w", err)
	}
	if expires <= matrix.Millis(o.Now()) || o.Accounts.MayLogin(s.user) != nil {
		return nil, nil
	}
	return s, nil
}

// signIn makes a session for a browser, always a new one, and drops what it had. authAt is when the person has proven
// who they are, in milliseconds; bind is what forms are tied to from now on.
func (o *Server) signIn(v *browser.Visit, user matrix.UserID, authAt int64) (bind string, err error) {
	if err := o.Accounts.MayLogin(user); err != nil {
		return "", err
	}
	t, now := matrix.RandomString(43), o.Now()
	old := v.Cookie(sessionCookie)
	err = o.DB.Write(v.Ctx(), func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(qDropBrowser, hash(old)); err != nil {
			return err
		}
		_, err := tx.Exec(qInsertBrowser, hash(t), string(user), authAt, matrix.Millis(now.Add(sessionLifetime)))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("storing browser session: %w", err)
	}
	v.SetCookie(sessionCookie, t, 0)
	return t, nil
}

// signedIn is called when somebody comes back from the company's provider.
func (o *Server) signedIn(v *browser.Visit, user matrix.UserID, then string, authAt int64) (any, error) {
	v = v.In(o.pages)
	if _, err := o.signIn(v, user, authAt); err != nil {
		return nil, err
	}
	if !ownPath(then) {
		then = pathAccount
	}
	return v.Redirect(then)
}

// loginBody is what the sign-in page shows.
type loginBody struct {
	Client, Host string // who wants to know
	User         string
	Password     bool // people may sign in with one
	Providers    []provider
	SignUp       string // where to make an account
	Again        bool   // somebody is signed in and proves it once more
}

// provider is a button.
type provider struct{ Name, URL string }

func (o *Server) showLogin(v *browser.Visit, status int, user, problem string) (any, error) {
	body := loginBody{User: user, Password: o.Accounts.PasswordsAllowed(), Again: v.Query("again") != ""}
	cl, err := o.clientOf(v)
	if err != nil {
		return nil, err
	}
	if cl != nil {
		body.Client, body.Host = cl.shownName(v.Lang), cl.host()
	}
	if o.SSO != nil {
		for _, p := range o.SSO.Providers() {
			q := url.Values{"then": {then(v)}}
			if body.Again {
				q.Set("again", "1")
			}
			body.Providers = append(body.Providers, provider{p.Name, pathAccount + "/sso/" + url.PathEscape(p.ID) + "?" + q.Encode()})
		}
	}
	if open, _ := o.Accounts.RegistrationOpen(); open && !body.Again {
		body.SignUp = pathSignUp + "?" + url.Values{"then": {then(v)}}.Encode()
	}
	return v.Show("login", browser.View{Status: status, Bind: "login", Body: body, Error: problem})
}

// loginPage asks who somebody is.
func (o *Server) loginPage(v *browser.Visit) (any, error) {
	s, err := o.session(v)
	if err != nil {
		return nil, err
	}
	if s != nil && v.Query("again") == "" {
		return v.Redirect(then(v))
	}
	user := strings.TrimPrefix(v.Query("login_hint"), "mxid:") // as clients write it that know the user
	if s != nil {
		user = string(s.user)
	}
	return o.showLogin(v, 0, user, "")
}

func (o *Server) loginForm(v *browser.Visit) (any, error) {
	if err := v.Check("login"); err != nil {
		return nil, err
	}
	name, password := v.Form("user"), v.Form("password")
	if name == "" || password == "" {
		return o.showLogin(v, http.StatusBadRequest, name, v.T("请输入用户名和密码。", "Enter user name and password."))
	}
	user, err := o.Accounts.CheckPassword(v.Ctx(), name, password)
	if err == nil {
		_, err = o.signIn(v, user, matrix.Millis(o.Now()))
	}
	var e *matrix.Error
	switch {
	case err == nil:
		return v.Redirect(then(v))
	case errors.As(err, &e) && e.Code == "M_FORBIDDEN":
		return o.showLogin(v, http.StatusForbidden, name, v.T("用户名或密码不正确。", "Wrong user name or password."))
	case errors.As(err, &e):
		status, text := v.Explain(err)
		return o.showLogin(v, status, name, text)
	}
	return nil, err
}

// ssoPage sends somebody to the company's provider.
func (o *Server) ssoPage(v *browser.Visit) (any, error) {
	if o.SSO == nil {
		return nil, matrix.NotFound("there is no such provider")
	}
	return o.SSO.Begin(v, v.Var("provider"), sso.ToPage(then(v), v.Query("again") != ""))
}

// logoutForm signs the browser out.
func (o *Server) logoutForm(v *browser.Visit) (any, error) {
	s, err := o.session(v)
	if err != nil {
		return nil, err
	}
	if s != nil {
		if err := v.Check(s.bind); err != nil {
			return nil, err
		}
		err := o.DB.Write(v.Ctx(), func(tx *sqldb.Tx) error {
			_, err := tx.Exec(qDropBrowser, s.key)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("ending browser session: %w", err)
		}
	}
	v.DropCookie(sessionCookie)
	return v.Redirect(loginAddress(then(v), "", false))
}

// signUpBody is what the page for new accounts shows.
type signUpBody struct {
	User, RegToken string
	NeedsToken     bool
	Login          string
	Server         string
}

func (o *Server) showSignUp(v *browser.Visit, status int, problem string) (any, error) {
	open, needs := o.Accounts.RegistrationOpen()
	if !open {
		return nil, matrix.NotFound("registration is not open on this server")
	}
	return v.Show("signup", browser.View{
		Status: status, Bind: "signup", Error: problem,
		Body: signUpBody{User: v.Form("user"), RegToken: v.Form("registration_token"), NeedsToken: needs, Login: loginAddress(then(v), "", false)},
	})
}

// signUpPage lets people make an account where registration is open.
func (o *Server) signUpPage(v *browser.Visit) (any, error) { return o.showSignUp(v, 0, "") }

func (o *Server) signUpForm(v *browser.Visit) (any, error) {
	if err := v.Check("signup"); err != nil {
		return nil, err
	}
	if v.Form("password") != v.Form("repeat") {
		return o.showSignUp(v, http.StatusBadRequest, v.T("两次输入的密码不一致。", "The two passwords differ."))
	}
	user, err := o.Accounts.Register(v.Ctx(), v.Form("user"), v.Form("password"), v.Form("registration_token"))
	if err == nil {
		_, err = o.signIn(v, user, matrix.Millis(o.Now()))
	}
	var e *matrix.Error
	switch {
	case err == nil:
		return v.Redirect(then(v))
	case errors.As(err, &e) && e.Code == "M_UNAUTHORIZED":
		return o.showSignUp(v, http.StatusForbidden, v.T("注册码无效。", "The registration token is not valid."))
	case errors.As(err, &e) && e.Code == "M_MISSING_PARAM":
		return o.showSignUp(v, http.StatusBadRequest, v.T("请填写所有内容。", "Fill in everything."))
	case errors.As(err, &e):
		status, text := v.Explain(err)
		return o.showSignUp(v, status, text)
	}
	return nil, err
}
