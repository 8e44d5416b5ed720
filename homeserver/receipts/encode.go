package receipts

import (
	"slices"
	"strconv"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Encode writes receipts as contents of m.receipt events. The shape has room
// for one receipt of a type for each user and event: further ones go into
// another content.
//
// Spec: client-server-api#mreceipt
func Encode(list []*Receipt) [][]byte {
	var out [][]byte
	for len(list) > 0 {
		type key struct {
			event matrix.EventID
			typ   string
			user  matrix.UserID
		}
		var rest []*Receipt
		seen := make(map[key]struct{}, len(list))
		now := make([]*Receipt, 0, len(list))
		for _, x := range list {
			k := key{x.Event, x.Type, x.User}
			if _, ok := seen[k]; ok {
				rest = append(rest, x)
				continue
			}
			seen[k] = struct{}{}
			now = append(now, x)
		}
		out = append(out, encodeOne(now))
		list = rest
	}
	return out
}

// encodeOne sorts by event and type, then writes the three levels.
func encodeOne(list []*Receipt) []byte {
	slices.SortStableFunc(list, func(a, b *Receipt) int {
		if c := strings.Compare(string(a.Event), string(b.Event)); c != 0 {
			return c
		}
		return strings.Compare(a.Type, b.Type)
	})
	b := make([]byte, 0, 64+80*len(list))
	b = append(b, '{')
	for i, x := range list {
		switch newEvent := i == 0 || list[i-1].Event != x.Event; {
		case newEvent:
			if i > 0 {
				b = append(b, "}},"...)
			}
			b = matrix.AppendJSONString(b, string(x.Event))
			b = append(b, ":{"...)
			b = matrix.AppendJSONString(b, x.Type)
			b = append(b, ":{"...)
		case list[i-1].Type != x.Type:
			b = append(b, "},"...)
			b = matrix.AppendJSONString(b, x.Type)
			b = append(b, ":{"...)
		default:
			b = append(b, ',')
		}
		b = matrix.AppendJSONString(b, string(x.User))
		b = append(b, `:{"ts":`...)
		b = strconv.AppendInt(b, x.TS, 10)
		if x.Thread != "" {
			b = append(b, `,"thread_id":`...)
			b = matrix.AppendJSONString(b, x.Thread)
		}
		b = append(b, '}')
	}
	if len(list) > 0 {
		b = append(b, "}}"...)
	}
	return append(b, '}')
}
