package org

import (
	"net/mail"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/width"
)

// Bounds of single values.
const (
	maxIDLength    = 64
	maxNameLength  = 64
	maxOrder       = 1_000_000
	maxPosts       = 100
	maxManagers    = 20
	maxUnitDepth   = 20
	maxEmailLength = 254
	dateLayout     = "2006-01-02"
)

// narrow makes full-width letters and digits plain and trims the ends: both are
// usual in files typed with a Chinese input method.
func narrow(s string) string { return strings.TrimSpace(width.Fold.String(s)) }

// validID tells whether s can be a unit's or a person's key. Units may have
// letters of any script, job numbers ASCII only: they become log-in names.
func validID(s string, anyScript bool) bool {
	if s == "" || utf8.RuneCountInString(s) > maxIDLength {
		return false
	}
	for i, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if anyScript && r > unicode.MaxASCII {
			letter = unicode.IsLetter(r) || unicode.IsDigit(r)
		}
		if letter || i > 0 && (r == '.' || r == '-' || r == '_') {
			continue
		}
		return false
	}
	return true
}

// looksRounded finds numbers a spreadsheet program has made 1.38E+10 of.
func looksRounded(s string) bool {
	mantissa, exp, ok := strings.Cut(strings.ToUpper(s), "E+")
	if !ok || !strings.Contains(mantissa, ".") {
		return false
	}
	_, err1 := strconv.ParseFloat(mantissa, 64)
	_, err2 := strconv.Atoi(exp)
	return err1 == nil && err2 == nil
}

// parseMobile gives the E.164 form. Numbers without a country code are Chinese.
func parseMobile(s string) (string, bool) {
	s = narrow(s)
	// Some programs keep a number as 13800000000.0.
	s = strings.TrimSuffix(s, ".0")
	digits := strings.Map(func(r rune) rune {
		switch r {
		case ' ', '-', '(', ')', '.', '\u00a0', '\u2010', '\u2011', '\u2013', '\u202d', '\u202c', '\u200b':
			return -1
		}
		return r
	}, s)
	plus := strings.HasPrefix(digits, "+")
	digits = strings.TrimPrefix(digits, "+")
	if !plus && strings.HasPrefix(digits, "00") {
		plus, digits = true, digits[2:]
	}
	for _, r := range digits {
		if r < '0' || r > '9' {
			return "", false
		}
	}
	switch {
	case !plus && isChineseMobile(digits):
		return "+86" + digits, true
	case strings.HasPrefix(digits, "86") && (plus || len(digits) == 13):
		if !isChineseMobile(digits[2:]) {
			return "", false
		}
		return "+" + digits, true
	case plus && len(digits) >= 8 && len(digits) <= 15 && digits[0] != '0':
		return "+" + digits, true
	}
	return "", false
}

func isChineseMobile(d string) bool {
	return len(d) == 11 && d[0] == '1' && d[1] >= '3'
}

// parseEmail gives the address in small letters.
func parseEmail(s string) (string, bool) {
	s = strings.ToLower(narrow(s))
	if len(s) > maxEmailLength || strings.ContainsAny(s, " <>\"(),;:\\[]") {
		return "", false
	}
	a, err := mail.ParseAddress(s)
	if err != nil || a.Address != s {
		return "", false
	}
	_, domain, _ := strings.Cut(s, "@")
	labels := strings.Split(domain, ".")
	if len(labels) < 2 {
		return "", false
	}
	for _, l := range labels {
		if l == "" || strings.HasPrefix(l, "-") || strings.HasSuffix(l, "-") {
			return "", false
		}
	}
	return s, true
}

// parseDate reads the spellings of a day that occur in personnel files.
func parseDate(s string) (string, bool) {
	s = narrow(s)
	if i := strings.IndexAny(s, " T"); i > 0 {
		// A time after the day is midnight put there by a database export.
		if _, err := time.Parse("15:04:05", strings.TrimSuffix(s[i+1:], "Z")); err != nil {
			if _, err := time.Parse("15:04", s[i+1:]); err != nil {
				return "", false
			}
		}
		s = s[:i]
	}
	s = strings.NewReplacer("年", "-", "月", "-", "日", "", "/", "-", ".", "-").Replace(s)
	for _, layout := range []string{"2006-1-2", "20060102"} {
		if t, err := time.Parse(layout, s); err == nil && t.Year() >= 1900 && t.Year() < 2200 {
			return t.Format(dateLayout), true
		}
	}
	return "", false
}

