package serverkeys

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// FileName is the name of the key file inside the data folder.
const FileName = "signing.key"

// publishedValidity is how long others may keep our answer without asking again.
const publishedValidity = 24 * time.Hour

// Own holds this server's signing key and the public halves of its former keys. It never changes after Load.
type Own struct {
	server  matrix.ServerName
	keyID   gomatrixserverlib.KeyID
	private ed25519.PrivateKey
	old     map[gomatrixserverlib.KeyID]gomatrixserverlib.OldVerifyKey
}

// Load reads the key file in dir, making a new key at the first start.
func Load(dir string, server matrix.ServerName) (*Own, error) {
	name := filepath.Join(dir, FileName)
	data, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		o, err := newOwn(server, nil)
		if err != nil {
			return nil, err
		}
		return o, o.write(name)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the signing key: %w", err)
	}
	o, err := parseOwn(data, server)
	if err != nil {
		return nil, fmt.Errorf("reading the signing key in %s: %w", name, err)
	}
	return o, nil
}

// Rotate retires the key in dir as of now, makes a new one and returns it. The running server keeps its key
// until it is started again.
func Rotate(dir string, server matrix.ServerName, now time.Time) (*Own, error) {
	cur, err := Load(dir, server)
	if err != nil {
		return nil, err
	}
	old := make(map[gomatrixserverlib.KeyID]gomatrixserverlib.OldVerifyKey, len(cur.old)+1)
	for id, k := range cur.old {
		old[id] = k
	}
	old[cur.keyID] = gomatrixserverlib.OldVerifyKey{
		VerifyKey: gomatrixserverlib.VerifyKey{Key: spec.Base64Bytes(cur.Public())},
		ExpiredTS: spec.AsTimestamp(now),
	}
	next, err := newOwn(server, old)
	if err != nil {
		return nil, err
	}
	return next, next.write(filepath.Join(dir, FileName))
}

func newOwn(server matrix.ServerName, old map[gomatrixserverlib.KeyID]gomatrixserverlib.OldVerifyKey) (*Own, error) {
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a signing key: %w", err)
	}
	return &Own{server: server, keyID: gomatrixserverlib.KeyID("ed25519:" + newKeyName()), private: priv, old: old}, nil
}

// newKeyName gives a short random name of the characters that key identifiers allow.
func newKeyName() string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	b := make([]byte, 6)
	_, _ = rand.Read(b) // never fails
	for i := range b {
		b[i] = letters[int(b[i])%len(letters)]
	}
	return string(b)
}

// parseOwn reads lines "ed25519 NAME SEED" (the key in use, exactly one) and
// "old ed25519 NAME PUBLICKEY EXPIRED_MS".
func parseOwn(data []byte, server matrix.ServerName) (*Own, error) {
	o := &Own{server: server}
	sc := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; sc.Scan(); n++ {
		f := strings.Fields(sc.Text())
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if err := o.parseLine(f); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if o.private == nil {
		return nil, errors.New("no key in use: expected a line \"ed25519 NAME SEED\"")
	}
	return o, sc.Err()
}

func (o *Own) parseLine(f []string) error {
	switch {
	case len(f) == 3 && f[0] == "ed25519":
		if o.private != nil {
			return errors.New("a second key in use")
		}
		seed, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(f[2], "="))
		if err != nil || len(seed) != ed25519.SeedSize {
			return errors.New("the seed is not 32 bytes in base64")
		}
		o.keyID, o.private = gomatrixserverlib.KeyID("ed25519:"+f[1]), ed25519.NewKeyFromSeed(seed)
	case len(f) == 5 && f[0] == "old" && f[1] == "ed25519":
		pub, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(f[3], "="))
		if err != nil || len(pub) != ed25519.PublicKeySize {
			return errors.New("the public key is not 32 bytes in base64")
		}
		ts, err := strconv.ParseUint(f[4], 10, 64)
		if err != nil || ts == 0 {
			return errors.New("the time of expiry is not a number of milliseconds")
		}
		if o.old == nil {
			o.old = map[gomatrixserverlib.KeyID]gomatrixserverlib.OldVerifyKey{}
		}
		o.old[gomatrixserverlib.KeyID("ed25519:"+f[2])] = gomatrixserverlib.OldVerifyKey{
			VerifyKey: gomatrixserverlib.VerifyKey{Key: pub}, ExpiredTS: spec.Timestamp(ts),
		}
	default:
		return errors.New("neither a key in use nor an old key")
	}
	return nil
}

