// Package sqldb opens a SQLite or PostgreSQL database and gives its callers one
// SQL text for both: statements are written in PostgreSQL's spelling and
// dialect.go alone translates them. Statements are prepared once per connection
// and kept, so a statement's text must be a constant.
//
// Read runs in one read-only snapshot. Write is durable when it returns. On
// SQLite there is one writing connection, and concurrent Writes share a commit:
// their functions may therefore run a second time and must do SQL only.
//
// One process owns a database; a lock taken by Open enforces it, so read models
// kept in memory stay true.
package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Errors that callers decide by.
var (
	ErrNoRows = sql.ErrNoRows
	// ErrExists is a violated unique constraint.
	ErrExists = errors.New("row exists already")
	// ErrInUse says that another process owns the database.
	ErrInUse = errors.New("another process has this database open")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("database is closed")
)

// Sizes of the connection pools.
const (
	sqliteReaders = 16
	postgresConns = 24
	// kept is how many of them are opened at once; the others when needed.
	kept = 4
	// maxGroup is the number of Writes that share one SQLite commit at most.
	maxGroup = 256
)

// DB is an open database. Its methods may be called concurrently.
type DB struct {
	pool    *sql.DB
	dialect dialect
	readers chan struct{} // one token for each idle connection, for Read (PostgreSQL: for Write too)
	idle    stack
	more    chan struct{} // one token for each connection that may still be opened
	writer  *conn         // SQLite only

	writes  chan *write // SQLite only
	stop    chan struct{}
	stopped sync.WaitGroup
	once    sync.Once
	unlock  func()
	count   atomic.Uint64
	seen    sync.Map // statements that were prepared, as the database knows them
}

// Statements is how many statements have been run since the database was
// opened, those that begin and end transactions included.
func (db *DB) Statements() uint64 { return db.count.Load() }

type conn struct {
	c     *sql.Conn
	stmts map[string]*sql.Stmt
	d     dialect
	count *atomic.Uint64
	seen  *sync.Map
}

type write struct {
	ctx  context.Context
	fn   func(*Tx) error
	done chan error
}

// Open opens dsn: "postgres://…" is PostgreSQL, everything else the path of a
// SQLite file (with or without "file:"), created when missing.
func Open(dsn string) (*DB, error) {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		return open(postgres{}, dsn, postgresConns)
	}
	return open(sqlite{}, strings.TrimPrefix(dsn, "file:"), sqliteReaders)
}

func open(d dialect, dsn string, readers int) (*DB, error) {
	ctx := context.Background()
	pool, unlock, err := d.open(ctx, dsn)
	if err != nil {
		return nil, fmt.Errorf("opening database: %w", err)
	}
	db := &DB{pool: pool, dialect: d, readers: make(chan struct{}, readers), more: make(chan struct{}, readers), stop: make(chan struct{}), unlock: unlock}
	if d.singleWriter() {
		if db.writer, err = db.connect(ctx, true); err != nil {
			pool.Close()
			unlock()
			return nil, fmt.Errorf("opening database: %w", err)
		}
		db.writes = make(chan *write, maxGroup)
		db.stopped.Add(1)
		go db.writeLoop()
	}
	for range readers - kept {
		db.more <- struct{}{}
	}
	for range kept {
		c, err := db.connect(ctx, false)
		if err != nil {
			db.Close()
			return nil, fmt.Errorf("opening database: %w", err)
		}
		db.put(c)
	}
	return db, nil
}

func (db *DB) connect(ctx context.Context, writer bool) (*conn, error) {
	c, err := db.pool.Conn(ctx)
	if err != nil {
		return nil, err
	}
	for _, q := range db.dialect.setup(writer) {
		if _, err := c.ExecContext(ctx, q); err != nil {
			c.Close()
			return nil, fmt.Errorf("%s: %w", q, err)
		}
	}
	return &conn{c: c, stmts: map[string]*sql.Stmt{}, d: db.dialect, count: &db.count, seen: &db.seen}, nil
}

// Close waits for the writes under way and closes all connections.
func (db *DB) Close() error {
	db.once.Do(func() {
		close(db.stop)
		db.stopped.Wait()
		if db.writer != nil {
			db.writer.c.Close()
		}
		db.closeIdle()
		db.unlock()
	})
	return db.pool.Close()
}

// closeIdle gives the idle connections back to the pool, which is being closed:
// those that it has lent out it would not close.
func (db *DB) closeIdle() {
	for {
		select {
		case <-db.readers:
			db.idle.pop().c.Close()
		default:
			return
		}
	}
}

// stack holds the idle connections. The one that was used last is used next: it has
// the statements prepared and its pages at hand.
type stack struct {
	mu   sync.Mutex
	list []*conn
}

func (s *stack) push(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, c)
}

func (s *stack) pop() *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := len(s.list) - 1
	c := s.list[last]
	s.list[last] = nil
	s.list = s.list[:last]
	return c
}

// put makes a connection idle.
func (db *DB) put(c *conn) {
	db.idle.push(c)
	db.readers <- struct{}{}
}

// give makes a connection available again.
func (db *DB) give(c *conn) {
	db.put(c)
	select {
	case <-db.stop:
		db.closeIdle()
	default:
	}
}

// IsPostgres reports which database this is, for the few places with two texts.
func (db *DB) IsPostgres() bool { return !db.dialect.singleWriter() }

