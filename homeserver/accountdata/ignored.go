package accountdata

import (
	"context"
	"encoding/json"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Ignored is the set of users that one user ignores. It is immutable; nil is empty.
type Ignored map[matrix.UserID]struct{}

// Has reports whether the set holds user.
func (s Ignored) Has(user matrix.UserID) bool {
	if len(s) == 0 {
		return false
	}
	_, ok := s[user]
	return ok
}

// Ignored returns the users that user ignores, from memory.
//
// Spec: client-server-api#ignoring-users
func (d *Data) Ignored(user matrix.UserID) Ignored {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.ignored[user]
}

// loadKept reads what is held in memory.
func (d *Data) loadKept(ctx context.Context) error {
	type row struct {
		user         matrix.UserID
		typ, content string
	}
	var rows []row
	err := d.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		rows, err = sqldb.Select(tx, func(r *sqldb.Rows) (v row, err error) {
			err = r.Scan(&v.user, &v.typ, &v.content)
			return v, err
		}, qKept)
		return err
	})
	for _, r := range rows {
		d.keep(r.user, r.typ, json.RawMessage(r.content))
	}
	return err
}

// keep takes a value of the whole account over into memory, if it belongs there.
func (d *Data) keep(user matrix.UserID, typ string, content json.RawMessage) {
	switch typ {
	case TypeIgnored:
		d.setIgnored(user, content)
	case TypeInvites, TypeInviteLists:
		d.setInvites(user, typ, content)
	}
}

// setIgnored takes over the content of an m.ignored_user_list; what is malformed in it counts as nobody.
func (d *Data) setIgnored(user matrix.UserID, content json.RawMessage) {
	set := parseIgnored(user, content)
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(set) == 0 {
		delete(d.ignored, user)
		return
	}
	d.ignored[user] = set
}

func parseIgnored(user matrix.UserID, content json.RawMessage) Ignored {
	var list struct {
		Users map[string]json.RawMessage `json:"ignored_users"`
	}
	if json.Unmarshal(content, &list) != nil {
		return nil
	}
	set := make(Ignored, len(list.Users))
	for id := range list.Users {
		// Nobody can ignore themselves: their own devices would fall silent.
		if u, err := matrix.ParseUserID(id); err == nil && u != user {
			set[u] = struct{}{}
		}
	}
	return set
}
