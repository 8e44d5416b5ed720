package media_test

// The object store of these tests is versitygw, a process of its own; see test/s3.

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/carillon-chat/carillon/homeserver/media"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
	"github.com/carillon-chat/carillon/test/s3"
)

func bucketOf(store *s3.Store) *media.Bucket {
	return &media.Bucket{Endpoint: store.Endpoint, Name: store.Bucket, Prefix: "files/", AccessKey: store.AccessKey, SecretKey: store.SecretKey, PathStyle: true}
}

// noise is content that no two calls with different seeds share.
func noise(n, seed int) []byte {
	b := make([]byte, n)
	x := uint32(seed)*2654435761 + 1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func TestBucket(t *testing.T) {
	t.Parallel()
	store := s3.Start(t)
	s := start(t, media.Options{Bucket: bucketOf(store)}, nil)
	small, large := []byte("carillon"), noise(40<<20, 1) // in one piece and in several
	ids := []string{s.upload(alice, "text/plain", "钟.txt", small), s.upload(alice, "video/mp4", "film.mp4", large), s.upload(bob, "a/b", "", small)}
	hash := hashOf(small)
	if keys := store.Keys(); len(keys) != 2 || !strings.Contains(strings.Join(keys, " "), "files/"+hash[:2]+"/"+hash) {
		t.Errorf("objects %v", keys)
	}
	for i, want := range [][]byte{small, large, small} {
		if a := s.want(200, "", bob, "GET", auth+"/download/"+ids[i], ""); !bytes.Equal(a.Body, want) {
			t.Errorf("%d: %d bytes", i, len(a.Body))
		}
	}
	for _, r := range []struct {
		header   string
		from, to int
	}{{"bytes=0-9", 0, 10}, {"bytes=100-", 100, 40 << 20}, {"bytes=30000000-30000099", 30_000_000, 30_000_100}, {"bytes=-5", 40<<20 - 5, 40 << 20}} {
		a := s.want(206, "", bob, "GET", auth+"/download/"+ids[1], "", "Range", r.header)
		if !bytes.Equal(a.Body, large[r.from:r.to]) {
			t.Errorf("%s: %d bytes", r.header, len(a.Body))
		}
	}
	s.want(416, "", bob, "GET", auth+"/download/"+ids[1], "", "Range", "bytes=50000000-")
	if a := s.do(bob, "HEAD", auth+"/download/"+ids[1], nil); a.Status != 200 || a.Header.Get("Content-Length") != fmt.Sprint(len(large)) {
		t.Errorf("HEAD: %d %v", a.Status, a.Header)
	}
	empty := s.upload(alice, "a/b", "", nil)
	if a := s.want(200, "", bob, "GET", auth+"/download/"+empty, ""); len(a.Body) != 0 {
		t.Errorf("empty: %q", a.Body)
	}

	// Thumbnails are made of what lies there, and of nothing else.
	pic := s.upload(alice, "image/png", "", picture(t, "png", 200, 100))
	for range 2 {
		if w, h, _ := dimensions(t, s.want(200, "", bob, "GET", auth+"/thumbnail/"+pic+"?width=50&height=50", "").Body); w != 50 || h != 25 {
			t.Errorf("thumbnail of %d x %d", w, h)
		}
	}
	s.want(400, "M_UNKNOWN", bob, "GET", auth+"/thumbnail/"+s.upload(alice, "", "", noise(5000, 2))+"?width=50&height=50", "")

	// The second use keeps content.
	remove := func(id string) {
		t.Helper()
		_, id, _ = strings.Cut(id, "/")
		if err := s.store.Delete(t.Context(), "example.org", id); err != nil {
			t.Fatal(err)
		}
	}
	remove(ids[0])
	s.want(200, "carillon", bob, "GET", auth+"/download/"+ids[2], "")
	remove(ids[2])
	remove(ids[1])
	if keys := strings.Join(store.Keys(), " "); strings.Contains(keys, hash) || strings.Contains(keys, hashOf(large)) {
		t.Errorf("left: %s", keys)
	}
	left, err := filepath.Glob(filepath.Join(s.dir, "tmp", "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Whoever may be sent to the store gets a link that works without a log-in, and with the headers that we say.
func TestBucketRedirect(t *testing.T) {
	t.Parallel()
	store := s3.Start(t)
	s := start(t, media.Options{Bucket: bucketOf(store), Redirect: true, RedirectFrom: 1000, OpenDownloads: true}, nil)
	content := noise(5000, 3)
	id := s.upload(alice, "video/mp4", "影片.mp4", content)
	stay := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	ask := func(method, path string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+bob)
		resp, err := stay.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	resp := ask("GET", auth+"/download/"+id)
	place := resp.Header.Get("Location")
	if resp.StatusCode != 307 || !strings.HasPrefix(place, store.Endpoint) || resp.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	got, err := http.Get(place)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()
	if b, err := io.ReadAll(got.Body); err != nil || !bytes.Equal(b, content) {
		t.Errorf("%d: %d bytes, %v", got.StatusCode, len(b), err)
	}
	if got.Header.Get("Content-Type") != "video/mp4" || !strings.Contains(got.Header.Get("Content-Disposition"), "%E5%BD%B1") {
		t.Errorf("headers %v", got.Header)
	}
	if forged, err := http.Get(strings.Replace(place, "mp4", "mp3", 1)); err != nil || forged.StatusCode != 403 {
		t.Errorf("a changed link: %v %v", forged, err)
	}
	if resp := ask("HEAD", auth+"/download/"+id); resp.StatusCode != 200 {
		t.Errorf("HEAD: %d", resp.StatusCode)
	}
	if resp := ask("GET", auth+"/download/"+s.upload(alice, "a/b", "", content[:999])); resp.StatusCode != 200 {
		t.Errorf("a small file: %d", resp.StatusCode)
	}
	// The old endpoints redirect those only who say so.
	if resp := ask("GET", open+"/download/"+id); resp.StatusCode != 200 {
		t.Errorf("not asked for: %d", resp.StatusCode)
	}
	if resp := ask("GET", open+"/download/"+id+"?allow_redirect=true"); resp.StatusCode != 307 {
		t.Errorf("asked for: %d", resp.StatusCode)
	}
	s.want(400, "M_INVALID_PARAM", "", "GET", open+"/download/"+id+"?allow_redirect=maybe", "")
	// Servers follow no plain HTTP: they get the file.
	_, mediaID, _ := strings.Cut(id, "/")
	s.want(200, string(content[:100]), "", "GET", "/_matrix/federation/v1/media/download/"+mediaID, "")
	b := bucketOf(store)
	b.PublicEndpoint = "https://files.example.org"
	s.serve(media.Options{Bucket: b, Redirect: true}, nil)
	a := s.want(200, "Location: https://files.example.org/media/files/", "", "GET", "/_matrix/federation/v1/media/download/"+mediaID, "")
	if bytes.Contains(a.Body, content[:100]) {
		t.Error("link and file")
	}
}

// flaky is a way to the store that breaks.
func flaky(t *testing.T, store *s3.Store, breaks func(r *http.Request) bool) string {
	t.Helper()
	to, err := url.Parse(store.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = to.Scheme, to.Host, r.In.Host
		}, // the host is signed
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if breaks(r) {
			w = &short{ResponseWriter: w, left: 300_000}
		}
		proxy.ServeHTTP(w, r)
	}))
	web.Config.ErrorLog = nil
	t.Cleanup(web.Close)
	return web.URL
}

// short breaks the connection after some bytes.
type short struct {
	http.ResponseWriter
	left int
}

func (s *short) Write(p []byte) (int, error) {
	if s.left -= len(p); s.left < 0 {
		panic(http.ErrAbortHandler)
	}
	return s.ResponseWriter.Write(p)
}

func (s *short) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// A transfer that breaks off is taken up again, and a store that is away for a moment is asked again.
func TestBucketBreaks(t *testing.T) {
	t.Parallel()
	store := s3.Start(t)
	var gets, puts atomic.Int32
	b := bucketOf(store)
	b.Endpoint = flaky(t, store, func(r *http.Request) bool {
		if r.Method == http.MethodPut && puts.Add(1) == 2 {
			panic(http.ErrAbortHandler)
		}
		return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "files/") && gets.Add(1)%2 == 1
	})
	s := start(t, media.Options{Bucket: b}, nil)
	content := noise(20<<20, 4) // two pieces; the second is lost at first
	id := s.upload(alice, "a/b", "", content)
	if a := s.want(200, "", bob, "GET", auth+"/download/"+id, ""); !bytes.Equal(a.Body, content) {
		t.Errorf("%d bytes", len(a.Body))
	}
	if puts.Load() < 3 || gets.Load() < 4 {
		t.Errorf("nothing broke: %d puts, %d gets", puts.Load(), gets.Load())
	}

	store.Kill()
	if a := s.do(bob, "POST", open+"/upload", bytes.NewReader(noise(100, 5))); a.Status != 500 {
		t.Errorf("without a store: %d %s", a.Status, a.Body)
	}
	if a := s.do(bob, "GET", auth+"/download/"+id, nil); a.Status != 500 {
		t.Errorf("without a store: %d", a.Status)
	}
	store.Run()
	s.want(200, "", bob, "GET", auth+"/download/"+id, "")
}

