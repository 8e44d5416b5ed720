package ding_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix"

	"github.com/carillon-chat/carillon/appservice/ding"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

var errRefused = mautrix.RespError{ErrCode: "M_FORBIDDEN", StatusCode: 403}

// token authenticates by the user ID in the token.
type token struct{}

func (token) Authenticate(r *http.Request) (*httpapi.Caller, error) {
	t := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if t == "" {
		return nil, matrix.MissingToken()
	}
	return &httpapi.Caller{User: matrix.UserID(t), Admin: t == user("operator")}, nil
}

func (s *story) call(method, person, path, body string, out any) int {
	s.t.Helper()
	api := httpapi.New(httpapi.Options{Authenticator: token{}})
	api.Add(s.Routes()...)
	req := httptest.NewRequest(method, "/_carillon/v1/dings"+path, bytes.NewReader([]byte(body)))
	if person != "" {
		req.Header.Set("Authorization", "Bearer "+user(person))
	}
	w := httptest.NewRecorder()
	api.ServeHTTP(w, req)
	if out != nil {
		if err := json.Unmarshal(w.Body.Bytes(), out); err != nil {
			s.t.Fatalf("%s: %v", w.Body, err)
		}
	}
	return w.Code
}

// shown is what the API says of a DING.
type shown struct {
	ID         string
	State      ding.State
	Counts     ding.Counts
	Errcode    string
	Receivers  *ding.Receivers
	Skipped    []ding.Skip
	Deliveries []struct {
		Person struct{ ID, Name, Unit string }
		State  string
	}
	Mine *struct {
		State       string
		ConfirmedAt int64 `json:"confirmed_at"`
	}
	Units []struct {
		ID               string
		Total, Confirmed int
	}
	Timing *struct{ First, P50, Last int64 }
	Next   string `json:"next_cursor"`
}

func (s *story) show(person, id string) (out shown) {
	s.t.Helper()
	if code := s.call("GET", person, "/"+id+"?limit=500", "", &out); code != 200 {
		s.t.Fatalf("%s sees %d", person, code)
	}
	return out
}

func TestAPI(t *testing.T) {
	s := tell(t)
	var made shown
	body := `{"uuid":"1","body":"开会","receivers":{"persons":["zhang","zhao","mei"],"units":["sales","web"]}}`
	if code := s.call("POST", "mei", "", body, &made); code != 201 || made.Counts.Total != 4 || len(made.Skipped) != 3 || made.State != ding.Open {
		t.Fatalf("%d %+v", code, made)
	}
	if code := s.call("POST", "mei", "", body, &made); code != 200 {
		t.Errorf("repeated with %d", code)
	}
	for _, c := range []struct {
		person, body string
		code         int
	}{
		{"", body, 401},
		{"mei", `{`, 400},
		{"mei", `[]`, 400},
		{"mei", ``, 400},
		{"mei", `{"body":"x","receivers":{"persons":"zhang"}}`, 400},
		{"mei", `{"body":"x","receivers":{"persons":["zhang"]},"channel":"sms"}`, 400},
		{"mei", `{"body":"x","receivers":{"persons":["zhang"]},"fire_at":1.5}`, 400},
		{"mei", `{"body":"x","receivers":{"persons":["mei"]}}`, 400},
		{"mei", `{"body":"` + strings.Repeat("x", 2001) + `","receivers":{"persons":["zhang"]}}`, 400},
		{"operator", body, 403},
		{"zhang", `{"kind":"emergency","body":"x","receivers":{"persons":["li"]}}`, 403},
	} {
		if code := s.call("POST", c.person, "", c.body, nil); code != c.code {
			t.Errorf("%s %s: %d, want %d", c.person, c.body, code, c.code)
		}
	}
	s.notice("zhang", "开会")
	s.eventually("all are out", func() bool { return s.counts(made.ID).WentOut == 4 })
	for person, codes := range map[string][3]int{ // show, confirm, recall
		"zhang": {200, 200, 403}, "w2": {404, 404, 404}, "stranger": {404, 404, 404}, "chief": {200, 404, 200}, "operator": {200, 404, 200},
		"mei": {200, 404, 200}, "": {401, 401, 401},
	} {
		for i, c := range []struct{ method, path string }{{"GET", ""}, {"POST", "/confirm"}, {"POST", "/recall"}} {
			if person != "zhang" && person != "w2" && i == 2 && codes[2] == 200 {
				continue // recalled below
			}
			if code := s.call(c.method, person, "/"+made.ID+c.path, `{}`, nil); code != codes[i] {
				t.Errorf("%s %s by %q: %d, want %d", c.method, c.path, person, code, codes[i])
			}
		}
	}
	var mine shown
	s.call("GET", "zhang", "/"+made.ID, "", &mine)
	if mine.Mine == nil || mine.Mine.State != "confirmed" || mine.Deliveries != nil || mine.Receivers != nil || mine.Skipped != nil {
		t.Errorf("a receiver sees %+v", mine)
	}
	whole := s.show("mei", made.ID)
	if whole.Timing == nil || whole.Counts.Confirmed != 1 || len(whole.Deliveries) != 4 {
		t.Errorf("the sender sees %+v", whole)
	}
	units := map[string]int{}
	for _, u := range whole.Units {
		units[u.ID] = u.Total
	}
	if units["sales"] != 3 || units["web"] != 1 || units["tech"] != 1 { // li counts in both
		t.Errorf("by unit %v", units)
	}
	var page shown
	s.call("GET", "mei", "/"+made.ID+"?state=unconfirmed&limit=2", "", &page)
	if len(page.Deliveries) != 2 || page.Next == "" {
		t.Fatalf("%+v", page)
	}
	var rest shown
	s.call("GET", "mei", "/"+made.ID+"?state=unconfirmed&limit=2&cursor="+page.Next, "", &rest)
	if len(rest.Deliveries) != 1 || rest.Next != "" || rest.Deliveries[0].Person.ID == page.Deliveries[1].Person.ID {
		t.Errorf("%+v", rest)
	}
	for _, q := range []string{"?state=lost", "?cursor=x", "?limit=-1"} {
		if code := s.call("GET", "mei", "/"+made.ID+q, "", nil); code != 400 {
			t.Errorf("%s: %d", q, code)
		}
	}
	if code := s.call("POST", "mei", "/"+made.ID+"/confirm", `[`, nil); code != 400 {
		t.Errorf("a body that is no JSON: %d", code)
	}
	var recalled struct {
		State   ding.State
		WentOut []any `json:"went_out"`
	}
	if code := s.call("POST", "chief", "/"+made.ID+"/recall", "", &recalled); code != 200 || recalled.State != ding.Recalled || len(recalled.WentOut) != 4 {
		t.Errorf("%d %+v", code, recalled)
	}
	var late struct{ Late bool }
	if code := s.call("POST", "wang", "/"+made.ID+"/confirm", "", &late); code != 200 || !late.Late {
		t.Errorf("%d %+v", code, late)
	}
}

