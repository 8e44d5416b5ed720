package hstest_test

import (
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/homeserver/hstest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

func roomFor(r string) id.RoomID { return id.RoomID(r) }

func roomID(r id.RoomID) matrix.RoomID { return matrix.RoomID(r) }

func matrixUser(u *hstest.User) matrix.UserID { return matrix.UserID(u.UserID) }
