package httpapi

import (
	"errors"
	"math/bits"
	"net/http"
	"slices"
	"strings"

	"github.com/gorilla/mux"
)

// table finds the route of a request. A mux with all routes would try some two hundred regular expressions one
// after another, so the routes are put into buckets: by the number of path segments, by which of them are
// literal (the shape), and by those literals. A bucket is a small mux with the routes of one template; as the
// shape has already proven the path, mux need look at the method alone, unless a variable has a pattern of its own
// ({name:pattern}).
type table struct {
	shapes [][]shape // by number of segments, most literal first
	paths  []string
}

type shape struct {
	literal uint32 // bit i is set when segment i is literal
	buckets map[string]*bucket
}

type bucket struct {
	router  *mux.Router
	routes  map[*mux.Route]*target
	methods []string
	derived map[string]bool // methods that came from an alias or an optional segment, which a real route replaces
}

// target is a route under one of its spellings.
type target struct {
	*Route
	vars []pathVar
}

// pathVar is a variable and the segment it stands in.
type pathVar struct {
	name    string
	segment int
}

// match is where a request goes, with the path cut into segments.
type match struct {
	target *target
	path   string
	ends   [maxSegments]int32 // where each segment ends
	vars   map[string]string  // set instead when mux matched the path by patterns
}

// value is a variable as it stands in the path, still escaped.
func (m *match) value(name string) string {
	if m.vars != nil {
		return m.vars[name]
	}
	for _, v := range m.target.vars {
		if v.name == name {
			return m.path[m.start(v.segment):m.ends[v.segment]]
		}
	}
	return ""
}

func (m *match) start(segment int) int32 {
	if segment == 0 {
		return 1
	}
	return m.ends[segment-1] + 1
}

const maxSegments = 16

// Add registers routes. Paths may take these forms beside the plain one:
//
//   - /_matrix/client/v3/... also answers under r0, /_matrix/media/v3/... under r0 and v1;
//   - a last variable written {name?}, and a last {stateKey} always, may be empty or missing altogether;
//   - a path that ends in a slash also answers without it.
//
// GET routes answer HEAD. Adding the same method and path twice panics, since it is a programmer's mistake.
func (a *API) Add(routes ...Route) {
	for i := range routes {
		r := routes[i]
		a.table.paths = append(a.table.paths, r.Method+" "+r.Path)
		for j, path := range spellings(r.Path) {
			a.table.add(&r, path, j > 0)
		}
	}
}

// V3 lists the spellings of a path that older clients use, the given one first.
func V3(path string) []string {
	if rest, ok := strings.CutPrefix(path, "/_matrix/client/v3/"); ok {
		return []string{path, "/_matrix/client/r0/" + rest}
	}
	if rest, ok := strings.CutPrefix(path, "/_matrix/media/v3/"); ok {
		return []string{path, "/_matrix/media/r0/" + rest, "/_matrix/media/v1/" + rest}
	}
	return []string{path}
}

func spellings(path string) []string {
	forms := []string{path}
	cut := strings.LastIndexByte(path, '/')
	last := path[cut+1:]
	switch {
	case last == "" && cut > 0:
		forms = append(forms, path[:cut])
	case last == "{stateKey}" || strings.HasSuffix(last, "?}"):
		forms = []string{path[:cut+1] + strings.TrimSuffix(last, "?}"), path[:cut], path[:cut+1]}
		if strings.HasSuffix(last, "?}") {
			forms[0] += "}"
		}
	}
	var all []string
	for _, f := range forms {
		all = append(all, V3(f)...)
	}
	return all
}

