package e2ee

import (
	"context"
	"strconv"
	"strings"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/stream"
)

// changes is GET /keys/changes.
func (s *Service) changes(c *httpapi.Call) (any, error) {
	from, to := c.Query("from"), c.Query("to")
	if from == "" || to == "" {
		return nil, matrix.MissingParam("from and to are needed")
	}
	find := s.deps.Changes
	if find == nil {
		find = s.changed
	}
	changed, left, err := find(c.Ctx(), c.Caller.User, from, to)
	if err != nil {
		return nil, err
	}
	if changed == nil {
		changed = []matrix.UserID{}
	}
	if left == nil {
		left = []matrix.UserID{}
	}
	return struct {
		Changed []matrix.UserID `json:"changed"`
		Left    []matrix.UserID `json:"left"`
	}{changed, left}, nil
}

// changed lists those whose keys changed, without those who share no room any more. to is a hint only.
func (s *Service) changed(ctx context.Context, user matrix.UserID, from, to string) (changed, left []matrix.UserID, err error) {
	start, err := position(from)
	if err != nil {
		return nil, nil, err
	}
	if _, err := position(to); err != nil {
		return nil, nil, err
	}
	var all []matrix.UserID
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		all, err = s.DeviceListChanges(ctx, tx, user, start, s.log.Head())
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	for _, u := range all {
		if u == user || s.deps.Rooms != nil && s.deps.Rooms.SharesRoom(user, u) {
			changed = append(changed, u)
		}
	}
	return changed, nil, nil
}

// position is the position of a sync token, s<pos> or s<pos>_<more>.
func position(token string) (stream.Pos, error) {
	digits, ok := strings.CutPrefix(token, "s")
	digits, _, _ = strings.Cut(digits, "_")
	n, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || n < 0 {
		return 0, matrix.InvalidParam("%q is not a sync token", clip(token))
	}
	return stream.Pos(n), nil
}
