package httpapitest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"
)

// Hostile sends to an API what nobody should send it, and reports whatever is
// not refused in an orderly way: a 5xx, no errcode, an answer that does not come.
type Hostile struct {
	T       testing.TB
	Handler http.Handler
	// Prepare adds to a request what lets it in: a token or a signature.
	Prepare func(r *http.Request, body []byte)
	// Stranger is a user that the caller has no power over.
	Stranger string
	// Allow excuses an answer of 500 and more; nil excuses none.
	Allow func(method, route string, status int, code string) bool

	// Brief sends a fourth of it all, another fourth each time, beginning with a
	// random one.
	Brief bool

	Sent     int         // requests
	Statuses map[int]int // how many were answered so
	turn     int
}

// some is a list, or a part of it.
func (h *Hostile) some(list []string) []string {
	if !h.Brief {
		return list
	}
	if h.turn == 0 {
		h.turn = rand.IntN(4) + 1
	}
	h.turn++
	var part []string
	for i := h.turn % 4; i < len(list); i += 4 {
		part = append(part, list[i])
	}
	return part
}

// patience is how long an answer may take.
const patience = 20 * time.Second

// Send makes one request and checks how it is answered.
func (h *Hostile) Send(method, route, path, query string, body []byte, why string) (status int, answer []byte) {
	h.T.Helper()
	u, err := url.ParseRequestURI(path)
	if err != nil {
		return 0, nil // net/http refuses it
	}
	u.RawQuery = query
	ctx, cancel := context.WithTimeout(h.T.Context(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "http://a.example/", bytes.NewReader(body))
	if err != nil {
		h.T.Fatal(err)
	}
	r.URL, r.RequestURI, r.RemoteAddr = u, u.RequestURI(), "127.0.0.1:1"
	r.Host, r.URL.Scheme, r.URL.Host = "a.example", "", ""
	if len(body) == 0 {
		r.Body = http.NoBody
	}
	if h.Prepare != nil {
		h.Prepare(r, body)
	}
	rec := httptest.NewRecorder()
	h.Sent++
	h.Handler.ServeHTTP(rec, r)
	status, answer = rec.Code, rec.Body.Bytes()
	if h.Statuses == nil {
		h.Statuses = map[int]int{}
	}
	h.Statuses[status]++
	code := gjson.GetBytes(answer, "errcode").Str
	complain := func(what string) {
		h.T.Helper()
		h.T.Errorf("%s %s (%s): %s: %d %.300s\n\tpath %.200s ? %.200s\n\tbody %.300q", method, route, why, what, status, answer, path, query, body)
	}
	switch {
	case ctx.Err() != nil:
		complain("no answer in time")
	case status >= 500 && (h.Allow == nil || !h.Allow(method, route, status, code)):
		complain("an error of the server's")
	case strings.HasPrefix(rec.Header().Get("Content-Type"), "text/html"): // a page for people
	case status >= 400 && code == "" && !gjson.GetBytes(answer, "flows").Exists() && method != http.MethodHead && !gjson.GetBytes(answer, "error").Exists():
		complain("no errcode")
	}
	return status, answer
}

// Texts are values for a variable or parameter that is meant to be something
// else.
func (h *Hostile) Texts() []string {
	return h.some([]string{
		"", ".", "..", "../../etc/passwd", "a/b", "%", "%00", "\x00", "\xff\xfe", "\u202e\ufeff", "😀", strings.Repeat("x", 5000), "-1", "1.5", "1e999",
		"99999999999999999999", "NaN", "null", "true", "[]", "{}", `{"limit":-1}`, `{"limit":1e999}`, "'; DROP TABLE events; --", "s1_2_3_4", "s99999999999999_9",
		"s-5", "p999999999", "@", "@x", "!x", "#x", "$x", "@:", "@a:b:c:d", "!nothing:a.example", "#nothing:a.example", "@nobody:unreachable.invalid", h.Stranger,
	})
}

// Path tries a route with each of its variables replaced, the others as given.
func (h *Hostile) Path(method, route string, vars map[string]string, query string, body []byte) {
	h.T.Helper()
	names := Variables(route)
	for _, name := range names {
		for _, bad := range h.Texts() {
			changed := maps.Clone(vars)
			changed[name] = bad
			h.Send(method, route, Fill(route, changed), query, body, "{"+name+"}")
		}
	}
	for _, raw := range []string{"%2e%2e", "%2F", "%252F", "%E0%A4", "%C0%AF", "%00", "%0a%0d", "+", ";a=b", "~"} {
		for _, name := range names {
			path := strings.ReplaceAll(Fill(route, map[string]string{name: "\x01"}), "%01", raw)
			h.Send(method, route, path, query, body, "escapes in {"+name+"}")
		}
	}
}

// Query tries each of a route's parameters with values that it cannot mean.
func (h *Hostile) Query(method, route string, vars map[string]string, params map[string]string, body []byte) {
	h.T.Helper()
	path := Fill(route, vars)
	for name := range params {
		for _, bad := range h.Texts() {
			q := url.Values{}
			for k, v := range params {
				q.Set(k, v)
			}
			q.Set(name, bad)
			h.Send(method, route, path, q.Encode(), body, "?"+name)
		}
	}
	for _, raw := range []string{"%", "%zz=1", "a=b&a=c&&&=&;", strings.Repeat("a=1&", 2000), "\xff=\xff", "limit=1&limit=2"} {
		h.Send(method, route, path, "timeout=0&"+raw, body, "query")
	}
}

// Bodies tries bodies that are no JSON object, or a strange one.
func (h *Hostile) Bodies(method, route, path, query string) {
	h.T.Helper()
	deep := func(open, end string, n int) string { return strings.Repeat(open, n) + strings.Repeat(end, n) }
	for _, b := range h.some([]string{
		"", " ", "null", "true", "0", "-1", "1e999", `"text"`, "[]", "[{}]", "{", "}", `{"a"`, `{"a":}`, `{"a":1,}`, "{}{}", "\x00", "\xff\xfe{\x00}\x00", "\ufeff{}",
		`{"":""}`, "{\"a\":\"\x00\"}", "{\"a\":\"\xff\"}", `{"a":"\ud800"}`, `{"a":"\u0000"}`, `{"a":NaN}`, `{"a":Infinity}`, `{"a":0x10}`, `{'a':1}`,
		deep("[", "]", 50_000), deep(`{"a":`, "}", 5_000), `{"auth":` + deep("[", "]", 9_000) + "}", `{"content":` + deep("[", "]", 900) + "}",
		`{"a":` + strings.Repeat("9", 50_000) + "}", `{"` + strings.Repeat("k", 60_000) + `":1}`,
	}) {
		h.Send(method, route, path, query, []byte(b), "a strange body")
	}
}

// Body tries a good body with each of its parts replaced.
func (h *Hostile) Body(method, route, path, query string, good []byte) {
	h.T.Helper()
	for why, b := range h.Mutations(good) {
		h.Send(method, route, path, query, b, why)
	}
}

// marker stands where a value goes that no JSON encoder writes.
const marker = "@@marker@@"

// values are put in place of others in a body, as JSON.
func (h *Hostile) values() []string {
	return h.some([]string{
		"null", "true", "0", "-1", "1.5", "1e999", "9223372036854775808", "-9223372036854775809", `""`, `"x"`, `"\u0000"`, `"\ud800"`, "\"\xff\"", "\"\x01\"",
		`"` + strings.Repeat("长", 3000) + `"`, "[]", "[[]]", "[null]", "[1]", `[""]`, "{}", `{"":null}`, `{"\u0000":{}}`, `{"a":{"b":{"c":[]}}}`,
		strings.Repeat("[", 300) + strings.Repeat("]", 300), `"` + h.Stranger + `"`, `"!nothing:a.example"`, `"$nothing"`, `"../.."`, `"http://127.0.0.1:1/"`,
	})
}

// Mutations are a document with each of its parts replaced, by what was done.
func (h *Hostile) Mutations(good []byte) map[string][]byte {
	var doc any
	if json.Unmarshal(good, &doc) != nil {
		return nil
	}
	out := map[string][]byte{}
	n := 0
	walkJSON(doc, "", 0, func(path string, set func(v any, remove bool)) {
		if n++; n > 60 {
			return
		}
		put := func(label string, b []byte) { out[path+" = "+clip(label)] = b }
		set(marker, false)
		b, err := json.Marshal(doc)
		if err != nil {
			return
		}
		for _, v := range h.values() {
			put(v, bytes.Replace(b, []byte(`"`+marker+`"`), []byte(v), 1))
		}
		set(nil, true)
		if b, err = json.Marshal(doc); err == nil {
			put("nothing", b)
		}
	})
	if m, ok := doc.(map[string]any); ok {
		for k := range m { // the same key twice
			key, _ := json.Marshal(k) // a string always encodes
			out[k+" twice"] = append([]byte("{"+string(key)+":[],"), good[1:]...)
		}
	}
	return out
}

func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}

