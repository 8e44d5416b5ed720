package soak_test

import (
	"os"
	"testing"

	"github.com/carillon-chat/carillon/test/program"
)

func TestMain(m *testing.M) { os.Exit(program.Main(m)) }
