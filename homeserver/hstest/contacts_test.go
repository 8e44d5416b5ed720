package hstest_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/mail/mailtest"
)

// publicURL is what messages of the test servers call them.
const publicURL = "https://chat.a.example"

// post is the mail server and the telephone network of a test.
type post struct {
	*mailtest.Server
	mu    sync.Mutex
	texts map[string][]string
	fails error
	now   time.Duration // by which the server's clock is ahead
}

func (p *post) send(_ context.Context, number, text string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fails != nil {
		return p.fails
	}
	p.texts[number] = append(p.texts[number], text)
	return nil
}

// textsTo are the texts that a number has got.
func (p *post) textsTo(number string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.texts[number]...)
}

func (p *post) advance(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now += d
}

func (p *post) clock() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Now().Add(p.now)
}

// withPost lets a server reach people.
func withPost(t testing.TB, more ...func(*homeserver.Options)) (*post, []hstest.Option) {
	p := &post{Server: mailtest.New(t, mailtest.Options{}), texts: map[string][]string{}}
	opts := []hstest.Option{func(o *homeserver.Options) {
		o.PublicURL = publicURL
		o.Contacts.Mail, o.Contacts.SMS, o.Contacts.Company = p.Options(), p.send, "示例公司"
		o.Now = p.clock
	}}
	for _, m := range more {
		opts = append(opts, m)
	}
	return p, opts
}

var (
	sixDigits = regexp.MustCompile(`\b[0-9]{6}\b`)
	anyLink   = regexp.MustCompile(`https://chat\.a\.example\S+`)
)

func linkIn(t testing.TB, s *hstest.Server, text string) string {
	t.Helper()
	l := anyLink.FindString(text)
	if l == "" {
		t.Fatalf("no link in %q", text)
	}
	return s.URL + strings.TrimPrefix(l, publicURL)
}

