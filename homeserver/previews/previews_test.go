package previews_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	"image/png"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/text/encoding/simplifiedchinese"
	"golang.org/x/text/encoding/traditionalchinese"

	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/media"
	"github.com/carillon-chat/carillon/homeserver/partstest"
	"github.com/carillon-chat/carillon/homeserver/previews"
	"github.com/carillon-chat/carillon/homeserver/rooms"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

const (
	alice = partstest.Alice
	path  = "/_matrix/client/v1/media/preview_url"
)

type world struct {
	*partstest.World
	previews *previews.Previews
	now      atomic.Int64 // added to the time
	web      *httptest.Server
	mux      *http.ServeMux
	hits     atomic.Int64
}

func open(t *testing.T, guard fedclient.Guard, change ...func(*previews.Options)) *world {
	t.Helper()
	w := &world{World: partstest.New(t, sqldbtest.Open(t), rooms.Options{}), mux: http.NewServeMux()}
	files, err := media.New(w.Ctx, w.DB, nil, media.Options{Server: partstest.Here, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	o := previews.Options{
		Server: partstest.Here, Guard: guard, UserAgent: "Test", Language: "zh-CN,zh;q=0.9",
		Now: func() time.Time { return time.Now().Add(time.Duration(w.now.Load())) },
	}
	for _, c := range change {
		c(&o)
	}
	w.previews, err = previews.New(w.Ctx, w.DB, files, o)
	if err != nil {
		t.Fatal(err)
	}
	w.API.Add(w.previews.Routes()...)
	w.API.Add(files.Routes()...)
	w.web = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.hits.Add(1)
		w.mux.ServeHTTP(rw, r)
	}))
	t.Cleanup(w.web.Close)
	return w
}

// serve puts a page or a picture on the web.
func (w *world) serve(path, contentType string, body []byte) string {
	w.mux.HandleFunc("GET "+path, func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", contentType)
		rw.Write(body)
	})
	return w.web.URL + path
}

func (w *world) preview(address string) map[string]any {
	w.T.Helper()
	out := w.Want(alice, "GET", path+"?url="+url.QueryEscape(address), "", 200, "")
	var m map[string]any
	if err := json.Unmarshal([]byte(out), &m); err != nil {
		w.T.Fatal(err)
	}
	return m
}

