package threepids

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/carillon-chat/carillon/homeserver/gate"
)

const (
	smsTimeout = 15 * time.Second
	smsAtOnce  = 8
)

// WebhookSMS sends texts through a program of the company's: it POSTs {"to": "+8613800138000", "text": "…"} to the
// address, with the secret as a bearer token. Any answer of 200 to 299 means that the text was taken.
func WebhookSMS(address, secret string) (SMS, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, errors.New("the address for sending SMS is none")
	}
	if secret == "" {
		return nil, errors.New("sending SMS needs a secret")
	}
	client := &http.Client{
		Timeout:       smsTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	sem := gate.NewSemaphore(smsAtOnce)
	return func(ctx context.Context, number, text string) error {
		body, err := json.Marshal(map[string]string{"to": number, "text": text})
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
		if err != nil {
			return fmt.Errorf("preparing an SMS: %w", err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+secret)
		return sem.Do(ctx, func() error {
			resp, err := client.Do(req)
			if err != nil {
				var ue *url.Error
				if errors.As(err, &ue) {
					err = ue.Err // its address may hold a secret
				}
				return fmt.Errorf("handing over an SMS: %w", err)
			}
			defer resp.Body.Close()
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
			if resp.StatusCode/100 != 2 {
				return fmt.Errorf("handing over an SMS: the answer was %d", resp.StatusCode)
			}
			return nil
		})
	}, nil
}
