package hstest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// V3 begins the paths of the client API.
const V3 = "/_matrix/client/v3"

// Answer is what an endpoint said.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Get reads a value of a JSON answer by its path.
func (a Answer) Get(path string) gjson.Result { return gjson.GetBytes(a.Body, path) }

// Code is the errcode, "" if there is none.
func (a Answer) Code() string { return a.Get("errcode").Str }

// Do makes a request as it is, for what the client library has no method. The
// body is sent as it is if it is a string or bytes, else as JSON; nil is none.
func (s *Server) Do(token, method, path string, body any) Answer {
	s.T.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	case []byte:
		r = bytes.NewReader(b)
	default:
		j, err := json.Marshal(b)
		if err != nil {
			s.T.Fatal(err)
		}
		r = bytes.NewReader(j)
	}
	req, err := http.NewRequestWithContext(s.T.Context(), method, s.URL+path, r)
	if err != nil {
		s.T.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return s.Send(req)
}

// Send makes a request that the test has prepared.
func (s *Server) Send(req *http.Request) Answer {
	s.T.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.T.Fatalf("%s %s: %v", req.Method, req.URL.Path, err)
	}
	a, err := ReadAnswer(resp)
	if err != nil {
		s.T.Fatalf("%s %s: %v", req.Method, req.URL.Path, err)
	}
	return a
}

// ReadAnswer reads a response to its end and closes it.
func ReadAnswer(resp *http.Response) (Answer, error) {
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return Answer{resp.StatusCode, resp.Header, b}, err
}

// Do makes a request with the user's token.
func (u *User) Do(method, path string, body any) Answer {
	u.s.T.Helper()
	return u.s.Do(u.AccessToken, method, path, body)
}

// OK makes a request that must succeed and gives its JSON.
func (u *User) OK(method, path string, body any) gjson.Result {
	u.s.T.Helper()
	a := u.Do(method, path, body)
	if a.Status != http.StatusOK {
		u.s.T.Fatalf("%s %s: %d %s", method, path, a.Status, a.Body)
	}
	return gjson.ParseBytes(a.Body)
}

// Refused makes a request that must fail in the way given.
func (u *User) Refused(status int, code, method, path string, body any) {
	u.s.T.Helper()
	if a := u.Do(method, path, body); a.Status != status || a.Code() != code {
		u.s.T.Errorf("%s %s: %d %s, want %d %s", method, path, a.Status, a.Body, status, code)
	}
}

// RawSync reads /sync from since (from the beginning where it is empty) as JSON,
// with further parameters as "name=value". It does not move the user's place.
func (u *User) RawSync(since string, params ...string) gjson.Result {
	u.s.T.Helper()
	q := url.Values{"timeout": {"0"}, "set_presence": {"offline"}}
	if since != "" {
		q.Set("since", since)
	}
	for _, p := range params {
		k, v, _ := strings.Cut(p, "=")
		q.Set(k, v)
	}
	return u.OK("GET", V3+"/sync?"+q.Encode(), nil)
}

// Login gives the user a second device.
func (u *User) Login(device string) *User {
	u.s.T.Helper()
	c, err := mautrix.NewClient(u.s.URL, "", "")
	if err != nil {
		u.s.T.Fatal(err)
	}
	name := u.UserID.Localpart()
	resp, err := c.Login(u.s.T.Context(), &mautrix.ReqLogin{
		Type: mautrix.AuthTypePassword, Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: name},
		Password: "password of " + name, DeviceID: id.DeviceID(device), StoreCredentials: true,
	})
	if err != nil {
		u.s.T.Fatalf("%s logs in: %v", u.UserID, err)
	}
	c.UserID, c.AccessToken, c.DeviceID = resp.UserID, resp.AccessToken, resp.DeviceID
	return &User{Client: c, s: u.s}
}

// Eventually waits until ok holds, for at most half a minute.
func (s *Server) Eventually(what string, ok func() bool) {
	s.T.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			s.T.Fatalf("%s: never happened", what)
		}
	}
}

// Path escapes the parts of a path of the client API.
func Path(parts ...string) string {
	b := V3
	for _, p := range parts {
		b += "/" + url.PathEscape(p)
	}
	return b
}
