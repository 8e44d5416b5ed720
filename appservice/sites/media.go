package sites

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/carillon-chat/carillon/appservice/mxclient"
)

// media says where a body is that is too large for an event. What is uploaded is compressed and encrypted, so nobody
// reads it who has not received the message; Hash is that of the body.
type media struct {
	URI  string `json:"uri"`
	Key  []byte `json:"key"`
	Hash []byte `json:"hash"`
}

// upload is the JSON document that is uploaded: the client of the service speaks JSON.
type upload struct {
	Data []byte `json:"data"`
}

// putMedia uploads a body.
func (s *Sites) putMedia(ctx context.Context, body []byte) (*media, error) {
	packed, err := pack(body)
	if err != nil {
		return nil, err
	}
	if len(packed) > maxMedia {
		return nil, Refuse(errors.New("the body is too large to be sent"))
	}
	hash := sha256.Sum256(body)
	m := &media{Key: make([]byte, 32), Hash: hash[:]}
	_, _ = rand.Read(m.Key) // it never fails
	aead, err := cipherOf(m.Key)
	if err != nil {
		return nil, err
	}
	doc, err := json.Marshal(upload{aead.Seal(nil, make([]byte, aead.NonceSize()), packed, nil)}) // the key is used once
	if err != nil {
		return nil, err
	}
	var out struct {
		URI string `json:"content_uri"`
	}
	err = s.mx.Do(ctx, mxclient.Request{Method: http.MethodPost, Path: "/_matrix/media/v3/upload", Body: json.RawMessage(doc)}, &out)
	if err != nil {
		return nil, fmt.Errorf("uploading a message's body: %w", err)
	}
	m.URI = out.URI
	return m, nil
}

func cipherOf(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// getMedia downloads a body. What is there and is not the body gives the message up.
func (s *Sites) getMedia(ctx context.Context, m *media) (json.RawMessage, error) {
	server, name, ok := strings.Cut(strings.TrimPrefix(m.URI, "mxc://"), "/")
	if !ok {
		return nil, Refuse(errors.New("the body's address is none"))
	}
	var doc upload
	path := mxclient.Path("/_matrix/client/v1/media/download", server, name)
	if err := s.mx.Do(ctx, mxclient.Request{Method: http.MethodGet, Path: path}, &doc); err != nil {
		return nil, fmt.Errorf("downloading a message's body: %w", err)
	}
	aead, err := cipherOf(m.Key)
	if err != nil {
		return nil, Refuse(err)
	}
	packed, err := aead.Open(nil, make([]byte, aead.NonceSize()), doc.Data, nil)
	if err != nil {
		return nil, Refuse(errors.New("the body does not open with its key"))
	}
	body, err := unpack(packed, maxLargeBody)
	if err != nil {
		return nil, Refuse(err)
	}
	if hash := sha256.Sum256(body); string(hash[:]) != string(m.Hash) || !json.Valid(body) {
		return nil, Refuse(errors.New("the body is not the one that was sent"))
	}
	return body, nil
}

// keyText writes a public key.
func keyText(key []byte) string { return base64.RawStdEncoding.EncodeToString(key) }
