// Package lang keeps the language in which the service speaks to each person. It owns the table as_languages, which
// holds only those who chose another than the default. All of it is in memory; a choice is durable when Set returns.
package lang

import (
	"context"
	"embed"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

//go:embed schema/*.sql
var schemaFS embed.FS

// Lang is a language the service speaks.
type Lang string

// The languages.
const (
	Chinese Lang = "zh"
	English Lang = "en"
)

// Pick is the text in this language.
func (l Lang) Pick(zh, en string) string {
	if l == English {
		return en
	}
	return zh
}

// Duration is how long something took, in its two largest units, to the second: "2 min 15 s".
func (l Lang) Duration(d time.Duration) string {
	s := max(int64(d.Round(time.Second)/time.Second), 0)
	parts := []string{}
	for _, u := range []struct {
		seconds int64
		zh, en  string
	}{{86_400, "天", "d"}, {3600, "小时", "h"}, {60, "分", "min"}, {1, "秒", "s"}} {
		n := s / u.seconds
		s %= u.seconds
		if n > 0 && len(parts) < 2 || u.seconds == 1 && len(parts) == 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, l.Pick(u.zh, u.en)))
		}
	}
	return strings.Join(parts, " ")
}

// Parse reads a language as people write it.
func Parse(s string) (Lang, bool) {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "zh", "cn", "zh-cn", "zh_cn", "chinese", "中文", "汉语", "简体中文":
		return Chinese, true
	case "en", "en-us", "en_us", "en-gb", "english", "英文", "英语":
		return English, true
	}
	return "", false
}

const (
	qAll = `SELECT user_id, lang FROM as_languages`
	qSet = `INSERT INTO as_languages (user_id, lang) VALUES ($1, $2) ON CONFLICT (user_id) DO UPDATE SET lang = excluded.lang`
)

// Book knows everybody's language. It is safe for concurrent use.
type Book struct {
	db  *sqldb.DB
	def Lang

	mu   sync.RWMutex
	said map[string]Lang
}

// New reads the choices; def is the language of those who made none ("" is Chinese).
func New(ctx context.Context, db *sqldb.DB, def string) (*Book, error) {
	if err := db.Migrate(ctx, "lang", schemaFS); err != nil {
		return nil, err
	}
	b := &Book{db: db, def: Chinese}
	if l, ok := Parse(def); ok {
		b.def = l
	}
	err := db.Read(ctx, func(tx *sqldb.Tx) error {
		said := map[string]Lang{}
		rows, err := tx.Query(qAll)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var user string
			var l Lang
			if err := rows.Scan(&user, &l); err != nil {
				return err
			}
			said[user] = l
		}
		b.said = said
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("reading languages: %w", err)
	}
	return b, nil
}

// Of is the language of a user.
func (b *Book) Of(user string) Lang {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if l, ok := b.said[user]; ok {
		return l
	}
	return b.def
}

// Set records a user's choice.
func (b *Book) Set(ctx context.Context, user string, l Lang) error {
	err := b.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(qSet, user, string(l))
		return err
	})
	if err != nil {
		return fmt.Errorf("storing a language: %w", err)
	}
	b.mu.Lock()
	b.said[user] = l
	b.mu.Unlock()
	return nil
}
