package astest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/carillon-chat/carillon/appservice/mxclient"
)

// member changes a membership if the room's rules allow it.
func (s *Server) member(r *room, caller, verb string, body []byte) (any, *refusal) {
	var b struct {
		User   string `json:"user_id"`
		Reason string `json:"reason"`
	}
	if json.Unmarshal(body, &b) != nil {
		return badRequest()
	}
	target := b.User
	if verb == "join" || verb == "leave" {
		target = caller
	}
	if verb != "leave" && s.user(caller).suspended {
		return nil, &refusal{http.StatusForbidden, "M_USER_SUSPENDED"}
	}
	was := r.membership(target)
	in := r.membership(caller) == "join"
	membership := verb
	allowed := false
	content := map[string]string{}
	switch verb {
	case "join":
		if was == "join" {
			return map[string]string{"room_id": r.id}, nil
		}
		allowed = was == "invite" || was != "ban" && s.mayJoin(r, caller)
	case "leave":
		allowed = was == "join" || was == "invite"
	case "invite":
		allowed = in && was != "join" && was != "ban" && s.power(r, caller) >= s.level(r, "invite", 0)
	case "kick":
		membership = "leave"
		allowed = in && (was == "join" || was == "invite") && s.power(r, caller) >= s.level(r, "kick", 50) && s.power(r, caller) > s.power(r, target)
	case "ban":
		allowed = in && s.power(r, caller) >= s.level(r, "ban", 50) && s.power(r, caller) > s.power(r, target)
	}
	if !allowed {
		return forbidden()
	}
	content["membership"] = membership
	if b.Reason != "" {
		content["reason"] = b.Reason
	}
	s.append(r, caller, "m.room.member", &target, encode(content))
	s.counts[verb]++
	return map[string]string{"room_id": r.id}, nil
}

// mayJoin applies the join rule to somebody without an invitation.
func (s *Server) mayJoin(r *room, caller string) bool {
	var rule struct {
		Rule  string `json:"join_rule"`
		Allow []struct {
			Type string `json:"type"`
			Room string `json:"room_id"`
			User string `json:"user_id"`
		} `json:"allow"`
	}
	if ev := r.state[stateKey{"m.room.join_rules", ""}]; ev == nil || json.Unmarshal(ev.Content, &rule) != nil {
		return false
	}
	if rule.Rule == "public" {
		return true
	}
	for _, a := range rule.Allow {
		if a.Type == "m.room_membership" && s.rooms[a.Room] != nil && s.rooms[a.Room].membership(caller) == "join" {
			return true
		}
		if a.Type == "im.carillon.application_service" && a.User == Bot && !s.NoServiceJoins && r.membership(Bot) == "join" {
			return true // every caller here acts through the service
		}
	}
	return false
}

const creatorPower = 1 << 40 // room version 12: above every level

func (s *Server) power(r *room, user string) int {
	if user == r.creator {
		return creatorPower
	}
	var p struct {
		Users   map[string]int `json:"users"`
		Default int            `json:"users_default"`
	}
	if ev := r.state[stateKey{"m.room.power_levels", ""}]; ev != nil {
		_ = json.Unmarshal(ev.Content, &p)
	}
	if n, ok := p.Users[user]; ok {
		return n
	}
	return p.Default
}

func (s *Server) level(r *room, name string, def int) int {
	var p map[string]json.RawMessage
	if ev := r.state[stateKey{"m.room.power_levels", ""}]; ev != nil && json.Unmarshal(ev.Content, &p) == nil {
		if json.Unmarshal(p[name], &def) == nil {
			return def
		}
	}
	return def
}

func (s *Server) needed(r *room, typ string, state bool) int {
	var p struct {
		Events map[string]int `json:"events"`
	}
	if ev := r.state[stateKey{"m.room.power_levels", ""}]; ev != nil {
		_ = json.Unmarshal(ev.Content, &p)
	}
	if n, ok := p.Events[typ]; ok {
		return n
	}
	if state {
		return s.level(r, "state_default", 50)
	}
	return s.level(r, "events_default", 0)
}

// Attach names the service to which events go from now on.
func (s *Server) Attach(service http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.service = service
}

// transactionSize is how many events a transaction carries at most.
const transactionSize = 100

// Deliver pushes what waits to the service, transaction by transaction, until nothing waits. A transaction that the
// service refuses stays and comes again with the next call.
func (s *Server) Deliver(ctx context.Context) error {
	for {
		s.mu.Lock()
		n := min(len(s.queue), transactionSize)
		batch := s.queue[:n]
		txn := s.sent + 1
		service := s.service
		s.mu.Unlock()
		if n == 0 {
			return nil
		}
		if status := Push(ctx, service, fmt.Sprintf("txn%d", txn), transaction(batch)); status != http.StatusOK {
			return fmt.Errorf("the service answered transaction %d with status %d", txn, status)
		}
		s.mu.Lock()
		s.queue = s.queue[n:]
		s.sent = txn
		s.mu.Unlock()
	}
}

func transaction(batch []delivery) any {
	body := struct {
		Events    []*mxclient.Event `json:"events"`
		Ephemeral []any             `json:"ephemeral"`
	}{[]*mxclient.Event{}, []any{}}
	for _, d := range batch {
		if d.event != nil {
			body.Events = append(body.Events, d.event)
		} else {
			body.Ephemeral = append(body.Ephemeral, d.ephemeral)
		}
	}
	return body
}

// Push sends one transaction to a service and returns its status.
func Push(ctx context.Context, service http.Handler, txn string, body any) int {
	req := httptest.NewRequestWithContext(ctx, http.MethodPut, "/_matrix/app/v1/transactions/"+txn, bytes.NewReader(encode(body)))
	req.Header.Set("Authorization", "Bearer "+HSToken)
	w := httptest.NewRecorder()
	service.ServeHTTP(w, req)
	return w.Code
}
