package org

import (
	"strconv"
	"strings"
	"unicode"

	"github.com/mozillazg/go-pinyin"
)

// LoginRule tells what log-in names are made of.
type LoginRule string

// The rules for log-in names. They concern new people only: a name once given
// stays.
const (
	LoginJobNumber  LoginRule = "job_number"
	LoginPinyin     LoginRule = "pinyin"
	LoginEmailLocal LoginRule = "email_local"
)

// maxLocalpart keeps log-in names far below the 255 bytes a user ID may have.
const maxLocalpart = 64

// logins gives out log-in names, each once.
type logins struct {
	rule  LoginRule
	taken map[string]bool
}

// newLogins knows every name ever given in the tree, and the reserved ones.
func newLogins(rule LoginRule, cur *Tree, reserved []string) *logins {
	l := &logins{rule: rule, taken: make(map[string]bool, len(cur.people)+len(reserved))}
	for _, r := range reserved {
		l.taken[strings.ToLower(r)] = true
	}
	for _, p := range cur.people {
		l.taken[p.Localpart] = true
	}
	return l
}

// give finds the name of a new person: by the rule, by the job number where the
// rule gives nothing, with a number if it is taken.
func (l *logins) give(p *Person) string {
	var base string
	switch l.rule {
	case LoginPinyin:
		base = Pinyin(p.Name)
	case LoginEmailLocal:
		local, _, _ := strings.Cut(p.Email, "@")
		base = localpartOf(local)
	}
	if base == "" {
		base = localpartOf(p.ID)
	}
	name := base
	for n := 2; l.taken[name]; n++ {
		name = base + strconv.Itoa(n)
		// "a1" and 1 must not read as "a11", the eleventh of "a".
		if last := base[len(base)-1]; last >= '0' && last <= '9' {
			name = base + "-" + strconv.Itoa(n)
		}
	}
	l.taken[name] = true
	return name
}

// localpartOf keeps what a user ID may hold.
// Spec: appendices#user-identifiers
func localpartOf(s string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(s) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '.', r == '-':
			b.WriteRune(r)
		case r == '_':
			// An underscore in front is how application services mark their own.
			if b.Len() > 0 {
				b.WriteRune(r)
			}
		case r == ' ', r == '·', r == '+', r == '\'':
			b.WriteByte('.')
		}
		if b.Len() >= maxLocalpart {
			break
		}
	}
	out := strings.Trim(b.String(), ".-_")
	for strings.Contains(out, "..") {
		out = strings.ReplaceAll(out, "..", ".")
	}
	return out
}

// Pinyin writes a name in plain Latin letters without tones: 张伟 is zhangwei,
// "李 David" is li.david. Surnames are read as surnames.
func Pinyin(name string) string {
	name = strings.TrimSpace(name)
	var b strings.Builder
	rest := []rune(name)
	if reading, n := surname(rest); n > 0 {
		b.WriteString(reading)
		rest = rest[n:]
	}
	args := pinyin.NewArgs()
	for _, r := range rest {
		if unicode.Is(unicode.Han, r) {
			if readings := pinyin.SinglePinyin(r, args); len(readings) > 0 {
				b.WriteString(readings[0])
			}
			continue
		}
		b.WriteRune(r)
	}
	return localpartOf(b.String())
}

// surname reads a surname at the head of a Chinese name where it is not read as
// the character usually is.
func surname(name []rune) (reading string, length int) {
	if len(name) < 2 || !unicode.Is(unicode.Han, name[0]) || !unicode.Is(unicode.Han, name[1]) {
		return "", 0
	}
	if len(name) > 2 {
		switch string(name[:2]) {
		case "尉迟":
			return "yuchi", 2
		case "万俟":
			return "moqi", 2
		case "长孙":
			return "zhangsun", 2
		case "单于":
			return "chanyu", 2
		case "澹台":
			return "tantai", 2
		}
	}
	readings := map[rune]string{
		'单': "shan", '曾': "zeng", '解': "xie", '仇': "qiu", '区': "ou", '查': "zha", '任': "ren", '盖': "gai",
		'朴': "piao", '覃': "qin", '翟': "zhai", '乐': "yue", '缪': "miao", '员': "yun", '冼': "xian", '繁': "po",
		'华': "hua", '召': "shao", '秘': "bi", '折': "she", '黑': "he", '重': "chong", '都': "du", '种': "chong",
		'尹': "yin", '沈': "shen", '石': "shi", '俞': "yu", '贾': "jia", '柏': "bai", '葛': "ge", '宁': "ning",
		'车': "che", '晁': "chao", '卜': "bu", '谌': "chen", '隗': "wei", '不': "fou", '燕': "yan", '过': "guo",
		'洗': "xian", '祭': "zhai", '纪': "ji", '哈': "ha", '吕': "lv", '洪': "hong", '夏': "xia", '那': "na",
	}
	if r := readings[name[0]]; r != "" {
		return r, 1
	}
	return "", 0
}
