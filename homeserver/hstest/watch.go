package hstest

import (
	"bytes"
	"io"
	"net/http"
	"sync"
)

// Exchange is a request of another server and its answer.
type Exchange struct {
	To      *Server
	Request *http.Request // its body was read
	Body    []byte
	Answer  Answer
}

// Watch has every request by other servers, from now on, told to fn with its answer.
func (s *Server) Watch(fn func(Exchange)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch = fn
}

// watched is the handler for other servers, which tells of what it does.
func (s *Server) watched(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		fn := s.watch
		s.mu.Unlock()
		if fn == nil {
			h.ServeHTTP(w, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		rec := &witness{ResponseWriter: w}
		h.ServeHTTP(rec, r)
		rec.once.Do(func() { rec.status = http.StatusOK })
		fn(Exchange{To: s, Request: r, Body: body, Answer: Answer{Status: rec.status, Header: w.Header(), Body: rec.body.Bytes()}})
	})
}

// witness keeps a copy of what is written.
type witness struct {
	http.ResponseWriter
	once   sync.Once
	status int
	body   bytes.Buffer
}

// WriteHeader implements http.ResponseWriter.
func (w *witness) WriteHeader(status int) {
	w.once.Do(func() { w.status = status })
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *witness) Write(b []byte) (int, error) {
	w.once.Do(func() { w.status = http.StatusOK })
	w.body.Write(b)
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *witness) Unwrap() http.ResponseWriter { return w.ResponseWriter }
