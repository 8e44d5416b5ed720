package ldapsync

import (
	"testing"

	"github.com/go-ldap/ldap/v3"
)

func TestDates(t *testing.T) {
	for in, want := range map[string]string{
		"": "", " 2026-11-24 ": "2026-11-24", "20261124": "2026-11-24", "20261124160000Z": "2026-11-24", "20261124160000.0Z": "2026-11-24",
		"134405568000000000": "2026-12-01", "0": "", "9223372036854775807": "",
	} {
		if got, err := date(in); got != want || err != nil {
			t.Errorf("%q is read as %q, %v", in, got, err)
		}
	}
	if got, err := date("soon"); err == nil {
		t.Errorf("soon is %q", got)
	}
}

func TestStableIDs(t *testing.T) {
	guid := []byte{0x78, 0x56, 0x34, 0x12, 0xbc, 0x9a, 0xf0, 0xde, 1, 2, 3, 4, 5, 6, 7, 8}
	for _, tc := range []struct{ attr, value, want string }{
		{"objectGUID", string(guid), "12345678-9abc-def0-0102-030405060708"},
		{"entryUUID", "ABCDEF00-0000-4000-8000-000000000001", "abcdef00-0000-4000-8000-000000000001"},
		{"objectGUID", "short", ""},
		{"cn", "x", ""},
	} {
		if got := stable(ldap.NewEntry("cn=x", map[string][]string{tc.attr: {tc.value}})); got != tc.want {
			t.Errorf("%s: %q", tc.attr, got)
		}
	}
}

func TestDisabled(t *testing.T) {
	for _, tc := range []struct {
		attr, value string
		want        bool
	}{
		{"userAccountControl", "512", false},
		{"userAccountControl", "514", true},
		{"userAccountControl", "66050", true},
		{"userAccountControl", "x", false},
		{"nsAccountLock", "TRUE", true},
		{"nsAccountLock", "false", false},
		{"pwdAccountLockedTime", "000001010000Z", true},
		{"pwdAccountLockedTime", "20261124160000Z", false},
	} {
		if got := disabled(ldap.NewEntry("cn=x", map[string][]string{tc.attr: {tc.value}})); got != tc.want {
			t.Errorf("%s %s: %v", tc.attr, tc.value, got)
		}
	}
}

func TestKeys(t *testing.T) {
	if a, b := key("CN=王芳 , OU=研发部,DC=Example"), key("cn=王芳,ou=研发部,dc=example"); a != b {
		t.Errorf("%s is not %s", a, b)
	}
	if got := parentOf(key(`cn=a\,b,ou=x,dc=y`)); got != "ou=x,dc=y" {
		t.Error(got)
	}
	if parentOf("dc=y") != "" {
		t.Error("the top has a parent")
	}
}
