package presence

import (
	"context"
	"encoding/json"
	"sort"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Of is a user's presence as it stands; ok is false when nothing is known.
func (p *Presence) Of(user matrix.UserID) (s State, ok bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	e := p.users[user]
	if e == nil {
		return State{User: user, Presence: Offline}, false
	}
	return e.State, true
}

// Since lists what the user has to hear of: changes after seq of users who
// share a room with them, and of themselves. With seq 0 it is everybody who is
// not offline.
func (p *Presence) Since(user matrix.UserID, seq int64) []State {
	if !p.enabled {
		return nil
	}
	var out []State
	p.mu.RLock()
	if seq == 0 {
		for _, e := range p.users {
			if e.Presence != Offline || e.Status != "" {
				out = append(out, e.State)
			}
		}
	} else {
		i := sort.Search(len(p.log), func(i int) bool { return p.log[i].seq > seq })
		for _, c := range p.log[i:] {
			if e := p.users[c.user]; e.seq == c.seq { // else a newer change follows
				out = append(out, e.State)
			}
		}
	}
	p.mu.RUnlock()
	kept := out[:0]
	for _, s := range out {
		if s.User == user || p.hub.SharesRoom(user, s.User) {
			kept = append(kept, s)
		}
	}
	return kept
}

// content is the content of an m.presence event.
type content struct {
	Presence        string `json:"presence"`
	LastActiveAgo   *int64 `json:"last_active_ago,omitempty"`
	Status          string `json:"status_msg,omitempty"`
	CurrentlyActive *bool  `json:"currently_active,omitempty"`
}

func (s State) content(now time.Time) content {
	c := content{Presence: s.Presence, Status: s.Status}
	if !s.LastActive.IsZero() && s.LastActive.UnixMilli() > 0 {
		ago := max(now.Sub(s.LastActive).Milliseconds(), 0)
		c.LastActiveAgo = &ago
	}
	if s.Presence == Online {
		c.CurrentlyActive = &s.CurrentlyActive
	}
	return c
}

// Event encodes the m.presence event of a state.
//
// Spec: client-server-api#mpresence
func (s State) Event(now time.Time) []byte {
	b, _ := json.Marshal(struct { // plain data: cannot fail
		Content content       `json:"content"`
		Sender  matrix.UserID `json:"sender"`
		Type    string        `json:"type"`
	}{s.content(now), s.User, "m.presence"})
	return b
}

// EDU is one entry of the push list of an m.presence EDU.
//
// Spec: server-server-api#presence
type EDU struct {
	User            matrix.UserID `json:"user_id"`
	Presence        string        `json:"presence"`
	Status          string        `json:"status_msg,omitempty"`
	LastActiveAgo   int64         `json:"last_active_ago"`
	CurrentlyActive bool          `json:"currently_active,omitempty"`
}

// EDU is the state as other servers are told.
func (s State) EDU(now time.Time) EDU {
	e := EDU{User: s.User, Presence: s.Presence, Status: s.Status, CurrentlyActive: s.CurrentlyActive}
	if !s.LastActive.IsZero() {
		e.LastActiveAgo = max(now.Sub(s.LastActive).Milliseconds(), 0)
	}
	return e
}

// Receive takes the content of an m.presence EDU. What does not belong to the
// origin is dropped.
func (p *Presence) Receive(_ context.Context, origin matrix.ServerName, edu json.RawMessage) error {
	if !p.enabled {
		return nil
	}
	var c struct {
		Push []EDU `json:"push"`
	}
	if err := json.Unmarshal(edu, &c); err != nil {
		return matrix.BadJSON("the presence is malformed")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for _, x := range c.Push {
		if x.User.Server() != origin || !known(x.Presence) {
			continue
		}
		e := p.entry(x.User)
		old := e.State
		e.Presence, e.Status, e.CurrentlyActive = x.Presence, x.Status, x.CurrentlyActive && x.Presence == Online
		e.LastActive, e.touched = now.Add(-time.Duration(x.LastActiveAgo)*time.Millisecond), now
		p.changed(e, old)
	}
	return nil
}

func known(state string) bool { return state == Online || state == Unavailable || state == Offline }
