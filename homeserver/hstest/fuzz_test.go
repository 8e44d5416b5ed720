package hstest_test

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
)

// FuzzRequests sends requests to every route of a server: each decoder of a body,
// of a token and of a parameter is behind one of them. The variables of the path
// are separated by U+001F; names in capitals stand for what differs each time.
func FuzzRequests(f *testing.F) {
	w := newWalk(f)
	api := w.s.Handler().(*httpapi.API)
	routes := api.Paths()
	slices.Sort(routes)
	names := map[string]string{"ALICE": string(w.alice.UserID), "BOB": string(w.bob.UserID)}
	symbolic := func(s string) string {
		for symbol, v := range names {
			s = strings.ReplaceAll(strings.ReplaceAll(s, v, symbol), url.QueryEscape(v), symbol)
		}
		return s
	}
	w.lenient = true
	w.before = func(o *operation, path, params, _ string, content []byte) {
		if w.room != "" {
			names["ROOM"] = w.room
		}
		route := slices.Index(routes, o.method+" "+o.path)
		if route < 0 || len(content) > 4096 {
			return
		}
		var vars []string
		for i, segment := range strings.Split(o.path, "/") {
			if strings.HasPrefix(segment, "{") {
				v, _ := url.PathUnescape(strings.Split(path, "/")[i])
				vars = append(vars, symbolic(v))
			}
		}
		f.Add(uint16(route), strings.Join(vars, "\x1f"), symbolic(strings.TrimPrefix(params, "?")), []byte(symbolic(string(content))))
	}
	w.all()
	w.before = nil
	concrete := func(s string) string {
		for symbol, v := range names {
			s = strings.ReplaceAll(s, symbol, v)
		}
		return s
	}
	users := map[string]string{"admin": w.chief.AccessToken, "appservice": "as-secret", "": w.alice.AccessToken}
	f.Fuzz(func(t *testing.T, route uint16, vars, query string, body []byte) {
		method, path, _ := strings.Cut(routes[int(route)%len(routes)], " ")
		if strings.Contains(path, "/logout") || strings.Contains(path, "/deactivate") || len(body) > 1<<16 {
			return // the next request needs the token
		}
		token := users[""]
		for part, tok := range users {
			if part != "" && strings.Contains(path, "/"+part+"/") {
				token = tok
			}
		}
		values := map[string]string{}
		for i, v := range strings.Split(concrete(vars), "\x1f") {
			if all := httpapitest.Variables(path); i < len(all) {
				values[all[i]] = v
			}
		}
		query = concrete(query)
		if q, err := url.ParseQuery(query); err == nil {
			for _, wait := range []string{"timeout", "timeout_ms"} {
				if q.Has(wait) || wait == "timeout" && strings.HasSuffix(path, "/events") {
					q.Set(wait, "0")
				}
			}
			query = q.Encode()
		} else if strings.HasSuffix(path, "/events") || strings.HasSuffix(path, "/sync") {
			return
		}
		h := &httpapitest.Hostile{T: t, Handler: api, Allow: unreachable, Prepare: func(r *http.Request, _ []byte) {
			r.Header.Set("Authorization", "Bearer "+token)
		}}
		h.Send(method, path, httpapitest.Fill(path, values), query, []byte(concrete(string(body))), "fuzzed")
		if api.Panics() > 0 {
			t.Fatal("a handler panicked")
		}
	})
}

// FuzzTokens asks every paginated list of the client-server API to go on at a place
// that the fuzzer makes up: FuzzRequests for the parameters alone that hold one.
func FuzzTokens(f *testing.F) {
	w := newWalk(f)
	w.lenient = true
	w.all() // there is something in the lists
	api := w.s.Handler().(*httpapi.API)
	names := []string{"from", "to", "since", "next_batch", "cursor", "pos", "prev_batch"}
	var lists []string
	for _, route := range api.Paths() {
		method, path, _ := strings.Cut(route, " ")
		if method == http.MethodGet && !strings.Contains(path, "/federation/") && !strings.Contains(path, "/oauth") && !strings.HasPrefix(path, "/_matrix/media") {
			lists = append(lists, path)
		}
	}
	slices.Sort(lists)
	for i, s := range []string{
		"s1_2_3", "t1", "t-5_6", "p20", "1", "9223372036854775807", "-1", "1_abc", "!a:b", "@a:b", "AAAA", "", "%00", "s_", "0x1", "1e9", strings.Repeat("9", 40),
	} {
		f.Add(uint16(i), uint8(i), s)
	}
	f.Fuzz(func(t *testing.T, list uint16, name uint8, token string) {
		path := lists[int(list)%len(lists)]
		values := map[string]string{}
		for _, v := range httpapitest.Variables(path) {
			switch v {
			case "roomId":
				values[v] = w.room
			case "userId":
				values[v] = string(w.alice.UserID)
			default:
				values[v] = token
			}
		}
		bearer := w.alice.AccessToken
		if strings.Contains(path, "/admin/") {
			bearer = w.chief.AccessToken
		}
		q := url.Values{"dir": {"b"}, "limit": {"3"}, "timeout": {"0"}, names[int(name)%len(names)]: {token}}
		h := &httpapitest.Hostile{T: t, Handler: api, Allow: unreachable, Prepare: func(r *http.Request, _ []byte) {
			r.Header.Set("Authorization", "Bearer "+bearer)
		}}
		h.Send(http.MethodGet, path, httpapitest.Fill(path, values), q.Encode(), nil, "fuzzed")
		if api.Panics() > 0 {
			t.Fatal("a handler panicked")
		}
	})
}
