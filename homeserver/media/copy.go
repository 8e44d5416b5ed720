package media

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Copy copies all content between the folder of a store and a bucket, and returns how many files and bytes were not
// there yet. It may run beside the store, and be repeated.
func Copy(ctx context.Context, dir string, b Bucket, toBucket bool) (files, bytes int64, err error) {
	box, err := newBucket(ctx, b)
	if err != nil {
		return 0, 0, err
	}
	d, err := newFolder(filepath.Join(dir, "files"))
	if err != nil {
		return 0, 0, fmt.Errorf("opening the media folder: %w", err)
	}
	// Not the folder for uploads: a server may be running, or start and empty it.
	tmp, err := os.MkdirTemp(dir, "copy-")
	if err != nil {
		return 0, 0, fmt.Errorf("copying media: %w", err)
	}
	defer os.RemoveAll(tmp)
	var from, to contents = box, d
	if toBucket {
		from, to = d, box
	}
	err = digits(func(two string) error {
		there := map[string]int64{}
		err := to.walk(ctx, two, func(hash string, size int64, _ time.Time) error {
			there[hash] = size
			return nil
		})
		if err != nil {
			return err
		}
		return from.walk(ctx, two, func(hash string, size int64, _ time.Time) error {
			if n, ok := there[hash]; ok && n == size {
				return nil
			}
			err := carry(ctx, from, to, tmp, hash, size)
			if errors.Is(err, fs.ErrNotExist) {
				return nil // deleted meanwhile
			}
			if err != nil {
				return err
			}
			files++
			bytes += size
			return nil
		})
	})
	if err != nil {
		return files, bytes, fmt.Errorf("copying media: %w", err)
	}
	return files, bytes, nil
}

// carry copies one content.
func carry(ctx context.Context, from, to contents, tmp, hash string, size int64) error {
	r, err := from.open(ctx, hash, size)
	if err != nil {
		return err
	}
	defer r.Close()
	if f, ok := r.(*os.File); ok {
		return to.put(ctx, hash, f, size)
	}
	f, err := os.CreateTemp(tmp, "")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	return to.put(ctx, hash, f, size)
}
