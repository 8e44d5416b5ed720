package ding

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.FixedZone("CST", 8*3600))

func TestParseCommand(t *testing.T) {
	at := func(day, hour, minute int) time.Time {
		return time.Date(2026, 11, day, hour, minute, 0, 0, noon.Location())
	}
	for _, c := range []struct {
		text    string
		reply   bool
		want    command
		problem string
	}{
		{text: "!ding", want: command{verb: "help"}},
		{text: "！ding 帮助", want: command{verb: "help"}},
		{text: "!ding", reply: true, want: command{verb: "send"}},
		{text: "!ding please read", reply: true, want: command{verb: "send", text: "please read"}},
		{text: "!ding all good", reply: true, want: command{verb: "send", text: "all good"}},
		{text: "!DING all 放假\n三天", want: command{verb: "send", all: true, text: "放假\n三天"}},
		{text: "!ding 全员 x", want: command{verb: "send", all: true, text: "x"}},
		{text: "!ding @张三 all good", want: command{verb: "send", people: []string{"张三"}, text: "all good"}},
		{text: "!ding @张三、@li:c.cn, @1001: hello  there", want: command{verb: "send", people: []string{"张三", "@li:c.cn", "1001"}, text: "hello  there"}},
		{text: "!ding unit:技术部 x", want: command{verb: "send", units: []string{"技术部"}, text: "x"}},
		{text: "!ding 部门：“研发 中心” UNIT:a @b x", want: command{verb: "send", units: []string{"研发 中心", "a"}, people: []string{"b"}, text: "x"}},
		{text: `!ding unit:"a b" x`, want: command{verb: "send", units: []string{"a b"}, text: "x"}},
		{text: `!ding unit:"a b x`, problem: badTarget},
		{text: `!ding unit: x`, problem: badTarget},
		{text: "!ding @ x", problem: badTarget},
		{text: "!ding @b", problem: noText},
		{text: "!ding @b", reply: true, want: command{verb: "send", people: []string{"b"}}},
		{text: "!ding hello", problem: noTarget},
		{text: "!ding recall", want: command{verb: "recall"}},
		{text: "!ding 撤回 abc", want: command{verb: "recall", arg: "abc"}},
		{text: "!ding recall abc def", problem: badTarget},
		{text: "!ding urgent @b x", want: command{verb: "send", urgent: true, people: []string{"b"}, text: "x"}},
		{text: "!ding at 18:30 @b x", want: command{verb: "send", at: at(24, 18, 30), people: []string{"b"}, text: "x"}},
		{text: "!ding @b at 08:00 x", want: command{verb: "send", at: at(25, 8, 0), people: []string{"b"}, text: "x"}},
		{text: "!ding at 明天 8：05 @b x", want: command{verb: "send", at: at(25, 8, 5), people: []string{"b"}, text: "x"}},
		{text: "!ding 定时 后天 9点 @b x", want: command{verb: "send", at: at(26, 9, 0), people: []string{"b"}, text: "x"}},
		{text: "!ding at 2026-11-30 09:00 @b x", want: command{verb: "send", at: at(30, 9, 0), people: []string{"b"}, text: "x"}},
		{text: "!ding at 11-30 9:00 @b x", want: command{verb: "send", at: at(30, 9, 0), people: []string{"b"}, text: "x"}},
		{text: "!ding at today 11:00 @b x", problem: badTime},
		{text: "!ding at 25:00 @b x", problem: badTime},
		{text: "!ding in 90m @b x", want: command{verb: "send", at: at(24, 13, 30), people: []string{"b"}, text: "x"}},
		{text: "!ding in 2小时 @b x", want: command{verb: "send", at: at(24, 14, 0), people: []string{"b"}, text: "x"}},
		{text: "!ding @b in case of rain", want: command{verb: "send", people: []string{"b"}, text: "in case of rain"}},
		{text: "!lang en", want: command{verb: "lang", arg: "en"}},
	} {
		name, rest, ok := isCommand(c.text)
		if !ok {
			t.Errorf("%q is no command", c.text)
			continue
		}
		got, problem := parseCommand(name, rest, c.reply, noon)
		if problem != c.problem {
			t.Errorf("%q: problem %q, want %q", c.text, problem, c.problem)
		}
		if problem == "" && (got.verb != c.want.verb || got.arg != c.want.arg || got.all != c.want.all || got.urgent != c.want.urgent || got.text != c.want.text ||
			!got.at.Equal(c.want.at) || strings.Join(got.people, "|") != strings.Join(c.want.people, "|") || strings.Join(got.units, "|") != strings.Join(c.want.units, "|")) {
			t.Errorf("%q: %+v, want %+v", c.text, got, c.want)
		}
	}
	for _, text := range []string{"", "!", "!dingo x", "ding x", "!!ding", "hello !ding"} {
		if _, _, ok := isCommand(text); ok {
			t.Errorf("%q is a command", text)
		}
	}
}

