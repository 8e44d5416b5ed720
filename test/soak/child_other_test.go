//go:build !linux

package soak_test

import "syscall"

func child() *syscall.SysProcAttr { return nil }
