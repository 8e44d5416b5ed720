//go:build nodynamic

package main

import (
	"os"

	"github.com/gen2brain/avif"

	"github.com/carillon-chat/carillon/homeserver/media"
)

// The decoder of AVIF is built in with the tag nodynamic only: without it, it would look for a C library, and the
// program would no longer be a static one.

// avifDecoder is how the media store starts this program to decode a picture.
func avifDecoder() ([]string, error) { return media.ExecutableAVIF("decode-avif") }

// Run decodes a picture.
func (decodeAVIFCmd) Run(a *app) error { return media.WriteAVIF(a.stdin, os.Stdout, avif.Decode) }
