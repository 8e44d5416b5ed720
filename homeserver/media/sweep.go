package media

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

const (
	sweepEvery = time.Hour
	tidyEvery  = 24 * time.Hour
	noteEvery  = time.Minute
	// touchStep is how exactly it is known when a file was last asked for.
	touchStep = time.Hour
	// maxAsked bounds what is noted in between; beyond it a file counts as not asked for.
	maxAsked = 10_000
	// sweepPage is how many rows are looked at at a time.
	sweepPage = 100
	// orphanAge is how old content without a row must be to be of no upload that is going on.
	orphanAge = 24 * time.Hour
)

// Run removes what has expired and notes what was asked for, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	note, sweep, tidy := time.NewTicker(noteEvery), time.NewTicker(sweepEvery), time.NewTicker(tidyEvery)
	defer note.Stop()
	defer sweep.Stop()
	defer tidy.Stop()
	try := func(what string, fn func(context.Context) error) {
		if err := fn(ctx); err != nil && ctx.Err() == nil {
			log.WithError(err).Warn(what + " failed")
		}
	}
	try("sweeping media", s.Sweep)
	try("tidying the media store", s.Tidy)
	for {
		select {
		case <-ctx.Done():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			return s.note(end)
		case <-note.C:
			try("noting the use of media", s.note)
		case <-sweep.C:
			try("sweeping media", s.Sweep)
		case <-tidy.C:
			try("tidying the media store", s.Tidy)
		}
	}
}

// touch notes that a file was asked for.
func (s *Store) touch(m *meta) {
	now := s.nowMillis()
	if now-m.accessed < touchStep.Milliseconds() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.asked[m.name]; ok || len(s.asked) < maxAsked {
		s.asked[m.name] = now
	}
}

// note stores when files were asked for.
func (s *Store) note(ctx context.Context) error {
	s.mu.Lock()
	asked := s.asked
	s.asked = map[name]int64{}
	s.mu.Unlock()
	if len(asked) == 0 {
		return nil
	}
	names := make([]name, 0, len(asked))
	for n := range asked {
		names = append(names, n)
	}
	for part := range slices.Chunk(names, 500) {
		err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
			for _, n := range part {
				if _, err := tx.Exec(qTouch, string(n.origin), n.id, asked[n]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("noting the use of media: %w", err)
		}
	}
	return nil
}

// Sweep removes IDs that never got content, and files that nobody has asked for in the time set, or that are too
// much.
func (s *Store) Sweep(ctx context.Context) error {
	now := s.opts.Now()
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qExpire, matrix.Millis(now))
		return err
	})
	if err != nil {
		return fmt.Errorf("removing expired media IDs: %w", err)
	}
	if err := s.note(ctx); err != nil {
		return err
	}
	if s.opts.LocalFor > 0 {
		if err := s.sweepUploads(ctx, matrix.Millis(now.Add(-s.opts.LocalFor))); err != nil {
			return err
		}
	}
	if s.opts.RemoteFor > 0 {
		if err := s.sweepCopies(ctx, matrix.Millis(now.Add(-s.opts.RemoteFor))); err != nil {
			return err
		}
	}
	for s.opts.RemoteBytes > 0 {
		more, err := s.dropOldest(ctx)
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// oldRows reads a page of files that were asked for long ago.
func (s *Store) oldRows(ctx context.Context, q string, args ...any) (old []meta, err error) {
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		old, err = sqldb.Select(tx, func(r *sqldb.Rows) (m meta, err error) {
			err = r.Scan(&m.origin, &m.id, &m.uploader, &m.hash, &m.size, &m.accessed)
			return m, err
		}, q, args...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading old media: %w", err)
	}
	return old, nil
}

func (s *Store) sweepUploads(ctx context.Context, before int64) error {
	after := int64(-1)
	for {
		old, err := s.oldRows(ctx, qOldUploads, before, after, sweepPage)
		if err != nil {
			return err
		}
		kept := false
		for _, m := range old {
			if s.opts.InUse != nil && s.opts.InUse(m.uploader, m.MXC()) {
				kept = true
				continue
			}
			if err := s.Delete(ctx, m.origin, m.id); err != nil {
				return err
			}
		}
		if len(old) < sweepPage {
			return nil
		}
		if kept { // what stays must not be read over and over
			after = old[len(old)-1].accessed
		}
	}
}

func (s *Store) sweepCopies(ctx context.Context, before int64) error {
	for {
		old, err := s.oldRows(ctx, qOldCopies, string(s.opts.Server), before, sweepPage)
		if err != nil || len(old) == 0 {
			return err
		}
		for _, m := range old {
			if err := s.Delete(ctx, m.origin, m.id); err != nil {
				return err
			}
		}
	}
}

// dropOldest removes some of the copies that were asked for longest ago if there are too many bytes of them.
func (s *Store) dropOldest(ctx context.Context) (dropped bool, err error) {
	var total Usage
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error {
		return tx.QueryRow(qRemoteBytes, string(s.opts.Server)).Scan(&total.Files, &total.Bytes)
	})
	if err != nil {
		return false, fmt.Errorf("reading usage: %w", err)
	}
	if total.Bytes <= s.opts.RemoteBytes {
		return false, nil
	}
	old, err := s.oldRows(ctx, qOldCopies, string(s.opts.Server), s.nowMillis(), sweepPage)
	if err != nil {
		return false, err
	}
	for _, m := range old {
		if total.Bytes <= s.opts.RemoteBytes {
			break
		}
		if err := s.Delete(ctx, m.origin, m.id); err != nil {
			return false, err
		}
		total.Bytes -= m.size
		dropped = true
	}
	return dropped, nil
}

