package typing_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/partstest"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/homeserver/typing"
)

const (
	here  = partstest.Here
	alice = partstest.Alice
	bob   = partstest.Bob
	carol = partstest.Carol
)

func TestTyping(t *testing.T) {
	w := partstest.New(t, sqldbtest.Open(t), rooms.Options{})
	ty := typing.New(w.Log, w.Hub, here, time.Now)
	var told []typing.Update
	ty.Subscribe(func(u typing.Update) { told = append(told, u) })
	w.API.Add(ty.Routes()...)
	w.Run() // without Run of typing: nothing ends by itself
	room := w.Room(alice, bob)
	path := func(u matrix.UserID) string {
		return fmt.Sprintf("/_matrix/client/v3/rooms/%s/typing/%s", room, u)
	}
	seq := w.Hub.Ephemeral()
	waiter := w.Hub.Wait(alice)
	defer waiter.Close()

	w.Want(bob, "PUT", path(bob), `{"typing":true,"timeout":30000}`, 200, "")
	select {
	case <-waiter.C:
	case <-time.After(5 * time.Second):
		t.Fatal("nobody was woken")
	}
	if got := string(ty.Since(room, seq)); got != `{"user_ids":["@bob:a.example"]}` {
		t.Errorf("typing %s", got)
	}
	seq = w.Hub.Ephemeral()
	w.Want(bob, "PUT", path(bob), `{"typing":true}`, 200, "")
	if got := ty.Since(room, seq); got != nil {
		t.Errorf("a renewal is news: %s", got)
	}
	w.Say(room, bob, "there") // what was typed has come
	if got := string(ty.Since(room, seq)); got != `{"user_ids":[]}` {
		t.Errorf("after the message %s", got)
	}
	if got := string(ty.Since(room, 0)); got != `{"user_ids":[]}` {
		t.Errorf("a first sync gets %s", got)
	}
	w.Want(alice, "PUT", path(alice), `{"typing":true}`, 200, "")
	w.Want(alice, "PUT", path(alice), `{"typing":false}`, 200, "")
	if users := ty.Users(room); len(users) != 0 {
		t.Errorf("still typing: %v", users)
	}
	if len(told) != 4 || told[3] != (typing.Update{Room: room, User: alice, Typing: false}) {
		t.Errorf("told %v", told)
	}
	w.Want(carol, "PUT", path(carol), `{"typing":true}`, 403, "M_FORBIDDEN")
	w.Want(alice, "PUT", path(bob), `{"typing":true}`, 403, "M_FORBIDDEN")
	w.Want(alice, "PUT", path(alice), `{}`, 400, "M_MISSING_PARAM")
	w.Want(alice, "PUT", path(alice), `{"typing":"yes"}`, 400, "M_BAD_JSON")
	w.Want(alice, "PUT", path(alice), `{"typing":true,"timeout":-1}`, 400, "M_INVALID_PARAM")
}

func TestTimeout(t *testing.T) {
	w := partstest.New(t, sqldbtest.Open(t), rooms.Options{})
	ty := typing.New(w.Log, w.Hub, here, nil)
	w.Run(ty.Run)
	room := w.Room(alice, bob)
	seq := w.Hub.Ephemeral()
	ty.Set(bob, room, true, 20*time.Millisecond)
	partstest.Eventually(t, "the end of typing", func() bool { return string(ty.Since(room, seq)) == `{"user_ids":[]}` })
}

func TestReceive(t *testing.T) {
	w := partstest.New(t, sqldbtest.Open(t), rooms.Options{})
	ty := typing.New(w.Log, w.Hub, here, nil)
	w.Run()
	room := w.Room(alice, bob)
	edu := func(u matrix.UserID) json.RawMessage {
		return json.RawMessage(fmt.Sprintf(`{"room_id":%q,"user_id":%q,"typing":true}`, room, u))
	}
	ty.Receive(w.Ctx, "b.example", edu(bob)) // not its user
	ty.Receive(w.Ctx, here, edu(carol))      // not in the room
	if got := ty.Users(room); len(got) != 0 {
		t.Errorf("typing %v", got)
	}
	ty.Receive(w.Ctx, here, edu(bob))
	if got := ty.Users(room); len(got) != 1 {
		t.Errorf("typing %v", got)
	}
	if err := ty.Receive(w.Ctx, here, json.RawMessage(`7`)); !matrix.IsCode(err, "M_BAD_JSON") {
		t.Errorf("malformed: %v", err)
	}
}
