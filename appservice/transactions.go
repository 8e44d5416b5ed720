package appservice

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

const (
	qSeenTxn   = `SELECT 1 FROM as_transactions WHERE txn_id = $1`
	qSaveTxn   = `INSERT INTO as_transactions (txn_id, at) VALUES ($1, $2) ON CONFLICT (txn_id) DO NOTHING`
	qForgetTxn = `DELETE FROM as_transactions WHERE at < $1`
)

// maxTransaction bounds a transaction's body; homeservers send some hundred events at most.
const maxTransaction = 64 << 20

// homeserverRoutes are the endpoints that the homeserver calls, under their paths and the older ones.
func (s *Service) homeserverRoutes() []httpapi.Route {
	var out []httpapi.Route
	add := func(method, path string, h httpapi.Handler) {
		for _, prefix := range []string{"/_matrix/app/v1", ""} {
			out = append(out, httpapi.Route{Method: method, Path: prefix + path, MaxBody: maxTransaction, Deep: true, Handler: s.homeserverOnly(h)})
		}
	}
	add(http.MethodPut, "/transactions/{txnId}", s.putTransaction)
	add(http.MethodGet, "/users/{userId}", s.queryUser)
	add(http.MethodGet, "/rooms/{roomAlias}", s.queryRoom)
	return append(out, httpapi.Route{Method: http.MethodPost, Path: "/_matrix/app/v1/ping", Handler: s.homeserverOnly(s.ping)})
}

// homeserverOnly lets through who bears the homeserver's token.
//
// Spec: application-service-api#authorization
func (s *Service) homeserverOnly(h httpapi.Handler) httpapi.Handler {
	return func(c *httpapi.Call) (any, error) {
		token := bearer(c.R)
		if token == "" {
			return nil, matrix.NewError(http.StatusUnauthorized, "M_UNAUTHORIZED", "the homeserver's token is missing")
		}
		if subtle.ConstantTimeCompare([]byte(token), []byte(s.opts.Registration.HSToken)) != 1 {
			return nil, matrix.Forbidden("this is not the homeserver's token")
		}
		return h(c)
	}
}

// bearer is the token of a request; the query parameter is for homeservers older than version 1.4 of the specification.
func bearer(r *http.Request) string {
	if h := r.Header.Get("Authorization"); len(h) > 7 && strings.EqualFold(h[:7], "Bearer ") {
		return strings.TrimSpace(h[7:])
	}
	return r.URL.Query().Get("access_token")
}

// transaction is what the homeserver sends. Presence among the ephemeral events is passed over.
type transaction struct {
	Events    []json.RawMessage `json:"events"`
	Ephemeral []json.RawMessage `json:"ephemeral"`
	OldKey    []json.RawMessage `json:"de.sorunome.msc2409.ephemeral"`
}

type ephemeral struct {
	Type    string          `json:"type"`
	Room    string          `json:"room_id"`
	Content json.RawMessage `json:"content"`
}

