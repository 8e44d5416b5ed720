package federation

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"
	"github.com/tidwall/gjson"

	"github.com/carillon-chat/carillon/homeserver/gate"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/rooms"
)

const (
	// maxTransaction is in bytes: 50 events of 64 KiB and 100 EDUs of as much are less.
	maxTransaction = 14 << 20
	keptAnswers    = 4096
	roomsAtOnce    = 4
	// receiveTimeout bounds a transaction: it goes on when the sender hangs up, who will ask again.
	receiveTimeout = 10 * time.Minute
)

// transactions lets one transaction of a server in at a time and remembers the answers.
type transactions struct {
	turns *crowd          // one of each server
	slots *gate.Semaphore // see transactionsAtOnce

	mu      sync.Mutex
	answers map[txnKey]any
	order   []txnKey
}

type txnKey struct {
	origin matrix.ServerName
	id     string
}

func (t *transactions) answer(k txnKey) (any, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a, ok := t.answers[k]
	return a, ok
}

func (t *transactions) keep(k txnKey, a any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.answers == nil {
		t.answers = map[txnKey]any{}
	}
	if len(t.order) >= keptAnswers {
		delete(t.answers, t.order[0])
		t.order = t.order[1:]
	}
	t.answers[k] = a
	t.order = append(t.order, k)
}

// pduResult is what the sender is told of one event.
type pduResult struct {
	Error string `json:"error,omitempty"`
}

// serveSend is PUT /send/{txnId}. Spec: put_matrixfederationv1sendtxnid
func (f *Federation) serveSend(c *httpapi.Call) (any, error) {
	answer, err := f.receive(c)
	if err != nil {
		f.meters().received.WithLabelValues("failed").Inc()
	}
	return answer, err
}

