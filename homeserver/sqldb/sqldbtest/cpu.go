package sqldbtest

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// CPU is the processor time that this process has spent, and PostgreSQL's processes for the database.
func CPU(b testing.TB, db *sqldb.DB) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	sum := time.Duration(u.Utime.Nano() + u.Stime.Nano())
	if os.Getenv("CARILLON_TEST_POSTGRES") == "" {
		return sum
	}
	var pids []int
	err := db.Read(b.Context(), func(tx *sqldb.Tx) (err error) {
		pids, err = sqldb.Select(tx, func(r *sqldb.Rows) (n int, err error) { err = r.Scan(&n); return n, err },
			`SELECT pid FROM pg_stat_activity WHERE datname = current_database()`)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	for _, pid := range pids {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // a process may have ended
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 13 {
			continue
		}
		for _, f := range fields[11:13] { // user and kernel, in hundredths of a second
			n, _ := strconv.Atoi(f)
			sum += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return sum
}
