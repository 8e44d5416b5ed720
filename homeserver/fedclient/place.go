package fedclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// PlaceRequest is a request to a server that is found under its own name, without delegation, such as an identity
// server.
type PlaceRequest struct {
	Method string
	Host   matrix.ServerName // with a port unless it is 443
	Path   string            // escaped
	Query  url.Values
	Token  string // sent as a bearer token
	Signed bool   // signed like a request to a homeserver instead
	Body   any    // sent as JSON; nil: none
}

// maxPlaceAnswer bounds the answers to Place, in bytes.
const maxPlaceAnswer = 1 << 20

// Place sends a request over TLS, to a public address unless others are allowed, and gives the status and the body
// whatever the status is. Redirects are not followed.
func (c *Client) Place(ctx context.Context, r PlaceRequest) (int, []byte, error) {
	if !matrix.ValidServerName(string(r.Host)) {
		return 0, nil, &Error{Server: r.Host, cause: errors.New("not the name of a server")}
	}
	ctx, cancel := context.WithTimeout(ctx, defaultTimeout/2)
	defer cancel()
	uri := r.Path
	if len(r.Query) > 0 {
		uri += "?" + r.Query.Encode()
	}
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = encode(r.Body); err != nil {
			return 0, nil, fmt.Errorf("encoding a request: %w", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, "https://"+string(r.Host)+uri, bytes.NewReader(body))
	if err != nil {
		return 0, nil, fmt.Errorf("making a request: %w", err)
	}
	req.Header.Set("User-Agent", c.opts.UserAgent)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	switch {
	case r.Signed:
		auth, err := c.authorization(r.Method, r.Host, req.URL.RequestURI(), json.RawMessage(body))
		if err != nil {
			return 0, nil, err
		}
		req.Header.Set("Authorization", auth)
	case r.Token != "":
		req.Header.Set("Authorization", "Bearer "+r.Token)
	}
	resp, err := c.places.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // the address may hold a secret
		}
		return 0, nil, &Error{Server: r.Host, cause: err}
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxPlaceAnswer+1))
	if err != nil {
		return 0, nil, &Error{Server: r.Host, cause: fmt.Errorf("reading the answer: %w", err)}
	}
	if len(answer) > maxPlaceAnswer {
		return 0, nil, &Error{Server: r.Host, cause: fmt.Errorf("the answer is larger than %d bytes", maxPlaceAnswer)}
	}
	return resp.StatusCode, answer, nil
}
