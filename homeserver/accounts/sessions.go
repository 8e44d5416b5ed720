package accounts

import (
	"crypto/sha256"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

type tokenHash = [sha256.Size]byte

// session is a used access token. It is immutable but for caller.Seen.
type session struct {
	caller  httpapi.Caller
	locked  bool
	expires int64 // milliseconds; 0: never
	refresh int64 // the refresh token it belongs to; 0: none
}

// sessions keeps used access tokens in memory. What drops a session counts gen up, so that one that was being
// read from the database meanwhile is not kept.
type sessions struct {
	mu     sync.RWMutex
	byHash map[tokenHash]*session
	byUser map[matrix.UserID][]tokenHash
	gen    atomic.Uint64
}

// maxSessions bounds the memory: some 300 bytes each. When full, arbitrary ones go and are read again when used.
const maxSessions = 200_000

func (s *sessions) init() {
	s.byHash = make(map[tokenHash]*session)
	s.byUser = make(map[matrix.UserID][]tokenHash)
}

func (s *sessions) get(h tokenHash) *session {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byHash[h]
}

// put keeps a session read while gen was the generation.
func (s *sessions) put(h tokenHash, v *session, gen uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gen.Load() != gen || s.byHash[h] != nil {
		return
	}
	if len(s.byHash) >= maxSessions {
		for old := range s.byHash {
			s.remove(old)
			break
		}
	}
	s.byHash[h] = v
	s.byUser[v.caller.User] = append(s.byUser[v.caller.User], h)
}

// remove takes one session out; the lock is held.
func (s *sessions) remove(h tokenHash) {
	v := s.byHash[h]
	if v == nil {
		return
	}
	delete(s.byHash, h)
	user := v.caller.User
	rest := slices.DeleteFunc(s.byUser[user], func(x tokenHash) bool { return x == h })
	if len(rest) == 0 {
		delete(s.byUser, user)
		return
	}
	s.byUser[user] = rest
}

// dropUser forgets the sessions of a user for which match is true; nil matches all.
func (s *sessions) dropUser(user matrix.UserID, match func(*session) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen.Add(1)
	for _, h := range slices.Clone(s.byUser[user]) {
		if match == nil || match(s.byHash[h]) {
			s.remove(h)
		}
	}
}

func (s *sessions) dropDevices(user matrix.UserID, devices []matrix.DeviceID) {
	s.dropUser(user, func(v *session) bool { return slices.Contains(devices, v.caller.Device) })
}
