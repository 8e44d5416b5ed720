package config_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/config"
)

var update = flag.Bool("update", false, "write the example file and the reference page anew")

const three = "server_name: example.org\ndata_dir: ./data\nlisten: :8008\n"

func read(t *testing.T, text string) (*config.Config, error) {
	t.Helper()
	return config.Read(strings.NewReader(text))
}

func TestThreeLinesAreEnough(t *testing.T) {
	c, err := read(t, three)
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	want.ServerName, want.DataDir, want.Listen = "example.org", "./data", ":8008"
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v\nwant %+v", c, want)
	}
	if got := c.HomeserverDSN(); got != filepath.Join("data", "homeserver.db") {
		t.Errorf("homeserver database %q", got)
	}
	if got := c.AppServiceDSN(); got != filepath.Join("data", "appservice.db") {
		t.Errorf("appservice database %q", got)
	}
	if got := c.ClientAddress(); got != "http://localhost:8008" {
		t.Errorf("client address %q", got)
	}
	if c.AppService.DING.Grace.Std() != 15*time.Minute || c.Homeserver.Media.MaxUpload != 100<<20 {
		t.Errorf("defaults: %+v", c)
	}
}

func TestProblemsNameLineFieldAndMend(t *testing.T) {
	cases := []struct {
		name, text string
		line       int
		field      string
		message    string
		mend       string
	}{
		{"nothing", "", 0, "server_name", "missing", "server_name: example.org"},
		{"near miss", three + "homeserver:\n  presense: true\n", 5, "homeserver.presense", "no such setting", "homeserver.presence"},
		{"other section", three + "registration:\n  enabled: true\n", 4, "registration", "no such setting", "registration?"},
		{"unknown", three + "zzz_nothing: 1\n", 4, "zzz_nothing", "no such setting", "possible here"},
		{"twice", three + "listen: :9\n", 4, "", "", ""},
		{"not yaml", three + "log: [\n", 4, "", "not YAML", ""},
		{"bool", three + "homeserver:\n  presence: perhaps\n", 5, "homeserver.presence", "neither true nor false", "true or false"},
		{"number", three + "appservice:\n  concurrency: many\n", 5, "appservice.concurrency", "not a whole number", "digits"},
		{"size", three + "homeserver:\n  media:\n    max_upload: big\n", 6, "homeserver.media.max_upload", "not a size", "100MiB"},
		{"duration", three + "homeserver:\n  turn:\n    lifetime: 5\n", 6, "homeserver.turn.lifetime", "not a time span", "24h"},
		{"section as value", three + "homeserver: yes\n", 4, "homeserver", "settings are needed", "indented"},
		{"value as section", three + "tls_cert:\n  a: b\n", 5, "tls_cert", "one value", "behind the colon"},
		{"list of lists", three + "homeserver:\n  admins: {a: b}\n", 5, "homeserver.admins", "list", "- value"},
		{"server name", "server_name: https://example.org\ndata_dir: d\nlisten: :1\n", 1, "server_name", "not a server name", "no https://"},
		{"listen", "server_name: a\ndata_dir: d\nlisten: 8008\n", 3, "listen", "not an address", "127.0.0.1:8008"},
		{"room version", three + "homeserver:\n  default_room_version: 13\n", 5, "homeserver.default_room_version", "not a room version", "1 to 12"},
		{"federation without TLS", three + "homeserver:\n  federation:\n    listen: :8448\n", 6, "homeserver.federation.listen", "TLS", "tls_cert"},
		{"metrics for everybody", three + "homeserver:\n  metrics:\n    listen: :9008\n", 0, "homeserver.metrics.token", "everybody", "127.0.0.1"},
		{"metrics nowhere", three + "homeserver:\n  metrics:\n    token: abc\n", 6, "homeserver.metrics.token", "nothing is shown", "listen"},
		{"half a pair", three + "tls_cert: /dev/null\n", 0, "tls_key", "missing", "both or none"},
		{"open but off", three + "homeserver:\n  registration:\n    open: true\n", 6, "homeserver.registration.open", "no effect", "enabled: true"},
		{"turn without log-in", three + "homeserver:\n  turn:\n    uris: turn:a:1\n", 5, "homeserver.turn", "log-in", "shared_secret"},
		{"same database", three + "homeserver:\n  database: postgres://h/x\nappservice:\n  database: postgres://h/x\n", 7, "appservice.database", "homeserver's database", "one of its own"},
		{"other database", three + "homeserver:\n  database: mysql://h/x\n", 5, "homeserver.database", "mysql", "postgres://"},
		{"language", three + "appservice:\n  language: fr\n", 5, "appservice.language", "not possible", "zh, en"},
		{"missing variable", three + "homeserver:\n  registration:\n    shared_secret: env:CARILLON_NO_SUCH\n", 6, "homeserver.registration.shared_secret", "CARILLON_NO_SUCH", "env:NAME"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := read(t, c.text)
			var problems config.Problems
			if !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("got %v, want problems", err)
			}
			p := problems[0]
			if p.Line != c.line || c.field != "" && p.Field != c.field || !strings.Contains(p.Message, c.message) || !strings.Contains(p.Mend, c.mend) {
				t.Errorf("got %+v", p)
			}
		})
	}
}

