package sso

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// sealer encrypts what the browser keeps for this server.
type sealer struct {
	aead cipher.AEAD
	now  matrix.Now
}

func newSealer(secret []byte, now matrix.Now) (*sealer, error) {
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, fmt.Errorf("sealing key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("sealing key: %w", err)
	}
	return &sealer{aead, now}, nil
}

// sealed is a value with its end; what says what it is for, so that one kind cannot stand for another.
type sealed struct {
	Until int64           `json:"e"`
	Value json.RawMessage `json:"v"`
}

func (s *sealer) close(what string, v any, lifetime time.Duration) (string, error) {
	value, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(sealed{matrix.Millis(s.now().Add(lifetime)), value})
	if err != nil {
		return "", err
	}
	nonce := make([]byte, s.aead.NonceSize())
	rand.Read(nonce) // never fails: it ends the program instead
	return base64.RawURLEncoding.EncodeToString(s.aead.Seal(nonce, nonce, b, []byte(what))), nil
}

var errSeal = errors.New("it was not made here or is too old")

func (s *sealer) open(what, text string, v any) error {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) < s.aead.NonceSize() {
		return errSeal
	}
	n := s.aead.NonceSize()
	if b, err = s.aead.Open(nil, b[:n], b[n:], []byte(what)); err != nil {
		return errSeal
	}
	var box sealed
	if err := json.Unmarshal(b, &box); err != nil {
		return errSeal
	}
	if box.Until <= matrix.Millis(s.now()) {
		return errSeal
	}
	if err := json.Unmarshal(box.Value, v); err != nil {
		return errSeal
	}
	return nil
}