// visit opens a page, or sends its form, without following redirects.
func visit(t testing.TB, address string, form url.Values) (status int, location, body string) {
	t.Helper()
	c := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	var resp *http.Response
	var err error
	if form == nil {
		resp, err = c.Get(address)
	} else {
		resp, err = c.PostForm(address, form)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Location"), string(b)
}

// prove proves an e-mail address for a purpose ("account/3pid", …) by the link in the message.
func (p *post) prove(t testing.TB, s *hstest.Server, token, purpose, address, secret string) (sid string) {
	t.Helper()
	n := len(p.All(address))
	a := s.Do(token, "POST", hstest.V3+"/"+purpose+"/email/requestToken", obj{"client_secret": secret, "email": address, "send_attempt": 1})
	want(t, "requestToken", a, 200, "")
	if status, _, body := visit(t, linkIn(t, s, p.Wait(t, address, n+1).Text), url.Values{}); status != 200 {
		t.Fatalf("the link: %d %s", status, body)
	}
	return a.Get("sid").Str
}

func passwordOf(u *hstest.User, session string) obj {
	name := u.UserID.Localpart()
	return obj{"type": "m.login.password", "identifier": obj{"type": "m.id.user", "user": name}, "password": "password of " + name, "session": session}
}

// addEmail gives a user a proven address.
func (p *post) addEmail(t testing.TB, s *hstest.Server, u *hstest.User, address string) {
	t.Helper()
	sid := p.prove(t, s, u.AccessToken, "account/3pid", address, "s3cret")
	u.OK("POST", hstest.Path("account", "3pid", "add"), obj{"sid": sid, "client_secret": "s3cret", "auth": passwordOf(u, "")})
}

func TestAnEmailAddressIsProvenAndAdded(t *testing.T) {
	t.Parallel()
	p, opts := withPost(t)
	s := hstest.New(t, opts...)
	alice, bob := s.User("alice"), s.User("bob")
	if !alice.OK("GET", hstest.V3+"/capabilities", nil).Get(`capabilities.m\.3pid_changes.enabled`).Bool() {
		t.Error("m.3pid_changes is off")
	}
	request := hstest.V3 + "/account/3pid/email/requestToken"
	q := obj{"client_secret": "s3cret", "email": "Alice@Mail.Example", "send_attempt": 1, "next_link": "https://app.example/done"}
	first := alice.OK("POST", request, q)
	sid := first.Get("sid").Str
	if first.Get("submit_url").Str != publicURL+"/_carillon/contacts/v1/email/submit_token" {
		t.Error(first)
	}
	m := p.Wait(t, "alice@mail.example", 1)
	if !strings.Contains(m.Subject, "示例公司") || !strings.Contains(m.HTML, "确认") {
		t.Errorf("%s\n%s", m.Subject, m.HTML)
	}
	// The same attempt sends nothing, the next does, and what was sent before is no longer good.
	alice.OK("POST", request, q)
	q["send_attempt"] = 2
	if again := alice.OK("POST", request, q); again.Get("sid").Str != sid {
		t.Errorf("another session: %s", again)
	}
	newer := p.Wait(t, "alice@mail.example", 2)
	if n := len(p.All("")); n != 2 {
		t.Errorf("%d messages", n)
	}
	add := hstest.Path("account", "3pid", "add")
	alice.Refused(400, "M_THREEPID_AUTH_FAILED", "POST", add, obj{"sid": sid, "client_secret": "s3cret", "auth": passwordOf(alice, "")})
	if status, _, body := visit(t, linkIn(t, s, m.Text), nil); status != 400 || !strings.Contains(body, "链接已失效") {
		t.Errorf("the older link: %d %s", status, body)
	}
	// Looking at the page proves nothing, pressing the button does.
	link := linkIn(t, s, newer.Text)
	if status, _, body := visit(t, link, nil); status != 200 || !strings.Contains(body, "alice@mail.example") || !strings.Contains(body, "<button") {
		t.Errorf("the page: %d %s", status, body)
	}
	alice.Refused(400, "M_THREEPID_AUTH_FAILED", "POST", add, obj{"sid": sid, "client_secret": "s3cret", "auth": passwordOf(alice, "")})
	if status, location, body := visit(t, link, url.Values{}); status != 200 || location != "" || !strings.Contains(body, `href="https://app.example/done"`) {
		t.Errorf("the button: %d %s %s", status, location, body)
	}
	// Whose it is, and with which secret.
	bob.Refused(400, "M_THREEPID_AUTH_FAILED", "POST", add, obj{"sid": sid, "client_secret": "s3cret", "auth": passwordOf(bob, "")})
	alice.Refused(400, "M_THREEPID_AUTH_FAILED", "POST", add, obj{"sid": sid, "client_secret": "guess", "auth": passwordOf(alice, "")})
	alice.Refused(400, "M_MISSING_PARAM", "POST", add, obj{"sid": sid})
	ask := alice.Do("POST", add, obj{"sid": sid, "client_secret": "s3cret"})
	want(t, "without proof of the person", ask, 401, "")
	alice.OK("POST", add, obj{"sid": sid, "client_secret": "s3cret", "auth": passwordOf(alice, ask.Get("session").Str)})
	got := alice.OK("GET", hstest.Path("account", "3pid"), nil).Get("threepids.0")
	if got.Get("address").Str != "alice@mail.example" || got.Get("medium").Str != "email" || got.Get("validated_at").Int() == 0 || got.Get("added_at").Int() == 0 {
		t.Error(got)
	}
	// A proof serves once.
	alice.Refused(400, "M_THREEPID_AUTH_FAILED", "POST", add, obj{"sid": sid, "client_secret": "s3cret", "auth": passwordOf(alice, "")})
	if status, _, _ := visit(t, link, url.Values{}); status != 404 {
		t.Errorf("the link after its use: %d", status)
	}

	// Somebody else cannot have it, and is not told why.
	other := bob.OK("POST", request, obj{"client_secret": "b0b", "email": "alice@mail.example", "send_attempt": 1})
	if told := p.Wait(t, "alice@mail.example", 3); anyLink.MatchString(told.Text) || sixDigits.MatchString(told.Text) || !strings.Contains(told.Text, "已属于一个账户") {
		t.Errorf("told %q", told.Text)
	}
	want(t, "a guess at nothing", s.Do("", "POST", "/_carillon/contacts/v1/email/submit_token",
		obj{"sid": other.Get("sid").Str, "client_secret": "b0b", "token": "000000"}), 400, "M_TOKEN_INCORRECT")
	alice.Refused(400, "M_THREEPID_IN_USE", "POST", request, obj{"client_secret": "mine", "email": "alice@mail.example", "send_attempt": 1})

	// Log in with it.
	id := obj{"type": "m.id.thirdparty", "medium": "email", "address": "ALICE@mail.example"}
	in := s.Do("", "POST", hstest.Path("login"), obj{"type": "m.login.password", "identifier": id, "password": "password of alice"})
	want(t, "log-in by address", in, 200, "")
	if in.Get("user_id").Str != "@alice:a.example" {
		t.Errorf("%s", in.Body)
	}
	want(t, "wrong password", s.Do("", "POST", hstest.Path("login"), obj{"type": "m.login.password", "identifier": id, "password": "x"}), 403, "M_FORBIDDEN")
	id["address"] = "nobody@mail.example"
	want(t, "nobody's address", s.Do("", "POST", hstest.Path("login"), obj{"type": "m.login.password", "identifier": id, "password": "x"}), 403, "M_FORBIDDEN")

	// Gone again, in any spelling.
	if r := alice.OK("POST", hstest.Path("account", "3pid", "delete"), obj{"medium": "email", "address": "Alice@mail.example"}); r.Get("id_server_unbind_result").Str != "no-support" {
		t.Error(r)
	}
	if l := alice.OK("GET", hstest.Path("account", "3pid"), nil).Get("threepids").Array(); len(l) != 0 {
		t.Error(l)
	}
}

func TestATelephoneNumberIsProvenByCode(t *testing.T) {
	t.Parallel()
	p, opts := withPost(t)
	s := hstest.New(t, opts...)
	alice := s.User("alice")
	request := hstest.V3 + "/account/3pid/msisdn/requestToken"
	q := obj{"client_secret": "s3cret", "country": "CN", "phone_number": "138 0013 8000", "send_attempt": 1}
	sid := alice.OK("POST", request, q).Get("sid").Str
	text := p.textsTo("+8613800138000")
	if len(text) != 1 || !strings.HasPrefix(text[0], "【示例公司】验证码 ") {
		t.Fatalf("texts: %v", text)
	}
	submit := "/_carillon/contacts/v1/msisdn/submit_token"
	code := sixDigits.FindString(text[0])
	wrong := "000000"
	if code == wrong {
		wrong = "000001"
	}
	want(t, "another secret", s.Do("", "POST", submit, obj{"sid": sid, "client_secret": "other", "token": code}), 404, "M_NO_VALID_SESSION")
	want(t, "no session", s.Do("", "POST", submit, obj{"sid": "none", "client_secret": "s3cret", "token": code}), 404, "M_NO_VALID_SESSION")
	want(t, "no token", s.Do("", "POST", submit, obj{"sid": sid, "client_secret": "s3cret"}), 400, "M_MISSING_PARAM")
	// Guessing ends the code.
	for range 5 {
		want(t, "a guess", s.Do("", "POST", submit, obj{"sid": sid, "client_secret": "s3cret", "token": wrong}), 400, "M_TOKEN_INCORRECT")
	}
	want(t, "the right code, too late", s.Do("", "POST", submit, obj{"sid": sid, "client_secret": "s3cret", "token": code}), 400, "M_TOKEN_INCORRECT")
	q["send_attempt"] = 2
	alice.OK("POST", request, q)
	code = sixDigits.FindString(p.textsTo("+8613800138000")[1])
	if a := s.Do("", "POST", submit, obj{"sid": sid, "client_secret": "s3cret", "token": code}); !a.Get("success").Bool() {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	// The session's address is what the message went to, whatever is asked afterwards.
	q["phone_number"] = "138 0013 8001"
	if other := alice.OK("POST", request, q).Get("sid").Str; other == sid {
		t.Error("two numbers in one session")
	}
	alice.OK("POST", hstest.Path("account", "3pid", "add"), obj{"sid": sid, "client_secret": "s3cret", "auth": passwordOf(alice, "")})
	if a := alice.OK("GET", hstest.Path("account", "3pid"), nil).Get("threepids"); a.Get("#").Int() != 1 || a.Get("0.address").Str != "8613800138000" {
		t.Error(a)
	}
	for _, id := range []obj{
		{"type": "m.id.phone", "country": "CN", "phone": "13800138000"},
		{"type": "m.id.phone", "country": "GB", "phone": "00 86 13800138000"},
		{"type": "m.id.thirdparty", "medium": "msisdn", "address": "8613800138000"},
	} {
		want(t, "log-in by number", s.Do("", "POST", hstest.Path("login"), obj{"type": "m.login.password", "identifier": id, "password": "password of alice"}), 200, "")
	}
	p.fails = errors.New("no network")
	want(t, "a text that cannot be sent", s.Do("", "POST", hstest.V3+"/account/password/msisdn/requestToken",
		obj{"client_secret": "x", "country": "CN", "phone_number": "13800138000", "send_attempt": 1}), 502, "M_UNKNOWN")
	p.fails = nil
	want(t, "the same attempt again", s.Do("", "POST", hstest.V3+"/account/password/msisdn/requestToken",
		obj{"client_secret": "x", "country": "CN", "phone_number": "13800138000", "send_attempt": 1}), 200, "")
	if n := len(p.textsTo("+8613800138000")); n != 3 {
		t.Errorf("%d texts", n)
	}
}

func TestPagesLeadOn(t *testing.T) {
	t.Parallel()
	p, opts := withPost(t, func(o *homeserver.Options) { o.Contacts.NextHosts = []string{"App.example"} })
	s := hstest.New(t, opts...)
	for next, leads := range map[string]bool{
		"https://app.example/done?a=1": true, publicURL + "/x": true, "https://app.example.evil.example/": false, "https://evil.example/": false,
	} {
		secret := strings.Trim(next[8:], "/?=") // any: a session for each
		secret = strings.NewReplacer("/", "-", "?", "-").Replace(secret)
		a := s.Do("", "POST", hstest.V3+"/account/3pid/email/requestToken", obj{"client_secret": secret, "email": "a@mail.example", "send_attempt": 1, "next_link": next})
		want(t, next, a, 200, "")
		list := p.All("a@mail.example")
		link := linkIn(t, s, list[len(list)-1].Text)
		if _, _, page := visit(t, link+"&lang=en", nil); !strings.Contains(page, "确认邮箱") { // the link's own language comes first
			t.Error(page)
		}
		status, location, page := visit(t, link, url.Values{})
		if leads && (status != 303 || location != next) || !leads && (status != 200 || location != "" || !strings.Contains(page, next)) {
			t.Errorf("%s: %d %q %s", next, status, location, page)
		}
	}
}

func TestSessionsExpire(t *testing.T) {
	t.Parallel()
	p, opts := withPost(t)
	s := hstest.New(t, opts...)
	alice := s.User("alice")
	q := obj{"client_secret": "s3cret", "email": "alice@mail.example", "send_attempt": 1}
	sid := alice.OK("POST", hstest.V3+"/account/3pid/email/requestToken", q).Get("sid").Str
	link := linkIn(t, s, p.Wait(t, "alice@mail.example", 1).Text)
	p.advance(61 * time.Minute)
	if status, _, _ := visit(t, link, url.Values{}); status != 400 {
		t.Errorf("an old link: %d", status)
	}
	want(t, "an old code", s.Do("", "POST", "/_carillon/contacts/v1/email/submit_token", obj{"sid": sid, "client_secret": "s3cret", "token": "1"}), 400, "M_SESSION_EXPIRED")
	if again := alice.OK("POST", hstest.V3+"/account/3pid/email/requestToken", q).Get("sid").Str; again == sid {
		t.Error("an expired session goes on")
	}
	p.Wait(t, "alice@mail.example", 2)
}

func TestRequestsForMessagesAreChecked(t *testing.T) {
	t.Parallel()
	p, opts := withPost(t, func(o *homeserver.Options) {
		o.Contacts.Domains, o.Contacts.Prefixes = []string{"mail.example", "*.corp.example"}, []string{"+86"}
		o.Contacts.PerClient = 8
	})
	s := hstest.New(t, opts...)
	email, phone := "account/3pid/email/requestToken", "account/3pid/msisdn/requestToken"
	long := strings.Repeat("x", 256)
	for _, tc := range []struct {
		path   string
		body   obj
		status int
		code   string
	}{
		{email, obj{"email": "a@mail.example", "send_attempt": 1}, 400, "M_MISSING_PARAM"},
		{email, obj{"client_secret": "x", "send_attempt": 1}, 400, "M_MISSING_PARAM"},
		{email, obj{"client_secret": "x", "email": "a@mail.example"}, 400, "M_MISSING_PARAM"},
		{email, obj{"client_secret": "x", "email": "a@mail.example", "send_attempt": "1"}, 400, "M_BAD_JSON"},
		{email, obj{"client_secret": "x", "email": "a@mail.example", "send_attempt": -1}, 400, "M_INVALID_PARAM"},
		{email, obj{"client_secret": "x y", "email": "a@mail.example", "send_attempt": 1}, 400, "M_INVALID_PARAM"},
		{email, obj{"client_secret": "", "email": "a@mail.example", "send_attempt": 1}, 400, "M_INVALID_PARAM"},
		{email, obj{"client_secret": long, "email": "a@mail.example", "send_attempt": 1}, 400, "M_INVALID_PARAM"},
		{email, obj{"client_secret": "x", "email": "nobody", "send_attempt": 1}, 400, "M_INVALID_PARAM"},
		{email, obj{"client_secret": "x", "email": "a@mail.example", "send_attempt": 1, "next_link": "javascript:alert(1)"}, 400, "M_INVALID_PARAM"},
		{email, obj{"client_secret": "x", "email": "a@mail.example", "send_attempt": 1, "next_link": "https://u:p@evil.example/"}, 400, "M_INVALID_PARAM"},
		{email, obj{"client_secret": "x", "email": "a@evil.example", "send_attempt": 1}, 403, "M_THREEPID_DENIED"},
		{email, obj{"client_secret": "x", "email": "a@evilcorp.example", "send_attempt": 1}, 403, "M_THREEPID_DENIED"},
		{phone, obj{"client_secret": "x", "phone_number": "1", "send_attempt": 1}, 400, "M_MISSING_PARAM"},
		{phone, obj{"client_secret": "x", "country": "CN", "phone_number": "1", "send_attempt": 1}, 400, "M_INVALID_PARAM"},
		{phone, obj{"client_secret": "x", "country": "ZZ", "phone_number": "13800138000", "send_attempt": 1}, 400, "M_INVALID_PARAM"},
		{phone, obj{"client_secret": "x", "country": "GB", "phone_number": "07700900001", "send_attempt": 1}, 403, "M_THREEPID_DENIED"},
		{"register/email/requestToken", obj{"client_secret": "x", "email": "a@mail.example", "send_attempt": 1}, 403, "M_THREEPID_DENIED"},
	} {
		want(t, tc.path, s.Do("", "POST", hstest.V3+"/"+tc.path, tc.body), tc.status, tc.code)
	}
	if len(p.All("")) != 0 {
		t.Errorf("%d messages", len(p.All("")))
	}
	// A flood to one address, then from one client.
	send := func(address string, n int) hstest.Answer {
		return s.Do("", "POST", hstest.V3+"/"+email, obj{"client_secret": "x", "email": address, "send_attempt": n})
	}
	for i := range 6 {
		want(t, "a message", send("a@it.corp.example", i+1), 200, "")
	}
	if a := send("a@it.corp.example", 9); a.Status != 429 || a.Header.Get("Retry-After") == "" {
		t.Errorf("the seventh to one address: %d %s", a.Status, a.Body)
	}
	want(t, "another address", send("b@mail.example", 1), 200, "")
	want(t, "the ninth of one client", send("c@mail.example", 1), 429, "M_LIMIT_EXCEEDED")
	if n := len(p.All("")); n != 7 {
		t.Errorf("%d messages", n)
	}
	p.advance(time.Hour)
	want(t, "an hour later", send("c@mail.example", 1), 200, "")
}

func TestWithoutSenders(t *testing.T) {
	t.Parallel()
	s := hstest.New(t)
	alice := s.User("alice")
	for _, purpose := range []string{"register", "account/password", "account/3pid"} {
		want(t, purpose, s.Do("", "POST", hstest.V3+"/"+purpose+"/email/requestToken", obj{"client_secret": "x", "email": "a@b.example", "send_attempt": 1}), 400, "M_THREEPID_MEDIUM_NOT_SUPPORTED")
		want(t, purpose, s.Do("", "POST", hstest.V3+"/"+purpose+"/msisdn/requestToken", obj{"client_secret": "x", "country": "CN", "phone_number": "13800138000", "send_attempt": 1}), 400, "M_THREEPID_MEDIUM_NOT_SUPPORTED")
	}
	if alice.OK("GET", hstest.V3+"/capabilities", nil).Get(`capabilities.m\.3pid_changes.enabled`).Bool() {
		t.Error("m.3pid_changes is on")
	}
	if a := s.Do("", "POST", hstest.Path("account", "password"), obj{"new_password": "something long"}); a.Get("flows.#").Int() != 1 {
		t.Errorf("flows: %s", a.Body)
	}
}

func TestFixedAddresses(t *testing.T) {
	t.Parallel()
	p, opts := withPost(t, func(o *homeserver.Options) { o.Contacts.Fixed = true })
	s := hstest.New(t, opts...)
	alice := s.User("alice")
	if alice.OK("GET", hstest.V3+"/capabilities", nil).Get(`capabilities.m\.3pid_changes.enabled`).Bool() {
		t.Error("m.3pid_changes is on")
	}
	alice.Refused(403, "M_FORBIDDEN", "POST", hstest.V3+"/account/3pid/email/requestToken", obj{"client_secret": "x", "email": "a@b.example", "send_attempt": 1})
	alice.Refused(403, "M_FORBIDDEN", "POST", hstest.V3+"/account/3pid/add", obj{"client_secret": "x", "sid": "a"})
	alice.Refused(403, "M_FORBIDDEN", "POST", hstest.V3+"/account/3pid/delete", obj{"medium": "email", "address": "a@b.example"})
	if len(p.All("")) != 0 {
		t.Error("a message was sent")
	}
}

func TestALostPasswordIsReset(t *testing.T) {
	t.Parallel()
	p, opts := withPost(t)
	s := hstest.New(t, opts...)
	alice, bob := s.User("alice"), s.User("bob")
	p.addEmail(t, s, alice, "alice@mail.example")
	p.addEmail(t, s, bob, "bob@mail.example")
	second := alice.Login("PHONE")

	path := hstest.Path("account", "password")
	body := obj{"new_password": "a new password"}
	ask := s.Do("", "POST", path, body)
	want(t, "first", ask, 401, "")
	if ask.Get(`flows.#(stages.0=="m.login.email.identity")`).Raw == "" || ask.Get(`flows.#(stages.0=="m.login.msisdn")`).Raw == "" {
		t.Fatalf("flows: %s", ask.Body)
	}
	creds := func(sid, secret string) obj {
		return obj{"type": "m.login.email.identity", "session": ask.Get("session").Str, "threepid_creds": obj{"sid": sid, "client_secret": secret}}
	}
	// A proof for something else does not help.
	forAccount := p.prove(t, s, "", "account/3pid", "carol@mail.example", "s3cret")
	body["auth"] = creds(forAccount, "s3cret")
	want(t, "a proof for something else", s.Do("", "POST", path, body), 401, "M_UNAUTHORIZED")
	// Who has no account gets a message that says so, and nothing more.
	nobody := s.Do("", "POST", hstest.V3+"/account/password/email/requestToken", obj{"client_secret": "n", "email": "nobody@mail.example", "send_attempt": 1})
	want(t, "nobody", nobody, 200, "")
	if m := p.Wait(t, "nobody@mail.example", 1); anyLink.MatchString(m.Text) || sixDigits.MatchString(m.Text) {
		t.Errorf("%q", m.Text)
	}
	// Polling before the button is pressed.
	q := s.Do("", "POST", hstest.V3+"/account/password/email/requestToken", obj{"client_secret": "lost", "email": "alice@mail.example", "send_attempt": 1})
	want(t, "requestToken", q, 200, "")
	body["auth"] = creds(q.Get("sid").Str, "lost")
	want(t, "not yet", s.Do("", "POST", path, body), 401, "M_UNAUTHORIZED")
	m := p.Wait(t, "alice@mail.example", 2)
	if !strings.Contains(m.Text, "重置") {
		t.Error(m.Text)
	}
	if status, _, _ := visit(t, linkIn(t, s, m.Text), url.Values{}); status != 200 {
		t.Errorf("the link: %d", status)
	}
	body["auth"] = creds(q.Get("sid").Str, "guess")
	want(t, "another secret", s.Do("", "POST", path, body), 401, "M_UNAUTHORIZED")
	body["auth"] = creds(q.Get("sid").Str, "lost")
	want(t, "reset", s.Do("", "POST", path, body), 200, "")
	want(t, "the old password", login(s, "alice", "password of alice"), 403, "M_FORBIDDEN")
	want(t, "the new password", login(s, "alice", "a new password"), 200, "")
	for _, u := range []*hstest.User{alice, second} { // logout_devices is true unless said otherwise
		u.Refused(401, "M_UNKNOWN_TOKEN", "GET", hstest.Path("account", "whoami"), nil)
	}
	// The proof is used up.
	delete(body, "auth")
	ask = s.Do("", "POST", path, body)
	body["auth"] = creds(q.Get("sid").Str, "lost")
	want(t, "again", s.Do("", "POST", path, body), 401, "M_UNAUTHORIZED")

	// By text, keeping the devices; and through the pages.
	sid := bob.OK("POST", hstest.V3+"/account/3pid/msisdn/requestToken", obj{"client_secret": "b", "country": "GB", "phone_number": "07700 900001", "send_attempt": 1}).Get("sid").Str
	code := sixDigits.FindString(p.textsTo("+447700900001")[0])
	want(t, "code", s.Do("", "POST", "/_carillon/contacts/v1/msisdn/submit_token", obj{"sid": sid, "client_secret": "b", "token": code}), 200, "")
	bob.OK("POST", hstest.Path("account", "3pid", "add"), obj{"sid": sid, "client_secret": "b", "auth": passwordOf(bob, "")})
	session := s.Do("", "POST", path, obj{"new_password": "bob's new password", "logout_devices": false}).Get("session").Str
	page := s.URL + hstest.V3 + "/auth/m.login.msisdn/fallback/web?session=" + url.QueryEscape(session)
	if status, _, b := visit(t, page, nil); status != 200 || !strings.Contains(b, `name="country"`) {
		t.Fatalf("%d %s", status, b)
	}
	_, _, b := visit(t, page, url.Values{"country": {"gb"}, "address": {"07700900001"}})
	form := url.Values{}
	for _, f := range regexp.MustCompile(`name="(sid|secret)" value="([^"]+)"`).FindAllStringSubmatch(b, -1) {
		form.Set(f[1], f[2])
	}
	if len(form) != 2 {
		t.Fatal(b)
	}
	form.Set("code", "1")
	if status, _, b := visit(t, page, form); status != 401 || strings.Contains(b, "onAuthDone") {
		t.Errorf("wrong code: %d", status)
	}
	texts := p.textsTo("+447700900001")
	form.Set("code", sixDigits.FindString(texts[len(texts)-1]))
	if status, _, b := visit(t, page, form); status != 200 || !strings.Contains(b, "onAuthDone") {
		t.Errorf("code: %d %s", status, b)
	}
	want(t, "reset by text", s.Do("", "POST", path, obj{"new_password": "bob's new password", "logout_devices": false, "auth": obj{"session": session}}), 200, "")
	bob.OK("GET", hstest.Path("account", "whoami"), nil)
	want(t, "bob", login(s, "bob", "bob's new password"), 200, "")
}

func TestRegistrationWithAnAddress(t *testing.T) {
	t.Parallel()
	p, opts := withPost(t, func(o *homeserver.Options) {
		o.Registration = accounts.Registration{Enabled: true, Flows: []accounts.Flow{
			{accounts.StageDummy}, {accounts.StageToken, "m.login.email.identity"}, {"m.login.msisdn", accounts.StageDummy},
		}}
	})
	s := hstest.New(t, opts...)
	alice := s.User("alice")
	p.addEmail(t, s, alice, "alice@mail.example")
	if _, err := s.Accounts().CreateRegistrationToken(t.Context(), accounts.RegistrationToken{Token: "welcome"}); err != nil {
		t.Fatal(err)
	}
	body := obj{"username": "bob", "password": "a good password"}
	session := s.Do("", "POST", hstest.Path("register"), body).Get("session").Str
	register := func(auth obj) hstest.Answer {
		auth["session"] = session
		body["auth"] = auth
		return s.Do("", "POST", hstest.Path("register"), body)
	}
	want(t, "token", register(obj{"type": accounts.StageToken, "token": "welcome"}), 401, "")
	sid := p.prove(t, s, "", "register", "bob@mail.example", "s3cret")
	done := register(obj{"type": "m.login.email.identity", "threepid_creds": obj{"sid": sid, "client_secret": "s3cret"}})
	want(t, "registered", done, 200, "")
	if a := s.Do(done.Get("access_token").Str, "GET", hstest.Path("account", "3pid"), nil); a.Get("threepids.0.address").Str != "bob@mail.example" {
		t.Errorf("%s", a.Body)
	}
	// The address of somebody else: the message goes to them, and leads nowhere.
	taken := s.Do("", "POST", hstest.V3+"/register/email/requestToken", obj{"client_secret": "x", "email": "alice@mail.example", "send_attempt": 1})
	want(t, "taken", taken, 200, "")
	if m := p.Wait(t, "alice@mail.example", 2); anyLink.MatchString(m.Text) {
		t.Error(m.Text)
	}
	// Two people prove the same address: the second comes too late.
	late := p.prove(t, s, "", "register", "carol@mail.example", "one")
	carol := s.User("carol")
	p.addEmail(t, s, carol, "carol@mail.example")
	body["username"] = "dave"
	delete(body, "auth")
	session = s.Do("", "POST", hstest.Path("register"), body).Get("session").Str
	want(t, "token", register(obj{"type": accounts.StageToken, "token": "welcome"}), 401, "")
	want(t, "late", register(obj{"type": "m.login.email.identity", "threepid_creds": obj{"sid": late, "client_secret": "one"}}), 400, "M_THREEPID_IN_USE")
}

func TestAdministratorsVouchForAddresses(t *testing.T) {
	t.Parallel()
	p, opts := withPost(t, func(o *homeserver.Options) { o.Contacts.Fixed = true })
	s := hstest.New(t, opts...)
	alice, root := s.User("alice"), s.User("root")
	if err := s.Accounts().SetAdmin(t.Context(), "@root:a.example", true); err != nil {
		t.Fatal(err)
	}
	path := "/_carillon/admin/v1/users/@alice:a.example/contacts"
	mine := obj{"medium": "email", "address": "Alice@Mail.example"}
	for _, r := range [][2]string{{"GET", path}, {"POST", path}, {"DELETE", path + "/email/alice@mail.example"}} {
		alice.Refused(403, "M_FORBIDDEN", r[0], r[1], nil)
		want(t, "nobody", s.Do("", r[0], r[1], nil), 401, "M_MISSING_TOKEN")
		root.Refused(404, "M_NOT_FOUND", r[0], strings.Replace(r[1], "@alice", "@nobody", 1), nil)
		root.Refused(400, "M_INVALID_PARAM", r[0], strings.Replace(r[1], "a.example", "b.example", 1), nil)
	}
	root.Refused(400, "M_MISSING_PARAM", "POST", path, obj{})
	root.Refused(400, "M_INVALID_PARAM", "POST", path, obj{"medium": "email", "address": "x"})
	if a := root.Do("POST", path, mine); a.Status != 201 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	root.Refused(400, "M_THREEPID_IN_USE", "POST", strings.Replace(path, "alice", "root", 1), mine)
	if got := root.OK("GET", path, nil); got.Get("threepids.0.address").Str != "alice@mail.example" {
		t.Error(got)
	}
	if len(p.All("")) != 0 {
		t.Error("a message was sent")
	}
	// It serves to log in and to reset the password, though she cannot change it.
	id := obj{"type": "m.id.thirdparty", "medium": "email", "address": "alice@mail.example"}
	want(t, "log-in", s.Do("", "POST", hstest.Path("login"), obj{"type": "m.login.password", "identifier": id, "password": "password of alice"}), 200, "")
	alice.Refused(403, "M_FORBIDDEN", "POST", hstest.V3+"/account/3pid/delete", mine)
	p.prove(t, s, "", "account/password", "alice@mail.example", "lost")
	root.OK("DELETE", path+"/email/alice@mail.example", nil)
	root.Refused(404, "M_NOT_FOUND", "DELETE", path+"/email/alice@mail.example", nil)

	moderate := `capabilities.m\.account_moderation.lock`
	if !root.OK("GET", hstest.V3+"/capabilities", nil).Get(moderate).Bool() || alice.OK("GET", hstest.V3+"/capabilities", nil).Get(moderate).Exists() {
		t.Error("m.account_moderation")
	}
	// A locked account cannot come back by its address, nor reset its password.
	if a := root.Do("POST", path, mine); a.Status != 201 {
		t.Fatal(a)
	}
	root.OK("PUT", "/_matrix/client/v1/admin/lock/@alice:a.example", obj{"locked": true})
	alice.Refused(401, "M_USER_LOCKED", "GET", hstest.Path("account", "3pid"), nil)
	want(t, "log-in", s.Do("", "POST", hstest.Path("login"), obj{"type": "m.login.password", "identifier": id, "password": "password of alice"}), 401, "M_USER_LOCKED")
	sid := p.prove(t, s, "", "account/password", "alice@mail.example", "again")
	reset := obj{"new_password": "something new", "auth": obj{"type": "m.login.email.identity", "threepid_creds": obj{"sid": sid, "client_secret": "again"}}}
	if a := s.Do("", "POST", hstest.Path("account", "password"), reset); a.Status != 401 || a.Code() != "M_USER_LOCKED" || !a.Get("soft_logout").Bool() {
		t.Errorf("reset of a locked account: %d %s", a.Status, a.Body)
	}
	root.OK("PUT", "/_matrix/client/v1/admin/lock/@alice:a.example", obj{"locked": false})
	alice.OK("GET", hstest.Path("account", "3pid"), nil)
	// Who is suspended may have an address added, not removed.
	root.OK("PUT", "/_matrix/client/v1/admin/suspend/@alice:a.example", obj{"suspended": true})
	alice.OK("GET", hstest.Path("account", "3pid"), nil)
	alice.Refused(403, "M_USER_SUSPENDED", "POST", hstest.V3+"/account/3pid/delete", mine)
}
