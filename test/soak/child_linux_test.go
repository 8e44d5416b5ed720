package soak_test

import "syscall"

// child has a process end with the test, also when that is killed.
func child() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
