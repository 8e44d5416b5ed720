package stories_test

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/test/freeport"
)

// may says what answer an endpoint gives to whom. The employee is a colleague of the person or message that is asked
// about, the manager is the head of their unit, and the visitor has an account of this server but is nobody of the
// company. Who bears no token, a wrong one or one of another server gets 401 everywhere but at public endpoints.
type may struct {
	public                            bool
	visitor, employee, manager, admin int
	path                              func(s *scene) string // after /_carillon/v1; nil: as the document writes it
	body                              func(s *scene) []byte
}

// scene is what the endpoints are asked about.
type scene struct {
	*world
	room, message, ding, recallable, job string
	n                                    int
}

func seg(s string) string { return url.PathEscape(s) }

// permissions has a row for each operation of the API's document.
func permissions() map[string]may {
	object := func(*scene) []byte { return []byte("{}") }
	return map[string]may{
		"health":      {public: true, visitor: 200, employee: 200, manager: 200, admin: 200},
		"openapi":     {public: true, visitor: 200, employee: 200, manager: 200, admin: 200},
		"orgTree":     {visitor: 403, employee: 200, manager: 200, admin: 200},
		"orgPeople":   {visitor: 403, employee: 200, manager: 200, admin: 200},
		"orgTemplate": {visitor: 403, employee: 200, manager: 200, admin: 200},
		"orgPerson": {
			visitor: 403, employee: 200, manager: 200, admin: 200,
			path: func(*scene) string { return "/org/people/D1013" },
		},
		"orgUnit": {
			visitor: 403, employee: 200, manager: 200, admin: 200,
			path: func(*scene) string { return "/org/units/rd-app" },
		},
		"orgImport": {
			visitor: 403, employee: 403, manager: 403, admin: 200,
			path: func(*scene) string { return "/org/import?plan=true" },
			body: func(s *scene) []byte { return file(s.t, org.DemoCompany(), org.FormatCSV) },
		},
		"orgReconcile": {visitor: 403, employee: 403, manager: 403, admin: 202, body: object},
		"orgJob": {
			visitor: 403, employee: 403, manager: 403, admin: 200,
			path: func(s *scene) string { return "/org/jobs/" + seg(s.job) },
		},
		"orgDirectory": {visitor: 403, employee: 403, manager: 403, admin: 404}, // there is none
		"orgFollow":    {visitor: 403, employee: 403, manager: 403, admin: 404, body: object},
		"sites":        {visitor: 403, employee: 403, manager: 403, admin: 200},
		"sitesEpoch":   {visitor: 403, employee: 403, manager: 403, admin: 200, body: object},
		"sitesTrust": {
			visitor: 403, employee: 403, manager: 403, admin: 404,
			body: func(*scene) []byte { return mustJSON(map[string]string{"site": "nowhere"}) },
		},
		"siteProposal": {
			visitor: 403, employee: 403, manager: 403, admin: 404,
			path: func(*scene) string { return "/sites/proposals/none" },
		},
		"messageReaders": {
			visitor: 404, employee: 403, manager: 200, admin: 200,
			path: func(s *scene) string { return "/messages/" + seg(s.room) + "/" + seg(s.message) + "/readers" },
		},
		"dingCreate": {
			visitor: 403, employee: 201, manager: 201, admin: 201,
			body: func(s *scene) []byte {
				s.n++
				return mustJSON(map[string]any{"uuid": strconv.Itoa(s.n), "body": "权限", "receivers": map[string]any{"persons": []string{"D1021"}}})
			},
		},
		"dingList":    {visitor: 200, employee: 200, manager: 200, admin: 200},
		"dingShow":    {visitor: 404, employee: 404, manager: 404, admin: 200, path: func(s *scene) string { return "/dings/" + seg(s.ding) }},
		"dingConfirm": {visitor: 404, employee: 404, manager: 404, admin: 404, body: object, path: func(s *scene) string { return "/dings/" + seg(s.ding) + "/confirm" }},
		"dingRecall":  {visitor: 404, employee: 404, manager: 404, admin: 200, body: object, path: func(s *scene) string { return "/dings/" + seg(s.recallable) + "/recall" }},
	}
}

// operation is one of the API's document.
type operation struct {
	id, method, path string
	public           bool
	answers          []string // the statuses it names
}

// operations reads the document that the service serves.
func (w *world) operations() []operation {
	w.t.Helper()
	var out []operation
	for path, methods := range w.must("", http.MethodGet, "/openapi.json", nil)["paths"].(map[string]any) {
		for method, o := range methods.(map[string]any) {
			op := o.(map[string]any)
			security, given := op["security"].([]any)
			x := operation{method: strings.ToUpper(method), path: strings.TrimPrefix(path, "/_carillon/v1"), public: given && len(security) == 0}
			x.id, _ = op["operationId"].(string)
			for status := range op["responses"].(map[string]any) {
				x.answers = append(x.answers, status)
			}
			out = append(out, x)
		}
	}
	return out
}

