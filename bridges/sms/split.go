package sms

import (
	"strings"
	"unicode/utf16"
)

// The lengths of a part: alone, and as one of several, whose header takes room.
// Source: 3GPP TS 23.040, 9.2.3.24.1.
const (
	oneBasic, manyBasic = 160, 153
	oneWide, manyWide   = 70, 67
)

// basic and extended are the characters of the default alphabet; those of the second take the place of two.
// Source: 3GPP TS 23.038, 6.2.1.
const (
	basic = "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?" +
		"¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
	extended = "\f^{}\\[~]|€"
)

// Units is the length of a text in UTF-16 units.
func Units(s string) (n int) {
	for _, r := range s {
		n += utf16.RuneLen(r)
	}
	return n
}

// Split cuts a text into the parts in which it is sent. wide says that they are UCS-2, as every Chinese text is.
func Split(text string) (parts []string, wide bool) {
	width := func(r rune) int {
		switch {
		case strings.ContainsRune(basic, r):
			return 1
		case strings.ContainsRune(extended, r):
			return 2
		}
		return 0
	}
	for _, r := range text {
		if width(r) == 0 {
			wide, width = true, utf16.RuneLen
			break
		}
	}
	one, many := oneBasic, manyBasic
	if wide {
		one, many = oneWide, manyWide
	}
	total := 0
	for _, r := range text {
		total += max(width(r), 1) // what is no character counts as its replacement
	}
	if total <= one {
		return []string{text}, wide
	}
	start, used := 0, 0
	for i, r := range text {
		w := max(width(r), 1)
		if used+w > many {
			parts, start, used = append(parts, text[start:i]), i, 0
		}
		used += w
	}
	return append(parts, text[start:]), wide
}
