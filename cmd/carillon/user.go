package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/carillon-chat/carillon/config"
	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

type userCmd struct {
	Create   userCreateCmd   `cmd:"" help:"Make an account."`
	Password userPasswordCmd `cmd:"" help:"Give an account a new password; all its devices are logged out."`
	List     userListCmd     `cmd:"" help:"List the accounts."`
	Lock     userLockCmd     `cmd:"" help:"Shut an account out; its devices are kept."`
	Unlock   userUnlockCmd   `cmd:"" help:"Let a locked account in again."`
	Admin    userAdminCmd    `cmd:"" help:"Make an account a server administrator."`
}

// Help shows examples.
func (userCmd) Help() string {
	return "The commands speak to the running server, or open the data folder if none runs. People of the company file get their accounts from it.\n\n" +
		"Examples:\n  carillon user create chief --admin\n  carillon user password wang --random\n  carillon user list\n  carillon user lock wang"
}

// account is an account as the control handler and the list show it.
type account struct {
	ID          string `json:"user_id"`
	Created     int64  `json:"created_ts"`
	Service     string `json:"appservice,omitempty"`
	Admin       bool   `json:"admin,omitempty"`
	Guest       bool   `json:"guest,omitempty"`
	Locked      bool   `json:"locked,omitempty"`
	Suspended   bool   `json:"suspended,omitempty"`
	Deactivated bool   `json:"deactivated,omitempty"`
	HasPassword bool   `json:"has_password,omitempty"`
}

func asAccount(u accounts.User) account {
	return account{
		ID: string(u.ID), Created: u.Created.UnixMilli(), Service: u.AppService, Admin: u.Admin, Guest: u.Guest,
		Locked: u.Locked, Suspended: u.Suspended, Deactivated: u.Deactivated, HasPassword: u.HasPassword,
	}
}

// passwordFlags is how a password is given: never on the command line, where every
// user of the machine can read it.
type passwordFlags struct {
	Random bool `help:"Make a random password and print it."`
}

func (p passwordFlags) read(a *app) (password string, err error) {
	if p.Random {
		b := make([]byte, 10)
		rand.Read(b)
		return strings.ToLower(base32.StdEncoding.EncodeToString(b)), nil
	}
	if f, ok := a.stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return p.ask(a, int(f.Fd()))
	}
	line, err := bufio.NewReader(a.stdin).ReadString('\n')
	if line == "" && err != nil {
		return "", usagef("no password on standard input: write one line, or use --random")
	}
	return strings.TrimRight(line, "\r\n"), nil
}

func (passwordFlags) ask(a *app, fd int) (string, error) {
	fmt.Fprint(a.stderr, "Password: ")
	first, err := term.ReadPassword(fd)
	if err != nil {
		return "", fmt.Errorf("reading the password: %w", err)
	}
	fmt.Fprint(a.stderr, "\nOnce more: ")
	second, err := term.ReadPassword(fd)
	fmt.Fprintln(a.stderr)
	if err != nil {
		return "", fmt.Errorf("reading the password: %w", err)
	}
	if string(first) != string(second) {
		return "", refused{errors.New("the two passwords differ")}
	}
	return string(first), nil
}

type userCreateCmd struct {
	Name  string `arg:"" help:"Log-in name (chief) or user (@chief:example.org)."`
	Admin bool   `help:"Make it a server administrator."`
	passwordFlags
}

// Run makes an account.
func (c userCreateCmd) Run(a *app) error {
	return a.withUsers(func(ctx context.Context, o *operator) error {
		password, err := c.read(a)
		if err != nil {
			return err
		}
		var made account
		in := map[string]any{"name": c.Name, "password": password, "admin": c.Admin}
		if err := o.do(ctx, http.MethodPost, "/users", in, &made); err != nil {
			return asRefused(err)
		}
		a.printf("%s\n", made.ID)
		if c.Random {
			a.printf("%s\n", password)
		}
		return nil
	})
}

type userPasswordCmd struct {
	Name string `arg:"" help:"Log-in name or user."`
	passwordFlags
}

// Run sets a password.
func (c userPasswordCmd) Run(a *app) error {
	return a.withUsers(func(ctx context.Context, o *operator) error {
		password, err := c.read(a)
		if err != nil {
			return err
		}
		if err := o.do(ctx, http.MethodPost, "/users/"+url.PathEscape(c.Name)+"/password", map[string]any{"password": password}, nil); err != nil {
			return asRefused(err)
		}
		if c.Random {
			a.printf("%s\n", password)
		}
		return nil
	})
}

type userListCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Run lists the accounts.
func (c userListCmd) Run(a *app) error {
	return a.withUsers(func(ctx context.Context, o *operator) error {
		if c.JSON {
			var b []byte
			if err := o.do(ctx, http.MethodGet, "/users", nil, &b); err != nil {
				return err
			}
			a.printf("%s\n", b)
			return nil
		}
		var list struct {
			Users []account `json:"users"`
		}
		if err := o.do(ctx, http.MethodGet, "/users", nil, &list); err != nil {
			return err
		}
		var t table
		for _, u := range list.Users {
			t.add(u.ID, strings.Join(u.notes(), ", "))
		}
		return t.write(a.stdout)
	})
}

func (u *account) notes() []string {
	var notes []string
	for _, n := range []struct {
		is   bool
		word string
	}{
		{u.Admin, "administrator"},
		{u.Guest, "guest"},
		{u.Locked, "locked"},
		{u.Suspended, "suspended"},
		{u.Deactivated, "deactivated"},
		{!u.HasPassword && u.Service == "" && !u.Deactivated && !u.Guest, "no password"},
		{u.Service != "", "made by " + u.Service},
	} {
		if n.is {
			notes = append(notes, n.word)
		}
	}
	return notes
}

type userLockCmd struct {
	Name string `arg:"" help:"Log-in name or user."`
}

// Run locks an account.
func (c userLockCmd) Run(a *app) error { return a.setUser(c.Name, "lock", true) }

type userUnlockCmd struct {
	Name string `arg:"" help:"Log-in name or user."`
}

// Run unlocks an account.
func (c userUnlockCmd) Run(a *app) error { return a.setUser(c.Name, "lock", false) }

type userAdminCmd struct {
	Name   string `arg:"" help:"Log-in name or user."`
	Revoke bool   `help:"Make it an ordinary account again."`
}

// Run makes or unmakes an administrator.
func (c userAdminCmd) Run(a *app) error { return a.setUser(c.Name, "admin", !c.Revoke) }

func (a *app) setUser(name, what string, on bool) error {
	return a.withUsers(func(ctx context.Context, o *operator) error {
		return asRefused(o.do(ctx, http.MethodPost, "/users/"+url.PathEscape(name)+"/"+what, map[string]any{"on": on}, nil))
	})
}

// asRefused makes the server's no to a request one that scripts can tell from a failure.
func asRefused(err error) error {
	var e *apiError
	if errors.As(err, &e) && e.Status >= 400 && e.Status < 500 {
		return refused{err}
	}
	return err
}

// withUsers runs fn against the running homeserver, or against the data folder.
func (a *app) withUsers(fn func(context.Context, *operator) error) error {
	return a.withOperator(homeserverSocket, func(*config.Config) parts { return parts{homeserver: true} }, (*stack).userControl, fn)
}

// withOperator gives fn a way to a control handler: of the running server if there is
// one, else of one that is built from the data folder for this command alone.
func (a *app) withOperator(socket string, p func(*config.Config) parts, control func(*stack) http.Handler, fn func(context.Context, *operator) error) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	o, err := dialOperator(cfg.DataDir, socket)
	if err != nil {
		return err
	}
	if o != nil {
		defer o.close()
		return fn(a.ctx, o)
	}
	if cfg.Log.Level == config.Default().Log.Level {
		cfg.Log.Level = "warn" // the command's own output is what people want to read
	}
	setUpLog(a.stderr, cfg.Log)
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	s, err := build(a.ctx, cfg, p(cfg))
	if errors.Is(err, sqldb.ErrInUse) {
		// A server that is just starting owns the data before it listens.
		o, dialErr := awaitOperator(a.ctx, cfg.DataDir, socket)
		if dialErr != nil || o == nil {
			return errors.Join(err, dialErr)
		}
		defer o.close()
		return fn(a.ctx, o)
	}
	if err != nil {
		return err
	}
	defer s.close()
	broken := make(chan error, 1)
	stop := s.start(func(err error) {
		select {
		case broken <- err:
		default:
		}
	})
	ctx, cancel := context.WithCancelCause(a.ctx)
	defer cancel(nil)
	go func() {
		select {
		case err := <-broken:
			cancel(err)
		case <-ctx.Done():
		}
	}()
	err = fn(ctx, localOperator(control(s)))
	stop()
	return err
}
