// Package livekit lets people into the company's LiveKit server, which carries the
// pictures and voices of calls: it gives tokens for the call of a room to whoever
// is joined to that room, and asks other servers for tokens for theirs.
//
// The media server learns neither rooms nor users: names of its rooms and of the
// participants are hashes. Only own users may send there and have a call opened;
// those of other servers listen, and send on their own server's.
//
// Clients of today know a service beside the homeserver, which they show a token
// of OpenID; the same addresses answer them, so no such service has to be run.
//
// A client may leave its delayed event to this server: it is put off while the media
// server says that the participant is there, and sent when he is gone. (MSC4140)
//
// Tables: livekit_secret, livekit_leaves. Spec: MSC4195, MSC4143, docs.livekit.io (tokens, RoomService).
//
// Invariants: a token is given for rooms only that its user is joined to at that
// moment, as far as this server knows; it names one room and one participant, and
// begins no connection after an hour.
package livekit

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/carillon-chat/carillon/homeserver/delayed"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

//go:embed schema
var schema embed.FS

const (
	// lifetime is how long a token lets its bearer connect; who is connected stays.
	lifetime = time.Hour
	// skew is by how much the clock of the media server may be behind.
	skew = time.Minute
	// patience bounds a request to the media server.
	patience = 5 * time.Second
	// emptyFor and leftFor are how long the media server keeps a call, in seconds:
	// before anybody has come, and after all have gone.
	emptyFor, leftFor = 300, 20
	// maxAnswer bounds what is read of an answer, in bytes.
	maxAnswer = 64 << 10
	// minSecret is the shortest secret that LiveKit takes, in bytes.
	minSecret = 32
)

// Options is what LiveKit is built of. Without a URL there is no media server of
// our own, and tokens are only asked for at other servers.
type Options struct {
	Server matrix.ServerName
	// URL is where clients connect, wss://…; the same host takes API calls.
	URL string
	// Key and Secret are one of the pairs of the media server's configuration.
	Key, Secret string
	// Ask asks another server for a token in the name of a user of this one; nil:
	// this server does not federate.
	Ask func(ctx context.Context, server matrix.ServerName, body any) (Ticket, error)
	// Whose finds the user of a token of OpenID, at the server that has given it.
	Whose func(ctx context.Context, server matrix.ServerName, token string) (matrix.UserID, error)
	// Delays are the events that users have scheduled.
	Delays *delayed.Delayed
	Now    matrix.Now
}

// Ticket is what a client needs to connect.
type Ticket struct {
	URL string `json:"url"`
	JWT string `json:"jwt"`
}

// LiveKit is the module.
type LiveKit struct {
	o      Options
	db     *sqldb.DB
	rooms  *rooms.Rooms
	bell   chan struct{} // capacity one: full means that Run will look anyway
	signer jose.Signer   // nil: there is no media server
	api    string        // of the media server
	bits   []byte
	client *http.Client
}

const (
	qBits    = `SELECT bits FROM livekit_secret WHERE id = 1`
	qPutBits = `INSERT INTO livekit_secret (id, bits) VALUES (1, $1)`
)

// New opens the module.
func New(ctx context.Context, db *sqldb.DB, r *rooms.Rooms, o Options) (*LiveKit, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	k := &LiveKit{o: o, db: db, rooms: r, bell: make(chan struct{}, 1), client: &http.Client{Timeout: patience}}
	if err := db.Migrate(ctx, "livekit", schema); err != nil {
		return nil, err
	}
	if o.URL == "" {
		return k, nil
	}
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" || u.Scheme != "wss" && u.Scheme != "ws" {
		return nil, fmt.Errorf("the address %q of the LiveKit server does not begin with wss://", o.URL)
	}
	if o.Key == "" || len(o.Secret) < minSecret {
		return nil, fmt.Errorf("the LiveKit server needs an API key and a secret of %d characters", minSecret)
	}
	u.Scheme = strings.Replace(u.Scheme, "ws", "http", 1)
	k.api = strings.TrimSuffix(u.String(), "/")
	k.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(o.Secret)}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("the secret of the LiveKit server: %w", err)
	}
	return k, k.loadBits(ctx, db)
}

