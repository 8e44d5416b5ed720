package events

import (
	"bytes"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// RelationshipPrefix is before the type of a relation that stands in a field of its
// own, m.relationship, where RelType has it: it is another thing than m.relates_to.
// Spec: MSC2836
const RelationshipPrefix = "org.matrix.msc2836:"

var relationshipKey = []byte(`"m.relationship"`)

// relationship reads the field.
func relationship(pdu []byte) (relType string, to matrix.EventID) {
	if !bytes.Contains(pdu, relationshipKey) {
		return "", ""
	}
	rel := gjson.GetBytes(pdu, `content.m\.relationship`)
	t, id := rel.Get("rel_type"), rel.Get("event_id")
	if !rel.IsObject() || t.Type != gjson.String || id.Type != gjson.String || !isName(RelationshipPrefix+t.Str) || !isName(id.Str) {
		return "", ""
	}
	return RelationshipPrefix + t.Str, matrix.EventID(id.Str)
}

// IsRelationship reports whether the event relates to another by m.relationship.
func (e *Event) IsRelationship() bool { return strings.HasPrefix(e.RelType, RelationshipPrefix) }
