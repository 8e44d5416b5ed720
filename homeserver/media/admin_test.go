package media_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/media"
)

const (
	admin     = "@admin:example.org"
	adminBase = "/_carillon/admin/v1/media"
)

func (s *server) json(user, method, path, body string, into any) {
	s.t.Helper()
	a := s.want(200, "", user, method, path, body)
	if err := json.Unmarshal(a.Body, into); err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
}

// usage is what is noted, as "files bytes", of a user and of the whole server.
func (s *server) usage(user string) string {
	s.t.Helper()
	var of struct{ Files, Bytes int64 }
	var all struct{ Local, Remote struct{ Files, Bytes int64 } }
	s.json(admin, "GET", "/_carillon/admin/v1/users/"+user+"/media", "", &of)
	s.json(admin, "GET", adminBase, "", &all)
	return fmt.Sprint(of.Files, " ", of.Bytes, ", ", all.Local.Files, " ", all.Local.Bytes, ", ", all.Remote.Files, " ", all.Remote.Bytes)
}

func (s *server) wantUsage(user, want string) {
	s.t.Helper()
	if got := s.usage(user); got != want {
		s.t.Errorf("usage of %s, of all, of copies: %s, want %s", user, got, want)
	}
}

func TestQuotas(t *testing.T) {
	t.Parallel()
	s := start(t, media.Options{UserBytes: 1000, UserFiles: 3, ServerBytes: 1500}, nil)
	up := func(status int, user string, n int) {
		t.Helper()
		text := ""
		if status == 403 {
			text = "M_FORBIDDEN"
		}
		s.want(status, text, user, "POST", open+"/upload", string(noise(n, n)))
		// And without a length before it, where only what has come in counts.
		if status == 403 {
			if a := s.do(user, "POST", open+"/upload", io.LimitReader(bytes.NewReader(noise(n, n)), int64(n))); a.Status != 403 {
				t.Errorf("chunked: %d %s", a.Status, a.Body)
			}
		}
	}
	up(200, alice, 600)
	up(403, alice, 401)
	up(200, alice, 400)
	up(403, alice, 1)
	s.wantUsage(alice, "2 1000, 2 1000, 0 0")
	up(403, bob, 501) // of all
	up(200, bob, 300)
	up(200, bob, 10)
	id := s.upload(bob, "a/b", "", noise(20, 20))
	up(403, bob, 1) // files
	s.want(403, "M_FORBIDDEN", bob, "POST", "/_matrix/media/v1/create", "{}")
	s.want(200, "{}", admin, "DELETE", adminBase+"/"+id, "")
	s.wantUsage(bob, "2 310, 4 1310, 0 0")
	up(200, bob, 20)

	// Many at once do not get past.
	var wg sync.WaitGroup
	ok := make(chan int, 20)
	for i := range 20 {
		wg.Go(func() {
			if a := s.do("@carol:example.org", "POST", open+"/upload", bytes.NewReader(noise(10, 100+i))); a.Status == 200 {
				ok <- i
			}
		})
	}
	wg.Wait()
	if len(ok) != 3 {
		t.Errorf("%d of 20 uploads at once", len(ok))
	}
	s.wantUsage("@carol:example.org", "3 30, 8 1360, 0 0")
	var list struct {
		Usage []struct {
			Name         string
			Files, Bytes int64
		}
		Next string `json:"next_batch"`
	}
	s.json(admin, "GET", adminBase+"/usage?limit=2", "", &list)
	if len(list.Usage) != 2 || list.Usage[0].Name != alice || list.Next != bob {
		t.Errorf("usage %+v", list)
	}
	s.json(admin, "GET", adminBase+"/usage?limit=2&from="+list.Next, "", &list)
	if len(list.Usage) != 1 || list.Usage[0].Bytes != 30 {
		t.Errorf("usage %+v", list)
	}
	s.want(200, `{"name":"example.org","files":8,"bytes":1360}`, admin, "GET", adminBase+"/usage?by=server", "")
	s.want(400, "M_INVALID_PARAM", admin, "GET", adminBase+"/usage?by=size", "")
}

