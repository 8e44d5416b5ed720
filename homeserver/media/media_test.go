package media_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/httpapi/httpapitest"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/media"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

const (
	alice = "@alice:example.org"
	bob   = "@bob:example.org"
)

// anyServer believes every server.
type anyServer struct{}

func (anyServer) VerifyOrigin(*http.Request, []byte) (matrix.ServerName, error) {
	return "far.example.org", nil
}

type server struct {
	t     testing.TB
	url   string
	db    *sqldb.DB
	dir   string
	store *media.Store
}

func start(t testing.TB, opts media.Options, remote media.Remote) *server {
	t.Helper()
	s := &server{t: t, db: sqldbtest.Open(t), dir: t.TempDir()}
	s.serve(opts, remote)
	return s
}

// serve builds the store on the database and folder, as a start of the server does.
func (s *server) serve(opts media.Options, remote media.Remote) {
	s.t.Helper()
	opts.Dir = s.dir
	if opts.Server == "" {
		opts.Server = "example.org"
	}
	var err error
	if s.store, err = media.New(s.t.Context(), s.db, remote, opts); err != nil {
		s.t.Fatal(err)
	}
	api := httpapi.New(httpapi.Options{Authenticator: httpapitest.ByToken{}, OriginVerifier: anyServer{}})
	api.Add(s.store.Routes()...)
	api.Add(
		httpapi.Route{Method: "GET", Path: "/_matrix/federation/v1/media/download/{mediaId}", Auth: httpapi.AuthServer, Handler: s.store.ServeFederationDownload},
		httpapi.Route{Method: "GET", Path: "/_matrix/federation/v1/media/thumbnail/{mediaId}", Auth: httpapi.AuthServer, Handler: s.store.ServeFederationThumbnail},
	)
	web := httptest.NewServer(api)
	s.t.Cleanup(web.Close)
	s.url = web.URL
}

func (s *server) do(user, method, path string, body io.Reader, header ...string) httpapitest.Answer {
	s.t.Helper()
	return httpapitest.Call(s.t, method, s.url+path, user, body, header...)
}

func (s *server) want(status int, text string, user, method, path, body string, header ...string) httpapitest.Answer {
	s.t.Helper()
	a := s.do(user, method, path, strings.NewReader(body), header...)
	if a.Status != status || !bytes.Contains(a.Body, []byte(text)) {
		s.t.Errorf("%s %s: got %d %.200s, want %d with %s", method, path, a.Status, a.Body, status, text)
	}
	return a
}

// upload stores content and returns "server/id".
func (s *server) upload(user, contentType, filename string, body []byte) string {
	s.t.Helper()
	path := "/_matrix/media/v3/upload"
	if filename != "" {
		path += "?filename=" + url.QueryEscape(filename)
	}
	a := s.do(user, "POST", path, bytes.NewReader(body), "Content-Type", contentType)
	if a.Status != 200 {
		s.t.Fatalf("upload: %d %s", a.Status, a.Body)
	}
	return mxc(s.t, a.Body)
}

func mxc(t testing.TB, b []byte) string {
	t.Helper()
	_, rest, ok := strings.Cut(string(b), `"mxc://`)
	id, _, ok2 := strings.Cut(rest, `"`)
	if !ok || !ok2 {
		t.Fatalf("no mxc URI in %s", b)
	}
	return id
}

