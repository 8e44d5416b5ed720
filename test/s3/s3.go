// Package s3 starts a real object store for tests: versitygw, a gateway that
// speaks S3 in front of a folder. It is a process of its own, checks signatures,
// and is built from the Go module proxy once, into the user's cache folder.
package s3

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/carillon-chat/carillon/test/freeport"
	"github.com/carillon-chat/carillon/test/peer"
)

var gateway = peer.Command{Module: "github.com/versity/versitygw", Path: "/cmd/versitygw", Version: "v1.8.0"}

// patience is how long the store may take to answer first.
const patience = 30 * time.Second

// Store is a running object store with one bucket.
type Store struct {
	Endpoint  string // http://127.0.0.1:…
	Host      string // the same without http://
	AccessKey string
	SecretKey string
	Bucket    string
	Client    *minio.Client // to look inside

	t    testing.TB
	dir  string
	cmd  *exec.Cmd
	done chan struct{}
}

// Start starts a store that ends with the test.
func Start(t testing.TB) *Store {
	t.Helper()
	s := &Store{t: t, AccessKey: "carillon", SecretKey: "a-secret-for-tests", Bucket: "media", dir: t.TempDir()}
	s.Host = freeport.Address(t)
	s.Endpoint = "http://" + s.Host
	for _, d := range []string{"data", "notes"} {
		if err := os.Mkdir(filepath.Join(s.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	s.Client, err = minio.New(s.Host, &minio.Options{Creds: credentials.NewStaticV4(s.AccessKey, s.SecretKey, ""), Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	s.Run()
	t.Cleanup(s.Kill)
	if err := s.Client.MakeBucket(t.Context(), s.Bucket, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	return s
}

// Run starts the process, and waits until it answers.
func (s *Store) Run() {
	s.t.Helper()
	s.cmd = exec.Command(gateway.Program(s.t), "--access", s.AccessKey, "--secret", s.SecretKey, "--port", s.Host, "--quiet",
		"posix", "--sidecar", filepath.Join(s.dir, "notes"), filepath.Join(s.dir, "data"))
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait()
		close(done)
	}(s.cmd, s.done)
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", s.Host)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("the object store does not answer: %v", err)
		}
	}
}

// Kill ends the process at once.
func (s *Store) Kill() {
	_ = s.cmd.Process.Kill()
	<-s.done
}

// Keys are the names of all objects.
func (s *Store) Keys() (keys []string) {
	s.t.Helper()
	for o := range s.Client.ListObjects(context.Background(), s.Bucket, minio.ListObjectsOptions{Recursive: true}) {
		if o.Err != nil {
			s.t.Fatal(o.Err)
		}
		keys = append(keys, o.Key)
	}
	return keys
}
