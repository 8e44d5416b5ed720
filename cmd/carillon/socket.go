package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// A running server owns its databases, so the operator's commands speak to it
// through a socket in the data folder that only the server's own user may open.
const (
	homeserverSocket = "homeserver.sock"
	appserviceSocket = "appservice.sock"
)

// maxSocketPath is what the address of a socket can hold on every system.
const maxSocketPath = 100

// socketAddr is the address of a socket in a folder whose path may be too long for
// one: then through the folder's open descriptor, which done closes.
func socketAddr(dir, name string) (addr string, done func(), err error) {
	addr = filepath.Join(dir, name)
	if len(addr) <= maxSocketPath {
		return addr, func() {}, nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return "/proc/self/fd/" + strconv.Itoa(int(d.Fd())) + "/" + name, func() { d.Close() }, nil
}

// openSocket listens on a socket of the data folder. The caller holds the database
// lock, so a socket that is there belongs to nobody.
func openSocket(dir, name string) (*listener, error) {
	addr, done, err := socketAddr(dir, name)
	if err != nil {
		return nil, fmt.Errorf("opening the operator's socket: %w", err)
	}
	defer done()
	if err := os.Remove(addr); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("opening the operator's socket: %w", err)
	}
	ln, err := net.Listen("unix", addr)
	if err != nil {
		return nil, fmt.Errorf("opening the operator's socket: %w", err)
	}
	// The folder is closed to others already; nobody is served before this.
	if err := os.Chmod(addr, 0o600); err != nil {
		ln.Close()
		return nil, fmt.Errorf("opening the operator's socket: %w", err)
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // the address may go through a closed descriptor
	}
	return &listener{name: "operator", ln: ln}, nil
}

// operator is the client of a control handler: over the socket of a running server,
// or straight into a handler of this process.
type operator struct {
	client *http.Client
	close  func() error
}

// dialOperator reaches the running server; nil if none runs.
func dialOperator(dir, name string) (*operator, error) {
	dial := func(ctx context.Context) (net.Conn, error) {
		addr, done, err := socketAddr(dir, name)
		if err != nil {
			return nil, err
		}
		defer done()
		var d net.Dialer
		return d.DialContext(ctx, "unix", addr)
	}
	conn, err := dial(context.Background())
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reaching the running server: %w", err)
	}
	conn.Close()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}
	return &operator{
		client: &http.Client{Transport: transport},
		close:  func() error { transport.CloseIdleConnections(); return nil },
	}, nil
}

// startPatience is how long a command waits for a server that is starting.
const startPatience = 5 * time.Second

// awaitOperator is dialOperator with patience.
func awaitOperator(ctx context.Context, dir, name string) (o *operator, err error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	err = waitFor(ctx, func() (bool, error) {
		o, err = dialOperator(dir, name)
		return o != nil, err
	})
	if errors.Is(err, context.DeadlineExceeded) {
		err = nil // the caller knows that nobody answers
	}
	return o, err
}

// apiError is an error answer of the server.
type apiError struct {
	Status  int    `json:"-"`
	Code    string `json:"errcode"`
	Message string `json:"error"`
	Body    []byte `json:"-"`
}

// Error is the server's own text.
func (e *apiError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("the server answers %d", e.Status)
	}
	return e.Message
}

// maxAnswer bounds what is read of an answer; the tree of a very large company fits.
const maxAnswer = 256 << 20

// do sends one request. in is nil or a value for JSON; out is nil, a *[]byte or a
// pointer for JSON.
func (o *operator) do(ctx context.Context, method, path string, in, out any) error {
	if in == nil {
		return o.doType(ctx, method, path, "", nil, out)
	}
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return o.doType(ctx, method, path, "application/json", bytes.NewReader(b), out)
}

// doType is do with a body of any type.
func (o *operator) doType(ctx context.Context, method, path, contentType string, body io.Reader, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://carillon"+path, body)
	if err != nil {
		return err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := o.client.Do(req)
	if err != nil {
		return fmt.Errorf("asking the server: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("reading the server's answer: %w", err)
	}
	if resp.StatusCode >= 300 {
		e := &apiError{Status: resp.StatusCode, Body: b}
		_ = json.Unmarshal(b, e) // without JSON the status says it
		return e
	}
	switch out := out.(type) {
	case nil:
		return nil
	case *[]byte:
		*out = b
		return nil
	}
	return json.Unmarshal(b, out)
}

// waitFor asks again until done says so, soon at first and then twice a second.
func waitFor(ctx context.Context, done func() (bool, error)) error {
	pause := 50 * time.Millisecond
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, 500*time.Millisecond)
	}
}
