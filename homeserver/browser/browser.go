// Package browser is what the pages have in common that people visit to sign in and to look after their account: the
// frame, Chinese and English, cookies, and protected forms. Style and headers are those of package pages.
//
// It owns no tables. Spec: client-server-api#oauth-20-api and RFC 9700 for what has to be guarded against.
//
// Invariants: a template escapes all that comes from outside; no script runs but the one of a completed stage of
// interactive authentication; a form that changes something carries a token which only the browser that was shown it
// can have; a cookie is never readable by scripts and, over https, never set by a neighbouring host.
package browser

import (
	"crypto/hmac"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"
	"unicode/utf8"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/pages"
)

//go:embed frame.html
var frame string

// Options are what a site needs to know.
type Options struct {
	BaseURL   string  // where people reach the server, without a slash at the end
	PerSecond float64 // pages a second from one address; 0: not limited
	Burst     int
	Now       matrix.Now
}

// Site makes pages.
type Site struct {
	base    string
	secure  bool // over https
	limiter *gate.Limiter[string]
	now     matrix.Now
}

// New makes a site.
func New(o Options) *Site {
	s := &Site{base: strings.TrimSuffix(o.BaseURL, "/"), secure: strings.HasPrefix(o.BaseURL, "https://"), now: o.Now}
	if s.now == nil {
		s.now = time.Now
	}
	if o.PerSecond > 0 {
		s.limiter = gate.NewLimiter[string](o.PerSecond, o.Burst, 50_000, s.now)
	}
	return s
}

// URL is the address of a path of this server.
func (s *Site) URL(path string) string { return s.base + path }

// Pages are the templates of a package, each within the frame.
type Pages struct {
	site *Site
	list map[string]*template.Template
}

// Parse reads the templates pages/*.html of a package. Each defines "title" and "main". It panics where they are
// wrong, which is a mistake in the source.
func (s *Site) Parse(fsys fs.FS) *Pages {
	p := &Pages{s, map[string]*template.Template{}}
	names, err := fs.Glob(fsys, "pages/*.html")
	if err != nil {
		panic("browser: " + err.Error())
	}
	for _, name := range names {
		t := template.Must(template.New("frame").Parse(frame))
		p.list[strings.TrimSuffix(path.Base(name), ".html")] = template.Must(t.ParseFS(fsys, name))
	}
	return p
}

// Handler answers a visit; an error that is a *matrix.Error is told on a page.
type Handler func(v *Visit) (any, error)

// Visit is one page being asked for, or one form being sent.
type Visit struct {
	*httpapi.Call
	Lang string // zh or en
	form url.Values
	site *Site
	p    *Pages
	key  string // what the tokens of forms are made with
}

// Handle makes a handler of pages one of the API. Forms are at most 64 KiB.
func (p *Pages) Handle(h Handler) httpapi.Handler {
	return func(c *httpapi.Call) (any, error) {
		for k := range c.W.Header() {
			if strings.HasPrefix(k, "Access-Control-") { // no business of other sites
				delete(c.W.Header(), k)
			}
		}
		v := &Visit{Call: c, site: p.site, p: p}
		v.Lang = v.language()
		if err := v.open(); err != nil {
			return v.fail(err)
		}
		answer, err := h(v)
		if err != nil {
			return v.fail(err)
		}
		return answer, nil
	}
}

// In is the visit with the pages of another package, which goes on with it.
func (v *Visit) In(p *Pages) *Visit {
	w := *v
	w.p = p
	return &w
}

// open limits the visitor and reads the form.
func (v *Visit) open() error {
	if l := v.site.limiter; l != nil {
		if ok, retry := l.Allow(v.RemoteIP()); !ok {
			return matrix.LimitExceeded(retry)
		}
	}
	if v.R.Method != http.MethodPost {
		return nil
	}
	if site := v.R.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
		return matrix.Forbidden("a form of another site")
	}
	b, err := io.ReadAll(v.BodyReader())
	if err != nil {
		return matrix.NewError(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "the form is too large")
	}
	if v.form, err = url.ParseQuery(string(b)); err != nil {
		return matrix.InvalidParam("the form cannot be read")
	}
	for _, list := range v.form {
		for _, s := range list {
			if !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
				return matrix.InvalidParam("the form holds bytes that are no text")
			}
		}
	}
	return nil
}

