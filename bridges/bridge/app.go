package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// AppChannel is the name of the channel that speaks inside the app.
const AppChannel = "app"

// AppMessage is the payload of the channel App: events that the bot sends to a person's DING room, or to Room.
type AppMessage struct {
	Person string     `json:"person,omitempty"`
	Room   id.RoomID  `json:"room,omitempty"`
	Events []AppEvent `json:"events"`
}

// AppEvent is one of them. With Reference it relates to the first event of its message by m.reference.
type AppEvent struct {
	Type      string          `json:"type"`
	Content   json.RawMessage `json:"content"`
	Reference bool            `json:"reference,omitempty"`
}

// AppDetail is what the channel says of what it sent: the room and the events in their order. ProviderID is the last.
type AppDetail struct {
	Room   id.RoomID    `json:"room"`
	Events []id.EventID `json:"events"`
}

// Rooms finds the room in which the bot speaks to a person alone.
type Rooms interface {
	DingRoom(ctx context.Context, person string) (id.RoomID, error)
}

// Sender sends a message event as a user, "" being the bot. The same transaction ID gives the same event again.
type Sender interface {
	SendEvent(ctx context.Context, room id.RoomID, sender id.UserID, typ string, content any, txn string) (id.EventID, error)
}

// App is the channel that sends Matrix events. Its transaction IDs come from the items' keys, so an item sent again
// shows once.
type App struct {
	rooms  Rooms
	mx     Sender
	bounds Bounds
}

// NewApp makes the channel; zero bounds take the defaults, for which a homeserver that is down is waited for.
func NewApp(rooms Rooms, mx Sender, bounds Bounds) *App {
	if bounds.Attempts == 0 {
		bounds.Attempts = 100 // a day and more: a site can be cut off
	}
	return &App{rooms: rooms, mx: mx, bounds: bounds}
}

// Name is AppChannel.
func (a *App) Name() string { return AppChannel }

// Bounds are those given to NewApp.
func (a *App) Bounds() Bounds { return a.bounds }

// Send sends the events of one item.
func (a *App) Send(ctx context.Context, it *Item) (Receipt, error) {
	var msg AppMessage
	if err := json.Unmarshal(it.Payload, &msg); err != nil {
		return Receipt{}, Permanent(fmt.Errorf("decoding an app message: %w", err))
	}
	if len(msg.Events) == 0 || msg.Person == "" && msg.Room == "" {
		return Receipt{}, Permanent(errors.New("an app message needs events and a receiver"))
	}
	room := msg.Room
	if room == "" {
		var err error
		if room, err = a.rooms.DingRoom(ctx, msg.Person); err != nil {
			return Receipt{}, fmt.Errorf("finding the DING room: %w", classify(err, it))
		}
	}
	detail := AppDetail{Room: room}
	for i := range msg.Events {
		content := msg.Events[i].Content
		if msg.Events[i].Reference && i > 0 {
			var err error
			if content, err = withReference(content, detail.Events[0]); err != nil {
				return Receipt{}, Permanent(err)
			}
		}
		ev, err := a.mx.SendEvent(ctx, room, "", msg.Events[i].Type, content, it.Key+"/"+strconv.Itoa(i))
		if err != nil {
			return Receipt{}, fmt.Errorf("sending %s: %w", msg.Events[i].Type, classify(err, it))
		}
		detail.Events = append(detail.Events, ev)
	}
	return Receipt{ProviderID: string(detail.Events[len(detail.Events)-1]), Detail: detail}, nil
}

// withReference puts the relation in front of the other keys of content, which has none of its own.
func withReference(content json.RawMessage, to id.EventID) (json.RawMessage, error) {
	trimmed := bytes.TrimSpace(content)
	if len(trimmed) < 2 || trimmed[0] != '{' {
		return nil, errors.New("the content of an event is not an object")
	}
	relation, err := json.Marshal(map[string]any{"m.relates_to": map[string]any{"rel_type": "m.reference", "event_id": to}})
	if err != nil {
		return nil, err
	}
	if rest := bytes.TrimSpace(trimmed[1:]); rest[0] != '}' {
		return append(append(relation[:len(relation)-1:len(relation)-1], ','), rest...), nil
	}
	return relation, nil
}

// refusals is after how many attempts the homeserver's refusal is taken for final: a room may be about to be mended.
const refusals = 5

// classify makes errors permanent or gives them the wait that the homeserver asks for.
func classify(err error, it *Item) error {
	var e mautrix.RespError
	if !errors.As(err, &e) {
		return err
	}
	switch {
	case e.StatusCode == 429:
		wait := time.Second
		if ms, ok := e.ExtraData["retry_after_ms"].(float64); ok && ms > 0 {
			wait = time.Duration(ms) * time.Millisecond
		}
		return RetryAfter(err, wait)
	case e.StatusCode >= 400 && e.StatusCode < 500 && it.Attempts+1 >= refusals:
		return Permanent(err)
	}
	return err
}

// Notice is an item that tells a person something in their DING room.
func Notice(key, person, text string) New {
	content, err := json.Marshal(map[string]string{"msgtype": "m.notice", "body": text})
	if err != nil { // strings always encode
		content = nil
	}
	return Message(key, AppMessage{Person: person, Events: []AppEvent{{Type: "m.room.message", Content: content}}})
}

// Message is an item of the channel App.
func Message(key string, msg AppMessage) New {
	payload, err := json.Marshal(msg)
	if err != nil { // a content that is no JSON: refused by the channel
		payload = nil
	}
	return New{Key: key, Channel: AppChannel, Payload: payload}
}

// Say puts a Notice into the outbox.
func (o *Outbox) Say(ctx context.Context, key, person, text string) error {
	return o.Add(ctx, Notice(key, person, text))
}
