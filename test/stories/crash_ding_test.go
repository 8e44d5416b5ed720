package stories_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/mxclient"
)

// alarm is a DING to everybody that is on its way while the power goes out.
type alarm struct {
	*crash
	sender *person
	id     string
	todo   []delivery
	tokens map[id.UserID]string // of those who confirm by the API

	mu    sync.Mutex
	acked map[id.UserID]bool
}

// delivery is where somebody has received the DING.
type delivery struct {
	Person employee   `json:"person"`
	Room   id.RoomID  `json:"room_id"`
	Event  id.EventID `json:"event_id"`
}

func killedWhileDinging(t *testing.T, c *crash) {
	i := slices.IndexFunc(c.staff, func(e employee) bool { return e.Admin })
	if i < 0 {
		t.Fatal("nobody administers the company")
	}
	a := &alarm{crash: c, sender: c.enter(c.staff[i]), tokens: map[id.UserID]string{}, acked: map[id.UserID]bool{}}
	a.goesOut(t)
	a.isConfirmed(t)
	a.dingOnce(t, a.id, len(a.todo))
}

// counts are the figures of the DING, zeros while nobody answers.
func (a *alarm) counts() map[string]any {
	r, err := call(a.t.Context(), a.url, a.sender.AccessToken, http.MethodGet, "/_carillon/v1/dings/"+a.id+"?limit=0", "", nil)
	if err != nil || r.status != 200 {
		return map[string]any{"went_out": 0.0, "confirmed": 0.0}
	}
	return r.body["counts"].(map[string]any)
}

// goesOut: the program is killed right after the answer and again while some are out and more are sent and not
// recorded.
func (a *alarm) goesOut(t *testing.T) {
	t.Helper()
	in := map[string]any{"uuid": "power", "body": "请立即确认", "receivers": map[string]any{"everybody": true}}
	made, err := call(t.Context(), a.url, a.sender.AccessToken, http.MethodPost, "/_carillon/v1/dings", "application/json", mustJSON(in))
	if err != nil || made.status != http.StatusCreated {
		t.Fatalf("%d %v %v", made.status, made.body, err)
	}
	a.id = made.body["id"].(string)
	var stages []float64
	for _, at := range []float64{0, 60, 150, 220} {
		eventually(t, "some of it is out", func() bool { n, _ := a.counts()["went_out"].(float64); return n >= at })
		stages = append(stages, a.counts()["went_out"].(float64))
		a.kill()
		a.start()
	}
	again, err := call(t.Context(), a.url, a.sender.AccessToken, http.MethodPost, "/_carillon/v1/dings", "application/json", mustJSON(in))
	if err != nil || again.status != http.StatusOK || again.body["id"] != a.id {
		t.Errorf("the same request again: %d %v %v", again.status, again.body, err)
	}
	eventually(t, "everybody has it", func() bool { return a.counts()["went_out"] == float64(crashPeople-1) })
	if stages[1] >= crashPeople-1 {
		t.Errorf("it was not killed in the middle: %v", stages)
	}
}

// isConfirmed: people confirm, by the API and by reactions, and repeat what was not acknowledged, through two kills.
func (a *alarm) isConfirmed(t *testing.T) {
	t.Helper()
	var list struct {
		Deliveries []delivery `json:"deliveries"`
	}
	if err := json.Unmarshal(mustJSON(a.get(a.sender.AccessToken, "/dings/"+a.id+"?limit=500")), &list); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(list.Deliveries, func(x, y delivery) int { return strings.Compare(string(x.Person.User), string(y.Person.User)) })
	a.todo = list.Deliveries[:120]
	for _, d := range a.todo[:40] {
		a.tokens[d.Person.User] = a.enter(d.Person).AccessToken
	}
	for round := range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		var n atomic.Int64
		done := make(chan struct{})
		go func() {
			defer close(done)
			parallel(a.todo, 8, func(d delivery) {
				if a.confirm(ctx, d) {
					n.Add(1)
				}
			})
		}()
		if round < 2 {
			for deadline := time.Now().Add(patience); n.Load() < 40 && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond)
			}
			a.kill()
			cancel()
		}
		<-done
		cancel()
		if round < 2 {
			a.start()
		}
	}
	if len(a.acked) != len(a.todo) {
		t.Errorf("%d of %d could confirm", len(a.acked), len(a.todo))
	}
	eventually(t, "all confirmations are counted", func() bool { return a.counts()["confirmed"] == float64(len(a.todo)) })
}

