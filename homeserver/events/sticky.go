package events

import (
	"bytes"
	"strconv"
	"time"

	"github.com/tidwall/gjson"
)

// MaxSticky is how long an event can be sticky at most, in ms.
// Spec: MSC4354
const MaxSticky = 3_600_000

// stickyField is where a PDU says that it is sticky; the proposal's name for it
// until it is part of the specification.
const stickyField = "msc4354_sticky"

var stickyKey = []byte(`"` + stickyField + `"`)

// stickiness reads how long an event is sticky, in ms; 0 if it is not.
func stickiness(pdu []byte) int64 {
	if !bytes.Contains(pdu, stickyKey) {
		return 0
	}
	v := gjson.GetBytes(pdu, stickyField+".duration_ms")
	if v.Type != gjson.Number || v.Num != float64(int64(v.Num)) || v.Num < 0 {
		return 0
	}
	return min(int64(v.Num), MaxSticky)
}

// StickyLeft is how many ms of an event's stickiness are left, 0 for none. A time
// of sending in the future gives no more than the whole of it.
func (e *Event) StickyLeft(now time.Time) int64 {
	if e.Sticky == 0 || now.IsZero() {
		return 0
	}
	return max(min(e.TS+e.Sticky-now.UnixMilli(), e.Sticky), 0)
}

// appendSticky writes the field of a PDU.
func appendSticky(b []byte, ms *int64) []byte {
	if ms == nil {
		return b
	}
	b = append(append(append(b, `,`...), stickyKey...), `:{"duration_ms":`...)
	return append(strconv.AppendInt(b, *ms, 10), '}')
}
