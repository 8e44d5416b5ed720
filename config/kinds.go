package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes written like 100MiB, 20MB or 4096.
type Size int64

var sizeUnits = []struct {
	name string
	size int64
}{
	{"GiB", 1 << 30},
	{"MiB", 1 << 20},
	{"KiB", 1 << 10},
	{"GB", 1e9},
	{"MB", 1e6},
	{"kB", 1e3},
	{"KB", 1e3},
	{"B", 1},
}

// ParseSize reads a number of bytes.
func ParseSize(s string) (Size, error) {
	s = strings.TrimSpace(s)
	factor := int64(1)
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(s, u.name); ok {
			s, factor = strings.TrimSpace(n), u.size
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/factor {
		return 0, fmt.Errorf("not a size")
	}
	return Size(n * factor), nil
}

// String writes the size with the largest unit that divides it.
func (s Size) String() string {
	for _, u := range sizeUnits[:3] {
		if s > 0 && int64(s)%u.size == 0 {
			return strconv.FormatInt(int64(s)/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// Rate is how often something may happen, written like 10/s burst 100, 30/min or
// 5/h burst 20. Without burst as many may come at once as in one unit of time.
type Rate string

// Limit is how many a second for long, and how many at once.
func (r Rate) Limit() (perSecond float64, burst int) {
	perSecond, burst, _ = parseRate(string(r)) // it was read before
	return perSecond, burst
}

func parseRate(s string) (perSecond float64, burst int, err error) {
	bad := errors.New("not a rate")
	rate, rest, more := strings.Cut(strings.TrimSpace(s), " ")
	count, unit, ok := strings.Cut(rate, "/")
	n, err := strconv.ParseFloat(count, 64)
	seconds := map[string]float64{"s": 1, "min": 60, "h": 3600}[unit]
	if !ok || err != nil || !(n > 0) || n > 1e9 || seconds == 0 {
		return 0, 0, bad
	}
	burst = int(math.Ceil(n))
	if more {
		b, ok := strings.CutPrefix(strings.TrimSpace(rest), "burst ")
		if burst, err = strconv.Atoi(strings.TrimSpace(b)); !ok || err != nil || burst < 1 || burst > 1e9 {
			return 0, 0, bad
		}
	}
	return n / seconds, burst, nil
}

// Secret is a value that must not be shown. The file may hold it directly, as
// "file:PATH" (the content of a file, without the last line end) or as
// "env:NAME" (a variable of the environment).
type Secret string

// Value is the secret itself.
func (s Secret) Value() string { return string(s) }

// String hides the secret from logs and messages.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(hidden)"
}

// GoString hides the secret from %#v too.
func (s Secret) GoString() string { return strconv.Quote(s.String()) }

// maxSecretFile bounds a secret's file: a mistyped path must not be read whole.
const maxSecretFile = 64 << 10

// resolveSecret follows file: and env:.
func resolveSecret(s string) (string, error) {
	if name, ok := strings.CutPrefix(s, "env:"); ok {
		v, set := os.LookupEnv(name)
		if !set || v == "" {
			return "", fmt.Errorf("the environment variable %s is not set", name)
		}
		return v, nil
	}
	path, ok := strings.CutPrefix(s, "file:")
	if !ok || isSQLiteURI(s) {
		return s, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("the secret's file cannot be read: %w", err)
	}
	if info.Size() > maxSecretFile {
		return "", fmt.Errorf("the secret's file %s is larger than %d bytes", path, maxSecretFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("the secret's file cannot be read: %w", err)
	}
	v := strings.TrimRight(string(b), "\r\n")
	if v == "" {
		return "", fmt.Errorf("the secret's file %s is empty", path)
	}
	return v, nil
}

// isSQLiteURI tells a database file given as a URI from a secret's file.
func isSQLiteURI(s string) bool {
	path, _, _ := strings.Cut(strings.TrimPrefix(s, "file:"), "?")
	return strings.HasSuffix(path, ".db") || strings.HasSuffix(path, ".sqlite")
}

// parseDuration reads a time span, also one of whole days.
func parseDuration(s string) (time.Duration, error) {
	const day = 24 * time.Hour
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseInt(days, 10, 32)
		if err != nil || n > int64((1<<63-1)/day) {
			return 0, fmt.Errorf("not a time span")
		}
		return time.Duration(n) * day, nil
	}
	return time.ParseDuration(s)
}

// publicAddr is a listening address as one connects to it from this machine.
func publicAddr(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	ip := net.ParseIP(host)
	if host == "" || ip != nil && (ip.IsUnspecified() || ip.IsLoopback()) {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}

func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