func TestTypeLimits(t *testing.T) {
	s := start(t, media.Options{MaxUpload: 1000, TypeLimits: []media.TypeLimit{
		{Type: "application/x-msdownload"}, {Type: "image/png", Max: 500}, {Type: "image/*", Max: 100}, {Type: "video/*", Max: 5000},
	}}, nil)
	for _, tt := range []struct {
		kind   string
		n      int
		status int
		code   string
	}{
		{"application/x-msdownload", 1, 403, "M_FORBIDDEN"},
		{"application/X-MSDownload; v=1", 1, 403, "M_FORBIDDEN"},
		{"image/png", 500, 200, ""},
		{"image/png", 501, 413, "M_TOO_LARGE"},
		{"image/gif", 101, 413, "M_TOO_LARGE"},
		{"video/mp4", 1000, 200, ""},
		{"video/mp4", 1001, 413, "M_TOO_LARGE"},
		{"", 1000, 200, ""},
	} {
		s.want(tt.status, tt.code, alice, "POST", open+"/upload", strings.Repeat("x", tt.n), "Content-Type", tt.kind)
		id := mxc(t, s.want(200, "", alice, "POST", "/_matrix/media/v1/create", "{}").Body)
		s.want(tt.status, tt.code, alice, "PUT", open+"/upload/"+id, strings.Repeat("x", tt.n), "Content-Type", tt.kind)
	}
}

func TestQuarantine(t *testing.T) {
	t.Parallel()
	far := start(t, media.Options{Server: "far.example.org"}, nil)
	remote := &toServer{url: far.url}
	s := start(t, media.Options{}, remote)
	pic := picture(t, "png", 100, 100)
	first, second := s.upload(alice, "image/png", "", pic), s.upload(bob, "image/png", "b.png", pic)
	other := s.upload(alice, "image/png", "", picture(t, "png", 90, 90))
	const thumb = "?width=32&height=32&method=crop"
	s.want(200, "PNG", bob, "GET", auth+"/thumbnail/"+first+thumb, "")
	s.want(403, "M_FORBIDDEN", alice, "PUT", adminBase+"/"+first+"/quarantine", "{}")
	s.want(404, "M_NOT_FOUND", admin, "PUT", adminBase+"/example.org/none/quarantine", "{}")
	s.want(400, "M_INVALID_PARAM", admin, "PUT", adminBase+"/"+first+"/quarantine", `{"reason":"`+strings.Repeat("x", 1001)+`"}`)
	s.want(400, "M_NOT_JSON", admin, "PUT", adminBase+"/"+first+"/quarantine", `{`)
	s.want(200, "{}", admin, "PUT", adminBase+"/"+first+"/quarantine", `{"reason":"leaked"}`)
	for _, id := range []string{first, second} { // the same content
		for _, path := range []string{"/download/" + id, "/download/" + id + "/x.png", "/thumbnail/" + id + thumb} {
			s.want(404, "M_NOT_FOUND", bob, "GET", auth+path, "")
		}
		_, mediaID, _ := strings.Cut(id, "/")
		s.want(404, "M_NOT_FOUND", "", "GET", "/_matrix/federation/v1/media/download/"+mediaID, "")
	}
	s.want(200, "PNG", bob, "GET", auth+"/download/"+other, "")
	s.want(403, "M_FORBIDDEN", bob, "POST", open+"/upload", string(pic))
	id := mxc(t, s.want(200, "", bob, "POST", "/_matrix/media/v1/create", "{}").Body)
	s.want(403, "M_FORBIDDEN", bob, "PUT", open+"/upload/"+id, string(pic))
	var list struct {
		Quarantines []media.Quarantine
	}
	s.json(admin, "GET", adminBase+"/quarantine", "", &list)
	if len(list.Quarantines) != 2 || list.Quarantines[1].Reason != "leaked" || list.Quarantines[0].By != admin {
		t.Errorf("%+v", list)
	}
	s.want(200, `"quarantined":true`, admin, "GET", adminBase+"/"+second, "")
	// Those who have to judge it see it, as a file.
	a := s.want(200, "PNG", admin, "GET", adminBase+"/"+second+"/content", "")
	if d := a.Header.Get("Content-Disposition"); d != "attachment; filename=b.png" || a.Header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("%s %s", d, a.Header.Get("Content-Type"))
	}
	s.want(403, "M_FORBIDDEN", bob, "GET", adminBase+"/"+second+"/content", "")

	// Another server's file, before and after it is here.
	theirs := far.upload("@carol:far.example.org", "image/png", "", pic)
	s.want(404, "M_NOT_FOUND", bob, "GET", auth+"/download/"+theirs, "") // by its content
	fetched := remote.gets
	late := far.upload("@carol:far.example.org", "a/b", "", []byte("late"))
	s.want(200, "{}", admin, "PUT", adminBase+"/"+late+"/quarantine", "{}")
	s.want(404, "M_NOT_FOUND", bob, "GET", auth+"/download/"+late, "")
	if remote.gets != fetched {
		t.Error("what is in quarantine was fetched")
	}

	for _, id := range []string{first, late} {
		s.want(200, "{}", admin, "DELETE", adminBase+"/"+id+"/quarantine", "")
	}
	s.want(200, "PNG", bob, "GET", auth+"/download/"+second, "")
	s.want(200, "late", bob, "GET", auth+"/download/"+late, "")
}