// receive takes a transaction in, once.
func (f *Federation) receive(c *httpapi.Call) (any, error) {
	var body struct {
		PDUs *[]json.RawMessage `json:"pdus"`
		EDUs []edu              `json:"edus"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.PDUs == nil {
		return nil, matrix.BadJSON("pdus is missing")
	}
	if len(*body.PDUs) > maxPDUs || len(body.EDUs) > maxEDUs {
		return nil, matrix.BadJSON("a transaction has at most %d PDUs and %d EDUs", maxPDUs, maxEDUs)
	}
	leave, err := f.txns.turns.enter(c.Ctx(), c.Origin)
	if err != nil {
		return nil, err
	}
	defer leave()
	key := txnKey{c.Origin, c.Var("txnId")}
	if a, ok := f.txns.answer(key); ok {
		return a, nil
	}
	release, err := f.txns.slots.Acquire(c.Ctx(), 1)
	if err != nil {
		return nil, err
	}
	defer release()
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Ctx()), receiveTimeout)
	defer cancel()
	results := f.receivePDUs(ctx, c.Origin, *body.PDUs)
	for _, e := range body.EDUs {
		f.receiveEDU(ctx, c.Origin, e)
	}
	refused := 0
	for _, r := range results {
		if r.Error != "" {
			refused++
		}
	}
	f.meters().taken(len(*body.PDUs), refused, len(body.EDUs), time.Since(start))
	answer := map[string]any{"pdus": results}
	f.txns.keep(key, answer)
	return answer, nil
}

// receivePDUs takes events in: those of a room one after another, several rooms at a time.
func (f *Federation) receivePDUs(ctx context.Context, origin matrix.ServerName, pdus []json.RawMessage) map[matrix.EventID]pduResult {
	var order []matrix.RoomID
	byRoom := map[matrix.RoomID][]json.RawMessage{}
	for _, raw := range pdus {
		room := matrix.RoomID(gjson.GetBytes(raw, "room_id").Str)
		if byRoom[room] == nil {
			order = append(order, room)
		}
		byRoom[room] = append(byRoom[room], raw)
	}
	results := make(map[matrix.EventID]pduResult, len(pdus))
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, roomsAtOnce) // full: the next room waits for its turn
	for _, room := range order {
		wg.Add(1)
		slots <- struct{}{}
		go func() {
			defer func() { <-slots; wg.Done() }()
			for _, e := range f.receiveRoom(ctx, origin, room, byRoom[room]) {
				if e.ID == "" {
					log.WithError(e.Err).WithField("origin", origin).Debug("an event of another server has no ID")
					continue
				}
				mu.Lock()
				results[e.ID] = pduResult{reason(e.Err)}
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	return results
}

// receiveRoom takes the events of one room in. Should one of them make it fail, each is tried by itself.
func (f *Federation) receiveRoom(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, pdus []json.RawMessage) (list []rooms.Received) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		log.WithFields(log.Fields{"origin": origin, "room_id": room, "panic": p}).Errorf("taking events in failed\n%s", debug.Stack())
		if list = nil; len(pdus) == 1 {
			list = []rooms.Received{{Err: errors.New("internal error")}}
			return
		}
		for _, raw := range pdus {
			list = append(list, f.receiveRoom(ctx, origin, room, []json.RawMessage{raw})...)
		}
	}()
	list = f.parts.Rooms.ReceiveMany(ctx, origin, room, pdus)
	for _, e := range list {
		if e.Err != nil {
			log.WithError(e.Err).WithFields(log.Fields{"origin": origin, "room_id": room, "event_id": e.ID}).Debug("an event of another server was refused")
		}
	}
	return list
}

// reason is what the sender is told of a failure.
func reason(err error) string {
	if err == nil {
		return ""
	}
	var e *matrix.Error
	if errors.As(err, &e) {
		return e.Msg
	}
	return "the event could not be processed"
}

// acl refuses a server that the room's access list shuts out. Spec: server-server-api#server-access-control-lists-acls
func (f *Federation) acl(ctx context.Context, room matrix.RoomID, server matrix.ServerName) error {
	ok, err := f.parts.Rooms.ACLAllows(ctx, room, server)
	if err != nil {
		return err
	}
	if !ok {
		return matrix.Forbidden("%s is not allowed in this room", server)
	}
	return nil
}

// receiveEDU takes one EDU in. What is wrong with it is nobody's business but the log's.
func (f *Federation) receiveEDU(ctx context.Context, origin matrix.ServerName, e edu) {
	defer func() {
		if p := recover(); p != nil {
			log.WithFields(log.Fields{"origin": origin, "edu_type": e.Type, "panic": p}).Errorf("taking an EDU in failed\n%s", debug.Stack())
		}
	}()
	var err error
	switch e.Type {
	case "m.typing":
		if room := matrix.RoomID(gjson.GetBytes(e.Content, "room_id").Str); f.parts.Typing != nil {
			if err = f.acl(ctx, room, origin); err == nil {
				err = f.parts.Typing.Receive(ctx, origin, e.Content)
			}
		}
	case "m.receipt":
		err = f.receiveReceipts(ctx, origin, e.Content)
	case "m.presence":
		if f.parts.Presence != nil {
			err = f.parts.Presence.Receive(ctx, origin, e.Content)
		}
	case "m.direct_to_device":
		err = f.parts.Keys.DirectToDevice(ctx, origin, e.Content)
	case "m.device_list_update":
		err = f.parts.Keys.DeviceListUpdate(ctx, origin, e.Content)
	case "m.signing_key_update", "org.matrix.signing_key_update":
		err = f.parts.Keys.SigningKeyUpdate(ctx, origin, e.Content)
	default:
		return
	}
	var me *matrix.Error
	entry := log.WithError(err).WithFields(log.Fields{"origin": origin, "edu_type": e.Type})
	if errors.As(err, &me) && me.Status < http.StatusInternalServerError {
		entry.Debug("an EDU of another server was refused")
	} else if err != nil {
		entry.Warn("an EDU of another server could not be processed")
	}
}

// receiveReceipts drops the receipts of rooms that the origin is shut out of.
func (f *Federation) receiveReceipts(ctx context.Context, origin matrix.ServerName, content json.RawMessage) error {
	var byRoom map[matrix.RoomID]json.RawMessage
	if err := json.Unmarshal(content, &byRoom); err != nil {
		return matrix.BadJSON("the receipts are malformed")
	}
	for room := range byRoom {
		if err := f.acl(ctx, room, origin); err != nil {
			delete(byRoom, room)
		}
	}
	clean, err := json.Marshal(byRoom)
	if err != nil {
		return err
	}
	return f.parts.Receipts.Receive(ctx, origin, clean)
}
