package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/carillon-chat/carillon/appservice/org"
)

type orgCmd struct {
	Import    orgImportCmd    `cmd:"" help:"Make a company file the company: people, units, rooms follow."`
	Template  orgTemplateCmd  `cmd:"" help:"Write an empty company file to fill in."`
	Tree      orgTreeCmd      `cmd:"" help:"Print the units with their managers."`
	People    orgPeopleCmd    `cmd:"" help:"Print people, or find some."`
	Directory orgDirectoryCmd `cmd:"" help:"Read the company from its LDAP directory now, or see how it stands."`
	Sites     orgSitesCmd     `cmd:"" help:"Print how the company's sites stand."`
	Reconcile orgReconcileCmd `cmd:"" help:"Make the rooms follow the company again."`
	Generate  orgGenerateCmd  `cmd:"" help:"Write a made-up company of any size, for load tests."`
}

// Help shows examples.
func (orgCmd) Help() string {
	return "Import, directory, tree, people and reconcile speak to the running server, or open the data folder if none runs.\n\n" +
		"Examples:\n  carillon org template --format xlsx -o company.xlsx\n  carillon org import company.xlsx --plan\n  carillon org import company.xlsx --passwords first-passwords.csv\n  carillon org tree"
}

// language is the language of what a command prints.
type language struct {
	Lang string `enum:"zh,en," default:"" placeholder:"zh|en" help:"Language of the texts; without it, the configuration's."`
}

type orgImportCmd struct {
	Files         []string `arg:"" help:"The company file: XLSX, a zip of CSV, or units.csv and people.csv."`
	Plan          bool     `help:"Only print what would change."`
	Force         bool     `help:"Go on even if very many people would leave."`
	RemoveMissing bool     `help:"People and units that are not in the file have left and are gone."`
	MoveAccounts  bool     `help:"People whose main post is at another site than their account get an account there; the old one is closed."`
	Passwords     string   `placeholder:"FILE" help:"Where first passwords of new people go, for HR. Without it they stay in the data folder; the path is printed."`
	Wait          bool     `default:"true" negatable:"" help:"Wait until the rooms follow."`
	language
}

// Help shows examples.
func (orgImportCmd) Help() string {
	return "All mistakes of a file are listed with row, column, value and the mend, and a file with one changes nothing (exit code 3). Importing twice changes nothing. An import that is broken off goes on at the next start.\n\n" +
		"Examples:\n  carillon org import company.xlsx --plan\n  carillon org import company.xlsx --passwords first-passwords.csv\n  carillon org import units.csv people.csv --remove-missing"
}

// importAnswer is what the server answers to an import.
type importAnswer struct {
	Applied  bool    `json:"applied"`
	Text     string  `json:"text"`
	Job      *orgJob `json:"job"`
	Proposal *struct {
		ID string `json:"id"`
	} `json:"proposal"`
	Plan *struct { // only what is needed here
		Changes []json.RawMessage `json:"changes"`
	} `json:"plan"`
}

// orgJob is a run of the rooms after the company.
type orgJob struct {
	ID       string `json:"id"`
	State    string `json:"state"`
	Error    string `json:"error"`
	Progress *struct {
		Phase string `json:"phase"`
		Done  int    `json:"done"`
		Total int    `json:"total"`
	} `json:"progress"`
	Report *struct {
		Operations int `json:"operations"`
		Failed     int `json:"failed"`
		Failures   []struct {
			What   string `json:"what"`
			Room   string `json:"room"`
			Person string `json:"person"`
			Error  string `json:"error"`
		} `json:"failures"`
		PasswordFile string `json:"password_file"`
	} `json:"report"`
}

// Run imports a company file.
func (c orgImportCmd) Run(a *app) error {
	body, contentType, err := readCompanyFiles(c.Files)
	if err != nil {
		return usage{err}
	}
	q := url.Values{
		"plan": {strconv.FormatBool(c.Plan)}, "force": {strconv.FormatBool(c.Force)},
		"remove_missing": {strconv.FormatBool(c.RemoveMissing)}, "move_accounts": {strconv.FormatBool(c.MoveAccounts)},
	}
	if c.Lang != "" {
		q.Set("lang", c.Lang)
	}
	if len(c.Files) == 1 {
		q.Set("name", filepath.Base(c.Files[0]))
	}
	return a.withOrg(func(ctx context.Context, o *operator) error {
		var answer importAnswer
		err := o.doType(ctx, http.MethodPost, "/_carillon/v1/org/import?"+q.Encode(), contentType, bytes.NewReader(body), &answer)
		if err != nil {
			return refusedImport(err)
		}
		a.printf("%s", answer.Text)
		if answer.Proposal != nil {
			return c.followProposal(ctx, a, o, answer.Proposal.ID)
		}
		if c.Plan || answer.Job == nil || !c.Wait {
			return nil
		}
		job, err := a.followJob(ctx, o, answer.Job)
		if err != nil {
			return err
		}
		return c.reportJob(a, job)
	})
}

