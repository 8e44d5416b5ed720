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

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

var errRemoteTooLarge = matrix.NewError(http.StatusBadGateway, "M_TOO_LARGE", "the content is too large to be served")

// remoteError is what a client hears when another server does not give a file.
func remoteError(n name, err error) error {
	var fe *fedclient.Error
	switch {
	case errors.Is(err, errTooLarge):
		return errRemoteTooLarge
	case errors.Is(err, errBanned):
		return errNone
	case errors.As(err, &fe) && fe.Code == "M_NOT_YET_UPLOADED":
		return errNotYet
	case errors.As(err, &fe) && fe.Code == "M_TOO_LARGE":
		return errRemoteTooLarge
	case errors.As(err, &fe) && fe.Status == http.StatusNotFound:
		return errNone
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
