package appservice_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/carillon-chat/carillon/appservice"
	"github.com/carillon-chat/carillon/appservice/astest"
	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/docs/api"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

// world is a homeserver and the service beside it.
type world struct {
	t    testing.TB
	dsn  string
	dir  string
	hs   *astest.Server
	svc  *appservice.Service
	stop func()
	opts appservice.Options
}

func newWorld(t testing.TB, change ...func(*appservice.Options)) *world {
	t.Helper()
	w := &world{t: t, dsn: sqldbtest.DSN(t), dir: t.TempDir(), hs: astest.New()}
	reg := appservice.NewRegistration(astest.ServerName, "")
	reg.ASToken, reg.HSToken = astest.ASToken, astest.HSToken
	w.opts = appservice.Options{
		ServerName: astest.ServerName, Registration: reg, Transport: mxclient.NewHandlerTransport(w.hs),
		Admins: []string{"@chief:example.com"}, Language: "en", PasswordsDir: filepath.Join(w.dir, "pw"),
	}
	for _, f := range change {
		f(&w.opts)
	}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

// start runs the service on the world's database.
func (w *world) start() {
	w.t.Helper()
	db, err := sqldb.Open(w.dsn)
	if err != nil {
		w.t.Fatal(err)
	}
	w.opts.DB = db
	if w.svc, err = appservice.New(w.t.Context(), w.opts); err != nil {
		w.t.Fatal(err)
	}
	w.hs.Attach(w.svc.Handler())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.svc.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
		db.Close()
		w.stop = func() {}
	}
}

const unitsCSV = `id,parent,name,code,order,site,manager
root,,总公司,hq,1,北京,001
tech,root,技术部,tech,1,北京,002
ops,root,运营部,ops,2,北京,
`

const peopleCSV = `job_number,name,mobile,email,unit,title,leader,hired,left,admin
001,王总,13800000001,wang@example.com,root,总经理,,2020-01-01,,
002,李工,13800000002,,tech,主管,,2020-01-01,,
003,赵四,13800000003,,tech,工程师,,2020-01-01,,
004,孙一,13800000004,,ops,专员,,2020-01-01,,yes
005,老周,13800000005,,ops,专员,,2019-01-01,2021-01-01,
`

func form(files map[string]string) (body []byte, contentType string) {
	var b bytes.Buffer
	m := multipart.NewWriter(&b)
	for name, text := range files {
		w, _ := m.CreateFormFile("file", name)
		_, _ = io.WriteString(w, text)
	}
	m.Close()
	return b.Bytes(), m.FormDataContentType()
}

// call makes a request of /_carillon/v1 and decodes the answer.
func (w *world) call(token, method, path string, body []byte, contentType string) (int, map[string]any) {
	w.t.Helper()
	req := httptest.NewRequest(method, "/_carillon/v1"+path, bytes.NewReader(body))
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	rec := httptest.NewRecorder()
	w.svc.Handler().ServeHTTP(rec, req)
	var out map[string]any
	_ = json.Unmarshal(rec.Body.Bytes(), &out)
	return rec.Code, out
}

// must is call that has to succeed.
func (w *world) must(token, method, path string, body []byte, contentType string) map[string]any {
	w.t.Helper()
	code, out := w.call(token, method, path, body, contentType)
	if code/100 != 2 {
		w.t.Fatalf("%s %s: %d %v", method, path, code, out)
	}
	return out
}

// company imports the company and waits for its rooms.
func (w *world) company() {
	w.t.Helper()
	body, ct := form(map[string]string{"units.csv": unitsCSV, "people.csv": peopleCSV})
	out := w.must(w.hs.Token("@chief:example.com"), "POST", "/org/import", body, ct)
	w.wait(out["job"].(map[string]any)["id"].(string))
}

func (w *world) wait(job string) appservice.JobStatus {
	w.t.Helper()
	j := w.svc.Job(job)
	select {
	case <-j.Done():
	case <-time.After(20 * time.Second):
		w.t.Fatal("the job does not end")
	}
	return j.Status()
}

