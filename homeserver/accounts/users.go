package accounts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// User is a local account. Values are copies: changing one changes nothing.
type User struct {
	ID          matrix.UserID
	Created     time.Time
	AppService  string // ID of the application service that made it
	Admin       bool   // by the database; see IsAdmin for the configuration too
	Guest       bool
	Locked      bool
	Suspended   bool
	Deactivated bool
	Erased      bool
	HasPassword bool
}

// NewUser is an account to be made. At most one of Password and PasswordHash is set; with neither nobody can log
// in by password.
type NewUser struct {
	ID           matrix.UserID
	Password     string
	PasswordHash string // ready-made; see CheckHash
	Admin        bool
	Guest        bool
	AppService   string
	DisplayName  string // given to the OnCreate hooks
	// RegistrationToken is counted as used in the same transaction.
	RegistrationToken string
	// Also joins the transaction, which may run twice; its error leaves the account unmade.
	Also func(tx *sqldb.Tx) error
	// Evidence is what the stages of the registration have proven, by their type.
	Evidence map[string]string
}

func (a *Accounts) load(ctx context.Context) error {
	var list []*User
	err := a.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		list, err = sqldb.Select(tx, func(r *sqldb.Rows) (*User, error) {
			u := new(User)
			var created int64
			err := r.Scan(&u.ID, &created, &u.AppService, &u.Admin, &u.Guest, &u.Locked, &u.Suspended, &u.Deactivated, &u.Erased,
				&u.HasPassword)
			u.Created = time.UnixMilli(created)
			return u, err
		}, qUsers)
		return err
	})
	for _, u := range list {
		a.users[u.ID] = u
	}
	return err
}

// User is a local account.
func (a *Accounts) User(id matrix.UserID) (User, bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if u := a.users[id]; u != nil {
		return *u, true
	}
	return User{}, false
}

// IsGuest says whether a user is a guest. It asks no database.
func (a *Accounts) IsGuest(id matrix.UserID) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	u := a.users[id]
	return u != nil && u.Guest
}

// Guests lists the guests. It looks at all accounts.
func (a *Accounts) Guests() (list []matrix.UserID) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for id, u := range a.users {
		if u.Guest && !u.Deactivated {
			list = append(list, id)
		}
	}
	return list
}

// Exists says whether a local account was ever made under this ID, be it closed or not. It asks no database.
func (a *Accounts) Exists(id matrix.UserID) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.users[id] != nil
}

// Active says whether the account exists and is not deactivated.
func (a *Accounts) Active(id matrix.UserID) bool {
	u, ok := a.User(id)
	return ok && !u.Deactivated
}

// IsAdmin says whether the user administers this server, by the database or the configuration.
func (a *Accounts) IsAdmin(id matrix.UserID) bool {
	if a.admins[id] {
		return true
	}
	u, ok := a.User(id)
	return ok && u.Admin && !u.Deactivated
}

// Users lists the accounts in the order of their IDs.
func (a *Accounts) Users() []User {
	a.mu.RLock()
	list := make([]User, 0, len(a.users))
	for _, u := range a.users {
		list = append(list, *u)
	}
	a.mu.RUnlock()
	slices.SortFunc(list, func(x, y User) int { return strings.Compare(string(x.ID), string(y.ID)) })
	return list
}

// Create makes an account. M_USER_IN_USE says that the ID is taken.
func (a *Accounts) Create(ctx context.Context, nu NewUser) error {
	return a.create(ctx, nu, nil)
}

// create makes an account and, with login, its first session in the same commit.
func (a *Accounts) create(ctx context.Context, nu NewUser, login *login) error {
	hash := nu.PasswordHash
	if nu.Password != "" {
		var err error
		if hash, err = a.hasher.hash(ctx, nu.Password); err != nil {
			return err
		}
	}
	if !a.reserve(nu.ID) {
		return userInUse(nu.ID)
	}
	now := a.now()
	err := a.db.Write(ctx, func(tx *sqldb.Tx) error {
		if nu.RegistrationToken != "" {
			n, err := tx.Exec(qUseRegToken, nu.RegistrationToken)
			if err != nil {
				return err
			}
			if n == 0 {
				return matrix.Forbidden("the registration token is used up")
			}
		}
		if _, err := tx.Exec(qInsertUser, string(nu.ID), matrix.Millis(now), hash, nu.AppService, nu.Admin, nu.Guest); err != nil {
			return err
		}
		if err := a.registered(tx, nu, now); err != nil {
			return err
		}
		if nu.Also != nil {
			if err := nu.Also(tx); err != nil {
				return err
			}
		}
		if login != nil {
			return a.issue(tx, login)
		}
		return nil
	})
	a.mu.Lock()
	delete(a.reserved, nu.ID)
	if err == nil {
		a.users[nu.ID] = &User{
			ID: nu.ID, Created: time.UnixMilli(matrix.Millis(now)), AppService: nu.AppService, Admin: nu.Admin, Guest: nu.Guest,
			HasPassword: hash != "",
		}
	}
	a.mu.Unlock()
	if errors.Is(err, sqldb.ErrExists) {
		return userInUse(nu.ID)
	}
	if err != nil {
		return fmt.Errorf("creating account: %w", err)
	}
	for _, fn := range a.onCreate {
		if err := fn(ctx, nu.ID, nu.DisplayName); err != nil {
			log.WithError(err).WithField("user_id", nu.ID).Warn("after creating an account")
		}
	}
	return nil
}

