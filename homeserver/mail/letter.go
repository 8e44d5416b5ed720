package mail

import (
	"bytes"
	"html/template"
	"strings"
)

// Letter is the text of a message in the few forms that Carillon's messages have. It becomes plain text and HTML.
type Letter struct {
	Lang  string // zh or en
	Title string
	Parts []Part
	Small []string // at the end: who has sent it and why
	Leave Line     // how to get no more of them: what the link says, and the link; empty: nothing
}

// Part is a paragraph, a code to type in, a link that is a button, or a list of lines.
type Part struct {
	Text  string
	Code  string
	Link  string // an address; Text is what the button says
	Lines []Line
}

// Line is an entry of a list: who, what, and where it leads.
type Line struct{ Who, What, Link string }

var letter = template.Must(template.New("letter").Parse(`<!DOCTYPE html>
<html lang="{{.Lang}}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{.Title}}</title></head>
<body style="margin:0;padding:24px;background:#f4f5f7;font:15px/1.6 'PingFang SC','Microsoft YaHei','Noto Sans CJK SC',sans-serif;color:#1d2129">
<div style="max-width:560px;margin:0 auto;padding:24px 28px;background:#fff;border-radius:8px">
<h1 style="font-size:20px;margin:0 0 12px">{{.Title}}</h1>
{{range .Parts}}{{if .Code}}<p style="font:700 28px/1.4 monospace;letter-spacing:4px;margin:16px 0">{{.Code}}</p>
{{else if .Link}}<p style="margin:20px 0"><a href="{{.Link}}" style="display:inline-block;padding:10px 22px;border-radius:6px;background:#1a5fb4;color:#fff;text-decoration:none;font-weight:600">{{.Text}}</a></p>
{{else if .Lines}}{{if .Text}}<h2 style="font-size:16px;margin:20px 0 6px">{{.Text}}</h2>
{{end}}{{range .Lines}}<p style="margin:4px 0"><b>{{.Who}}</b> {{if .Link}}<a href="{{.Link}}" style="color:#1d2129">{{.What}}</a>{{else}}{{.What}}{{end}}</p>
{{end}}{{else}}<p>{{.Text}}</p>
{{end}}{{end}}{{range .Small}}<p style="font-size:12px;color:#6b7280;margin:16px 0 0">{{.}}</p>
{{end}}{{with .Leave}}{{if .Link}}<p style="font-size:12px;margin:16px 0 0"><a href="{{.Link}}" style="color:#6b7280">{{.What}}</a></p>
{{end}}{{end}}</div></body></html>
`))

// HTML is the letter as a page.
func (l Letter) HTML() (string, error) {
	var b bytes.Buffer
	err := letter.Execute(&b, l)
	return b.String(), err
}

// Plain is the letter as plain text.
func (l Letter) Plain() string {
	var b strings.Builder
	b.WriteString(l.Title + "\n\n")
	for _, p := range l.Parts {
		switch {
		case p.Code != "":
			b.WriteString("    " + p.Code + "\n\n")
		case p.Link != "":
			b.WriteString(p.Text + ":\n" + p.Link + "\n\n")
		case len(p.Lines) > 0:
			if p.Text != "" {
				b.WriteString(p.Text + "\n")
			}
			for _, x := range p.Lines {
				b.WriteString("  " + x.Who + ": " + x.What + "\n")
			}
			b.WriteString("\n")
		default:
			b.WriteString(p.Text + "\n\n")
		}
	}
	if len(l.Small) > 0 || l.Leave.Link != "" {
		b.WriteString("-- \n")
	}
	for _, s := range l.Small {
		b.WriteString(s + "\n")
	}
	if l.Leave.Link != "" {
		b.WriteString(l.Leave.What + ": " + l.Leave.Link + "\n")
	}
	return b.String()
}

// To makes the message that carries the letter.
func (l Letter) To(address, subject string) (Message, error) {
	html, err := l.HTML()
	return Message{To: address, Subject: subject, Text: l.Plain(), HTML: html}, err
}
