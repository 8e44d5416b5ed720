// Package pages writes the few HTML pages that a server shows to people itself: behind links in e-mails and for
// clients that do not know a stage of interactive authentication. They are in Chinese or English. What all pages of a
// server share stands here too: style, choice of language, headers. Those that people visit to sign in are of package
// browser.
//
// It owns no tables. Spec: client-server-api#fallback
//
// Invariants: everything that comes from outside is escaped; a page loads nothing, is not framed, is not cached, and
// runs no script but that of a completed stage; its address, which may hold a secret, is not told to the places it
// links to.
package pages

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"golang.org/x/text/language"
)

// The languages of pages and messages.
const (
	Chinese = "zh"
	English = "en"
)

var languages = language.NewMatcher([]language.Tag{language.Chinese, language.English, language.TraditionalChinese})

// Language picks the language of a reader by what the browser prefers, in the form of Accept-Language; otherwise is
// taken when that says nothing.
func Language(wish, otherwise string) string {
	if len(wish) > 500 {
		return otherwise
	}
	tags, _, err := language.ParseAcceptLanguage(wish)
	if err != nil || len(tags) == 0 {
		return otherwise
	}
	if _, i, confidence := languages.Match(tags...); confidence == language.No || i == 1 {
		return English // people who read neither read English sooner
	}
	return Chinese
}

// Text is a sentence in both languages.
type Text struct{ ZH, EN string }

// In is the sentence in a language.
func (t Text) In(lang string) string {
	if lang == English {
		return t.EN
	}
	return t.ZH
}

// Page is what is shown.
type Page struct {
	Lang   string
	Status int    // 200 when zero
	Title  string // also the heading
	Text   []string
	Error  string // what went wrong with what was sent
	Links  []Link
	Form   *Form
	// AuthDone tells the client which has opened the page that a stage of authentication is completed.
	AuthDone bool
	// Redirect sends the reader on to an address instead of showing a page.
	Redirect string
	// FormTargets are further origins, such as https://app.example.org, to which the answer to the form may redirect.
	FormTargets []string
}

// Link is an address to go to.
type Link struct{ Text, URL string }

// Form is sent to the page's own address, by POST.
type Form struct {
	Fields []Field
	Button string
}

// Field is an entry of a form; one without a label is hidden.
type Field struct {
	Name, Label, Value string
	Type               string // text when empty
	Autocomplete       string
}

//go:embed page.html
var source string

// Style is the style sheet of all pages.
//
//go:embed style.css
var Style string

// AuthDone is the script that the specification prescribes for a completed stage of interactive authentication.
// Spec: client-server-api#fallback
const AuthDone = `if (window.onAuthDone) { window.onAuthDone(); } else if (window.opener && window.opener.postMessage) { window.opener.postMessage("authDone", "*"); }`

// SetHeaders closes a page of Style: it loads and runs nothing, but AuthDone where done says so, is neither framed nor
// kept, and sends its forms to this server alone. The answer to one may redirect to targets.
func SetHeaders(h http.Header, lang string, done bool, targets []string) {
	csp := "default-src 'none'; style-src " + hashSource(Style)
	if done {
		csp += "; script-src " + hashSource(AuthDone)
	}
	h.Set("Content-Security-Policy", csp+"; form-action 'self'"+sources(targets)+"; frame-ancestors 'none'; base-uri 'none'")
	h.Set("X-Frame-Options", "DENY")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Language", lang)
	h.Set("Content-Type", "text/html; charset=utf-8")
	SetPrivate(h)
}

// SetPrivate keeps an answer out of caches, and its address from where it leads to.
func SetPrivate(h http.Header) {
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
}

func hashSource(text string) string {
	h := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(h[:]) + "'"
}

// sources are the places to which the answer to a form may redirect, as the policy writes them.
func sources(targets []string) string {
	var b strings.Builder
	for _, t := range targets {
		u, err := url.Parse(t)
		if err != nil || u.Scheme == "" || strings.ContainsAny(u.Scheme+u.Host, " ;,'\"*") {
			continue
		}
		switch {
		case u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.HasPrefix(u.Host, "["):
			b.WriteString(" " + u.Scheme + ":") // a policy cannot name an IPv6 address
		default:
			b.WriteString(" " + u.Scheme + "://" + u.Host)
		}
	}
	return b.String()
}

// Write answers a request with the page.
func (p Page) Write(w http.ResponseWriter) error {
	h := w.Header()
	if p.Redirect != "" {
		SetPrivate(h)
		h.Set("Location", p.Redirect)
		w.WriteHeader(http.StatusSeeOther)
		return nil
	}
	t, err := template.New("page").Parse(source)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	err = t.Execute(&b, struct {
		Page
		Style  template.CSS
		Script template.JS
	}{p, template.CSS(Style), AuthDone})
	if err != nil {
		return err
	}
	SetHeaders(h, p.Lang, p.AuthDone, p.FormTargets)
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	if p.Status != 0 {
		w.WriteHeader(p.Status)
	}
	_, _ = w.Write(b.Bytes()) // the reader may have gone
	return nil
}

// maxForm bounds what a form may bring.
const maxForm = 16 << 10

// ReadForm reads what a form has brought.
func ReadForm(r io.Reader) (url.Values, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxForm+1))
	if err != nil || len(b) > maxForm {
		return nil, matrix.InvalidParam("the form cannot be read")
	}
	v, err := url.ParseQuery(string(b))
	if err != nil {
		return nil, matrix.InvalidParam("the form cannot be read")
	}
	return v, nil
}