// Every endpoint of the API, asked by everybody. An endpoint that the document names and this test does not know
// fails it, and so does an answer that the document does not name.
func TestWhoMayCallWhat(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.company(org.DemoCompany())
	if err := w.hs.Accounts().Create(t.Context(), accounts.NewUser{ID: "@visitor:" + serverName, Password: "just looking"}); err != nil {
		t.Fatal(err)
	}
	sender := w.person("D1013")
	s := &scene{world: w, room: string(w.unit("rd-app"))}
	s.message = string(sender.says(w.unit("rd-app"), "谁能看"))
	w.person("D1015").reads(w.unit("rd-app"), id.EventID(s.message), event.ReceiptTypeRead, "")
	w.wantLists(sender, w.unit("rd-app"), id.EventID(s.message), lists{read: []string{huang}, unread: []string{ma, liu}})
	s.ding = w.dings(sender, "谁能看", map[string]any{"persons": []string{"D1015"}})
	s.recallable = w.dings(sender, "谁能撤回", map[string]any{"persons": []string{"D1015"}})
	s.job, _ = w.must(w.chief.AccessToken, http.MethodPost, "/org/reconcile", nil)["id"].(string)
	w.follow(s.job)

	callers := []struct {
		who, token string
		want       func(may) int
	}{
		{"nobody", "", nil},
		{"a wrong token", "syt_d3Jvbmc_wrong", nil},
		{"a user of another server", foreignToken(t), nil},
		{"the homeserver's token", w.reg.HSToken, nil},
		{"a visitor", w.logIn("visitor", "just looking").AccessToken, func(m may) int { return m.visitor }},
		{"an employee", w.person("D1014").AccessToken, func(m may) int { return m.employee }},
		{"a manager", w.person("D1012").AccessToken, func(m may) int { return m.manager }},
		{"an administrator", w.person("D1001").AccessToken, func(m may) int { return m.admin }},
	}
	rows := permissions()
	seen := map[string]bool{}
	for _, op := range w.operations() {
		m, ok := rows[op.id]
		if !ok {
			t.Errorf("%s %s (%s) has no row in the table of permissions", op.method, op.path, op.id)
			continue
		}
		seen[op.id] = true
		if op.public != m.public {
			t.Errorf("%s: public in the document: %v", op.id, op.public)
		}
		for _, c := range callers {
			want := http.StatusUnauthorized
			switch {
			case c.want != nil:
				want = c.want(m)
			case m.public:
				want = http.StatusOK
			}
			path, body := op.path, []byte(nil)
			if m.path != nil {
				path = m.path(s)
			}
			if m.body != nil {
				body = m.body(s)
			}
			a, err := call(t.Context(), w.url, c.token, op.method, "/_carillon/v1"+path, "application/json", body)
			if err != nil {
				t.Fatal(err)
			}
			if a.status != want {
				t.Errorf("%s asks for %s: %d, want %d: %v", c.who, op.id, a.status, want, a.body)
			}
			if !slices.Contains(op.answers, strconv.Itoa(a.status)) {
				t.Errorf("%s asks for %s: the document does not know the status %d", c.who, op.id, a.status)
			}
			if a.status >= 400 && (a.body["errcode"] == nil || a.body["error"] == nil) {
				t.Errorf("%s asks for %s: the refusal %v is not one of Matrix", c.who, op.id, a.body)
			}
		}
	}
	for id := range rows {
		if !seen[id] {
			t.Errorf("%s has a row and is not in the document", id)
		}
	}
	whoSeesWhat(t, w)
}

// foreignToken is the token of a user of another server, which is good there.
func foreignToken(t *testing.T) string {
	t.Helper()
	hs, err := homeserver.New(t.Context(), homeserver.Options{
		ServerName: "other.example", DataDir: t.TempDir(), Database: sqldbtest.DSN(t), Passwords: accounts.PasswordCost{MemoryKiB: 64, Passes: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	other := &world{t: t}
	addr := freeport.Address(t)
	t.Cleanup(other.background(addr, hs.Handler(), hs.Run, func() { hs.Close() }))
	if err := hs.Accounts().Create(t.Context(), accounts.NewUser{ID: "@eve:other.example", Password: "from elsewhere"}); err != nil {
		t.Fatal(err)
	}
	eve, err := logIn(t, "http://"+addr, "eve", "from elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	return eve.AccessToken
}

// whoSeesWhat: what is private of a person is for the person, the managers and administrators.
func whoSeesWhat(t *testing.T, w *world) {
	t.Helper()
	sees := func(p *person, job string) (mobile bool, status int) {
		a := w.api(p.AccessToken, http.MethodGet, "/org/people/"+job, nil)
		return a.body["mobile"] != nil && a.body["hired"] != nil, a.status
	}
	found := func(p *person, q string) int {
		return len(w.must(p.AccessToken, http.MethodGet, "/org/people?q="+url.QueryEscape(q), nil)["people"].([]any))
	}
	for _, c := range []struct {
		who    *person
		mobile bool // of 陈晨
		leaver int  // may look at 董洁, who has left
	}{
		{w.person("D1014"), false, 404},
		{w.person("D1021"), false, 404},
		{w.person("D1013"), true, 404},
		{w.person("D1012"), true, 404},
		{w.person("D1010"), true, 404}, // heads the department above
		{w.person("D2001"), false, 404},
		{w.person("D1001"), true, 200},
		{w.chief, true, 200},
	} {
		mobile, status := sees(c.who, "D1013")
		if mobile != c.mobile || status != 200 {
			t.Errorf("%s sees the mobile number: %v (%d)", c.who.UserID, mobile, status)
		}
		if n := found(c.who, "13800000013"); (n == 1) != c.mobile {
			t.Errorf("%s finds %d people by the mobile number", c.who.UserID, n)
		}
		if _, status := sees(c.who, "D1019"); status != c.leaver {
			t.Errorf("%s looks for who has left: %d", c.who.UserID, status)
		}
		if n := found(c.who, "董洁"); (n == 1) != (c.leaver == 200) {
			t.Errorf("%s finds %d people who have left", c.who.UserID, n)
		}
		if n := found(c.who, "张伟"); n != 2 {
			t.Errorf("%s finds %d of two people of one name", c.who.UserID, n)
		}
	}
}
