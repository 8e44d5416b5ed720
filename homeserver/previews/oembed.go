package previews

import (
	"context"
	"encoding/json"
	"io"
	"mime"
	"net/url"
	"strings"

	"golang.org/x/net/html"
)

// maxOEmbed is how much of a description is read.
const maxOEmbed = 256 << 10

// describe adds what a page's oEmbed description says, where the page itself says nothing.
//
// Spec: https://oembed.com
func (p *Previews) describe(ctx context.Context, pg *page, language string) {
	if pg.oembed == "" || pg.properties["og:title"] != "" && pg.image != "" {
		return
	}
	resp, err := p.get(ctx, pg.oembed, language, "application/json")
	if err != nil {
		return // the page is better than nothing
	}
	defer resp.Body.Close()
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if kind != "application/json" && kind != "application/json+oembed" && kind != "text/json" && kind != "text/javascript" {
		return
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxOEmbed+1))
	if err != nil || len(b) > maxOEmbed {
		return
	}
	pg.embed(b, resp.Request.URL)
}

// embed takes over what an oEmbed description says. at is where it was found.
func (pg *page) embed(b []byte, at *url.URL) {
	var all map[string]json.RawMessage
	if json.Unmarshal(b, &all) != nil {
		return
	}
	text := func(name string) (s string) {
		_ = json.Unmarshal(all[name], &s) // what is no text is left out
		return clean(s)
	}
	set := func(name, value string) {
		if pg.properties[name] == "" && value != "" {
			pg.properties[name] = value
		}
	}
	set("og:title", text("title"))
	set("og:site_name", text("provider_name"))
	var markup string
	if _ = json.Unmarshal(all["html"], &markup); text("type") == "rich" {
		set("og:description", visible(markup))
	}
	set("og:title", text("author_name"))
	if pg.image != "" {
		return
	}
	x := reading{base: at}
	if pg.image = x.address(text("thumbnail_url")); pg.image == "" && text("type") == "photo" {
		pg.image = x.address(text("url"))
	}
}

// visible is the text of a piece of markup.
func visible(markup string) string {
	var (
		out    strings.Builder
		hidden string // the element whose text is not shown
	)
	z := html.NewTokenizer(strings.NewReader(markup))
	z.SetMaxBuf(maxToken)
	for out.Len() < 4*maxValue {
		switch z.Next() {
		case html.ErrorToken:
			return clean(out.String())
		case html.StartTagToken:
			if name, _ := z.TagName(); string(name) == "script" || string(name) == "style" {
				hidden = string(name)
			}
		case html.EndTagToken:
			if name, _ := z.TagName(); string(name) == hidden {
				hidden = ""
			}
			out.WriteByte(' ')
		case html.TextToken:
			if hidden == "" {
				out.Write(z.Text())
			}
		}
	}
	return clean(out.String())
}
