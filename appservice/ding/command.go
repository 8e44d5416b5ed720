package ding

import (
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/net/html"
)

// command is what somebody wrote after "!ding".
type command struct {
	verb   string // "send", "help", "recall", "lang"
	arg    string // ID of a recall, name of a language
	all    bool
	people []string
	units  []string
	at     time.Time // zero: now
	urgent bool
	text   string
}

// Problems of commands, told with the usage.
const (
	badTime   = "time"
	badTarget = "target"
	noText    = "text"
	noTarget  = "nobody"
)

// isCommand reports whether a message is meant for this package, and gives what follows the name.
func isCommand(text string) (name, rest string, ok bool) {
	text = strings.TrimSpace(text)
	after, found := strings.CutPrefix(text, "!")
	if !found {
		if after, found = strings.CutPrefix(text, "！"); !found {
			return "", "", false
		}
	}
	end := strings.IndexFunc(after, unicode.IsSpace)
	if end < 0 {
		end = len(after)
	}
	switch name = strings.ToLower(after[:end]); name {
	case "ding", "lang":
		return name, strings.TrimSpace(after[end:]), true
	}
	return "", "", false
}

// parseCommand reads a command. isReply: without receivers it is about the unread of the message replied to. problem is
// one of the constants above, "" if all is well.
func parseCommand(name, rest string, isReply bool, now time.Time) (c command, problem string) {
	if name == "lang" {
		return command{verb: "lang", arg: rest}, ""
	}
	c.verb = "send"
	first, after := token(rest)
	switch strings.ToLower(first) {
	case "help", "?", "？", "帮助":
		return command{verb: "help"}, ""
	case "":
		if !isReply {
			return command{verb: "help"}, ""
		}
	case "recall", "撤回":
		id, more := token(after)
		if more != "" {
			return c, badTarget
		}
		return command{verb: "recall", arg: id}, ""
	}
	rest, problem = c.options(rest, isReply, now)
	if problem != "" {
		return c, problem
	}
	c.text = rest
	switch targets := c.all || len(c.people)+len(c.units) > 0; {
	case !targets && !isReply:
		return c, noTarget
	case targets && c.text == "" && !isReply:
		return c, noText
	}
	return c, ""
}

// options reads receivers, time and urgency from the head of a command and returns the text after them.
func (c *command) options(rest string, isReply bool, now time.Time) (text, problem string) {
	for rest != "" {
		head, after := token(rest)
		low := strings.ToLower(head)
		switch {
		case low == "all" || low == "everybody" || low == "everyone" || low == "全员" || low == "所有人" || low == "全体":
			if isReply || c.all || len(c.people)+len(c.units) > 0 {
				return rest, "" // a word of the text
			}
			c.all = true
		case low == "@all" || low == "@所有人" || low == "@全员" || low == "@room":
			c.all = true
		case strings.HasPrefix(head, "@"):
			names := people(head)
			if len(names) == 0 {
				return rest, badTarget
			}
			c.people = append(c.people, names...)
		case low == "at" || low == "定时":
			at, more, ok := timeOf(after, now)
			if !ok {
				return rest, badTime
			}
			c.at, after = at, more
		case low == "in":
			d, more, ok := spanOf(after)
			if !ok {
				return rest, ""
			}
			c.at, after = now.Add(d), more
		case low == "urgent" || low == "紧急":
			if c.urgent {
				return rest, ""
			}
			c.urgent = true
		default:
			unit, more, is := unitOf(rest)
			if !is {
				return rest, ""
			}
			if unit == "" {
				return rest, badTarget
			}
			c.units = append(c.units, unit)
			after = more
		}
		rest = after
	}
	return "", ""
}

// token cuts the first word off.
func token(s string) (head, rest string) {
	s = strings.TrimLeftFunc(s, unicode.IsSpace)
	end := strings.IndexFunc(s, unicode.IsSpace)
	if end < 0 {
		return s, ""
	}
	return s[:end], strings.TrimLeftFunc(s[end:], unicode.IsSpace)
}

// people reads "@a", "@a、@b" and "@a:server," as names without the first sign, but user IDs whole.
func people(word string) (names []string) {
	for _, n := range strings.FieldsFunc(word, func(r rune) bool { return strings.ContainsRune("、，,;；", r) }) {
		n = strings.TrimRight(n, ":：")
		name := strings.TrimPrefix(n, "@")
		if name == "" {
			continue
		}
		if strings.HasPrefix(n, "@") && strings.Contains(name, ":") {
			name = n
		}
		names = append(names, name)
	}
	return names
}