// write replaces the key file in one step, so that a crash leaves either the old or the new one.
func (o *Own) write(name string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "ed25519 %s %s\n", strings.TrimPrefix(string(o.keyID), "ed25519:"),
		base64.RawStdEncoding.EncodeToString(o.private.Seed()))
	for id, k := range o.old {
		fmt.Fprintf(&b, "old ed25519 %s %s %d\n", strings.TrimPrefix(string(id), "ed25519:"), k.Key.Encode(), k.ExpiredTS)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	tmp := name + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("writing the signing key: %w", err)
	}
	_, err = f.WriteString(b.String())
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, name)
	}
	if err != nil {
		return fmt.Errorf("writing the signing key: %w", err)
	}
	return nil
}

// Server is the name of this server.
func (o *Own) Server() matrix.ServerName { return o.server }

// KeyID is the identifier of the key in use.
func (o *Own) KeyID() gomatrixserverlib.KeyID { return o.keyID }

// Private is the private half of the key in use, for signing events.
func (o *Own) Private() ed25519.PrivateKey { return o.private }

// Public is the public half of the key in use.
func (o *Own) Public() ed25519.PublicKey { return o.private.Public().(ed25519.PublicKey) }

// Signature is this server's signature on a JSON object, in Base64.
//
// Spec: appendices#signing-json
func (o *Own) Signature(object []byte) (string, error) {
	body, err := signedPart(object)
	if err != nil {
		return "", fmt.Errorf("signing: %w", err)
	}
	return base64.RawStdEncoding.EncodeToString(ed25519.Sign(o.private, body)), nil
}

// SignJSON adds this server's signature to a JSON object.
func (o *Own) SignJSON(object []byte) ([]byte, error) {
	sig, err := o.Signature(object)
	if err != nil {
		return nil, err
	}
	canonical, err := matrix.CanonicalObject(object, false)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	out, err := matrix.AddSignature(canonical, o.server, string(o.keyID), sig)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return out, nil
}

// lookup gives an own key, in use or old.
func (o *Own) lookup(id gomatrixserverlib.KeyID, now time.Time) (keyInfo, bool) {
	if id == o.keyID {
		return keyInfo{
			VerifyKey:    gomatrixserverlib.VerifyKey{Key: spec.Base64Bytes(o.Public())},
			ExpiredTS:    gomatrixserverlib.PublicKeyNotExpired,
			ValidUntilTS: spec.AsTimestamp(now.Add(publishedValidity)),
		}, true
	}
	if k, ok := o.old[id]; ok {
		return keyInfo{VerifyKey: k.VerifyKey, ExpiredTS: k.ExpiredTS}, true
	}
	return keyInfo{}, false
}

// published is the signed answer of /_matrix/key/v2/server.
func (o *Own) published(now time.Time) ([]byte, error) {
	keys := gomatrixserverlib.ServerKeys{ServerKeyFields: gomatrixserverlib.ServerKeyFields{
		ServerName:    spec.ServerName(o.server),
		VerifyKeys:    map[gomatrixserverlib.KeyID]gomatrixserverlib.VerifyKey{o.keyID: {Key: spec.Base64Bytes(o.Public())}},
		OldVerifyKeys: o.old,
		ValidUntilTS:  spec.AsTimestamp(now.Add(publishedValidity)),
	}}
	if keys.OldVerifyKeys == nil {
		keys.OldVerifyKeys = map[gomatrixserverlib.KeyID]gomatrixserverlib.OldVerifyKey{}
	}
	raw, err := keys.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("encoding the server keys: %w", err)
	}
	return o.SignJSON(raw)
}
