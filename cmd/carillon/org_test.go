package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/test/freeport"
)

const unitsCSV = "id,parent,name,code,order,site,manager,contain_sub,room\nco,,明远,CO,1,北京,E1,yes,yes\nrd,co,研发部,RD,1,,E2,no,yes\n"

const peopleCSV = "job_number,name,mobile,email,unit,title\nE1,林海,13800000001,e1@x.example,co,总监\nE2,周敏,13800000002,e2@x.example,rd,经理\nE3,陈晨,13800000003,e3@x.example,rd,工程师\n"

// writeCompany writes the two files of a company.
func writeCompany(t *testing.T, units, people string) (unitsFile, peopleFile string) {
	t.Helper()
	dir := t.TempDir()
	unitsFile, peopleFile = filepath.Join(dir, "units.csv"), filepath.Join(dir, "people.csv")
	for file, text := range map[string]string{unitsFile: units, peopleFile: people} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return unitsFile, peopleFile
}

// A company is imported by a shell's exit codes and files, with a running server and without one.
func TestOrgCommands(t *testing.T) {
	for _, running := range []bool{true, false} {
		t.Run(fmt.Sprintf("running=%v", running), func(t *testing.T) {
			site := newSite(t, "  language: en\n")
			if running {
				start(t, site.base, nil, os.Args[0], "serve", "-c", site.config)
			}
			units, people := writeCompany(t, unitsCSV, peopleCSV)
			_, wrong := writeCompany(t, unitsCSV, strings.Replace(peopleCSV, ",rd,工程师", ",nowhere,工程师", 1))
			passwords := filepath.Join(t.TempDir(), "for-hr.csv")
			steps := []struct {
				args []string
				code int
				want string
			}{
				{[]string{"tree"}, exitOK, "No company has been imported yet"},
				{[]string{"reconcile"}, exitRefused, "no company"},
				{[]string{"import", units, wrong}, exitRefused, "nowhere"},
				{[]string{"import", units, wrong, "--lang", "zh"}, exitRefused, "未做任何更改"},
				{[]string{"import", units, people, "--plan"}, exitOK, "陈晨"},
				{[]string{"tree"}, exitOK, "No company has been imported yet"},
				{[]string{"import", units, people, "--passwords", passwords}, exitOK, passwords},
				{[]string{"import", units, people}, exitOK, "0 operations"},
				{[]string{"tree"}, exitOK, "2 units, 3 people"},
				{[]string{"tree", "--json"}, exitOK, `"all_staff_room":"!`},
				{[]string{"people", "陈"}, exitOK, "E3"},
				{[]string{"sites"}, exitOK, "this site, head office"},
				{[]string{"sites", "--json"}, exitOK, `"state":"current"`},
				{[]string{"sites", "--trust", "nowhere"}, exitRefused, "nowhere"},
				{[]string{"sites", "--trust", "x", "--raise-epoch"}, exitUsage, "one after the other"},
				{[]string{"people", "--unit", "rd", "--json"}, exitOK, `"id":"E2"`},
				{[]string{"people", "--unit", "nowhere"}, exitRefused, "nowhere"},
				{[]string{"reconcile", "--verify"}, exitOK, "0 operations"},
			}
			for _, step := range steps {
				code, out, errs := carillon(t, "", append(append([]string{"org"}, step.args...), "-c", site.config)...)
				if code != step.code || !strings.Contains(out+errs, step.want) {
					t.Errorf("%v: exit code %d, want %d and %q\n%s%s", step.args, code, step.code, step.want, out, errs)
				}
			}
			info, err := os.Stat(passwords)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("the file for HR: %v, %v", info, err)
			}
			if text, err := os.ReadFile(passwords); err != nil || strings.Count(string(text), "\n") != 4 {
				t.Errorf("the file for HR: %v\n%s", err, text)
			}
		})
	}
}

func TestTemplateAndGeneratedCompanyAreReadable(t *testing.T) {
	site := newSite(t, "")
	for _, format := range []string{"xlsx", "csv"} {
		for _, what := range [][]string{{"template"}, {"generate", "--people", "30", "--units", "6", "--sites", "2"}} {
			file := filepath.Join(t.TempDir(), "company."+format)
			if code, _, errs := carillon(t, "", append(append([]string{"org"}, what...), "--format", format, "-o", file)...); code != exitOK {
				t.Fatal(errs)
			}
			if code, out, errs := carillon(t, "", "org", "import", "--plan", "-c", site.config, file); code != exitOK {
				t.Errorf("%v as %s: %d: %s%s", what, format, code, out, errs)
			}
		}
	}
	if code, _, _ := carillon(t, "", "org", "generate", "--people", "0"); code != exitUsage {
		t.Errorf("nobody at all: exit code %d", code)
	}
}

// The service runs beside a homeserver in a process of its own, over real sockets.
func TestTwoProcesses(t *testing.T) {
	addr := freeport.Address(t)
	site := newSite(t, fmt.Sprintf("  listen: %s\n", addr))
	hs := site.base
	reg := filepath.Join(site.dir, "registration.yaml")
	code, out, errs := carillon(t, "", "appservice", "--print-registration", "-c", site.config)
	if code != exitOK || !strings.Contains(out, "as_token") || !strings.Contains(out, addr[strings.LastIndex(addr, ":"):]) {
		t.Fatalf("%d: %s%s", code, out, errs)
	}
	if err := os.WriteFile(reg, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	edit := func(from, to string) string {
		t.Helper()
		text, err := os.ReadFile(site.config)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "carillon.yaml")
		if err := os.WriteFile(path, []byte(strings.Replace(string(text), from, to, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	start(t, hs, nil, os.Args[0], "homeserver", "-c", edit("homeserver:\n", "homeserver:\n  appservices: "+reg+"\n"))

	service := edit("appservice:\n", "appservice:\n  homeserver_url: "+hs+"\n")
	if code, _, errs := carillon(t, "", "serve", "-c", service); code != exitUsage || !strings.Contains(errs, "homeserver_url") {
		t.Errorf("serve with a homeserver elsewhere: %d: %s", code, errs)
	}
	cmd := exec.Command(os.Args[0], "appservice", "-c", service)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the service is not ready")
		}
	}
	units, people := writeCompany(t, unitsCSV, peopleCSV)
	for _, want := range []string{"陈晨", "0 operations"} {
		if code, out, errs := carillon(t, "", "org", "import", units, people, "-c", service); code != exitOK || !strings.Contains(out, want) {
			t.Fatalf("%d: %s%s", code, out, errs)
		}
	}
	mustCall(t, http.MethodGet, "http://"+addr+"/_carillon/v1/health", "", nil, nil)
}
