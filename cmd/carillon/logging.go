package main

import (
	"io"
	stdlog "log"
	"strings"

	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/config"
)

// setUpLog makes the process's log what the configuration says.
func setUpLog(w io.Writer, cfg config.Log) {
	log.SetOutput(w)
	level, err := log.ParseLevel(cfg.Level)
	if err != nil {
		level = log.InfoLevel
	}
	log.SetLevel(level)
	if cfg.Format == "json" {
		log.SetFormatter(&log.JSONFormatter{})
		return
	}
	log.SetFormatter(&log.TextFormatter{FullTimestamp: true})
}

// httpLog takes the lines of net/http about single connections: strangers can cause
// any number of them, so they are worth a look only when something is searched for.
type httpLog struct{ name string }

func newHTTPLog(name string) *stdlog.Logger { return stdlog.New(httpLog{name}, "", 0) }

// Write logs one line.
func (h httpLog) Write(p []byte) (int, error) {
	log.WithField("for", h.name).Debug(strings.TrimSpace(string(p)))
	return len(p), nil
}