func TestPurge(t *testing.T) {
	s := start(t, media.Options{}, nil)
	for i := range 5 {
		s.upload(alice, "a/b", fmt.Sprint(i, ".bin"), noise(10+i, i))
	}
	id := s.upload(bob, "image/png", "b.png", picture(t, "png", 100, 100))
	s.want(200, "PNG", bob, "GET", auth+"/thumbnail/"+id+"?width=32&height=32&method=crop", "")
	s.want(404, "M_NOT_FOUND", admin, "DELETE", adminBase+"/example.org/none", "")
	s.want(200, "{}", admin, "DELETE", adminBase+"/"+id, "")
	s.want(404, "M_NOT_FOUND", admin, "GET", adminBase+"/"+id, "")
	s.want(404, "M_NOT_FOUND", bob, "GET", auth+"/thumbnail/"+id+"?width=32&height=32&method=crop", "")
	if left, _ := filepath.Glob(filepath.Join(s.dir, "thumbnails", "*", "*", "*")); len(left) != 0 {
		t.Errorf("thumbnails are left: %v", left)
	}
	const of = "/_carillon/admin/v1/users/" + alice + "/media"
	var page struct {
		Media []struct {
			URI  string `json:"content_uri"`
			Size int64
			Hash string `json:"sha256"`
		}
		Next string `json:"next_batch"`
	}
	s.json(admin, "GET", of+"?limit=3", "", &page)
	if len(page.Media) != 3 || page.Next == "" || len(page.Media[0].Hash) != 64 {
		t.Errorf("%+v", page)
	}
	s.want(200, `"deleted":3,"more":true`, admin, "DELETE", of+"?limit=3", "")
	s.want(200, `"deleted":2,"more":false`, admin, "DELETE", of+"?limit=3", "")
	s.wantUsage(alice, "0 0, 0 0, 0 0")
	if s.files() != 0 {
		t.Errorf("%d files", s.files())
	}
	for _, path := range []string{of, adminBase, adminBase + "/usage", adminBase + "/quarantine"} {
		s.want(403, "M_FORBIDDEN", alice, "GET", path, "")
	}
}

// What nobody asks for goes, unless it is in use or protected.
func TestRetention(t *testing.T) {
	t.Parallel()
	now := time.Now()
	far := start(t, media.Options{Server: "far.example.org"}, nil)
	inUse := ""
	s := start(t, media.Options{
		Now: func() time.Time { return now }, RemoteFor: 30 * 24 * time.Hour, LocalFor: 90 * 24 * time.Hour,
		InUse: func(u matrix.UserID, uri string) bool { return u == alice && uri == inUse },
	}, &toServer{url: far.url})
	var local, copies []string
	for i := range 4 {
		local = append(local, s.upload(alice, "a/b", "", noise(10, i)))
		copies = append(copies, far.upload("@carol:far.example.org", "a/b", "", noise(10, 10+i)))
		s.want(200, "", bob, "GET", auth+"/download/"+copies[i], "")
	}
	inUse = "mxc://" + local[1]
	s.want(200, "{}", admin, "PUT", adminBase+"/"+local[2]+"/protection", `{"protected":true}`)
	s.want(400, "M_MISSING_PARAM", admin, "PUT", adminBase+"/"+local[2]+"/protection", `{}`)
	sweep := func(days int, want string) {
		t.Helper()
		now = now.Add(time.Duration(days) * 24 * time.Hour)
		if err := s.store.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.wantUsage(alice, want)
	}
	sweep(20, "4 40, 4 40, 4 40")
	s.want(200, "", bob, "GET", auth+"/download/"+copies[0], "")
	sweep(20, "4 40, 4 40, 1 10")
	s.want(200, "", bob, "GET", auth+"/download/"+copies[1], "") // fetched anew
	s.want(200, "", bob, "GET", auth+"/download/"+local[3], "")
	sweep(60, "3 30, 3 30, 0 0")
	s.want(404, "M_NOT_FOUND", bob, "GET", auth+"/download/"+local[0], "")
	sweep(100, "2 20, 2 20, 0 0")
	for i, status := range []int{404, 200, 200, 404} {
		s.want(status, "", bob, "GET", auth+"/download/"+local[i], "")
	}
	if s.files() != 2 {
		t.Errorf("%d files", s.files())
	}
}

