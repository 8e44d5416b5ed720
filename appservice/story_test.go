package appservice_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/appservice/astest"
	"github.com/carillon-chat/carillon/appservice/mxclient"
)

// eventually waits for what the background brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not come about: " + what)
		}
	}
}

// said is the last message of the bot in a room.
func (w *world) said(room string) (*mxclient.Event, string) {
	events := w.hs.Events(room)
	for i := len(events) - 1; i >= 0; i-- {
		if ev := events[i]; ev.Type == "m.room.message" && ev.Sender == astest.Bot {
			var c struct {
				Body string `json:"body"`
			}
			_ = json.Unmarshal(ev.Content, &c)
			return ev, c.Body
		}
	}
	return nil, ""
}

// TestADayInTheCompany goes through all parts at once: a message, its read list, a DING and its confirmation.
func TestADayInTheCompany(t *testing.T) {
	w := newWorld(t)
	w.company()
	tech, _ := w.svc.Rooms().UnitRoom("tech")
	room := string(tech)

	msg := w.hs.Say(t, room, "@002:example.com", "m.room.message", map[string]string{"msgtype": "m.text", "body": "明天九点开会"})
	w.hs.Read(room, "@003:example.com", msg, "")
	w.hs.Say(t, room, "@002:example.com", "m.reaction", map[string]any{
		"m.relates_to": map[string]string{"rel_type": "m.annotation", "event_id": msg, "key": "👀"},
	})
	w.deliver()
	ding2, err := w.svc.Rooms().DingRoom(t.Context(), "002")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the bot's answer about readers", func() bool {
		_, body := w.said(string(ding2))
		return strings.Contains(body, "赵四")
	})

	body, _ := json.Marshal(map[string]any{"uuid": "one", "body": "马上来会议室", "receivers": map[string]any{"units": []string{"tech"}}})
	made := w.must(w.hs.Token("@001:example.com"), "POST", "/dings", body, "application/json")
	ding3, err := w.svc.Rooms().DingRoom(t.Context(), "003")
	if err != nil {
		t.Fatal(err)
	}
	var notice *mxclient.Event
	eventually(t, "the DING in the receiver's room", func() bool {
		ev, text := w.said(string(ding3))
		notice = ev
		return strings.Contains(text, "马上来会议室") && strings.Contains(text, "王总")
	})
	w.deliver()
	w.hs.Say(t, string(ding3), "@003:example.com", "m.reaction", map[string]any{
		"m.relates_to": map[string]string{"rel_type": "m.annotation", "event_id": notice.ID, "key": "✅"},
	})
	eventually(t, "the confirmation", func() bool {
		w.deliver()
		out := w.must(w.hs.Token("@001:example.com"), "GET", "/dings/"+made["id"].(string), nil, "")
		return out["counts"].(map[string]any)["confirmed"] == 1.0
	})
}
