// Package pages writes the few HTML pages that a server shows to people itself: behind links in e-mails and for
// clients that do not know a stage of interactive authentication. They are in Chinese or English.
//
// It owns no tables. Spec: client-server-api#fallback
//
// Invariants: everything that comes from outside is escaped; a page loads nothing, is not framed, is not cached, and
// runs no script but its own; its address, which may hold a secret, is not told to the places it links to.
package pages

import (
	"bytes"
	_ "embed"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// The languages of pages and messages.
const (
	Chinese = "zh"
	English = "en"
)

// Language picks the language that the reader's browser prefers; otherwise is taken when it names neither.
func Language(r *http.Request, otherwise string) string {
	type choice struct {
		lang    string
		quality float64
	}
	var list []choice
	for i, part := range strings.Split(r.Header.Get("Accept-Language"), ",") {
		if i == 20 { // nobody speaks more
			break
		}
		tag, params, _ := strings.Cut(strings.TrimSpace(part), ";")
		lang, _, _ := strings.Cut(strings.ToLower(strings.TrimSpace(tag)), "-")
		if lang != Chinese && lang != English {
			continue
		}
		q := 1.0
		if v, ok := strings.CutPrefix(strings.TrimSpace(params), "q="); ok {
			var err error
			if q, err = strconv.ParseFloat(v, 64); err != nil || q <= 0 {
				continue
			}
		}
		list = append(list, choice{lang, q})
	}
	if len(list) == 0 {
		return otherwise
	}
	return slices.MaxFunc(list, func(a, b choice) int {
		switch {
		case a.quality < b.quality:
			return -1
		case a.quality > b.quality:
			return 1
		}
		return 0 // the first of several that are equal
	}).lang
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

// authDone is the script that the specification prescribes.
// Spec: client-server-api#fallback
const authDone = `if (window.onAuthDone) { window.onAuthDone(); } else if (window.opener && window.opener.postMessage) { window.opener.postMessage("authDone", "*"); }`

// Write answers a request with the page.
func (p Page) Write(w http.ResponseWriter) error {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	if p.Redirect != "" {
		h.Set("Location", p.Redirect)
		w.WriteHeader(http.StatusSeeOther)
		return nil
	}
	t, err := template.New("page").Parse(source)
	if err != nil {
		return err
	}
	nonce := matrix.RandomString(22)
	var b bytes.Buffer
	err = t.Execute(&b, struct {
		Page
		Nonce  string
		Script template.JS
	}{p, nonce, authDone})
	if err != nil {
		return err
	}
	targets := "'self'"
	for _, o := range p.FormTargets {
		if u, err := url.Parse(o); err == nil && u.Host != "" && !strings.ContainsAny(o, "; ,'\"") {
			targets += " " + u.Scheme + "://" + u.Host
		}
	}
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'nonce-"+nonce+"'; script-src 'nonce-"+nonce+
		"'; form-action "+targets+"; frame-ancestors 'none'; base-uri 'none'")
	h.Set("X-Frame-Options", "DENY")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Type", "text/html; charset=utf-8")
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
