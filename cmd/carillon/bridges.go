package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/carillon-chat/carillon/bridges/sms"
	"github.com/carillon-chat/carillon/bridges/sms/smpp"
	"github.com/carillon-chat/carillon/config"
	"github.com/carillon-chat/carillon/homeserver/threepids"
)

// smsBridge is the way to the carrier, nil where none is set.
func smsBridge(c *config.SMPP) (sms.Provider, error) {
	if c.Address == "" {
		return nil, nil
	}
	o := smpp.Options{
		Address: c.Address, TLS: c.TLS, SystemID: c.SystemID, Password: c.Password.Value(), SystemType: c.SystemType, Service: c.ServiceType,
		Source: c.Source, SourceTON: byte(c.SourceTON), SourceNPI: byte(c.SourceNPI), Window: c.Window, PerSecond: float64(c.PerSecond), IDs: c.ReceiptIDs,
	}
	if c.CAFile != "" {
		var err error
		if o.ExtraCAs, err = os.ReadFile(c.CAFile); err != nil {
			return nil, fmt.Errorf("reading bridges.sms.smpp.ca_file: %w", err)
		}
	}
	p, err := smpp.New(o)
	if err != nil {
		return nil, fmt.Errorf("bridges.sms.smpp: %w", err)
	}
	return p, nil
}

// codeTime is how long somebody who waits for a code is kept waiting for the carrier.
const codeTime = 15 * time.Second

// codes sends the codes that prove a number. One that may have gone out is not sent again: who waits for it in vain
// asks for another.
func codes(p sms.Provider) threepids.SMS {
	return func(ctx context.Context, number, text string) error {
		m := &sms.Message{To: number, Text: text}
		if err := sms.Check(m); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, codeTime)
		defer cancel()
		if _, err := p.Send(ctx, m); err != nil && !errors.Is(err, sms.ErrUnsure) {
			return fmt.Errorf("sending a code: %w", err)
		}
		return nil
	}
}
