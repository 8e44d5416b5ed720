package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"
)

// person is somebody who is logged in.
type person struct {
	site     *site
	job      string
	name     string
	user     string
	password string
	token    string
}

// obj is a JSON object.
type obj = map[string]any

// call makes a request as a person and decodes the answer.
func (p *person) call(ctx context.Context, method, path string, in any, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, p.site.client+path, body)
	if err != nil {
		return err
	}
	if p.token != "" {
		req.Header.Set("Authorization", "Bearer "+p.token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %d %s", method, path, resp.StatusCode, b)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// logIn logs in with the first password that the site has written for the personnel department.
func (s *show) logIn(ctx context.Context, x *site, job string) (*person, error) {
	files, err := filepath.Glob(filepath.Join(s.dir, "data", strings.TrimSuffix(filepath.Base(x.file), ".yaml"), "first-passwords", "*.csv"))
	if err != nil {
		return nil, err
	}
	p := &person{site: x, job: job}
	for _, file := range files {
		rows, err := passwordRows(file)
		if err != nil {
			return nil, err
		}
		for _, row := range rows {
			if row[0] == job {
				p.name, p.password = row[1], row[3]
				p.user = row[2]
			}
		}
	}
	if p.password == "" {
		return nil, nil
	}
	var out struct {
		Token string `json:"access_token"`
		User  string `json:"user_id"`
	}
	err = p.call(ctx, http.MethodPost, "/_matrix/client/v3/login", obj{
		"type": "m.login.password", "identifier": obj{"type": "m.id.user", "user": p.user}, "password": p.password,
	}, &out)
	if err != nil {
		return nil, fmt.Errorf("logging %s in: %w", job, err)
	}
	p.token, p.user = out.Token, out.User
	return p, nil
}

// allStaff is the room of everybody.
func (s *show) allStaff(ctx context.Context, p *person) (string, error) {
	var out struct {
		Room string `json:"room_id"`
	}
	alias := "#carillon_.all-staff:" + s.host + ":8461"
	err := p.call(ctx, http.MethodGet, "/_matrix/client/v3/directory/room/"+url.PathEscape(alias), nil, &out)
	return out.Room, err
}

// everybodyIn waits until everybody is in the room of everybody, as each site sees it, and gives one person of each.
func (s *show) everybodyIn(ctx context.Context, people int) (staff []*person, err error) {
	begun := time.Now()
	for i, job := range []string{"D1001", "D2001", "D3001"} {
		x := s.sites[i]
		var p *person
		err := s.until(ctx, "accounts at "+x.name, func() (bool, error) {
			p, err = s.logIn(ctx, x, job)
			return p != nil && err == nil, nil // the file comes before the account
		})
		if err != nil {
			return nil, err
		}
		staff = append(staff, p)
		err = s.until(ctx, "everybody is in the rooms at "+x.name, func() (bool, error) {
			room, err := s.allStaff(ctx, staff[0])
			if err != nil {
				return false, nil //nolint:nilerr // not yet made
			}
			var out struct {
				Joined map[string]any `json:"joined"`
			}
			if err := p.call(ctx, http.MethodGet, "/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/joined_members", nil, &out); err != nil {
				return false, nil //nolint:nilerr // not yet in
			}
			return len(out.Joined) == people+len(s.sites), nil // the sites' bots too
		})
		if err != nil {
			return nil, err
		}
	}
	s.say("%d 人已在三个站点的群里，用时 %s", "%d people are in their rooms at all three sites, after %s", people, time.Since(begun).Round(100*time.Millisecond))
	return staff, nil
}

// cross shows a message, its read list and a DING that cross the sites.
func (s *show) cross(ctx context.Context, staff []*person) error {
	boss := staff[0]
	room, err := s.allStaff(ctx, boss)
	if err != nil {
		return err
	}
	event, err := s.message(ctx, room, staff)
	if err != nil {
		return err
	}
	if err := s.readList(ctx, room, event, staff); err != nil {
		return err
	}
	return s.ding(ctx, staff)
}

func (s *show) message(ctx context.Context, room string, staff []*person) (event string, err error) {
	boss := staff[0]
	var sent struct {
		Event string `json:"event_id"`
	}
	begun := time.Now()
	path := "/_matrix/client/v3/rooms/" + url.PathEscape(room)
	txn := fmt.Sprint(time.Now().UnixNano())
	if err := boss.call(ctx, http.MethodPut, path+"/send/m.room.message/"+txn, obj{"msgtype": "m.text", "body": "各位同事，下午三点全体会议。"}, &sent); err != nil {
		return "", err
	}
	s.say("\n消息：%s（%s）在全员群发言", "\nMessage: %s (%s) writes to everybody", boss.name, boss.site.name)
	for _, p := range staff[1:] {
		err := s.until(ctx, "the message is at "+p.site.name, func() (bool, error) {
			return p.call(ctx, http.MethodGet, path+"/event/"+url.PathEscape(sent.Event), nil, nil) == nil, nil
		})
		if err != nil {
			return "", err
		}
		s.say("  %s（%s）收到，%d 毫秒", "  %s (%s) has it after %d ms", p.name, p.site.name, time.Since(begun).Milliseconds())
		if err := p.call(ctx, http.MethodPost, path+"/receipt/m.read/"+url.PathEscape(sent.Event), obj{}, nil); err != nil {
			return "", err
		}
	}
	return sent.Event, nil
}

func (s *show) readList(ctx context.Context, room, event string, staff []*person) error {
	var page struct {
		Read   int `json:"total_read"`
		Unread int `json:"total_unread"`
		Lag    map[string]struct {
			Behind int64 `json:"behind_ms"`
		} `json:"lag_by_site"`
		Readers []struct {
			Person struct {
				Name string `json:"name"`
				Site string `json:"site"`
			} `json:"person"`
		} `json:"readers"`
	}
	boss := staff[0]
	err := s.until(ctx, "the receipts of the provinces", func() (bool, error) {
		err := boss.call(ctx, http.MethodGet, "/_carillon/v1/messages/"+url.PathEscape(room)+"/"+url.PathEscape(event)+"/readers", nil, &page)
		return page.Read >= len(staff)-1, err
	})
	if err != nil {
		return err
	}
	s.say("\n已读名单：已读 %d，未读 %d", "\nRead list: %d have read it, %d have not", page.Read, page.Unread)
	for _, r := range page.Readers {
		s.say("  已读：%s（%s）", "  read: %s (%s)", r.Person.Name, r.Person.Site)
	}
	for site, lag := range page.Lag {
		s.say("  %s 的滞后：%d 毫秒", "  lag of %s: %d ms", site, lag.Behind)
	}
	return nil
}

func (s *show) ding(ctx context.Context, staff []*person) error {
	boss := staff[0]
	var jobs []string
	for _, p := range staff[1:] {
		jobs = append(jobs, p.job)
	}
	var made struct {
		ID string `json:"id"`
	}
	begun := time.Now()
	err := boss.call(ctx, http.MethodPost, "/_carillon/v1/dings", obj{"body": "请立即确认汛情值班人员", "receivers": obj{"persons": jobs}}, &made)
	if err != nil {
		return err
	}
	s.say("\nDING：%s 发给两省负责人", "\nDING: %s calls the heads of both provinces", boss.name)
	for _, p := range staff[1:] {
		err := s.until(ctx, p.name+" gets the DING", func() (bool, error) {
			var got struct {
				Mine *obj `json:"mine"`
			}
			err := p.call(ctx, http.MethodGet, "/_carillon/v1/dings/"+made.ID, nil, &got)
			return err == nil && got.Mine != nil, nil
		})
		if err != nil {
			return err
		}
		s.say("  %s（%s）收到并确认，%d 毫秒", "  %s (%s) has it and confirms after %d ms", p.name, p.site.name, time.Since(begun).Milliseconds())
		if err := p.call(ctx, http.MethodPost, "/_carillon/v1/dings/"+made.ID+"/confirm", obj{}, nil); err != nil {
			return err
		}
	}
	var got struct {
		State string `json:"state"`
		Sites []struct {
			Site      string `json:"site"`
			Total     int    `json:"total"`
			Confirmed int    `json:"confirmed"`
		} `json:"sites"`
	}
	err = s.until(ctx, "all have confirmed", func() (bool, error) {
		err := boss.call(ctx, http.MethodGet, "/_carillon/v1/dings/"+made.ID, nil, &got)
		return got.State == "confirmed", err
	})
	if err != nil {
		return err
	}
	for _, x := range got.Sites {
		s.say("  %s：%d/%d 已确认", "  %s: %d of %d confirmed", x.Site, x.Confirmed, x.Total)
	}
	s.say("  全部确认，用时 %d 毫秒", "  all confirmed after %d ms", time.Since(begun).Milliseconds())
	return nil
}

// farewell prints where to look further, and as whom.
func (s *show) farewell(staff []*person) {
	s.say("\n登录（任何 Matrix 客户端，主服务器填地址）：", "\nLog-ins, for any Matrix client (the address is the homeserver):")
	for _, p := range staff {
		s.say("  %s  %s  %s  密码 %s", "  %s  %s  %s  password %s", p.site.client, p.name, p.user, p.password)
	}
	s.say("其他人的首次密码在 data/*/first-passwords/。", "The first passwords of all others are in data/*/first-passwords/.")
}
