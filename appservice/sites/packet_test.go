package sites

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/carillon-chat/carillon/appservice/schemas"
)

func testKey() (ed25519.PrivateKey, ed25519.PublicKey) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	public, _ := key.Public().(ed25519.PublicKey)
	return key, public
}

func TestPackets(t *testing.T) {
	key, public := testKey()
	p := &packet{
		From: "四川", Room: "!r", Run: "a", Count: 1, Acks: map[string]ack{"总部": {1, 2, "m", true}},
		To: map[string]address{"总部": {1, 1, ""}}, Messages: []message{{ID: "m1", Kind: "note", Body: json.RawMessage(`"嗨"`)}},
	}
	env, err := seal(p, key)
	if err != nil {
		t.Fatal(err)
	}
	content, _ := json.Marshal(env)
	got, err := open(content, public)
	if err != nil || string(got.Messages[0].Body) != `"嗨"` || got.To["总部"].First != 1 {
		t.Fatalf("opened as %+v, %v", got, err)
	}
	set, err := schemas.Load()
	if err != nil {
		t.Fatal(err)
	}
	if err := set.Validate(EventMessage, content); err != nil {
		t.Errorf("the schema says %v", err)
	}
	shown, _ := json.Marshal(keyContent{"四川", keyText(public)})
	if err := set.Validate(EventKey, shown); err != nil {
		t.Errorf("the schema says %v", err)
	}
	other := ed25519.NewKeyFromSeed([]byte(strings.Repeat("x", ed25519.SeedSize)))
	stranger, _ := other.Public().(ed25519.PublicKey)
	for name, wrong := range map[string]ed25519.PublicKey{"another key": stranger, "no key": nil} {
		if _, err := open(content, wrong); err != errSignature {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*packet){
		"no ID":             func(p *packet) { p.Messages[0].ID = "" },
		"no body":           func(p *packet) { p.Messages[0].Body = nil },
		"body and media":    func(p *packet) { p.Messages[0].Media = &media{} },
		"too many":          func(p *packet) { p.Messages = make([]message, maxMessages+1) },
		"no generation":     func(p *packet) { p.To["总部"] = address{0, 1, ""} },
		"a negative number": func(p *packet) { p.To["总部"] = address{1, -1, ""} },
	} {
		bad := *p
		bad.To, bad.Messages = map[string]address{}, []message{p.Messages[0]}
		change(&bad)
		env, err := seal(&bad, key)
		if err != nil {
			t.Fatal(err)
		}
		content, _ := json.Marshal(env)
		if _, err := open(content, public); err == nil {
			t.Errorf("%s was opened", name)
		}
	}
	bomb, _ := pack([]byte(strings.Repeat(" ", maxUnpacked+1)))
	if _, err := unpack(bomb, maxUnpacked); err == nil {
		t.Error("a packet that is very large was decompressed")
	}
}

// FuzzOpen gives contents as they come from the room: as they are, and signed by the right key, so that the packet
// itself is read.
func FuzzOpen(f *testing.F) {
	key, public := testKey()
	f.Add([]byte(`{"version":1,"from":"a","packet":"AA","signature":""}`), false)
	f.Add([]byte(`{"from":"a","room":"!r","tree":{"epoch":1},"acks":{"b":{"generation":1}},"to":{"b":{"generation":1,"first":1}},"messages":[{"id":"m","kind":"k","body":1}]}`), true)
	f.Add([]byte(`{"from":"a","messages":[{"id":"m","kind":"k","media":{"uri":"mxc://a/b","key":"AA","hash":""}}]}`), true)
	f.Fuzz(func(t *testing.T, b []byte, sign bool) {
		if sign {
			packed, err := pack(b)
			if err != nil {
				t.Fatal(err)
			}
			text := base64.RawStdEncoding.EncodeToString(packed)
			b, _ = json.Marshal(envelope{1, "a", text, base64.RawStdEncoding.EncodeToString(ed25519.Sign(key, signed(text)))})
		}
		p, err := open(b, public)
		if err != nil {
			return
		}
		if !sign {
			t.Fatal("what nobody has signed was opened")
		}
		for _, m := range p.Messages {
			if m.ID == "" || len(m.Body) > 0 == (m.Media != nil) {
				t.Fatalf("a message is %+v", m)
			}
		}
		if _, err := seal(p, key); err != nil {
			t.Fatal(err)
		}
	})
}
