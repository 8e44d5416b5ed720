package config_test

import (
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/config"
)

const directory = three + `appservice:
  directory:
    url: ldaps://dc1.example.org
    bind_dn: carillon@example.org
    password: env:CARILLON_TEST_DIRECTORY
    people:
      base: dc=example,dc=org
`

func TestDirectory(t *testing.T) {
	t.Setenv("CARILLON_TEST_DIRECTORY", "secret")
	c, err := read(t, directory)
	if err != nil {
		t.Fatal(err)
	}
	if d := c.AppService.Directory; d.People.ID != "employeeNumber" || d.Password.Value() != "secret" || d.Units.Filter != "(objectClass=organizationalUnit)" {
		t.Fatalf("read as %+v", d)
	}
	for _, tc := range []struct {
		name, old, new string
		line           int
		field          string
		message, mend  string
	}{
		{"no address", "ldaps://dc1.example.org", "dc1.example.org", 6, "url", "not a directory", "ldaps://"},
		{"unprotected", "ldaps://dc1", "ldap://dc1", 6, "url", "unprotected", "starttls"},
		{"twice protected", "    bind_dn", "    starttls: true\n    bind_dn", 7, "starttls", "first byte", "remove"},
		{"missing address", "    url: ldaps://dc1.example.org\n", "", 0, "url", "missing", "ldaps://"},
		{"no base", "    people:\n      base: dc=example,dc=org\n", "", 0, "people.base", "missing", "dc=example"},
		{"no ID", "      base: dc", "      id: \"\"\n      base: dc", 10, "people.id", "empty", "employeeNumber"},
		{"no password", "    password: env:CARILLON_TEST_DIRECTORY\n", "", 0, "password", "missing", "file:"},
		{"every", "    bind_dn", "    every: 1s\n    bind_dn", 7, "every", "between", "10m"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			text := strings.Replace(directory, tc.old, tc.new, 1)
			if text == directory {
				t.Fatal("the case changes nothing")
			}
			check(t, text, config.Problem{Line: tc.line, Field: "appservice.directory." + tc.field, Message: tc.message, Mend: tc.mend})
		})
	}
}
