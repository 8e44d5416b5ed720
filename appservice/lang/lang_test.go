package lang_test

import (
	"testing"
	"time"

	"github.com/carillon-chat/carillon/appservice/lang"
	"github.com/carillon-chat/carillon/homeserver/sqldb/sqldbtest"
)

func TestBook(t *testing.T) {
	db := sqldbtest.Open(t)
	b, err := lang.New(t.Context(), db, "")
	if err != nil {
		t.Fatal(err)
	}
	if b.Of("@a:x") != lang.Chinese {
		t.Error("Chinese is the default")
	}
	for _, l := range []lang.Lang{lang.Chinese, lang.English} { // the second choice holds
		if err := b.Set(t.Context(), "@a:x", l); err != nil {
			t.Fatal(err)
		}
	}
	again, err := lang.New(t.Context(), db, "zh")
	if err != nil {
		t.Fatal(err)
	}
	if again.Of("@a:x") != lang.English || again.Of("@b:x") != lang.Chinese {
		t.Error("a choice was forgotten or spread")
	}
	if lang.English.Pick("甲", "a") != "a" || lang.Chinese.Pick("甲", "a") != "甲" {
		t.Error("picked the wrong text")
	}
	if l, ok := lang.Parse("English"); !ok || l != lang.English {
		t.Error("English is not understood")
	}
	if _, ok := lang.Parse("klingon"); ok {
		t.Error("Klingon is not spoken")
	}
}

func TestDurations(t *testing.T) {
	for d, want := range map[time.Duration][2]string{
		0:                       {"0 秒", "0 s"},
		1400 * time.Millisecond: {"1 秒", "1 s"},
		135 * time.Second:       {"2 分 15 秒", "2 min 15 s"},
		2 * time.Minute:         {"2 分", "2 min"},
		26*time.Hour + 4*time.Minute + time.Second: {"1 天 2 小时", "1 d 2 h"},
		-time.Second: {"0 秒", "0 s"},
	} {
		if got := [2]string{lang.Chinese.Duration(d), lang.English.Duration(d)}; got != want {
			t.Errorf("%s is %q", d, got)
		}
	}
}
