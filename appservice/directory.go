package appservice

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/appservice/ldapsync"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/appservice/sites"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// directory is the LDAP directory that the company follows.
type directory struct {
	source *ldapsync.Source // nil: there is none

	reading sync.Mutex // one at a time
	mu      sync.Mutex
	view    directoryView
}

// maxSkipped bounds the entries without an ID that are named.
const maxSkipped = 50

// directoryView is how the company stands with its directory.
type directoryView struct {
	TriedAt int64 `json:"tried_at,omitempty"`
	ReadAt  int64 `json:"read_at,omitempty"` // when it was read without a fault
	// ChangedAt is when something of it became the company.
	ChangedAt int64 `json:"changed_at,omitempty"`
	Changes   int   `json:"changes,omitempty"` // then
	People    int   `json:"people"`
	Units     int   `json:"units"`
	// Skipped are entries of people that have no ID, the first of them by name.
	Skipped      int      `json:"skipped"`
	SkippedNames []string `json:"skipped_names,omitempty"`
	// Error is why the last read changed nothing; Problems, what is wrong with the entries.
	Error    string       `json:"error,omitempty"`
	Problems org.Problems `json:"problems,omitempty"`
}

// follow reads the directory and makes it the company. A read that changes nothing starts no run of the rooms.
func (s *Service) follow(ctx context.Context, o ImportOptions) (*ImportResult, error) {
	d := &s.directory
	d.reading.Lock()
	defer d.reading.Unlock()
	res, err := s.readDirectory(ctx, o)
	now := s.now().UnixMilli()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.view.TriedAt = now
	if err != nil {
		d.view.Error = err.Error()
		var is bool
		if d.view.Problems, is = err.(org.Problems); !is { //nolint:errorlint // Problems come as they are
			d.view.Problems = nil
		}
		return nil, err
	}
	d.view.Error, d.view.Problems, d.view.ReadAt = "", nil, now
	if res.Applied && !res.Plan.Empty() {
		d.view.ChangedAt, d.view.Changes = now, len(res.Plan.Changes)
		log.WithFields(log.Fields{"changes": len(res.Plan.Changes), "tree_version": res.Version}).Info("the company follows its directory")
	}
	return res, nil
}

func (s *Service) readDirectory(ctx context.Context, o ImportOptions) (*ImportResult, error) {
	switch below, err := s.sites.MayImport(); {
	case err != nil:
		return nil, err
	case len(below) > 0: // it would propose the same again and again
		return nil, sites.ErrNotHead
	}
	c, err := s.directory.source.Read(ctx)
	if err != nil {
		return nil, err
	}
	s.directory.mu.Lock()
	v := &s.directory.view
	v.People, v.Units, v.Skipped = c.People(), c.Units(), len(c.Skipped)
	v.SkippedNames = slices.Clone(c.Skipped[:min(len(c.Skipped), maxSkipped)])
	s.directory.mu.Unlock()
	imp, problems := c.Import(s.store.Read)
	if err := problems.Err(); err != nil {
		return nil, err
	}
	o.RemoveMissing = true
	plan := o
	plan.PlanOnly = true
	res, err := s.Import(ctx, imp, plan)
	if err != nil || o.PlanOnly || res.Plan.Empty() {
		return res, err
	}
	return s.Import(ctx, imp, o)
}

// followDirectory keeps the company as the directory has it.
func (s *Service) followDirectory(ctx context.Context) error {
	if s.directory.source == nil {
		return nil
	}
	s.directory.source.Watch(ctx, func(ctx context.Context) error {
		_, err := s.follow(ctx, ImportOptions{Actor: "directory"})
		var problems org.Problems
		if errors.As(err, &problems) { // they hold people's data, which is not for the log
			return fmt.Errorf("%d entries have faults, or too many people would leave: see carillon org directory --status", len(problems))
		}
		return err
	})
	return nil
}

func (s *Service) directoryRoutes() []httpapi.Route {
	const path = apiV1 + "/org/directory"
	return []httpapi.Route{
		{Method: http.MethodGet, Path: path, Auth: httpapi.AuthAdmin, RateLimit: true, Handler: s.serveDirectory},
		{Method: http.MethodPost, Path: path, Auth: httpapi.AuthAdmin, RateLimit: true, Handler: s.serveFollow},
	}
}

func errNoDirectory() error {
	return matrix.NotFound("no directory is set: see appservice.ldap of the configuration")
}

// serveDirectory tells how the company stands with its directory.
func (s *Service) serveDirectory(*httpapi.Call) (any, error) {
	if s.directory.source == nil {
		return nil, errNoDirectory()
	}
	s.directory.mu.Lock()
	defer s.directory.mu.Unlock()
	return s.directory.view, nil
}

// serveFollow reads the directory now; with plan=true it only says what would change.
func (s *Service) serveFollow(c *httpapi.Call) (any, error) {
	if s.directory.source == nil {
		return nil, errNoDirectory()
	}
	o := ImportOptions{Actor: string(c.Caller.User)}
	var err error
	for name, to := range map[string]*bool{"plan": &o.PlanOnly, "force": &o.Force} {
		if *to, err = c.Bool(name); err != nil {
			return nil, err
		}
	}
	language, err := s.language(c)
	if err != nil {
		return nil, err
	}
	res, err := s.follow(c.Ctx(), o)
	if err != nil {
		if e := importError(err, language); e != err { //nolint:errorlint // whether it was known
			return nil, e
		}
		return nil, matrix.NewError(http.StatusBadGateway, "IM_CARILLON_DIRECTORY", "%v", err)
	}
	var text strings.Builder
	if err := res.Plan.WriteText(&text, language); err != nil {
		return nil, err
	}
	out := importView{Applied: res.Applied, Version: res.Version, Plan: res.Plan, Text: text.String()}
	if res.Job != nil {
		st := res.Job.Status()
		out.Job = &st
	}
	return out, nil
}
