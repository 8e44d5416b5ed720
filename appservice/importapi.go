package appservice

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"path/filepath"
	"strings"

	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/appservice/sites"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// maxImport bounds a company file as it is sent; 7,000 people are about one megabyte.
const maxImport = 32 << 20

// ImportOptions say what an import may do.
type ImportOptions struct {
	PlanOnly      bool // change nothing
	RemoveMissing bool // who is not in the file leaves
	Force         bool // also when many leave
	MoveAccounts  bool // whose main post is at another site gets an account there
	Actor         string
}

// ImportResult is what an import does or would do.
type ImportResult struct {
	Plan    *org.Plan
	Applied bool
	Version int64
	// Job makes the rooms follow; nil when nothing was applied.
	Job *Job
	// Proposal is what the head office has to decide, where this is a site that imports its own people.
	Proposal *sites.Proposal
}

// Import compares a company with the current one, makes it the current one and queues a run of the rooms.
// Faults come back as org.Problems, a change of the company meanwhile as org.ErrMoved. Another site than the head
// office imports nothing (sites.ErrNotHead), or proposes people of its own units to the head office.
func (s *Service) Import(ctx context.Context, imp *org.Import, o ImportOptions) (*ImportResult, error) {
	below, err := s.sites.MayImport()
	if err != nil {
		return nil, err
	}
	plan, problems := s.store.PlanWith(imp, org.PlanOptions{
		RemoveMissing: o.RemoveMissing, Force: o.Force, MaxLeaveShare: s.opts.MaxLeave, MoveAccounts: o.MoveAccounts, Below: below,
	})
	if err := problems.Err(); err != nil {
		return nil, err
	}
	res := &ImportResult{Plan: plan, Version: s.store.Tree().Version}
	if len(below) > 0 {
		if err := s.sites.Check(plan); err != nil || o.PlanOnly || plan.Empty() {
			return res, err
		}
		if res.Proposal, err = s.sites.Propose(ctx, plan, o.Actor); err != nil {
			return nil, err
		}
		return res, nil
	}
	if o.PlanOnly {
		return res, nil
	}
	if !plan.Empty() {
		tree, err := s.store.Apply(ctx, plan, o.Actor)
		if err != nil {
			return nil, fmt.Errorf("importing the company: %w", err)
		}
		res.Version = tree.Version
	}
	res.Applied = true
	res.Job = s.jobs.submit(false)
	return res, nil
}

type importView struct {
	Applied bool       `json:"applied"`
	Version int64      `json:"version"`
	Job     *JobStatus `json:"job,omitempty"`
	// Proposal waits for the head office's decision: see GET /sites/proposals/{id}.
	Proposal *sites.Proposal `json:"proposal,omitempty"`
	Plan     *org.Plan       `json:"plan"`
	Text     string          `json:"text"` // the plan for people to read
}

// serveImport reads a company file and applies it, or with plan=true only says what would change.
func (s *Service) serveImport(c *httpapi.Call) (any, error) {
	var o ImportOptions
	var err error
	for name, to := range map[string]*bool{"plan": &o.PlanOnly, "remove_missing": &o.RemoveMissing, "force": &o.Force, "move_accounts": &o.MoveAccounts} {
		if *to, err = c.Bool(name); err != nil {
			return nil, err
		}
	}
	language, err := s.language(c)
	if err != nil {
		return nil, err
	}
	o.Actor = string(c.Caller.User)
	if _, err := s.sites.MayImport(); err != nil {
		return nil, importError(err, language)
	}
	imp, problems, err := s.readImport(c)
	if err != nil {
		return nil, err
	}
	if err := problems.Err(); err != nil {
		return nil, importError(err, language)
	}
	res, err := s.Import(c.Ctx(), imp, o)
	if err != nil {
		return nil, importError(err, language)
	}
	var text strings.Builder
	if err := res.Plan.WriteText(&text, language); err != nil {
		return nil, err
	}
	out := importView{Applied: res.Applied, Version: res.Version, Proposal: res.Proposal, Plan: res.Plan, Text: text.String()}
	if res.Job != nil {
		st := res.Job.Status()
		out.Job = &st
	}
	return out, nil
}

// language is that of the texts in an answer.
func (s *Service) language(c *httpapi.Call) (org.Lang, error) {
	switch l := c.Query("lang"); l {
	case "":
		return org.Lang(s.opts.Language), nil
	case string(org.Chinese), string(org.English):
		return org.Lang(l), nil
	}
	return "", matrix.InvalidParam("lang must be zh or en")
}

