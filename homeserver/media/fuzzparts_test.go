package media

import (
	"context"
	"io"
	"mime"
	"net/http"
	"strings"
	"testing"
)

// FuzzDisposition makes headers of names that people gave to files.
func FuzzDisposition(f *testing.F) {
	for _, s := range []string{"a.png", "图.png", "a\"b\\c", "a\r\nSet-Cookie: x", "../../etc/passwd", "\x00\xff", strings.Repeat("长", 200)} {
		f.Add("image/png", s)
		f.Add("text/html", s)
	}
	f.Fuzz(func(t *testing.T, contentType, name string) {
		d := disposition(contentType, name)
		if strings.ContainsAny(d, "\r\n\x00") {
			t.Errorf("%q gives the header %q", name, d)
		}
		kind, params, err := mime.ParseMediaType(d)
		if err != nil || kind != "inline" && kind != "attachment" {
			t.Errorf("%q gives %q: %v", name, d, err)
		}
		if got := params["filename"]; got != "" && got != name {
			t.Errorf("%q is called %q", name, got)
		}
	})
}

// FuzzParts reads the files of other servers.
func FuzzParts(f *testing.F) {
	body := "--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\nContent-Type: text/plain\r\nContent-Disposition: attachment; filename=x\r\n\r\nhello\r\n--b--"
	f.Add("multipart/mixed; boundary=b", body)
	f.Add("multipart/mixed; boundary=b", "--b\r\n\r\n--b\r\n\r\n")
	f.Add("multipart/mixed; boundary=", body)
	f.Add("text/plain", body)
	f.Fuzz(func(t *testing.T, contentType, body string) {
		if strings.Contains(strings.ToLower(body), "location") {
			return // it would be followed
		}
		s := &Store{}
		resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {contentType}}, Body: io.NopCloser(strings.NewReader(body))}
		c, err := s.parts(context.Background(), resp)
		if err != nil {
			return
		}
		defer c.Close()
		if d := disposition(c.contentType, c.filename); strings.ContainsAny(d+c.contentType, "\r\n\x00") {
			t.Errorf("%q of type %q is passed on", d, c.contentType)
		}
		_, _ = io.Copy(io.Discard, c) // it may break off
	})
}