// confirm confirms for one person unless that has been acknowledged, and reports whether it is now.
func (a *alarm) confirm(ctx context.Context, d delivery) bool {
	a.mu.Lock()
	had := a.acked[d.Person.User]
	a.mu.Unlock()
	if had || ctx.Err() != nil {
		return false
	}
	var err error
	if token := a.tokens[d.Person.User]; token != "" {
		var r answer
		r, err = call(ctx, a.url, token, http.MethodPost, "/_carillon/v1/dings/"+a.id+"/confirm", "application/json", []byte("{}"))
		if err == nil && r.status != 200 {
			err = fmt.Errorf("%d %v", r.status, r.body)
		}
	} else {
		_, err = a.once().SendEvent(ctx, d.Room, d.Person.User, "m.reaction", map[string]any{
			"m.relates_to": map[string]any{"rel_type": "m.annotation", "event_id": d.Event, "key": "✅"},
		}, "confirm-"+d.Person.User.Localpart())
	}
	if err != nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.acked[d.Person.User] = true
	return true
}

// once is a client that tries only once.
func (c *crash) once() *mxclient.Client {
	mx, err := mxclient.New(mxclient.Config{HomeserverURL: c.url, ServerName: serverName, ASToken: c.asToken(), BotLocalpart: "carillon", Attempts: 1})
	if err != nil {
		panic(err)
	}
	return mx
}

// inDingRooms is what is in all DING rooms together.
type inDingRooms struct{ rooms, records, notices, confirmations, cards int }

// dingOnce looks into everybody's DING room, where everything is to be once.
func (c *crash) dingOnce(t *testing.T, ding string, confirmed int) {
	t.Helper()
	var n inDingRooms
	eventually(t, "every confirmation is recorded", func() bool {
		n = c.lookIntoDingRooms(t, ding)
		return n.confirmations >= confirmed
	})
	if want := (inDingRooms{crashPeople, crashPeople, crashPeople - 1, confirmed, 1}); n != want {
		t.Errorf("there are %+v, want %+v", n, want)
	}
}

func (c *crash) lookIntoDingRooms(t *testing.T, ding string) (sum inDingRooms) {
	t.Helper()
	list, err := c.mx.JoinedRooms(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	owners := map[string]bool{}
	for _, room := range list {
		events := roomEvents(t, c.mx.Bot(), room)
		name, _ := events[0].Content.Raw["im.carillon.room"].(map[string]any)
		key, _ := name["key"].(string)
		if !strings.HasPrefix(key, "ding:") {
			continue
		}
		if owners[key] {
			t.Errorf("%s has two rooms", key)
		}
		owners[key] = true
		n := inDingRooms{rooms: 1}
		for _, e := range events {
			mark, _ := e.Content.Raw["im.carillon.ding"].(map[string]any)
			rel, _ := e.Content.Raw["m.relates_to"].(map[string]any)
			switch {
			case e.Type.Type == dingRecord.Type:
				n.records++
			case e.Type.Type == dingConfirm.Type:
				n.confirmations++
			case mark["ding_id"] == ding && rel["rel_type"] != "m.replace":
				n.notices++
			case e.Content.Raw["im.carillon.ding.card"] != nil && rel["rel_type"] != "m.replace":
				n.cards++
			}
		}
		if n.records != 1 || n.notices > 1 || n.confirmations > 1 || n.cards > 1 {
			t.Errorf("%s: %+v", key, n)
		}
		sum.rooms += n.rooms
		sum.records += n.records
		sum.notices += n.notices
		sum.confirmations += n.confirmations
		sum.cards += n.cards
	}
	return sum
}
