package hstest

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/net/html"
)

// Browser is somebody's browser: it keeps cookies, sends the forms that it is shown, and follows redirects as long as
// they stay on one host.
type Browser struct {
	T       testing.TB
	Lang    string // Accept-Language
	client  *http.Client
	Headers map[string]string // sent with every request
}

// Browser opens a browser without cookies.
func (s *Server) Browser(lang string) *Browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.T.Fatal(err)
	}
	return &Browser{T: s.T, Lang: lang, client: &http.Client{
		Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Trust makes the browser accept certificates of an authority, in PEM.
func (b *Browser) Trust(pem []byte) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		b.T.Fatal("no certificate")
	}
	b.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
}

// Cookies are those that the browser would send to an address.
func (b *Browser) Cookies(address string) []*http.Cookie {
	u, err := url.Parse(address)
	if err != nil {
		b.T.Fatal(err)
	}
	return b.client.Jar.Cookies(u)
}

// Page is what a browser shows.
type Page struct {
	b      *Browser
	URL    *url.URL
	Status int
	Header http.Header
	Body   string
	To     string // where a redirect leads that was not followed
	Forms  []*Form
	Links  map[string]string // addresses by the text of the links
}

// Form is a form of a page.
type Form struct {
	page    *Page
	Action  string
	Fields  url.Values
	Buttons map[string][2]string // name and value, by their text
}

// Get opens an address and follows redirects on the same host.
func (b *Browser) Get(address string) *Page {
	b.T.Helper()
	return b.do("GET", address, nil)
}

// Post sends a form that no page has shown.
func (b *Browser) Post(address string, fields url.Values) *Page {
	b.T.Helper()
	return b.do("POST", address, fields)
}

func (b *Browser) do(method, address string, fields url.Values) *Page {
	b.T.Helper()
	for range 12 {
		var body io.Reader
		if method == "POST" {
			body = strings.NewReader(fields.Encode())
		}
		req, err := http.NewRequestWithContext(b.T.Context(), method, address, body)
		if err != nil {
			b.T.Fatal(err)
		}
		if method == "POST" {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		if b.Lang != "" {
			req.Header.Set("Accept-Language", b.Lang)
		}
		for k, v := range b.Headers {
			req.Header.Set(k, v)
		}
		resp, err := b.client.Do(req)
		if err != nil {
			b.T.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			b.T.Fatal(err)
		}
		p := &Page{b: b, URL: req.URL, Status: resp.StatusCode, Header: resp.Header, Body: string(text), Links: map[string]string{}}
		to := resp.Header.Get("Location")
		if resp.StatusCode < 300 || resp.StatusCode > 399 || to == "" {
			p.parse()
			return p
		}
		next, err := req.URL.Parse(to)
		if err != nil {
			b.T.Fatal(err)
		}
		if next.Host != req.URL.Host {
			p.To = next.String()
			return p
		}
		method, address, fields = "GET", next.String(), nil
	}
	b.T.Fatal("too many redirects")
	return nil
}

// parse finds the forms and links of a page.
func (p *Page) parse() {
	root, err := html.Parse(strings.NewReader(p.Body))
	if err != nil {
		return
	}
	var form *Form
	var walk func(n *html.Node)
	walk = func(n *html.Node) {
		attr := map[string]string{}
		for _, a := range n.Attr {
			attr[a.Key] = a.Val
		}
		switch {
		case n.Type == html.ElementNode && n.Data == "form":
			form = &Form{page: p, Action: attr["action"], Fields: url.Values{}, Buttons: map[string][2]string{}}
			p.Forms = append(p.Forms, form)
		case n.Type == html.ElementNode && n.Data == "input" && form != nil && attr["name"] != "" && attr["type"] != "checkbox":
			form.Fields.Set(attr["name"], attr["value"])
		case n.Type == html.ElementNode && n.Data == "button" && form != nil:
			form.Buttons[textOf(n)] = [2]string{attr["name"], attr["value"]}
		case n.Type == html.ElementNode && n.Data == "a":
			p.Links[textOf(n)] = attr["href"]
		}
		for c := n.FirstChild; c != nil; c = c.NextSibling {
			walk(c)
		}
		if n.Type == html.ElementNode && n.Data == "form" {
			form = nil
		}
	}
	walk(root)
}

func textOf(n *html.Node) string {
	var b strings.Builder
	var walk func(*html.Node)
	walk = func(n *html.Node) {
		if n.Type == html.TextNode {
			b.WriteString(n.Data)
		}
		for c := n.FirstChild; c != nil; c = c.NextSibling {
			walk(c)
		}
	}
	walk(n)
	return strings.Join(strings.Fields(b.String()), " ")
}

// Form is the form of the page that has a button of that text.
func (p *Page) Form(button string) *Form {
	p.b.T.Helper()
	for _, f := range p.Forms {
		if _, ok := f.Buttons[button]; ok {
			return f
		}
	}
	p.b.T.Fatalf("%s has no button %q:\n%s", p.URL, button, p.Body)
	return nil
}

// Press fills in fields ("name", "value", …) and presses a button.
func (p *Page) Press(button string, fields ...string) *Page {
	p.b.T.Helper()
	f := p.Form(button)
	values := url.Values{}
	for k, v := range f.Fields {
		values[k] = v
	}
	for i := 0; i+1 < len(fields); i += 2 {
		values.Set(fields[i], fields[i+1])
	}
	if b := f.Buttons[button]; b[0] != "" {
		values.Set(b[0], b[1])
	}
	to, err := p.URL.Parse(f.Action)
	if err != nil {
		p.b.T.Fatal(err)
	}
	return p.b.do("POST", to.String(), values)
}

// Follow opens the link of a text.
func (p *Page) Follow(text string) *Page {
	p.b.T.Helper()
	to, ok := p.Links[text]
	if !ok {
		p.b.T.Fatalf("%s has no link %q: %v", p.URL, text, p.Links)
	}
	u, err := p.URL.Parse(to)
	if err != nil {
		p.b.T.Fatal(err)
	}
	return p.b.do("GET", u.String(), nil)
}

// Shows says whether the page has all of these texts on it.
func (p *Page) Shows(texts ...string) bool {
	for _, t := range texts {
		if !strings.Contains(p.Body, html.EscapeString(t)) && !strings.Contains(p.Body, t) {
			return false
		}
	}
	return true
}
