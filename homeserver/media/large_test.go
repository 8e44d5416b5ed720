package media_test

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/media"
	"github.com/carillon-chat/carillon/test/s3"
)

// stream is n bytes that are made as they are read.
type stream struct{ n, at int64 }

func (s *stream) Read(p []byte) (int, error) {
	if s.at >= s.n {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), s.n-s.at)]
	for i := range p {
		p[i] = byte((s.at + int64(i)) >> 12)
	}
	s.at += int64(len(p))
	return len(p), nil
}

// peak is the most memory in use while fn runs, above what was in use before.
func peak(fn func()) uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before := m.HeapAlloc
	var most atomic.Uint64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most.Store(max(most.Load(), m.HeapAlloc))
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	fn()
	close(stop)
	<-stopped
	if most.Load() < before {
		return 0
	}
	return most.Load() - before
}

// pass uploads and downloads a file of n bytes over a socket, and returns its name.
func (s *server) pass(n int64) string {
	s.t.Helper()
	a := s.do(alice, "POST", open+"/upload", &stream{n: n}, "Content-Type", "video/mp4")
	if a.Status != 200 {
		s.t.Fatalf("upload: %d %s", a.Status, a.Body)
	}
	id := mxc(s.t, a.Body)
	if got := s.drain(auth + "/download/" + id); got != n {
		s.t.Fatalf("%d bytes", got)
	}
	return id
}

// drain downloads without keeping.
func (s *server) drain(path string) int64 {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), "GET", s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+bob)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.Copy(io.Discard, resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return got
}

// A file of 100 MiB takes no more memory than one of 1 MiB: on its way up and down, into a bucket, to another server.
func TestMemory(t *testing.T) {
	const size, limit = 100 << 20, 16 << 20
	opts := media.Options{MaxUpload: size, MaxRemote: size}
	opts.Server = "far.example.org"
	s := start(t, opts, nil)
	opts.Server = "example.org"
	near := start(t, opts, &toServer{url: s.url})
	inBucket := opts
	inBucket.Bucket = bucketOf(s3.Start(t))
	b := start(t, inBucket, nil)
	s.pass(1 << 20)
	b.pass(1 << 20)
	var id string
	for _, x := range []struct {
		what string
		fn   func()
	}{
		{"folder", func() { id = s.pass(size) }},
		{"bucket", func() { b.pass(size) }},
		{"another server", func() {
			if n := near.drain(auth + "/download/" + id); n != size {
				t.Errorf("%d bytes", n)
			}
		}},
		{"a thumbnail that cannot be made", func() {
			s.want(400, "M_UNKNOWN", bob, "GET", auth+"/thumbnail/"+id+"?width=10&height=10", "")
		}},
	} {
		used := peak(x.fn)
		t.Logf("%s: %d kB more at most", x.what, used>>10)
		if used > limit {
			t.Errorf("%s: %d MB more", x.what, used>>20)
		}
	}
}

// A player moves about in a film: it asks for its length, its end, and pieces in the middle, on one connection.
func TestFilm(t *testing.T) {
	t.Parallel()
	store := s3.Start(t)
	for name, o := range map[string]media.Options{"folder": {}, "bucket": {Bucket: bucketOf(store)}} {
		s := start(t, o, nil)
		film := noise(3<<20, 8)
		path := auth + "/download/" + s.upload(alice, "video/mp4", "film.mp4", film)
		head := s.do(bob, "HEAD", path, nil)
		if head.Status != 200 || head.Header.Get("Accept-Ranges") != "bytes" || head.Header.Get("Content-Length") != fmt.Sprint(len(film)) ||
			head.Header.Get("Content-Type") != "video/mp4" || len(head.Body) != 0 || head.Header.Get("Content-Disposition") != "inline; filename=film.mp4" {
			t.Errorf("%s HEAD: %d %v", name, head.Status, head.Header)
		}
		etag := head.Header.Get("ETag")
		for _, r := range []struct {
			header     string
			first, end int
		}{{"bytes=0-", 0, 3 << 20}, {"bytes=0-1", 0, 2}, {"bytes=-100", 3<<20 - 100, 3 << 20}, {"bytes=2000000-2999999", 2_000_000, 3_000_000}, {"bytes=3145727-", 3<<20 - 1, 3 << 20}} {
			a := s.want(206, "", bob, "GET", path, "", "Range", r.header, "If-Range", etag)
			if !bytes.Equal(a.Body, film[r.first:r.end]) || a.Header.Get("Content-Range") != fmt.Sprintf("bytes %d-%d/%d", r.first, r.end-1, len(film)) {
				t.Errorf("%s %s: %d bytes, %s", name, r.header, len(a.Body), a.Header.Get("Content-Range"))
			}
		}
		if a := s.want(200, "", bob, "GET", path, "", "Range", "bytes=0-1", "If-Range", `"other"`); len(a.Body) != len(film) {
			t.Errorf("%s: %d bytes of another version", name, len(a.Body))
		}
		if a := s.do(bob, "HEAD", path, nil, "Range", "bytes=0-9"); a.Status != 206 || a.Header.Get("Content-Length") != "10" {
			t.Errorf("%s HEAD of a range: %d %v", name, a.Status, a.Header)
		}
		a := s.want(416, "", bob, "GET", path, "", "Range", "bytes=99999999-")
		if a.Header.Get("Content-Range") != fmt.Sprintf("bytes */%d", len(film)) {
			t.Errorf("%s: %v", name, a.Header)
		}
		s.want(304, "", bob, "GET", path, "", "If-None-Match", etag)

		// Several pieces in one answer, and too many: the whole.
		a = s.want(206, "", bob, "GET", path, "", "Range", "bytes=0-9,1000000-1000009")
		_, params, err := mime.ParseMediaType(a.Header.Get("Content-Type"))
		if err != nil {
			t.Fatal(err)
		}
		parts := multipart.NewReader(bytes.NewReader(a.Body), params["boundary"])
		for _, at := range []int{0, 1_000_000} {
			p, err := parts.NextPart()
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := io.ReadAll(p); !bytes.Equal(got, film[at:at+10]) {
				t.Errorf("%s: piece at %d: %x", name, at, got)
			}
		}
		if a := s.want(200, "", bob, "GET", path, "", "Range", "bytes=0-0"+strings.Repeat(",5-5", 100)); len(a.Body) != len(film) {
			t.Errorf("%s: %d bytes", name, len(a.Body))
		}
	}
}

// processor reports how much processor time an operation takes, of client and server together.
func processor(b *testing.B) func() {
	used := func() int64 {
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return r.Utime.Nano() + r.Stime.Nano()
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N)/1e6, "cpu-ms/op") }
}

func BenchmarkTransfer(b *testing.B) {
	for _, size := range []int64{10 << 10, 1 << 20, 100 << 20} {
		b.Run(fmt.Sprintf("up and down, %d KiB", size>>10), func(b *testing.B) {
			s := start(b, media.Options{MaxUpload: size}, nil)
			b.SetBytes(2 * size)
			defer processor(b)()
			for b.Loop() {
				id := s.pass(size)
				b.StopTimer() // each is a new file, on a disk that does not fill up
				s.want(200, "", admin, "DELETE", adminBase+"/"+id, "")
				b.StartTimer()
			}
		})
	}
}
