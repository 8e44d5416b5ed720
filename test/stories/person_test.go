package stories_test

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/org"
)

// person is somebody with a client.
type person struct {
	*mautrix.Client
	t      func() testing.TB
	since  string
	heard  []*event.Event // since the last forget
	unread map[id.RoomID]mautrix.UnreadNotificationCounts
	out    map[id.RoomID]bool // rooms in which the person no longer is
}

// logIn logs in with a password.
func logIn(t testing.TB, url, name, password string) (*person, error) {
	t.Helper()
	c, err := mautrix.NewClient(url, "", "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Login(t.Context(), &mautrix.ReqLogin{
		Type: mautrix.AuthTypePassword, Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: name}, Password: password, StoreCredentials: true,
	})
	return &person{Client: c, t: func() testing.TB { return t }, unread: map[id.RoomID]mautrix.UnreadNotificationCounts{}, out: map[id.RoomID]bool{}}, err
}

func (w *world) logIn(name, password string) *person {
	w.t.Helper()
	p, err := logIn(w.t, w.url, name, password)
	if err != nil {
		w.t.Fatalf("%s logs in: %v", name, err)
	}
	p.t = func() testing.TB { return w.t }
	return p
}

// person is the employee of that job number, logged in with the first password that the file for HR says.
func (w *world) person(job string) *person {
	w.t.Helper()
	if p := w.people[job]; p != nil {
		return p
	}
	found := passwords(w.t, w.dir)[job]
	if len(found) != 1 {
		w.t.Fatalf("%s has %d first passwords", job, len(found))
	}
	p := w.logIn(w.svc.Org().Tree().Person(job).Localpart, found[0])
	w.people[job] = p
	return p
}

// filter is what people's clients ask for.
const filter = `{"room":{"timeline":{"limit":200}},"presence":{"types":[]}}`

// sync reads on from where the person last was, waiting up to wait for something new.
func (p *person) sync(wait time.Duration) {
	p.t().Helper()
	r, err := p.FullSyncRequest(p.t().Context(), mautrix.ReqSync{Timeout: int(wait.Milliseconds()), Since: p.since, FilterID: filter, SetPresence: event.PresenceOffline})
	if err != nil {
		p.t().Fatalf("%s syncs: %v", p.UserID, err)
	}
	p.since = r.NextBatch
	take := func(room id.RoomID, evs []*event.Event) {
		for _, e := range evs {
			e.RoomID = room
			p.heard = append(p.heard, e)
		}
	}
	for room, j := range r.Rooms.Join {
		take(room, j.Timeline.Events)
		delete(p.out, room)
		if j.UnreadNotifications != nil {
			p.unread[room] = *j.UnreadNotifications
		}
	}
	for room, l := range r.Rooms.Leave {
		take(room, l.Timeline.Events)
		p.out[room] = true
	}
}

// until syncs until ok is satisfied.
func (p *person) until(what string, ok func() bool) {
	p.t().Helper()
	for deadline := time.Now().Add(patience); !ok(); p.sync(500 * time.Millisecond) {
		if time.Now().After(deadline) {
			for _, e := range p.heard {
				if e.StateKey != nil {
					continue
				}
				p.t().Logf("%s %s %s: %s", e.RoomID, e.Sender, e.Type.Type, body(e))
			}
			p.t().Fatalf("%s waits in vain: %s", p.UserID, what)
		}
	}
}

// forget makes the person wait for new events only.
func (p *person) forget() { p.sync(0); p.heard = nil }

// hears waits for an event.
func (p *person) hears(what string, is func(*event.Event) bool) *event.Event {
	p.t().Helper()
	var found *event.Event
	p.until(what, func() bool {
		if i := slices.IndexFunc(p.heard, is); i >= 0 {
			found = p.heard[i]
		}
		return found != nil
	})
	return found
}

func body(e *event.Event) string { s, _ := e.Content.Raw["body"].(string); return s }

// told waits for a message of the bot with these words.
func (p *person) told(words ...string) *event.Event {
	p.t().Helper()
	return p.hears("the bot says "+strings.Join(words, " … "), func(e *event.Event) bool {
		return e.Sender.Localpart() == "carillon" && e.Type == event.EventMessage && containsAll(body(e), words)
	})
}