func TestAllProblemsAreListed(t *testing.T) {
	_, err := read(t, "server_name: a b\ndata_dir: d\nlisten: x\nlog:\n  level: loud\n")
	if n := strings.Count(err.Error(), "\n"); n != 2 {
		t.Errorf("want three lines, got:\n%v", err)
	}
	_, err = read(t, "servername: a\ndatadir: d\n")
	if !strings.Contains(err.Error(), "line 1: servername") || !strings.Contains(err.Error(), "line 2: datadir") {
		t.Errorf("got:\n%v", err)
	}
}

func TestSecrets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("from the file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CARILLON_TEST_DSN", "postgres://u:p@h/db")
	c, err := read(t, three+"homeserver:\n  database: env:CARILLON_TEST_DSN\n  registration:\n    shared_secret: file:"+file+"\n")
	if err != nil {
		t.Fatal(err)
	}
	if c.HomeserverDSN() != "postgres://u:p@h/db" || c.Homeserver.Registration.SharedSecret.Value() != "from the file" {
		t.Errorf("got %q and %q", c.HomeserverDSN(), c.Homeserver.Registration.SharedSecret.Value())
	}
	if shown := c.Homeserver.Registration.SharedSecret.String(); strings.Contains(shown, "file") {
		t.Errorf("the secret shows: %q", shown)
	}
	c, err = read(t, three+"homeserver:\n  database: file:/var/lib/x/homeserver.db?mode=rw\n")
	if err != nil || c.HomeserverDSN() != "file:/var/lib/x/homeserver.db?mode=rw" {
		t.Errorf("a database file's URI: %v", err)
	}
}

func TestExampleAndReferenceAreCurrent(t *testing.T) {
	for path, write := range map[string]func(*bytes.Buffer) error{
		"../carillon.example.yaml": func(b *bytes.Buffer) error { return config.WriteExample(b) },
		"../docs/configuration.md": func(b *bytes.Buffer) error { return config.WriteReference(b) },
	} {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, b.Bytes()) {
			t.Errorf("%s differs from the struct: run go generate ./config", path)
		}
	}
}

// Every default of the example, uncommented, must be accepted and be the default.
func TestExampleWorksWithEverySettingUncommented(t *testing.T) {
	var b bytes.Buffer
	if err := config.WriteExample(&b); err != nil {
		t.Fatal(err)
	}
	plain, err := config.Read(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatalf("as it is: %v", err)
	}
	full := regexp.MustCompile(`(?m)^(\s*)#([a-z_]+:)`).ReplaceAll(b.Bytes(), []byte("$1$2"))
	c, err := config.Read(bytes.NewReader(full))
	if err != nil {
		t.Fatalf("uncommented: %v", err)
	}
	dropEmptyLists(reflect.ValueOf(c).Elem())
	if !reflect.DeepEqual(c, plain) {
		t.Errorf("got %+v\nwant %+v", c, plain)
	}
	if len(regexp.MustCompile(`(?m)^\s*[a-z_]+:`).FindAll(full, -1)) < 60 {
		t.Error("settings are missing from the example")
	}
}

