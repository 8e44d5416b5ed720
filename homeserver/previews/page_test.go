package previews

import (
	"bytes"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"
)

func FuzzReadPage(f *testing.F) {
	for _, s := range []string{
		`<title>x</title><meta property="og:title" content="y"><base href="//z/"><meta property="og:image" content="a.png">`,
		`<meta charset="gbk"><title>` + "\xcf\xee\xc4\xbf", `<meta property=og:image content="http://[::1`, "<script><title>",
		`<link rel="image_src" href="?q"><svg><title>`, "\xff\xfe<\x00t\x00", `{"title":"t","type":"rich","html":"<p>x","thumbnail_url":"//z/"}`, `<link type="application/json+oembed" href="x">`, `<meta content=1 name=description content=2>`,
	} {
		f.Add("text/html", []byte(s))
	}
	at, err := url.Parse("https://example.org/dir/page")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		p := readPage(bytes.NewReader(body), contentType, "zh-CN", at)
		p.embed(body, at)
		if len(p.properties) > maxProperties+2 {
			t.Fatalf("%d properties", len(p.properties))
		}
		for k, v := range p.properties {
			if !strings.HasPrefix(k, "og:") || strings.HasPrefix(k, "og:image") || len(k) > maxName ||
				!utf8.ValidString(v) || utf8.RuneCountInString(v) > maxValue+1 || v == "" {
				t.Fatalf("property %q: %q", k, v)
			}
		}
		if p.image != "" {
			if u, err := url.Parse(p.image); err != nil || checkAddress(u) != nil {
				t.Fatalf("picture at %q", p.image)
			}
		}
		if p.oembed != "" {
			if u, err := url.Parse(p.oembed); err != nil || checkAddress(u) != nil {
				t.Fatalf("description at %q", p.oembed)
			}
		}
	})
}
