package ding

import (
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// confirmWords are the replies that confirm.
func confirmWords(more []string) map[string]bool {
	words := map[string]bool{}
	for _, w := range append([]string{
		"收到", "已收到", "收到了", "好", "好的", "好滴", "行", "可以", "知道了", "已知", "已知悉", "知悉", "了解", "明白", "确认", "已确认", "遵命", "马上", "1",
		"ok", "okay", "okey", "k", "confirm", "confirmed", "received", "roger", "got it", "noted", "understood", "ack", "acknowledged", "yes",
	}, more...) {
		words[plainWord(w)] = true
	}
	delete(words, "")
	return words
}

// confirmReactions are the reactions that confirm.
func confirmReactions(given []string) map[string]bool {
	if len(given) == 0 {
		given = []string{"✅", "☑", "✔", "👍", "👌", "🆗", "OK", "收到", "好的"}
	}
	set := map[string]bool{}
	for _, r := range given {
		set[plainReaction(r)] = true
	}
	delete(set, "")
	return set
}

// plainWord makes "ＯＫ！", "Ok." and " ok " one word.
func plainWord(s string) string {
	s = strings.ToLower(norm.NFKC.String(strings.TrimSpace(s)))
	s = strings.TrimFunc(s, func(r rune) bool { return unicode.IsPunct(r) || unicode.IsSymbol(r) || unicode.IsSpace(r) })
	return strings.Join(strings.Fields(s), " ")
}

// plainReaction strips what a keyboard adds to an emoji: variation selectors and tones of skin.
func plainReaction(s string) string {
	return strings.Map(func(r rune) rune {
		if r == 0xfe0f || r == 0xfe0e || r >= 0x1f3fb && r <= 0x1f3ff {
			return -1
		}
		return unicode.ToLower(r)
	}, strings.TrimSpace(s))
}

// isConfirmation reports whether a text is a word that confirms, or one of the reactions written as a message.
func (d *Dings) isConfirmation(text string) bool {
	if len(text) > 64 {
		return false
	}
	return d.words[plainWord(text)] || d.reactions[plainReaction(text)]
}
