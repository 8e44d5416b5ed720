package media

import (
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
)

// ServeFederationDownload is GET /_matrix/federation/v1/media/download/{mediaId}.
func (s *Store) ServeFederationDownload(c *httpapi.Call) (any, error) {
	m, err := s.forServer(c)
	if err != nil {
		return nil, err
	}
	disp := disposition(m.contentType, m.filename)
	place, err := s.place(c.Ctx(), m, disp)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(place, "https://") { // servers follow no others
		return httpapi.Done, writeParts(c.W, textproto.MIMEHeader{"Location": {place}}, nil)
	}
	f, err := s.open(c.Ctx(), m)
	if err != nil {
		return nil, s.lost(c.Ctx(), m, err)
	}
	defer f.Close()
	if o, ok := f.(*object); ok {
		if err := o.start(); err != nil {
			return nil, s.lost(c.Ctx(), m, err)
		}
	}
	return httpapi.Done, writeParts(c.W, partHeader(m.contentType, disp), f)
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
	return httpapi.Done, writeParts(c.W, partHeader(p.contentType, p.disposition()), p)
}

// forServer finds the local file that another server asks for.
func (s *Store) forServer(c *httpapi.Call) (*meta, error) {
	n, err := parseName(string(s.opts.Server), c.Var("mediaId"))
	if err != nil {
		return nil, err
	}
	wait, err := readWait(c)
	if err != nil {
		return nil, err
	}
	m, err := s.local(c, request{name: n, wait: wait})
	if err != nil {
		return nil, err
	}
	s.touch(m)
	return m, nil
}

func partHeader(contentType, disposition string) textproto.MIMEHeader {
	return textproto.MIMEHeader{"Content-Type": {contentType}, "Content-Disposition": {disposition}}
}

// writeParts writes the answer between servers; r is nil for a part of headers only. Once it has begun an error can only cut it short.
func writeParts(w http.ResponseWriter, header textproto.MIMEHeader, r io.Reader) error {
	mw := multipart.NewWriter(w)
	w.Header().Set("Content-Type", "multipart/mixed; boundary="+mw.Boundary())
	p, err := mw.CreatePart(textproto.MIMEHeader{"Content-Type": {"application/json"}})
	if err == nil {
		_, err = io.WriteString(p, "{}")
	}
	if err == nil {
		p, err = mw.CreatePart(header)
	}
	if err == nil && r != nil {
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