// Read runs fn in one read-only snapshot.
func (db *DB) Read(ctx context.Context, fn func(tx *Tx) error) error {
	c, err := db.take(ctx)
	if err != nil {
		return err
	}
	return db.run(c, db.dialect.beginRead(), fn)
}

// Write runs fn in a transaction and commits it. fn may run more than once.
func (db *DB) Write(ctx context.Context, fn func(tx *Tx) error) error {
	if !db.dialect.singleWriter() {
		return db.writePooled(ctx, fn)
	}
	w := &write{ctx: ctx, fn: fn, done: make(chan error, 1)}
	select {
	case db.writes <- w:
	case <-ctx.Done():
		return ctx.Err()
	case <-db.stop:
		return ErrClosed
	}
	select {
	case err := <-w.done: // not cut short by ctx: the caller must know whether it happened
		return err
	case <-db.stop:
		select {
		case err := <-w.done:
			return err
		case <-time.After(5 * time.Second):
			return ErrClosed
		}
	}
}

// writePooled is Write on PostgreSQL: serialisation failures are tried again.
func (db *DB) writePooled(ctx context.Context, fn func(tx *Tx) error) error {
	for attempt := 0; ; attempt++ {
		c, err := db.take(ctx)
		if err != nil {
			return err
		}
		err = db.run(c, db.dialect.beginWrite(), fn)
		if err == nil || attempt == 9 || !db.dialect.retryable(err) {
			return err
		}
		time.Sleep(time.Duration(attempt+1) * 2 * time.Millisecond)
	}
}

func (db *DB) take(ctx context.Context) (*conn, error) {
	select {
	case <-db.stop: // a closed database must not look like a slow one
		return nil, ErrClosed
	default:
	}
	select {
	case <-db.readers:
		return db.idle.pop(), nil
	default:
	}
	select {
	case <-db.readers:
		return db.idle.pop(), nil
	case <-db.more:
		c, err := db.connect(context.Background(), false)
		if err != nil {
			db.more <- struct{}{}
			return nil, fmt.Errorf("opening another connection: %w", err)
		}
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-db.stop:
		return nil, ErrClosed
	}
}

// run executes fn between begin and COMMIT on c and gives c back.
func (db *DB) run(c *conn, begin string, fn func(tx *Tx) error) (err error) {
	defer func() { db.give(db.mended(c, err)) }()
	if err = c.exec(begin); err != nil {
		return db.dialect.mapError(err)
	}
	defer func() {
		if p := recover(); p != nil {
			c.exec("ROLLBACK")
			panic(p)
		}
	}()
	tx := &Tx{c: c}
	if err = fn(tx); err != nil {
		c.exec("ROLLBACK")
		return err
	}
	return db.end(c)
}

// end commits a transaction, or takes it back.
func (db *DB) end(c *conn) error {
	if err := c.exec("COMMIT"); err != nil {
		c.exec("ROLLBACK")
		return db.dialect.mapError(err)
	}
	return nil
}

// mended replaces a connection that the server has cut.
func (db *DB) mended(c *conn, err error) *conn {
	if err == nil || !db.dialect.broken(err) {
		return c
	}
	fresh, err := db.connect(context.Background(), false)
	if err != nil {
		return c // tried again at the next failure
	}
	c.c.Close()
	return fresh
}

// writeLoop commits SQLite writes in groups.
func (db *DB) writeLoop() {
	defer db.stopped.Done()
	group := make([]*write, 0, maxGroup)
	for {
		group = group[:0]
		select {
		case w := <-db.writes:
			group = append(group, w)
		case <-db.stop:
			for { // what has been accepted is still written
				select {
				case w := <-db.writes:
					db.commit([]*write{w})
				default:
					return
				}
			}
		}
	gather:
		for len(group) < maxGroup {
			select {
			case w := <-db.writes:
				group = append(group, w)
			default:
				break gather
			}
		}
		db.commit(group)
	}
}

// commit runs a group in one transaction; when one of several fails, each runs
// again alone, so that only the guilty one is told.
func (db *DB) commit(group []*write) {
	if len(group) > 1 {
		if err := db.commitOnce(group); err == nil {
			for _, w := range group {
				w.done <- nil
			}
			return
		}
	}
	for i := range group {
		group[i].done <- db.commitOnce(group[i : i+1])
	}
}

func (db *DB) commitOnce(group []*write) (err error) {
	c := db.writer
	if err = c.exec(db.dialect.beginWrite()); err != nil {
		return db.dialect.mapError(err)
	}
	tx := &Tx{c: c}
	for _, w := range group {
		if err = runGuarded(tx, w.fn); err != nil {
			c.exec("ROLLBACK")
			return err
		}
	}
	return db.end(c)
}

// runGuarded turns a panic in fn into an error: the loop serves everybody.
func runGuarded(tx *Tx, fn func(*Tx) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in a write: %v", p)
		}
	}()
	return fn(tx)
}

func (c *conn) exec(q string) error {
	s, err := c.stmt(q)
	if err != nil {
		return err
	}
	_, err = s.ExecContext(context.Background())
	return err
}

// stmt returns the prepared statement for q. The context is the background's:
// drivers watch a cancellable one with a goroutine for every statement.
func (c *conn) stmt(q string) (*sql.Stmt, error) {
	c.count.Add(1)
	if s, ok := c.stmts[q]; ok {
		return s, nil
	}
	text := c.d.translate(q)
	s, err := c.c.PrepareContext(context.Background(), text)
	if err != nil {
		return nil, err
	}
	c.stmts[q] = s
	c.seen.Store(text, struct{}{})
	return s, nil
}
