package previews

import (
	"bufio"
	"bytes"
	"io"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/html"
	"golang.org/x/net/html/charset"
	"golang.org/x/text/encoding/simplifiedchinese"
	"golang.org/x/text/encoding/traditionalchinese"
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
	oembed     string            // where a description of it is, "" for none
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
// where the page was found, language what its reader prefers.
func readPage(r io.Reader, contentType, language string, at *url.URL) page {
	x := &reading{og: map[string]string{}, meta: map[string]string{}, base: at}
	x.read(decode(r, contentType, language))
	return x.page()
}

// peeked is how much of a page is looked at to find how it is encoded.
const peeked = 1024

// decode makes UTF-8 of a page. Where the page does not say how it is encoded, and it is not UTF-8, it is most
// likely what has been usual in its reader's language, as browsers take it.
func decode(r io.Reader, contentType, language string) io.Reader {
	b := bufio.NewReader(r)
	head, _ := b.Peek(peeked)
	enc, _, certain := charset.DetermineEncoding(head, contentType)
	told := certain || bytes.Contains(bytes.ToLower(head), []byte("charset"))
	if !told && !utf8.Valid(trimPartial(head)) {
		switch first, _, _ := strings.Cut(strings.ToLower(language), ","); {
		case strings.HasPrefix(first, "zh-tw"), strings.HasPrefix(first, "zh-hk"), strings.HasPrefix(first, "zh-hant"):
			enc = traditionalchinese.Big5
		case strings.HasPrefix(first, "zh"):
			enc = simplifiedchinese.GB18030
		}
	}
	return enc.NewDecoder().Reader(b)
}

// trimPartial leaves out a character at the end that is cut in two.
func trimPartial(b []byte) []byte {
	for i := 1; i < utf8.UTFMax && i <= len(b); i++ {
		if utf8.RuneStart(b[len(b)-i]) {
			if !utf8.FullRune(b[len(b)-i:]) {
				return b[:len(b)-i]
			}
			break
		}
	}
	return b
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
	if strings.EqualFold(strings.TrimSpace(a["type"]), "application/json+oembed") && x.meta["oembed"] == "" && len(a["href"]) <= maxAddress {
		x.meta["oembed"] = strings.TrimSpace(a["href"])
	}
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
		if p.image = x.address(v); p.image != "" {
			break
		}
	}
	p.oembed = x.address(x.meta["oembed"])
	return p
}

// address is a whole address of what a page names; "" if it cannot be visited.
func (x *reading) address(v string) string {
	if v == "" || len(v) > maxAddress {
		return ""
	}
	u, err := x.base.Parse(v)
	if err != nil || checkAddress(u) != nil {
		return ""
	}
	return u.String()
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
