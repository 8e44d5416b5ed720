package config_test

import (
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/config"
)

const smsc = three + `public_base_url: https://chat.example.org
bridges:
  sms:
    smpp:
      address: smsc.example.org:2775
      system_id: carillon
      password: env:CARILLON_TEST_SMSC
      source: "10690"
`

func TestSMPP(t *testing.T) {
	t.Setenv("CARILLON_TEST_SMSC", "secret")
	c, err := read(t, smsc)
	if err != nil {
		t.Fatal(err)
	}
	if s := c.Bridges.SMS.SMPP; s.Address != "smsc.example.org:2775" || s.Password.Value() != "secret" || s.Window != 10 {
		t.Fatalf("read as %+v", s)
	}
	for _, tc := range []struct {
		name, old, new string
		line           int
		field          string
		message, mend  string
	}{
		{"no port", "org:2775", "org", 8, "bridges.sms.smpp.address", "not an address", "smsc.example.org:2775"},
		{"no address", "      address: smsc.example.org:2775\n", "", 0, "bridges.sms.smpp.address", "missing", "address"},
		{"no system ID", "system_id: carillon", "system_id:", 9, "bridges.sms.smpp.system_id", "0 characters", "1 to 15"},
		{"long source", `"10690"`, `"123456789012345678901"`, 11, "bridges.sms.smpp.source", "21 characters", "0 to 20"},
		{"chinese source", `"10690"`, `公司`, 11, "bridges.sms.smpp.source", "cannot carry", "ASCII"},
		{"IDs", "system_id: carillon", "system_id: carillon\n      receipt_ids: octal", 10, "bridges.sms.smpp.receipt_ids", "octal", "decimal"},
		{"window", "system_id: carillon", "system_id: carillon\n      window: 0", 10, "bridges.sms.smpp.window", "0", "10 is usual"},
		{"nowhere for people to go", "public_base_url: https://chat.example.org\n", "", 0, "public_base_url", "missing", "address"},
		{"two ways", "bridges:", "homeserver:\n  sms: {webhook_url: \"https://x.example\", webhook_secret: y}\nbridges:", 10, "bridges.sms.smpp.address", "webhook_url", "one of the two"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			text := strings.Replace(smsc, tc.old, tc.new, 1)
			if text == smsc {
				t.Fatal("the case changes nothing")
			}
			check(t, text, config.Problem{Line: tc.line, Field: tc.field, Message: tc.message, Mend: tc.mend})
		})
	}
	t.Setenv("CARILLON_TEST_SMSC", "a long password")
	_, err = read(t, smsc)
	if err == nil || !strings.Contains(err.Error(), "15 characters") || strings.Contains(err.Error(), "long password") {
		t.Errorf("a password that is too long: %v", err)
	}
}