// importError makes an answer of what is wrong with a file.
func importError(err error, l org.Lang) error {
	var problems org.Problems
	switch {
	case errors.Is(err, org.ErrMoved):
		return matrix.NewError(http.StatusConflict, "IM_CARILLON_MOVED", "the company has changed meanwhile; plan again")
	case errors.Is(err, sites.ErrNotHead):
		return matrix.NewError(http.StatusConflict, "IM_CARILLON_NOT_HEAD_OFFICE", "%v", err)
	case errors.Is(err, sites.ErrOutside):
		return matrix.NewError(http.StatusForbidden, "IM_CARILLON_NOT_DELEGATED", "%v", err)
	case !errors.As(err, &problems):
		return err
	}
	var text strings.Builder
	if err := problems.WriteText(&text, l); err != nil {
		return err
	}
	status, code := http.StatusBadRequest, "IM_CARILLON_BAD_FILE"
	if problems.Has("too_many_leave") || problems.Has("too_many_removed") {
		status, code = http.StatusConflict, "IM_CARILLON_TOO_MANY_LEAVE"
	}
	return matrix.NewError(status, code, "the file has %d problems; nothing was changed", len(problems)).
		With("problems", problems).With("text", text.String())
}

// readImport reads the file of a request: the body itself, or the files of a form (units.csv and people.csv).
func (s *Service) readImport(c *httpapi.Call) (*org.Import, org.Problems, error) {
	kind, params, err := mime.ParseMediaType(c.R.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" {
		body, err := readLimited(c.BodyReader())
		if err != nil {
			return nil, nil, err
		}
		if len(body) == 0 {
			return nil, nil, matrix.MissingParam("the body must be a company file: XLSX, CSV or a zip of CSV")
		}
		name := c.Query("name")
		if name == "" {
			name = "upload"
		}
		imp, problems := s.store.Read(filepath.Base(name), bytes.NewReader(body))
		return imp, problems, nil
	}
	files, err := formFiles(multipart.NewReader(c.BodyReader(), params["boundary"]))
	if err != nil {
		return nil, nil, err
	}
	if len(files) == 1 {
		imp, problems := s.store.Read(files[0].name, bytes.NewReader(files[0].data))
		return imp, problems, nil
	}
	zipped, err := zipFiles(files)
	if err != nil {
		return nil, nil, err
	}
	imp, problems := s.store.Read("upload.zip", bytes.NewReader(zipped))
	return imp, problems, nil
}

func readLimited(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(r)
	var over *http.MaxBytesError
	if errors.As(err, &over) {
		return nil, matrix.NewError(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "the file is larger than %d bytes", over.Limit)
	}
	if err != nil {
		return nil, matrix.Unknown("the body could not be read")
	}
	return b, nil
}

type formFile struct {
	name string
	data []byte
}

// maxFormFiles bounds the files of a form.
const maxFormFiles = 8

func formFiles(r *multipart.Reader) ([]formFile, error) {
	var files []formFile
	for {
		part, err := r.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		var over *http.MaxBytesError
		switch {
		case errors.As(err, &over):
			return nil, matrix.NewError(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "the files are larger than %d bytes", over.Limit)
		case err != nil:
			return nil, matrix.InvalidParam("the form cannot be read")
		case part.FileName() == "":
			continue
		case len(files) == maxFormFiles:
			return nil, matrix.InvalidParam("a company has at most %d files", maxFormFiles)
		}
		data, err := readLimited(part)
		if err != nil {
			return nil, err
		}
		files = append(files, formFile{filepath.Base(part.FileName()), data})
	}
	if len(files) == 0 {
		return nil, matrix.MissingParam("the form has no file")
	}
	return files, nil
}

// zipFiles makes one file of several, as the reader of company files takes them.
func zipFiles(files []formFile) ([]byte, error) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range files {
		w, err := z.CreateHeader(&zip.FileHeader{Name: f.name, Method: zip.Store})
		if err != nil {
			return nil, fmt.Errorf("gathering files: %w", err)
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, fmt.Errorf("gathering files: %w", err)
		}
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("gathering files: %w", err)
	}
	return b.Bytes(), nil
}

// serveReconcile queues a run of the rooms.
func (s *Service) serveReconcile(c *httpapi.Call) (any, error) {
	verify, err := c.Bool("verify")
	if err != nil {
		return nil, err
	}
	if s.store.Tree().Version == 0 {
		return nil, matrix.NewError(http.StatusConflict, "IM_CARILLON_NO_COMPANY", "%v", ErrNoCompany)
	}
	return httpapi.Status{Code: http.StatusAccepted, Body: s.jobs.submit(verify).Status()}, nil
}

// serveJob answers how a run stands.
func (s *Service) serveJob(c *httpapi.Call) (any, error) {
	j := s.jobs.find(c.Var("id"))
	if j == nil {
		return nil, matrix.NotFound("no job of that ID is remembered")
	}
	return j.Status(), nil
}