// Delete removes a file, and its content when nothing else has the same.
func (s *Store) Delete(ctx context.Context, origin matrix.ServerName, id string) error {
	m, err := s.row(ctx, name{origin, id})
	if err != nil || m == nil {
		return err
	}
	unlock, err := s.holding.LockContext(ctx, m.hash)
	if err != nil {
		return err
	}
	defer unlock()
	left := int64(1)
	err = s.db.Write(ctx, func(tx *sqldb.Tx) error {
		left = 1
		var (
			uploader matrix.UserID
			size     int64
		)
		err := tx.QueryRow(qDelete, string(origin), id, m.hash).Scan(&uploader, &size)
		if errors.Is(err, sqldb.ErrNoRows) || err == nil && m.pending() {
			return nil
		}
		if err != nil {
			return err
		}
		if err := discharge(tx, uploader, origin, size); err != nil {
			return err
		}
		return tx.QueryRow(qUses, m.hash).Scan(&left)
	})
	if err != nil {
		return fmt.Errorf("deleting media: %w", err)
	}
	if left > 0 {
		return nil
	}
	return s.drop(ctx, m.hash)
}

// drop removes content that no row knows; its hash is held.
func (s *Store) drop(ctx context.Context, hash string) error {
	if err := os.RemoveAll(s.thumbnailDir(hash)); err != nil {
		return fmt.Errorf("deleting thumbnails: %w", err)
	}
	if err := s.files.remove(ctx, hash); err != nil {
		return fmt.Errorf("deleting media: %w", err)
	}
	return nil
}

// Tidy removes content that no row knows, which a crash between content and row leaves, and thumbnails that are
// too much.
func (s *Store) Tidy(ctx context.Context) error {
	if b, ok := s.files.(*bucket); ok {
		if err := b.tidy(ctx, s.opts.Now()); err != nil {
			return fmt.Errorf("removing broken uploads: %w", err)
		}
	}
	before := s.opts.Now().Add(-orphanAge)
	err := digits(func(two string) error {
		var page []string
		flush := func() error {
			err := s.dropUnknown(ctx, page)
			page = page[:0]
			return err
		}
		err := s.files.walk(ctx, two, func(hash string, _ int64, changed time.Time) error {
			if changed.After(before) {
				return nil
			}
			if page = append(page, hash); len(page) == sweepPage {
				return flush()
			}
			return nil
		})
		return errors.Join(err, flush())
	})
	if err != nil {
		return fmt.Errorf("looking for content without a row: %w", err)
	}
	return s.sweepThumbnails()
}

// dropUnknown removes those contents that no row knows.
func (s *Store) dropUnknown(ctx context.Context, hashes []string) error {
	if len(hashes) == 0 {
		return nil
	}
	var known []string
	err := s.db.Read(ctx, func(tx *sqldb.Tx) (err error) {
		known, err = sqldb.Select(tx, func(r *sqldb.Rows) (h string, err error) { return h, r.Scan(&h) }, qKnown, hashes)
		return err
	})
	if err != nil {
		return err
	}
	for _, hash := range hashes {
		if slices.Contains(known, hash) {
			continue
		}
		if err := s.dropIfUnknown(ctx, hash); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) dropIfUnknown(ctx context.Context, hash string) error {
	unlock, err := s.holding.LockContext(ctx, hash)
	if err != nil {
		return err
	}
	defer unlock()
	var uses int64
	err = s.db.Read(ctx, func(tx *sqldb.Tx) error { return tx.QueryRow(qUses, hash).Scan(&uses) })
	if err != nil || uses > 0 {
		return err
	}
	return s.drop(ctx, hash)
}

// thumbnailFile is a thumbnail on the disk.
type thumbnailFile struct {
	path string
	size int64
	used time.Time
}

// sweepThumbnails counts the thumbnails, and removes those used longest ago until there is room again.
func (s *Store) sweepThumbnails() error {
	var (
		all   []thumbnailFile
		total int64
	)
	root := filepath.Join(s.opts.Dir, "thumbnails")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil // it has just gone
		}
		all = append(all, thumbnailFile{path, info.Size(), info.ModTime()})
		total += info.Size()
		return nil
	})
	if err != nil {
		return fmt.Errorf("counting thumbnails: %w", err)
	}
	if total > s.opts.ThumbnailBytes {
		slices.SortFunc(all, func(a, b thumbnailFile) int { return a.used.Compare(b.used) })
		// A tenth of room, lest it begin anew with the next one.
		for _, f := range all {
			if total <= s.opts.ThumbnailBytes/10*9 {
				break
			}
			if err := os.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("removing a thumbnail: %w", err)
			}
			_ = os.Remove(filepath.Dir(f.path)) // if it is empty now
			total -= f.size
		}
	}
	s.thumbnailBytes.Store(total)
	return nil
}
