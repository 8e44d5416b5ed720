package previews

import (
	"io"
	"net/url"
	"strings"
	"unicode"

	"golang.org/x/net/html"
	"golang.org/x/net/html/charset"
)

const (
	// maxProperties, maxName and maxValue bound what is taken from a page.
	maxProperties = 50
	maxName       = 64
	maxValue      = 1000 // characters
	maxAddress    = 4096 // bytes
	// maxToken is the largest piece of markup that is looked at, in bytes.
	maxToken = 256 << 10
)

// page is what a page says about itself.
type page struct {
	properties map[string]string // og:…
	image      string            // the address of its picture, "" for none
}

// reading is a page on its way in. Of what occurs twice the first counts.
type reading struct {
	og    map[string]string
	meta  map[string]string // other names that stand in for what is missing
	title strings.Builder
	base  *url.URL
	moved bool // a base element was seen
}

// readPage reads as much of a page as there is; broken markup is no error. at is
// where the page was found.
func readPage(r io.Reader, contentType string, at *url.URL) page {
	x := &reading{og: map[string]string{}, meta: map[string]string{}, base: at}
	if decoded, err := charset.NewReader(r, contentType); err == nil {
		x.read(decoded)
	}
	return x.page()
}

func (x *reading) read(r io.Reader) {
	z := html.NewTokenizer(r)
	z.SetMaxBuf(maxToken)
	inTitle, titled := false, false
	for {
		switch z.Next() {
		case html.ErrorToken:
			return
		case html.TextToken:
			if inTitle && x.title.Len() < 4*maxValue {
				x.title.Write(z.Text())
			}
		case html.StartTagToken, html.SelfClosingTagToken:
			name, more := z.TagName()
			switch string(name) {
			case "title":
				inTitle, titled = !titled, true // others belong to pictures (svg)
			case "meta":
				x.takeMeta(attributes(z, more))
			case "link":
				x.takeLink(attributes(z, more))
			case "base":
				x.takeBase(attributes(z, more))
			}
		case html.EndTagToken:
			if name, _ := z.TagName(); string(name) == "title" {
				inTitle = false
			}
		}
	}
}

func attributes(z *html.Tokenizer, more bool) map[string]string {
	out := map[string]string{}
	for more {
		var k, v []byte
		k, v, more = z.TagAttr()
		if _, dup := out[string(k)]; !dup {
			out[string(k)] = string(v)
		}
	}
	return out
}

func (x *reading) takeMeta(a map[string]string) {
	name := strings.ToLower(strings.TrimSpace(a["property"]))
	if name == "" {
		name = strings.ToLower(strings.TrimSpace(a["name"]))
	}
	value := clean(a["content"])
	if value == "" || len(name) > maxName {
		return
	}
	to := x.meta
	if strings.HasPrefix(name, "og:") && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789:_-") == "" {
		to = x.og
	} else {
		switch name {
		case "description", "twitter:title", "twitter:description", "twitter:image", "twitter:image:src":
		default:
			return
		}
	}
	if _, dup := to[name]; !dup && len(to) < maxProperties {
		to[name] = value
	}
}

func (x *reading) takeLink(a map[string]string) {
	if strings.EqualFold(strings.TrimSpace(a["rel"]), "image_src") && x.meta["image_src"] == "" {
		x.meta["image_src"] = clean(a["href"])
	}
}

func (x *reading) takeBase(a map[string]string) {
	if x.moved || a["href"] == "" {
		return
	}
	if u, err := x.base.Parse(strings.TrimSpace(a["href"])); err == nil {
		x.base, x.moved = u, true
	}
}

func (x *reading) page() page {
	p := page{properties: map[string]string{}}
	for k, v := range x.og {
		// What the page says of its picture is replaced by what the picture is.
		if k != "og:image" && !strings.HasPrefix(k, "og:image:") {
			p.properties[k] = v
		}
	}
	set := func(name string, values ...string) {
		for _, v := range values {
			if p.properties[name] == "" && v != "" {
				p.properties[name] = v
			}
		}
	}
	set("og:title", x.meta["twitter:title"], clean(x.title.String()))
	set("og:description", x.meta["description"], x.meta["twitter:description"])
	for _, v := range []string{
		x.og["og:image:secure_url"], x.og["og:image"], x.og["og:image:url"],
		x.meta["twitter:image"], x.meta["twitter:image:src"], x.meta["image_src"],
	} {
		if v == "" || len(v) > maxAddress {
			continue
		}
		if u, err := x.base.Parse(v); err == nil && checkAddress(u) == nil {
			p.image = u.String()
			break
		}
	}
	return p
}

// clean is a text in one line, without control characters, and not too long.
func clean(s string) string {
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "\uFFFD"), func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r)
	}), " ")
	n := 0
	for i := range s {
		if n++; n > maxValue {
			return strings.TrimSpace(s[:i]) + "…"
		}
	}
	return s
}