// loadBits reads what room names are made of, making it at the first start.
func (k *LiveKit) loadBits(ctx context.Context, db *sqldb.DB) error {
	err := db.Write(ctx, func(tx *sqldb.Tx) error {
		list, err := sqldb.Select(tx, func(r *sqldb.Rows) (s string, err error) { err = r.Scan(&s); return s, err }, qBits)
		if err != nil {
			return err
		}
		if len(list) > 0 {
			k.bits, err = base64.StdEncoding.DecodeString(list[0])
			return err
		}
		k.bits = make([]byte, 32)
		rand.Read(k.bits)
		_, err = tx.Exec(qPutBits, base64.StdEncoding.EncodeToString(k.bits))
		return err
	})
	if err != nil {
		return fmt.Errorf("reading the secret of calls: %w", err)
	}
	return nil
}

// hash is how the proposal makes one opaque name of several.
func hash(parts ...string) (string, error) {
	raw, err := json.Marshal(parts)
	if err != nil {
		return "", err
	}
	if raw, err = matrix.CanonicalJSON(raw, false); err != nil {
		return "", matrix.BadJSON("the names are no canonical JSON: %s", err)
	}
	sum := sha256.Sum256(raw)
	return base64.RawStdEncoding.EncodeToString(sum[:]), nil
}

// alias is the name of a call on the media server. Its random part is this
// server's own for each room and slot.
func (k *LiveKit) alias(room matrix.RoomID, slot string) (string, error) {
	mac := hmac.New(sha256.New, k.bits)
	fmt.Fprintf(mac, "%d %s%s", len(room), room, slot)
	return hash(string(room), slot, base64.RawStdEncoding.EncodeToString(mac.Sum(nil)))
}

// grant is what a token allows. Source: docs.livekit.io, "Video grant".
type grant struct {
	Room       string `json:"room,omitempty"`
	Join       bool   `json:"roomJoin,omitempty"`
	Create     bool   `json:"roomCreate"`
	Admin      bool   `json:"roomAdmin,omitempty"`
	Publish    bool   `json:"canPublish"`
	Subscribe  bool   `json:"canSubscribe"`
	OwnDetails bool   `json:"canUpdateOwnMetadata,omitempty"`
}

// sign makes a token.
func (k *LiveKit) sign(identity string, g grant, life time.Duration) (string, error) {
	now := k.o.Now()
	token, err := jwt.Signed(k.signer).Claims(jwt.Claims{
		Issuer: k.o.Key, Subject: identity, NotBefore: jwt.NewNumericDate(now.Add(-skew)), Expiry: jwt.NewNumericDate(now.Add(life)),
	}).Claims(map[string]any{"video": g}).Serialize()
	if err != nil {
		return "", fmt.Errorf("signing a token for the LiveKit server: %w", err)
	}
	return token, nil
}

// ticket gives a participant a token for a call; create opens the call before.
func (k *LiveKit) ticket(ctx context.Context, alias, identity string, publish, create bool) (Ticket, error) {
	if create {
		if err := k.open(ctx, alias); err != nil {
			return Ticket{}, err
		}
	}
	token, err := k.sign(identity, grant{Room: alias, Join: true, Create: create, Publish: publish, Subscribe: true, OwnDetails: true}, lifetime)
	return Ticket{URL: k.o.URL, JWT: token}, err
}

// open makes a call on the media server, or finds it there: it may be told not to
// open calls for whoever has a token.
func (k *LiveKit) open(ctx context.Context, alias string) error {
	_, err := k.call(ctx, "CreateRoom", grant{Create: true}, map[string]any{"name": alias, "empty_timeout": emptyFor, "departure_timeout": leftFor})
	return err
}

// call does something through the media server's API. Its errors are *down.
func (k *LiveKit) call(ctx context.Context, method string, g grant, body any) ([]byte, error) {
	token, err := k.sign("", g, skew)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, k.api+"/twirp/livekit.RoomService/"+method, bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("asking the LiveKit server: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := k.client.Do(req)
	if err != nil {
		return nil, &down{cause: err}
	}
	defer res.Body.Close()
	said, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, &down{cause: err}
	}
	if res.StatusCode == http.StatusOK {
		return said, nil
	}
	var why struct {
		Code string `json:"code"`
		Msg  string `json:"msg"`
	}
	_ = json.Unmarshal(said, &why) // another server's page of errors says nothing to us
	return nil, &down{why.Code, fmt.Errorf("%s: status %d %s: %.200s", method, res.StatusCode, why.Code, why.Msg)}
}

// down is a media server that does not do its part; a client is told no more than that.
type down struct {
	code  string // of the server's API, such as not_found
	cause error
}

func (d *down) Error() string { return "the LiveKit server: " + d.cause.Error() }

func (d *down) Unwrap() []error {
	return []error{matrix.NewError(http.StatusBadGateway, "M_UNKNOWN", "the server for calls cannot be reached"), d.cause}
}
