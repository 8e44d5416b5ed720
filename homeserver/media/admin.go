package media

import (
	"net/http"
	"strings"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

const (
	adminBody = 64 << 10
	// adminPage is how many entries a list gives if it is not told, maxAdminPage how many at most.
	adminPage, maxAdminPage = 100, 1000
	maxReason               = 1000 // bytes
)

// adminRoutes are the endpoints for the server's administrators.
func (s *Store) adminRoutes() []httpapi.Route {
	const (
		base = "/_carillon/admin/v1/media"
		file = base + "/{serverName}/{mediaId}"
	)
	admin := func(method, path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: method, Path: path, Auth: httpapi.AuthAdmin, MaxBody: adminBody, Handler: h}
	}
	return []httpapi.Route{
		admin(http.MethodGet, base, s.adminTotals),
		admin(http.MethodGet, base+"/usage", s.adminUsage),
		admin(http.MethodGet, base+"/quarantine", s.adminQuarantines),
		admin(http.MethodGet, "/_carillon/admin/v1/users/{userId}/media", s.adminOfUser),
		admin(http.MethodDelete, "/_carillon/admin/v1/users/{userId}/media", s.adminPurgeUser),
		admin(http.MethodGet, file, s.adminShow),
		admin(http.MethodDelete, file, s.adminPurge),
		admin(http.MethodGet, file+"/content", s.adminContent),
		admin(http.MethodPut, file+"/quarantine", s.adminQuarantine),
		admin(http.MethodDelete, file+"/quarantine", s.adminRelease),
		admin(http.MethodPut, file+"/protection", s.adminProtect),
	}
}

// adminFile is what administrators see of a file.
type adminFile struct {
	URI           string        `json:"content_uri"`
	Uploader      matrix.UserID `json:"user_id,omitempty"`
	Type          string        `json:"content_type,omitempty"`
	Filename      string        `json:"filename,omitempty"`
	Size          int64         `json:"size"`
	Hash          string        `json:"sha256,omitempty"`
	Uploaded      int64         `json:"uploaded_at,omitempty"` // ms
	Accessed      int64         `json:"accessed_at,omitempty"` // ms, to the hour
	Pending       bool          `json:"pending,omitempty"`
	Protected     bool          `json:"protected"`
	Quarantined   bool          `json:"quarantined"`
	Authenticated bool          `json:"authenticated"`
}

func (m *meta) forAdmin() adminFile {
	return adminFile{
		URI: m.MXC(), Uploader: m.uploader, Type: m.contentType, Filename: m.filename, Size: m.size, Hash: m.hash, Uploaded: m.uploaded,
		Accessed: m.accessed, Pending: m.pending(), Protected: m.protected, Quarantined: m.quarantined, Authenticated: m.authenticated,
	}
}

// adminTotals is what there is in all.
func (s *Store) adminTotals(c *httpapi.Call) (any, error) {
	var out struct {
		Local      Usage `json:"local"`
		Remote     Usage `json:"remote"`
		Thumbnails int64 `json:"thumbnail_bytes"`
	}
	out.Thumbnails = max(s.thumbnailBytes.Load(), 0)
	err := s.db.Read(c.Ctx(), func(tx *sqldb.Tx) (err error) {
		if out.Local, err = usage(tx, ofServer, string(s.opts.Server)); err != nil {
			return err
		}
		return tx.QueryRow(qRemoteBytes, string(s.opts.Server)).Scan(&out.Remote.Files, &out.Remote.Bytes)
	})
	return out, err
}

func readPage(c *httpapi.Call) (from string, limit int, err error) {
	limit, err = c.QueryInt("limit", adminPage, 1, maxAdminPage)
	return c.Query("from"), limit, err
}

// adminUsage lists what each user, or each server with by=server, has, in the order of their names.
func (s *Store) adminUsage(c *httpapi.Call) (any, error) {
	type entry struct {
		Name string `json:"name"`
		Usage
	}
	kind := c.Query("by")
	switch kind {
	case "":
		kind = ofUser
	case ofUser, ofServer:
	default:
		return nil, matrix.InvalidParam("by must be user or server")
	}
	from, limit, err := readPage(c)
	if err != nil {
		return nil, err
	}
	var out struct {
		Usage []entry `json:"usage"`
		Next  string  `json:"next_batch,omitempty"`
	}
	err = s.db.Read(c.Ctx(), func(tx *sqldb.Tx) error {
		out.Usage, err = sqldb.Select(tx, func(r *sqldb.Rows) (e entry, err error) {
			return e, r.Scan(&e.Name, &e.Files, &e.Bytes)
		}, qUsages, kind, from, limit)
		return err
	})
	if len(out.Usage) == limit {
		out.Next = out.Usage[limit-1].Name
	}
	return out, err
}

func (s *Store) adminQuarantines(c *httpapi.Call) (any, error) {
	from, limit, err := readPage(c)
	if err != nil {
		return nil, err
	}
	var out struct {
		Quarantines []Quarantine `json:"quarantines"`
		Next        string       `json:"next_batch,omitempty"`
	}
	err = s.db.Read(c.Ctx(), func(tx *sqldb.Tx) error {
		out.Quarantines, err = sqldb.Select(tx, func(r *sqldb.Rows) (q Quarantine, err error) {
			return q, r.Scan(&q.Target, &q.By, &q.Reason, &q.At)
		}, qQuarantines, from, limit)
		return err
	})
	if len(out.Quarantines) == limit {
		out.Next = out.Quarantines[limit-1].Target
	}
	return out, err
}

