package media

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// fetchTime is how long a file may take from its first byte on.
const fetchTime = 5 * time.Minute

// fetch makes a copy of a file of another server. Requests for the same file at the same time share one fetch.
func (s *Store) fetch(ctx context.Context, r request) (*meta, error) {
	if s.remote == nil {
		return nil, matrix.NotFound("this server does not federate")
	}
	unlock, err := s.fetching.LockContext(ctx, r.name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	m, err := s.find(ctx, r.name)
	if err == nil || !matrix.IsCode(err, "M_NOT_FOUND") {
		return m, err
	}
	release, err := s.fetches.Acquire(ctx, 1)
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, r.wait+fetchTime)
	defer cancel()
	body, err := s.ask(ctx, r)
	if err != nil {
		return nil, remoteError(r.name, err)
	}
	defer body.Close()
	if body.size > s.opts.MaxRemote {
		return nil, errRemoteTooLarge
	}
	err = s.keep(body, s.opts.MaxRemote, func(c stored) error {
		return s.db.Write(ctx, func(tx *sqldb.Tx) error {
			_, err := tx.Exec(qInsertCopy, string(r.origin), r.id, "", body.contentType, body.filename, c.hash, c.size, s.nowMillis(), !s.opts.OpenDownloads)
			return err
		})
	})
	if err != nil {
		return nil, remoteError(r.name, err)
	}
	return s.find(ctx, r.name)
}

var errRemoteTooLarge = matrix.NewError(http.StatusBadGateway, "M_TOO_LARGE", "the content is too large to be served")

// remoteError is what a client hears when another server does not give a file.
func remoteError(n name, err error) error {
	var fe *fedclient.Error
	switch {
	case errors.Is(err, errTooLarge):
		return errRemoteTooLarge
	case errors.As(err, &fe) && fe.Code == "M_NOT_YET_UPLOADED":
		return errNotYet
	case errors.As(err, &fe) && fe.Code == "M_TOO_LARGE":
		return errRemoteTooLarge
	case errors.As(err, &fe) && fe.Status == http.StatusNotFound:
		return matrix.NotFound("no such media")
	}
	log.WithError(err).WithFields(log.Fields{"origin": n.origin, "media_id": n.id}).Debug("fetching media failed")
	return matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "the media could not be fetched from %s", n.origin)
}

// content is a file on its way from another server.
type content struct {
	io.Reader
	close       func() error
	contentType string
	filename    string
	size        int64 // -1: not known
}

// Close ends the transfer.
func (b *content) Close() error { return b.close() }

func newContent(r io.Reader, closer io.Closer, h textproto.MIMEHeader, size int64) *content {
	b := &content{Reader: r, close: closer.Close, contentType: cleanType(h.Get("Content-Type")), size: size}
	if _, params, err := mime.ParseMediaType(h.Get("Content-Disposition")); err == nil {
		b.filename = cleanName(params["filename"])
	}
	return b
}

// ask asks for a file at the endpoint for servers, and where that is not known yet, at the one for everybody.
func (s *Store) ask(ctx context.Context, r request) (*content, error) {
	query := url.Values{"timeout_ms": {strconv.FormatInt(r.wait.Milliseconds(), 10)}}
	resp, err := s.remote.Get(ctx, r.origin, fedclient.Path("_matrix", "federation", "v1", "media", "download", r.id), query)
	if err == nil {
		return s.parts(ctx, resp)
	}
	var fe *fedclient.Error
	if !errors.As(err, &fe) || fe.Status < 400 || fe.Status >= 500 || fe.Code != "" && fe.Code != "M_UNRECOGNIZED" {
		return nil, err // it knows the endpoint
	}
	// compat: servers from before version 1.11 of the specification.
	query.Set("allow_remote", "false")
	resp, err = s.remote.Get(ctx, r.origin, fedclient.Path("_matrix", "media", "v3", "download", string(r.origin), r.id), query)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	return newContent(resp.Body, resp.Body, textproto.MIMEHeader(resp.Header), resp.ContentLength), nil
}