func TestPlainText(t *testing.T) {
	for _, c := range []struct{ html, want string }{
		{`!ding <a href="https://matrix.to/#/@zhang:c.cn">张三</a> 你好`, "!ding  @zhang:c.cn  你好"},
		{`<mx-reply><blockquote><a href="https://matrix.to/#/@x:c.cn">x</a> old</blockquote></mx-reply>!ding <a href="https://matrix.to/#/%40li%3Ac.cn?via=c.cn">李四</a>: a&lt;b<br>c`, "!ding  @li:c.cn : a<b\nc"},
	} {
		got, ok := plainText(c.html)
		if !ok || got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	for _, html := range []string{"", "!ding <b>x</b>", `<a href="https://matrix.to/#/!room:c.cn">room</a>`, `<mx-reply><a href="https://matrix.to/#/@x:c.cn">x</a></mx-reply>!ding`} {
		if got, ok := plainText(html); ok {
			t.Errorf("%q names somebody: %q", html, got)
		}
	}
}

func TestConfirmWords(t *testing.T) {
	d := &Dings{words: confirmWords([]string{"Copy that!"}), reactions: confirmReactions(nil)}
	for _, w := range []string{"收到", "收到！", " ok ", "ＯＫ", "Ok.", "好的~", "copy  THAT", "👍🏿", "✅", "Roger!", "1"} {
		if !d.isConfirmation(w) {
			t.Errorf("%q confirms", w)
		}
	}
	for _, w := range []string{"", "没收到", "收到了吗", "not ok", "...", "🎉", strings.Repeat("ok ", 100)} {
		if d.isConfirmation(w) {
			t.Errorf("%q does not confirm", w)
		}
	}
}

func FuzzCommand(f *testing.F) {
	for _, s := range []string{
		"!ding", "！ding all x", "!ding @a、@b:c.d, text", "!ding unit:\"a b\" x", "!ding 部门：“研发” 定时 明天 9点 @b x", "!ding in 1h30m @b", "!ding at 2-29 9:00",
		"!lang en", "!ding recall x", "!ding urgent 紧急 all all", "!ding at  9:", "!ding @", "!ding unit:“",
	} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, s string, reply bool) {
		plainText(s)
		plainText(`<a href="https://matrix.to/#/` + s)
		name, rest, ok := isCommand(s)
		if !ok {
			return
		}
		c, problem := parseCommand(name, rest, reply, noon)
		if len(c.text) > len(s) || utf8.ValidString(s) && !utf8.ValidString(c.text) {
			t.Errorf("%q became %q", s, c.text)
		}
		if problem != "" {
			return
		}
		if !c.at.IsZero() && (!c.at.After(noon) || c.at.After(noon.AddDate(9999, 0, 0))) {
			t.Errorf("%q is to be sent at %s", s, c.at)
		}
		targets := c.all || len(c.people)+len(c.units) > 0
		if c.verb == "send" && !reply && (!targets || c.text == "") {
			t.Errorf("%q lacks receivers or text: %+v", s, c)
		}
		for _, p := range append(c.people, c.units...) {
			if p == "" {
				t.Errorf("%q names nobody: %+v", s, c)
			}
		}
	})
}
