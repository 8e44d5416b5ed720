package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/carillon-chat/carillon/appservice/ldapsync"
	"github.com/carillon-chat/carillon/config"
)

// directorySource is the LDAP directory that the company follows, nil for none.
func directorySource(c *config.Directory) (*ldapsync.Source, error) {
	if c.URL == "" {
		return nil, nil
	}
	u, p := &c.Units, &c.People
	o := ldapsync.Options{
		URL: c.URL, StartTLS: c.StartTLS, Plain: c.AllowPlain, BindDN: c.BindDN, Password: c.Password.Value(), Every: c.Every.Std(),
		Units:  ldapsync.Units{Base: u.Base, Filter: u.Filter, Groups: u.Groups, ID: u.ID, Name: u.Name, Code: u.Code, Order: u.Order, Site: u.Site, Manager: u.Manager},
		People: ldapsync.People{Base: p.Base, Filter: p.Filter, ID: p.ID, Name: p.Name, Mobile: p.Mobile, Email: p.Email, Title: p.Title, Manager: p.Manager, Unit: p.Unit, Hired: p.Hired, Left: p.Left},
	}
	if c.CAFile != "" {
		var err error
		if o.ExtraCAs, err = os.ReadFile(c.CAFile); err != nil {
			return nil, fmt.Errorf("reading appservice.directory.ca_file: %w", err)
		}
	}
	s, err := ldapsync.New(o)
	if err != nil {
		return nil, fmt.Errorf("appservice.directory: %w", err)
	}
	return s, nil
}

type orgDirectoryCmd struct {
	Plan   bool `help:"Only print what would change."`
	Force  bool `help:"Go on even if very many people would leave."`
	Status bool `help:"Only print how the company stands with its directory."`
	Wait   bool `default:"true" negatable:"" help:"Wait until the rooms follow."`
	language
}

// Help shows examples.
func (orgDirectoryCmd) Help() string {
	return "A server follows its directory by itself (appservice.directory of the configuration). This is for the first time, when --plan shows what would become of the company, and for when very many people are gone from it at once, which a server does not believe by itself.\n\n" +
		"Examples:\n  carillon org directory --plan\n  carillon org directory --status\n  carillon org directory --force"
}

// Run reads the directory.
func (c orgDirectoryCmd) Run(a *app) error {
	const path = "/_carillon/v1/org/directory"
	if c.Status {
		return a.withOrg(func(ctx context.Context, o *operator) error { return c.status(ctx, a, o, path) })
	}
	q := url.Values{"plan": {strconv.FormatBool(c.Plan)}, "force": {strconv.FormatBool(c.Force)}}
	if c.Lang != "" {
		q.Set("lang", c.Lang)
	}
	return a.withOrg(func(ctx context.Context, o *operator) error {
		var answer importAnswer
		if err := o.do(ctx, http.MethodPost, path+"?"+q.Encode(), struct{}{}, &answer); err != nil {
			return refusedImport(err)
		}
		a.printf("%s", answer.Text)
		if c.Plan || answer.Job == nil || !c.Wait {
			return nil
		}
		job, err := a.followJob(ctx, o, answer.Job)
		if err != nil {
			return err
		}
		return orgImportCmd{}.reportJob(a, job)
	})
}

func (c orgDirectoryCmd) status(ctx context.Context, a *app, o *operator, path string) error {
	var v struct {
		ReadAt       int64    `json:"read_at"`
		ChangedAt    int64    `json:"changed_at"`
		Changes      int      `json:"changes"`
		People       int      `json:"people"`
		Units        int      `json:"units"`
		Skipped      int      `json:"skipped"`
		SkippedNames []string `json:"skipped_names"`
		Error        string   `json:"error"`
	}
	if err := o.do(ctx, http.MethodGet, path, nil, &v); err != nil {
		return asRefused(err)
	}
	when := func(ms int64) string {
		if ms == 0 {
			return "never"
		}
		return time.UnixMilli(ms).Format(time.DateTime)
	}
	a.printf("read without a fault: %s\nlast change: %s, %d\npeople: %d\nunits: %d\nentries without a job number: %d\n", when(v.ReadAt), when(v.ChangedAt), v.Changes, v.People, v.Units, v.Skipped)
	for _, name := range v.SkippedNames {
		a.printf("  %s\n", name)
	}
	if v.Error != "" {
		a.printf("what is wrong: %s\n", v.Error)
	}
	return nil
}
