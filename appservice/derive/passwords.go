package derive

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The file of first passwords: job number, name, log-in name, first password, note. It begins with a byte order
// mark, without which spreadsheet programs misread Chinese names.
func passwordHeader() []string {
	return []string{"工号", "姓名", "登录名", "首次密码", "说明"}
}

// newPassword makes 80 random bits, in groups of four letters and digits.
func newPassword() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails
	s := base32.StdEncoding.EncodeToString(b[:])
	return s[0:4] + "-" + s[4:8] + "-" + s[8:12] + "-" + s[12:16]
}

// passwordHash is one round of SHA-256 with salt: enough for 80 random bits, which nobody can try through, and
// quick enough for ten thousand accounts in a minute.
func passwordHash(password string) string {
	var salt [16]byte
	_, _ = rand.Read(salt[:])
	h := sha256.New()
	h.Write(salt[:])
	h.Write([]byte(password))
	enc := base64.RawStdEncoding
	return "$carillon-sha256$" + enc.EncodeToString(salt[:]) + "$" + enc.EncodeToString(h.Sum(nil))
}

// firstPasswords gives every new account a password and writes them to a new file, safely on the disk before the
// first account is made. What an earlier run wrote and could not use up is used again, so that a person never has
// two different passwords in the files.
func (r *Reconciler) firstPasswords(fresh []*userJob) (file string, err error) {
	dir := r.opts.PasswordsDir
	if dir == "" || len(fresh) == 0 {
		return "", nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("making the folder of first passwords: %w", err)
	}
	before, err := readPasswords(dir)
	if err != nil {
		return "", err
	}
	rows := [][]string{passwordHeader()}
	for _, j := range fresh {
		if old, ok := before[j.person.ID]; ok && old.localpart == j.person.Localpart {
			j.password, j.reused, file = old.password, true, old.file
			continue
		}
		j.password = newPassword()
		rows = append(rows, []string{j.person.ID, j.person.Name, j.person.Localpart, j.password, ""})
	}
	if len(rows) == 1 {
		return file, nil
	}
	return r.createPasswordFile(dir, rows)
}

func (r *Reconciler) createPasswordFile(dir string, rows [][]string) (string, error) {
	base := filepath.Join(dir, r.opts.Now().Format("2006-01-02_150405"))
	for n := 0; ; n++ {
		name := base + ".csv"
		if n > 0 {
			name = fmt.Sprintf("%s_%d.csv", base, n)
		}
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if errors.Is(err, os.ErrExist) && n < 1000 {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("making the file of first passwords: %w", err)
		}
		if err := writeRows(f, true, rows); err != nil {
			return "", err
		}
		if d, err := os.Open(dir); err == nil { // the name itself must survive a power cut too
			_ = d.Sync()
			d.Close()
		}
		return name, nil
	}
}

func writeRows(f *os.File, isNew bool, rows [][]string) error {
	defer f.Close()
	if isNew {
		if _, err := f.WriteString("\ufeff"); err != nil {
			return fmt.Errorf("writing first passwords: %w", err)
		}
	}
	w := csv.NewWriter(f)
	w.UseCRLF = true
	if err := w.WriteAll(rows); err != nil {
		return fmt.Errorf("writing first passwords: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("writing first passwords: %w", err)
	}
	return nil
}

// noteExisting adds a line for accounts that were there before: their owners keep the password they have.
func noteExisting(file string, fresh []*userJob) error {
	var rows [][]string
	for _, j := range fresh {
		if j.existed {
			rows = append(rows, []string{j.person.ID, j.person.Name, j.person.Localpart, "", "账号已存在，密码不变 / the account existed, its password is unchanged"})
		}
	}
	if file == "" || len(rows) == 0 {
		return nil
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("adding to the file of first passwords: %w", err)
	}
	return writeRows(f, false, rows)
}

// FirstPasswords reads what the files in a folder say: job number to password. A folder or files that are gone, as
// they should be some day, are no error.
func FirstPasswords(dir string) (map[string]string, error) {
	written, err := readPasswords(dir)
	if err != nil {
		return nil, err
	}
	out := make(map[string]string, len(written))
	for id, w := range written {
		out[id] = w.password
	}
	return out, nil
}

type writtenPassword struct{ localpart, password, file string }

// readPasswords reads what the folder's files say; a later line wins, a line that cannot be read is left out.
func readPasswords(dir string) (map[string]writtenPassword, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.csv"))
	if err != nil {
		return nil, fmt.Errorf("listing the files of first passwords: %w", err)
	}
	slices.Sort(names)
	out := map[string]writtenPassword{}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("reading first passwords: %w", err)
		}
		cr := csv.NewReader(f)
		cr.FieldsPerRecord = -1
		for {
			rec, err := cr.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil { // a file cut off in its last line, or one that somebody has edited
				var bad *csv.ParseError
				if errors.As(err, &bad) {
					continue
				}
				f.Close()
				return nil, fmt.Errorf("reading first passwords: %w", err)
			}
			if len(rec) >= 4 && strings.Count(rec[3], "-") == 3 {
				out[strings.TrimPrefix(rec[0], "\ufeff")] = writtenPassword{rec[2], rec[3], name}
			}
		}
		f.Close()
	}
	return out, nil
}
