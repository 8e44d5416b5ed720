package homeserver_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/carillon-chat/carillon/"

// floors is the house of docs/architecture.md from the ground up. A package of the
// homeserver imports lower floors only, and on its own floor only what stands above
// it in this list.
var floors = []struct {
	floor int
	pkgs  []string
}{
	{0, []string{"matrix", "gate", "sqldb", "sqldb/sqldbtest", "stream", "metrics", "httpapi", "httpapi/httpapitest", "pages", "mail", "mail/mailtest"}},
	{1, []string{"serverkeys", "fedclient", "browser"}},
	{2, []string{"accounts", "devices", "e2ee", "accountdata"}},
	{3, []string{"events", "state", "hub", "sticky", "rooms", "partstest"}},
	{4, []string{
		"history", "profiles", "sso", "oauth", "receipts", "typing", "presence", "subscriptions", "push", "relations",
		"search", "directory", "spaces", "media", "previews", "moderation", "notices", "threepids", "delayed", "policy", "livekit",
	}},
	{5, []string{"clientsync", "slidingsync", "oldsync", "federation", "applications"}},
	{6, []string{""}},
	{7, []string{"hstest"}},
}

// onlyIn says who may import what from outside: the import path (with what lies
// below it, when it ends in a slash) and the packages that may.
var onlyIn = []struct {
	what string
	who  []string
}{
	{"github.com/gorilla/mux", []string{"homeserver/httpapi"}},
	{"github.com/lib/pq", []string{"homeserver/sqldb"}},
	{"modernc.org/sqlite", []string{"homeserver/sqldb"}},
	{"database/sql", []string{"homeserver/sqldb"}},
	{"github.com/matrix-org/gomatrixserverlib/", []string{
		"homeserver/events", "homeserver/state", "homeserver/rooms",
		"homeserver/federation", "homeserver/fedclient", "homeserver/serverkeys",
	}},
	{"maunium.net/go/mautrix/", []string{"appservice/", "bridges/", "homeserver/hstest"}},
	{"github.com/prometheus/client_golang/", []string{"homeserver/metrics", "homeserver/federation", "homeserver"}},
	{"github.com/wneessen/go-mail", []string{"homeserver/mail"}},
	{"github.com/alecthomas/kong", []string{"cmd/"}},
	{"github.com/schollz/progressbar/v3", []string{"cmd/"}},
	{module + "config", []string{"cmd/", "homeserver", "appservice"}},
	{"github.com/go-jose/go-jose/v4/", []string{"homeserver/livekit"}},
	{module + "homeserver/mail/mailtest", nil},
	{module + "homeserver/hstest", nil},
	{module + "homeserver/partstest", nil},
	{module + "homeserver/httpapi/httpapitest", []string{"homeserver/partstest", "homeserver/hstest"}},
	{module + "homeserver/sqldb/sqldbtest", []string{"homeserver/hstest", "appservice/astest"}},
	{module + "appservice/astest", nil},
}

// source is one Go file that is no test.
type source struct {
	path, pkg string // the package's folder in the module, "homeserver/rooms"
	file      *ast.File
}

func (s source) imports() []string {
	var paths []string
	for _, i := range s.file.Imports {
		path, _ := strconv.Unquote(i.Path.Value)
		paths = append(paths, path)
	}
	return paths
}

func sources(t *testing.T) []source {
	t.Helper()
	var list []source
	for _, top := range []string{"homeserver", "appservice", "bridges", "config", "cmd"} {
		root := filepath.Join("..", top)
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), "_")) {
				return filepath.SkipDir
			}
			if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return nil
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			rel, err := filepath.Rel("..", path)
			if err != nil {
				return err
			}
			rel = filepath.ToSlash(rel)
			list = append(list, source{rel, rel[:strings.LastIndex(rel, "/")], f})
			return nil
		})
		if err != nil && !strings.Contains(err.Error(), "no such file") {
			t.Fatal(err)
		}
	}
	if len(list) < 10 {
		t.Fatalf("only %d files found: the test looks in the wrong place", len(list))
	}
	return list
}

