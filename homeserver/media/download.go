package media

import (
	"context"
	"fmt"
	"mime"
	"net/http"
	"os"
	"time"

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

// disposition is the Content-Disposition of a file.
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

const policy = "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; object-src 'self';"

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
	wait        time.Duration
	allowRemote bool
	// open requests carry no access token.
	open bool
}

func readRequest(c *httpapi.Call, open bool) (request, error) {
	n, err := parseName(c.Var("serverName"), c.Var("mediaId"))
	if err != nil {
		return request{}, err
	}
	ms, err := c.QueryInt("timeout_ms", defaultWait, 0, maxWait)
	if err != nil {
		return request{}, err
	}
	r := request{name: n, wait: time.Duration(ms) * time.Millisecond, allowRemote: true, open: open}
	if open && c.Query("allow_remote") != "" {
		if r.allowRemote, err = c.Bool("allow_remote"); err != nil {
			return request{}, err
		}
	}
	return r, nil
}

// get finds content, waiting for it or fetching it if need be.
func (s *Store) get(ctx context.Context, r request) (*meta, error) {
	m, err := s.lookup(ctx, r)
	if err != nil {
		return nil, err
	}
	if r.open && m.authenticated && !s.opts.OpenDownloads {
		return nil, matrix.NotFound("no such media")
	}
	return m, nil
}

func (s *Store) lookup(ctx context.Context, r request) (*meta, error) {
	if r.origin == s.opts.Server {
		return s.local(ctx, r)
	}
	m, err := s.find(ctx, r.name)
	if err == nil || !matrix.IsCode(err, "M_NOT_FOUND") {
		return m, err
	}
	// A copy made now would be new media, which open requests do not get.
	if !r.allowRemote || r.open && !s.opts.OpenDownloads {
		return nil, err
	}
	return s.fetch(ctx, r)
}

// local waits for content that has been announced but has not come yet.
func (s *Store) local(ctx context.Context, r request) (*meta, error) {
	m, err := s.find(ctx, r.name)
	if err != nil || !m.pending() {
		return m, err
	}
	filled, release := s.await(r.name) // before it is read once more, lest it come in between
	defer release()
	wait := time.NewTimer(r.wait)
	defer wait.Stop()
	for first := true; ; first = false {
		if m, err = s.find(ctx, r.name); err != nil || !m.pending() {
			return m, err
		}
		if !first {
			return nil, errNotYet
		}
		select {
		case <-filled:
		case <-wait.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

var errNotYet = matrix.NewError(http.StatusGatewayTimeout, "M_NOT_YET_UPLOADED", "the content has not been uploaded yet")

// open opens the file of a row.
func (s *Store) open(m *meta) (*os.File, error) {
	f, err := os.Open(s.file(m.hash))
	if err != nil {
		return nil, fmt.Errorf("opening media: %w", err)
	}
	return f, nil
}

// download is GET /download with and without a file name.
func (s *Store) download(open bool) httpapi.Handler {
	return func(c *httpapi.Call) (any, error) {
		r, err := readRequest(c, open)
		if err != nil {
			return nil, err
		}
		m, err := s.get(c.Ctx(), r)
		if err != nil {
			return nil, err
		}
		filename := m.filename
		if asked := c.Var("fileName"); asked != "" {
			filename = cleanName(asked)
		}
		f, err := s.open(m)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		setHeaders(c.W.Header(), m.contentType, disposition(m.contentType, filename), m.hash, open)
		http.ServeContent(c.W, c.R, "", time.UnixMilli(m.uploaded), f)
		return httpapi.Done, nil
	}
}

// config is GET /config.
func (s *Store) config(*httpapi.Call) (any, error) {
	return struct {
		Size int64 `json:"m.upload.size"`
	}{s.opts.MaxUpload}, nil
}

// Routes are the endpoints for clients.
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
	return []httpapi.Route{
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
	}
}
