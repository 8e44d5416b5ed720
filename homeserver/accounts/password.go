package accounts

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"

	"github.com/carillon-chat/carillon/homeserver/gate"
)

// PasswordCost is what a password hash costs. The zero value is argon2id with 19 MiB and two passes, and as many
// at a time as there are processors.
type PasswordCost struct {
	MemoryKiB  uint32
	Passes     uint32
	Concurrent int
}

// hasher makes and checks password hashes, a bounded number at a time.
type hasher struct {
	memory, passes uint32
	sem            *gate.Semaphore
	decoy          string // checked for users that do not exist, so that they take as long as others
}

const (
	argonPrefix = "$argon2id$"
	shaPrefix   = "$carillon-sha256$"
	saltSize    = 16
	keySize     = 32
	// maxMemory bounds imported hashes: 1 GiB.
	maxMemory = 1 << 20
	maxPasses = 64
)

func newHasher(cost PasswordCost) *hasher {
	h := &hasher{memory: cost.MemoryKiB, passes: cost.Passes}
	if h.memory == 0 {
		h.memory = 19 << 10
	}
	if h.passes == 0 {
		h.passes = 2
	}
	if cost.Concurrent > 0 {
		h.sem = gate.NewSemaphore(cost.Concurrent)
	} else {
		h.sem = gate.PerCPU(1)
	}
	h.decoy = h.encode("", make([]byte, saltSize))
	return h
}

func (h *hasher) encode(password string, salt []byte) string {
	key := argon2.IDKey([]byte(password), salt, h.passes, h.memory, 1, keySize)
	return fmt.Sprintf("%sv=%d$m=%d,t=%d,p=1$%s$%s", argonPrefix, argon2.Version, h.memory, h.passes,
		base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(key))
}

// hash makes the hash of a new password.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	salt := make([]byte, saltSize)
	rand.Read(salt) // never fails: it ends the program instead
	var out string
	err := h.sem.Do(ctx, func() error {
		out = h.encode(password, salt)
		return nil
	})
	return out, err
}

// tryHash is hash when there is room at once.
func (h *hasher) tryHash(password string) (string, bool) {
	release, ok := h.sem.TryAcquire(1)
	if !ok {
		return "", false
	}
	defer release()
	salt := make([]byte, saltSize)
	rand.Read(salt)
	return h.encode(password, salt), true
}

// verify says whether the password is right, and whether its hash should be made anew at today's cost. An empty
// hash never matches.
func (h *hasher) verify(ctx context.Context, password, encoded string) (ok, stale bool, err error) {
	if encoded == "" {
		_, _, err = h.verify(ctx, password, h.decoy)
		return false, false, err
	}
	if rest, isSHA := strings.CutPrefix(encoded, shaPrefix); isSHA {
		salt, want, err := parseSHA(rest)
		if err != nil {
			return false, false, err
		}
		sum := sha256.Sum256(append(salt, password...))
		return subtle.ConstantTimeCompare(sum[:], want) == 1, true, nil
	}
	err = h.sem.Do(ctx, func() error {
		if !strings.HasPrefix(encoded, argonPrefix) {
			stale = true
			ok = bcrypt.CompareHashAndPassword([]byte(encoded), []byte(password)) == nil
			return nil
		}
		p, err := parseArgon(encoded)
		if err != nil {
			return err
		}
		key := argon2.IDKey([]byte(password), p.salt, p.passes, p.memory, p.threads, uint32(len(p.key))) //nolint:gosec // bounded by parseArgon
		ok = subtle.ConstantTimeCompare(key, p.key) == 1
		stale = p.memory != h.memory || p.passes != h.passes
		return nil
	})
	return ok, stale, err
}

type argonParams struct {
	memory, passes uint32
	threads        uint8
	salt, key      []byte
}

func parseArgon(encoded string) (p argonParams, err error) {
	bad := errors.New("malformed argon2id hash")
	parts := strings.Split(strings.TrimPrefix(encoded, argonPrefix), "$")
	if len(parts) != 4 || parts[0] != fmt.Sprintf("v=%d", argon2.Version) {
		return p, bad
	}
	if n, err := fmt.Sscanf(parts[1], "m=%d,t=%d,p=%d", &p.memory, &p.passes, &p.threads); n != 3 || err != nil {
		return p, bad
	}
	p.salt, err = base64.RawStdEncoding.DecodeString(parts[2])
	if err != nil {
		return p, bad
	}
	p.key, err = base64.RawStdEncoding.DecodeString(parts[3])
	if err != nil || len(p.key) < 16 || len(p.key) > 128 || len(p.salt) < 8 || p.threads == 0 || p.passes == 0 ||
		p.passes > maxPasses || p.memory > maxMemory {
		return p, bad
	}
	return p, nil
}

func parseSHA(rest string) (salt, sum []byte, err error) {
	bad := errors.New("malformed carillon-sha256 hash")
	s, h, ok := strings.Cut(rest, "$")
	if !ok {
		return nil, nil, bad
	}
	if salt, err = base64.RawStdEncoding.DecodeString(s); err != nil || len(salt) < 8 || len(salt) > 64 {
		return nil, nil, bad
	}
	if sum, err = base64.RawStdEncoding.DecodeString(h); err != nil || len(sum) != sha256.Size {
		return nil, nil, bad
	}
	return salt, sum, nil
}

// CheckHash says whether a ready-made password hash has a form that can be checked: argon2id, bcrypt, or
// $carillon-sha256$salt$hash for random first passwords made in bulk.
func CheckHash(encoded string) error {
	switch {
	case strings.HasPrefix(encoded, shaPrefix):
		_, _, err := parseSHA(strings.TrimPrefix(encoded, shaPrefix))
		return err
	case strings.HasPrefix(encoded, argonPrefix):
		_, err := parseArgon(encoded)
		return err
	case strings.HasPrefix(encoded, "$2"):
		cost, err := bcrypt.Cost([]byte(encoded))
		if err != nil || cost > 16 {
			return errors.New("malformed bcrypt hash")
		}
		return nil
	}
	return errors.New("unknown password hash: use argon2id, bcrypt or carillon-sha256")
}