func (w *world) deliver() {
	w.t.Helper()
	if err := w.hs.Deliver(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func TestImportMakesTheCompany(t *testing.T) {
	w := newWorld(t)
	chief := w.hs.Token("@chief:example.com")
	body, ct := form(map[string]string{"units.csv": unitsCSV, "people.csv": peopleCSV})
	plan := w.must(chief, "POST", "/org/import?plan=true&lang=zh", body, ct)
	if plan["applied"] != false || !strings.Contains(plan["text"].(string), "李工") || plan["job"] != nil {
		t.Errorf("plan %v", plan)
	}
	if n := len(w.hs.Rooms()); n != 0 || w.svc.Org().Tree().Version != 0 {
		t.Errorf("a plan made %d rooms", n)
	}
	w.company()
	room, ok := w.svc.Rooms().UnitRoom("tech")
	if !ok || !slices.Equal(w.hs.Joined(string(room)), []string{"@002:example.com", "@003:example.com", astest.Bot}) {
		t.Errorf("in the department are %v", w.hs.Joined(string(room)))
	}
	if w.hs.Registered("@005:example.com") {
		t.Error("a leaver got an account")
	}
	again := w.must(chief, "POST", "/org/import", body, ct)
	st := w.wait(again["job"].(map[string]any)["id"].(string))
	if st.State != appservice.JobDone || st.Report.Operations != 0 {
		t.Errorf("the same file again: %+v", st.Report)
	}
}

func TestImportRefusals(t *testing.T) {
	w := newWorld(t)
	w.company()
	chief := w.hs.Token("@chief:example.com")
	tests := []struct {
		name, query, body, contentType string
		code                           int
		errcode                        string
	}{
		{"nothing", "", "", "text/csv", 400, "M_MISSING_PARAM"},
		{"wrong flag", "?plan=yes", "x", "text/csv", 400, "M_INVALID_PARAM"},
		{"wrong language", "?lang=fr", "x", "text/csv", 400, "M_INVALID_PARAM"},
		{"bad form", "", "x", "multipart/form-data; boundary=b", 400, "M_MISSING_PARAM"},
		{"form without files", "", "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b", 400, "M_MISSING_PARAM"},
		{"bad rows", "", "job_number,name,unit\n007,,nowhere\n008,何,nowhere\n", "text/csv", 400, "IM_CARILLON_BAD_FILE"},
	}
	for _, tt := range tests {
		code, out := w.call(chief, "POST", "/org/import"+tt.query, []byte(tt.body), tt.contentType)
		if code != tt.code || out["errcode"] != tt.errcode {
			t.Errorf("%s: %d %v", tt.name, code, out)
		}
		if tt.errcode == "IM_CARILLON_BAD_FILE" {
			if list := out["problems"].([]any); len(list) < 3 || out["text"] == "" {
				t.Errorf("problems %v", list)
			}
		}
	}
	if v := w.svc.Org().Tree().Version; v != 1 {
		t.Errorf("version %d after refused files", v)
	}
}

func TestTooManyLeave(t *testing.T) {
	w := newWorld(t)
	var b strings.Builder
	b.WriteString(peopleCSV)
	for i := range 40 {
		fmt.Fprintf(&b, "1%02d,员工%d,139%08d,,ops,专员,,2020-01-01,,\n", i, i, i)
	}
	chief := w.hs.Token("@chief:example.com")
	body, ct := form(map[string]string{"units.csv": unitsCSV, "people.csv": b.String()})
	w.must(chief, "POST", "/org/import", body, ct)
	small, ct2 := form(map[string]string{"units.csv": unitsCSV, "people.csv": peopleCSV})
	code, out := w.call(chief, "POST", "/org/import?remove_missing=true", small, ct2)
	if code != 409 || out["errcode"] != "IM_CARILLON_TOO_MANY_LEAVE" {
		t.Errorf("%d %v", code, out)
	}
	w.must(chief, "POST", "/org/import?remove_missing=true&force=true", small, ct2)
}

func TestTemplateCanBeImported(t *testing.T) {
	w := newWorld(t)
	for _, format := range []string{"xlsx", "csv"} {
		req := httptest.NewRequest("GET", "/_carillon/v1/org/template?format="+format, nil)
		req.Header.Set("Authorization", "Bearer "+w.hs.Token("@chief:example.com"))
		rec := httptest.NewRecorder()
		w.svc.Handler().ServeHTTP(rec, req)
		if rec.Code != 200 || rec.Header().Get("Content-Disposition") == "" {
			t.Fatalf("%s: %d", format, rec.Code)
		}
		w.must(w.hs.Token("@chief:example.com"), "POST", "/org/import?plan=true", rec.Body.Bytes(), "application/octet-stream")
	}
	if code, _ := w.call(w.hs.Token("@chief:example.com"), "GET", "/org/template?format=doc", nil, ""); code != 400 {
		t.Errorf("an unknown format: %d", code)
	}
}

// TestPermissions calls every endpoint of the organisation as everybody.
func TestPermissions(t *testing.T) {
	w := newWorld(t)
	w.company()
	w.hs.Register("@005:example.com") // who left, with a session that still lives
	tokens := map[string]string{
		"nobody": "", "unknown": "wrong",
		"stranger": w.hs.Token("@guest:example.com"), "employee": w.hs.Token("@003:example.com"),
		"manager": w.hs.Token("@002:example.com"), "admin": w.hs.Token("@004:example.com"),
		"configured": w.hs.Token("@chief:example.com"), "left": w.hs.Token("@005:example.com"),
	}
	job := w.must(tokens["admin"], "POST", "/org/reconcile", nil, "")["id"].(string)
	all := map[string]int{"nobody": 200, "unknown": 200, "stranger": 200, "employee": 200, "manager": 200, "admin": 200, "configured": 200, "left": 200}
	staff := map[string]int{"nobody": 401, "unknown": 401, "stranger": 403, "employee": 200, "manager": 200, "admin": 200, "configured": 200, "left": 403}
	admins := map[string]int{"nobody": 401, "unknown": 401, "stranger": 403, "employee": 403, "manager": 403, "admin": 200, "configured": 200, "left": 403}
	noDirectory := map[string]int{"nobody": 401, "unknown": 401, "stranger": 403, "employee": 403, "manager": 403, "admin": 404, "configured": 404, "left": 403}
	tests := map[string]struct {
		path string
		want map[string]int
	}{
		"GET /_carillon/v1/org/directory":   {"/org/directory", noDirectory},
		"POST /_carillon/v1/org/directory":  {"/org/directory?plan=true", noDirectory},
		"GET /_carillon/v1/health":          {"/health", all},
		"GET /_carillon/v1/org/tree":        {"/org/tree", staff},
		"GET /_carillon/v1/org/people":      {"/org/people?q=%E6%9D%8E", staff},
		"GET /_carillon/v1/org/people/{id}": {"/org/people/002", staff},
		"GET /_carillon/v1/org/units/{id}":  {"/org/units/tech", staff},
		"GET /_carillon/v1/org/template":    {"/org/template", staff},
		"GET /_carillon/v1/org/jobs/{id}":   {"/org/jobs/" + job, admins},
		"POST /_carillon/v1/org/import":     {"/org/import?plan=true", admins},
		"POST /_carillon/v1/org/reconcile":  {"/org/reconcile", admins},
	}
	for _, r := range w.svc.Routes() {
		name := r.Method + " " + r.Path
		tt, ok := tests[name]
		if !ok {
			if strings.HasPrefix(r.Path, "/_carillon/v1/org") {
				t.Errorf("%s has no permission test", name)
			}
			continue
		}
		for who, want := range tt.want {
			var body []byte
			if r.Method == "POST" {
				body = []byte(unitsCSV)
			}
			code, out := w.call(tokens[who], r.Method, tt.path, body, "text/csv")
			if code == 202 {
				code = 200
			}
			if code != want {
				t.Errorf("%s as %s: %d, want %d: %v", name, who, code, want, out)
			}
			if code == 401 && who == "nobody" && out["errcode"] != "M_MISSING_TOKEN" || code == 401 && who == "unknown" && out["errcode"] != "M_UNKNOWN_TOKEN" {
				t.Errorf("%s as %s: %v", name, who, out)
			}
		}
	}
}

func TestWhatPeopleSeeOfEachOther(t *testing.T) {
	w := newWorld(t)
	w.company()
	tests := []struct {
		viewer, person string
		code           int
		mobile         bool
	}{
		{"003", "003", 200, true},  // oneself
		{"003", "002", 200, false}, // the own manager
		{"002", "003", 200, true},  // who is managed
		{"002", "004", 200, false}, // another department
		{"001", "004", 200, true},  // further down the line
		{"004", "003", 200, true},  // administrator
		{"003", "005", 404, false}, // who left
		{"004", "005", 200, true},
		{"003", "999", 404, false},
	}
	for _, tt := range tests {
		token := w.hs.Token("@" + tt.viewer + ":example.com")
		code, out := w.call(token, "GET", "/org/people/"+tt.person, nil, "")
		if code != tt.code || code == 200 && (out["mobile"] != nil) != tt.mobile {
			t.Errorf("%s sees of %s: %d %v", tt.viewer, tt.person, code, out)
		}
	}
	employee := w.hs.Token("@003:example.com")
	if n := len(w.must(employee, "GET", "/org/people?q=13800000002", nil, "")["people"].([]any)); n != 0 {
		t.Error("a number that one may not see can be searched for")
	}
	if n := len(w.must(employee, "GET", "/org/people?q=13800000003", nil, "")["people"].([]any)); n != 1 {
		t.Error("the own number is not found")
	}
	page := w.must(employee, "GET", "/org/people?limit=2", nil, "")
	next := w.must(employee, "GET", "/org/people?limit=2&cursor="+page["next_cursor"].(string), nil, "")
	if len(page["people"].([]any)) != 2 || len(next["people"].([]any)) != 2 || next["next_cursor"] != nil {
		t.Errorf("pages %v %v", page, next)
	}
	if n := len(w.must(employee, "GET", "/org/people?unit=root&sub=true", nil, "")["people"].([]any)); n != 4 {
		t.Errorf("%d people in the company", n)
	}
	for _, path := range []string{"/org/people?limit=0", "/org/people?limit=x", "/org/people?unit=root&sub=maybe"} {
		if code, _ := w.call(employee, "GET", path, nil, ""); code != 400 {
			t.Errorf("%s: %d", path, code)
		}
	}
	for _, path := range []string{"/org/people?unit=none", "/org/units/none", "/org/jobs/none"} {
		if code, _ := w.call(w.hs.Token("@004:example.com"), "GET", path, nil, ""); code != 404 {
			t.Errorf("%s: %d", path, code)
		}
	}
	unit := w.must(employee, "GET", "/org/units/tech", nil, "")
	if unit["room_id"] == nil || len(unit["people"].([]any)) != 2 || len(unit["path"].([]any)) != 2 || unit["managers"].([]any)[0].(map[string]any)["id"] != "002" {
		t.Errorf("unit %v", unit)
	}
	tree := w.must(employee, "GET", "/org/tree", nil, "")
	if len(tree["units"].([]any)) != 3 || tree["people"] != 4.0 || tree["all_staff_room"] == nil {
		t.Errorf("tree %v", tree)
	}
}

func TestTokensAreAskedOnceAMinute(t *testing.T) {
	now := time.Now()
	w := newWorld(t, func(o *appservice.Options) { o.Now = func() time.Time { return now } })
	w.company()
	token := w.hs.Token("@003:example.com")
	before := w.hs.Requests()
	for range 5 {
		w.must(token, "GET", "/org/tree", nil, "")
	}
	if n := w.hs.Requests() - before; n != 1 {
		t.Errorf("%d questions to the homeserver", n)
	}
	now = now.Add(2 * time.Minute)
	w.must(token, "GET", "/org/tree", nil, "")
	if n := w.hs.Requests() - before; n != 2 {
		t.Errorf("%d questions to the homeserver", n)
	}
	w.hs.SetFault(func(*http.Request) astest.Fault { return astest.FaultBefore })
	if code, _ := w.call(w.hs.Token("@002:example.com"), "GET", "/org/tree", nil, ""); code != 502 {
		t.Errorf("while the homeserver is away: %d", code)
	}
}

func TestRefusalOfTheMomentIsOvercome(t *testing.T) {
	w := newWorld(t)
	refused := false
	w.hs.SetFault(func(r *http.Request) astest.Fault {
		if !refused && strings.HasPrefix(r.URL.Query().Get("user_id"), "@003") && strings.HasSuffix(r.URL.Path, "/displayname") {
			refused = true
			return astest.FaultRefused
		}
		return astest.FaultNone
	})
	body, ct := form(map[string]string{"units.csv": unitsCSV, "people.csv": peopleCSV})
	out := w.must(w.hs.Token("@chief:example.com"), "POST", "/org/import", body, ct)
	st := w.wait(out["job"].(map[string]any)["id"].(string))
	if st.State != appservice.JobDone || st.Report.ByKind["name"] != 4 || st.Report.PasswordFile == "" || st.Report.Failed != 0 {
		t.Errorf("%+v %+v", st, st.Report)
	}
}

func TestUnfinishedWorkIsTakenUp(t *testing.T) {
	w := newWorld(t)
	w.hs.SetFault(func(r *http.Request) astest.Fault {
		if strings.HasSuffix(r.URL.Path, "/join") {
			return astest.FaultRefused
		}
		return astest.FaultNone
	})
	body, ct := form(map[string]string{"units.csv": unitsCSV, "people.csv": peopleCSV})
	out := w.must(w.hs.Token("@chief:example.com"), "POST", "/org/import", body, ct)
	if st := w.wait(out["job"].(map[string]any)["id"].(string)); st.State != appservice.JobFailed || st.Error == "" {
		t.Errorf("%+v", st)
	}
	w.stop()
	w.hs.SetFault(nil)
	w.start()
	deadline := time.Now().Add(10 * time.Second)
	for len(w.hs.RoomsOf("@003:example.com")) != 4 {
		if time.Now().After(deadline) {
			t.Fatalf("003 is in %v", w.hs.RoomsOf("@003:example.com"))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestOperatorNeedsNoToken(t *testing.T) {
	w := newWorld(t)
	w.company()
	rec := httptest.NewRecorder()
	w.svc.Operator().ServeHTTP(rec, httptest.NewRequest("POST", "/_carillon/v1/org/reconcile?verify=true", nil))
	var st appservice.JobStatus
	if err := json.Unmarshal(rec.Body.Bytes(), &st); err != nil || rec.Code != 202 || !st.Verify {
		t.Fatalf("%d %s", rec.Code, rec.Body)
	}
	if st := w.wait(st.ID); st.State != appservice.JobDone {
		t.Errorf("%+v", st)
	}
	rec = httptest.NewRecorder()
	w.svc.Operator().ServeHTTP(rec, httptest.NewRequest("PUT", "/_matrix/app/v1/transactions/1", strings.NewReader("{}")))
	if rec.Code != 404 {
		t.Errorf("the operator's socket takes transactions: %d", rec.Code)
	}
}

func TestRegistration(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "registration.yaml")
	made, err := appservice.LoadOrCreateRegistration(path, "example.com", "http://127.0.0.1:8009")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	again, err := appservice.LoadOrCreateRegistration(path, "example.com", "")
	if err != nil || again.ASToken != made.ASToken || again.URL != made.URL || len(again.Namespaces.Users) != 2 {
		t.Errorf("%+v %v", again, err)
	}
	var keys map[string]any
	b, _ := os.ReadFile(path)
	if err := yaml.Unmarshal(b, &keys); err != nil || keys["receive_ephemeral"] != true || keys["de.sorunome.msc2409.push_ephemeral"] != true || keys["rate_limited"] != false {
		t.Errorf("%v %v", keys, err)
	}
	for _, bad := range []string{"", "id: x", "id: x\nas_token: a\nhs_token: a\nsender_localpart: c", "["} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := appservice.LoadRegistration(path); err == nil {
			t.Errorf("%q is taken for a registration", bad)
		}
	}
}

// TestTheDescriptionIsTrue compares the OpenAPI document with the endpoints there are.
func TestTheDescriptionIsTrue(t *testing.T) {
	w := newWorld(t)
	var doc struct {
		Paths map[string]map[string]struct {
			OperationID string `json:"operationId"`
			Security    []any  `json:"security"`
			Parameters  []any  `json:"parameters"`
			Responses   map[string]any
		}
	}
	code, _ := w.call("", "GET", "/openapi.json", nil, "")
	b, err := yaml.YAMLToJSON(api.CarillonV1)
	if err != nil || code != 200 {
		t.Fatal(code, err)
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	described, there, names := map[string]bool{}, map[string]bool{"GET /_carillon/v1/openapi.json": true}, map[string]bool{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			if method == "parameters" {
				continue
			}
			described[strings.ToUpper(method)+" "+path] = true
			if op.OperationID == "" || names[op.OperationID] {
				t.Errorf("%s %s has the operation ID %q", method, path, op.OperationID)
			}
			names[op.OperationID] = true
			if len(op.Responses) == 0 {
				t.Errorf("%s %s describes no answer", method, path)
			}
		}
	}
	for _, r := range w.svc.Routes() {
		there[r.Method+" "+r.Path] = true
	}
	for route := range there {
		if !described[route] {
			t.Errorf("%s is not described", route)
		}
	}
	for route := range described {
		if !there[route] {
			t.Errorf("%s is described but not there", route)
		}
	}
}