// refusedImport prints the server's list of mistakes as it is.
func refusedImport(err error) error {
	var e *apiError
	if !errors.As(err, &e) || e.Status >= 500 {
		return err
	}
	var more struct {
		Text string `json:"text"`
	}
	if json.Unmarshal(e.Body, &more) == nil && more.Text != "" {
		return refused{errors.New(strings.TrimRight(more.Text, "\n"))}
	}
	return refused{err}
}

// readCompanyFiles reads the files of an import into one request body.
func readCompanyFiles(names []string) (body []byte, contentType string, err error) {
	if len(names) == 1 {
		body, err = os.ReadFile(names[0])
		return body, "application/octet-stream", err
	}
	var b bytes.Buffer
	form := multipart.NewWriter(&b)
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, "", err
		}
		w, err := form.CreateFormFile("file", filepath.Base(name))
		if err != nil {
			return nil, "", err
		}
		if _, err := w.Write(data); err != nil {
			return nil, "", err
		}
	}
	err = form.Close() // writes the end
	return b.Bytes(), form.FormDataContentType(), err
}

// followJob waits for a run of the rooms and shows how far it has come.
func (a *app) followJob(ctx context.Context, o *operator, job *orgJob) (*orgJob, error) {
	progress := newBar(a.stderr)
	defer progress.finish()
	id := job.ID
	err := waitFor(ctx, func() (bool, error) {
		job = &orgJob{}
		if err := o.do(ctx, http.MethodGet, "/_carillon/v1/org/jobs/"+url.PathEscape(id), nil, job); err != nil {
			return false, err
		}
		if job.Progress != nil {
			progress.set(job.Progress.Phase, job.Progress.Done, job.Progress.Total)
		}
		return job.State == "done" || job.State == "failed", nil
	})
	return job, err
}

// reportJob prints what a run of the rooms has done.
func (c orgImportCmd) reportJob(a *app, job *orgJob) error {
	if job.Report == nil {
		return fmt.Errorf("the rooms do not follow yet: %s; they are tried again by the running server, or at the next start", job.Error)
	}
	a.printf("%d operations on accounts, rooms and memberships.\n", job.Report.Operations)
	if file := job.Report.PasswordFile; file != "" {
		if c.Passwords != "" {
			if err := moveFile(file, c.Passwords); err != nil {
				return fmt.Errorf("the first passwords are in %s: %w", file, err)
			}
			file = c.Passwords
		}
		a.printf("First passwords, for HR: %s\n", file)
	}
	if job.State == "done" {
		return nil
	}
	for _, f := range job.Report.Failures {
		fmt.Fprintf(a.stderr, "failed: %s %s %s: %s\n", f.What, f.Room, f.Person, f.Error)
	}
	return fmt.Errorf("%d operations failed (%s); they are tried again by the running server, or at the next start", job.Report.Failed, job.Error)
}

// moveFile moves a secret file, over file systems if need be.
func moveFile(from, to string) error {
	if os.Rename(from, to) == nil {
		return nil
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to, b, 0o600); err != nil {
		return err
	}
	return os.Remove(from)
}

type orgTemplateCmd struct {
	Format string `enum:"xlsx,csv" default:"xlsx" help:"xlsx, or csv (a zip of two files)."`
	Output string `short:"o" placeholder:"FILE" help:"Write there instead of to standard output."`
}

// Help shows examples.
func (orgTemplateCmd) Help() string {
	return "Examples:\n  carillon org template -o company.xlsx\n  carillon org template --format csv -o company.zip"
}

// Run writes a template.
func (c orgTemplateCmd) Run(a *app) error {
	return a.output(c.Output, 0o644, func(w io.Writer) error { return org.WriteTemplate(w, c.Format) })
}

type orgGenerateCmd struct {
	People int    `default:"7000" help:"Number of people."`
	Units  int    `default:"400" help:"Number of units."`
	Sites  int    `default:"15" help:"Number of sites."`
	Seed   int    `default:"1" help:"The same seed gives the same company."`
	Format string `enum:"xlsx,csv" default:"csv" help:"csv (a zip of two files), or xlsx."`
	Output string `short:"o" placeholder:"FILE" help:"Write there instead of to standard output."`
}

// Help shows examples.
func (orgGenerateCmd) Help() string {
	return "Example:\n  carillon org generate --people 7000 --units 400 --sites 15 -o big.zip"
}

// Run writes a made-up company.
func (c orgGenerateCmd) Run(a *app) error {
	if c.People < 1 || c.Units < 1 || c.Sites < 1 || c.People > 1_000_000 || c.Units > 100_000 || c.Sites > c.Units {
		return usagef("people, units and sites must be above 0, and sites no more than units")
	}
	return a.output(c.Output, 0o644, func(w io.Writer) error {
		return org.Generate(c.Seed, c.People, c.Units, c.Sites).Write(w, c.Format)
	})
}

type orgTreeCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Run prints the units.
func (c orgTreeCmd) Run(a *app) error {
	return a.withOrg(func(ctx context.Context, o *operator) error {
		var raw []byte
		if err := o.do(ctx, http.MethodGet, "/_carillon/v1/org/tree", nil, &raw); err != nil {
			return err
		}
		if c.JSON {
			a.printf("%s\n", raw)
			return nil
		}
		return a.printTree(raw)
	})
}

func (a *app) printTree(raw []byte) error {
	var tree struct {
		Version int64 `json:"version"`
		People  int   `json:"people"`
		Units   []struct {
			ID, Name string
			ParentID string `json:"parent_id"`
			Site     string `json:"site"`
			Total    int    `json:"total_members"`
			Managers []struct{ ID, Name string }
		} `json:"units"`
	}
	if err := json.Unmarshal(raw, &tree); err != nil {
		return err
	}
	if len(tree.Units) == 0 {
		a.printf("No company has been imported yet. Start with: carillon org template\n")
		return nil
	}
	children := map[string][]int{}
	known := map[string]bool{}
	for i, u := range tree.Units {
		known[u.ID] = true
		children[u.ParentID] = append(children[u.ParentID], i)
	}
	var t table
	var show func(i int, indent string)
	show = func(i int, indent string) {
		u := tree.Units[i]
		var names []string
		for _, m := range u.Managers {
			names = append(names, m.Name)
		}
		t.add(indent+u.Name, u.ID, strconv.Itoa(u.Total), strings.Join(names, ", "), u.Site)
		for _, child := range children[u.ID] {
			show(child, indent+"  ")
		}
	}
	for i, u := range tree.Units {
		if !known[u.ParentID] {
			show(i, "")
		}
	}
	if err := t.write(a.stdout); err != nil {
		return err
	}
	a.printf("%d units, %d people, version %d\n", len(tree.Units), tree.People, tree.Version)
	return nil
}

type orgPeopleCmd struct {
	Query string `arg:"" optional:"" help:"Part of a name, job number, log-in name, address or mobile number."`
	Unit  string `placeholder:"ID" help:"Only people of this unit and those below."`
	JSON  bool   `name:"json" help:"Print JSON, a person a line."`
}

// Run prints people.
func (c orgPeopleCmd) Run(a *app) error {
	return a.withOrg(func(ctx context.Context, o *operator) error {
		q := url.Values{"limit": {"500"}, "q": {c.Query}}
		if c.Unit != "" {
			q.Set("unit", c.Unit)
			q.Set("sub", "true")
		}
		var t table
		for {
			var page struct {
				People []json.RawMessage `json:"people"`
				Next   string            `json:"next_cursor"`
			}
			if err := o.do(ctx, http.MethodGet, "/_carillon/v1/org/people?"+q.Encode(), nil, &page); err != nil {
				return asRefused(err)
			}
			for _, raw := range page.People {
				if err := c.print(a, &t, raw); err != nil {
					return err
				}
			}
			if page.Next == "" {
				return t.write(a.stdout)
			}
			q.Set("cursor", page.Next)
		}
	})
}

func (c orgPeopleCmd) print(a *app, t *table, raw json.RawMessage) error {
	if c.JSON {
		a.printf("%s\n", raw)
		return nil
	}
	var p struct {
		ID     string `json:"id"`
		Name   string `json:"name"`
		User   string `json:"user_id"`
		Status string `json:"status"`
		Posts  []struct {
			Unit  string `json:"unit_name"`
			Title string `json:"title"`
		} `json:"posts"`
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return err
	}
	var posts []string
	for _, post := range p.Posts {
		posts = append(posts, strings.TrimSpace(post.Unit+" "+post.Title))
	}
	t.add(p.ID, p.Name, p.User, p.Status, strings.Join(posts, "; "))
	return nil
}

type orgReconcileCmd struct {
	Verify bool `help:"Compare with the homeserver first: mends what was changed there, and brings back people who left a room of theirs."`
}

// Help shows examples.
func (orgReconcileCmd) Help() string {
	return "A server does this after each import, each night and at its start when something was left undone.\n\nExamples:\n  carillon org reconcile\n  carillon org reconcile --verify"
}

// Run makes the rooms follow.
func (c orgReconcileCmd) Run(a *app) error {
	return a.withOrg(func(ctx context.Context, o *operator) error {
		job := &orgJob{}
		if err := o.do(ctx, http.MethodPost, "/_carillon/v1/org/reconcile?verify="+strconv.FormatBool(c.Verify), struct{}{}, job); err != nil {
			return asRefused(err)
		}
		job, err := a.followJob(ctx, o, job)
		if err != nil {
			return err
		}
		return orgImportCmd{}.reportJob(a, job)
	})
}

// withOrg runs fn against the running enterprise service, or against the data folder.
func (a *app) withOrg(fn func(context.Context, *operator) error) error {
	return a.withOperator(appserviceSocket, orgParts, (*stack).orgControl, fn)
}
