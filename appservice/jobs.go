package appservice

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/appservice/derive"
	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// JobState is how far a job has come.
type JobState string

// The states of a job.
const (
	JobQueued  JobState = "queued"
	JobRunning JobState = "running"
	JobDone    JobState = "done"
	JobFailed  JobState = "failed" // wholly or in parts; it is tried again by itself
)

// JobStatus is a look at a job.
type JobStatus struct {
	ID        string           `json:"id"`
	State     JobState         `json:"state"`
	Verify    bool             `json:"verify"`
	CreatedAt int64            `json:"created_at"`
	StartedAt int64            `json:"started_at,omitempty"`
	EndedAt   int64            `json:"ended_at,omitempty"`
	Version   int64            `json:"tree_version,omitempty"`
	Progress  *derive.Progress `json:"progress,omitempty"`
	Report    *derive.Report   `json:"report,omitempty"`
	Error     string           `json:"error,omitempty"`
}

// Job is one run of the rooms after the tree.
type Job struct {
	done chan struct{}

	mu     sync.Mutex
	status JobStatus
}

// Done is closed when the job has ended.
func (j *Job) Done() <-chan struct{} { return j.done }

// Status is how the job stands.
func (j *Job) Status() JobStatus {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.status
	if s.Progress != nil {
		p := *s.Progress
		s.Progress = &p
	}
	return s
}

func (j *Job) update(f func(*JobStatus)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f(&j.status)
}

// maxJobs is how many jobs are remembered.
const maxJobs = 100

// jobs is the queue: one job runs at a time, and a waiting one stands for all that ask for the same.
type jobs struct {
	mu    sync.Mutex
	list  []*Job
	ready chan struct{} // capacity one: a ring not heard yet stands for all that follow
	now   func() time.Time
}

// submit queues a job, or finds the waiting one that will do as well.
func (q *jobs) submit(verify bool) *Job {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, j := range q.list {
		if s := j.Status(); s.State == JobQueued && (s.Verify || !verify) {
			return j
		}
	}
	j := &Job{done: make(chan struct{}), status: JobStatus{
		ID: matrix.RandomString(12), State: JobQueued, Verify: verify, CreatedAt: q.now().UnixMilli(),
	}}
	q.list = append(q.list, j)
	if len(q.list) > maxJobs {
		q.list = q.list[1:]
	}
	select {
	case q.ready <- struct{}{}:
	default:
	}
	return j
}

func (q *jobs) find(id string) *Job {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, j := range q.list {
		if j.Status().ID == id {
			return j
		}
	}
	return nil
}

// next is the first waiting job, marked as running.
func (q *jobs) next() *Job {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, j := range q.list {
		if j.Status().State == JobQueued {
			j.update(func(s *JobStatus) { s.State, s.StartedAt = JobRunning, q.now().UnixMilli() })
			return j
		}
	}
	return nil
}

// Reconcile queues a run that makes the rooms follow the current tree; verify compares with the homeserver first.
// It runs while Run does.
func (s *Service) Reconcile(verify bool) *Job { return s.jobs.submit(verify) }

// Job finds a job by its ID, nil if it is not remembered.
func (s *Service) Job(id string) *Job { return s.jobs.find(id) }

// The waits before a failed run is tried again.
const (
	firstRetry = 2 * time.Second
	lastRetry  = 10 * time.Minute
)

