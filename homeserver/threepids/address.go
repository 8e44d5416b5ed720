package threepids

import (
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// EmailAddress is the canonical form of an e-mail address: without anything around it, in small letters throughout, as
// nobody's mail depends on them, and with the domain in ASCII.
//
// Spec: appendices#e-mail, MSC2265
func EmailAddress(s string) (string, error) {
	bad := matrix.InvalidParam("this is not an e-mail address such as name@example.org")
	s = strings.TrimSpace(s)
	at := strings.LastIndexByte(s, '@')
	if at < 1 || at > 64 || len(s) > 254 || !utf8.ValidString(s) {
		return "", bad
	}
	local, domain := strings.ToLower(s[:at]), strings.TrimSuffix(s[at+1:], ".")
	for i := range len(local) {
		c := local[i]
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		dot := c == '.' && i > 0 && i < len(local)-1 && local[i-1] != '.'
		if !letter && !dot && strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) < 0 {
			return "", bad
		}
	}
	domain, err := idna.Lookup.ToASCII(domain)
	if err != nil || domain == "" || len(local)+1+len(domain) > 254 {
		return "", bad
	}
	if again, err := idna.Lookup.ToASCII(domain); err != nil || again != domain {
		return "", bad
	}
	for label := range strings.SplitSeq(domain, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return "", bad
		}
	}
	return local + "@" + strings.ToLower(domain), nil
}

// Phone is the canonical form of a telephone number as it is dialled in a country: the digits of the international
// number, without +. A number that begins with + or with the country's prefix for calls abroad need not be of it.
//
// Spec: appendices#pstn-phone-numbers, client-server-api#phone-number
func Phone(country, number string) (string, error) {
	bad := matrix.InvalidParam("this is not a telephone number")
	plan, known := countries[strings.ToUpper(country)]
	if !known {
		return "", matrix.InvalidParam("%q is not a country such as CN or GB", country)
	}
	digits, international, ok := digitsOf(number)
	if !ok {
		return "", bad
	}
	if !international {
		for _, prefix := range []string{plan.abroad, "00"} {
			if rest, ok := strings.CutPrefix(digits, prefix); ok {
				digits, international = rest, true
				break
			}
		}
	}
	if !international {
		digits = plan.code + plan.national(digits)
	}
	// Spec: ITU-T E.164, at most 15 digits; the shortest numbers that there are have 7 with the country.
	if len(digits) < 7 || len(digits) > 15 || digits[0] == '0' || !reachable(digits) {
		return "", bad
	}
	return digits, nil
}

// national takes away the digit that is dialled for calls inside a country only.
func (p plan) national(digits string) string {
	switch p.trunk {
	case "":
		return digits
	case "0":
		return strings.TrimPrefix(digits, "0")
	case "06":
		return strings.TrimPrefix(digits, "06")
	}
	// 1 and 8 may begin a number too: only one that would be too long has it.
	if len(digits) == 11 {
		return strings.TrimPrefix(digits, p.trunk)
	}
	return digits
}

// digitsOf reads a number as people write it.
func digitsOf(s string) (digits string, international, ok bool) {
	s = strings.TrimSpace(s)
	if len(s) > 64 {
		return "", false, false
	}
	s = strings.ReplaceAll(s, "(0)", "") // +44 (0)20 …
	var b strings.Builder
	for _, r := range s {
		switch {
		case r >= '0' && r <= '9':
			b.WriteRune(r)
		case r >= '０' && r <= '９':
			b.WriteRune('0' + r - '０')
		case (r == '+' || r == '＋') && b.Len() == 0 && !international:
			international = true
		case strings.ContainsRune(" -./()\u00a0\u2010\u2011\u2013\u3000（）－", r):
		default:
			return "", false, false
		}
	}
	return b.String(), international, b.Len() > 0
}

// reachable says whether a number begins with the code of a country.
func reachable(digits string) bool {
	for n := 1; n <= 3 && n < len(digits); n++ {
		if codes[digits[:n]] {
			return true
		}
	}
	return false
}

// Canonical is the canonical form of an address that a client says is canonical already.
func Canonical(medium, address string) (string, error) {
	switch medium {
	case Email:
		return EmailAddress(address)
	case MSISDN:
		digits, _, ok := digitsOf(address)
		if !ok || len(digits) < 7 || len(digits) > 15 || digits[0] == '0' || !reachable(digits) {
			return "", matrix.InvalidParam("this is not a telephone number with its country's code")
		}
		return digits, nil
	case "":
		return "", matrix.MissingParam("medium is needed")
	}
	return "", matrix.InvalidParam("the medium %q is not known", medium)
}
