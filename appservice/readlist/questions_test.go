package readlist_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/appservice/lang"
	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/readlist"
	"github.com/carillon-chat/carillon/bridges/bridge"
)

// questions is a story with a bot that answers.
func questions(t *testing.T, names ...string) *story {
	s := tell(t, names...)
	book, err := lang.New(t.Context(), s.db, "zh")
	if err != nil {
		t.Fatal(err)
	}
	out, err := bridge.NewOutbox(t.Context(), s.db, nil, bridge.NewApp(s.c, s.c, bridge.Bounds{Concurrency: 1}))
	if err != nil {
		t.Fatal(err)
	}
	s.opts.Outbox, s.opts.Lang, s.opts.BaseURL = out, book, "https://c.cn"
	if s.Lists, err = readlist.New(t.Context(), s.db, s.opts); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { defer close(done); out.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

func (s *story) answers(n int) []string {
	s.t.Helper()
	for range 500 {
		s.c.mu.Lock()
		said := append([]string(nil), s.c.said...)
		s.c.mu.Unlock()
		if len(said) >= n {
			time.Sleep(20 * time.Millisecond) // one too many would come now
			return said
		}
		time.Sleep(5 * time.Millisecond)
	}
	s.t.Fatalf("the bot said %q, expected %d answers", s.c.said, n)
	return nil
}

func TestBotAnswers(t *testing.T) {
	s := questions(t, "ann", "bob", "eve")
	m := s.says("ann", "")
	s.reads("bob", m, "")
	eye := func(who, key string) {
		s.event("m.reaction", user(who), nil, `{"m.relates_to":{"rel_type":"m.annotation","event_id":"`+m+`","key":"`+key+`"}}`, "")
	}
	reply := func(who, text string) {
		body, _ := json.Marshal(text)
		s.event("m.room.message", user(who), nil, `{"msgtype":"m.text","body":`+string(body)+`,"m.relates_to":{"m.in_reply_to":{"event_id":"`+m+`"}}}`, "")
	}
	eye("ann", "👀")
	want := "!ding-p-ann 06:13 发送的消息，截至 " + s.now.In(time.FixedZone("", 8*3600)).Format("15:04:05") + "：\n已读 (1)：BOB 06:13\n未读 (2)：FOUNDER、EVE"
	if got := s.answers(1)[0]; got != want {
		t.Fatalf("answered %q", got)
	}
	eye("ann", "👀\ufe0f")
	s.answers(2)
	reply("ann", "> <@ann:c.cn> x\n> y\n\n!readers")
	s.answers(3)
	eye("bob", "👀") // another's message: people look at things
	reply("bob", "已读")
	reply("bob", "hello")
	eye("ann", "👍")
	reply("bob", "! readers")
	s.answers(3)
	reply("bob", "!已读")
	if got := s.answers(4)[3]; !strings.HasPrefix(got, "!ding-p-bob 只有") {
		t.Errorf("refused with %q", got)
	}
	if err := s.opts.Lang.Set(t.Context(), user("ann"), lang.English); err != nil {
		t.Fatal(err)
	}
	reply("ann", "已读")
	if got := s.answers(5)[4]; !strings.HasSuffix(got, "\nRead (1): BOB 06:13\nUnread (2): FOUNDER, EVE") {
		t.Errorf("answered %q", got)
	}
	_ = s.event("m.reaction", user("ann"), nil, `{"m.relates_to":{"rel_type":"m.annotation","event_id":"$none","key":"👀"}}`, "")
	s.answers(5)
}

func TestBotCutsLongLists(t *testing.T) {
	var names []string
	for i := range 120 {
		names = append(names, fmt.Sprintf("u%03d", i))
	}
	s := questions(t, names...)
	m := s.says("u000", "")
	ev := &mxclient.Event{
		ID: "$q", Room: room, Sender: user("u000"), Type: "m.room.message", TS: s.now.UnixMilli(),
		Content: []byte(`{"msgtype":"m.text","body":"!readers","m.relates_to":{"m.in_reply_to":{"event_id":"` + m + `"}}}`),
	}
	for range 3 { // a repeated transaction answers once
		if err := s.OnEvent(t.Context(), ev); err != nil {
			t.Fatal(err)
		}
	}
	said := s.answers(1)
	if len(said) != 1 || strings.Count(said[0], "、") != 49 || !strings.Contains(said[0], "未读 (120)：") ||
		!strings.Contains(said[0], "https://c.cn/_carillon/v1/messages/%21room/$e") {
		t.Errorf("%d answers: %q", len(said), said)
	}
}