func TestLists(t *testing.T) {
	s := tellWith(t, company(), ding.Options{PerMinute: 100})
	var ids []string
	for range 5 {
		ids = append(ids, s.ding("mei", "x", to("zhang", "li")))
		time.Sleep(2 * time.Millisecond) // IDs sort by the millisecond
	}
	for _, id := range ids {
		s.eventually("it is out", func() bool { return s.counts(id).WentOut == 2 })
	}
	if _, _, err := s.Confirm(t.Context(), as("zhang"), ids[1]); err != nil {
		t.Fatal(err)
	}
	if err := s.Recall(t.Context(), as("mei"), ids[2]); err != nil {
		t.Fatal(err)
	}
	list := func(person, query string) (got []string, next string) {
		var out struct {
			Dings []shown
			Next  string `json:"next_cursor"`
		}
		if code := s.call("GET", person, query, "", &out); code != 200 {
			t.Fatalf("%s %s: %d", person, query, code)
		}
		for _, d := range out.Dings {
			got = append(got, d.ID)
			if d.Counts.Total != 2 || (d.Mine != nil) != (strings.Contains(query, "box=received") || strings.Contains(query, "box=unconfirmed")) {
				t.Errorf("%s: %+v", query, d)
			}
		}
		return got, out.Next
	}
	same := func(what string, got []string, want ...int) {
		t.Helper()
		var ws []string
		for _, w := range want {
			ws = append(ws, ids[w])
		}
		if strings.Join(got, " ") != strings.Join(ws, " ") {
			t.Errorf("%s: %v, want %v", what, got, ws)
		}
	}
	got, next := list("mei", "?limit=2")
	same("first page", got, 4, 3)
	got, next = list("mei", "?box=sent&limit=2&cursor="+next)
	same("second page", got, 2, 1)
	got, next = list("mei", "?limit=2&cursor="+next)
	same("last page", got, 0)
	if next != "" {
		t.Error("a page after the last")
	}
	got, _ = list("zhang", "?box=received")
	same("received", got, 4, 3, 2, 1, 0)
	got, _ = list("zhang", "?box=unconfirmed")
	same("unconfirmed", got, 4, 3, 0)
	got, _ = list("wang", "?box=received")
	same("nothing", got)
	got, _ = list("stranger", "?box=received")
	same("nothing", got)
	for _, q := range []string{"?box=spam", "?limit=0", "?cursor=" + strings.Repeat("x", 65)} {
		if code := s.call("GET", "mei", q, "", nil); code != 400 {
			t.Errorf("%s: %d", q, code)
		}
	}
	if code := s.call("GET", "", "", "", nil); code != 401 {
		t.Errorf("without a token: %d", code)
	}
}
