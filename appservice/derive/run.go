package derive

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/appservice/mxclient"
	"github.com/carillon-chat/carillon/appservice/org"
	log "github.com/sirupsen/logrus"
)

// run is one reconciliation.
type run struct {
	r       *Reconciler
	tree    *org.Tree
	wish    *wish
	state   stateRow
	heal    bool // bring back who left by himself
	members map[string]map[string]memberRow
	adopted map[string]bool              // rooms found by their alias in this run, or taken over
	born    map[string]bool              // rooms made in this run with the place in their space
	bots    map[string]map[string]string // states of other sites' bots, by room
	down    map[string]bool              // sites that have not answered in this run

	progress func(Progress)

	mu        sync.Mutex
	report    *Report
	begun     bool
	unclear   int // operations that failed without a clear answer, since the last success
	cancel    context.CancelCauseFunc
	at        Progress
	lastShown time.Time
}

// maxFailures bounds the failures that a report lists.
const maxFailures = 100

func (r *Reconciler) reconcile(ctx context.Context, tree *org.Tree, progress func(Progress), seen *sight) (*Report, error) {
	start := time.Now()
	x := &run{
		r: r, tree: tree, heal: seen != nil, progress: progress, adopted: map[string]bool{}, born: map[string]bool{}, down: map[string]bool{},
		report: &Report{ByKind: map[string]int{}},
	}
	if seen != nil {
		x.report.Strangers = seen.strangers
	}
	var err error
	if x.state, err = r.readState(ctx); err != nil {
		return nil, err
	}
	if x.members, err = r.readMembers(ctx); err != nil {
		return nil, err
	}
	x.wish = desire(tree, &r.opts, r.account, r.place())
	r.mu.Lock()
	r.last = x.wish
	r.mu.Unlock()

	ctx, x.cancel = context.WithCancelCause(ctx)
	defer x.cancel(nil)
	for _, phase := range []func(context.Context) error{x.bot, x.usersPhase, x.adopt, x.roomsPhase, r.tellRooms, x.membersPhase, x.sitesPhase} {
		if err = phase(ctx); err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			break
		}
	}
	x.report.Took = time.Since(start)
	if err != nil {
		return x.report, fmt.Errorf("reconciling rooms: %w", err)
	}
	if x.report.Failed > 0 {
		return x.report, fmt.Errorf("%w: %d, the first: %s: %s", ErrIncomplete, x.report.Failed, x.report.Failures[0].What, x.report.Failures[0].Error)
	}
	if x.begun || !x.state.clean || x.state.version != tree.Version {
		if err := r.exec(ctx, "recording the end of a run", qSetVersion, tree.Version); err != nil {
			return x.report, err
		}
	}
	return x.report, nil
}

// begin is called before the first operation: from here on a run that does not end leaves a mark.
func (x *run) begin(ctx context.Context) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.begun {
		return nil
	}
	if x.state.clean {
		if err := x.r.exec(ctx, "recording the begin of a run", qSetClean, false); err != nil {
			return err
		}
	}
	x.begun = true
	return nil
}

// bot makes sure of the bot's account and name.
func (x *run) bot(ctx context.Context) error {
	name := x.r.opts.BotName
	if x.state.bot == name {
		return nil
	}
	if err := x.begin(ctx); err != nil {
		return err
	}
	bot := x.r.mx.BotID()
	if _, err := x.r.mx.EnsureUser(ctx, mxclient.Registration{Localpart: bot.Localpart()}); err != nil {
		return fmt.Errorf("registering the bot: %w", err)
	}
	if err := x.r.mx.SetDisplayName(ctx, bot, name); err != nil {
		return fmt.Errorf("naming the bot: %w", err)
	}
	x.count("bot", 2)
	return x.r.exec(ctx, "recording the bot", qSetBot, name)
}

// count adds operations that succeeded.
func (x *run) count(kind string, n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.report.Operations += n
	x.report.ByKind[kind] += n
	x.unclear = 0
}

// fail writes a failure down. It returns an error when the run should end: by its context, or because the
// homeserver gives no clear answers any more.
func (x *run) fail(ctx context.Context, f Failure, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	f.Error = err.Error()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.report.Failed++
	if len(x.report.Failures) < maxFailures {
		x.report.Failures = append(x.report.Failures, f)
	}
	if mxclient.IsPermanent(err) {
		return nil
	}
	if x.unclear++; x.unclear > x.r.opts.Concurrency {
		return fmt.Errorf("the homeserver does not answer: %w", err)
	}
	return nil
}

// phase begins to count progress anew.
func (x *run) phase(name string, total int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.at = Progress{Phase: name, Total: total}
	x.show(true)
}

func (x *run) tick(n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.at.Done += n
	x.show(x.at.Done >= x.at.Total)
}

// show reports progress, at most ten times a second. The lock is held.
func (x *run) show(force bool) {
	if x.progress == nil {
		return
	}
	if now := time.Now(); force || now.Sub(x.lastShown) > 100*time.Millisecond {
		x.lastShown = now
		x.progress(x.at)
	}
}

var errPanicked = errors.New("panic in a run")

// each does the jobs, so many at a time. It ends at the first error a job returns; failures that should not end the
// run go through fail instead.
func each[T any](ctx context.Context, x *run, jobs []T, do func(context.Context, T) error) error {
	if len(jobs) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan T) // without room: a job is taken when somebody can do it
	var wg sync.WaitGroup
	for range min(x.r.opts.Concurrency, len(jobs)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() {
				if p := recover(); p != nil {
					log.WithField("panic", p).Errorf("reconciling rooms\n%s", debug.Stack())
					cancel(errPanicked)
				}
			}()
			for j := range next {
				if err := do(ctx, j); err != nil {
					cancel(err)
					return
				}
			}
		}()
	}
	func() {
		defer close(next)
		for _, j := range jobs {
			select {
			case next <- j:
			case <-ctx.Done():
				return
			}
		}
	}()
	wg.Wait()
	return context.Cause(ctx)
}
