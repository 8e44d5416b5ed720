package livekit

import "github.com/carillon-chat/carillon/homeserver/matrix"

// Hash is how names are made.
func Hash(parts ...string) (string, error) { return hash(parts...) }

// Alias is the name of a call.
func Alias(k *LiveKit, room matrix.RoomID, slot string) string {
	s, _ := k.alias(room, slot)
	return s
}