// parts reads the two parts of an answer between servers: metadata, and the file or where it is.
func (s *Store) parts(ctx context.Context, resp *http.Response) (body *content, err error) {
	defer func() {
		if err != nil {
			resp.Body.Close()
		}
	}()
	t, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || t != "multipart/mixed" || params["boundary"] == "" {
		return nil, errors.New("the answer is not multipart/mixed")
	}
	mr := multipart.NewReader(resp.Body, params["boundary"])
	meta, err := mr.NextPart()
	if err != nil {
		return nil, fmt.Errorf("reading the metadata: %w", err)
	}
	if n, err := io.Copy(io.Discard, io.LimitReader(meta, 64<<10)); err != nil || n == 64<<10 {
		return nil, errors.New("the metadata is malformed")
	}
	file, err := mr.NextPart()
	if err != nil {
		return nil, fmt.Errorf("reading the file: %w", err)
	}
	place := file.Header.Get("Location")
	if place == "" {
		return newContent(file, resp.Body, file.Header, -1), nil
	}
	elsewhere, err := s.remote.GetURL(ctx, place)
	if err != nil {
		return nil, fmt.Errorf("following the location: %w", err)
	}
	resp.Body.Close()
	if elsewhere.StatusCode != http.StatusOK {
		elsewhere.Body.Close()
		return nil, fmt.Errorf("following the location: status %d", elsewhere.StatusCode)
	}
	return newContent(elsewhere.Body, elsewhere.Body, textproto.MIMEHeader(elsewhere.Header), elsewhere.ContentLength), nil
}

// ServeFederationDownload is GET /_matrix/federation/v1/media/download/{mediaId}.
func (s *Store) ServeFederationDownload(c *httpapi.Call) (any, error) {
	m, err := s.forServer(c)
	if err != nil {
		return nil, err
	}
	f, err := s.open(m)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return httpapi.Done, writeParts(c.W, m.contentType, disposition(m.contentType, m.filename), f)
}

// ServeFederationThumbnail is GET /_matrix/federation/v1/media/thumbnail/{mediaId}.
func (s *Store) ServeFederationThumbnail(c *httpapi.Call) (any, error) {
	want, err := readSize(c)
	if err != nil {
		return nil, err
	}
	m, err := s.forServer(c)
	if err != nil {
		return nil, err
	}
	p, err := s.picture(c.Ctx(), m, want)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	return httpapi.Done, writeParts(c.W, p.contentType, p.disposition(), p)
}

// forServer finds the local file that another server asks for.
func (s *Store) forServer(c *httpapi.Call) (*meta, error) {
	n, err := parseName(string(s.opts.Server), c.Var("mediaId"))
	if err != nil {
		return nil, err
	}
	ms, err := c.QueryInt("timeout_ms", defaultWait, 0, maxWait)
	if err != nil {
		return nil, err
	}
	return s.local(c.Ctx(), request{name: n, wait: time.Duration(ms) * time.Millisecond})
}

// writeParts writes the answer between servers. Once it has begun an error can only cut it short.
func writeParts(w http.ResponseWriter, contentType, disposition string, r io.Reader) error {
	mw := multipart.NewWriter(w)
	w.Header().Set("Content-Type", "multipart/mixed; boundary="+mw.Boundary())
	p, err := mw.CreatePart(textproto.MIMEHeader{"Content-Type": {"application/json"}})
	if err == nil {
		_, err = io.WriteString(p, "{}")
	}
	if err == nil {
		p, err = mw.CreatePart(textproto.MIMEHeader{"Content-Type": {contentType}, "Content-Disposition": {disposition}})
	}
	if err == nil {
		_, err = io.Copy(p, r)
	}
	if err == nil {
		err = mw.Close()
	}
	if err != nil {
		panic(http.ErrAbortHandler) // the other side must not take the half for the whole
	}
	return nil
}