// parseFlag reads yes and no; an empty cell is the default.
func parseFlag(s string, byDefault bool) (flag, ok bool) {
	switch strings.ToLower(narrow(s)) {
	case "":
		return byDefault, true
	case "yes", "y", "true", "1", "是", "有", "对", "√", "✓":
		return true, true
	case "no", "n", "false", "0", "否", "无", "不", "×", "x":
		return false, true
	}
	return byDefault, false
}

func parseLeader(s string) (Leader, bool) {
	switch strings.ToLower(narrow(s)) {
	case "", "no", "none", "否", "无":
		return LeaderNone, true
	case "main", "yes", "head", "leader", "正", "正职", "是", "负责人":
		return LeaderMain, true
	case "deputy", "vice", "副", "副职":
		return LeaderDeputy, true
	}
	return LeaderNone, false
}

func parseStatus(s string) (Status, bool) {
	switch strings.ToLower(narrow(s)) {
	case "":
		return "", true
	case "active", "在职", "正常", "试用", "正式":
		return StatusActive, true
	case "invited", "待入职":
		// The day of hiring decides; the word says no more than "not suspended".
		return StatusActive, true
	case "suspended", "停用", "停职", "冻结":
		return StatusSuspended, true
	case "left", "离职", "已离职", "退休":
		return StatusLeft, true
	}
	return "", false
}

// parseOrder reads a whole number; programs may have made 3.0 of it.
func parseOrder(s string) (int, bool) {
	s = strings.TrimSuffix(narrow(s), ".0")
	n, err := strconv.Atoi(s)
	return n, err == nil && n >= 0 && n <= maxOrder
}

// splitList cuts a list at semicolons, commas and their Chinese forms.
func splitList(s string) []string {
	var out []string
	for _, p := range strings.FieldsFunc(width.Fold.String(s), func(r rune) bool {
		return r == ';' || r == ',' || r == '、' || r == '､' || r == '\n'
	}) {
		if p = strings.TrimSpace(p); p != "" {
			out = append(out, p)
		}
	}
	return out
}

// parsePosts reads "unit:title[:main][:deputy]; ..." and answers the pieces that
// are none.
func parsePosts(s string) (posts []Post, bad []string) {
	for _, piece := range strings.FieldsFunc(foldSeparators(s), func(r rune) bool { return r == ';' || r == '\n' }) {
		if strings.TrimSpace(piece) == "" {
			continue
		}
		if p, ok := parsePost(piece); ok {
			posts = append(posts, p)
		} else {
			bad = append(bad, strings.TrimSpace(piece))
		}
	}
	return posts, bad
}

// foldSeparators makes the full-width colon and semicolon plain and leaves the
// titles between them as they are.
func foldSeparators(s string) string {
	return strings.NewReplacer("：", ":", "；", ";").Replace(s)
}

func parsePost(s string) (Post, bool) {
	parts := strings.Split(s, ":")
	p := Post{Unit: narrow(parts[0])}
	if p.Unit == "" {
		return p, false
	}
	for i, part := range parts[1:] {
		part = strings.TrimSpace(part)
		switch strings.ToLower(part) {
		case "main", "主", "主岗", "主任职":
			p.Main = true
		case "deputy", "副职", "副":
			p.Leader = LeaderDeputy
		case "leader", "head", "正职", "正", "负责人":
			p.Leader = LeaderMain
		default:
			if i != 0 {
				return p, false
			}
			p.Title = part
		}
	}
	return p, true
}

// cleanText tells whether a name or title can be shown in one line.
func cleanText(s string) bool {
	for _, r := range s {
		if unicode.IsControl(r) || r == utf8.RuneError || r == '\u2028' || r == '\u2029' {
			return false
		}
		// Marks that turn the writing direction could make a name look like another.
		if r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069' {
			return false
		}
	}
	return true
}
