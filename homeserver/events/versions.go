package events

import (
	"strings"

	"github.com/matrix-org/gomatrixserverlib"
)

// Room versions of proposals: a version of the specification with another rule for
// state that belongs to a user.
const (
	// VersionOwned10 and VersionOwned11 protect state whose key begins with a user's
	// ID from all but him and those above him. Spec: MSC3757
	VersionOwned10 gomatrixserverlib.RoomVersion = ownedPrefix + "10"
	VersionOwned11 gomatrixserverlib.RoomVersion = ownedPrefix + "11"
	// VersionFree10 and VersionFree11 let everybody set state whose key begins with
	// his own ID at the level of messages. Spec: MSC3779
	VersionFree10 gomatrixserverlib.RoomVersion = freePrefix + "10"
	VersionFree11 gomatrixserverlib.RoomVersion = freePrefix + "11"

	ownedPrefix = "org.matrix.msc3757."
	freePrefix  = "org.matrix.msc3779."
)

// RoomVersion finds what the library knows of a room version: for one of a proposal
// that of the version that it is built on. What the proposals change is not part of
// that; see ProtectsOwned and FreesOwned.
func RoomVersion(v gomatrixserverlib.RoomVersion) (gomatrixserverlib.IRoomVersion, error) {
	return gomatrixserverlib.GetRoomVersion(base(v))
}

// base is the version that a proposal's version is built on, and every other itself.
func base(v gomatrixserverlib.RoomVersion) gomatrixserverlib.RoomVersion {
	switch v {
	case VersionOwned10, VersionFree10:
		return gomatrixserverlib.RoomVersionV10
	case VersionOwned11, VersionFree11:
		return gomatrixserverlib.RoomVersionV11
	}
	return v
}

// ProtectsOwned reports whether state whose key begins with a user's ID may be set
// by that user and those above him alone. Spec: MSC3757
func ProtectsOwned(v gomatrixserverlib.RoomVersion) bool {
	return strings.HasPrefix(string(v), ownedPrefix)
}

// FreesOwned reports whether a user may set state whose key begins with his own ID
// at the level of messages. Spec: MSC3779
func FreesOwned(v gomatrixserverlib.RoomVersion) bool {
	return strings.HasPrefix(string(v), freePrefix)
}

// maxKey is how long a state key may be, in bytes: with an owner's ID in front it
// may be longer where that has a meaning.
func maxKey(v gomatrixserverlib.RoomVersion) int {
	if ProtectsOwned(v) {
		return 2*maxName + 1
	}
	return maxName
}
