package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"strings"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// localOperator speaks to a control handler of this process.
func localOperator(h http.Handler) *operator {
	return &operator{client: &http.Client{Transport: mxclient.NewHandlerTransport(h)}, close: func() error { return nil }}
}

// maxControlBody bounds the small JSON bodies of the control handlers.
const maxControlBody = 64 << 10

// control makes a handler of a function that takes JSON and answers JSON.
func control[In any](fn func(r *http.Request, in In) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in In
		if r.Method != http.MethodGet {
			if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxControlBody)).Decode(&in); err != nil {
				answer(w, nil, matrix.BadJSON("the request cannot be read: %v", err))
				return
			}
		}
		out, err := fn(r, in)
		answer(w, out, err)
	}
}

func answer(w http.ResponseWriter, out any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		var e *matrix.Error
		if !errors.As(err, &e) {
			log.WithError(err).Error("an operator's command failed")
			e = matrix.NewError(http.StatusInternalServerError, "M_UNKNOWN", "%v", err)
		}
		w.WriteHeader(e.Status)
		out = e
	}
	if out == nil {
		out = struct{}{}
	}
	if err := json.NewEncoder(w).Encode(out); err != nil {
		log.WithError(err).Debug("an operator's command went away")
	}
}

// localpart is what new accounts may be called.
// Spec: appendices#user-identifiers
var localpart = regexp.MustCompile(`^[a-z0-9._=/+-]+$`)

// userControl answers the user commands.
func (s *stack) userControl() http.Handler {
	acc := s.hs.Accounts()
	mux := http.NewServeMux()
	mux.Handle("GET /users", control(func(*http.Request, struct{}) (any, error) {
		users := acc.Users()
		list := make([]account, len(users))
		for i, u := range users {
			list[i] = asAccount(u)
		}
		return map[string]any{"users": list}, nil
	}))
	type creation struct {
		Name     string `json:"name"`
		Password string `json:"password"`
		Admin    bool   `json:"admin"`
	}
	mux.Handle("POST /users", control(func(r *http.Request, in creation) (any, error) {
		id, err := s.userID(in.Name)
		if err != nil {
			return nil, err
		}
		if !localpart.MatchString(id.Localpart()) {
			return nil, matrix.NewError(http.StatusBadRequest, "M_INVALID_USERNAME", "%q cannot be a log-in name: use a-z, 0-9 and ._=/+-", id.Localpart())
		}
		if err := s.checkPassword(in.Password); err != nil {
			return nil, err
		}
		if err := acc.Create(r.Context(), accounts.NewUser{ID: id, Password: in.Password, Admin: in.Admin}); err != nil {
			return nil, err
		}
		u, _ := acc.User(id)
		return asAccount(u), nil
	}))
	mux.Handle("POST /users/{name}/password", control(func(r *http.Request, in creation) (any, error) {
		id, err := s.knownUser(r)
		if err != nil {
			return nil, err
		}
		if err := s.checkPassword(in.Password); err != nil {
			return nil, err
		}
		return nil, acc.SetPassword(r.Context(), id, in.Password, true, "")
	}))
	type flag struct {
		On bool `json:"on"`
	}
	mux.Handle("POST /users/{name}/lock", control(func(r *http.Request, in flag) (any, error) {
		id, err := s.knownUser(r)
		if err != nil {
			return nil, err
		}
		return nil, acc.SetLocked(r.Context(), id, in.On)
	}))
	mux.Handle("POST /users/{name}/admin", control(func(r *http.Request, in flag) (any, error) {
		id, err := s.knownUser(r)
		if err != nil {
			return nil, err
		}
		return nil, acc.SetAdmin(r.Context(), id, in.On)
	}))
	return mux
}

// userID is the user of a log-in name or of a whole user ID of this server.
func (s *stack) userID(name string) (matrix.UserID, error) {
	if !strings.HasPrefix(name, "@") {
		name = "@" + name + ":" + s.cfg.ServerName
	}
	id, err := matrix.ParseUserID(name)
	if err != nil {
		return "", err
	}
	if string(id.Server()) != s.cfg.ServerName {
		return "", matrix.InvalidParam("%s is not a user of %s", id, s.cfg.ServerName)
	}
	return id, nil
}

func (s *stack) knownUser(r *http.Request) (matrix.UserID, error) {
	id, err := s.userID(r.PathValue("name"))
	if err != nil {
		return "", err
	}
	if !s.hs.Accounts().Active(id) {
		return "", matrix.NotFound("there is no account %s", id)
	}
	return id, nil
}

func (s *stack) checkPassword(password string) error {
	if n := len([]rune(password)); n < s.cfg.Homeserver.Passwords.MinLength {
		return matrix.NewError(http.StatusBadRequest, "M_WEAK_PASSWORD", "the password is too short: use %d characters or more", s.cfg.Homeserver.Passwords.MinLength)
	}
	return nil
}
