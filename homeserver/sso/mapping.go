package sso

import (
	"errors"
	"fmt"
	"strings"
	"text/template"
	"unicode/utf8"
)

// parseTemplate reads a template over claims. Beside the standard functions there are lower, before (the part of a
// text before a separator) and default.
func parseTemplate(text string) (*template.Template, error) {
	if text == "" {
		return nil, nil
	}
	return template.New("claims").Option("missingkey=error").Funcs(template.FuncMap{
		"lower":  strings.ToLower,
		"before": func(sep, s string) string { before, _, _ := strings.Cut(s, sep); return before },
		"default": func(otherwise, s string) string {
			if s == "" {
				return otherwise
			}
			return s
		},
	}).Parse(text)
}

// CheckTemplate says what is wrong with a template over claims.
func CheckTemplate(text string) error {
	_, err := parseTemplate(text)
	return err
}

var errNoClaim = errors.New("the provider does not tell enough about the person")

// maxText bounds what claims may become, in bytes.
const maxText = 1024

// render fills a template; nil gives "".
func render(t *template.Template, claims map[string]any) (string, error) {
	if t == nil {
		return "", nil
	}
	var b limited
	if err := t.Execute(&b, claims); err != nil {
		return "", fmt.Errorf("%w: %w", errNoClaim, err)
	}
	s := strings.TrimSpace(b.String())
	if s == "" || strings.Contains(s, "<no value>") || !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
		return "", errNoClaim
	}
	return s, nil
}

// limited is a text that cannot grow without end.
type limited struct{ strings.Builder }

// Write implements io.Writer.
func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > maxText {
		return 0, errors.New("the text is too long")
	}
	return l.Builder.Write(p)
}

// localpart makes any text the localpart of a user ID.
// Spec: appendices#mapping-from-other-character-sets
func localpart(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'A' && c <= 'Z':
			b.WriteByte(c + 'a' - 'A')
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', strings.IndexByte("._-/+", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "=%02x", c)
		}
	}
	return b.String()
}