// walkJSON calls fn for each part of a document, with a function that replaces
// or removes it; it is put back afterwards.
func walkJSON(v any, path string, depth int, fn func(path string, set func(v any, remove bool))) {
	if depth > 6 {
		return
	}
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			old := v[k]
			at := path + "." + k
			fn(at, func(x any, remove bool) {
				if remove {
					delete(v, k)
				} else {
					v[k] = x
				}
			})
			v[k] = old
			walkJSON(old, at, depth+1, fn)
		}
	case []any:
		for i := range min(len(v), 2) {
			old := v[i]
			at := fmt.Sprintf("%s[%d]", path, i)
			fn(at, func(x any, _ bool) { v[i] = x })
			v[i] = old
			walkJSON(old, at, depth+1, fn)
		}
	}
}

// Variables lists the names of a route's variables.
func Variables(route string) (names []string) {
	for segment := range strings.SplitSeq(route, "/") {
		if name, ok := strings.CutPrefix(segment, "{"); ok {
			name, _, _ = strings.Cut(strings.Trim(name, "}?"), ":")
			names = append(names, name)
		}
	}
	return names
}

// Fill puts values in place of a route's variables, escaped; "x" where there is
// none.
func Fill(route string, vars map[string]string) string {
	segments := strings.Split(route, "/")
	for i, s := range segments {
		if !strings.HasPrefix(s, "{") {
			continue
		}
		value, ok := vars[Variables(s)[0]]
		if !ok {
			value = "x"
		}
		segments[i] = strings.ReplaceAll(url.PathEscape(value), ".", "%2E")
	}
	return strings.Join(segments, "/")
}
