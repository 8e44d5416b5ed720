package sms_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/carillon-chat/carillon/bridges/bridge"
	"github.com/carillon-chat/carillon/bridges/sms"
)

func TestSplit(t *testing.T) {
	for text, want := range map[string]struct {
		parts int
		wide  bool
	}{
		"":                           {1, false},
		strings.Repeat("a", 160):     {1, false},
		strings.Repeat("a", 161):     {2, false},
		strings.Repeat("a", 153*2):   {2, false},
		strings.Repeat("a", 153*2+1): {3, false},
		strings.Repeat("€", 80):      {1, false},
		strings.Repeat("€", 81):      {2, false},
		strings.Repeat("a", 152) + "€ab€€€": {2, false}, // no escape is torn apart
		strings.Repeat("字", 70):             {1, true},
		strings.Repeat("字", 71):             {2, true},
		strings.Repeat("字", 66) + "🚨🚨🚨🚨":    {2, true}, // nor a surrogate pair
		"`":    {1, true},
		"\xff": {1, true},
	} {
		parts, wide := sms.Split(text)
		if len(parts) != want.parts || wide != want.wide || strings.Join(parts, "") != text {
			t.Errorf("%.20q: %d parts, wide %v", text, len(parts), wide)
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add("您好, hello €")
	f.Add(strings.Repeat("字", 200))
	f.Fuzz(func(t *testing.T, s string) {
		parts, wide := sms.Split(s)
		if strings.Join(parts, "") != s {
			t.Fatal("something is lost")
		}
		for _, p := range parts {
			if n := sms.Units(p); wide && utf8.ValidString(s) && (len(parts) > 1 && n > 67 || n > 70) {
				t.Fatalf("a part of %d", n)
			}
		}
	})
}

// carrier answers as it is told.
type carrier struct{ err error }

func (c carrier) Send(context.Context, *sms.Message) (sms.Accepted, error) {
	return sms.Accepted{ID: "7", Parts: 2}, c.err
}
func (carrier) Run(context.Context, sms.Events) error { return nil }
func (carrier) Capacity() int                         { return 3 }

func TestOutbox(t *testing.T) {
	item := func(m any) *bridge.Item {
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return &bridge.Item{Key: "k", Payload: b}
	}
	good := sms.Message{To: "+8613800138000", Text: "您好"}
	o := sms.NewOutbox(carrier{}, bridge.Bounds{})
	if r, err := o.Send(t.Context(), item(good)); err != nil || r.ProviderID != "7" || o.Bounds().Concurrency != 3 {
		t.Error(r, err)
	}
	if r, err := sms.NewOutbox(carrier{sms.ErrUnsure}, bridge.Bounds{}).Send(t.Context(), item(good)); err != nil || r.ProviderID != "" {
		t.Error("what may have gone is tried again:", r, err)
	}
	if _, err := sms.NewOutbox(carrier{errors.New("down")}, bridge.Bounds{}).Send(t.Context(), item(good)); err == nil {
		t.Error("no error")
	}
	for name, bad := range map[string]any{
		"no JSON object": 5, "no number": sms.Message{Text: "x"}, "no plus": sms.Message{To: "13912345678", Text: "x"}, "letters": sms.Message{To: "+86139123456oo", Text: "x"},
		"too long a number": sms.Message{To: "+1234567890123456", Text: "x"}, "no text": sms.Message{To: "+8613912345678"}, "too long": sms.Message{To: "+8613800138000", Text: strings.Repeat("字", 671)},
		"zero": sms.Message{To: "+0613800138000", Text: "x"},
	} {
		if _, err := o.Send(t.Context(), item(bad)); err == nil || strings.Contains(err.Error(), "1391") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
