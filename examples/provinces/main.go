// Command provinces shows one company over three sites on one machine: a head office and two provinces, each with a
// Carillon of its own. It starts them, imports the company at the head office, waits until everybody is in the rooms,
// shows a message, its read list and a DING that cross the sites, and keeps them running until Ctrl-C.
package main

import (
	"context"
	"encoding/csv"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// site is one of the three.
type site struct {
	file   string // its configuration
	name   string
	client string // address for people
	cmd    *exec.Cmd
	ended  chan error
}

// show is the whole of it.
type show struct {
	dir, bin, host string
	patience       time.Duration
	english        bool
	out            io.Writer
	sites          []*site
}

func main() {
	s := &show{out: os.Stdout}
	var once, zh bool
	flag.StringVar(&s.dir, "dir", "", "folder of the example; found by itself where it is below the working folder")
	flag.StringVar(&s.bin, "bin", "", "the program carillon; built where it is not given")
	flag.StringVar(&s.host, "host", "127.0.0.1", "loopback address of the sites")
	flag.DurationVar(&s.patience, "patience", 3*time.Minute, "how long to wait for everybody to be in the rooms")
	flag.BoolVar(&once, "once", false, "end after the show")
	flag.BoolVar(&zh, "zh", strings.HasPrefix(os.Getenv("LANG"), "zh"), "speak Chinese")
	flag.Parse()
	s.english = !zh
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := s.run(ctx, once); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "provinces:", err)
		os.Exit(1)
	}
}

// say prints a line in the chosen language.
func (s *show) say(zh, en string, args ...any) {
	text := zh
	if s.english {
		text = en
	}
	fmt.Fprintf(s.out, text+"\n", args...)
}

func (s *show) run(ctx context.Context, once bool) error {
	if err := s.prepare(ctx); err != nil {
		return err
	}
	defer s.stop()
	if err := s.start(ctx); err != nil {
		return err
	}
	people, err := s.importCompany(ctx)
	if err != nil {
		return err
	}
	staff, err := s.everybodyIn(ctx, people)
	if err != nil {
		return err
	}
	if err := s.cross(ctx, staff); err != nil {
		return err
	}
	s.farewell(staff)
	if once {
		return nil
	}
	s.say("按 Ctrl-C 结束。", "Ctrl-C ends it.")
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.anyEnd():
		return err
	}
}

// prepare finds the folder, builds the program, makes certificates, and moves the configuration to another address
// where one was given.
func (s *show) prepare(ctx context.Context) (err error) {
	for _, dir := range []string{s.dir, ".", filepath.Join("examples", "provinces")} {
		if _, err := os.Stat(filepath.Join(dir, "zongbu.yaml")); err == nil && (dir != "" || s.dir == "") {
			s.dir = dir
			break
		}
	}
	if s.dir, err = filepath.Abs(s.dir); err != nil {
		return err
	}
	data := filepath.Join(s.dir, "data")
	if err := os.MkdirAll(filepath.Join(data, "certs"), 0o700); err != nil {
		return err
	}
	if s.bin == "" {
		s.bin = filepath.Join(data, "carillon")
		s.say("正在编译 carillon……", "Building carillon ...")
		build := exec.CommandContext(ctx, "go", "build", "-tags", "goolm,nodynamic", "-o", s.bin, "github.com/carillon-chat/carillon/cmd/carillon")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("building carillon: %w", err)
		}
	}
	if s.bin, err = filepath.Abs(s.bin); err != nil {
		return err
	}
	if err := makeCertificates(filepath.Join(data, "certs"), s.host); err != nil {
		return fmt.Errorf("making certificates: %w", err)
	}
	for _, at := range []struct{ file, name, port string }{{"zongbu", "总部", "8011"}, {"sichuan", "四川", "8012"}, {"guangdong", "广东", "8013"}} {
		x := &site{file: at.file + ".yaml", name: at.name, client: "http://" + s.host + ":" + at.port, ended: make(chan error, 1)}
		if s.host != "127.0.0.1" {
			text, err := os.ReadFile(filepath.Join(s.dir, x.file))
			if err != nil {
				return err
			}
			x.file = filepath.Join("data", x.file)
			text = []byte(strings.ReplaceAll(string(text), "127.0.0.1", s.host))
			if err := os.WriteFile(filepath.Join(s.dir, x.file), text, 0o600); err != nil {
				return err
			}
		}
		s.sites = append(s.sites, x)
	}
	return nil
}

