package spaces

import (
	"context"
	"slices"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Answer is what a server says of a room and its children.
//
// Spec: server-server-api#get_matrixfederationv1hierarchyroomid
type Answer struct {
	Room         Room            `json:"room"`
	Children     []Summary       `json:"children"`
	Inaccessible []matrix.RoomID `json:"inaccessible_children"`
}

const (
	answerKept  = time.Minute
	mostAnswers = 1000 // the oldest is dropped beyond
	// oneRemote is how long one server may take, allRemote how long a page of a
	// tree waits for all of them.
	oneRemote = 10 * time.Second
	allRemote = 25 * time.Second
	abreast   = 8 // rooms asked for at a time
)

type question struct {
	room          matrix.RoomID
	suggestedOnly bool
}

type kept struct {
	answer *Answer
	until  time.Time
}

// answers keeps what other servers have said. It is the same for all users.
type answers struct {
	mu    sync.Mutex
	m     map[question]kept
	order []question
}

func (a *answers) get(q question, now time.Time) *Answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	if k, ok := a.m[q]; ok && now.Before(k.until) {
		return k.answer
	}
	return nil
}

func (a *answers) put(q question, answer *Answer, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.m == nil {
		a.m = map[question]kept{}
	}
	if _, ok := a.m[q]; !ok {
		if len(a.order) == mostAnswers {
			delete(a.m, a.order[0])
			a.order = a.order[1:]
		}
		a.order = append(a.order, q)
	}
	a.m[q] = kept{answer, now.Add(answerKept)}
}

// ask asks servers for a room until one answers; nil if none does.
func (s *Spaces) ask(ctx context.Context, servers []matrix.ServerName, q question) *Answer {
	if s.opts.Remote == nil {
		return nil
	}
	if a := s.answers.get(q, s.opts.Now()); a != nil {
		return a
	}
	for _, server := range servers {
		if server == s.opts.Server || ctx.Err() != nil {
			continue
		}
		one, cancel := context.WithTimeout(ctx, oneRemote)
		a, err := s.opts.Remote.Hierarchy(one, server, q.room, q.suggestedOnly)
		cancel()
		if err == nil && a.Room.Room != q.room {
			err = matrix.NotFound("%s answered for another room", server)
		}
		if err != nil {
			log.WithError(err).WithField("room_id", q.room).WithField("server", server).Debug("no summary from another server")
			continue
		}
		a.tidy(q.suggestedOnly)
		s.answers.put(q, a, s.opts.Now())
		return a
	}
	return nil
}

// tidy brings what another server says into the form of what this one has.
func (a *Answer) tidy(suggestedOnly bool) {
	if a.Room.Type != spaceType {
		a.Room.Children = nil
	}
	a.Room.Children = sorted(a.Room.Children, suggestedOnly)
	a.Room.assume()
	a.Children = a.Children[:min(len(a.Children), mostChildren)]
	for i := range a.Children {
		a.Children[i].assume()
	}
}

// assume fills in what is meant where nothing is said.
func (r *Summary) assume() {
	if r.JoinRule == "" {
		r.JoinRule = "public"
	}
	r.Members = max(r.Members, 0)
}

// routes are the servers that may know a room, with those given before others.
func (s *Spaces) routes(ctx context.Context, user matrix.UserID, room matrix.RoomID, via []matrix.ServerName) ([]matrix.ServerName, error) {
	list := slices.Clone(via)
	if user != "" {
		m, err := s.rooms.MembershipOf(ctx, user, room)
		if err != nil {
			return nil, err
		}
		if m != nil && m.Membership == "invite" {
			list = append(list, m.Sender.Server())
		}
	}
	list = append(list, s.hub.Servers(room)...)
	if server := room.Server(); server != "" {
		list = append(list, server)
	}
	var out []matrix.ServerName
	for _, server := range list {
		if server != s.opts.Server && !slices.Contains(out, server) && len(out) < 2*mostVia {
			out = append(out, server)
		}
	}
	return out, nil
}
