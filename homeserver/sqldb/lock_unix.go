//go:build unix

package sqldb

import (
	"fmt"
	"os"
	"syscall"
)

// lockFile takes an exclusive lock that the system drops when the process ends,
// however it ends.
func lockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w (%s)", ErrInUse, path)
	}
	return func() { f.Close() }, nil
}
