package httpapi

import (
	"math/bits"
	"net/http"
	"slices"
	"strings"

	"github.com/gorilla/mux"
)

// table finds the route of a request. A mux with all routes would try some two hundred regular expressions one
// after another, so the routes are put into buckets: by the number of path segments, by which of them are
// literal (the shape), and by those literals. A bucket is a small mux with the methods of one template.
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
	routes  map[*mux.Route]*Route
	methods []string
	derived map[string]bool // methods that came from an alias or an optional segment, which a real route replaces
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
	for i, s := range segments {
		if !strings.HasPrefix(s, "{") {
			literal |= 1 << i
			key = append(append(key, s...), '/')
		}
	}
	b := t.bucket(len(segments), literal, string(key))
	if slices.Contains(b.methods, r.Method) {
		switch {
		case derived:
			return // the path has a route of its own
		case !b.derived[r.Method]:
			panic("httpapi: two routes for " + r.Method + " " + path)
		}
		b.replace(r)
		return
	}
	methods := []string{r.Method}
	if r.Method == http.MethodGet {
		methods = append(methods, http.MethodHead)
	}
	// The method is matched first: it is cheaper than the path.
	route := b.router.NewRoute().Methods(methods...).Path(path)
	if err := route.GetError(); err != nil {
		panic("httpapi: " + err.Error())
	}
	b.routes[route] = r
	b.methods = append(b.methods, r.Method)
	b.derived[r.Method] = derived
}

// replace puts a real route where a derived one stood. The templates have the same shape, only the names of the
// variables may differ, and a derived route has fewer of them.
func (b *bucket) replace(r *Route) {
	for m, old := range b.routes {
		if old.Method == r.Method {
			b.routes[m] = r
		}
	}
	b.derived[r.Method] = false
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
			routes: make(map[*mux.Route]*Route), derived: make(map[string]bool),
		}
		t.shapes[n][i].buckets[key] = b
	}
	return b
}

// find returns the route of a request and its variables as they stand in the path (still escaped). When only
// the method is wrong, route is nil and allow lists the methods that exist.
func (t *table) find(r *http.Request, path string) (route *Route, vars map[string]string, allow []string) {
	var ends [maxSegments]int
	n := 0
	for i := 1; i <= len(path); i++ {
		if i == len(path) || path[i] == '/' {
			if n == maxSegments {
				return nil, nil, nil
			}
			ends[n] = i
			n++
		}
	}
	if n == 0 || n >= len(t.shapes) {
		return nil, nil, nil
	}
	var buf [256]byte
	for i := range t.shapes[n] {
		s := &t.shapes[n][i]
		key := buf[:0]
		start := 1
		for j := range n {
			if s.literal&(1<<j) != 0 {
				key = append(append(key, path[start:ends[j]]...), '/')
			}
			start = ends[j] + 1
		}
		b := s.buckets[string(key)]
		if b == nil {
			continue
		}
		var m mux.RouteMatch
		if b.router.Match(r, &m) && m.MatchErr == nil && m.Route != nil {
			return b.routes[m.Route], m.Vars, nil
		}
		if m.MatchErr == mux.ErrMethodMismatch {
			allow = append(allow, b.methods...)
		}
	}
	return nil, nil, allow
}
