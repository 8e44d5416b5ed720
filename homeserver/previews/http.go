package previews

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// maxLanguage is the longest Accept-Language that is passed on, in bytes.
const maxLanguage = 100

// Routes are the endpoints of the module.
func (p *Previews) Routes() []httpapi.Route {
	get := func(path string) httpapi.Route {
		return httpapi.Route{Method: http.MethodGet, Path: path, Auth: httpapi.AuthUser, RateLimit: true, AllowSuspended: true, Handler: p.getPreview}
	}
	return []httpapi.Route{get("/_matrix/client/v1/media/preview_url"), get("/_matrix/media/v3/preview_url")}
}

func (p *Previews) getPreview(c *httpapi.Call) (any, error) {
	raw := strings.TrimSpace(c.Query("url"))
	if raw == "" {
		return nil, matrix.MissingParam("url is needed")
	}
	u, err := url.Parse(raw)
	if err != nil || len(raw) > maxAddress {
		return nil, matrix.InvalidParam("url is not an address of a page")
	}
	if err := checkAddress(u); err != nil {
		return nil, matrix.InvalidParam("url: %s", err)
	}
	if !p.permits(u) {
		return nil, matrix.Forbidden("previews of this host are switched off")
	}
	u.Fragment, u.RawFragment = "", ""
	var ts int64
	if s := c.Query("ts"); s != "" {
		if ts, err = strconv.ParseInt(s, 10, 64); err != nil || ts < 0 {
			return nil, matrix.InvalidParam("ts must be a time in milliseconds")
		}
	}
	b, err := p.Get(c.Ctx(), u.String(), language(c.R.Header.Get("Accept-Language")), ts)
	if errors.Is(err, errFailed) {
		// Not why: it would tell what there is in the network of this server.
		return nil, matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "the page could not be fetched")
	}
	if err != nil {
		return nil, err
	}
	return httpapi.Raw(b), nil
}

// language is what a client prefers, in a form that can be sent on.
func language(s string) string {
	if len(s) > maxLanguage || strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-,;=.* ") != "" {
		return ""
	}
	return s
}
