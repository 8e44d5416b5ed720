package push

import (
	"regexp"
	"strings"
)

// glob is a compiled pattern of the specification: "*" is any run of
// characters, "?" exactly one, all else itself, letters of either case alike.
//
// Spec: appendices#glob-style-matching
type glob struct {
	plain string         // the lower-case pattern when it has no wildcard
	re    *regexp.Regexp // otherwise
}

// compileGlob makes a glob for a whole value, or for a part of it that starts
// and ends at a word boundary.
func compileGlob(pattern string, words bool) glob {
	if !words && !strings.ContainsAny(pattern, "*?") {
		return glob{plain: strings.ToLower(pattern)}
	}
	var b strings.Builder
	b.WriteString("(?is)")
	if words {
		b.WriteString(`(?:^|\b|[^0-9A-Za-z_])`)
	} else {
		b.WriteByte('^')
	}
	lit := 0
	for i := 0; i < len(pattern); i++ {
		if pattern[i] != '*' && pattern[i] != '?' {
			continue
		}
		b.WriteString(regexp.QuoteMeta(pattern[lit:i]))
		if pattern[i] == '*' {
			b.WriteString(".*?")
		} else {
			b.WriteByte('.')
		}
		lit = i + 1
	}
	b.WriteString(regexp.QuoteMeta(pattern[lit:]))
	if words {
		b.WriteString(`(?:$|\b|[^0-9A-Za-z_])`)
	} else {
		b.WriteByte('$')
	}
	re, err := regexp.Compile(b.String())
	if err != nil { // a pattern that is not UTF-8: match it as it stands
		return glob{plain: strings.ToLower(pattern)}
	}
	return glob{re: re}
}

func (g glob) match(value string) bool {
	if g.re != nil {
		return g.re.MatchString(value)
	}
	return len(value) == len(g.plain) && strings.EqualFold(value, g.plain) || strings.ToLower(value) == g.plain
}
