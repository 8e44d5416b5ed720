package pages_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/pages"
)

func TestLanguage(t *testing.T) {
	for header, want := range map[string]string{
		"":                               "zh",
		"fr,de;q=0.5":                    "en",
		"en-GB,en;q=0.9":                 "en",
		"en;q=0.3, zh-CN;q=0.8":          "zh",
		"fr, en;q=0.2":                   "en",
		"en;q=0":                         "zh",
		"en;q=x":                         "zh",
		"zh-Hant, en":                    "zh",
		strings.Repeat("fr,", 50) + "en": "en",
		strings.Repeat("en,", 500):       "zh",
		"zh-TW":                          "zh",
	} {
		if got := pages.Language(header, "zh"); got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}

func TestPageEscapesAndIsClosed(t *testing.T) {
	w := httptest.NewRecorder()
	err := pages.Page{
		Lang: "en", Title: "<b>", Text: []string{"a & b"}, Error: "<script>alert(1)</script>", Status: 400,
		Links:       []pages.Link{{Text: "go", URL: "javascript:alert(1)"}},
		Form:        &pages.Form{Fields: []pages.Field{{Name: "x", Value: `"><script>`}, {Name: "y", Label: "Y"}}, Button: "OK"},
		FormTargets: []string{"https://app.example/x", "https://evil; script-src *"},
	}.Write(w)
	if err != nil {
		t.Fatal(err)
	}
	b := w.Body.String()
	if w.Code != 400 || strings.Contains(b, "<script>") || strings.Contains(b, "href=\"javascript:") || !strings.Contains(b, "a &amp; b") {
		t.Errorf("%d %s", w.Code, b)
	}
	csp := w.Header().Get("Content-Security-Policy")
	if !strings.Contains(csp, "form-action 'self' https://app.example;") || strings.Contains(csp, "script-src *") || !strings.Contains(csp, "frame-ancestors 'none'") {
		t.Error(csp)
	}
	if strings.Contains(b, "onAuthDone") {
		t.Error("the script runs where nothing is done")
	}
	w = httptest.NewRecorder()
	if err := (pages.Page{Lang: "zh", Title: "好", AuthDone: true}).Write(w); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(w.Body.String(), `window.opener.postMessage("authDone", "*")`) || !strings.Contains(w.Body.String(), `lang="zh"`) {
		t.Error(w.Body)
	}
	w = httptest.NewRecorder()
	if err := (pages.Page{Redirect: "https://app.example/"}).Write(w); err != nil || w.Code != http.StatusSeeOther || w.Header().Get("Location") != "https://app.example/" {
		t.Error(w.Code, w.Header())
	}
}
