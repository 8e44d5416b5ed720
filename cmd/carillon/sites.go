package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/carillon-chat/carillon/appservice/sites"
	"github.com/carillon-chat/carillon/config"
)

// siteOptions are the company's sites as the enterprise service takes them.
func siteOptions(c *config.Sites) sites.Options {
	o := sites.Options{Own: c.Own}
	for _, site := range c.List {
		o.List = append(o.List, sites.NewSite(site.Name, site.ServerName, site.Bot, site.Name == c.HeadOffice, site.Delegated))
	}
	return o
}

type orgSitesCmd struct {
	JSON       bool   `name:"json" help:"Print JSON."`
	Trust      string `placeholder:"SITE" help:"Trust the new key of a site whose service was set up anew."`
	RaiseEpoch bool   `help:"At the head office: make its organisation the later one everywhere, after it was restored from a backup. People whom it does not know leave at all sites."`
}

// Help shows examples.
func (orgSitesCmd) Help() string {
	return "Version is the one of the organisation that the site has; waiting counts messages that it has not acknowledged; behind is how old what is known of it may be.\n\n" +
		"Examples:\n  carillon org sites\n  carillon org sites --trust 四川\n  carillon org sites --raise-epoch"
}

// Run prints how the sites stand, or says what the operator has decided.
func (c orgSitesCmd) Run(a *app) error {
	if c.Trust != "" && c.RaiseEpoch {
		return usagef("--trust and --raise-epoch are two decisions: take one after the other")
	}
	return a.withOrg(func(ctx context.Context, o *operator) error {
		switch {
		case c.Trust != "":
			return asRefused(o.do(ctx, http.MethodPost, "/_carillon/v1/sites/trust", map[string]string{"site": c.Trust}, nil))
		case c.RaiseEpoch:
			var mark struct{ Epoch, Version int64 }
			if err := o.do(ctx, http.MethodPost, "/_carillon/v1/sites/epoch", struct{}{}, &mark); err != nil {
				return asRefused(err)
			}
			a.printf("Epoch %d begins with version %d.\n", mark.Epoch, mark.Version)
			return nil
		case c.JSON:
			var raw []byte
			if err := o.do(ctx, http.MethodGet, "/_carillon/v1/sites", nil, &raw); err != nil {
				return err
			}
			a.printf("%s\n", raw)
			return nil
		}
		return a.printSites(ctx, o)
	})
}

func (a *app) printSites(ctx context.Context, o *operator) error {
	var out struct {
		Sites []struct {
			Name, State    string
			ServerName     string `json:"server_name"`
			Head           bool   `json:"head_office"`
			Own            bool
			Epoch, Version int64
			HeardAt        int64 `json:"heard_at"`
			Behind         int64 `json:"behind_ms"`
			Waiting        int
			Offered        string `json:"offered_key"`
		}
	}
	if err := o.do(ctx, http.MethodGet, "/_carillon/v1/sites", nil, &out); err != nil {
		return err
	}
	var t table
	t.add("SITE", "SERVER", "VERSION", "STATE", "WAITING", "HEARD", "BEHIND", "")
	for _, s := range out.Sites {
		heard, behind, note := "-", "-", ""
		if s.HeardAt > 0 {
			heard = time.UnixMilli(s.HeardAt).Format(time.DateTime)
		}
		switch {
		case s.Own:
			note = "this site"
		default:
			behind = (time.Duration(s.Behind) * time.Millisecond).Round(time.Second).String()
		}
		if s.Head {
			note = joinNotes(note, "head office")
		}
		if s.Offered != "" {
			note = joinNotes(note, "speaks with another key, "+s.Offered)
		}
		t.add(s.Name, s.ServerName, fmt.Sprintf("%d.%d", s.Epoch, s.Version), s.State, strconv.Itoa(s.Waiting), heard, behind, note)
	}
	return t.write(a.stdout)
}

func joinNotes(a, b string) string {
	if a == "" {
		return b
	}
	return a + ", " + b
}

// decisionPatience is how long an import at a site waits for the head office's word.
const decisionPatience = 30 * time.Second

// followProposal waits for the head office's decision on an import at another site, and prints it.
func (c orgImportCmd) followProposal(ctx context.Context, a *app, o *operator, proposal string) error {
	a.printf("These changes were sent to the head office, which decides (%s).\n", proposal)
	if !c.Wait {
		return nil
	}
	var p sites.Proposal
	waiting, cancel := context.WithTimeout(ctx, decisionPatience)
	defer cancel()
	err := waitFor(waiting, func() (bool, error) {
		p = sites.Proposal{}
		err := o.do(ctx, http.MethodGet, "/_carillon/v1/sites/proposals/"+url.PathEscape(proposal), nil, &p)
		return p.Outcome != nil, err
	})
	switch {
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		a.printf("The head office has not answered yet. What is decided shows in: carillon org sites --json\n")
		return nil
	case err != nil:
		return err
	}
	a.printf("%d people changed, version %d.\n", p.Outcome.Accepted, p.Outcome.Version)
	if len(p.Outcome.Refused) == 0 {
		return nil
	}
	for _, r := range p.Outcome.Refused {
		fmt.Fprintf(a.stderr, "refused: %s: %s\n", r.Person, r.Reason)
	}
	return refused{fmt.Errorf("the head office has refused the changes of %d people", len(p.Outcome.Refused))}
}