// files are the contents that lie in the folder.
func (s *server) files() (n int) {
	s.t.Helper()
	err := filepath.WalkDir(filepath.Join(s.dir, "files"), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

const (
	auth = "/_matrix/client/v1/media"
	open = "/_matrix/media/v3"
)

func TestUploadAndDownload(t *testing.T) {
	s := start(t, media.Options{MaxUpload: 1 << 20}, nil)
	content := bytes.Repeat([]byte("carillon"), 10_000)
	id := s.upload(alice, "text/plain", "a file.txt", content)
	a := s.want(200, "", bob, "GET", auth+"/download/"+id, "")
	if !bytes.Equal(a.Body, content) || a.Header.Get("Content-Type") != "text/plain" {
		t.Errorf("%d bytes of %s", len(a.Body), a.Header.Get("Content-Type"))
	}
	kind, params, err := mime.ParseMediaType(a.Header.Get("Content-Disposition"))
	if err != nil || kind != "inline" || params["filename"] != "a file.txt" {
		t.Errorf("disposition %s", a.Header.Get("Content-Disposition"))
	}
	for name, want := range map[string]string{
		"Content-Security-Policy":      "sandbox",
		"Cross-Origin-Resource-Policy": "cross-origin",
		"X-Content-Type-Options":       "nosniff",
		"Cache-Control":                "private",
		"Access-Control-Allow-Origin":  "*",
	} {
		if !strings.Contains(a.Header.Get(name), want) {
			t.Errorf("%s: %q", name, a.Header.Get(name))
		}
	}
	part := s.want(206, "", bob, "GET", auth+"/download/"+id, "", "Range", "bytes=8-15")
	if string(part.Body) != "carillon" {
		t.Errorf("range: %q", part.Body)
	}
	s.want(304, "", bob, "GET", auth+"/download/"+id, "", "If-None-Match", a.Header.Get("ETag"))
	if head := s.do(bob, "HEAD", auth+"/download/"+id, nil); head.Status != 200 || head.Header.Get("Content-Length") != fmt.Sprint(len(content)) {
		t.Errorf("HEAD: %d %v", head.Status, head.Header)
	}
	a = s.want(200, "", bob, "GET", auth+"/download/"+id+"/%E6%96%87%E4%BB%B6.txt", "")
	if _, params, err = mime.ParseMediaType(a.Header.Get("Content-Disposition")); err != nil || params["filename"] != "文件.txt" {
		t.Errorf("disposition %s", a.Header.Get("Content-Disposition"))
	}

	// The same content is kept once.
	again := s.upload(bob, "", "", content)
	if again == id || s.files() != 1 {
		t.Errorf("%s and %s in %d files", id, again, s.files())
	}
	a = s.want(200, "", bob, "GET", auth+"/download/"+again, "")
	if a.Header.Get("Content-Type") != "application/octet-stream" || a.Header.Get("Content-Disposition") != "attachment" {
		t.Errorf("without type and name: %v", a.Header)
	}
	s.serve(media.Options{}, nil) // a restart
	s.want(200, "carillon", bob, "GET", auth+"/download/"+id, "")
}

func TestUploadErrors(t *testing.T) {
	s := start(t, media.Options{MaxUpload: 1000, UserBytes: 2500, UserFiles: 4}, nil)
	s.want(401, "M_MISSING_TOKEN", "", "POST", open+"/upload", "x")
	s.want(413, "M_TOO_LARGE", alice, "POST", open+"/upload", strings.Repeat("x", 1001))
	// Without a length the limit counts while reading.
	a := s.do(alice, "POST", open+"/upload", io.LimitReader(zeros{}, 5000))
	if a.Status != 413 {
		t.Errorf("chunked: %d %s", a.Status, a.Body)
	}
	s.upload(alice, "a/b", "", make([]byte, 1000))
	s.upload(alice, "a/b", "", bytes.Repeat([]byte("y"), 1000))
	s.want(403, "M_FORBIDDEN", alice, "POST", open+"/upload", strings.Repeat("z", 501))
	s.upload(alice, "a/b", "", make([]byte, 100))
	s.upload(alice, "a/b", "", nil)
	s.want(403, "M_FORBIDDEN", alice, "POST", open+"/upload", "1")
	s.want(403, "M_FORBIDDEN", alice, "POST", "/_matrix/media/v1/create", "{}")
	id := s.upload(bob, "text/plain; <script>", "../../etc/passwd\r\nX: y", []byte("x"))
	a = s.want(200, "x", bob, "GET", auth+"/download/"+id, "")
	if a.Header.Get("Content-Type") != "application/octet-stream" || a.Header.Get("X") != "" || strings.ContainsAny(a.Header.Get("Content-Disposition"), "\r\n") {
		t.Errorf("header %v", a.Header)
	}
	tmp, err := filepath.Glob(filepath.Join(s.dir, "tmp", "*"))
	if err != nil || len(tmp) != 0 {
		t.Errorf("left behind: %v", tmp)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestNames(t *testing.T) {
	s := start(t, media.Options{}, nil)
	for _, path := range []string{
		"/download/example.org/none", "/download/example.org/..%2f..%2fetc%2fpasswd", "/download/exa%2fmple.org/abc",
		"/download/example.org/%2e%2e", "/download/far.example.org/abc", "/download/example.org/a%20b",
		"/thumbnail/example.org/none?width=1&height=1",
	} {
		s.want(404, "M_NOT_FOUND", alice, "GET", auth+path, "")
	}
	s.want(400, "M_INVALID_PARAM", alice, "GET", auth+"/download/example.org/abc?timeout_ms=x", "")
	s.want(401, "M_MISSING_TOKEN", "", "GET", auth+"/download/example.org/none", "")
	s.want(401, "M_MISSING_TOKEN", "", "GET", auth+"/thumbnail/example.org/none?width=1&height=1", "")
	for _, path := range []string{auth + "/config", open + "/config", "/_matrix/media/r0/config"} {
		s.want(200, `{"m.upload.size":104857600}`, alice, "GET", path, "")
	}
}

func TestFrozenEndpoints(t *testing.T) {
	s := start(t, media.Options{OpenDownloads: true}, nil)
	before := s.upload(alice, "image/png", "x.png", picture(t, "png", 40, 40))
	thumbnail := "?width=10&height=10"
	for _, v := range []string{"v3", "r0", "v1"} {
		a := s.want(200, "PNG", "", "GET", "/_matrix/media/"+v+"/download/"+before, "")
		if !strings.HasPrefix(a.Header.Get("Cache-Control"), "public") {
			t.Errorf("Cache-Control %s", a.Header.Get("Cache-Control"))
		}
	}
	s.want(200, "PNG", "", "GET", open+"/download/"+before+"/other.png", "")
	s.want(200, "PNG", "", "GET", open+"/thumbnail/"+before+thumbnail, "")

	s.serve(media.Options{}, nil) // frozen from now on
	after := s.upload(alice, "image/png", "y.png", picture(t, "png", 40, 40))
	s.want(200, "PNG", "", "GET", open+"/download/"+before, "")
	s.want(404, "M_NOT_FOUND", "", "GET", open+"/download/"+after, "")
	s.want(404, "M_NOT_FOUND", "", "GET", open+"/download/"+after+"/y.png", "")
	s.want(404, "M_NOT_FOUND", "", "GET", open+"/thumbnail/"+after+thumbnail, "")
	s.want(200, "PNG", bob, "GET", auth+"/download/"+after, "")

	// Pictures of sign-in pages are seen by who has no token yet.
	s.serve(media.Options{Public: func(uri string) bool { return uri == "mxc://"+after }}, nil)
	s.want(200, "PNG", "", "GET", open+"/download/"+after, "")
	s.want(200, "PNG", "", "GET", open+"/thumbnail/"+after+thumbnail, "")
	s.want(404, "M_NOT_FOUND", "", "GET", open+"/download/"+s.upload(alice, "image/png", "z.png", picture(t, "png", 40, 40)), "")
}

func TestCreateAndFill(t *testing.T) {
	now := time.Now()
	s := start(t, media.Options{MaxPending: 2, Now: func() time.Time { return now }}, nil)
	create := func() string {
		t.Helper()
		return mxc(t, s.want(200, "unused_expires_at", alice, "POST", "/_matrix/media/v1/create", "{}").Body)
	}
	id := create()
	s.want(504, "M_NOT_YET_UPLOADED", bob, "GET", auth+"/download/"+id+"?timeout_ms=0", "")
	s.want(504, "M_NOT_YET_UPLOADED", bob, "GET", auth+"/thumbnail/"+id+"?timeout_ms=1&width=5&height=5", "")
	s.want(403, "M_FORBIDDEN", bob, "PUT", open+"/upload/"+id, "x")
	s.want(404, "M_NOT_FOUND", alice, "PUT", open+"/upload/example.org/none", "x")
	s.want(404, "M_NOT_FOUND", alice, "PUT", open+"/upload/far.example.org/none", "x")

	// Somebody waits while it comes.
	var wg sync.WaitGroup
	wg.Go(func() {
		if a := s.do(bob, "GET", auth+"/download/"+id, nil); a.Status != 200 || string(a.Body) != "here" {
			t.Errorf("the one who waited got %d %s", a.Status, a.Body)
		}
	})
	s.want(200, "{}", alice, "PUT", open+"/upload/"+id+"?filename=a.txt", "here", "Content-Type", "text/plain")
	wg.Wait()
	s.want(409, "M_CANNOT_OVERWRITE_MEDIA", alice, "PUT", open+"/upload/"+id, "again")
	s.want(409, "M_CANNOT_OVERWRITE_MEDIA", alice, "PUT", open+"/upload/"+s.upload(alice, "a/b", "", []byte("x")), "again")

	// Of several at the same time one wins.
	id = create()
	statuses := make(chan int, 5)
	for i := range 5 {
		wg.Go(func() {
			statuses <- s.do(alice, "PUT", open+"/upload/"+id, strings.NewReader(fmt.Sprint("content ", i))).Status
		})
	}
	wg.Wait()
	close(statuses)
	count := map[int]int{}
	for status := range statuses {
		count[status]++
	}
	if count[200] != 1 || count[409] != 4 {
		t.Errorf("statuses %v", count)
	}

	create()
	late := create()
	s.want(429, "M_LIMIT_EXCEEDED", alice, "POST", "/_matrix/media/v1/create", "{}")
	now = now.Add(25 * time.Hour)
	s.want(404, "M_NOT_FOUND", alice, "PUT", open+"/upload/"+late, "x")
	s.want(404, "M_NOT_FOUND", alice, "GET", auth+"/download/"+late, "")
	if err := s.store.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	create()
	s.want(200, "here", bob, "GET", auth+"/download/"+first(t, s), "")
}

// first is a file that stays.
func first(t *testing.T, s *server) string {
	t.Helper()
	return s.upload(alice, "a/b", "", []byte("here"))
}

// toServer is a Remote that asks one real store, or says what it is told to say.
type toServer struct {
	mu    sync.Mutex
	url   string
	fail  error
	gets  int
	reply func() *http.Response
	old   bool // knows only the endpoint for everybody
}

func (r *toServer) Get(ctx context.Context, server matrix.ServerName, path string, query url.Values) (*http.Response, error) {
	r.mu.Lock()
	r.gets++
	fail, reply := r.fail, r.reply
	r.mu.Unlock()
	if fail != nil {
		return nil, fail
	}
	if r.old && strings.HasPrefix(path, "/_matrix/federation/") {
		return nil, &fedclient.Error{Server: server, Status: 404, Code: "M_UNRECOGNIZED"}
	}
	if reply != nil {
		return reply(), nil
	}
	return r.GetURL(ctx, r.url+path+"?"+query.Encode())
}

func (r *toServer) GetURL(ctx context.Context, u string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", u, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err == nil && res.StatusCode >= 400 {
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		code := "M_UNKNOWN"
		for _, c := range []string{"M_NOT_FOUND", "M_NOT_YET_UPLOADED"} {
			if bytes.Contains(b, []byte(c)) {
				code = c
			}
		}
		return nil, &fedclient.Error{Server: "far.example.org", Status: res.StatusCode, Code: code}
	}
	return res, err
}

func TestRemote(t *testing.T) {
	far := start(t, media.Options{Server: "far.example.org"}, nil)
	remote := &toServer{url: far.url}
	s := start(t, media.Options{MaxRemote: 100_000}, remote)
	id := far.upload("@carol:far.example.org", "image/png", "cat.png", picture(t, "png", 100, 60))
	var wg sync.WaitGroup
	for range 5 { // one fetch for all
		wg.Go(func() {
			a := s.want(200, "PNG", alice, "GET", auth+"/download/"+id, "")
			if d := a.Header.Get("Content-Disposition"); d != "inline; filename=cat.png" || a.Header.Get("Content-Type") != "image/png" {
				t.Errorf("%s %s", d, a.Header.Get("Content-Type"))
			}
		})
	}
	wg.Wait()
	if remote.gets != 1 {
		t.Errorf("%d fetches", remote.gets)
	}
	s.want(200, "PNG", alice, "GET", auth+"/thumbnail/"+id+"?width=20&height=20", "")
	s.want(404, "M_NOT_FOUND", "", "GET", open+"/download/"+id, "") // a copy is new media
	other := far.upload("@carol:far.example.org", "text/plain", "", []byte("other"))
	s.want(404, "M_NOT_FOUND", "", "GET", open+"/download/"+other, "")

	big := far.upload("@carol:far.example.org", "a/b", "", make([]byte, 200_000))
	s.want(502, "M_TOO_LARGE", alice, "GET", auth+"/download/"+big, "")
	s.want(404, "M_NOT_FOUND", alice, "GET", auth+"/download/far.example.org/none", "")
	pending := mxc(t, far.want(200, "", "@carol:far.example.org", "POST", "/_matrix/media/v1/create", "{}").Body)
	s.want(504, "M_NOT_YET_UPLOADED", alice, "GET", auth+"/download/"+pending+"?timeout_ms=1", "")
	remote.fail = errors.New("connection refused")
	s.want(502, "M_UNKNOWN", alice, "GET", auth+"/download/far.example.org/down", "")
	s.want(200, "PNG", alice, "GET", auth+"/download/"+id, "") // the copy
}

func TestRemoteForms(t *testing.T) {
	far := start(t, media.Options{Server: "far.example.org", OpenDownloads: true}, nil)
	remote := &toServer{url: far.url, old: true}
	s := start(t, media.Options{OpenDownloads: true}, remote)
	id := far.upload("@carol:far.example.org", "text/plain", "old.txt", []byte("from an old server"))
	s.want(404, "M_NOT_FOUND", "", "GET", open+"/download/"+id+"?allow_remote=false", "")
	s.want(200, "from an old server", "", "GET", open+"/download/"+id, "")

	remote.old = false
	multi := func(parts ...string) func() *http.Response {
		return func() *http.Response {
			body := ""
			for _, p := range parts {
				body += "--b\r\n" + p + "\r\n"
			}
			return &http.Response{
				StatusCode: 200, Header: http.Header{"Content-Type": {"multipart/mixed; boundary=b"}},
				Body: io.NopCloser(strings.NewReader(body + "--b--\r\n")),
			}
		}
	}
	const meta = "Content-Type: application/json\r\n\r\n{}"
	place := far.upload("@carol:far.example.org", "text/plain", "", []byte("elsewhere"))
	for i, tt := range []struct {
		reply  func() *http.Response
		status int
		text   string
	}{
		{multi(meta, "Content-Type: text/plain\r\nContent-Disposition: attachment; filename=\"a.txt\"\r\n\r\ntext"), 200, "text"},
		{multi(meta, "Location: "+far.url+open+"/download/"+place+"\r\n\r\n"), 200, "elsewhere"},
		{multi(meta), 502, "M_UNKNOWN"},
		{multi(), 502, "M_UNKNOWN"},
		{func() *http.Response {
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("x"))}
		}, 502, "M_UNKNOWN"},
	} {
		remote.reply = tt.reply
		s.want(tt.status, tt.text, alice, "GET", fmt.Sprintf("%s/download/far.example.org/form%d", auth, i), "")
	}
}

func TestServeOtherServers(t *testing.T) {
	s := start(t, media.Options{}, nil)
	id := s.upload(alice, "image/png", "x.png", picture(t, "png", 64, 64))
	_, id, _ = strings.Cut(id, "/")
	for path, length := range map[string]int{"download/" + id: 64, "thumbnail/" + id + "?width=16&height=16&method=crop": 16} {
		a := s.want(200, "", "", "GET", "/_matrix/federation/v1/media/"+path, "")
		kind, params, err := mime.ParseMediaType(a.Header.Get("Content-Type"))
		if err != nil || kind != "multipart/mixed" {
			t.Fatalf("%s", a.Header.Get("Content-Type"))
		}
		mr := multipart.NewReader(bytes.NewReader(a.Body), params["boundary"])
		first, err := mr.NextPart()
		if err != nil || first.Header.Get("Content-Type") != "application/json" {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(first); string(b) != "{}" {
			t.Errorf("metadata %s", b)
		}
		second, err := mr.NextPart()
		if err != nil || second.Header.Get("Content-Type") != "image/png" || !strings.HasPrefix(second.Header.Get("Content-Disposition"), "inline") {
			t.Fatalf("%v %v", err, second)
		}
		b, _ := io.ReadAll(second)
		if w, _, _ := dimensions(t, b); w != length {
			t.Errorf("%s is %d wide", path, w)
		}
	}
	s.want(404, "M_NOT_FOUND", "", "GET", "/_matrix/federation/v1/media/download/none", "")
	s.want(400, "M_MISSING_PARAM", "", "GET", "/_matrix/federation/v1/media/thumbnail/"+id, "")
}

func TestSweepCopies(t *testing.T) {
	now := time.Now()
	far := start(t, media.Options{Server: "far.example.org"}, nil)
	s := start(t, media.Options{RemoteBytes: 2500, Now: func() time.Time { return now }}, &toServer{url: far.url})
	var ids []string
	for i := range 4 {
		ids = append(ids, far.upload("@carol:far.example.org", "a/b", "", bytes.Repeat([]byte{byte(i)}, 1000)))
		s.want(200, "", alice, "GET", auth+"/download/"+ids[i], "")
		now = now.Add(time.Minute)
	}
	own := s.upload(alice, "a/b", "", bytes.Repeat([]byte{0}, 1000)) // the same content as the oldest copy
	if err := s.store.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := s.files(); n != 3 {
		t.Errorf("%d files", n)
	}
	s.want(200, "", alice, "GET", auth+"/download/"+own, "")
	s.want(200, "", alice, "GET", auth+"/download/"+ids[1], "") // fetched anew
}

func TestServerUpload(t *testing.T) {
	s := start(t, media.Options{}, nil)
	uri, err := s.store.Upload(t.Context(), "", "text/csv", "list.csv", strings.NewReader("a,b"))
	if err != nil || !strings.HasPrefix(uri, "mxc://example.org/") {
		t.Fatalf("%s %v", uri, err)
	}
	s.want(200, "a,b", alice, "GET", auth+"/download/"+strings.TrimPrefix(uri, "mxc://"), "")
	if err := s.store.Delete(t.Context(), "example.org", strings.TrimPrefix(uri, "mxc://example.org/")); err != nil {
		t.Fatal(err)
	}
	s.want(404, "M_NOT_FOUND", alice, "GET", auth+"/download/"+strings.TrimPrefix(uri, "mxc://"), "")
	if s.files() != 0 {
		t.Error("the content is still there")
	}
}
