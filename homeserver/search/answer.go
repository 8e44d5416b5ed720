package search

import (
	"context"
	"encoding/json"

	"github.com/carillon-chat/carillon/homeserver/events"
	"github.com/carillon-chat/carillon/homeserver/history"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// results is the answer of the category room_events.
type results struct {
	Count      int                                 `json:"count"`
	Highlights []string                            `json:"highlights"`
	Results    []result                            `json:"results"`
	State      map[matrix.RoomID][]json.RawMessage `json:"state,omitempty"`
	Groups     map[string]map[string]*group        `json:"groups,omitempty"`
	NextBatch  string                              `json:"next_batch,omitempty"`
}

type result struct {
	Rank    float64         `json:"rank"`
	Result  json.RawMessage `json:"result"`
	Context *surroundings   `json:"context,omitempty"`
}

type surroundings struct {
	Start    string                    `json:"start"`
	End      string                    `json:"end"`
	Before   []json.RawMessage         `json:"events_before"`
	After    []json.RawMessage         `json:"events_after"`
	Profiles map[matrix.UserID]profile `json:"profile_info,omitempty"`
}

type profile struct {
	Name   *string `json:"displayname,omitempty"`
	Avatar *string `json:"avatar_url,omitempty"`
}

type group struct {
	Order     int              `json:"order"`
	Results   []matrix.EventID `json:"results"`
	NextBatch string           `json:"next_batch,omitempty"`

	last found
}

type bundles = map[matrix.EventID]json.RawMessage

// answer searches and writes down what was found.
func (s *search) answer(ctx context.Context) (*results, error) {
	all, err := s.hits()
	if err != nil {
		return nil, err
	}
	list := all
	if c := s.q.cursor; c != nil {
		list = nil
		for _, h := range all {
			if c.after(h) {
				list = append(list, h)
			}
		}
	}
	page, rest, err := s.page(list)
	if err != nil {
		return nil, err
	}
	place := s.q.place()
	out := &results{Count: max(place.count, place.seen+len(all)), Results: []result{}}
	var texts []string
	for _, f := range page {
		r, err := s.result(ctx, f)
		if err != nil {
			return nil, err
		}
		out.Results = append(out.Results, r)
		texts = append(texts, textOf(f.event, nil))
	}
	out.Highlights = highlights(s.q.clauses, s.q.written, texts)
	if len(page) == s.q.limit { // whether there is more is seen by asking
		key, value := s.q.cursorGroup()
		next := s.next(page[len(page)-1].hit, key, value)
		if !s.q.byRank && key == "" {
			next.seen, next.count = place.seen+len(list)-len(rest), out.Count
		}
		out.NextBatch = next.String()
	}
	s.group(out, page, rest)
	if s.q.state {
		err = s.states(ctx, out, page)
	}
	return out, err
}

// cursorGroup is the group that is being paged through, if it is one.
func (q *question) cursorGroup() (key, value string) {
	if q.cursor == nil {
		return "", ""
	}
	return q.cursor.key, q.cursor.value
}

// place is where the answer begins.
func (q *question) place() cursor {
	if q.cursor == nil {
		return cursor{}
	}
	return *q.cursor
}

func (s *search) next(h hit, key, value string) cursor {
	return cursor{doc: h.doc, terms: h.terms, byRank: s.q.byRank, key: key, value: value}
}

// rank is the larger the more of a text was asked for.
func (s *search) rank(h hit) float64 {
	asked := 0
	for _, c := range s.q.clauses {
		asked += len(c.terms)
	}
	return min(float64(asked)/float64(max(h.terms, 1)), 1)
}

func (s *search) result(ctx context.Context, f found) (result, error) {
	r := result{Rank: s.rank(f.hit)}
	var before, after []*events.Event
	var err error
	if s.q.context {
		if before, err = s.around(f.event, s.q.before, false); err != nil {
			return r, err
		}
		if after, err = s.around(f.event, s.q.after, true); err != nil {
			return r, err
		}
	}
	list := append([]*events.Event{f.event}, before...)
	list = append(list, after...)
	b, err := s.complete(ctx, list)
	if err != nil {
		return r, err
	}
	r.Result = s.client(f.event, b)
	if !s.q.context {
		return r, nil
	}
	x := &surroundings{Before: s.clients(before, b), After: s.clients(after, b)}
	oldest, newest := f.event.Pos, f.event.Pos
	if n := len(before); n > 0 {
		oldest = before[n-1].Pos
	}
	if n := len(after); n > 0 {
		newest = after[n-1].Pos
	}
	x.Start, x.End = history.Token(oldest-1), history.Token(newest)
	if s.q.profiles {
		x.Profiles, err = s.profiles(f.event, list[1:]...)
	}
	r.Context = x
	return r, err
}

func (s *search) client(e *events.Event, b bundles) json.RawMessage {
	if redacted := s.erased[e.ID]; redacted != nil {
		e = redacted
	}
	return e.AppendClient(nil, events.ClientFormat{User: s.q.user, Device: s.q.device, Now: s.Now(), Relations: b[e.ID]})
}

func (s *search) clients(list []*events.Event, b bundles) []json.RawMessage {
	out := make([]json.RawMessage, len(list))
	for i, e := range list {
		out[i] = s.client(e, b)
	}
	return out
}

// group sorts the page into the groups that were asked for. A group that goes on
// after the page has a token of its own.
func (s *search) group(out *results, page []found, rest []hit) {
	for _, key := range s.q.groups {
		groups := map[string]*group{}
		for _, f := range page {
			g := groups[f.group(key)]
			if g == nil {
				g = &group{Order: len(groups) + 1}
				groups[f.group(key)] = g
			}
			g.Results, g.last = append(g.Results, f.event.ID), f
		}
		for _, h := range rest {
			if g := groups[h.group(key)]; g != nil && g.NextBatch == "" {
				g.NextBatch = s.next(g.last.hit, key, h.group(key)).String()
			}
		}
		if out.Groups == nil {
			out.Groups = map[string]map[string]*group{}
		}
		out.Groups[key] = groups
	}
}

// states adds the state of the rooms of the page.
func (s *search) states(ctx context.Context, out *results, page []found) error {
	out.State = map[matrix.RoomID][]json.RawMessage{}
	senders := map[matrix.UserID]bool{}
	for _, f := range page {
		senders[f.event.Sender] = true
	}
	for _, f := range page {
		if _, ok := out.State[f.room]; ok {
			continue
		}
		list, err := s.roomState(f.room, senders)
		if err != nil {
			return err
		}
		if err := s.Events.Complete(s.tx, list); err != nil {
			return err
		}
		out.State[f.room] = s.clients(list, nil)
	}
	return ctx.Err()
}
