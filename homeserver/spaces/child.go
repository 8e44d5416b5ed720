package spaces

import (
	"encoding/json"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// mostVia is how many of the servers that a child names are asked.
const mostVia = 5

// childContent is the content of a child event, byte for byte.
type childContent []byte

// MarshalJSON writes it as it is.
func (c childContent) MarshalJSON() ([]byte, error) { return json.RawMessage(c).MarshalJSON() }

// UnmarshalJSON keeps it as it is.
func (c *childContent) UnmarshalJSON(b []byte) error {
	*c = append((*c)[:0], b...)
	return nil
}

// valid reports whether the event makes a room a child.
//
// Spec: client-server-api#mspacechild
func (c Child) valid() bool {
	if _, err := matrix.ParseRoomID(string(c.Key)); err != nil || c.Type != childType {
		return false
	}
	via := gjson.GetBytes(c.Content, "via")
	if !via.IsArray() {
		return false
	}
	list := via.Array()
	for _, v := range list {
		if v.Type != gjson.String {
			return false
		}
	}
	return len(list) > 0
}

// via are the servers through which the child may be reached.
func (c childContent) via() (list []matrix.ServerName) {
	for _, v := range gjson.GetBytes(c, "via").Array() {
		if matrix.ValidServerName(v.Str) && len(list) < mostVia {
			list = append(list, matrix.ServerName(v.Str))
		}
	}
	return list
}

func (c childContent) suggested() bool { return gjson.GetBytes(c, "suggested").Type == gjson.True }

// order is the child's order, "" if it has no valid one.
func (c childContent) order() string {
	v := gjson.GetBytes(c, "order")
	if v.Type != gjson.String || len(v.Str) > 50 {
		return ""
	}
	for i := range len(v.Str) {
		if v.Str[i] < 0x20 || v.Str[i] > 0x7e {
			return ""
		}
	}
	return v.Str
}
