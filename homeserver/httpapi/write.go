package httpapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

var (
	jsonType = []string{"application/json"}
	noStore  = []string{"no-store"}
	empty    = []byte("{}")
)

// encoder is a JSON encoder with its buffer. Sync responses are encoded to bytes by their own package, so the
// buffers here stay small; one that grew large is not kept.
type encoder struct {
	buf bytes.Buffer
	enc *json.Encoder
}

var encoders = sync.Pool{New: func() any {
	e := new(encoder)
	e.enc = json.NewEncoder(&e.buf)
	e.enc.SetEscapeHTML(false)
	return e
}}

const keptBuffer = 64 << 10

// writeValue writes what a handler returned. Nothing is written when it fails.
func writeValue(w http.ResponseWriter, v any) error {
	status := http.StatusOK
	switch s := v.(type) {
	case done:
		return nil
	case Status:
		status, v = s.Code, s.Body
	case *Status:
		status, v = s.Code, s.Body
	}
	switch b := v.(type) {
	case nil:
		writeBytes(w, status, empty)
		return nil
	case Raw:
		writeBytes(w, status, b)
		return nil
	case json.RawMessage:
		writeBytes(w, status, b)
		return nil
	}
	e, _ := encoders.Get().(*encoder)
	defer func() {
		if e.buf.Cap() <= keptBuffer {
			e.buf.Reset()
			encoders.Put(e)
		}
	}()
	if err := e.enc.Encode(v); err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	b := e.buf.Bytes()
	writeBytes(w, status, b[:len(b)-1]) // without the encoder's line end
	return nil
}

func writeBytes(w http.ResponseWriter, status int, b []byte) {
	h := w.Header()
	if h["Content-Type"] == nil {
		h["Content-Type"] = jsonType
	}
	if h["Cache-Control"] == nil {
		h["Cache-Control"] = noStore
	}
	h["Content-Length"] = []string{strconv.Itoa(len(b))}
	w.WriteHeader(status)
	_, _ = w.Write(b) // the client may have gone; nobody is left to tell
}

// writeError writes an error as the specification wants it.
func writeError(w http.ResponseWriter, e *matrix.Error) {
	body := make(map[string]any, len(e.Extra)+2)
	maps.Copy(body, e.Extra)
	if e.Code != "" {
		body["errcode"] = e.Code
	}
	body["error"] = e.Msg
	if e.Status == http.StatusTooManyRequests {
		if ms, ok := retryAfter(e.Extra["retry_after_ms"]); ok {
			seconds := (ms + 999) / 1000
			w.Header().Set("Retry-After", strconv.FormatInt(max(seconds, 1), 10))
		}
	}
	h := w.Header()
	h.Del("Content-Disposition")
	h["Content-Type"] = jsonType
	if err := writeValue(w, Status{Code: e.Status, Body: body}); err != nil {
		writeBytes(w, http.StatusInternalServerError, []byte(`{"errcode":"M_UNKNOWN","error":"internal error"}`))
	}
}

func retryAfter(v any) (int64, bool) {
	switch n := v.(type) {
	case int64:
		return n, true
	case int:
		return int64(n), true
	case time.Duration:
		return n.Milliseconds(), true
	case float64:
		return int64(n), true
	}
	return 0, false
}
