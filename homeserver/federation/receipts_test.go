package federation_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/receipts"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// readers are the users of another server whose receipts for an event are known.
func (s *server) readers(room matrix.RoomID, of matrix.ServerName, event matrix.EventID) (n int) {
	s.w.t.Helper()
	list, err := s.receipts.Since(context.Background(), "@nobody:"+matrix.UserID(s.name), room, 0, s.log.Head())
	if err != nil {
		s.w.t.Fatal(err)
	}
	for _, x := range list {
		if x.User.Server() == of && x.Event == event {
			n++
		}
	}
	return n
}

func (s *server) count(query string) (n int) {
	s.w.t.Helper()
	if err := s.db.Read(context.Background(), func(tx *sqldb.Tx) error { return tx.QueryRow(query).Scan(&n) }); err != nil {
		s.w.t.Fatal(err)
	}
	return n
}

// TestHeldReceiptsSurviveARestart: many people of one server read a message in a room of seven servers; the server
// ends in the midst of it.
func TestHeldReceiptsSurviveARestart(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	w := newWorld(t)
	d := newDisk(t)
	a := w.start("a.test", d)
	alice := a.user("alice")
	room := a.room(alice, "public_chat", "12")
	var others []*server
	for i := range 6 {
		s := w.start(matrix.ServerName(fmt.Sprintf("o%d.test", i)), newDisk(t))
		u := s.user("guest")
		ok(t, s.rooms.Join(ctx, rooms.MemberChange{Room: room, Sender: u, Target: u, Via: []matrix.ServerName{"a.test"}}))
		others = append(others, s)
	}
	const people = 40
	for i := range people {
		u := a.user(fmt.Sprint("reader", i))
		ok(t, a.rooms.Join(ctx, rooms.MemberChange{Room: room, Sender: u, Target: u}))
	}
	said := a.send(room, alice, "read this")
	for _, s := range others {
		until(t, "the message", func() bool { return len(s.texts(room)) == 1 })
	}
	for i := range people {
		ok(t, a.receipts.Mark(ctx, matrix.NewUserID(fmt.Sprint("reader", i), "a.test"), room, receipts.Read, said, ""))
	}
	a.stop()
	a = w.start("a.test", d)
	for _, s := range others {
		until(t, "all receipts on "+string(s.name), func() bool { return s.readers(room, "a.test", said) == people })
	}
	until(t, "nothing waits", func() bool { return a.count(`SELECT count(*) FROM fed_queue`) == 0 })
	if n := a.count(`SELECT coalesce(max(pos), 0) FROM fed_position WHERE id = 2`); n != 0 {
		until(t, "the place of what was held is forgotten", func() bool { return a.count(`SELECT max(pos) FROM fed_position WHERE id = 2`) == 0 })
	}
}

// TestReceiptsAfterALongOutage: no receipts are queued for a server that has been away for long, and it hears of the
// newest when it is back, also when this server has been restarted meanwhile.
func TestReceiptsAfterALongOutage(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	w := newWorld(t)
	d := newDisk(t)
	a, b := w.start("a.test", d), w.start("b.test", newDisk(t))
	room, alice, _ := joined(t, a, b, "12")
	secret := a.room(alice, "private_chat", "12") // b is not there
	first := a.send(room, alice, "one")
	until(t, "the first message", func() bool { return len(b.texts(room)) == 1 })
	w.mu.Lock()
	addr := w.addrs["b.test:8448"]
	delete(w.addrs, "b.test:8448")
	w.mu.Unlock()
	a.client.Close()
	last := a.send(room, alice, "two")
	until(t, "b is silent", func() bool {
		a.fed.Alive("b.test")
		return a.count(`SELECT coalesce(max(failures), 0) FROM fed_destinations`) >= 10
	})
	before := a.count(`SELECT count(*) FROM fed_queue`)
	ok(t, a.receipts.Mark(ctx, alice, room, receipts.Read, first, ""))
	until(t, "receipts are owed", func() bool { return a.count(`SELECT count(*) FROM fed_owed`) == 1 })
	ok(t, a.receipts.Mark(ctx, alice, room, receipts.ReadPrivate, last, ""))
	ok(t, a.receipts.Mark(ctx, alice, secret, receipts.Read, a.send(secret, alice, "hush"), ""))
	ok(t, a.receipts.Mark(ctx, alice, room, receipts.Read, last, ""))
	until(t, "the newest is owed", func() bool { return a.count(`SELECT last FROM fed_owed`) == int(a.log.Head()) })
	if n := a.count(`SELECT count(*) FROM fed_queue`); n != before {
		t.Errorf("%d rows are queued, not %d", n, before)
	}
	a.stop()
	a = w.start("a.test", d)
	time.Sleep(10 * time.Millisecond)
	w.mu.Lock()
	w.addrs["b.test:8448"] = addr
	w.mu.Unlock()
	until(t, "the newest receipt on b", func() bool {
		a.fed.Alive("b.test")
		return b.readers(room, "a.test", last) == 1
	})
	if n := b.readers(room, "a.test", first) + b.readers(secret, "a.test", ""); n != 0 {
		t.Errorf("b knows %d more", n)
	}
	until(t, "nothing is owed", func() bool {
		return a.count(`SELECT (SELECT count(*) FROM fed_queue) + (SELECT count(*) FROM fed_owed) + (SELECT count(*) FROM fed_destinations)`) == 0
	})
}

// TestReceiptsBeforeTheirEvent: what many have read, and this server does not know yet, is kept until it comes.
func TestReceiptsBeforeTheirEvent(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := pair(t)
	room, alice, _ := joined(t, a, b, "12")
	const people = 150
	content := map[matrix.UserID]any{}
	for i := range people {
		u := a.user(fmt.Sprint("reader", i))
		ok(t, a.rooms.Join(ctx, rooms.MemberChange{Room: room, Sender: u, Target: u}))
		content[u] = nil
	}
	until(t, "all members", func() bool { return b.hub.MemberCount(room) == people+2 })
	a.w.deafen(b)
	said := a.send(room, alice, "not heard yet")
	until(t, "the message is thought sent", func() bool {
		a.w.mu.Lock()
		lost := bytes.Contains(a.w.lost, []byte("not heard yet"))
		a.w.mu.Unlock()
		return lost && a.count(`SELECT count(*) FROM fed_queue`) == 0
	})
	a.w.mu.Lock()
	a.w.deaf[b.name] = false
	a.w.mu.Unlock()
	for u := range content {
		content[u] = map[string]any{"event_ids": []matrix.EventID{said}, "data": map[string]any{"ts": 1}}
	}
	raw, err := json.Marshal(map[string]any{"origin": a.name, "origin_server_ts": 1, "pdus": []any{}, "edus": []any{
		map[string]any{"edu_type": "m.receipt", "content": map[matrix.RoomID]any{room: map[string]any{"m.read": content}}},
	}})
	ok(t, err)
	_, err = a.client.SendTransaction(ctx, b.name, "early", raw)
	ok(t, err)
	if n := b.readers(room, a.name, said); n != 0 {
		t.Fatalf("%d have read what is not there", n)
	}
	_, err = b.rooms.Receive(ctx, a.name, a.pdu(said))
	ok(t, err)
	until(t, "all receipts", func() bool { return b.readers(room, a.name, said) == people })
}
