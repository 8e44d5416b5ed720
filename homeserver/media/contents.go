package media

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// contents is where content lies under its hash: a folder, or a bucket of an object store.
type contents interface {
	// put keeps what f holds, so that it survives a power cut; f may be renamed. What is there already stays.
	put(ctx context.Context, hash string, f *os.File, size int64) error
	// open gives content to read, fs.ErrNotExist when there is none. size is as it was put.
	open(ctx context.Context, hash string, size int64) (io.ReadSeekCloser, error)
	// remove deletes content; what is not there is no error.
	remove(ctx context.Context, hash string) error
	// walk tells of all content whose hash begins with two digits.
	walk(ctx context.Context, digits string, fn func(hash string, size int64, changed time.Time) error) error
	// link is an address at which content can be fetched for a while without a log-in; "" where there are none.
	link(ctx context.Context, hash string, headers url.Values) (string, error)
}

// validHash says that a name is one that content has; others in the same place are none of ours.
func validHash(s string) bool {
	if len(s) != 64 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// digits are the first two digits of all hashes, in order.
func digits(fn func(string) error) error {
	for i := range 256 {
		if err := fn(fmt.Sprintf("%02x", i)); err != nil {
			return err
		}
	}
	return nil
}

// folder keeps content in files.
type folder struct{ dir string }

// newFolder makes the folder.
func newFolder(dir string) (folder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return folder{}, err
	}
	return folder{dir}, syncDir(filepath.Dir(dir))
}

func (d folder) path(hash string) string { return filepath.Join(d.dir, hash[:2], hash) }

func (d folder) put(_ context.Context, hash string, f *os.File, size int64) error {
	path := d.path(hash)
	// A file of another size is what damage to the disk has left of it.
	if info, err := os.Stat(path); err != nil || info.Size() != size {
		if err := f.Sync(); err != nil {
			return err
		}
		err := os.Rename(f.Name(), path)
		if errors.Is(err, fs.ErrNotExist) { // the first with these digits
			if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
				err = errors.Join(os.Rename(f.Name(), path), syncDir(d.dir))
			}
		}
		if err != nil {
			return err
		}
	}
	// Also where another upload has just put the file: it may not have come to this yet.
	return syncDir(filepath.Dir(path))
}

func (d folder) open(_ context.Context, hash string, _ int64) (io.ReadSeekCloser, error) {
	f, err := os.Open(d.path(hash))
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d folder) remove(_ context.Context, hash string) error {
	if err := os.Remove(d.path(hash)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (d folder) walk(ctx context.Context, two string, fn func(string, int64, time.Time) error) error {
	dir, err := os.Open(filepath.Join(d.dir, two))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		entries, err := dir.ReadDir(256)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if len(entries) == 0 {
			return nil
		}
		for _, e := range entries {
			info, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) || err == nil && (!info.Mode().IsRegular() || !validHash(e.Name())) {
				continue
			}
			if err != nil {
				return err
			}
			if err := fn(e.Name(), info.Size(), info.ModTime()); err != nil {
				return err
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

func (folder) link(context.Context, string, url.Values) (string, error) { return "", nil }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
