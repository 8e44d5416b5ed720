package main

import (
	"os"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/test/slapd"
)

// An operator connects a directory: looks at what would become of the company, takes it, and sees how it stands.
func TestOrgDirectory(t *testing.T) {
	d := slapd.New(t, "", "")
	d.Add("ou=研发部,"+slapd.Suffix, map[string][]string{"objectClass": {"organizationalUnit"}, "ou": {"研发部"}})
	d.Add("cn=王芳,ou=研发部,"+slapd.Suffix, map[string][]string{"objectClass": {"inetOrgPerson"}, "cn": {"王芳"}, "sn": {"王"}, "employeeNumber": {"E1"}})
	d.Add("cn=打印机,"+slapd.Suffix, map[string][]string{"objectClass": {"inetOrgPerson"}, "cn": {"打印机"}, "sn": {"打印机"}})
	t.Setenv("CARILLON_TEST_DIRECTORY", slapd.Password)
	followed := newSite(t, "  language: en\n  directory:\n    url: "+d.Plain+"\n    bind_dn: "+slapd.Admin+"\n    password: env:CARILLON_TEST_DIRECTORY\n"+
		"    units:\n      base: "+slapd.Suffix+"\n    people:\n      base: "+slapd.Suffix+"\n      filter: (objectClass=inetOrgPerson)\n")
	other := newSite(t, "  language: en\n")
	for _, step := range []struct {
		site site
		args []string
		code int
		want string
	}{
		{other, []string{"--status"}, exitRefused, "no directory is set"},
		{followed, []string{"--plan"}, exitOK, "王芳"},
		{followed, []string{"--plan", "--lang", "zh"}, exitOK, "研发部"},
		{followed, nil, exitOK, "operations"},
		{followed, []string{"--plan"}, exitOK, ""},
	} {
		code, out, errs := carillon(t, "", append(append([]string{"org", "directory"}, step.args...), "-c", step.site.config)...)
		if code != step.code || !strings.Contains(out+errs, step.want) {
			t.Errorf("%v: exit code %d, want %d and %q\n%s%s", step.args, code, step.code, step.want, out, errs)
		}
	}
	if code, out, errs := carillon(t, "", "org", "people", "王", "-c", followed.config); code != exitOK || !strings.Contains(out, "E1") {
		t.Errorf("%d %s %s", code, out, errs)
	}
	// A running server follows by itself and says how it stands.
	start(t, followed.base, nil, os.Args[0], "serve", "-c", followed.config)
	var out, errs string
	for range 200 {
		if _, out, errs = carillon(t, "", "org", "directory", "--status", "-c", followed.config); strings.Contains(out, "people: 1\n") {
			break
		}
	}
	if !strings.Contains(out, "people: 1\n") || !strings.Contains(out, "units: 1\n") || !strings.Contains(out, "cn=打印机,"+slapd.Suffix) {
		t.Errorf("%s%s", out, errs)
	}
	d.Stop()
	if code, _, errs := carillon(t, "", "org", "directory", "-c", followed.config); code == exitOK || !strings.Contains(errs, "directory") {
		t.Errorf("a directory that is away: %d %s", code, errs)
	}
}
