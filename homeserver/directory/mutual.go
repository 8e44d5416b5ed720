package directory

import (
	"slices"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// mutualPage is how many common rooms an answer holds.
const mutualPage = 100

// getMutualRooms lists the rooms that the caller and another user are both
// joined to, by room ID; the token of a page is the last room of the one before.
//
// Spec: get_matrixclientv1mutual_rooms
func (d *Directory) getMutualRooms(c *httpapi.Call) (any, error) {
	if !c.Values().Has("user_id") {
		return nil, matrix.InvalidParam("user_id is needed")
	}
	user, err := matrix.ParseUserID(c.Query("user_id"))
	if err != nil {
		return nil, err
	}
	if user == c.Caller.User {
		return nil, matrix.InvalidParam("user_id must be somebody else")
	}
	rooms := []matrix.RoomID{}
	for _, room := range d.hub.RoomsOf(user) {
		if d.hub.Joined(c.Caller.User, room) {
			rooms = append(rooms, room)
		}
	}
	slices.Sort(rooms)
	count := len(rooms)
	if from := c.Query("from"); from != "" {
		if _, err := matrix.ParseRoomID(from); err != nil {
			return nil, matrix.InvalidParam("from is not a token of this endpoint")
		}
		i, found := slices.BinarySearch(rooms, matrix.RoomID(from))
		if found {
			i++
		}
		rooms = rooms[i:]
	}
	out := map[string]any{"joined": rooms, "count": count}
	if len(rooms) > mutualPage {
		out["joined"], out["next_batch"] = rooms[:mutualPage], rooms[mutualPage-1]
	}
	return out, nil
}