// putTransaction takes in one transaction. The homeserver sends one after another and repeats what was not answered
// with 200, so what has been taken in is known by its ID, and a failure of ours is an answer of 500.
//
// Spec: application-service-api#pushing-events
func (s *Service) putTransaction(c *httpapi.Call) (any, error) {
	var t transaction
	if err := c.Body(&t); err != nil {
		return nil, err
	}
	txn := c.Var("txnId")
	s.taking.Lock()
	defer s.taking.Unlock()
	if txn == s.lastTxn {
		return nil, nil
	}
	seen, err := s.seenTransaction(c.Ctx(), txn)
	if err != nil {
		return nil, err
	}
	if !seen {
		if err := s.take(c.Ctx(), &t); err != nil {
			return nil, fmt.Errorf("taking in transaction %s: %w", txn, err)
		}
		err := s.db.Write(c.Ctx(), func(tx *sqldb.Tx) error {
			_, err := tx.Exec(qSaveTxn, txn, s.now().UnixMilli())
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("recording transaction %s: %w", txn, err)
		}
	}
	s.lastTxn = txn
	return nil, nil
}

func (s *Service) seenTransaction(ctx context.Context, txn string) (seen bool, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		var one int
		err := tx.QueryRow(qSeenTxn, txn).Scan(&one)
		seen = err == nil
		if errors.Is(err, sqldb.ErrNoRows) {
			return nil
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("looking up transaction %s: %w", txn, err)
	}
	return seen, nil
}

// take hands the events of a transaction to the parts of the service, in order; each of them bears repetition.
func (s *Service) take(ctx context.Context, t *transaction) error {
	events := make([]*mxclient.Event, 0, len(t.Events))
	for _, raw := range t.Events {
		ev, err := mxclient.ParseEvent(raw)
		if err != nil || !identifier(string(ev.ID)) || !identifier(string(ev.Room)) || !identifier(string(ev.Sender)) {
			continue // no event that anybody could have meant
		}
		events = append(events, ev)
	}
	for _, ev := range events {
		if err := s.sites.Event(ctx, ev); err != nil {
			return fmt.Errorf("sites: %w", err)
		}
	}
	if len(events) > 0 {
		if err := s.rooms.OnMembers(ctx, events); err != nil {
			return fmt.Errorf("rooms: %w", err)
		}
		if err := s.lists.OnEvents(ctx, events); err != nil {
			return fmt.Errorf("read lists: %w", err)
		}
		if err := s.dings.OnEvents(ctx, events); err != nil {
			return fmt.Errorf("DINGs: %w", err)
		}
	}
	s.typing(t)
	receipts := s.receipts(t)
	if len(receipts) == 0 {
		return nil
	}
	if err := s.lists.OnReceipts(ctx, receipts); err != nil {
		return fmt.Errorf("read lists: %w", err)
	}
	return nil
}

// identifier says whether a string can be one: nothing else may stop a transaction, which would come again for ever.
func identifier(s string) bool { return s != "" && len(s) <= 255 && !strings.ContainsRune(s, 0) }

// typing hands over who types: it is how the bots of other sites are heard of.
func (s *Service) typing(t *transaction) {
	if !s.sites.Many() {
		return
	}
	for _, raw := range t.ephemeral() {
		var e ephemeral
		var c struct {
			Users []id.UserID `json:"user_ids"`
		}
		if json.Unmarshal(raw, &e) == nil && e.Type == "m.typing" && json.Unmarshal(e.Content, &c) == nil {
			s.sites.Typing(id.RoomID(e.Room), c.Users)
		}
	}
}

// ephemeral are the ephemeral events; homeservers that send both keys send the same under both.
func (t *transaction) ephemeral() []json.RawMessage {
	if len(t.Ephemeral) > 0 {
		return t.Ephemeral
	}
	return t.OldKey
}

// receipts are those of a transaction. Private ones are dropped here unless the company counts them.
func (s *Service) receipts(t *transaction) []mxclient.Receipt {
	var out []mxclient.Receipt
	for _, raw := range t.ephemeral() {
		var e ephemeral
		if json.Unmarshal(raw, &e) != nil || e.Type != "m.receipt" || !identifier(e.Room) {
			continue // none that anybody could have meant
		}
		for _, r := range mxclient.ParseReceipts(e.Room, e.Content) {
			if r.Kind == "m.read" || s.opts.PrivateReceipts {
				out = append(out, r)
			}
		}
	}
	return out
}

// queryUser answers whether an account exists that the service has made.
//
// Spec: application-service-api#querying
func (s *Service) queryUser(c *httpapi.Call) (any, error) {
	if s.rooms.HasUser(id.UserID(c.Var("userId"))) {
		return nil, nil
	}
	return nil, matrix.NotFound("the service has made no such user")
}

// queryRoom answers whether an alias exists that the service has made.
func (s *Service) queryRoom(c *httpapi.Call) (any, error) {
	if s.rooms.HasAlias(c.Var("roomAlias")) {
		return nil, nil
	}
	return nil, matrix.NotFound("the service has made no such room")
}

// ping answers the homeserver's answer to a ping.
//
// Spec: application-service-api#pinging
func (s *Service) ping(*httpapi.Call) (any, error) { return nil, nil }
