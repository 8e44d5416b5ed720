package federation

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/presence"
)

// edu is an EDU as it stands in a transaction.
type edu struct {
	Type    string          `json:"edu_type"`
	Content json.RawMessage `json:"content"`
}

// newEDU encodes an EDU.
func newEDU(typ string, content any) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	// The contents given are maps and structs of this package, which always encode.
	_ = enc.Encode(struct {
		Type    string `json:"edu_type"`
		Content any    `json:"content"`
	}{typ, content})
	return bytes.TrimSpace(buf.Bytes())
}

// receiptEntry is one user's receipt in an m.receipt EDU.
type receiptEntry struct {
	Data struct {
		TS     int64  `json:"ts"`
		Thread string `json:"thread_id,omitempty"`
	} `json:"data"`
	EventIDs []matrix.EventID `json:"event_ids"`
}

// receiptContent is the content of an m.receipt EDU. Spec: server-server-api#receipts
type receiptContent map[matrix.RoomID]map[string]map[matrix.UserID]receiptEntry

const receiptPrefix = `{"edu_type":"m.receipt",`

// receiptMerge makes few EDUs of many receipts: an EDU has place for one receipt of a user in a room, so further
// threads of the same user go into the next.
type receiptMerge struct{ layers []receiptContent }

// add takes an EDU in; false if it is none of receipts.
func (m *receiptMerge) add(raw []byte) bool {
	if !bytes.HasPrefix(raw, []byte(receiptPrefix)) {
		return false
	}
	var doc struct {
		Content receiptContent `json:"content"`
	}
	if json.Unmarshal(raw, &doc) != nil {
		return false
	}
	for room, types := range doc.Content {
		for typ, users := range types {
			for user, r := range users {
				m.put(room, typ, user, r)
			}
		}
	}
	return true
}

func (m *receiptMerge) put(room matrix.RoomID, typ string, user matrix.UserID, r receiptEntry) {
	for _, c := range m.layers {
		old, there := c[room][typ][user]
		if there && old.Data.Thread != r.Data.Thread {
			continue
		}
		c.set(room, typ, user, r)
		return
	}
	c := receiptContent{}
	c.set(room, typ, user, r)
	m.layers = append(m.layers, c)
}

func (c receiptContent) set(room matrix.RoomID, typ string, user matrix.UserID, r receiptEntry) {
	if c[room] == nil {
		c[room] = map[string]map[matrix.UserID]receiptEntry{}
	}
	if c[room][typ] == nil {
		c[room][typ] = map[matrix.UserID]receiptEntry{}
	}
	c[room][typ][user] = r
}

// edus encodes what was merged.
func (m *receiptMerge) edus() []json.RawMessage {
	var out []json.RawMessage
	for _, c := range m.layers {
		out = append(out, newEDU("m.receipt", c))
	}
	return out
}

// volatile is what is worth sending only now: who types, and who is there.
type volatile struct {
	typing   map[typingKey]bool
	presence map[matrix.UserID]presence.EDU
}

type typingKey struct {
	room matrix.RoomID
	user matrix.UserID
}

const (
	maxTyping   = 8
	maxPresence = 500
)

func (v *volatile) empty() bool { return len(v.typing) == 0 && len(v.presence) == 0 }

func (v *volatile) clear() { v.typing, v.presence = nil, nil }

func (v *volatile) addTyping(room matrix.RoomID, user matrix.UserID, on bool) {
	if v.typing == nil {
		v.typing = map[typingKey]bool{}
	}
	v.typing[typingKey{room, user}] = on
}

func (v *volatile) addPresence(p presence.EDU) {
	if v.presence == nil {
		v.presence = map[matrix.UserID]presence.EDU{}
	}
	v.presence[p.User] = p
}

// take removes some EDUs; nil if there are none.
func (v *volatile) take(_ matrix.ServerName) []json.RawMessage {
	var out []json.RawMessage
	keys := slices.SortedFunc(maps.Keys(v.typing), func(a, b typingKey) int {
		return strings.Compare(string(a.room)+" "+string(a.user), string(b.room)+" "+string(b.user))
	})
	for _, k := range keys[:min(len(keys), maxTyping)] {
		out = append(out, newEDU("m.typing", map[string]any{"room_id": k.room, "user_id": k.user, "typing": v.typing[k]}))
		delete(v.typing, k)
	}
	if len(v.presence) > 0 {
		var push []presence.EDU
		for u, p := range v.presence {
			push = append(push, p)
			delete(v.presence, u)
			if len(push) == maxPresence {
				break
			}
		}
		out = append(out, newEDU("m.presence", map[string]any{"push": push}))
	}
	return out
}
