package mxclient_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
)

func newClient(t *testing.T, h http.HandlerFunc) *mxclient.Client {
	t.Helper()
	c, err := mxclient.New(mxclient.Config{
		ServerName: "example.com", ASToken: "secret", BotLocalpart: "carillon", Transport: mxclient.NewHandlerTransport(h),
		MinBackoff: time.Millisecond, MaxBackoff: 2 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestSendEventActsAsTheSender(t *testing.T) {
	var path, user, auth, body string
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		path, user, auth = r.URL.EscapedPath(), r.URL.Query().Get("user_id"), r.Header.Get("Authorization")
		b, _ := io.ReadAll(r.Body)
		body = string(b)
		_, _ = io.WriteString(w, `{"event_id":"$e"}`)
	})
	ev, err := c.SendEvent(t.Context(), "!r/1", "@li:example.com", "m.room.message", map[string]string{"body": "嗨"}, "t/1")
	if err != nil || ev != "$e" {
		t.Fatalf("%v %v", ev, err)
	}
	if path != "/_matrix/client/v3/rooms/%21r%2F1/send/m.room.message/t%2F1" && path != "/_matrix/client/v3/rooms/!r%2F1/send/m.room.message/t%2F1" {
		t.Errorf("path %s", path)
	}
	if user != "@li:example.com" || auth != "Bearer secret" || body != `{"body":"嗨"}` {
		t.Errorf("user %q, auth %q, body %q", user, auth, body)
	}
	if _, err := c.SendEvent(t.Context(), "!r", "", "m.x", struct{}{}, "t2"); err != nil {
		t.Fatal(err)
	}
	if user != "" {
		t.Errorf("the bot's own call masquerades as %q", user)
	}
}

func TestRetries(t *testing.T) {
	var calls atomic.Int32
	answers := func(list ...int) http.HandlerFunc {
		calls.Store(0)
		return func(w http.ResponseWriter, _ *http.Request) {
			n := int(calls.Add(1)) - 1
			status := list[min(n, len(list)-1)]
			w.WriteHeader(status)
			switch status {
			case 200:
				_, _ = io.WriteString(w, `{"room_id":"!r"}`)
			case 429:
				_, _ = io.WriteString(w, `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":5}`)
			case 403:
				_, _ = io.WriteString(w, `{"errcode":"M_FORBIDDEN","error":"no"}`)
			}
		}
	}
	t.Run("gateway errors and limits are waited for", func(t *testing.T) {
		c := newClient(t, answers(502, 429, 429, 429, 429, 429, 429, 429, 500, 200))
		if err := c.Join(t.Context(), "@a:example.com", "!r"); err != nil || calls.Load() != 10 {
			t.Fatalf("%v after %d calls", err, calls.Load())
		}
	})
	t.Run("a refusal is final", func(t *testing.T) {
		c := newClient(t, answers(403))
		err := c.Join(t.Context(), "@a:example.com", "!r")
		if !errors.Is(err, mautrix.MForbidden) || !mxclient.IsCode(err, "M_FORBIDDEN") || !mxclient.IsPermanent(err) || calls.Load() != 1 {
			t.Fatalf("%v after %d calls", err, calls.Load())
		}
	})
	t.Run("attempts end", func(t *testing.T) {
		c := newClient(t, answers(503))
		if err := c.Join(t.Context(), "@a:example.com", "!r"); err == nil || mxclient.IsPermanent(err) || calls.Load() != 6 {
			t.Fatalf("%v after %d calls", err, calls.Load())
		}
	})
	t.Run("a room without alias is not created twice", func(t *testing.T) {
		c := newClient(t, answers(502, 200))
		if _, err := c.CreateRoom(t.Context(), "", struct{}{}, false); err == nil || calls.Load() != 1 {
			t.Fatalf("%v after %d calls", err, calls.Load())
		}
		c = newClient(t, answers(429, 200))
		if _, err := c.CreateRoom(t.Context(), "", struct{}{}, false); err != nil || calls.Load() != 2 {
			t.Fatalf("a limit is no unclear failure: %v after %d calls", err, calls.Load())
		}
	})
	t.Run("the context ends waiting", func(t *testing.T) {
		c := newClient(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(429)
			_, _ = io.WriteString(w, `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":60000}`)
		})
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		if err := c.Join(ctx, "@a:example.com", "!r"); err == nil {
			t.Fatal("no error")
		}
	})
}

func TestMautrixClientUsesTheTransport(t *testing.T) {
	var users []string
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		users = append(users, r.URL.Query().Get("user_id"))
		_, _ = io.WriteString(w, `{"user_id":"@x:example.com"}`)
	})
	if _, err := c.As("@li:example.com").Whoami(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Bot().Whoami(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(users, []string{"@li:example.com", ""}) {
		t.Errorf("users %q", users)
	}
	if first, second := c.As("@li:example.com"), c.As("@li:example.com"); first != second {
		t.Error("clients are not cached")
	}
}

func TestWhoAmIUsesTheGivenToken(t *testing.T) {
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer theirs" {
			w.WriteHeader(401)
			_, _ = io.WriteString(w, `{"errcode":"M_UNKNOWN_TOKEN"}`)
			return
		}
		_, _ = io.WriteString(w, `{"user_id":"@li:example.com","device_id":"D"}`)
	})
	who, err := c.WhoAmI(t.Context(), "theirs")
	if err != nil || who.User != id.UserID("@li:example.com") {
		t.Fatalf("%v %v", who, err)
	}
	if _, err := c.WhoAmI(t.Context(), "wrong"); !errors.Is(err, mautrix.MUnknownToken) {
		t.Fatalf("%v", err)
	}
}

func TestParse(t *testing.T) {
	ev, err := mxclient.ParseEvent([]byte(`{"type":"m.room.redaction","content":{"redacts":"$x"},"event_id":"$r"}`))
	if err != nil || ev.Redacts != "$x" {
		t.Fatalf("%+v %v", ev, err)
	}
	got := mxclient.ParseReceipts("!r", []byte(`{"$e":{"m.read":{"@a:x":{"ts":5,"thread_id":"main"},"@b:x":7},"m.other":{"@c:x":{}}},"$f":3}`))
	if len(got) != 1 || got[0] != (mxclient.Receipt{Room: "!r", User: "@a:x", Event: "$e", Thread: "main", Kind: "m.read", TS: 5}) {
		t.Fatalf("%+v", got)
	}
	if _, err := mxclient.New(mxclient.Config{HomeserverURL: "ftp://x", ServerName: "x", ASToken: "x", BotLocalpart: "x"}); err == nil {
		t.Error("an ftp address is taken")
	}
}
