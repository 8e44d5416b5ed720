package media

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// inline are the types that browsers may show at once.
//
// Spec: client-server-api#serving-inline-content
func inline(contentType string) bool {
	t, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return false
	}
	switch t {
	case "text/css", "text/plain", "text/csv", "application/json", "application/ld+json",
		"image/jpeg", "image/gif", "image/png", "image/apng", "image/webp", "image/avif",
		"video/mp4", "video/webm", "video/ogg", "video/quicktime",
		"audio/mp4", "audio/webm", "audio/aac", "audio/mpeg", "audio/ogg", "audio/wave", "audio/wav", "audio/x-wav",
		"audio/x-pn-wav", "audio/flac", "audio/x-flac":
		return true
	}
	return false
}

// disposition is the Content-Disposition of a file; names that are not ASCII are written as RFC 8187 says.
func disposition(contentType, filename string) string {
	kind := "attachment"
	if inline(contentType) {
		kind = "inline"
	}
	if filename == "" {
		return kind
	}
	if v := mime.FormatMediaType(kind, map[string]string{"filename": filename}); v != "" {
		return v
	}
	return kind
}

const (
	policy = "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; object-src 'self';"
	// maxRanges is how many pieces of a file one request may ask for; above that it gets the whole.
	maxRanges = 8
)

// setHeaders sets what stands above all content.
func setHeaders(h http.Header, contentType, disposition, etag string, shared bool) {
	h.Set("Content-Type", contentType)
	h.Set("Content-Disposition", disposition)
	h.Set("Content-Security-Policy", policy)
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("ETag", `"`+etag+`"`)
	// Content never changes, but what needs an access token must not stay in a cache that others use.
	if shared {
		h.Set("Cache-Control", "public, max-age=86400, immutable")
	} else {
		h.Set("Cache-Control", "private, max-age=86400, immutable")
	}
}

const (
	defaultWait = 20_000
	maxWait     = 60_000
)

// request is what the download and thumbnail endpoints have in common.
type request struct {
	name
	wait          time.Duration
	allowRemote   bool
	allowRedirect bool
	// open requests carry no access token.
	open bool
}

func readRequest(c *httpapi.Call, open bool) (request, error) {
	n, err := parseName(c.Var("serverName"), c.Var("mediaId"))
	if err != nil {
		return request{}, err
	}
	wait, err := readWait(c)
	if err != nil {
		return request{}, err
	}
	r := request{name: n, wait: wait, allowRemote: true, allowRedirect: !open, open: open}
	if !open {
		return r, nil
	}
	if c.Query("allow_remote") != "" {
		if r.allowRemote, err = c.Bool("allow_remote"); err != nil {
			return request{}, err
		}
	}
	r.allowRedirect, err = c.Bool("allow_redirect")
	return r, err
}

// readWait is how long a caller waits for content that has not been uploaded yet.
func readWait(c *httpapi.Call) (time.Duration, error) {
	ms, err := c.QueryInt("timeout_ms", defaultWait, 0, maxWait)
	return time.Duration(ms) * time.Millisecond, err
}

// get finds content, waiting for it or fetching it if need be.
func (s *Store) get(c *httpapi.Call, r request) (*meta, error) {
	m, err := s.lookup(c, r)
	if err != nil {
		return nil, err
	}
	if r.open && m.authenticated && !s.isOpen(r.name) {
		return nil, errNone
	}
	s.touch(m)
	return m, nil
}

// isOpen says that new media of a name are served without an access token.
func (s *Store) isOpen(n name) bool {
	return s.opts.OpenDownloads || s.opts.Public != nil && s.opts.Public(n.MXC())
}

func (s *Store) lookup(c *httpapi.Call, r request) (*meta, error) {
	if r.origin == s.opts.Server {
		return s.local(c, r)
	}
	m, err := s.find(c.Ctx(), r.name)
	if err != errUnknown { // a quarantine is an answer, too
		return m, err
	}
	// A copy made now would be new media, which open requests do not get.
	if !r.allowRemote || r.open && !s.isOpen(r.name) {
		return nil, errNone
	}
	return s.fetch(c.Ctx(), r)
}

// local waits for content that has been announced but has not come yet.
func (s *Store) local(c *httpapi.Call, r request) (*meta, error) {
	m, err := s.find(c.Ctx(), r.name)
	if err != nil || !m.pending() {
		return m, err
	}
	filled, release := s.await(r.name) // before it is read once more, lest it come in between
	defer release()
	wait, cancel := c.WaitContext(r.wait)
	defer cancel()
	for first := true; ; first = false {
		if m, err = s.find(c.Ctx(), r.name); err != nil || !m.pending() {
			return m, err
		}
		if !first {
			return nil, errNotYet
		}
		select {
		case <-filled:
		case <-wait.Done():
		}
	}
}

var errNotYet = matrix.NewError(http.StatusGatewayTimeout, "M_NOT_YET_UPLOADED", "the content has not been uploaded yet")

// open opens the content of a row.
func (s *Store) open(ctx context.Context, m *meta) (io.ReadSeekCloser, error) {
	f, err := s.files.open(ctx, m.hash, m.size)
	if err != nil {
		return nil, fmt.Errorf("opening media: %w", err)
	}
	return f, nil
}