// runJobs runs the queued jobs one after another, tries failed ones again, and lets the calendar have its say at
// midnight.
func (s *Service) runJobs(ctx context.Context) {
	if err := s.startJobs(ctx); err != nil && ctx.Err() == nil {
		log.WithError(err).Error("looking for unfinished work failed")
	}
	wait := firstRetry
	retry := time.NewTimer(lastRetry)
	retry.Stop()
	defer retry.Stop()
	again := time.NewTimer(lastRetry) // for what waits for other sites
	again.Stop()
	defer again.Stop()
	midnight := time.NewTimer(s.untilMidnight())
	defer midnight.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.jobs.ready:
		case <-retry.C:
			s.jobs.submit(false)
		case <-again.C:
			s.jobs.submit(false)
		case <-midnight.C:
			midnight.Reset(s.untilMidnight())
			s.due(ctx)
		}
		for j := s.jobs.next(); j != nil; j = s.jobs.next() {
			if s.runJob(ctx, j) {
				wait = firstRetry
				retry.Stop()
				again.Stop()
				if r := j.Status().Report; r != nil && r.Again > 0 {
					again.Reset(r.Again)
				}
				continue
			}
			if ctx.Err() != nil {
				return
			}
			retry.Reset(wait)
			wait = min(2*wait, lastRetry)
		}
	}
}

// startJobs queues what an earlier process has left unfinished.
func (s *Service) startJobs(ctx context.Context) error {
	s.due(ctx)
	tree := s.store.Tree()
	if tree.Version == 0 {
		return nil // no company yet
	}
	pending, err := s.rooms.Pending(ctx, tree)
	if err != nil || !pending && !s.sites.Many() { // what came from other sites is not counted
		return err
	}
	s.jobs.submit(false)
	return nil
}

// runJob runs one job and reports whether all of it succeeded.
func (s *Service) runJob(ctx context.Context, j *Job) bool {
	tree := s.store.Tree()
	j.update(func(st *JobStatus) { st.Version = tree.Version })
	progress := func(p derive.Progress) { j.update(func(st *JobStatus) { st.Progress = &p }) }
	run := s.rooms.Reconcile
	if j.Status().Verify {
		run = s.rooms.Verify
	}
	report, err := run(ctx, tree, progress)
	if errors.Is(err, derive.ErrIncomplete) && ctx.Err() == nil { // most refusals are of the moment
		first := report
		report, err = s.rooms.Reconcile(ctx, tree, progress)
		report.Add(first)
	}
	entry := log.WithField("tree_version", tree.Version)
	if report != nil {
		entry = entry.WithFields(log.Fields{"operations": report.Operations, "failed": report.Failed, "waiting": report.Waiting, "took_ms": report.Took.Milliseconds()})
	}
	j.update(func(st *JobStatus) {
		st.State, st.EndedAt, st.Report = JobDone, s.now().UnixMilli(), report
		if err != nil {
			st.State, st.Error = JobFailed, err.Error()
		}
	})
	close(j.done)
	switch {
	case err == nil:
		entry.Info("rooms follow the organisation")
	case ctx.Err() == nil:
		entry.WithError(err).Warn("rooms do not yet follow the organisation; it is tried again")
	}
	return err == nil
}

// due applies what the calendar asks for: people whose day of beginning or leaving has come.
func (s *Service) due(ctx context.Context) {
	if err := s.applyDue(ctx); err != nil && ctx.Err() == nil {
		log.WithError(err).Error("applying what is due today failed")
	}
	old := s.now().Add(-transactionKept).UnixMilli()
	if err := s.forgetTransactions(ctx, old); err != nil && ctx.Err() == nil {
		log.WithError(err).Error("forgetting old transactions failed")
	}
}

func (s *Service) applyDue(ctx context.Context) error {
	plan, problems := s.store.PlanDue()
	if err := problems.Err(); err != nil {
		return err
	}
	if plan.Empty() {
		return nil
	}
	if _, err := s.store.Apply(ctx, plan, "calendar"); err != nil {
		return fmt.Errorf("applying the day's changes: %w", err)
	}
	s.jobs.submit(false)
	return nil
}

// untilMidnight is the time to the begin of the next day where the company works, and a little more.
func (s *Service) untilMidnight() time.Duration {
	now := s.now().In(s.opts.Location)
	next := time.Date(now.Year(), now.Month(), now.Day()+1, 0, 0, 5, 0, s.opts.Location)
	return next.Sub(now)
}

// ErrNoCompany is returned where a company is needed and none has been imported.
var ErrNoCompany = errors.New("no company has been imported yet")