func picture(t *testing.T, width, height int) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, image.NewGray(image.Rect(0, 0, width, height))); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestPreview(t *testing.T) {
	w := open(t, fedclient.Everywhere())
	pic := picture(t, 30, 20)
	w.serve("/pics/a.png", "application/octet-stream", pic)
	address := w.serve("/page", "text/html", []byte(`<html><head><title>Not this</title>
<meta property="og:title" content=" The
 Rock &amp; Roll "><meta property="og:title" content="second"><meta property="og:type" content="video.movie"/>
<meta property="og:image:width" content="9999"><meta property='og:image' content='pics/a.png'>
<meta name="description" content="What it is about"></head></html>`))
	got := w.preview(address + "#part")
	mxc, _ := got["og:image"].(string)
	delete(got, "og:image")
	want := map[string]any{
		"og:title": "The Rock & Roll", "og:type": "video.movie", "og:description": "What it is about",
		"og:image:width": 30.0, "og:image:height": 20.0, "og:image:type": "image/png", "matrix:image:size": float64(len(pic)),
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	rest, ok := strings.CutPrefix(mxc, "mxc://a.example/")
	if !ok {
		t.Fatalf("picture %q", mxc)
	}
	download := "/_matrix/client/v1/media/download/a.example/" + rest
	if code, body := w.Do(alice, "GET", download, ""); code != 200 || body != string(pic) {
		t.Errorf("the picture: %d", code)
	}
	hits := w.hits.Load()
	w.preview(address)
	w.Want(alice, "GET", "/_matrix/media/r0/preview_url?url="+url.QueryEscape(address), "", 200, "")
	if w.hits.Load() != hits {
		t.Error("a fresh preview was fetched again")
	}
	w.now.Add(int64(7 * time.Hour))
	w.preview(address)
	if w.hits.Load() == hits {
		t.Error("a stale preview was not fetched again")
	}
	hits = w.hits.Load()
	old := w.Want(alice, "GET", fmt.Sprintf("%s?ts=%d&url=%s", path, time.Now().Add(time.Hour).UnixMilli(), url.QueryEscape(address)), "", 200, "")
	if !strings.Contains(old, mxc) || w.hits.Load() != hits {
		t.Errorf("the preview of an earlier time: %s", old)
	}
	w.now.Add(int64(7*24*time.Hour - 6*time.Hour))
	if err := w.previews.Sweep(w.Ctx); err != nil {
		t.Fatal(err)
	}
	w.Want(alice, "GET", download, "", 404, "M_NOT_FOUND")
	w.preview(address)
}

func TestPages(t *testing.T) {
	w := open(t, fedclient.Everywhere())
	gbk, err := simplifiedchinese.GBK.NewEncoder().String(`<title>项目进度</title><meta name="description" content="每周">`)
	if err != nil {
		t.Fatal(err)
	}
	big5, err := traditionalchinese.Big5.NewEncoder().String(`<title>專案進度</title>`)
	if err != nil {
		t.Fatal(err)
	}
	pic := picture(t, 3, 4)
	large := append(picture(t, 1, 1), make([]byte, 9<<20)...)
	w.serve("/large.png", "image/png", large)
	for _, c := range []struct {
		name, contentType string
		body              []byte
		want              string
	}{
		{"gbk", "text/html; charset=gbk", []byte(gbk), `map[og:description:每周 og:title:项目进度]`},
		{"meta", "text/html", []byte(`<meta charset="gbk">` + gbk), `map[og:description:每周 og:title:项目进度]`},
		{"empty", "text/html", nil, `map[]`},
		{"plain", "text/plain", []byte("<title>no page</title>"), `map[]`},
		{"notype", "x", []byte("<title>no page</title>"), `map[]`},
		{"big5", "text/html; charset=big5", []byte(big5), `map[og:title:專案進度]`},
		{"big5meta", "text/html", []byte(`<meta http-equiv="Content-Type" content="text/html; charset=big5">` + big5), `map[og:title:專案進度]`},
		{"gb18030", "text/html", []byte(`<meta charset="gb2312">` + gbk), `map[og:description:每周 og:title:项目进度]`},
		{"untold", "text/html", []byte(gbk), `map[og:description:每周 og:title:项目进度]`}, // as the reader's language has it
		{"utf8", "text/html", []byte(strings.Repeat(" ", 1000) + "<title>进度进度进度</title>"), `map[og:title:进度进度进度]`},
		{"broken", "text/html", []byte(`<title>a<meta property="og:title" content="b`), `map[og:title:a<meta property="og:title" content="b]`},
		{"twitter", "text/html", []byte(`<meta name="twitter:title" content="T"><meta name="twitter:description" content="D">`), `map[og:description:D og:title:T]`},
		{"long", "text/html", []byte(`<title>` + strings.Repeat("字", 1200) + `</title>`), `map[og:title:` + strings.Repeat("字", 1000) + `…]`},
		{"names", "text/html", []byte(`<meta property="og:x y" content="v"><meta property="evil" content="v"><meta property="OG:Site_Name" content="v">`), `map[og:site_name:v]`},
		{"lost", "text/html", []byte(`<meta property="og:image" content="/nothing.png"><title>t</title>`), `map[og:title:t]`},
		{"script", "text/html", []byte(`<meta property="og:image" content="javascript:alert(1)"><svg><title>icon</title></svg>`), `map[og:title:icon]`},
		{"heavy", "text/html", []byte(`<meta property="og:image" content="/large.png"><title>t</title>`), `map[og:title:t]`},
		{"image", "image/png", pic, ``},
		{"noimage", "image/png", []byte("no picture"), `map[]`},
	} {
		got := w.preview(w.serve("/"+c.name, c.contentType, c.body))
		if c.want == "" {
			if got["og:image:height"] != 4.0 || got["og:image"] == nil {
				t.Errorf("%s: %v", c.name, got)
			}
			continue
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("%s: %v, want %s", c.name, got, c.want)
		}
	}
	huge := w.serve("/huge", "text/html", append([]byte("<title>big</title>"), bytes.Repeat([]byte("<p>x</p>"), 1<<20)...))
	if got := w.preview(huge); got["og:title"] != "big" {
		t.Errorf("a large page: %v", got)
	}
}

func TestRefused(t *testing.T) {
	w := open(t, fedclient.Everywhere())
	for _, c := range []struct{ query, code string }{
		{"", "M_MISSING_PARAM"},
		{"?url=", "M_MISSING_PARAM"},
		{"?url=ftp%3A%2F%2Fx%2F", "M_INVALID_PARAM"},
		{"?url=file%3A%2F%2F%2Fetc%2Fpasswd", "M_INVALID_PARAM"},
		{"?url=http%3A%2F%2F", "M_INVALID_PARAM"},
		{"?url=http%3A%2F%2Fuser%3Apw%40x%2F", "M_INVALID_PARAM"},
		{"?url=http%3A%2F%2F%5Bx", "M_INVALID_PARAM"},
		{"?url=http%3A%2F%2Fx%2F" + strings.Repeat("y", 5000), "M_INVALID_PARAM"},
		{"?url=http%3A%2F%2Fx%2F&ts=yesterday", "M_INVALID_PARAM"},
	} {
		w.Want(alice, "GET", path+c.query, "", 400, c.code)
	}
	w.Want("", "GET", path+"?url=http%3A%2F%2Fx%2F", "", 401, "M_MISSING_TOKEN")

	gone := w.web.URL + "/gone"
	w.Want(alice, "GET", path+"?url="+url.QueryEscape(gone), "", 502, "M_UNKNOWN")
	hits := w.hits.Load()
	w.Want(alice, "GET", path+"?url="+url.QueryEscape(gone), "", 502, "M_UNKNOWN")
	if w.hits.Load() != hits {
		t.Error("a failure was not remembered")
	}
	w.serve("/gone", "text/html", []byte("<title>back</title>"))
	w.now.Add(int64(6 * time.Minute))
	if got := w.preview(gone); got["og:title"] != "back" {
		t.Errorf("after the failure %v", got)
	}
	w.mux.HandleFunc("/loop", func(rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, "/loop?"+r.URL.RawQuery+"x", http.StatusFound)
	})
	w.Want(alice, "GET", path+"?url="+url.QueryEscape(w.web.URL+"/loop"), "", 502, "M_UNKNOWN")
}