func containsAll(s string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}

// listens waits for a text of anybody.
func (p *person) listens(text string) *event.Event {
	p.t().Helper()
	return p.hears(text, func(e *event.Event) bool { return body(e) == text })
}

// says writes into a room.
func (p *person) says(room id.RoomID, text string) id.EventID {
	p.t().Helper()
	r, err := p.SendText(p.t().Context(), room, text)
	if err != nil {
		p.t().Fatalf("%s says %q: %v", p.UserID, text, err)
	}
	return r.EventID
}

// replies answers a message.
func (p *person) replies(room id.RoomID, to id.EventID, text string) id.EventID {
	p.t().Helper()
	c := &event.MessageEventContent{MsgType: event.MsgText, Body: text, RelatesTo: (&event.RelatesTo{}).SetReplyTo(to)}
	r, err := p.SendMessageEvent(p.t().Context(), room, event.EventMessage, c)
	if err != nil {
		p.t().Fatalf("%s replies %q: %v", p.UserID, text, err)
	}
	return r.EventID
}

// reacts sets a reaction.
func (p *person) reacts(e *event.Event, key string) {
	p.t().Helper()
	if _, err := p.SendReaction(p.t().Context(), e.RoomID, e.ID, key); err != nil {
		p.t().Fatalf("%s reacts: %v", p.UserID, err)
	}
}

// reads sends a receipt; thread is "" for none, "main" or a root.
func (p *person) reads(room id.RoomID, ev id.EventID, kind event.ReceiptType, thread string) {
	p.t().Helper()
	if err := p.SendReceipt(p.t().Context(), room, ev, kind, mautrix.ReqSendReceipt{ThreadID: thread}); err != nil {
		p.t().Fatalf("%s reads: %v", p.UserID, err)
	}
}

// rooms are the rooms the person is in, as their client lists them.
func (p *person) rooms() []id.RoomID {
	p.t().Helper()
	r, err := p.JoinedRooms(p.t().Context())
	if err != nil {
		p.t().Fatalf("%s lists rooms: %v", p.UserID, err)
	}
	return r.JoinedRooms
}

// name is what a room is called, as the person sees it.
func (p *person) name(room id.RoomID) string {
	p.t().Helper()
	var c event.RoomNameEventContent
	if err := p.StateEvent(p.t().Context(), room, event.StateRoomName, "", &c); err != nil {
		p.t().Fatalf("%s looks for the name of %s: %v", p.UserID, room, err)
	}
	return c.Name
}

// names are the names of the rooms the person is in; spaces stand in brackets.
func (p *person) names() []string {
	p.t().Helper()
	var out []string
	for _, room := range p.rooms() {
		var c event.CreateEventContent
		if err := p.StateEvent(p.t().Context(), room, event.StateCreate, "", &c); err != nil {
			p.t().Fatal(err)
		}
		name := p.name(room)
		if c.Type == event.RoomTypeSpace {
			name = "[" + name + "]"
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// code is the errcode of a client's error.
func code(err error) string {
	var h mautrix.HTTPError
	if errors.As(err, &h) && h.RespError != nil {
		return h.RespError.ErrCode
	}
	return ""
}

// readersOf asks for a list of a message.
func (w *world) readersOf(p *person, room id.RoomID, ev id.EventID, query string) answer {
	w.t.Helper()
	return w.api(p.AccessToken, http.MethodGet, "/messages/"+url.PathEscape(string(room))+"/"+url.PathEscape(string(ev))+"/readers?"+query, nil)
}

// find is a person or unit of a company that is being written.
func findPerson(imp *org.Import, job string) *org.Person {
	i := slices.IndexFunc(imp.People, func(p *org.Person) bool { return p.ID == job })
	return imp.People[i]
}

func findUnit(imp *org.Import, unit string) *org.Unit {
	i := slices.IndexFunc(imp.Units, func(u *org.Unit) bool { return u.ID == unit })
	return imp.Units[i]
}
