package derive

import (
	"context"
	"fmt"

	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/org"
)

// userJob is what has to be done to one account; several of its parts may be set.
type userJob struct {
	person *org.Person
	row    userRow
	isNew  bool
	gone   bool // has left, or has the account at another site now
	// password is the first password of a new account; reused tells that an earlier, cut off run has written it.
	password string
	reused   bool
	existed  bool // found out while registering
}

// usersPhase locks leavers, registers newcomers, opens the accounts of people who are back, and renames.
func (x *run) usersPhase(ctx context.Context) error {
	var jobs, fresh []*userJob
	for _, p := range x.tree.People() {
		x.r.mu.RLock()
		row, known := x.r.users[p.ID]
		x.r.mu.RUnlock()
		j := &userJob{person: p, row: row, isNew: !known, gone: p.Status == org.StatusLeft || x.r.siteOf(p) != ""}
		switch {
		case !known && x.r.siteOf(p) != "":
			continue
		case !known && p.Working() && p.Localpart != "":
			fresh = append(fresh, j)
		case known && j.gone && row.state != stateLocked && row.state != stateLocking,
			known && !j.gone && p.Working() && (row.state != stateOf(p) || row.state == stateActive && row.name != p.Name):
		default:
			continue
		}
		jobs = append(jobs, j)
	}
	if len(jobs) == 0 {
		return nil
	}
	if err := x.begin(ctx); err != nil {
		return err
	}
	file, err := x.r.firstPasswords(fresh)
	if err != nil {
		return err
	}
	x.report.PasswordFile = file
	x.phase("users", len(jobs))
	err = each(ctx, x, jobs, func(ctx context.Context, j *userJob) error {
		defer x.tick(1)
		if err := x.user(ctx, j); err != nil {
			return x.fail(ctx, Failure{What: "account", Who: j.person.ID}, err)
		}
		return nil
	})
	if noteErr := noteExisting(file, fresh); err == nil {
		err = noteErr
	}
	return err
}

func stateOf(p *org.Person) string {
	if p.Status == org.StatusSuspended {
		return stateSuspended
	}
	return stateActive
}

// user brings one account up to date and records it, also as far as it came when something fails on the way.
func (x *run) user(ctx context.Context, j *userJob) (err error) {
	p, mx := j.person, x.r.mx
	if j.isNew {
		if err := x.register(ctx, j); err != nil {
			return err
		}
	}
	user := mx.UserID(j.row.localpart)
	changed := j.isNew
	defer func() {
		if !changed {
			return
		}
		if saveErr := x.r.saveUser(context.WithoutCancel(ctx), j.row); err == nil {
			err = saveErr
		}
	}()
	if j.gone {
		if err := mx.LockUser(ctx, user, true); err != nil {
			return fmt.Errorf("locking: %w", err)
		}
		x.count("lock", 1)
		j.row.state, changed = stateLocking, true
		return nil
	}
	if j.row.state == stateLocked || j.row.state == stateLocking {
		if err := mx.LockUser(ctx, user, false); err != nil {
			return fmt.Errorf("unlocking: %w", err)
		}
		x.count("unlock", 1)
		j.row.state, changed = stateActive, true
	}
	want := stateOf(p)
	suspend := func() error {
		if err := mx.SuspendUser(ctx, user, want == stateSuspended); err != nil {
			return fmt.Errorf("suspending: %w", err)
		}
		x.count("suspend", 1)
		j.row.state, changed = want, true
		return nil
	}
	// A suspended account may neither be renamed nor join: it is opened before that, and closed after.
	if j.row.state == stateSuspended && want != stateSuspended {
		if err := suspend(); err != nil {
			return err
		}
	}
	if j.row.name != p.Name && j.row.state == stateActive {
		if err := mx.SetDisplayName(ctx, user, p.Name); err != nil {
			return fmt.Errorf("setting the name: %w", err)
		}
		x.count("name", 1)
		j.row.name, changed = p.Name, true
	}
	if j.row.state != want {
		return suspend()
	}
	return nil
}

func (x *run) register(ctx context.Context, j *userJob) error {
	reg := mxclient.Registration{Localpart: j.person.Localpart}
	switch {
	case j.password == "":
	case x.r.opts.PlainPasswords:
		reg.Password = j.password
	default:
		reg.PasswordHash = passwordHash(j.password)
	}
	created, err := x.r.mx.EnsureUser(ctx, reg)
	if err != nil {
		return fmt.Errorf("registering: %w", err)
	}
	if created {
		x.count("register", 1)
	}
	j.existed = !created && !j.reused
	j.row = userRow{person: j.person.ID, localpart: j.person.Localpart, state: stateActive}
	return nil
}
