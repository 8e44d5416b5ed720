package previews

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	_ "image/gif"  // to measure pictures
	_ "image/jpeg" // the same
	_ "image/png"  // the same
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	log "github.com/sirupsen/logrus"
	_ "golang.org/x/image/webp" // to measure pictures
)

const (
	// visitTime is how long page and picture may take together.
	visitTime = 20 * time.Second
	// maxPage is how much of a page is read, maxImage how large a picture may be.
	maxPage      = 1 << 20
	maxImage     = 8 << 20
	maxRedirects = 5
	maxHeader    = 64 << 10
)

// newClient makes a client that goes to permitted addresses only, also when a
// redirect leads elsewhere: the guard looks at each address that is dialled. It
// knows no proxies and keeps no cookies.
func (p *Previews) newClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: p.opts.Guard.Dialer().DialContext, TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 10 * time.Second,
			MaxResponseHeaderBytes: maxHeader, MaxIdleConns: maxVisits, IdleConnTimeout: 10 * time.Second, ForceAttemptHTTP2: true,
		},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) > maxRedirects {
				return errors.New("too many redirects")
			}
			return p.check(req.URL)
		},
	}
}

// checkAddress reports what cannot be visited.
func checkAddress(u *url.URL) error {
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return errors.New("only http and https can be visited")
	case u.Hostname() == "":
		return errors.New("the address has no host")
	case u.User != nil:
		return errors.New("addresses with a password are not visited")
	}
	return nil
}

// check reports what cannot be visited, or must not be.
func (p *Previews) check(u *url.URL) error {
	if err := checkAddress(u); err != nil {
		return err
	}
	if !p.permits(u) {
		return errForbidden
	}
	return nil
}

// errForbidden is what the settings do not permit.
var errForbidden = errors.New("previews of this host are switched off")

// visit fetches a page and what belongs to it, and the media ID of its picture.
func (p *Previews) visit(ctx context.Context, address, language string) (data map[string]any, image string, err error) {
	ctx, cancel := context.WithTimeout(ctx, visitTime)
	defer cancel()
	resp, err := p.get(ctx, address, language, "text/html,application/xhtml+xml,image/*;q=0.8,*/*;q=0.1")
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	contentType := resp.Header.Get("Content-Type")
	kind, _, _ := mime.ParseMediaType(contentType)
	switch {
	case strings.HasPrefix(kind, "image/"):
		data = map[string]any{}
		return data, p.keep(ctx, data, resp), nil
	case kind != "text/html" && kind != "application/xhtml+xml":
		return map[string]any{}, "", nil // nothing to say about it
	}
	if language == "" {
		language = p.opts.Language
	}
	page := readPage(io.LimitReader(resp.Body, maxPage), contentType, language, resp.Request.URL)
	resp.Body.Close()
	p.describe(ctx, &page, language)
	data = make(map[string]any, len(page.properties)+4)
	for k, v := range page.properties {
		data[k] = v
	}
	if page.image == "" {
		return data, "", nil
	}
	picture, err := p.get(ctx, page.image, language, "image/*")
	if err != nil {
		return data, "", nil // a page without its picture is better than none
	}
	defer picture.Body.Close()
	return data, p.keep(ctx, data, picture), nil
}

func (p *Previews) get(ctx context.Context, address, language, accept string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	if err := p.check(req.URL); err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", p.opts.UserAgent)
	req.Header.Set("Accept", accept)
	if language == "" {
		language = p.opts.Language
	}
	if language != "" {
		req.Header.Set("Accept-Language", language)
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("the server answers %d", resp.StatusCode)
	}
	return resp, nil
}

// keep stores a picture, describes it and returns its media ID. What is too large
// or no picture is left out.
func (p *Previews) keep(ctx context.Context, data map[string]any, resp *http.Response) string {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxImage+1))
	if err != nil || len(b) > maxImage {
		return ""
	}
	cfg, format, err := image.DecodeConfig(bytes.NewReader(b))
	if err != nil {
		return ""
	}
	kind := "image/" + format
	mxc, err := p.media.Upload(ctx, "", kind, "", bytes.NewReader(b))
	if err != nil {
		log.WithError(err).Warn("the picture of a preview could not be stored")
		return ""
	}
	data["og:image"], data["og:image:type"] = mxc, kind
	data["og:image:width"], data["og:image:height"] = cfg.Width, cfg.Height
	data["matrix:image:size"] = len(b)
	return mediaID(mxc)
}
