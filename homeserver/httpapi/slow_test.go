package httpapi_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
)

// slow starts a server that is impatient, and dials it.
func slow(t *testing.T, routes ...httpapi.Route) net.Conn {
	t.Helper()
	a := newAPI(httpapi.Options{Patience: 200 * time.Millisecond})
	a.Add(routes...)
	srv := httptest.NewServer(a)
	t.Cleanup(srv.Close)
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func answered(t *testing.T, conn net.Conn) (int, string) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func TestABodyThatDoesNotComeIsNotWaitedFor(t *testing.T) {
	read := func(c *httpapi.Call) (any, error) {
		var v struct{}
		return nil, c.Body(&v)
	}
	stream := func(c *httpapi.Call) (any, error) {
		_, err := io.Copy(io.Discard, c.BodyReader())
		if err != nil {
			return httpapi.Status{Code: 400, Body: map[string]string{"errcode": "M_NOT_JSON"}}, nil
		}
		return nil, nil
	}
	for name, h := range map[string]httpapi.Handler{"read": read, "stream": stream} {
		for _, head := range []string{"Content-Length: 10", "Content-Length: 1000", "Transfer-Encoding: chunked"} {
			conn := slow(t, httpapi.Route{Method: "PUT", Path: "/put", MaxBody: 2000, Handler: h})
			begin := time.Now()
			fmt.Fprintf(conn, "PUT /put HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n", head)
			status, body := answered(t, conn)
			if took := time.Since(begin); status != 400 || took > 5*time.Second {
				t.Errorf("%s, %s: %d %s after %s", name, head, status, body, took)
			}
		}
	}
}

func TestAWaitAfterABodyIsNotCutShort(t *testing.T) {
	conn := slow(t, httpapi.Route{Method: "PUT", Path: "/put", Handler: func(c *httpapi.Call) (any, error) {
		var v struct{}
		if err := c.Body(&v); err != nil {
			return nil, err
		}
		select {
		case <-time.After(400 * time.Millisecond):
			return map[string]bool{"waited": true}, nil
		case <-c.Ctx().Done():
			return nil, errors.New("the client is taken for gone")
		}
	}})
	fmt.Fprint(conn, "PUT /put HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}")
	if status, body := answered(t, conn); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	time.Sleep(500 * time.Millisecond) // longer than the last answer had
	for _, method := range []string{"OPTIONS", "PUT"} {
		fmt.Fprintf(conn, "%s /put HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}", method)
		if status, body := answered(t, conn); status/100 != 2 {
			t.Errorf("%s on the same connection: %d %s", method, status, body)
		}
	}
}

func TestAnAnswerThatIsNotTakenIsGivenUp(t *testing.T) {
	ended := make(chan error, 1)
	conn := slow(t, httpapi.Route{Method: "GET", Path: "/get", Handler: func(c *httpapi.Call) (any, error) {
		piece := make([]byte, 1<<10)
		for range 1 << 16 {
			if _, err := c.W.Write(piece); err != nil {
				ended <- err
				return httpapi.Done, nil
			}
		}
		ended <- nil
		return httpapi.Done, nil
	}})
	fmt.Fprint(conn, "GET /get HTTP/1.1\r\nHost: a\r\n\r\n")
	select {
	case err := <-ended:
		if err == nil {
			t.Error("64 MiB went into a socket that nobody reads")
		}
	case <-time.After(20 * time.Second):
		t.Error("the answer is still being written")
	}
}

func TestDeepBodies(t *testing.T) {
	a := newAPI(httpapi.Options{})
	a.Add(
		httpapi.Route{Method: "PUT", Path: "/raw", Handler: func(c *httpapi.Call) (any, error) { _, err := c.RawBody(); return nil, err }},
		httpapi.Route{Method: "PUT", Path: "/body", Handler: func(c *httpapi.Call) (any, error) { var v map[string]any; return nil, c.Body(&v) }},
		httpapi.Route{Method: "PUT", Path: "/server", Auth: httpapi.AuthServer, Handler: func(c *httpapi.Call) (any, error) { var v map[string]any; return nil, c.Body(&v) }},
	)
	large := `{"a":"` + strings.Repeat("x", 300_000) + `"}`
	do(t, a, "PUT", "/raw", "", large).want(t, 200, "")
	deep := func(n int) string { return `{"a":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + "}" }
	wide := `{"a":[` + strings.Repeat("[],{},", 500) + `"[[\"{{"]}`
	inText := `{"a":"` + strings.Repeat(`[\"{`, 500) + `"}`
	for _, path := range []string{"/raw", "/body"} {
		for body, code := range map[string]string{deep(200): "", deep(201): "M_BAD_JSON", wide: "", inText: ""} {
			status := 200
			if code != "" {
				status = 400
			}
			do(t, a, "PUT", path, "", body).want(t, status, code)
		}
	}
	do(t, a, "PUT", "/server", "", deep(500), "X-Sum", deep(500)).want(t, 200, "")
}