// Addresses of the own network are out of reach, by number, by name and by
// redirect.
func TestOwnNetwork(t *testing.T) {
	// Both stand on the same address; one port is the world, the other the inside.
	guard := fedclient.Everywhere()
	var world atomic.Uint32
	guard.Only = func(at netip.AddrPort) bool { return uint32(at.Port()) == world.Load() }
	w := open(t, guard)
	world.Store(uint32(w.web.Listener.Addr().(*net.TCPAddr).Port))
	inside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var reached atomic.Bool
	secret := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		reached.Store(true)
		rw.Header().Set("Content-Type", "text/html")
		fmt.Fprint(rw, "<title>secret</title>")
	})}
	go secret.Serve(inside)
	defer secret.Close()
	target := "http://" + inside.Addr().String() + "/"
	w.mux.HandleFunc("/redirect", func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, target, http.StatusFound) })
	w.Want(alice, "GET", path+"?url="+url.QueryEscape(target), "", 502, "M_UNKNOWN")
	w.Want(alice, "GET", path+"?url="+url.QueryEscape(w.web.URL+"/redirect"), "", 502, "M_UNKNOWN")
	page := w.serve("/page", "text/html", []byte(`<title>t</title><meta property="og:image" content="`+target+`">`))
	if got := w.preview(page); len(got) != 1 {
		t.Errorf("got %v", got)
	}
	if reached.Load() {
		t.Error("the inside was reached")
	}

	closed := open(t, fedclient.Guard{})
	closed.serve("/", "text/html", []byte("<title>t</title>"))
	for _, address := range []string{closed.web.URL, strings.Replace(closed.web.URL, "127.0.0.1", "localhost", 1), strings.Replace(closed.web.URL, "127.0.0.1", "[::ffff:127.0.0.1]", 1)} {
		closed.Want(alice, "GET", path+"?url="+url.QueryEscape(address), "", 502, "M_UNKNOWN")
	}
	if closed.hits.Load() != 0 {
		t.Error("the own machine was visited")
	}
}

// Many who see the same link make one visit.
func TestTogether(t *testing.T) {
	w := open(t, fedclient.Everywhere())
	address := w.serve("/page", "text/html", []byte("<title>t</title>"))
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { w.Do(alice, "GET", path+"?url="+url.QueryEscape(address), "") })
	}
	wg.Wait()
	if n := w.hits.Load(); n != 1 {
		t.Errorf("%d visits", n)
	}
}