// Form is a field of the form that was sent.
func (v *Visit) Form(name string) string { return v.form.Get(name) }

// Now is the time by the site's clock.
func (v *Visit) Now() time.Time { return v.site.now() }

const langCookie = "lang"

// language is what the visitor chose, or else what the browser prefers.
func (v *Visit) language() string {
	if l := v.Query("lang"); l == "zh" || l == "en" {
		v.SetCookie(langCookie, l, 365*24*time.Hour)
		return l
	}
	if l := v.Cookie(langCookie); l == "zh" || l == "en" {
		return l
	}
	if ui := v.Query("ui_locales"); ui != "" { // of OpenID Connect: what the client is shown in
		l := pages.Language(strings.ReplaceAll(ui, " ", ","), pages.Chinese)
		v.SetCookie(langCookie, l, 0) // for the pages that follow
		return l
	}
	return pages.Language(v.R.Header.Get("Accept-Language"), pages.Chinese)
}

// T is one of two texts, by the visitor's language.
func (v *Visit) T(zh, en string) string {
	if v.Lang == "zh" {
		return zh
	}
	return en
}

func (s *Site) cookie(name string) string {
	if s.secure {
		return "__Host-carillon_" + name
	}
	return "carillon_" + name
}

// Cookie is the value of one of the site's cookies.
func (v *Visit) Cookie(name string) string {
	c, err := v.R.Cookie(v.site.cookie(name))
	if err != nil {
		return ""
	}
	return c.Value
}

// SetCookie sets a cookie; with keep 0 it goes when the browser closes.
func (v *Visit) SetCookie(name, value string, keep time.Duration) {
	http.SetCookie(v.W, &http.Cookie{
		Name: v.site.cookie(name), Value: value, Path: "/", MaxAge: int(keep.Seconds()),
		HttpOnly: true, Secure: v.site.secure, SameSite: http.SameSiteLaxMode,
	})
}

// DropCookie removes a cookie.
func (v *Visit) DropCookie(name string) { v.SetCookie(name, "", -time.Second) }

const formCookie = "form"