func TestBucketSettings(t *testing.T) {
	t.Parallel()
	store := s3.Start(t)
	for name, change := range map[string]func(*media.Bucket){
		"no such bucket": func(b *media.Bucket) { b.Name = "others" },
		"wrong key":      func(b *media.Bucket) { b.SecretKey = "guessed" },
		"no address":     func(b *media.Bucket) { b.Endpoint = "s3.example.org" },
		"a path":         func(b *media.Bucket) { b.Endpoint += "/path" },
		"no authority":   func(b *media.Bucket) { b.Endpoint, b.ExtraCAs = "https://127.0.0.1:1", []byte("none") },
	} {
		b := bucketOf(store)
		change(b)
		if _, err := media.New(t.Context(), sqldbtest.Open(t), nil, media.Options{Server: "example.org", Dir: t.TempDir(), Bucket: b}); err == nil {
			t.Errorf("%s: no error", name)
		} else if strings.Contains(err.Error(), b.SecretKey) {
			t.Errorf("%s: the key is in %v", name, err)
		}
	}
}

// What a crash leaves is removed: content without a row, and uploads in pieces that were never finished.
func TestBucketTidy(t *testing.T) {
	t.Parallel()
	store := s3.Start(t)
	now := time.Now()
	s := start(t, media.Options{Bucket: bucketOf(store), Now: func() time.Time { return now }}, nil)
	id := s.upload(alice, "a/b", "", []byte("known"))
	orphan := hashOf([]byte("orphan"))
	put := func(key string) {
		t.Helper()
		if _, err := store.Client.PutObject(t.Context(), store.Bucket, key, strings.NewReader("orphan"), 6, minio.PutObjectOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	put("files/" + orphan[:2] + "/" + orphan)
	put("files/" + orphan[:2] + "/of-somebody-else")
	core := minio.Core{Client: store.Client}
	if _, err := core.NewMultipartUpload(t.Context(), store.Bucket, "files/00/x", minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	pieces := func() (n int) {
		for range store.Client.ListIncompleteUploads(t.Context(), store.Bucket, "files/", true) {
			n++
		}
		return n
	}
	tidy := func(objects, unfinished int) {
		t.Helper()
		if err := s.store.Tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
		if keys := store.Keys(); len(keys) != objects || pieces() != unfinished {
			t.Errorf("objects %v, %d unfinished", keys, pieces())
		}
	}
	tidy(3, 1) // they may be of an upload that is going on
	now = now.Add(25 * time.Hour)
	tidy(2, 0)
	s.want(200, "known", bob, "GET", auth+"/download/"+id, "")
}

// A store can move into a bucket and back while nothing is lost.
func TestCopy(t *testing.T) {
	t.Parallel()
	store := s3.Start(t)
	s := start(t, media.Options{}, nil)
	var ids []string
	for i := range 5 {
		ids = append(ids, s.upload(alice, "a/b", "", noise(1000*i, i)))
	}
	b := *bucketOf(store)
	want := func(files, bytes int64, toBucket bool) {
		t.Helper()
		if n, size, err := media.Copy(t.Context(), s.dir, b, toBucket); err != nil || n != files || size != bytes {
			t.Errorf("copied %d of %d bytes, %v; want %d of %d", n, size, err, files, bytes)
		}
	}
	want(5, 10_000, true)
	want(0, 0, true)
	ids = append(ids, s.upload(alice, "a/b", "", noise(7, 7)))
	want(1, 7, true)
	if err := os.RemoveAll(filepath.Join(s.dir, "files")); err != nil {
		t.Fatal(err)
	}
	s.serve(media.Options{Bucket: &b}, nil)
	for i, id := range ids[:5] {
		if a := s.want(200, "", bob, "GET", auth+"/download/"+id, ""); !bytes.Equal(a.Body, noise(1000*i, i)) {
			t.Errorf("%d: %d bytes", i, len(a.Body))
		}
	}
	want(6, 10_007, false)
	s.serve(media.Options{}, nil)
	s.want(200, string(noise(7, 7)), bob, "GET", auth+"/download/"+ids[5], "")
	left, err := filepath.Glob(filepath.Join(s.dir, "copy-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	b.SecretKey = "guessed"
	if _, _, err := media.Copy(t.Context(), s.dir, b, true); err == nil {
		t.Error("no error with a wrong key")
	}
}

// Content that has vanished from the store: a copy is fetched anew, an upload is not there.
func TestLost(t *testing.T) {
	t.Parallel()
	store := s3.Start(t)
	far := start(t, media.Options{Server: "far.example.org"}, nil)
	id := far.upload("@carol:far.example.org", "a/b", "", []byte("far"))
	for name, o := range map[string]media.Options{"folder": {}, "bucket": {Bucket: bucketOf(store)}} {
		s := start(t, o, &toServer{url: far.url})
		own := s.upload(alice, "a/b", "", []byte("near"))
		s.want(200, "far", alice, "GET", auth+"/download/"+id, "")
		if err := errors.Join(os.RemoveAll(filepath.Join(s.dir, "files")), os.Mkdir(filepath.Join(s.dir, "files"), 0o700)); err != nil {
			t.Fatal(err)
		}
		for _, key := range store.Keys() {
			if err := store.Client.RemoveObject(t.Context(), store.Bucket, key, minio.RemoveObjectOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		s.want(404, "M_NOT_FOUND", alice, "GET", auth+"/download/"+own, "")
		s.want(404, "M_NOT_FOUND", alice, "GET", auth+"/download/"+id, "")
		s.serve(o, &toServer{url: far.url}) // makes the folders
		s.want(200, "far", alice, "GET", auth+"/download/"+id, "")
		if name == "folder" {
			continue
		}
		var files int64
		err := s.db.Read(t.Context(), func(tx *sqldb.Tx) error {
			return tx.QueryRow(`SELECT files FROM media_usage WHERE kind = 'server' AND name = 'far.example.org'`).Scan(&files)
		})
		if err != nil || files != 1 {
			t.Errorf("%d files of the other server are counted, %v", files, err)
		}
	}
}
