package delayed

import (
	"context"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Scheduled is the room and the delay of an event of a user that is still to be
// sent: M_NOT_FOUND where he has none of that ID, 409 where it is over.
func (d *Delayed) Scheduled(ctx context.Context, id string, owner matrix.UserID) (matrix.RoomID, time.Duration, error) {
	i, err := d.find(ctx, id, owner)
	if err != nil {
		return "", 0, err
	}
	if i.final != 0 {
		return "", 0, conflict("has been sent or cancelled")
	}
	return i.room, time.Duration(i.delay) * time.Millisecond, nil
}
