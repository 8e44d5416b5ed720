package smpp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/bridges/bridge"
	"github.com/carillon-chat/carillon/bridges/sms"
	"github.com/carillon-chat/carillon/bridges/sms/smpp"
	"github.com/carillon-chat/carillon/test/freeport"
	"github.com/carillon-chat/carillon/test/npm"
)

// smsc is a carrier's SMSC, a process of its own.
type smsc struct {
	t      *testing.T
	in     io.WriteCloser
	events chan map[string]any
	cmd    *exec.Cmd
	addr   string
}

func newSMSC(t *testing.T, port int) *smsc {
	t.Helper()
	log.SetOutput(io.Discard)
	npm.Need(t, "testdata/smsc")
	s := &smsc{t: t, events: make(chan map[string]any, 1000)}
	s.cmd = exec.Command("node", "--no-warnings", "smsc.mjs", fmt.Sprint(port))
	s.cmd.Dir = "testdata/smsc"
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var e map[string]any
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				s.events <- e
			}
		}
	}()
	s.addr = fmt.Sprintf("127.0.0.1:%.0f", s.next("listening")["port"])
	return s
}

func (s *smsc) kill() { _ = s.cmd.Process.Kill(); _ = s.cmd.Wait() }

// do has it do something.
func (s *smsc) do(v map[string]any) {
	s.t.Helper()
	b, _ := json.Marshal(v) // of the test's own making
	if _, err := s.in.Write(append(b, '\n')); err != nil {
		s.t.Fatal(err)
	}
	if v["mode"] != nil {
		s.next("mode")
	}
}

// next waits for the next event of a name.
func (s *smsc) next(name string) map[string]any {
	s.t.Helper()
	end := time.After(20 * time.Second)
	for {
		select {
		case e := <-s.events:
			if e["event"] == name {
				return e
			}
		case <-end:
			s.t.Fatalf("the SMSC saw no %s", name)
		}
	}
}

// none is sure that no event of a name comes for a while.
func (s *smsc) none(name string) {
	s.t.Helper()
	end := time.After(300 * time.Millisecond)
	for {
		select {
		case e := <-s.events:
			if e["event"] == name {
				s.t.Fatalf("the SMSC saw %v", e)
			}
		case <-end:
			return
		}
	}
}

// told is what a client was told.
type told struct {
	mu      sync.Mutex
	reports []sms.Report
	replies []sms.Reply
	fails   int // of reports, before one is taken
}

func (o *told) events() sms.Events {
	return sms.Events{
		Report: func(_ context.Context, r sms.Report) error {
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.fails > 0 {
				o.fails--
				return errors.New("the database is away")
			}
			o.reports = append(o.reports, r)
			return nil
		},
		Reply: func(_ context.Context, r sms.Reply) error {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.replies = append(o.replies, r)
			return nil
		},
	}
}

func start(t *testing.T, s *smsc, edit func(*smpp.Options)) (*smpp.Client, *told) {
	t.Helper()
	o := smpp.Options{Address: s.addr, SystemID: "carillon", Password: "secret", Source: "10690", Timeout: 5 * time.Second}
	if edit != nil {
		edit(&o)
	}
	c, err := smpp.New(o)
	if err != nil {
		t.Fatal(err)
	}
	out := &told{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx, out.events()) }()
	t.Cleanup(func() { cancel(); <-done })
	return c, out
}

func send(t *testing.T, c *smpp.Client, text string) (sms.Accepted, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	return c.Send(ctx, &sms.Message{To: "+8613800138000", Text: text})
}

