package sites

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// How another site's tree stands to the own one, in what the API answers.
const (
	StateCurrent  = "current"  // the same
	StateBehind   = "behind"   // an earlier one
	StateAhead    = "ahead"    // a later one: the head office was restored, or the own site has not heard yet
	StateDiverged = "diverged" // one that this head office never had
	StateUnknown  = "unknown"  // not heard of yet
)

// Routes are the endpoints of the module; all of them are for administrators.
func (s *Sites) Routes() []httpapi.Route {
	const path = "/_carillon/v1/sites"
	return []httpapi.Route{
		{Method: http.MethodGet, Path: path, Auth: httpapi.AuthAdmin, RateLimit: true, AllowSuspended: true, Handler: s.serveSites},
		{Method: http.MethodGet, Path: path + "/proposals/{id}", Auth: httpapi.AuthAdmin, RateLimit: true, AllowSuspended: true, Handler: s.serveProposal},
		{Method: http.MethodPost, Path: path + "/epoch", Auth: httpapi.AuthAdmin, RateLimit: true, Handler: s.serveEpoch},
		{Method: http.MethodPost, Path: path + "/trust", Auth: httpapi.AuthAdmin, RateLimit: true, Handler: s.serveTrust},
	}
}

type siteView struct {
	Name       string    `json:"name"`
	ServerName string    `json:"server_name"`
	Bot        id.UserID `json:"bot"`
	Head       bool      `json:"head_office,omitempty"`
	Own        bool      `json:"own,omitempty"`

	Epoch   int64  `json:"epoch"`
	Version int64  `json:"version"`
	State   string `json:"state"`

	HeardAt      int64    `json:"heard_at,omitempty"`
	Behind       int64    `json:"behind_ms"`
	Sent         int64    `json:"sent"`
	Acknowledged int64    `json:"acknowledged"`
	Waiting      int      `json:"waiting"`
	Key          string   `json:"key,omitempty"`
	OfferedKey   string   `json:"offered_key,omitempty"`
	Delegated    []string `json:"delegated_units,omitempty"`
}

type sitesView struct {
	Room      id.RoomID  `json:"room_id,omitempty"`
	Sites     []siteView `json:"sites"`
	Proposals []Proposal `json:"proposals"`
}

// serveSites answers how each site stands.
func (s *Sites) serveSites(c *httpapi.Call) (any, error) {
	out := sitesView{Room: s.Room(), Sites: []siteView{}, Proposals: []Proposal{}}
	err := s.db.Read(c.Ctx(), func(tx *sqldb.Tx) (err error) {
		for _, site := range s.all {
			v, err := s.view(tx, site)
			if err != nil {
				return err
			}
			out.Sites = append(out.Sites, v)
		}
		out.Proposals, err = sqldb.Select(tx, scanProposal, qProposals, 20)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading how the sites stand: %w", err)
	}
	return out, nil
}

func (s *Sites) view(tx *sqldb.Tx, site Site) (siteView, error) {
	v := siteView{Name: site.Name, ServerName: site.ServerName, Bot: site.Bot, Head: site.Head, Own: site.Name == s.own.Name, Delegated: s.DelegatedTo(site)}
	mine := s.store.Tree().Mark()
	if v.Own {
		s.mu.Lock()
		v.Epoch, v.Version, v.State, v.Key = mine.Epoch, mine.Version, StateCurrent, fingerprint(s.public)
		s.mu.Unlock()
		return v, nil
	}
	s.mu.Lock()
	theirs, keys := s.marks[site.Name], s.keys[site.Name]
	s.mu.Unlock()
	l := s.Lag(site)
	v.Epoch, v.Version, v.Key, v.OfferedKey = theirs.Epoch, theirs.Version, fingerprint(keys[0]), fingerprint(keys[1])
	v.HeardAt, v.Behind, v.Sent, v.Acknowledged, v.Waiting = millis(l.Heard), l.Behind.Milliseconds(), l.Sent, l.Acknowledged, l.Waiting
	var err error
	v.State, err = s.state(tx, mine, theirs)
	return v, err
}

// state compares another site's tree with the own one.
func (s *Sites) state(tx *sqldb.Tx, mine, theirs org.Mark) (string, error) {
	switch {
	case theirs.Epoch == 0:
		return StateUnknown, nil
	case theirs == mine:
		return StateCurrent, nil
	case mine.Before(theirs):
		return StateAhead, nil
	case theirs.Epoch == mine.Epoch && theirs.Version == mine.Version:
		return StateDiverged, nil
	case !s.own.Head:
		return StateBehind, nil
	}
	same, known, err := s.sameHistory(tx, theirs, mine)
	if err == nil && known && !same {
		return StateDiverged, nil
	}
	return StateBehind, err
}

// serveProposal answers what has become of an import at a site.
func (s *Sites) serveProposal(c *httpapi.Call) (any, error) {
	p, err := s.Proposal(c.Ctx(), c.Var("id"))
	if err == nil && p == nil {
		return nil, matrix.NotFound("there is no proposal of that ID")
	}
	return p, err
}

// serveEpoch begins a new epoch of the organisation.
func (s *Sites) serveEpoch(c *httpapi.Call) (any, error) {
	tree, err := s.RaiseEpoch(c.Ctx(), string(c.Caller.User))
	if errors.Is(err, org.ErrReplica) {
		return nil, matrix.NewError(http.StatusConflict, "IM_CARILLON_NOT_HEAD_OFFICE", "only the head office %s begins an epoch", s.head.Name)
	}
	if err != nil {
		return nil, err
	}
	return org.Mark{Epoch: tree.Epoch, Version: tree.Version}, nil
}

// RaiseEpoch makes the own tree the later one at every site, whatever they have heard before.
func (s *Sites) RaiseEpoch(ctx context.Context, actor string) (*org.Tree, error) {
	var least org.Mark
	s.mu.Lock()
	for _, m := range s.marks {
		least.Epoch, least.Version = max(least.Epoch, m.Epoch), max(least.Version, m.Version)
	}
	s.mu.Unlock()
	return s.store.RaiseEpoch(ctx, least, actor)
}

// serveTrust makes the key with which a site speaks now the one that counts.
func (s *Sites) serveTrust(c *httpapi.Call) (any, error) {
	var body struct {
		Site string `json:"site"`
		Key  string `json:"key"` // its fingerprint, as serveSites answers it; "" is whatever it is
	}
	if err := c.Body(&body); err != nil {
		return nil, err
	}
	s.mu.Lock()
	keys, ok := s.keys[body.Site]
	s.mu.Unlock()
	switch {
	case !ok:
		return nil, matrix.NotFound("there is no other site %q", body.Site)
	case keys[1] == "" || body.Key != "" && body.Key != fingerprint(keys[1]):
		return nil, matrix.NewError(http.StatusConflict, "IM_CARILLON_NO_SUCH_KEY", "site %q does not speak with that key", body.Site)
	}
	err := s.db.Write(c.Ctx(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qSaveKeys, body.Site, keys[1], "")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("keeping the key of site %q: %w", body.Site, err)
	}
	s.mu.Lock()
	s.keys[body.Site] = [2]string{keys[1], ""}
	s.mu.Unlock()
	s.Wake()
	return nil, nil
}
