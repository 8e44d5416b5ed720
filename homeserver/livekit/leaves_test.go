package livekit_test

import (
	"bufio"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/livekit"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/partstest"
	realkit "github.com/carillon-chat/carillon/test/livekit"
)

const leavePath = livekit.Base + "/delegate_delayed_leave"

// schedule schedules what says that alice has left a call.
func (w *world) schedule(room matrix.RoomID, txn string, delay time.Duration) string {
	w.T.Helper()
	out := w.Want(alice, "PUT", "/_matrix/client/unstable/org.matrix.msc4140/rooms/"+string(room)+"/delayed_event/x.left/"+txn,
		fmt.Sprintf(`{"delay_ms":%d,"content":{"txn":%q}}`, delay.Milliseconds(), txn), 200, "")
	return gjson.Get(out, "delay_id").Str
}

func leaving(room matrix.RoomID, delayID string) string {
	return strings.Replace(ask(room), "{", fmt.Sprintf(`{"delay_id":%q,`, delayID), 1)
}

// event is the ID of the event that a scheduled one has become, or "".
func (w *world) event(delayID string) string {
	w.T.Helper()
	return gjson.Get(w.Want(alice, "GET", "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/"+delayID, "", 200, ""), "event_id").Str
}

// connect enters a call as clients do, and stays until the connection is closed.
func connect(t *testing.T, s *realkit.Server, token string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "ws://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "GET /rtc?access_token=%s&protocol=16&sdk=go&version=2.0.0 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", token)
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || r.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("the server does not let anybody in: %+v %v", r, err)
	}
	return c
}

// api calls the media server's API as its operator.
func api(t *testing.T, s *realkit.Server, method, video, body string) int {
	t.Helper()
	req, err := http.NewRequest("POST", s.API+"/twirp/livekit.RoomService/"+method, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+sign(s.Key, s.Secret, video))
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	return r.StatusCode
}

// A client that is gone from the call has left it in the room too; while it is there
// the event is put off.
func TestDelegatedLeave(t *testing.T) {
	t.Parallel()
	s := realkit.Start(t, "")
	w := open(t, livekit.Options{URL: s.URL, Key: s.Key, Secret: s.Secret})
	const delay = 4 * time.Second
	id, remove := w.inCall(t, s, delay)
	time.Sleep(delay + time.Second)
	if e := w.event(id); e != "" {
		t.Fatalf("the leaving was sent as %s while the client is there", e)
	}
	began := time.Now()
	remove()
	partstest.Eventually(t, "the leaving is sent", func() bool { return w.event(id) != "" })
	if took := time.Since(began); took > delay*3/4 {
		t.Errorf("it took %s: nobody looked before the delay was over", took)
	}
}

// The media server tells of it at once.
func TestToldOfLeave(t *testing.T) {
	t.Parallel()
	var w *world
	hook := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { w.API.ServeHTTP(rw, r) }))
	defer hook.Close()
	s := realkit.Start(t, hook.URL+livekit.Base+"/sfu_webhook")
	w = open(t, livekit.Options{URL: s.URL, Key: s.Key, Secret: s.Secret})
	id, remove := w.inCall(t, s, time.Hour) // looked for twice a minute
	time.Sleep(500 * time.Millisecond)      // for the first look
	remove()
	partstest.Eventually(t, "the leaving is sent", func() bool { return w.event(id) != "" })
}

// inCall has alice in a call, with her leaving left to the server; remove takes her out.
func (w *world) inCall(t *testing.T, s *realkit.Server, delay time.Duration) (delayID string, remove func()) {
	t.Helper()
	room := w.Room(alice)
	token := gjson.Get(w.Want(alice, "POST", path, ask(room), 200, ""), "jwt").Str
	claim := claims(t, s.Secret, token)
	identity, call := claim.Get("sub").Str, claim.Get("video.room").Str
	connect(t, s, token)
	delayID = w.schedule(room, "one", delay)
	w.Want(alice, "POST", leavePath, leaving(room, delayID), 200, "")
	return delayID, func() {
		video := fmt.Sprintf(`{"roomAdmin":true,"room":%q}`, call)
		if code := api(t, s, "RemoveParticipant", video, fmt.Sprintf(`{"room":%q,"identity":%q}`, call, identity)); code != 200 {
			t.Fatalf("the server does not remove anybody: %d", code)
		}
	}
}

// One who never comes is none of ours: the delay goes on.
func TestDelegatedInVain(t *testing.T) {
	t.Parallel()
	s := realkit.Start(t, "")
	w := open(t, livekit.Options{URL: s.URL, Key: s.Key, Secret: s.Secret})
	room, other := w.Room(alice, bob), w.Room(alice)
	first := w.schedule(room, "one", 1500*time.Millisecond)
	w.Want(alice, "POST", leavePath, leaving(room, first), 200, "")
	second := w.schedule(room, "two", time.Hour)
	w.Want(alice, "POST", leavePath, leaving(room, second), 200, "") // in the first one's place
	partstest.Eventually(t, "its time comes", func() bool { return w.event(first) != "" })
	w.Want(bob, "POST", leavePath, leaving(room, second), 404, "M_NOT_FOUND") // is not his
	w.Want(alice, "POST", leavePath, leaving(other, second), 404, "M_NOT_FOUND")
	w.Want(alice, "POST", leavePath, leaving(room, first), 409, "M_UNKNOWN") // is over
	w.Want(alice, "POST", leavePath, ask(room), 400, "M_MISSING_PARAM")
	w.Want("", "POST", leavePath, leaving(room, second), 401, "M_MISSING_TOKEN")
	w.Want("@carol:a.example", "POST", leavePath, leaving(room, second), 401, "M_UNAUTHORIZED")
	if e := w.event(second); e != "" {
		t.Errorf("an event was sent as %s an hour too early", e)
	}
}

// Only the media server is believed.
func TestHook(t *testing.T) {
	w := open(t, livekit.Options{URL: "wss://x", Key: "key", Secret: secret})
	const body = `{"event":"participant_left","room":{"name":"r"},"participant":{"identity":"i"}}`
	enc := base64.RawURLEncoding.EncodeToString
	sum := sha256.Sum256([]byte(body))
	token := func(key, secret, sum string, exp time.Time) string {
		return signed(secret, enc([]byte(`{"alg":"HS256"}`))+"."+enc(fmt.Appendf(nil, `{"iss":%q,"exp":%d,"sha256":%q}`, key, exp.Unix(), sum)))
	}
	soon, good := time.Now().Add(time.Minute), base64.StdEncoding.EncodeToString(sum[:])
	for _, c := range []struct {
		token string
		want  int
	}{
		{token("key", secret, good, soon), 200},
		{token("key", secret, good, time.Now().Add(-time.Hour)), 401},
		{token("other", secret, good, soon), 401},
		{token("key", secret+"x", good, soon), 401},
		{token("key", secret, "", soon), 401},
		{"nonsense", 401},
		{"", 401},
	} {
		r := httptest.NewRequest("POST", livekit.Base+"/sfu_webhook", strings.NewReader(body))
		r.Header.Set("Authorization", c.token)
		rec := httptest.NewRecorder()
		w.API.ServeHTTP(rec, r)
		if rec.Code != c.want {
			t.Errorf("%s: %d %s", c.token, rec.Code, rec.Body)
		}
	}
}
