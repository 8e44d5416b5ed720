package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/carillon-chat/carillon/appservice"
	"github.com/carillon-chat/carillon/appservice/derive"
	"github.com/carillon-chat/carillon/appservice/org"
	"github.com/carillon-chat/carillon/config"
)

// demoConfigText is the configuration that a demo starts with; people may change it then.
const demoConfigText = `# The demo's configuration. "carillon check-config --print-example" shows every setting.
server_name: localhost
data_dir: %s
listen: %s
public_base_url: http://%s
homeserver:
  federation:
    enabled: false
appservice:
  company: 明远科技集团
  login_rule: pinyin
`

const demoListen = "127.0.0.1:8008"

// demoConfig reads the demo's configuration, and writes it first if there is none.
func (c serveCmd) demoConfig(a *app) (*config.Config, error) {
	if a.configPath != "" {
		return a.load()
	}
	path := filepath.Join(c.Data, "carillon.yaml")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		listen := c.Listen
		if listen == "" {
			listen = demoListen
		}
		if err := os.MkdirAll(c.Data, 0o700); err != nil {
			return nil, fmt.Errorf("making the data folder: %w", err)
		}
		text := fmt.Sprintf(demoConfigText, quoteYAML(c.Data), quoteYAML(listen), localhost(listen))
		if _, err := config.Read(strings.NewReader(text)); err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return nil, fmt.Errorf("writing the demo's configuration: %w", err)
		}
	}
	a.configPath = path
	cfg, err := a.load()
	if err == nil && c.Listen != "" && c.Listen != cfg.Listen {
		cfg.Listen = c.Listen
		cfg.PublicBaseURL = "http://" + localhost(c.Listen)
	}
	return cfg, err
}

func quoteYAML(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// localhost is a listening address as a client on this machine names it.
func localhost(listen string) string {
	return strings.TrimPrefix((&config.Config{Listen: listen}).LocalAddress(), "http://")
}

// demo makes the demo company at the first start, and says what to try.
func (a *app) demo(ctx context.Context, s *stack) error {
	if s.as.Org().Tree().Version == 0 {
		fmt.Fprintln(a.stderr, "Making the demo company ... 正在建立演示公司……")
		res, err := s.as.Import(ctx, org.DemoCompany(), appservice.ImportOptions{Actor: "demo"})
		if err != nil {
			return fmt.Errorf("making the demo company: %w", err)
		}
		if err := a.waitForRooms(ctx, res.Job); err != nil {
			return fmt.Errorf("making the demo company: %w", err)
		}
	} else if pending, err := s.as.Rooms().Pending(ctx, s.as.Org().Tree()); err != nil {
		return fmt.Errorf("looking at the demo company: %w", err)
	} else if pending { // the last start was cut off
		if err := a.waitForRooms(ctx, s.as.Reconcile(false)); err != nil {
			return fmt.Errorf("making the demo company: %w", err)
		}
	}
	passwords, err := derive.FirstPasswords(s.cfg.PasswordsDir())
	if err != nil {
		return err
	}
	return a.welcome(s, passwords)
}

func (a *app) waitForRooms(ctx context.Context, job *appservice.Job) error {
	progress := newBar(a.stderr)
	defer progress.finish()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	show := func(p *derive.Progress) {
		if p != nil {
			progress.set(p.Phase, p.Done, p.Total)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			show(job.Status().Progress)
		case <-job.Done():
			if st := job.Status(); st.State != appservice.JobDone {
				return errors.New(st.Error)
			}
			return nil
		}
	}
}

// demoPeople are those whom the welcome introduces.
var demoPeople = [...]struct{ id, en, zh string }{
	{org.DemoEmployee, "an employee", "员工"},
	{org.DemoHead, "a department head", "部门负责人"},
	{org.DemoAdmin, "the administrator", "管理员"},
}

// welcome prints where the demo is, who one can be, and what to try.
func (a *app) welcome(s *stack, passwords map[string]string) error {
	var people, chen strings.Builder
	for _, d := range demoPeople {
		p := s.as.Org().Tree().Person(d.id)
		if p == nil {
			continue // the demo company was replaced by another
		}
		password := passwords[p.ID]
		if password == "" {
			password = "(as changed / 已修改)"
		}
		fmt.Fprintf(&people, "    %-10s  %-20s  %s (%s / %s)\n", p.Localpart, password, p.Name, d.en, d.zh)
		if d.id == org.DemoEmployee {
			chen.WriteString("@" + p.Localpart + ":" + s.cfg.ServerName)
		}
	}
	address := s.cfg.ClientAddress()
	_, err := fmt.Fprintf(a.stdout, `
Carillon runs. Any Matrix client can log in at   %[1]s
Carillon 已启动。任意 Matrix 客户端都可以登录：  %[1]s

  Log-in and first password / 登录名和首次密码
%[2]s
  Try / 试一试
    1. Log in as two of them in two clients and write into their department's room.
       用两个客户端分别登录两个人，在部门群里发消息。
    2. React to your own message with 👀, or reply !readers to it: Carillon tells you privately who has read it.
       给自己的消息回应 👀，或回复 !已读：Carillon 会私下告诉您谁已读、谁未读。
    3. Reply !ding to a message to DING its unread, or write: !ding %[3]s Please call me
       回复 !ding 可以 DING 所有未读的人，也可以直接发送：!ding %[3]s 请给我回电话
       The other confirms with ✅ or by replying ok.   对方回应 ✅ 或回复“收到”即为确认。

  The company / 公司:   carillon -c %[4]s org tree
  Stop / 停止:          Ctrl-C

`, address, people.String(), chen.String(), a.configPath)
	return err
}
