package mxclient

import (
	"strings"
	"unicode/utf8"
)

// Identifier reports whether a text can be the ID of an event or a user. No database holds any other, and what people
// write into their events must not stop a transaction, which would come again for ever.
//
// Spec: appendices#common-identifier-format
func Identifier(s string) bool {
	return s != "" && len(s) <= 255 && utf8.ValidString(s) && !strings.ContainsRune(s, 0)
}
