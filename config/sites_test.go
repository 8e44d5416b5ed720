package config_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/config"
)

const twoSites = three + `appservice:
  sites:
    own: 总部
    head_office: 总部
    list:
      - name: 总部
        server_name: example.org
      - name: 四川
        server_name: sc.example.org
        delegated: [sc]
`

func TestSites(t *testing.T) {
	c, err := read(t, twoSites)
	if err != nil {
		t.Fatal(err)
	}
	if s := c.AppService.Sites; s.Own != "总部" || len(s.List) != 2 || s.List[1].ServerName != "sc.example.org" || s.List[1].Delegated[0] != "sc" {
		t.Fatalf("read as %+v", s)
	}
	cases := []struct {
		name, old, new string
		line           int
		field          string
		message, mend  string
	}{
		{"own is not listed", "own: 总部", "own: 广东", 6, "own", "not in the list", "总部, 四川"},
		{"own is missing", "own: 总部", "own:", 6, "own", "missing", "总部, 四川"},
		{"head office is not listed", "head_office: 总部", "head_office: 上海", 7, "head_office", "not in the list", "总部, 四川"},
		{"names without a list", twoSites[strings.Index(twoSites, "    list:"):], "", 6, "own", "no list", "list"},
		{"own server differs", "server_name: example.org\n      -", "server_name: other.org\n      -", 10, "list[0].server_name", "this server is", "example.org"},
		{"two of one server", "sc.example.org", "example.org", 12, "list[1].server_name", "same server", "of its own"},
		{"two of one name", "name: 四川", "name: 总部", 11, "list[1].name", "two sites", "its own"},
		{"no server", "        server_name: sc.example.org\n", "", 11, "list[1]", "server_name is missing", "server_name"},
		{"no name", "name: 四川\n        server", "server", 11, "list[1]", "name is missing", "四川"},
		{"bad server", "sc.example.org", "https://sc", 12, "list[1].server_name", "not a server name", "sc.example.org"},
		{"bot of another server", "delegated: [sc]", "bot: \"@carillon:example.org\"", 13, "list[1].bot", "not a user of sc.example.org", "@carillon:sc.example.org"},
		{"delegated to the head office", "server_name: example.org\n      -", "server_name: example.org\n        delegated: [x]\n      -", 11, "list[0].delegated", "anyway", "remove"},
		{"delegated twice", "[sc]", "[sc, sc]", 13, "list[1].delegated", "too", "one site"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			text := strings.Replace(twoSites, tc.old, tc.new, 1)
			if text == twoSites {
				t.Fatal("the case changes nothing")
			}
			check(t, text, config.Problem{Line: tc.line, Field: "appservice.sites." + tc.field, Message: tc.message, Mend: tc.mend})
		})
	}
	check(t, twoSites+"homeserver:\n  federation:\n    enabled: false\n", config.Problem{Line: 16, Field: "homeserver.federation.enabled", Message: "by federation", Mend: "true"})
	check(t, twoSites+"homeserver:\n  federation:\n    allow: [gd.example.org]\n", config.Problem{Line: 16, Field: "homeserver.federation.allow", Message: "sc.example.org", Mend: "add sc.example.org"})
	if _, err := read(t, twoSites+"homeserver:\n  federation:\n    allow: [\"*.Example.org\"]\n"); err != nil {
		t.Error(err)
	}
}

// check expects a problem at its line; texts need to be parts of what is said.
func check(t *testing.T, text string, want config.Problem) {
	t.Helper()
	_, err := read(t, text)
	var problems config.Problems
	if !errors.As(err, &problems) {
		t.Fatalf("got %v, want a problem of %s", err, want.Field)
	}
	for _, p := range problems {
		if p.Line == want.Line && p.Field == want.Field && strings.Contains(p.Message, want.Message) && strings.Contains(p.Mend, want.Mend) {
			return
		}
	}
	t.Errorf("got %v, want line %d of %s: %s; %s", err, want.Line, want.Field, want.Message, want.Mend)
}