func TestOEmbed(t *testing.T) {
	w := open(t, fedclient.Everywhere())
	w.serve("/thumb.png", "image/png", picture(t, 7, 5))
	for name, c := range map[string]struct{ page, kind, body, want string }{
		"video": {
			"", "application/json", `{"version":"1.0","type":"video","title":"A film","provider_name":"Films","thumbnail_url":"thumb.png","html":"<iframe>"}`,
			`A film|Films||7`,
		},
		"rich":       {"", "application/json; charset=utf-8", `{"type":"rich","author_name":"Wang","html":"<p>Hello <b>all</b><script>x</script></p>"}`, `Wang||Hello all|`},
		"photo":      {"", "application/json", `{"type":"photo","title":"P","url":"/thumb.png"}`, `P|||7`},
		"page first": {`<title>Mine</title>`, "application/json", `{"title":"Theirs","provider_name":"Films"}`, `Mine|Films||`},
		"numbers":    {"", "application/json", `{"title":7,"provider_name":["x"],"thumbnail_url":{},"type":null}`, `|||`},
		"no json":    {`<title>Mine</title>`, "application/json", `{"title":`, `Mine|||`},
		"other kind": {"", "text/html", `{"title":"Theirs"}`, `|||`},
		"too large":  {"", "application/json", `{"title":"Theirs","x":"` + strings.Repeat("x", 300<<10) + `"}`, `|||`},
		"bad place":  {"", "application/json", `{"title":"T","thumbnail_url":"file:///etc/passwd"}`, `T|||`},
	} {
		path := "/" + strings.ReplaceAll(name, " ", "-")
		w.serve(path+"/oembed", c.kind, []byte(c.body))
		w.mux.HandleFunc("GET "+path+"/thumb.png", func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, "/thumb.png", http.StatusFound) })
		address := w.serve(path+"/page", "text/html", []byte(`<link rel="alternate" type="application/json+oembed" href="oembed">`+c.page))
		got := w.preview(address)
		text := func(name string) string {
			if got[name] == nil {
				return ""
			}
			return fmt.Sprint(got[name])
		}
		if line := text("og:title") + "|" + text("og:site_name") + "|" + text("og:description") + "|" + text("og:image:width"); line != c.want {
			t.Errorf("%s: %s, want %s", name, line, c.want)
		}
	}
}

// Which hosts are visited can be set, for pages, pictures and redirects alike.
func TestHosts(t *testing.T) {
	w := open(t, fedclient.Everywhere(), func(o *previews.Options) {
		o.Allow, o.Deny = []string{"127.0.0.1", "*.Corp.example", "bücher.example"}, []string{"secret.corp.example"}
	})
	page := w.serve("/page", "text/html", []byte(`<title>t</title><meta property="og:image" content="`+strings.Replace(w.web.URL, "127.0.0.1", "localhost", 1)+`/a.png">`))
	w.serve("/a.png", "image/png", picture(t, 2, 2))
	if got := w.preview(page); len(got) != 1 {
		t.Errorf("got %v", got)
	}
	w.mux.HandleFunc("/away", func(rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, strings.Replace(w.web.URL, "127.0.0.1", "localhost", 1)+"/page", http.StatusFound)
	})
	w.Want(alice, "GET", path+"?url="+url.QueryEscape(w.web.URL+"/away"), "", 502, "M_UNKNOWN")
	for host, permitted := range map[string]bool{
		"localhost": false, "example.org": false, "corp.example": false, "secret.corp.example": false, "SECRET.corp.example.": false,
		"www.corp.example": true, "xn--bcher-kva.example": true, "BÜCHER.example": true,
	} {
		code, body := w.Do(alice, "GET", path+"?url="+url.QueryEscape("http://"+host+":1/"), "")
		if refused := code == 403 && strings.Contains(body, "M_FORBIDDEN"); refused == permitted {
			t.Errorf("%s: %d %s", host, code, body)
		}
	}
}

// Who names a language is given pages in it; for others the company's is asked for.
func TestLanguage(t *testing.T) {
	w := open(t, fedclient.Everywhere())
	w.mux.HandleFunc("GET /page", func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(rw, "<title>%s %s</title>", r.Header.Get("Accept-Language"), r.Header.Get("User-Agent"))
	})
	address := w.web.URL + "/page"
	if got := w.preview(address)["og:title"]; got != "zh-CN,zh;q=0.9 Test" {
		t.Errorf("got %v", got)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", path+"?url="+url.QueryEscape(address), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+string(alice))
	req.Header.Set("Accept-Language", "de")
	rec := httptest.NewRecorder()
	w.API.ServeHTTP(rec, req)
	if !strings.Contains(rec.Body.String(), "de Test") {
		t.Errorf("got %s", rec.Body)
	}
}