// registered keeps what a registration has proven, in the transaction that makes the account.
func (a *Accounts) registered(tx *sqldb.Tx, nu NewUser, now time.Time) error {
	if versions := nu.Evidence[StageTerms]; versions != "" {
		var m map[string]string
		if err := json.Unmarshal([]byte(versions), &m); err != nil {
			return err
		}
		for _, policy := range slices.Sorted(maps.Keys(m)) {
			if _, err := tx.Exec(qAccept, string(nu.ID), policy, m[policy], matrix.Millis(now)); err != nil {
				return err
			}
		}
	}
	if len(nu.Evidence) == 0 || a.contacts.Registered == nil {
		return nil
	}
	return a.contacts.Registered(tx, nu.ID, nu.Evidence)
}

// reserve takes a user ID for a registration under way, so that the database never sees two of them.
func (a *Accounts) reserve(id matrix.UserID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.users[id] != nil || a.reserved[id] {
		return false
	}
	a.reserved[id] = true
	return true
}

func userInUse(id matrix.UserID) *matrix.Error {
	return matrix.NewError(400, "M_USER_IN_USE", "%s is taken", id)
}

// change replaces the user in memory and drops the sessions that were built from the old one. Call it after the
// commit.
func (a *Accounts) change(id matrix.UserID, fn func(u *User)) {
	a.mu.Lock()
	if old := a.users[id]; old != nil {
		u := *old
		fn(&u)
		a.users[id] = &u
	}
	a.mu.Unlock()
	a.sessions.dropUser(id, nil)
}

// setFlags stores and applies a change of the admin, locked and suspended flags.
func (a *Accounts) setFlags(ctx context.Context, id matrix.UserID, fn func(u *User)) error {
	u, ok := a.User(id)
	if !ok || u.Deactivated {
		return matrix.NotFound("no user %s", id)
	}
	fn(&u)
	err := a.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qSetFlags, string(id), u.Admin, u.Locked, u.Suspended)
		return err
	})
	if err != nil {
		return fmt.Errorf("changing account: %w", err)
	}
	a.change(id, fn)
	return nil
}

// SetAdmin makes a user a server administrator or an ordinary user.
func (a *Accounts) SetAdmin(ctx context.Context, id matrix.UserID, admin bool) error {
	return a.setFlags(ctx, id, func(u *User) { u.Admin = admin })
}

// SetLocked locks or unlocks an account: its sessions stay, but may do nothing until it is unlocked.
func (a *Accounts) SetLocked(ctx context.Context, id matrix.UserID, locked bool) error {
	return a.setFlags(ctx, id, func(u *User) { u.Locked = locked })
}

// SetSuspended suspends an account or lifts its suspension.
func (a *Accounts) SetSuspended(ctx context.Context, id matrix.UserID, suspended bool) error {
	return a.setFlags(ctx, id, func(u *User) { u.Suspended = suspended })
}

// SetPassword gives an account a new password. With logout, all devices but keep are removed.
func (a *Accounts) SetPassword(ctx context.Context, id matrix.UserID, password string, logout bool, keep matrix.DeviceID) error {
	if err := a.checkPassword(password); err != nil {
		return err
	}
	hash, err := a.hasher.hash(ctx, password)
	if err != nil {
		return err
	}
	var n int64
	err = a.db.Write(ctx, func(tx *sqldb.Tx) (err error) {
		if n, err = tx.Exec(qSetPassword, string(id), hash); err != nil || n == 0 {
			return err
		}
		for _, fn := range a.onPassword {
			if err := fn(tx, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("storing password: %w", err)
	}
	if n == 0 {
		return matrix.NotFound("no user %s", id)
	}
	a.mu.Lock()
	if old := a.users[id]; old != nil {
		u := *old
		u.HasPassword = true
		a.users[id] = &u
	}
	a.mu.Unlock()
	if !logout {
		return nil
	}
	return a.devices.DeleteOthers(ctx, id, keep)
}

const maxPassword = 512

func (a *Accounts) checkPassword(password string) error {
	switch {
	case password == "":
		return matrix.MissingParam("a password is needed")
	case len(password) > maxPassword:
		return matrix.InvalidParam("a password may have %d bytes at most", maxPassword)
	case len([]rune(password)) < a.opts.MinPassword:
		return matrix.NewError(400, "M_WEAK_PASSWORD", "a password needs %d characters at least", a.opts.MinPassword)
	}
	return nil
}

// validLocalpart checks the grammar of new user IDs.
//
// Spec: appendices#user-identifiers
func validLocalpart(s string) bool {
	if s == "" || len(s) > 255 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune("._=-/+", rune(c)) {
			return false
		}
	}
	return true
}

// newUserID makes the user ID for a wanted user name, which capitals do not change.
func (a *Accounts) newUserID(username string) (matrix.UserID, error) {
	username = strings.ToLower(username)
	id := matrix.NewUserID(username, a.opts.ServerName)
	if !validLocalpart(username) || len(id) > 255 {
		return "", matrix.NewError(400, "M_INVALID_USERNAME", "a user name has letters a-z, digits and . _ = - / + only, 255 bytes with the server name")
	}
	return id, nil
}

// Local is the local account of a localpart or a user ID, capitals aside.
func (a *Accounts) Local(name string) (User, bool) { return a.localUser(name) }

// localUser finds the local account that a log-in means by a localpart or a full ID.
func (a *Accounts) localUser(s string) (User, bool) {
	id := matrix.UserID(s)
	if !strings.HasPrefix(s, "@") {
		id = matrix.NewUserID(s, a.opts.ServerName)
	}
	if u, ok := a.User(id); ok {
		return u, true
	}
	return a.User(matrix.UserID(strings.ToLower(string(id))))
}
