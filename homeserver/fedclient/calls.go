package fedclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// ServerKeys fetches a server's own signed keys.
func (c *Client) ServerKeys(ctx context.Context, server matrix.ServerName) ([]byte, error) {
	return c.Do(ctx, Request{
		Method: http.MethodGet, Server: server, Path: Path("_matrix", "key", "v2", "server"), Unsigned: true, MaxBody: 1 << 20,
	})
}

// QueryKeys asks a notary for the keys of a server.
func (c *Client) QueryKeys(ctx context.Context, notary, server matrix.ServerName, minValid int64) ([]json.RawMessage, error) {
	body := map[string]any{"server_keys": map[string]any{
		string(server): map[string]any{"": map[string]any{"minimum_valid_until_ts": minValid}},
	}}
	var out struct {
		ServerKeys []json.RawMessage `json:"server_keys"`
	}
	err := c.JSON(ctx, Request{
		Method: http.MethodPost, Server: notary, Path: Path("_matrix", "key", "v2", "query"), Body: body, Unsigned: true, MaxBody: 1 << 20,
	}, &out)
	return out.ServerKeys, err
}

// Version asks for the name and version of a server's software.
func (c *Client) Version(ctx context.Context, server matrix.ServerName) (name, version string, err error) {
	var out struct {
		Server struct{ Name, Version string } `json:"server"`
	}
	err = c.JSON(ctx, Request{
		Method: http.MethodGet, Server: server, Path: Path("_matrix", "federation", "v1", "version"), Unsigned: true, MaxBody: 1 << 20,
	}, &out)
	return out.Server.Name, out.Server.Version, err
}

// SendTransaction delivers a transaction and returns what the server said of each event it refused. It is sent
// even if the server failed a moment ago: its caller keeps count itself.
func (c *Client) SendTransaction(ctx context.Context, server matrix.ServerName, txn string, body json.RawMessage) (map[matrix.EventID]string, error) {
	var out struct {
		PDUs map[matrix.EventID]struct {
			Error string `json:"error"`
		} `json:"pdus"`
	}
	err := c.JSON(ctx, Request{
		Method: http.MethodPut, Server: server, Path: Path("_matrix", "federation", "v1", "send", txn), Body: body,
		Patient: true, Timeout: time.Minute, MaxBody: 4 << 20,
	}, &out)
	if err != nil {
		return nil, err
	}
	var refused map[matrix.EventID]string
	for id, r := range out.PDUs {
		if r.Error != "" {
			if refused == nil {
				refused = map[matrix.EventID]string{}
			}
			refused[id] = r.Error
		}
	}
	return refused, nil
}

// Get sends a signed request for something large, whose body the caller reads and closes. An answer has a status
// below 400; redirects are left to the caller.
func (c *Client) Get(ctx context.Context, server matrix.ServerName, path string, query url.Values) (*http.Response, error) {
	return c.send(ctx, Request{Method: http.MethodGet, Server: server, Path: path, Query: query})
}

// GetURL fetches from a place that another server has named, which must be public like a server. An answer has a
// status below 400 and its body is the caller's to close; redirects are not followed.
func (c *Client) GetURL(ctx context.Context, rawURL string) (*http.Response, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, errors.New("not the address of a public place")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	req.Header.Set("User-Agent", c.opts.UserAgent)
	resp, err := c.places.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // the address may hold a secret
		}
		return nil, &Error{Server: matrix.ServerName(u.Host), cause: err}
	}
	if resp.StatusCode >= http.StatusBadRequest {
		resp.Body.Close()
		return nil, &Error{Server: matrix.ServerName(u.Host), Status: resp.StatusCode, Msg: "no content there"}
	}
	return resp, nil
}
