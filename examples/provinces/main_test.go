package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/carillon-chat/carillon/test/program"
)

func TestMain(m *testing.M) { os.Exit(program.Main(m)) }

// TestTheShow runs the whole example on a loopback address of its own and reads what it prints.
func TestTheShow(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("loopback addresses beside 127.0.0.1 need setting up here")
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(filepath.Join(dir, "data")) // of somebody who has tried the example
	var out bytes.Buffer
	s := &show{dir: dir, bin: program.Path(t), host: freeHost(t), patience: time.Minute, english: true, out: &out}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := s.run(ctx, true); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{
		"58 people are in their rooms at all three sites", "罗建军 (四川) has it after", "金志伟 (广东) has it after",
		"Read list: 2 have read it, 55 have not", "read: 罗建军 (四川)", "read: 金志伟 (广东)", "lag of 四川: ", "lag of 广东: ",
		"四川: 1 of 1 confirmed", "广东: 1 of 1 confirmed", "all confirmed after", "@linhai:" + s.host + ":8461",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not print %q:\n%s", want, out.String())
		}
	}
	for _, x := range s.sites {
		if x.cmd.ProcessState == nil {
			t.Errorf("%s is still running", x.name)
		}
	}
}

// freeHost is a loopback address at which nobody listens on the example's ports.
func freeHost(t *testing.T) string {
	for range 100 {
		host := fmt.Sprintf("127.%d.%d.%d", 60+rand.N(100), 1+rand.N(250), 1+rand.N(250))
		l, err := net.Listen("tcp", host+":8011")
		if err == nil {
			l.Close()
			return host
		}
	}
	t.Fatal("no loopback address is free")
	return ""
}