// Token is what a form has to carry in its field "token". bind ties it to something, as the visitor's session.
func (v *Visit) Token(bind string) string {
	if v.key == "" {
		if v.key = v.Cookie(formCookie); len(v.key) < 22 {
			v.key = matrix.RandomString(32)
			v.SetCookie(formCookie, v.key, 0)
		}
	}
	m := hmac.New(sha256.New, []byte(v.key))
	m.Write([]byte(bind))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// ErrForm says that a form did not come from a page that this browser was shown, or that the page is too old.
var ErrForm = errors.New("the form has no valid token")

// Check says whether the form that was sent carries its Token.
func (v *Visit) Check(bind string) error {
	if v.Cookie(formCookie) == "" || !hmac.Equal([]byte(v.Form("token")), []byte(v.Token(bind))) {
		return ErrForm
	}
	return nil
}

// View is what a page shows.
type View struct {
	Status  int    // 200 when zero
	Bind    string // see Visit.Token
	Error   string // told above the content
	Notice  string // a success, told likewise
	Body    any    // for the template
	Targets []string
	// Done runs the script that tells a client of a completed stage of interactive authentication.
	Done bool
}

// shown is what the frame and the templates see.
type shown struct {
	View
	*frameData
}

type frameData struct {
	Lang, Token   string
	Style         template.CSS
	Script        template.JS
	Switch, Other string // the same page in the other language
	Self          string // the page's own address, for its forms
	HasDone       bool
}

// L is one of two texts, by the visitor's language; templates write {{$.L "…" "…"}}.
func (f *frameData) L(zh, en string) string {
	if f.Lang == "zh" {
		return zh
	}
	return en
}

// Show answers with a page.
func (v *Visit) Show(name string, view View) (any, error) {
	t := v.p.list[name]
	if t == nil {
		return nil, fmt.Errorf("no page %q", name)
	}
	q := v.R.URL.Query()
	q.Del("lang")
	self := v.R.URL.Path
	if enc := q.Encode(); enc != "" {
		self += "?" + enc
	}
	other, label := "en", "English"
	if v.Lang == "en" {
		other, label = "zh", "中文"
	}
	q.Set("lang", other)
	d := shown{view, &frameData{
		Lang: v.Lang, Token: v.Token(view.Bind), Style: template.CSS(pages.Style), Script: pages.AuthDone, HasDone: view.Done,
		Switch: v.R.URL.Path + "?" + q.Encode(), Other: label, Self: self,
	}}
	var b strings.Builder
	if err := t.ExecuteTemplate(&b, "frame", d); err != nil {
		return nil, fmt.Errorf("page %s: %w", name, err)
	}
	pages.SetHeaders(v.W.Header(), v.Lang, view.Done, view.Targets)
	if view.Status != 0 {
		v.W.WriteHeader(view.Status)
	}
	_, _ = io.WriteString(v.W, b.String()) // the reader may have gone
	return httpapi.Done, nil
}

// Redirect sends the browser on: with 302, as the specification has it for log-in, or with 303 from a form, after
// which the browser is to fetch and not to post again.
func (v *Visit) Redirect(to string) (any, error) {
	h := v.W.Header()
	h.Set("Location", to)
	pages.SetPrivate(h)
	if v.R.Method == http.MethodGet || v.R.Method == http.MethodHead {
		v.W.WriteHeader(http.StatusFound)
	} else {
		v.W.WriteHeader(http.StatusSeeOther)
	}
	return httpapi.Done, nil
}

// fail tells an error on a page.
func (v *Visit) fail(err error) (any, error) {
	status, text := v.Explain(err)
	if status >= http.StatusInternalServerError {
		entry := log.WithFields(log.Fields{"request": v.ID(), "route": v.Route()})
		if v.R.Context().Err() != nil {
			entry.WithError(err).Debug("the visitor went away")
		} else {
			entry.WithError(err).Error("page failed")
		}
	}
	t := template.Must(template.New("frame").Parse(frame))
	template.Must(t.Parse(`{{define "title"}}{{.L "出了点问题" "Something is wrong"}}{{end}}{{define "main"}}<h1>{{template "title" .}}</h1>{{end}}`))
	old := v.p
	v.p = &Pages{v.site, map[string]*template.Template{"error": t}}
	defer func() { v.p = old }()
	return v.Show("error", View{Status: status, Error: text})
}

// Explain is an error in the visitor's language, with the status of its page.
func (v *Visit) Explain(err error) (status int, text string) {
	if errors.Is(err, ErrForm) {
		return http.StatusForbidden, v.T("此页面已过期，或浏览器未接受 Cookie。请重新加载页面后再试。", "This page is too old, or the browser takes no cookies. Load it again and retry.")
	}
	var e *matrix.Error
	if !errors.As(err, &e) {
		return http.StatusInternalServerError, v.T("服务器内部错误，请稍后再试。请求编号："+v.ID(), "Internal error, please try again later. Request "+v.ID())
	}
	known := map[string][2]string{
		"M_LIMIT_EXCEEDED":   {"尝试次数过多，请稍候再试。", "Too many attempts. Wait a moment, then try again."},
		"M_USER_DEACTIVATED": {"此账号已停用。", "This account has been deactivated."},
		"M_USER_LOCKED":      {"此账号已被锁定，请联系管理员。", "This account is locked. Ask your administrator."},
		"M_WEAK_PASSWORD":    {"密码太短。", "The password is too short."},
		"M_USER_IN_USE":      {"此用户名已被占用。", "This user name is taken."},
		"M_EXCLUSIVE":        {"此用户名不可使用。", "This user name is reserved."},
		"M_INVALID_USERNAME": {"用户名只能包含小写字母、数字和 . _ = - / +。", "A user name has the letters a-z, digits and . _ = - / + only."},
		"M_TOO_LARGE":        {"提交的内容过大。", "What was sent is too large."},
	}
	if k, ok := known[e.Code]; ok {
		return e.Status, v.T(k[0], k[1])
	}
	switch e.Status {
	case http.StatusNotFound:
		return e.Status, v.T("没有找到您要的内容。", "There is nothing here.")
	case http.StatusForbidden:
		return e.Status, v.T("不允许进行此操作。", "This is not allowed.")
	}
	return e.Status, v.T("请求无法处理。", "The request cannot be handled.") + " (" + e.Msg + ")"
}
