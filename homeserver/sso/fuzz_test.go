package sso_test

import (
	"testing"

	"github.com/carillon-chat/carillon/homeserver/sso"
)

func FuzzClientAddress(f *testing.F) {
	f.Add("https://app.example/?a=1&loginToken=x#y")
	f.Add("com.example.app://back")
	f.Add("javascript:alert(1)")
	f.Fuzz(func(t *testing.T, s string) { sso.TryAddress(t, s) })
}

func FuzzLocalpart(f *testing.F) {
	f.Add("Anna.Müller@corp")
	f.Add("张三")
	f.Fuzz(func(t *testing.T, s string) { sso.TryLocalpart(t, s) })
}

func FuzzSealed(f *testing.F) {
	f.Add("AAAA", "flow")
	f.Fuzz(func(t *testing.T, s, what string) { sso.TrySealed(t, s, what) })
}