// A crash between content and row leaves content that nobody knows, which goes; a crash in an upload leaves nothing.
func TestTidy(t *testing.T) {
	t.Parallel()
	now := time.Now()
	s := start(t, media.Options{Now: func() time.Time { return now }, ThumbnailBytes: 4000}, nil)
	id := s.upload(alice, "a/b", "", []byte("known"))
	orphan := hashOf([]byte("orphan"))
	path := filepath.Join(s.dir, "files", orphan[:2], orphan)
	foreign := filepath.Join(filepath.Dir(path), "lost+found")
	half := filepath.Join(s.dir, "tmp", "upload-1")
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("orphan"), 0o600), os.WriteFile(foreign, nil, 0o600), os.WriteFile(half, []byte("hal"), 0o600)); err != nil {
		t.Fatal(err)
	}
	tidy := func(files int) {
		t.Helper()
		if err := s.store.Tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := s.files(); n != files {
			t.Errorf("%d files, want %d", n, files)
		}
	}
	tidy(3)
	now = now.Add(25 * time.Hour)
	tidy(2)
	s.want(200, "known", bob, "GET", auth+"/download/"+id, "")
	s.serve(media.Options{}, nil)
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half an upload is left: %v", err)
	}

	// Thumbnails that were used longest ago make room.
	s.serve(media.Options{Now: func() time.Time { return now }, ThumbnailBytes: 4000}, nil)
	tidy(2)
	pic := s.upload(alice, "image/png", "", picture(t, "png", 300, 300))
	for i := range 20 {
		s.want(200, "PNG", bob, "GET", fmt.Sprintf("%s/thumbnail/%s?width=%d&height=%d", auth, pic, 100+i, 100+i), "")
	}
	var size int64
	kept, _ := filepath.Glob(filepath.Join(s.dir, "thumbnails", "*", "*", "*"))
	for _, k := range kept {
		info, err := os.Stat(k)
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > 4000 || len(kept) == 0 || len(kept) == 20 {
		t.Errorf("%d thumbnails of %d bytes", len(kept), size)
	}
}

// Those who go away leave a fetch to the others, and the last one ends it.
func TestFlights(t *testing.T) {
	t.Parallel()
	begun, finish, ended := make(chan struct{}, 10), make(chan struct{}), make(chan struct{}, 10)
	remote := &toServer{}
	remote.reply = func() *http.Response {
		r, w := io.Pipe()
		go func() {
			io.WriteString(w, "--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\nContent-Type: a/b\r\n\r\nfirst")
			begun <- struct{}{}
			<-finish
			io.WriteString(w, " last\r\n--b--\r\n")
			w.Close()
		}()
		return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"multipart/mixed; boundary=b"}}, Body: closer{r, ended}}
	}
	s := start(t, media.Options{}, remote)
	const path = auth + "/download/far.example.org/abc"
	get := func(wait time.Duration) int {
		c := &http.Client{Timeout: wait}
		req, _ := http.NewRequest("GET", s.url+path, nil)
		req.Header.Set("Authorization", "Bearer "+alice)
		resp, err := c.Do(req)
		if err != nil {
			return 0
		}
		defer resp.Body.Close()
		if b, _ := io.ReadAll(resp.Body); string(b) != "first last" {
			t.Errorf("got %q", b)
		}
		return resp.StatusCode
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if got := get(10 * time.Second); got != 200 {
				t.Errorf("status %d", got)
			}
		})
	}
	<-begun
	if got := get(100 * time.Millisecond); got != 0 {
		t.Errorf("impatient: %d", got)
	}
	close(finish)
	wg.Wait()
	if remote.gets != 1 {
		t.Errorf("%d fetches", remote.gets)
	}
	<-ended

	finish = make(chan struct{}) // never closed: the fetch must end because nobody waits
	req, _ := http.NewRequest("GET", s.url+auth+"/download/far.example.org/def", nil)
	req.Header.Set("Authorization", "Bearer "+alice)
	if _, err := (&http.Client{Timeout: 100 * time.Millisecond}).Do(req); err == nil {
		t.Error("an answer without content")
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the fetch goes on though nobody waits")
	}
}

// closer tells that a body was closed.
type closer struct {
	io.ReadCloser
	ended chan struct{}
}

func (c closer) Close() error {
	err := c.ReadCloser.Close()
	c.ended <- struct{}{}
	return err
}