// start starts the three processes and waits until they answer.
func (s *show) start(ctx context.Context) error {
	for _, x := range s.sites {
		x.cmd = exec.Command(s.bin, "serve", "-c", x.file) // ended by stop, in order
		x.cmd.Dir, x.cmd.Stdout, x.cmd.Stderr = s.dir, os.Stderr, os.Stderr
		x.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for this program, which ends them
		if err := x.cmd.Start(); err != nil {
			return fmt.Errorf("starting %s: %w", x.name, err)
		}
		go func() { x.ended <- x.cmd.Wait() }()
	}
	for _, x := range s.sites {
		err := s.until(ctx, x.name+" answers", func() (bool, error) {
			select {
			case err := <-x.ended:
				x.ended <- err
				return false, fmt.Errorf("%s has ended: %w", x.name, err)
			default:
			}
			resp, err := http.Get(x.client + "/_matrix/client/versions")
			if err != nil {
				return false, nil //nolint:nilerr // not yet
			}
			resp.Body.Close()
			return resp.StatusCode == http.StatusOK, nil
		})
		if err != nil {
			return err
		}
	}
	s.say("三个站点已启动：", "Three sites are running:")
	for _, x := range s.sites {
		s.say("  %s  %s", "  %s  %s", x.name, x.client)
	}
	return nil
}

// anyEnd hears of the first process that ends.
func (s *show) anyEnd() <-chan error {
	first := make(chan error, len(s.sites))
	for _, x := range s.sites {
		go func() {
			err := <-x.ended
			x.ended <- err
			first <- fmt.Errorf("%s has ended: %w", x.name, err)
		}()
	}
	return first
}

// stop ends the processes and waits for them.
func (s *show) stop() {
	for _, x := range s.sites {
		if x.cmd != nil && x.cmd.Process != nil {
			_ = x.cmd.Process.Signal(syscall.SIGTERM)
		}
	}
	for _, x := range s.sites {
		if x.cmd == nil || x.cmd.Process == nil {
			continue
		}
		select {
		case <-x.ended:
		case <-time.After(15 * time.Second):
			_ = x.cmd.Process.Kill()
		}
	}
}

// until waits for what others bring about.
func (s *show) until(ctx context.Context, what string, ok func() (bool, error)) error {
	for end := time.Now().Add(s.patience); ; {
		done, err := ok()
		if done || err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("it did not come about: %s", what)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// importCompany imports the company file at the head office and tells how many people work there.
func (s *show) importCompany(ctx context.Context) (int, error) {
	s.say("在总部导入公司文件……", "Importing the company at the head office ...")
	cmd := exec.CommandContext(ctx, s.bin, "org", "import", "-c", s.sites[0].file, filepath.Join("company", "units.csv"), filepath.Join("company", "people.csv"))
	cmd.Dir = s.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("importing the company: %w\n%s", err, out)
	}
	rows, err := readCSV(filepath.Join(s.dir, "company", "people.csv"))
	if err != nil {
		return 0, err
	}
	n := 0
	for _, row := range rows {
		if row["left"] == "" {
			n++
		}
	}
	return n, nil
}

// readCSV reads a table by its header.
func readCSV(path string) ([]map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil || len(rows) == 0 {
		return nil, errors.Join(err, fmt.Errorf("reading %s", path))
	}
	var out []map[string]string
	for _, row := range rows[1:] {
		m := map[string]string{}
		for i, v := range row {
			m[strings.TrimPrefix(rows[0][i], "\ufeff")] = v
		}
		out = append(out, m)
	}
	return out, nil
}

// passwordRows are the lines of a file of first passwords: job number, name, log-in name, password.
func passwordRows(path string) ([][]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return nil, nil //nolint:nilerr // it is being written
	}
	var out [][]string
	for _, row := range rows {
		if len(row) >= 4 {
			out = append(out, row)
		}
	}
	return out, nil
}