// dropEmptyLists makes no difference between an empty list and none.
func dropEmptyLists(v reflect.Value) {
	for i := range v.NumField() {
		switch f := v.Field(i); {
		case f.Kind() == reflect.Struct:
			dropEmptyLists(f)
		case f.Kind() == reflect.Slice && f.Len() == 0:
			f.SetZero()
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]config.Size{"4096": 4096, "1KiB": 1024, "3 MB": 3e6, "2GiB": 2 << 30, "0": 0} {
		if got, err := config.ParseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "x", "-1", "1.5MiB", "9999999999GiB", "MiB"} {
		if got, err := config.ParseSize(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
	if s := config.Size(100 << 20).String(); s != "100MiB" {
		t.Error(s)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(three)
	f.Add(three + "homeserver:\n  admins: [\"@a:b\"]\n  media: {max_upload: 3MB}\n")
	f.Add("a: &x [*x]\n? b\n: c\n---\n")
	f.Add("log: !!binary aGk=\nlisten: |\n  x\n")
	f.Add("log: !0000000\n0000000")
	f.Add("<<: {a: b}\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := config.Read(strings.NewReader(text))
		if (c == nil) == (err == nil) {
			t.Errorf("both or neither: %v, %v", c, err)
		}
	})
}

// What the media store and link previews are told is checked before the server starts.
func TestMediaSettings(t *testing.T) {
	const head = "server_name: example.org\ndata_dir: ./data\nlisten: :8008\nhomeserver:\n"
	c, err := config.Read(strings.NewReader(head + `  media:
    type_limits: ["image/*=20MiB", "application/x-msdownload=0"]
    remote_lifetime: 30d
    s3: {endpoint: "https://s3.example.org:9000", bucket: media, access_key: id, secret_key: secret}
  url_previews: {allow_networks: [10.1.0.0/16], deny_networks: [10.1.2.3], allow: ["*.example.org"]}
`))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Homeserver.Media.RemoteFor.Std(); got != 30*24*time.Hour {
		t.Errorf("remote_lifetime %s", got)
	}
	if kind, size, err := config.ParseTypeLimit(c.Homeserver.Media.TypeLimits[0]); kind != "image/*" || size != 20<<20 || err != nil {
		t.Errorf("%s %d %v", kind, size, err)
	}
	if allow, deny := c.Homeserver.URLPreviews.Networks(); len(allow) != 1 || len(deny) != 1 || deny[0].Bits() != 32 {
		t.Errorf("networks %v %v", allow, deny)
	}
	for body, field := range map[string]string{
		"  media: {type_limits: [image]}":                          "homeserver.media.type_limits",
		"  media: {type_limits: [\"image/*=many\"]}":               "homeserver.media.type_limits",
		"  media: {remote_lifetime: 1.5d}":                         "homeserver.media.remote_lifetime",
		"  media: {pending_lifetime: 0s}":                          "homeserver.media.pending_lifetime",
		"  media: {max_pending: 0}":                                "homeserver.media.max_pending",
		"  media: {s3: {redirect: true}}":                          "homeserver.media.s3.redirect",
		"  media: {s3: {endpoint: \"https://s3\"}}":                "homeserver.media.s3.endpoint",
		"  media: {s3: {endpoint: \"s3\", bucket: b}}":             "homeserver.media.s3.endpoint",
		"  url_previews: {allow_networks: [office]}":               "homeserver.url_previews.allow_networks",
		"  url_previews: {deny: [\"https://example.org/secret\"]}": "homeserver.url_previews.deny",
	} {
		_, err := config.Read(strings.NewReader(head + body + "\n"))
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", body, err)
		}
	}
}

func TestContactsAreChecked(t *testing.T) {
	base := "server_name: example.org\ndata_dir: ./data\nlisten: 127.0.0.1:8008\n"
	_, err := config.Read(strings.NewReader(base + `
homeserver:
  email: {host: mail.example.org, from: nobody, security: maybe, user: u, notify_after: 1s}
  sms: {webhook_url: "https://sms.example.org/"}
  registration: {enabled: true, flows: ["token phone", "email email", "captcha", "terms"]}
  contacts: {phone_prefixes: ["86"], messages_per_address: 0, language: fr, identity_servers: ["https://x"]}
`))
	if err == nil {
		t.Fatal("all is accepted")
	}
	for _, want := range []string{
		"homeserver.email.from", "homeserver.email.security", "homeserver.email.password", "notify_after", "public_base_url", "homeserver.sms",
		`"captcha"`, `"email" cannot`, "no policies", "phone_prefixes", "messages_per_address", "contacts.language", "identity_servers",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %s in\n%v", want, err)
		}
	}
	c, err := config.Read(strings.NewReader(base + `
public_base_url: https://chat.example.org
homeserver:
  email: {host: mail.example.org, from: "示例 <noreply@example.org>", user: u, password: p}
  sms: {webhook_url: "http://127.0.0.1:9/", webhook_secret: s}
  registration: {enabled: true, flows: ["token email terms", "phone nothing"], policies: {version: "2", terms_zh: "https://example.org/terms"}}
`))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.RegistrationFlows(); len(got) != 2 || got[0][1] != "m.login.email.identity" || got[1][1] != "m.login.dummy" {
		t.Error(got)
	}
}

func TestProvidersOfSignIn(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("hush\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	base := "server_name: example.org\ndata_dir: d\nlisten: :8008\npublic_base_url: https://chat.example.org\nhomeserver:\n"
	c, err := config.Read(strings.NewReader(base + `  sso:
    trusted_clients: [https://chat.example.org/]
    providers:
      - id: company
        name: 集团统一登录
        issuer: https://login.example.org/
        client_id: carillon
        client_secret: file:` + secret + `
      - {id: other, name: Other, issuer: "https://other.example.org", client_id: c, localpart: "{{before \"@\" .email}}", create: false}
`))
	if err != nil {
		t.Fatal(err)
	}
	list := c.Homeserver.SSO.Providers
	if len(list) != 2 || list[0].ClientSecret.Value() != "hush" || !list[0].Create || list[0].Localpart != "{{.preferred_username}}" ||
		list[1].Create || list[1].Localpart != `{{before "@" .email}}` || len(list[1].Scopes) != 2 {
		t.Errorf("%+v", list)
	}
	entry := "  sso: {providers: [{id: a, name: A, issuer: \"https://a.example\", client_id: c"
	for text, field := range map[string]string{
		entry + "}, {id: a, name: A, issuer: \"https://a.example\", client_id: c}]}": "homeserver.sso.providers[1].id",
		entry + ", clientid: d}]}":                                                      "homeserver.sso.providers[0].clientid",
		entry + ", client_secret: \"env:CARILLON_NO_SUCH\"}]}":                          "homeserver.sso.providers[0].client_secret",
		entry + ", icon: \"https://x\"}]}":                                              "homeserver.sso.providers[0].icon",
		"  sso: {providers: [{id: a b, name: A, issuer: \"https://a\", client_id: c}]}": "homeserver.sso.providers[0].id",
		"  sso: {providers: [{id: a, issuer: \"https://a\", client_id: c}]}":            "homeserver.sso.providers[0].name",
		"  sso: {providers: [{id: a, name: A, issuer: \"http://a\", client_id: c}]}":    "homeserver.sso.providers[0].issuer",
		"  sso: {providers: company}":                                                   "homeserver.sso.providers",
		"  sso: {trusted_clients: [\"no address\"]}":                                    "homeserver.sso.trusted_clients",
		"  passwords: {log_in: false}":                                                  "homeserver.passwords.log_in",
	} {
		_, err := config.Read(strings.NewReader(base + text + "\n"))
		var problems config.Problems
		if !errors.As(err, &problems) || problems[0].Field != field {
			t.Errorf("%s: %v, want a problem of %s", text, err, field)
		}
	}
	if _, err := config.Read(strings.NewReader(strings.Replace(base, "public_base_url: https://chat.example.org\n", "", 1) + entry + "}]}\n")); err == nil {
		t.Error("providers without a public address are accepted")
	}
}

func TestRates(t *testing.T) {
	for text, want := range map[string]struct {
		perSecond float64
		burst     int
	}{
		"10/s burst 100": {10, 100}, "30/min": {0.5, 30}, "0.5/s": {0.5, 1}, "36/h burst 5": {0.01, 5},
	} {
		c, err := read(t, three+"homeserver:\n  rate_limits:\n    joins: "+text+"\n")
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if perSecond, burst := c.Homeserver.RateLimits.Joins.Limit(); perSecond != want.perSecond || burst != want.burst {
			t.Errorf("%s is %v a second and %d at once", text, perSecond, burst)
		}
	}
	for _, text := range []string{"10", "10/d", "/s", "0/s", "-1/s", "NaN/s", "Inf/s", "10/s burst", "10/s burst 0", "10/s burst x", "10/s 5", "1e99/s"} {
		if _, err := read(t, three+"homeserver:\n  rate_limits:\n    joins: "+text+"\n"); err == nil {
			t.Errorf("%q is taken for a rate", text)
		}
	}
}

func TestSupportContactsAreChecked(t *testing.T) {
	text := "server_name: example.org\ndata_dir: ./data\nlisten: 127.0.0.1:8008\nhomeserver:\n  support:\n    contacts:\n      - {role: m.role.admin}\n      - {role: m.role.admin, email: nowhere}\n"
	_, err := config.Read(strings.NewReader(text))
	if err == nil || !strings.Contains(err.Error(), "neither user nor email") || !strings.Contains(err.Error(), "not an e-mail address") {
		t.Errorf("%v", err)
	}
}
