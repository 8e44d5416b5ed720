package sites

import (
	"bytes"
	"compress/flate"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/org"
)

// The types of the events in the sites' room.
const (
	EventMessage = "im.carillon.site.message"
	EventKey     = "im.carillon.site.key" // state; the key is the bot
)

// Bounds of what is sent and of what is taken. An event of Matrix has at most 64 KiB.
const (
	maxPacked    = 36 << 10  // compressed packet; base64 makes a third more of it
	maxGathered  = 32 << 10  // bodies gathered for one packet, before they are compressed
	maxUnpacked  = 4 << 20   // packet as it is read
	maxMessages  = 200       // messages of one packet
	maxContent   = 64 << 10  // content as it is read
	maxMedia     = 40 << 20  // body that was uploaded, compressed
	maxLargeBody = 256 << 20 // body that was uploaded, as it is read
)

// envelope is the content of an event: the packet as compressed JSON, signed by the key of the site's service.
type envelope struct {
	Version   int    `json:"version"`
	From      string `json:"from"`
	Packet    string `json:"packet"`
	Signature string `json:"signature"`
}

// packet is what one event carries.
type packet struct {
	From string    `json:"from"`
	Room id.RoomID `json:"room"`
	// Run and Count put the packets of one process in order: what an older one says of its sender is passed over.
	Run   string `json:"run"`
	Count int64  `json:"count"`
	// Tree is the one that the sender has.
	Tree org.Mark `json:"tree"`
	// Delegated says which units each site imports by itself; the head office alone says it.
	Delegated map[string][]string `json:"delegated,omitempty"`
	// Acks tell each site what of its messages is handled.
	Acks map[string]ack `json:"acks,omitempty"`
	// To are the sites that the messages are for.
	To       map[string]address `json:"to,omitempty"`
	Messages []message          `json:"messages,omitempty"`
}

// ack says which message of a stream was handled last. Want asks for all that follow it.
type ack struct {
	Generation int64  `json:"generation"`
	Seq        int64  `json:"seq"`
	ID         string `json:"id,omitempty"`
	Want       bool   `json:"want,omitempty"`
}

// address is the place of a packet's messages in the stream to one site: the number of the first, and which message
// comes before it.
type address struct {
	Generation int64  `json:"generation"`
	First      int64  `json:"first"`
	Before     string `json:"before,omitempty"`
}

// message is one message; a large body is in Media.
type message struct {
	ID    string          `json:"id"`
	Kind  string          `json:"kind"`
	Body  json.RawMessage `json:"body,omitempty"`
	Media *media          `json:"media,omitempty"`
}

// signed is what a signature is made over.
func signed(packet string) []byte { return []byte(EventMessage + "\n" + packet) }

// seal makes the content of an event.
func seal(p *packet, key ed25519.PrivateKey) (*envelope, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encoding a packet: %w", err)
	}
	b, err = pack(b)
	if err != nil {
		return nil, fmt.Errorf("compressing a packet: %w", err)
	}
	text := base64.RawStdEncoding.EncodeToString(b)
	return &envelope{
		Version: 1, From: p.From, Packet: text,
		Signature: base64.RawStdEncoding.EncodeToString(ed25519.Sign(key, signed(text))),
	}, nil
}

// errSignature is the error of a content that the key has not signed.
var errSignature = errors.New("the signature is not that of the site's key")

// open reads the content of an event that the site's key has to have signed.
func open(content []byte, key ed25519.PublicKey) (*packet, error) {
	if len(content) > maxContent {
		return nil, errors.New("the message is too large")
	}
	var e envelope
	if err := json.Unmarshal(content, &e); err != nil {
		return nil, errors.New("the message is not an envelope")
	}
	if e.Version != 1 {
		return nil, fmt.Errorf("the message has version %d", e.Version)
	}
	sig, err := base64.RawStdEncoding.DecodeString(e.Signature)
	if err != nil || len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, signed(e.Packet), sig) {
		return nil, errSignature
	}
	b, err := base64.RawStdEncoding.DecodeString(e.Packet)
	if err != nil {
		return nil, errors.New("the packet is not base64")
	}
	if b, err = unpack(b, maxUnpacked); err != nil {
		return nil, errors.New("the packet cannot be decompressed")
	}
	p := new(packet)
	if err := json.Unmarshal(b, p); err != nil {
		return nil, errors.New("the packet is not JSON of its form")
	}
	if p.From != e.From {
		return nil, errors.New("the packet is from another site than the envelope")
	}
	return p, p.check()
}

// check finds what no service of ours sends.
func (p *packet) check() error {
	if len(p.Messages) > maxMessages {
		return errors.New("the packet has too many messages")
	}
	for i := range p.Messages {
		if m := &p.Messages[i]; m.ID == "" || len(m.ID) > 64 || len(m.Kind) > 100 || (len(m.Body) == 0) == (m.Media == nil) {
			return errors.New("the packet has a message without ID or body")
		}
	}
	for _, a := range p.To {
		if a.Generation < 1 || a.First < 1 || a.First > 1<<53 || a.Generation > 1<<53 {
			return errors.New("the packet has a place that no stream has")
		}
	}
	return nil
}

func pack(b []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, flate.DefaultCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(b); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func unpack(b []byte, limit int64) ([]byte, error) {
	out, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(b)), limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(out)) > limit {
		return nil, errors.New("it is larger than allowed")
	}
	return out, nil
}
