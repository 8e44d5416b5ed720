package threepids

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// purpose is what a proof is for: it serves nothing else.
type purpose string

const (
	forRegistration purpose = "register"
	forPassword     purpose = "password"
	forAccount      purpose = "account"
)

// session is a proof under way.
type session struct {
	sid        string
	secretHash []byte
	medium     string
	address    string
	purpose    purpose
	user       matrix.UserID // who asked, if they had a token
	attempt    int64
	nextLink   string
	tokenHash  []byte
	codeHash   []byte
	dud        bool
	tries      int64
	expires    int64
	validated  int64 // 0: not yet
	usedBy     string
}

// demand is a request for a message with a code and a link.
type demand struct {
	medium, address string
	purpose         purpose
	secret          string
	user            matrix.UserID
	attempt         int64
	nextLink        string
	client          string // the client's network address
	lang            string
}

const (
	maxTries   = 5 // of a code, which has six digits
	codeDigits = 6
)

func hash(parts ...string) []byte {
	h := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return h[:]
}

func same(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }

func scanSession(scan func(...any) error) (*session, error) {
	s := &session{}
	err := scan(&s.sid, &s.secretHash, &s.medium, &s.address, &s.purpose, &s.user, &s.attempt, &s.nextLink, &s.tokenHash, &s.codeHash,
		&s.dud, &s.tries, &s.expires, &s.validated, &s.usedBy)
	return s, err
}

// validSecret checks the grammar of client secrets and session IDs.
//
// Spec: client-server-api#post_matrixclientv3registeremailrequesttoken
func validSecret(s string) bool {
	if s == "" || len(s) > 255 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && strings.IndexByte(".=_-", c) < 0 {
			return false
		}
	}
	return true
}

// ask answers a demand: it sends a message unless that was done already, and gives the session's ID.
func (t *Threepids) ask(ctx context.Context, d demand) (sid string, err error) {
	secret := hash("secret", d.secret)
	unlock, err := t.busy.LockContext(ctx, string(secret)+d.address)
	if err != nil {
		return "", err
	}
	defer unlock()
	now := t.opts.Now()
	s, err := t.same(ctx, secret, d)
	if err != nil {
		return "", err
	}
	if s != nil && s.expires < matrix.Millis(now) {
		if err := t.end(ctx, s.sid); err != nil {
			return "", err
		}
		s = nil
	}
	if s != nil && (s.attempt >= d.attempt || s.validated != 0) {
		return s.sid, nil
	}
	if err := t.limit(d); err != nil {
		return "", err
	}
	owner, err := t.UserOf(ctx, d.medium, d.address)
	if err != nil {
		return "", err
	}
	dud := (d.purpose == forPassword) == (owner == "")
	if dud && d.purpose == forAccount && owner == d.user {
		return "", inUse() // their own: there is nothing to hide
	}
	token, code := matrix.RandomString(43), newCode()
	if s, err = t.store(ctx, s, d, secret, dud, token, code, now); err != nil {
		return "", err
	}
	if err := t.send(ctx, s, d.lang, token, code); err != nil {
		return "", err
	}
	err = t.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qSent, s.sid, d.attempt)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("storing validation session: %w", err)
	}
	return s.sid, nil
}

// limit bounds the messages to one address and for one client.
func (t *Threepids) limit(d demand) error {
	if ok, retry := t.client.Allow(d.client); !ok {
		return matrix.LimitExceeded(retry)
	}
	if ok, retry := t.address.Allow(d.medium + ":" + d.address); !ok {
		return matrix.LimitExceeded(retry)
	}
	return nil
}

// same finds the session that an earlier demand has begun, nil if there is none.
func (t *Threepids) same(ctx context.Context, secret []byte, d demand) (*session, error) {
	var s *session
	err := t.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		s, err = scanSession(tx.QueryRow(qSame, secret, d.medium, d.address, string(d.purpose)).Scan)
		return err
	})
	if errors.Is(err, sqldb.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading validation session: %w", err)
	}
	return s, nil
}

