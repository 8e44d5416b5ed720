//go:build !nodynamic

package main

// avifDecoder is none: see avif.go.
func avifDecoder() ([]string, error) { return nil, nil }

// Run says how to build a program that can.
func (decodeAVIFCmd) Run(*app) error {
	return usagef("this program was built without a decoder of AVIF: build it with the tag nodynamic, as make does")
}
