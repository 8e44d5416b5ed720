package subscriptions

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/carillon-chat/carillon/homeserver/history"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

const (
	defaultPage = 100
	largestPage = 100
)

// door are the endpoints. Which threads a user may see is decided by history.
type door struct {
	s *Subscriptions
	h *history.History
	// prefix of the errors' codes: those of the unstable paths have one.
	prefix string
}

// Routes are the endpoints of the module, under the names that the proposals
// give them while they are no part of the specification, and under the later ones.
func (s *Subscriptions) Routes(h *history.History) []httpapi.Route {
	routes := func(d *door, rooms, list string) []httpapi.Route {
		thread := rooms + "/rooms/{roomId}/thread/{eventId}/subscription"
		return []httpapi.Route{
			{Method: http.MethodGet, Path: thread, Auth: httpapi.AuthUser, AllowSuspended: true, AllowGuest: true, Handler: d.get},
			{Method: http.MethodPut, Path: thread, Auth: httpapi.AuthUser, RateLimit: true, AllowSuspended: true, AllowGuest: true, Handler: d.put},
			{Method: http.MethodDelete, Path: thread, Auth: httpapi.AuthUser, RateLimit: true, AllowSuspended: true, AllowGuest: true, Handler: d.delete},
			{Method: http.MethodGet, Path: list + "/thread_subscriptions", Auth: httpapi.AuthUser, AllowSuspended: true, AllowGuest: true, Handler: d.list},
		}
	}
	const client = "/_matrix/client/"
	return append(
		routes(&door{s, h, "IO.ELEMENT.MSC4306."}, client+"unstable/io.element.msc4306", client+"unstable/io.element.msc4308"),
		routes(&door{s, h, ""}, client+"v1", client+"v1")...,
	)
}

// thread is the thread of the path, which the caller must be able to see.
func (d *door) thread(c *httpapi.Call) (room matrix.RoomID, root matrix.EventID, err error) {
	if room, err = c.RoomVar("roomId"); err != nil {
		return "", "", err
	}
	root = matrix.EventID(c.Var("eventId"))
	missing := matrix.NotFound("there is no thread %s that you may see", root)
	a, err := d.h.Open(c.Ctx(), c.Caller.User, c.Caller.Device, room)
	if matrix.IsCode(err, "M_FORBIDDEN") || matrix.IsCode(err, "M_NOT_FOUND") {
		return "", "", missing
	} else if err != nil {
		return "", "", err
	}
	err = d.s.db.Read(c.Ctx(), func(tx *sqldb.Tx) error {
		read, err := d.h.Reader(tx, a, nil)
		if err != nil {
			return err
		}
		_, err = read.Find(tx, root)
		return err
	})
	if matrix.IsCode(err, "M_NOT_FOUND") {
		return "", "", missing
	} else if err != nil {
		return "", "", fmt.Errorf("reading a thread: %w", err)
	}
	return room, root, nil
}

func (d *door) get(c *httpapi.Call) (any, error) {
	room, root, err := d.thread(c)
	if err != nil {
		return nil, err
	}
	var st standing
	err = d.s.db.Read(c.Ctx(), func(tx *sqldb.Tx) (err error) {
		st, err = get(tx, c.Caller.User, room, root)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading a thread subscription: %w", err)
	}
	if !st.subscribed {
		return nil, matrix.NotFound("you have not subscribed to the thread %s", root)
	}
	return map[string]bool{"automatic": st.automatic}, nil
}

func (d *door) put(c *httpapi.Call) (any, error) {
	var body struct {
		Automatic *matrix.EventID `json:"automatic"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	room, root, err := d.thread(c)
	if err != nil {
		return nil, err
	}
	automatic, cause := body.Automatic != nil, stream.Pos(0)
	if automatic {
		at, err := d.s.places.Of(c.Ctx(), room, *body.Automatic)
		if matrix.IsCode(err, "M_NOT_FOUND") || err == nil && at.Root != root {
			return nil, matrix.NewError(http.StatusBadRequest, d.prefix+"M_NOT_IN_THREAD", "the event that causes the subscription is not in the thread")
		} else if err != nil {
			return nil, err
		}
		cause = at.Pos
	}
	err = d.s.subscribe(c.Ctx(), c.Caller.User, room, root, automatic, cause)
	if errors.Is(err, errConflict) {
		return nil, matrix.NewError(http.StatusConflict, d.prefix+"M_CONFLICTING_UNSUBSCRIPTION", "you have unsubscribed from this thread after the event that causes the subscription")
	}
	return nil, err
}

func (d *door) delete(c *httpapi.Call) (any, error) {
	room, root, err := d.thread(c)
	if err != nil {
		return nil, err
	}
	return nil, d.s.unsubscribe(c.Ctx(), c.Caller.User, room, root)
}

// list is a page of changes, going back.
func (d *door) list(c *httpapi.Call) (any, error) {
	if c.Query("dir") != "b" {
		return nil, matrix.InvalidParam("dir must be b")
	}
	limit, err := c.QueryInt("limit", defaultPage, 1, largestPage)
	if err != nil {
		return nil, err
	}
	from, to := d.s.log.Head(), stream.Pos(0)
	if v := c.Query("from"); v != "" {
		if from, err = history.ParseToken(v); err != nil {
			return nil, err
		}
	}
	if v := c.Query("to"); v != "" {
		if to, err = history.ParseToken(v); err != nil {
			return nil, err
		}
	}
	var p Page
	err = d.s.db.Read(c.Ctx(), func(tx *sqldb.Tx) (err error) {
		p, err = d.s.Page(tx, c.Caller.User, max(to, 0), from, limit)
		return err
	})
	if err != nil {
		return nil, err
	}
	return struct {
		Page
		End string `json:"end,omitempty"`
	}{p, p.More}, nil
}

// Page is a part of the changes in the form that clients get.
type Page struct {
	Subscribed   map[matrix.RoomID]map[matrix.EventID]followed `json:"subscribed,omitempty"`
	Unsubscribed map[matrix.RoomID]map[matrix.EventID]ended    `json:"unsubscribed,omitempty"`
	// More is the token of the next page back; empty where there is none.
	More string `json:"-"`
}

type followed struct {
	Automatic bool       `json:"automatic"`
	Stamp     stream.Pos `json:"bump_stamp"`
}

type ended struct {
	Stamp stream.Pos `json:"bump_stamp"`
}

// Page reads the newest changes in (from, to].
func (s *Subscriptions) Page(tx *sqldb.Tx, user matrix.UserID, from, to stream.Pos, limit int) (p Page, err error) {
	list, more, err := s.Since(tx, user, from, to, limit)
	if err != nil {
		return p, err
	}
	for _, e := range list {
		if e.Subscribed {
			put(&p.Subscribed, e, followed{e.Automatic, e.Pos})
		} else {
			put(&p.Unsubscribed, e, ended{e.Pos})
		}
	}
	if more {
		p.More = history.Token(list[len(list)-1].Pos - 1)
	}
	return p, nil
}

func put[T any](m *map[matrix.RoomID]map[matrix.EventID]T, e Entry, v T) {
	if *m == nil {
		*m = map[matrix.RoomID]map[matrix.EventID]T{}
	}
	if (*m)[e.Room] == nil {
		(*m)[e.Room] = map[matrix.EventID]T{}
	}
	(*m)[e.Room][e.Root] = v
}