// unitOf reads unit:name, with the name in quotes if it has spaces.
func unitOf(s string) (unit, rest string, ok bool) {
	for _, prefix := range []string{"unit:", "unit：", "dept:", "dept：", "部门:", "部门：", "单位:", "单位："} {
		if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
			continue
		}
		s = s[len(prefix):]
		for _, q := range [][2]string{{`"`, `"`}, {"“", "”"}, {"「", "」"}} {
			if inner, found := strings.CutPrefix(s, q[0]); found {
				unit, rest, found = strings.Cut(inner, q[1])
				if !found {
					return "", s, true
				}
				return strings.TrimSpace(unit), strings.TrimSpace(rest), true
			}
		}
		unit, rest = token(s)
		if strings.IndexFunc(s, unicode.IsSpace) == 0 {
			return "", s, true // nothing right after the colon
		}
		return strings.TrimRight(unit, ",，、"), rest, true
	}
	return "", s, false
}

// timeOf reads a time of day, perhaps after a date or a word for a day. A time that has passed today is tomorrow's.
func timeOf(s string, now time.Time) (at time.Time, rest string, ok bool) {
	first, after := token(s)
	day, hasDay := dayOf(first, now)
	if hasDay {
		first, after = token(after)
	}
	first = strings.NewReplacer("：", ":", "点", ":").Replace(first)
	if strings.HasSuffix(first, ":") {
		first += "00"
	}
	t, err := time.Parse("15:4", strings.TrimSuffix(first, "分"))
	if err != nil {
		return at, s, false
	}
	at = time.Date(day.Year(), day.Month(), day.Day(), t.Hour(), t.Minute(), 0, 0, now.Location())
	if !hasDay && !at.After(now) {
		at = at.AddDate(0, 0, 1)
	}
	return at, after, at.After(now)
}

func dayOf(word string, now time.Time) (time.Time, bool) {
	switch strings.ToLower(word) {
	case "today", "今天", "今日":
		return now, true
	case "tomorrow", "明天", "明日":
		return now.AddDate(0, 0, 1), true
	case "后天":
		return now.AddDate(0, 0, 2), true
	}
	if t, err := time.ParseInLocation("2006-1-2", word, now.Location()); err == nil {
		return t, true
	}
	if t, err := time.ParseInLocation("2006-1-2", strconv.Itoa(now.Year())+"-"+word, now.Location()); err == nil {
		if t.AddDate(0, 0, 1).Before(now) {
			t = t.AddDate(1, 0, 0)
		}
		return t, true
	}
	return now, false
}

// spanOf reads 10m, 2h, 1h30m, 10分钟, 2小时.
func spanOf(s string) (d time.Duration, rest string, ok bool) {
	word, rest := token(s)
	word = strings.NewReplacer("小时", "h", "分钟", "m", "分", "m", "min", "m").Replace(strings.ToLower(word))
	d, err := time.ParseDuration(word)
	if err != nil || d < time.Minute || d > maxAhead {
		return 0, s, false
	}
	return d, rest, true
}

// plainText is the text of a message in which people named by links stand as user IDs; ok is false if formatted names
// nobody, so that the plain body does.
func plainText(formatted string) (text string, ok bool) {
	if !strings.Contains(formatted, "matrix.to/#/") || len(formatted) > 64<<10 {
		return "", false
	}
	var b strings.Builder
	z := html.NewTokenizer(strings.NewReader(formatted))
	quoted, linked := 0, false
	for {
		switch z.Next() {
		case html.ErrorToken:
			return strings.TrimSpace(b.String()), ok
		case html.TextToken:
			if quoted == 0 && !linked {
				b.Write(z.Text())
			}
		case html.StartTagToken, html.SelfClosingTagToken:
			tok := z.Token()
			switch tok.Data {
			case "mx-reply":
				quoted++
			case "br", "p", "div":
				b.WriteByte('\n')
			case "a":
				if user := linkedUser(&tok); user != "" && quoted == 0 {
					b.WriteString(" " + user + " ")
					linked, ok = true, true
				}
			}
		case html.EndTagToken:
			switch z.Token().Data {
			case "mx-reply":
				quoted = max(quoted-1, 0)
			case "a":
				linked = false
			}
		}
	}
}

// linkedUser is the user a link of matrix.to points to.
func linkedUser(tok *html.Token) string {
	for _, a := range tok.Attr {
		if a.Key != "href" {
			continue
		}
		_, target, found := strings.Cut(a.Val, "matrix.to/#/")
		if !found {
			return ""
		}
		target, _, _ = strings.Cut(target, "?")
		target = strings.NewReplacer("%40", "@", "%3A", ":", "%3a", ":").Replace(target)
		if strings.HasPrefix(target, "@") && strings.Contains(target, ":") && strings.IndexFunc(target, unicode.IsSpace) < 0 {
			return target
		}
	}
	return ""
}
