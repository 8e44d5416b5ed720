// Package sms is the bridge to telephones by text: what a text is, how long it may be, and the channel of the outbox
// through which texts leave. How they reach the carrier is a provider's business (smpp).
//
// It owns no tables. Invariants: a number is never logged; a text that a provider may have taken is not sent again,
// since nobody is to get an order twice; a number that is none fails at once.
package sms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/carillon-chat/carillon/bridges/bridge"
)

// Channel is the name of the channel.
const Channel = "sms"

// Message is one text.
type Message struct {
	To      string    `json:"to"` // E.164, such as +8613800138000
	Text    string    `json:"text"`
	Expires time.Time `json:"expires,omitzero"` // the carrier need not try any longer; zero: as it likes
	Key     string    `json:"-"`                // of the outbox, the same when it is tried again
}

// Accepted is a carrier's word that it has taken a text.
type Accepted struct {
	ID    string // by which Report names it; empty: nothing is reported
	Parts int    // what it costs
}

// Report is what a carrier says later of a text it has taken.
type Report struct {
	ID     string
	State  bridge.State // Delivered, Failed or Expired
	Reason string       // the carrier's code
}

// Reply is a text that somebody has sent to us.
type Reply struct{ From, To, Text string }

// Events are told what comes from the carrier. An error makes the carrier tell it again.
type Events struct {
	Report func(context.Context, Report) error
	Reply  func(context.Context, Reply) error
}

// Provider sends texts. Errors are those of package bridge: RetryAfter where the carrier asks for time, Permanent where
// it never takes this text, ErrUnsure where it may have taken it.
type Provider interface {
	Send(ctx context.Context, m *Message) (Accepted, error)
	// Run keeps the way to the carrier open until ctx ends.
	Run(ctx context.Context, e Events) error
	// Capacity is how many texts may be under way at a time.
	Capacity() int
}

// ErrUnsure says that the connection broke after a text went out and before the carrier answered.
var ErrUnsure = errors.New("the carrier may have taken the text")

// Outbox is the channel for texts.
type Outbox struct {
	p      Provider
	bounds bridge.Bounds
}

// NewOutbox makes the channel of a provider; zero bounds take the defaults.
func NewOutbox(p Provider, bounds bridge.Bounds) *Outbox {
	if bounds.Concurrency == 0 {
		bounds.Concurrency = p.Capacity()
	}
	return &Outbox{p, bounds}
}

// Name is Channel.
func (o *Outbox) Name() string { return Channel }

// Bounds are those given to NewOutbox.
func (o *Outbox) Bounds() bridge.Bounds { return o.bounds }

// detail is what the outbox keeps of a text that went out.
type detail struct {
	Parts  int  `json:"parts,omitempty"`
	Unsure bool `json:"unsure,omitempty"`
}

// Send sends the text of an item.
func (o *Outbox) Send(ctx context.Context, it *bridge.Item) (bridge.Receipt, error) {
	var m Message
	if err := json.Unmarshal(it.Payload, &m); err != nil {
		return bridge.Receipt{}, bridge.Permanent(fmt.Errorf("decoding a text: %w", err))
	}
	m.Key = it.Key
	if m.Expires.IsZero() && it.ExpiresAt > 0 {
		m.Expires = time.UnixMilli(it.ExpiresAt)
	}
	if err := Check(&m); err != nil {
		return bridge.Receipt{}, bridge.Permanent(err)
	}
	a, err := o.p.Send(ctx, &m)
	switch {
	case errors.Is(err, ErrUnsure):
		return bridge.Receipt{Detail: detail{Unsure: true}}, nil
	case err != nil:
		return bridge.Receipt{}, fmt.Errorf("sending a text: %w", err)
	}
	return bridge.Receipt{ProviderID: a.ID, Detail: detail{Parts: a.Parts}}, nil
}

// Bounds of a text.
const (
	maxDigits = 15  // of a number, by E.164
	maxText   = 670 // UTF-16 units: ten parts
)

// Check finds what no carrier takes. Its errors hold neither number nor text.
func Check(m *Message) error {
	if len(m.To) < 8 || len(m.To) > maxDigits+1 || m.To[0] != '+' || m.To[1] == '0' {
		return errors.New("the number is not in the form +8613800138000")
	}
	for _, c := range m.To[1:] {
		if c < '0' || c > '9' {
			return errors.New("the number is not in the form +8613800138000")
		}
	}
	switch n := Units(m.Text); {
	case n == 0:
		return errors.New("the text is empty")
	case n > maxText:
		return fmt.Errorf("the text has %d characters, more than %d", n, maxText)
	}
	return nil
}