// store begins a session, or gives one a new token and code: those sent before are no longer good.
func (t *Threepids) store(ctx context.Context, old *session, d demand, secret []byte, dud bool, token, code string, now time.Time) (*session, error) {
	s := &session{
		secretHash: secret, medium: d.medium, address: d.address, purpose: d.purpose, user: d.user, nextLink: d.nextLink, dud: dud,
		expires: matrix.Millis(now.Add(sessionLifetime)),
	}
	if old == nil {
		s.sid = matrix.RandomString(32)
	} else {
		s.sid = old.sid
	}
	s.tokenHash, s.codeHash = hash("token", s.sid, token), hash("code", s.sid, code)
	err := t.db.Write(ctx, func(tx *sqldb.Tx) error {
		if old != nil {
			_, err := tx.Exec(qAnew, s.sid, s.nextLink, s.tokenHash, s.codeHash, s.dud, string(s.user), s.expires)
			return err
		}
		_, err := tx.Exec(qNew, s.sid, s.secretHash, s.medium, s.address, string(s.purpose), string(s.user), s.nextLink, s.tokenHash,
			s.codeHash, s.dud, s.expires)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("storing validation session: %w", err)
	}
	return s, nil
}

// newCode is six digits, which people can type.
func newCode() string {
	n, err := rand.Int(rand.Reader, big.NewInt(1_000_000))
	if err != nil {
		panic(err) // the system has no randomness: nothing is safe
	}
	return fmt.Sprintf("%0*d", codeDigits, n)
}

func noSession() *matrix.Error {
	return matrix.NewError(http.StatusNotFound, "M_NO_VALID_SESSION", "there is no such validation session")
}

func wrongToken() *matrix.Error {
	return matrix.NewError(http.StatusBadRequest, "M_TOKEN_INCORRECT", "the token is not right, or there were too many wrong ones")
}

// read finds a session that has not expired.
func (t *Threepids) read(ctx context.Context, sid string) (*session, error) {
	if !validSecret(sid) {
		return nil, noSession()
	}
	var s *session
	err := t.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		s, err = scanSession(tx.QueryRow(qSession, sid).Scan)
		return err
	})
	switch {
	case errors.Is(err, sqldb.ErrNoRows):
		return nil, noSession()
	case err != nil:
		return nil, fmt.Errorf("reading validation session: %w", err)
	case s.expires < matrix.Millis(t.opts.Now()):
		return nil, matrix.NewError(http.StatusBadRequest, "M_SESSION_EXPIRED", "the validation session has expired")
	}
	return s, nil
}

// submit proves an address with what was sent to it: the link's token, or the code together with the client's secret.
// fromLink says that only the token counts.
func (t *Threepids) submit(ctx context.Context, sid, secret, token string, fromLink bool) (*session, error) {
	unlock, err := t.busy.LockContext(ctx, sid)
	if err != nil {
		return nil, err
	}
	defer unlock()
	s, err := t.read(ctx, sid)
	if err != nil {
		return nil, err
	}
	if !fromLink && !same(s.secretHash, hash("secret", secret)) {
		return nil, noSession()
	}
	good := same(s.tokenHash, hash("token", s.sid, token))
	if !good && !fromLink {
		if s.tries >= maxTries {
			return nil, wrongToken()
		}
		good = same(s.codeHash, hash("code", s.sid, strings.TrimSpace(token)))
	}
	now := t.opts.Now()
	err = t.db.Write(ctx, func(tx *sqldb.Tx) (err error) {
		switch {
		case !good || s.dud:
			_, err = tx.Exec(qTried, s.sid)
		case s.validated == 0:
			_, err = tx.Exec(qValidated, s.sid, matrix.Millis(now), matrix.Millis(now.Add(sessionLifetime)))
		}
		return err
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("storing validation session: %w", err)
	case !good || s.dud:
		return nil, wrongToken()
	case s.validated == 0:
		s.validated = matrix.Millis(now)
	}
	return s, nil
}

// failed says that an address is not proven, in whatever way.
func failed() *matrix.Error {
	return matrix.NewError(http.StatusBadRequest, "M_THREEPID_AUTH_FAILED", "the address has not been proven, or its proof serves something else")
}

// use takes a proof for what it was made for; by names the use, as only one of them is possible.
func (t *Threepids) use(ctx context.Context, sid, secret, medium string, p purpose, user matrix.UserID, by string) (*session, error) {
	s, err := t.proven(ctx, sid, secret, medium, p, user)
	if err != nil {
		return nil, err
	}
	var n int64
	err = t.db.Write(ctx, func(tx *sqldb.Tx) (err error) {
		n, err = tx.Exec(qUse, s.sid, by)
		return err
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("using validation session: %w", err)
	case n == 0:
		return nil, failed()
	}
	return s, nil
}

// proven finds a proof; medium "" is any.
func (t *Threepids) proven(ctx context.Context, sid, secret, medium string, p purpose, user matrix.UserID) (*session, error) {
	s, err := t.read(ctx, sid)
	if err != nil {
		var e *matrix.Error
		if errors.As(err, &e) {
			return nil, failed()
		}
		return nil, err
	}
	if !same(s.secretHash, hash("secret", secret)) || s.validated == 0 || s.purpose != p || medium != "" && s.medium != medium ||
		s.user != "" && user != "" && s.user != user {
		return nil, failed()
	}
	return s, nil
}

func (t *Threepids) end(ctx context.Context, sid string) error {
	err := t.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qEnd, sid)
		return err
	})
	if err != nil {
		return fmt.Errorf("ending validation session: %w", err)
	}
	return nil
}