// ofUser reads a page of somebody's uploads.
func (s *Store) ofUser(c *httpapi.Call, user matrix.UserID, from string, limit int) (files []meta, err error) {
	err = s.db.Read(c.Ctx(), func(tx *sqldb.Tx) error {
		files, err = sqldb.Select(tx, func(r *sqldb.Rows) (m meta, err error) {
			return m, r.Scan(&m.origin, &m.id, &m.uploader, &m.contentType, &m.filename, &m.hash, &m.size, &m.uploaded, &m.accessed,
				&m.protected, &m.quarantined)
		}, qOfUser, string(user), from, limit)
		return err
	})
	return files, err
}

func (s *Store) adminOfUser(c *httpapi.Call) (any, error) {
	user, err := c.UserVar("userId")
	if err != nil {
		return nil, err
	}
	from, limit, err := readPage(c)
	if err != nil {
		return nil, err
	}
	var out struct {
		Usage
		Media []adminFile `json:"media"`
		Next  string      `json:"next_batch,omitempty"`
	}
	files, err := s.ofUser(c, user, from, limit)
	if err != nil {
		return nil, err
	}
	out.Media = make([]adminFile, 0, len(files))
	for i := range files {
		out.Media = append(out.Media, files[i].forAdmin())
	}
	if len(files) == limit {
		out.Next = files[limit-1].id
	}
	err = s.db.Read(c.Ctx(), func(tx *sqldb.Tx) error {
		out.Usage, err = usage(tx, ofUser, string(user))
		return err
	})
	return out, err
}

// adminPurgeUser removes a page of somebody's uploads and says whether there is more, as it may be much.
func (s *Store) adminPurgeUser(c *httpapi.Call) (any, error) {
	user, err := c.UserVar("userId")
	if err != nil {
		return nil, err
	}
	_, limit, err := readPage(c)
	if err != nil {
		return nil, err
	}
	files, err := s.ofUser(c, user, "", limit)
	if err != nil {
		return nil, err
	}
	for _, m := range files {
		if err := s.Delete(c.Ctx(), m.origin, m.id); err != nil {
			return nil, err
		}
	}
	return struct {
		Deleted int  `json:"deleted"`
		More    bool `json:"more"`
	}{len(files), len(files) == limit}, nil
}

// adminRow reads the file of a request.
func (s *Store) adminRow(c *httpapi.Call) (*meta, error) {
	n, err := parseName(c.Var("serverName"), c.Var("mediaId"))
	if err != nil {
		return nil, err
	}
	m, err := s.row(c.Ctx(), n)
	if err == nil && m == nil {
		err = errNone
	}
	return m, err
}

func (s *Store) adminShow(c *httpapi.Call) (any, error) {
	m, err := s.adminRow(c)
	if err != nil {
		return nil, err
	}
	return m.forAdmin(), nil
}

// adminContent gives content also when it is in quarantine, as a file to save.
func (s *Store) adminContent(c *httpapi.Call) (any, error) {
	m, err := s.adminRow(c)
	if err != nil {
		return nil, err
	}
	if m.pending() {
		return nil, errNotYet
	}
	f, err := s.open(c.Ctx(), m)
	if err != nil {
		return nil, s.lost(c.Ctx(), m, err)
	}
	defer f.Close()
	fewRanges(c.R)
	disp := "attachment" + strings.TrimPrefix(disposition(octets, m.filename), "attachment")
	setHeaders(c.W.Header(), octets, disp, m.hash, false)
	c.W.Header().Set("Cache-Control", "no-store")
	http.ServeContent(c.W, c.R, "", time.UnixMilli(m.uploaded), f)
	return httpapi.Done, nil
}

func (s *Store) adminPurge(c *httpapi.Call) (any, error) {
	m, err := s.adminRow(c)
	if err != nil {
		return nil, err
	}
	return nil, s.Delete(c.Ctx(), m.origin, m.id)
}

func (s *Store) adminQuarantine(c *httpapi.Call) (any, error) {
	n, err := parseName(c.Var("serverName"), c.Var("mediaId"))
	if err != nil {
		return nil, err
	}
	var body struct {
		Reason string `json:"reason"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if len(body.Reason) > maxReason {
		return nil, matrix.InvalidParam("the reason may have %d bytes at most", maxReason)
	}
	return nil, s.Quarantine(c.Ctx(), c.Caller.User, n.origin, n.id, body.Reason)
}

func (s *Store) adminRelease(c *httpapi.Call) (any, error) {
	n, err := parseName(c.Var("serverName"), c.Var("mediaId"))
	if err != nil {
		return nil, err
	}
	return nil, s.Release(c.Ctx(), n.origin, n.id)
}

// adminProtect says whether a file may be swept when nobody asks for it.
func (s *Store) adminProtect(c *httpapi.Call) (any, error) {
	m, err := s.adminRow(c)
	if err != nil {
		return nil, err
	}
	var body struct {
		Protected *bool `json:"protected"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.Protected == nil {
		return nil, matrix.MissingParam("protected is missing")
	}
	return nil, s.db.Write(c.Ctx(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qProtect, string(m.origin), m.id, *body.Protected)
		return err
	})
}
