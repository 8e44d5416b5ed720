package directory

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/profiles"
)

// Bounds of a search for users.
const (
	defaultFound = 10
	mostFound    = 100
	maxTerm      = 256
	// publicKept is how long the list of the members of public rooms is used.
	publicKept = time.Minute
)

// Found is a user whom a search has found.
type Found struct {
	User   matrix.UserID `json:"user_id"`
	Name   string        `json:"display_name,omitempty"`
	Avatar string        `json:"avatar_url,omitempty"`
	rank   int
}

// peopleCache remembers who is visible to everybody.
type peopleCache struct {
	mu     sync.Mutex
	public map[matrix.UserID]bool
	until  time.Time
}

// Search finds users by name, localpart or user ID. Every word of the term has
// to occur; words without spaces between them, as in Chinese, are found
// anywhere in a name. Full matches come first, then beginnings, then the rest.
//
// Spec: post_matrixclientv3user_directorysearch
func (d *Directory) Search(ctx context.Context, asker matrix.UserID, term string, limit int) (found []Found, limited bool, err error) {
	words := strings.FieldsFunc(strings.ToLower(term), unicode.IsSpace)
	if len(words) == 0 {
		return nil, false, nil
	}
	visible, err := d.visibleTo(ctx, asker)
	if err != nil {
		return nil, false, err
	}
	consider := func(user matrix.UserID, name profiles.Name) {
		if rank := matches(user, name.DisplayName, words); rank > 0 {
			found = append(found, Found{user, name.DisplayName, name.AvatarURL, rank})
		}
	}
	for _, u := range d.accounts.Users() {
		if u.Deactivated || u.Guest || u.ID == asker {
			continue
		}
		if d.opts.AllUsers || visible[u.ID] {
			consider(u.ID, d.profiles.Name(u.ID))
		}
	}
	if err := d.remotePeople(ctx, visible, consider); err != nil {
		return nil, false, err
	}
	slices.SortFunc(found, func(a, b Found) int {
		return cmp.Or(cmp.Compare(b.rank, a.rank), cmp.Compare(a.Name, b.Name), cmp.Compare(a.User, b.User))
	})
	if len(found) > limit {
		return found[:limit], true, nil
	}
	return found, false, nil
}

// matches ranks a user: 0 does not match, 3 is the best.
func matches(user matrix.UserID, name string, words []string) int {
	name = strings.ToLower(name)
	local := strings.ToLower(user.Localpart())
	whole := strings.ToLower(string(user))
	rank := 3
	for _, w := range words {
		bare := strings.TrimPrefix(w, "@")
		switch {
		case name == w, local == bare, whole == w:
		case strings.HasPrefix(name, w), strings.HasPrefix(local, bare), beginsWord(name, w):
			rank = min(rank, 2)
		case strings.Contains(name, w), strings.Contains(whole, w):
			rank = min(rank, 1)
		default:
			return 0
		}
	}
	return rank
}

func beginsWord(name, w string) bool { return strings.Contains(name, " "+w) }

// visibleTo lists those who share a room with the asker or are in a public room.
func (d *Directory) visibleTo(ctx context.Context, asker matrix.UserID) (map[matrix.UserID]bool, error) {
	visible := d.hub.SharedWith(asker)
	if visible == nil {
		visible = make(map[matrix.UserID]bool)
	}
	public, err := d.publicPeople(ctx)
	if err != nil {
		return nil, err
	}
	for u := range public {
		visible[u] = true
	}
	delete(visible, asker)
	return visible, nil
}

// publicPeople are the members of published rooms that anybody may join or read.
func (d *Directory) publicPeople(ctx context.Context) (map[matrix.UserID]bool, error) {
	now := d.opts.Now()
	d.people.mu.Lock()
	defer d.people.mu.Unlock()
	if d.people.public != nil && now.Before(d.people.until) {
		return d.people.public, nil
	}
	public := make(map[matrix.UserID]bool)
	d.list.turn.Lock()
	defer d.list.turn.Unlock()
	if err := d.current(ctx); err != nil {
		return nil, err
	}
	for i := range d.list.sorted {
		if e := &d.list.sorted[i]; e.JoinRule == "public" || e.WorldReadable {
			for _, u := range d.hub.Members(e.Room) {
				public[u] = true
			}
		}
	}
	d.people.public, d.people.until = public, now.Add(publicKept)
	return public, nil
}

// remotePeople considers users of other servers by what their member events say.
func (d *Directory) remotePeople(ctx context.Context, visible map[matrix.UserID]bool, consider func(matrix.UserID, profiles.Name)) error {
	for u := range visible {
		if u.Server() == d.opts.Server {
			continue
		}
		name := profiles.Name{}
		for _, room := range d.hub.RoomsOf(u) {
			ev, err := d.rooms.State(ctx, room, "m.room.member", string(u))
			if err != nil {
				return err
			}
			if ev != nil {
				name = profiles.Name{DisplayName: ev.ContentString("displayname"), AvatarURL: ev.ContentString("avatar_url")}
				break
			}
		}
		consider(u, name)
	}
	return nil
}

func (d *Directory) postSearch(c *httpapi.Call) (any, error) {
	var body struct {
		Term  *string `json:"search_term"`
		Limit *int    `json:"limit"`
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	if body.Term == nil {
		return nil, matrix.MissingParam("search_term is needed")
	}
	if len(*body.Term) > maxTerm {
		return nil, matrix.InvalidParam("search_term has at most %d bytes", maxTerm)
	}
	limit := defaultFound
	if body.Limit != nil {
		if *body.Limit < 1 {
			return nil, matrix.InvalidParam("limit must be at least 1")
		}
		limit = min(*body.Limit, mostFound)
	}
	found, limited, err := d.Search(c.Ctx(), c.Caller.User, *body.Term, limit)
	if err != nil {
		return nil, err
	}
	if found == nil {
		found = []Found{}
	}
	return map[string]any{"results": found, "limited": limited}, nil
}