// place is the floor of a homeserver package and its place in the list, -1 when it
// is not in the house.
func place(pkg string) (floor, order int) {
	name := strings.TrimPrefix(strings.TrimPrefix(pkg, "homeserver"), "/")
	for _, f := range floors {
		for _, p := range f.pkgs {
			if p == name {
				return f.floor, order
			}
			order++
		}
	}
	return -1, -1
}

func inHomeserver(pkg string) bool {
	return pkg == "homeserver" || strings.HasPrefix(pkg, "homeserver/")
}

func TestFloors(t *testing.T) {
	for _, s := range sources(t) {
		if !inHomeserver(s.pkg) {
			continue
		}
		floor, order := place(s.pkg)
		if floor < 0 {
			t.Errorf("%s: %s has no floor: give it one in docs/architecture.md and in this test", s.path, s.pkg)
			continue
		}
		for _, path := range s.imports() {
			dep, own := strings.CutPrefix(path, module)
			if !own || dep == "config" {
				continue
			}
			if !inHomeserver(dep) {
				// hstest starts whole companies, so it alone may look beyond the homeserver.
				if s.pkg != "homeserver/hstest" {
					t.Errorf("%s imports %s: the homeserver knows nothing of what is built on it", s.path, dep)
				}
				continue
			}
			df, do := place(dep)
			switch {
			case df > floor:
				t.Errorf("%s (floor %d) imports %s (floor %d): imports go down only", s.path, floor, dep, df)
			case df == floor && do >= order:
				t.Errorf("%s imports %s, which stands below it on floor %d", s.path, dep, floor)
			}
		}
	}
}

func TestFloorsOfTheEnterpriseService(t *testing.T) {
	for _, s := range sources(t) {
		top, _, _ := strings.Cut(s.pkg, "/")
		if top != "appservice" && top != "bridges" {
			continue
		}
		for _, path := range s.imports() {
			dep, own := strings.CutPrefix(path, module)
			if !own {
				continue
			}
			depTop, _, _ := strings.Cut(dep, "/")
			if inHomeserver(dep) {
				if floor, _ := place(dep); floor != 0 && s.pkg != "appservice/astest" {
					t.Errorf("%s imports %s: the service speaks Matrix over HTTP, it sees floor 0 alone", s.path, dep)
				}
				continue
			}
			switch {
			case top == "bridges" && depTop == "appservice" && dep != "appservice/mxclient":
				t.Errorf("%s imports %s: of the service, a bridge sees mxclient alone", s.path, dep)
			case top == "bridges" && depTop == "bridges" && dep != "bridges/bridge" && !within(dep, s.pkg) && !within(s.pkg, dep):
				t.Errorf("%s imports %s: a bridge never imports another", s.path, dep)
			case top == "appservice" && depTop == "bridges" && dep != "bridges/bridge" && s.pkg != "appservice":
				t.Errorf("%s imports %s: of the bridges, the service's parts see bridges/bridge alone", s.path, dep)
			case depTop == "cmd":
				t.Errorf("%s imports a command", s.path)
			}
		}
	}
}

func within(pkg, of string) bool { return pkg == of || strings.HasPrefix(pkg, of+"/") }

func TestFloorsOfImportsFromOutside(t *testing.T) {
	for _, s := range sources(t) {
		for _, path := range s.imports() {
			for _, rule := range onlyIn {
				if !matches(rule.what, path) || within(module+s.pkg, path) {
					continue
				}
				if !slices.ContainsFunc(rule.who, func(who string) bool { return matches(who, s.pkg) }) {
					t.Errorf("%s imports %s, which is for %s alone", s.path, path, strings.Join(rule.who, ", "))
				}
			}
		}
	}
}

// matches compares a path with a rule; a slash at the rule's end stands for all below it.
// Of gomatrixserverlib, whose parts are one thing, the folder itself is meant too.
func matches(rule, path string) bool {
	if dir, tree := strings.CutSuffix(rule, "/"); tree {
		return within(path, dir)
	}
	return path == rule
}

// Everything is built in constructors: what runs at import time cannot be seen from there.
func TestFloorsHaveNoInit(t *testing.T) {
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s has an init function", s.path)
			}
		}
	}
}