func TestTexts(t *testing.T) {
	t.Parallel()
	s := newSMSC(t, 0)
	c, _ := start(t, s, nil)
	if b := s.next("bind"); b["ok"] != true {
		t.Fatal(b)
	}
	for _, text := range []string{"Your code is 123456 @ Carillon {1}", "【示例公司】您的验证码是 123456，5 分钟内有效。", strings.Repeat("x", 160), strings.Repeat("字", 70)} {
		a, err := send(t, c, text)
		if err != nil || a.Parts != 1 || a.ID == "" {
			t.Fatal(a, err)
		}
		if e := s.next("submit"); e["text"] != text || e["to"] != "8613800138000" || e["from"] != "10690" || e["registered"] != 1.0 || e["udh"] != "" {
			t.Errorf("%q arrives as %v", text, e)
		}
	}
	long := strings.Repeat("通知：", 60) + "🚨" + strings.Repeat("完", 20)
	a, err := send(t, c, long)
	if err != nil || a.Parts < 2 {
		t.Fatal(a, err)
	}
	whole, refs := "", map[string]bool{}
	for i := range a.Parts {
		e := s.next("submit")
		whole += e["text"].(string)
		udh := e["udh"].(string)
		if e["esm"] != 64.0 || !strings.HasSuffix(udh, fmt.Sprintf("%02x%02x", a.Parts, i+1)) || (e["registered"] == 1.0) != (i == a.Parts-1) {
			t.Errorf("part %d: %v", i, e)
		}
		refs[udh[:len(udh)-4]] = true
	}
	if whole != long || len(refs) != 1 {
		t.Errorf("%q, %v", whole, refs)
	}
	// Many at once share the window.
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := send(t, c, "many"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestReceipts(t *testing.T) {
	t.Parallel()
	s := newSMSC(t, 0)
	c, out := start(t, s, func(o *smpp.Options) { o.IDs = "decimal" })
	a, err := send(t, c, "hello")
	if err != nil || a.ID != "11255809" { // abc001 in the answer
		t.Fatal(a, err)
	}
	want := func(n int) []sms.Report {
		t.Helper()
		for range 200 {
			out.mu.Lock()
			got := append([]sms.Report(nil), out.reports...)
			out.mu.Unlock()
			if len(got) >= n {
				return got
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("there are not %d reports", n)
		return nil
	}
	s.do(map[string]any{"receipt": "1", "stat": "ENROUTE"})
	if r := s.next("deliver_resp"); r["status"] != 0.0 {
		t.Error(r)
	}
	s.do(map[string]any{"receipt": a.ID, "stat": "DELIVRD"})
	s.next("deliver_resp")
	s.do(map[string]any{"receipt": "2", "stat": "UNDELIV", "err": "064"})
	s.next("deliver_resp")
	s.do(map[string]any{"tlv": "3", "state": 3})
	s.next("deliver_resp")
	got := want(3)
	if got[0] != (sms.Report{ID: a.ID, State: bridge.Delivered}) || got[1] != (sms.Report{ID: "2", State: bridge.Failed, Reason: "UNDELIV 064"}) || got[2].State != bridge.Expired || got[2].ID != "3" {
		t.Errorf("%+v", got)
	}
	// What could not be recorded is told again.
	out.mu.Lock()
	out.fails = 1
	out.mu.Unlock()
	s.do(map[string]any{"receipt": "4", "stat": "DELIVRD"})
	if r := s.next("deliver_resp"); r["status"] != 100.0 {
		t.Errorf("a receipt that was not recorded: %v", r)
	}
	s.do(map[string]any{"reply": "收到"})
	s.next("deliver_resp")
	out.mu.Lock()
	if len(out.replies) != 1 || out.replies[0] != (sms.Reply{From: "8613800138000", To: "10690", Text: "收到"}) {
		t.Errorf("%+v", out.replies)
	}
	out.mu.Unlock()
	s.do(map[string]any{"enquire": true})
	s.next("enquire_resp")
	s.do(map[string]any{"unknown": true})
	if n := s.next("nack"); n["command"] != "generic_nack" && n["command"] != "query_sm_resp" {
		t.Error(n)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	s := newSMSC(t, 0)
	c, _ := start(t, s, nil)
	s.do(map[string]any{"mode": "refuse"})
	if _, err := send(t, c, "x"); err == nil || errors.Is(err, sms.ErrUnsure) || strings.Contains(err.Error(), "1380") {
		t.Error(err)
	}
	s.do(map[string]any{"mode": "throttle"})
	if a, err := send(t, c, "later"); err != nil || a.ID == "" {
		t.Error(a, err)
	}
	// The SMSC takes a text and goes: nobody gets it twice.
	s.do(map[string]any{"mode": "drop"})
	if _, err := send(t, c, "perhaps"); !errors.Is(err, sms.ErrUnsure) {
		t.Error(err)
	}
	s.do(map[string]any{"mode": "ok"})
	if _, err := send(t, c, "again"); err != nil { // on a new session
		t.Error(err)
	}
	s.do(map[string]any{"mode": "silent"})
	if _, err := send(t, c, "silence"); !errors.Is(err, sms.ErrUnsure) {
		t.Error(err)
	}
	s.do(map[string]any{"mode": "ok"})
	if _, err := send(t, c, "back"); err != nil {
		t.Error(err)
	}
	s.do(map[string]any{"mode": "ok"}) // and nothing of before is looked at
	s.do(map[string]any{"unbind": true})
	s.next("closed")
	s.next("bind")
	if _, err := send(t, c, "rebound"); err != nil {
		t.Error(err)
	}
}

// The SMSC is away, and comes back.
func TestAway(t *testing.T) {
	t.Parallel()
	l := freeport.Listen(t)
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	first := &smsc{t: t, addr: l.Addr().String()}
	c, _ := start(t, first, func(o *smpp.Options) { o.Timeout = 15 * time.Second })
	result := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		_, err := c.Send(ctx, &sms.Message{To: "+8613800138000", Text: "when you are back"})
		result <- err
	}()
	time.Sleep(200 * time.Millisecond)
	newSMSC(t, port)
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestEnquires(t *testing.T) {
	t.Parallel()
	s := newSMSC(t, 0)
	start(t, s, func(o *smpp.Options) { o.Enquire, o.Timeout = 100*time.Millisecond, 200*time.Millisecond })
	s.next("enquire")
	s.do(map[string]any{"mode": "silent"})
	s.next("closed")
	s.do(map[string]any{"mode": "ok"})
	s.next("bind")
}

func TestWrongPassword(t *testing.T) {
	t.Parallel()
	s := newSMSC(t, 0)
	start(t, s, func(o *smpp.Options) { o.Password = "wrong" })
	if b := s.next("bind"); b["ok"] != false {
		t.Error(b)
	}
	s.none("bind") // it does not hammer
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]smpp.Options{
		"no port": {Address: "smsc.example", SystemID: "x"}, "no system ID": {Address: "h:1"}, "password": {Address: "h:1", SystemID: "x", Password: "123456789"},
		"source": {Address: "h:1", SystemID: "x", Source: strings.Repeat("1", 21)}, "IDs": {Address: "h:1", SystemID: "x", IDs: "octal"},
		"CAs": {Address: "h:1", SystemID: "x", TLS: true, ExtraCAs: []byte("none")},
	} {
		if _, err := smpp.New(o); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
