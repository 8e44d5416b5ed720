package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/bridges/sms"
	"github.com/carillon-chat/carillon/config"
)

// carrier keeps what it is given.
type carrier struct {
	texts []sms.Message
	err   error
}

func (c *carrier) Send(_ context.Context, m *sms.Message) (sms.Accepted, error) {
	c.texts = append(c.texts, *m)
	return sms.Accepted{}, c.err
}
func (*carrier) Run(context.Context, sms.Events) error { return nil }
func (*carrier) Capacity() int                         { return 1 }

func TestCodesBySMS(t *testing.T) {
	c := &carrier{}
	send := codes(c)
	if err := send(t.Context(), "+8613800138000", "验证码 123456"); err != nil || len(c.texts) != 1 || c.texts[0].To != "+8613800138000" {
		t.Error(err, c.texts)
	}
	if err := send(t.Context(), "13800138000", "x"); err == nil || len(c.texts) != 1 {
		t.Error("a number that is none goes out")
	}
	c.err = sms.ErrUnsure
	if err := send(t.Context(), "+8613800138000", "x"); err != nil || len(c.texts) != 2 {
		t.Error("a code that may have gone out fails:", err)
	}
	c.err = errors.New("refused")
	if err := send(t.Context(), "+8613800138000", "x"); err == nil {
		t.Error("a refusal is taken for success")
	}
	if p, err := smsBridge(&config.SMPP{}); p != nil || err != nil {
		t.Error("a bridge where none is set", p, err)
	}
	if _, err := smsBridge(&config.SMPP{Address: "h:1", SystemID: "x", CAFile: "/nowhere"}); err == nil || !strings.Contains(err.Error(), "ca_file") {
		t.Error(err)
	}
}
