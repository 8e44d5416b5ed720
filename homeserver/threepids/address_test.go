package threepids_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/threepids"
)

func TestEmailAddress(t *testing.T) {
	for in, want := range map[string]string{
		"Alice@Example.ORG":                      "alice@example.org",
		" bob+x@mail.example. ":                  "bob+x@mail.example",
		"o'neil@例え.jp":                           "o'neil@xn--r8jz45g.jp",
		"a@localhost":                            "a@localhost",
		"":                                       "",
		"@example.org":                           "",
		"a@":                                     "",
		"a b@example.org":                        "",
		"Alice <alice@example.org>":              "",
		"mailto:a@example.org\r\nBcc: b":         "",
		"a@b@c.example":                          "",
		".a@example.org":                         "",
		"a.@example.org":                         "",
		"a..b@example.org":                       "",
		`"a"@example.org`:                        "",
		"a@exa mple.org":                         "",
		"a@-example.org":                         "",
		"a@example..org":                         "",
		"a@[127.0.0.1]":                          "",
		strings.Repeat("a", 65) + "@example.org": "",
		"a@" + strings.Repeat("a.", 130) + "example.org": "",
		"é@example.org": "",
	} {
		got, err := threepids.EmailAddress(in)
		if got != want || (err == nil) != (want != "") || err != nil && !matrix.IsCode(err, "M_INVALID_PARAM") {
			t.Errorf("%q: %q %v, want %q", in, got, err, want)
		}
	}
}

func TestPhone(t *testing.T) {
	for _, tc := range []struct{ country, in, want string }{
		{"CN", "138 0013 8000", "8613800138000"},
		{"CN", "010-8888 8888", "861088888888"},
		{"CN", "+86 138-0013-8000", "8613800138000"},
		{"CN", "００８６１３８００１３８０００", "8613800138000"},
		{"GB", "07700 900001", "447700900001"},
		{"GB", "+44 (0)7700 900001", "447700900001"},
		{"GB", "(020) 7946 0000", "442079460000"},
		{"US", "1 (212) 555-0100", "12125550100"},
		{"US", "212.555.0100", "12125550100"},
		{"US", "011 44 7700 900001", "447700900001"},
		{"IT", "06 1234 5678", "390612345678"},
		{"HU", "06 20 123 4567", "36201234567"},
		{"RU", "8 912 345-67-89", "79123456789"},
		{"HK", "2123 4567", "85221234567"},
		{"JP", "010 86 13800138000", "8613800138000"},
		{"TW", "0912345678", "886912345678"},
		{"XX", "13800138000", ""},
		{"", "13800138000", ""},
		{"CN", "", ""},
		{"CN", "hello", ""},
		{"CN", "1380013800a", ""},
		{"CN", "+86", ""},
		{"CN", "+999 1234567", ""},
		{"CN", "12345678901234567890", ""},
		{"CN", "1+3800138000", ""},
		{"CN", "++8613800138000", ""},
		{"US", "123", ""},
	} {
		got, err := threepids.Phone(tc.country, tc.in)
		if got != tc.want || (err == nil) != (tc.want != "") || err != nil && !matrix.IsCode(err, "M_INVALID_PARAM") {
			t.Errorf("%s %q: %q %v, want %q", tc.country, tc.in, got, err, tc.want)
		}
	}
}

// Whatever comes in, what comes out is canonical: it stays what it is.
func FuzzAddresses(f *testing.F) {
	for _, s := range []string{"Alice@例え.JP", "+86 138 0013 8000", "00 44 (0)20 7946 0000", "a@b", "１３８", "\xff@x"} {
		f.Add("CN", s)
	}
	f.Add("US", "1 212 555 0100")
	f.Fuzz(func(t *testing.T, country, s string) {
		if a, err := threepids.EmailAddress(s); err == nil {
			if b, err := threepids.EmailAddress(a); err != nil || a != b || strings.ContainsAny(a, " \r\n<>\"(),;:") || len(a) > 254 {
				t.Errorf("%q: %q, then %q %v", s, a, b, err)
			}
		}
		if a, err := threepids.Phone(country, s); err == nil {
			b, err := threepids.Canonical(threepids.MSISDN, a)
			if err != nil || a != b || strings.Trim(a, "0123456789") != "" || len(a) < 7 || len(a) > 15 {
				t.Errorf("%q: %q, then %q %v", s, a, b, err)
			}
			if c, err := threepids.Phone("DE", "+"+a); err != nil || c != a {
				t.Errorf("%q: +%s is %q %v", s, a, c, err)
			}
		}
		_, _ = threepids.Canonical(country, s)
	})
}

func TestWebhookSMS(t *testing.T) {
	status := http.StatusAccepted
	var got, auth string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got, auth = r.Header.Get("Content-Type")+" "+string(b), r.Header.Get("Authorization")
		w.WriteHeader(status)
	}))
	defer srv.Close()
	send, err := threepids.WebhookSMS(srv.URL+"/sms", "shared secret")
	if err != nil {
		t.Fatal(err)
	}
	if err := send(t.Context(), "+8613800138000", "验证码 \"123456\""); err != nil {
		t.Fatal(err)
	}
	if got != `application/json {"text":"验证码 \"123456\"","to":"+8613800138000"}` || auth != "Bearer shared secret" {
		t.Errorf("%s, %s", got, auth)
	}
	for _, status = range []int{302, 400, 500} {
		if err := send(t.Context(), "+8613800138000", "x"); err == nil || strings.Contains(err.Error(), "138") {
			t.Errorf("%d: %v", status, err)
		}
	}
	srv.Close()
	if err := send(t.Context(), "+8613800138000", "x"); err == nil || strings.Contains(err.Error(), "138001") {
		t.Error(err)
	}
	for _, bad := range [][2]string{{"", "s"}, {"ftp://x/", "s"}, {"https://x/", ""}} {
		if _, err := threepids.WebhookSMS(bad[0], bad[1]); err == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
}
