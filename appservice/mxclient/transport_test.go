package mxclient_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/appservice/mxclient"
)

func TestHandlerTransportCarriesARequest(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Path", r.URL.EscapedPath())
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprintf(w, "%s %s %s %s", r.Method, r.RequestURI, r.Host, body)
	})
	cl := &http.Client{Transport: mxclient.NewHandlerTransport(h)}
	resp, err := cl.Post("http://example.com/a%2Fb/c?x=1", "text/plain", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, _ := io.ReadAll(resp.Body)
	if want := "POST /a%2Fb/c?x=1 example.com hello"; string(got) != want {
		t.Errorf("body %q, want %q", got, want)
	}
	if resp.StatusCode != http.StatusTeapot || resp.Header.Get("X-Path") != "/a%2Fb/c" {
		t.Errorf("status %d, path %q", resp.StatusCode, resp.Header.Get("X-Path"))
	}
}

func TestHandlerTransportStreams(t *testing.T) {
	next := make(chan struct{})
	gone := make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "one")
		w.(http.Flusher).Flush()
		<-next
		fmt.Fprintln(w, "two")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		close(gone)
	})
	cl := &http.Client{Transport: mxclient.NewHandlerTransport(h)}
	resp, err := cl.Get("http://x/")
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(resp.Body)
	if l, _ := lines.ReadString('\n'); l != "one\n" {
		t.Fatalf("first line %q", l)
	}
	close(next)
	if l, _ := lines.ReadString('\n'); l != "two\n" {
		t.Fatalf("second line %q", l)
	}
	resp.Body.Close()
	select {
	case <-gone:
	case <-time.After(5 * time.Second):
		t.Fatal("the handler did not hear that its reader left")
	}
}

func TestHandlerTransportLargeBodyAndPanic(t *testing.T) {
	big := strings.Repeat("x", 1<<20)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/panic" {
			panic("boom")
		}
		_, _ = io.WriteString(w, big)
	})
	cl := &http.Client{Transport: mxclient.NewHandlerTransport(h)}
	resp, err := cl.Get("http://x/")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || len(got) != len(big) {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
	if _, err := cl.Get("http://x/panic"); err == nil {
		t.Fatal("a handler's panic gave no error")
	}
}

func TestHandlerTransportCancel(t *testing.T) {
	gone := make(chan struct{})
	h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		close(gone)
	})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://x/", nil)
	if _, err := mxclient.NewHandlerTransport(h).RoundTrip(req); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	<-gone
}