func (t *table) add(r *Route, path string, derived bool) {
	segments := strings.Split(path[1:], "/")
	if len(segments) > maxSegments || path[0] != '/' {
		panic("httpapi: bad path " + path)
	}
	var literal uint32
	var key []byte
	var vars []pathVar
	patterns := false
	for i, s := range segments {
		if !strings.HasPrefix(s, "{") {
			literal |= 1 << i
			key = append(append(key, s...), '/')
			continue
		}
		patterns = patterns || strings.Contains(s, ":")
		vars = append(vars, pathVar{name: strings.Trim(s, "{}"), segment: i})
	}
	b := t.bucket(len(segments), literal, string(key))
	if !patterns && slices.Contains(b.methods, r.Method) {
		if derived {
			return // the path has a route of its own
		}
		if !b.derived[r.Method] {
			panic("httpapi: two routes for " + r.Method + " " + path)
		}
		b.drop(r.Method)
	}
	methods := []string{r.Method}
	if r.Method == http.MethodGet {
		methods = append(methods, http.MethodHead)
	}
	route := b.router.NewRoute().Methods(methods...)
	if patterns {
		route = route.Path(path)
		vars = nil
	}
	if err := route.GetError(); err != nil {
		panic("httpapi: " + err.Error())
	}
	b.routes[route] = &target{Route: r, vars: vars}
	b.methods = append(b.methods, r.Method)
	b.derived[r.Method] = derived
}

// drop takes out the derived route of a method, which an explicit one replaces.
func (b *bucket) drop(method string) {
	for m, old := range b.routes {
		if old.Method == method {
			m.MatcherFunc(func(*http.Request, *mux.RouteMatch) bool { return false })
			delete(b.routes, m)
		}
	}
	b.methods = slices.DeleteFunc(b.methods, func(s string) bool { return s == method })
}

func (t *table) bucket(n int, literal uint32, key string) *bucket {
	for len(t.shapes) <= n {
		t.shapes = append(t.shapes, nil)
	}
	i := slices.IndexFunc(t.shapes[n], func(s shape) bool { return s.literal == literal })
	if i < 0 {
		t.shapes[n] = append(t.shapes[n], shape{literal: literal, buckets: make(map[string]*bucket)})
		// The shape with a literal in the first place where two differ goes first.
		slices.SortFunc(t.shapes[n], func(a, b shape) int {
			x, y := bits.Reverse32(a.literal), bits.Reverse32(b.literal)
			switch {
			case x > y:
				return -1
			case x < y:
				return 1
			}
			return 0
		})
		i = slices.IndexFunc(t.shapes[n], func(s shape) bool { return s.literal == literal })
	}
	b := t.shapes[n][i].buckets[key]
	if b == nil {
		b = &bucket{
			router: mux.NewRouter().UseEncodedPath(),
			routes: make(map[*mux.Route]*target), derived: make(map[string]bool),
		}
		t.shapes[n][i].buckets[key] = b
	}
	return b
}

// find sets m to the route of a request. When only the method is wrong, it returns the methods that exist.
func (t *table) find(r *http.Request, m *match) (allow []string) {
	n := 0
	for i := 1; i <= len(m.path); i++ {
		if i == len(m.path) || m.path[i] == '/' {
			if n == maxSegments {
				return nil
			}
			m.ends[n] = int32(i) //nolint:gosec // net/http bounds the length of a path far below
			n++
		}
	}
	if n == 0 || n >= len(t.shapes) {
		return nil
	}
	for i := range t.shapes[n] {
		b := t.shapes[n][i].bucket(m, n)
		if b == nil {
			continue
		}
		var found mux.RouteMatch
		if b.router.Match(r, &found) && found.MatchErr == nil && found.Route != nil {
			m.target = b.routes[found.Route]
			if m.target.vars == nil && len(found.Vars) > 0 {
				m.vars = found.Vars
			}
			return nil
		}
		if errors.Is(found.MatchErr, mux.ErrMethodMismatch) {
			allow = append(allow, b.methods...)
		}
	}
	return allow
}

// bucket finds the bucket of this shape for a path of n segments: its literals must be those of the bucket and
// its variables must not be empty.
func (s *shape) bucket(m *match, n int) *bucket {
	var buf [256]byte
	key := buf[:0]
	for j := range n {
		segment := m.path[m.start(j):m.ends[j]]
		switch {
		case s.literal&(1<<j) != 0:
			key = append(append(key, segment...), '/')
		case segment == "":
			return nil
		}
	}
	return s.buckets[string(key)]
}