// lost is called when the content of a row is not where it belongs. A copy is fetched anew when it is asked for
// again; an upload is gone.
func (s *Store) lost(ctx context.Context, m *meta, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	log.WithFields(log.Fields{"origin": m.origin, "media_id": m.id}).Error("the content of a file is missing in the store")
	if m.origin != s.opts.Server {
		if err := s.Delete(ctx, m.origin, m.id); err != nil {
			return err
		}
	}
	return errNone
}

// download is GET /download with and without a file name.
func (s *Store) download(open bool) httpapi.Handler {
	return func(c *httpapi.Call) (any, error) {
		r, err := readRequest(c, open)
		if err != nil {
			return nil, err
		}
		m, err := s.get(c, r)
		if err != nil {
			return nil, err
		}
		return s.serve(c, m, r)
	}
}

// serve writes the content of a row, or says where it is.
func (s *Store) serve(c *httpapi.Call, m *meta, r request) (any, error) {
	filename := m.filename
	if asked := c.Var("fileName"); asked != "" {
		filename = cleanName(asked)
	}
	disp := disposition(m.contentType, filename)
	if r.allowRedirect && c.R.Method == http.MethodGet {
		switch place, err := s.place(c.Ctx(), m, disp); {
		case err != nil:
			return nil, err
		case place != "":
			c.W.Header().Set("Cache-Control", "no-store") // the link ends sooner than the content
			c.W.Header().Set("Location", place)
			c.W.WriteHeader(http.StatusTemporaryRedirect)
			return httpapi.Done, nil
		}
	}
	f, err := s.open(c.Ctx(), m)
	if err != nil {
		return nil, s.lost(c.Ctx(), m, err)
	}
	defer f.Close()
	fewRanges(c.R)
	if o, ok := f.(*object); ok && plain(c.R) {
		if err := o.start(); err != nil {
			return nil, s.lost(c.Ctx(), m, err)
		}
	}
	setHeaders(c.W.Header(), m.contentType, disp, m.hash, r.open)
	http.ServeContent(c.W, c.R, "", time.UnixMilli(m.uploaded), f)
	return httpapi.Done, nil
}

// plain says that a request will be answered with the content from its beginning.
func plain(r *http.Request) bool {
	return r.Method == http.MethodGet && r.Header.Get("Range") == "" && r.Header.Get("If-None-Match") == "" && r.Header.Get("If-Modified-Since") == ""
}

// fewRanges makes a request for many pieces one for the whole.
func fewRanges(r *http.Request) {
	if strings.Count(r.Header.Get("Range"), ",") >= maxRanges {
		r.Header.Del("Range")
	}
}

// place is where a client may be sent for content; "" if it gets it here.
func (s *Store) place(ctx context.Context, m *meta, disposition string) (string, error) {
	if !s.opts.Redirect || m.size < s.opts.RedirectFrom {
		return "", nil
	}
	return s.files.link(ctx, m.hash, url.Values{
		"response-content-type":        {m.contentType},
		"response-content-disposition": {disposition},
		"response-cache-control":       {"private, max-age=86400, immutable"},
	})
}

// config is GET /config.
func (s *Store) config(*httpapi.Call) (any, error) {
	return struct {
		Size int64 `json:"m.upload.size"`
	}{s.opts.MaxUpload}, nil
}

// Routes are the endpoints for clients and administrators.
func (s *Store) Routes() []httpapi.Route {
	const (
		old  = "/_matrix/media/v3"
		auth = "/_matrix/client/v1/media"
		file = "/{serverName}/{mediaId}"
	)
	user := func(method, path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: method, Path: path, Auth: httpapi.AuthUser, Handler: h}
	}
	write := func(r httpapi.Route) httpapi.Route {
		r.RateLimit, r.MaxBody = true, s.opts.MaxUpload
		return r
	}
	read := func(r httpapi.Route) httpapi.Route {
		r.AllowSuspended, r.AllowGuest = true, true
		return r
	}
	public := func(path string, h httpapi.Handler) httpapi.Route {
		return httpapi.Route{Method: http.MethodGet, Path: path, Auth: httpapi.AuthNone, Handler: h}
	}
	return append([]httpapi.Route{
		write(user(http.MethodPost, old+"/upload", s.upload)),
		write(user(http.MethodPut, old+"/upload"+file, s.fill)),
		{Method: http.MethodPost, Path: "/_matrix/media/v1/create", Auth: httpapi.AuthUser, RateLimit: true, Handler: s.create},
		read(user(http.MethodGet, auth+"/config", s.config)),
		read(user(http.MethodGet, auth+"/download"+file, s.download(false))),
		read(user(http.MethodGet, auth+"/download"+file+"/{fileName}", s.download(false))),
		read(user(http.MethodGet, auth+"/thumbnail"+file, s.thumbnail(false))),
		read(user(http.MethodGet, old+"/config", s.config)),
		public(old+"/download"+file, s.download(true)),
		public(old+"/download"+file+"/{fileName}", s.download(true)),
		public(old+"/thumbnail"+file, s.thumbnail(true)),
	}, s.adminRoutes()...)
}
