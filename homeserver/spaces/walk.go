package spaces

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

const (
	defaultPage  = 50
	largestPage  = 100
	deepest      = 100
	mostLooks    = 2000 // rooms looked at for one page, shown or not
	walkKept     = 15 * time.Minute
	mostWalks    = 2000 // places kept for readers, the oldest dropped beyond
	mostInOneRun = 20_000
)

// step is a room that a walk comes to.
type step struct {
	room  matrix.RoomID
	via   []matrix.ServerName
	depth int
	told  *Summary // what the server of its parent says of it
}

// walk is a place in a tree, depth first. It is not changed once it is kept.
type walk struct {
	user          matrix.UserID
	root          matrix.RoomID
	suggestedOnly bool
	maxDepth      int
	ahead         []step // the next one last
	seen          map[matrix.RoomID]bool
	kept          time.Time
}

// walks keeps the places that readers have reached, by their tokens.
type walks struct {
	mu    sync.Mutex
	m     map[string]*walk
	order []string
}

func (ws *walks) keep(w *walk, now time.Time) (token string) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.m == nil {
		ws.m = map[string]*walk{}
	}
	for len(ws.order) > 0 && (len(ws.order) >= mostWalks || now.Sub(ws.m[ws.order[0]].kept) > walkKept) {
		delete(ws.m, ws.order[0])
		ws.order = ws.order[1:]
	}
	w.kept = now
	token = matrix.RandomString(20)
	ws.m[token] = w
	ws.order = append(ws.order, token)
	return token
}

// resume is the walk of a token, for its owner to go on with.
func (ws *walks) resume(token string, user matrix.UserID, root matrix.RoomID, now time.Time) (*walk, error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w := ws.m[token]
	if w == nil || w.user != user || w.root != root || now.Sub(w.kept) > walkKept {
		return nil, matrix.InvalidParam("from is not a token of this endpoint, or has expired")
	}
	c := *w
	c.ahead, c.seen = slices.Clone(w.ahead), maps.Clone(w.seen)
	return &c, nil
}

// page goes on with a walk and returns the next rooms that the reader may see;
// w stands behind them then.
func (s *Spaces) page(ctx context.Context, w *walk, limit int) ([]Room, error) {
	far, cancel := context.WithTimeout(ctx, allRemote)
	defer cancel()
	list := []Room{}
	absent := map[matrix.RoomID]bool{}
	for looks := 0; len(w.ahead) > 0 && looks < mostLooks && far.Err() == nil; looks++ {
		s.fetchAhead(far, w, absent)
		next := w.ahead[len(w.ahead)-1]
		w.ahead = w.ahead[:len(w.ahead)-1]
		if w.seen[next.room] {
			continue
		}
		room, steps, err := s.look(far, w, next, absent)
		if err != nil {
			if far.Err() != nil && ctx.Err() == nil { // the others have taken too long: later
				w.ahead = append(w.ahead, next)
				break
			}
			return nil, err
		}
		if room == nil {
			w.seen[next.room] = true
			continue
		}
		if len(list) == limit {
			w.ahead = append(w.ahead, next)
			break
		}
		w.seen[next.room] = true
		list = append(list, *room)
		if next.depth < w.maxDepth && len(w.seen)+len(w.ahead) < mostInOneRun {
			slices.Reverse(steps)
			w.ahead = append(w.ahead, steps...)
		}
	}
	return list, ctx.Err()
}

// look gives a room if the reader may see it, and where the walk goes from it.
func (s *Spaces) look(ctx context.Context, w *walk, at step, absent map[matrix.RoomID]bool) (*Room, []step, error) {
	membership, err := s.rooms.Membership(ctx, at.room, w.user)
	if err != nil {
		return nil, nil, err
	}
	if s.here(at.room) {
		sum, err := s.summary(ctx, at.room)
		if err != nil {
			return nil, nil, err
		}
		if !s.shown(w.user, sum, membership) {
			return nil, nil, nil
		}
		children, err := s.children(ctx, sum, w.suggestedOnly)
		if err != nil {
			return nil, nil, err
		}
		return &Room{*sum, children}, steps(children, at.depth, nil), nil
	}
	if at.told != nil && at.told.Type != spaceType {
		if !s.shown(w.user, at.told, membership) {
			return nil, nil, nil
		}
		return &Room{*at.told, []Child{}}, nil, nil
	}
	var answer *Answer
	if !absent[at.room] {
		answer = s.ask(ctx, at.via, question{at.room, w.suggestedOnly})
	}
	switch {
	case answer != nil && s.shown(w.user, &answer.Room.Summary, membership):
		return &answer.Room, steps(answer.Room.Children, at.depth, answer), nil
	case answer == nil && at.told != nil && s.shown(w.user, at.told, membership):
		return &Room{*at.told, []Child{}}, nil, nil
	}
	return nil, nil, nil
}

// steps are the children of a room as the next rooms of a walk.
func steps(children []Child, depth int, from *Answer) []step {
	told := map[matrix.RoomID]*Summary{}
	var barred []matrix.RoomID
	if from != nil {
		barred = from.Inaccessible
		for i := range from.Children {
			told[from.Children[i].Room] = &from.Children[i]
		}
	}
	list := make([]step, 0, len(children))
	for _, c := range children {
		via := c.Content.via()
		if slices.Contains(barred, c.Key) {
			via = nil // nobody would tell more
		}
		list = append(list, step{room: c.Key, via: via, depth: depth + 1, told: told[c.Key]})
	}
	return list
}

// fetchAhead asks for several of the next rooms at a time, if others have to be
// asked for the very next one.
func (s *Spaces) fetchAhead(ctx context.Context, w *walk, absent map[matrix.RoomID]bool) {
	far := func(at step) bool {
		return s.opts.Remote != nil && !w.seen[at.room] && !absent[at.room] && !s.here(at.room) && len(at.via) > 0 &&
			(at.told == nil || at.told.Type == spaceType) && s.answers.get(question{at.room, w.suggestedOnly}, s.opts.Now()) == nil
	}
	if !far(w.ahead[len(w.ahead)-1]) {
		return
	}
	var batch []step
	for i := len(w.ahead) - 1; i >= max(len(w.ahead)-4*abreast, 0) && len(batch) < abreast; i-- {
		at := w.ahead[i]
		if far(at) && !slices.ContainsFunc(batch, func(b step) bool { return b.room == at.room }) {
			batch = append(batch, at)
		}
	}
	silent := make([]bool, len(batch))
	var wg sync.WaitGroup
	for i, at := range batch {
		wg.Go(func() { silent[i] = s.ask(ctx, at.via, question{at.room, w.suggestedOnly}) == nil })
	}
	wg.Wait()
	for i, at := range batch {
		if silent[i] {
			absent[at.room] = true
		}
	}
}
