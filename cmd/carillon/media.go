package main

import (
	"fmt"
	"os"

	"github.com/carillon-chat/carillon/config"
	"github.com/carillon-chat/carillon/homeserver"
	"github.com/carillon-chat/carillon/homeserver/media"
)

// mediaOptions sets what the media store and link previews need.
func mediaOptions(opts *homeserver.Options, cfg *config.Config) error {
	m, p := &cfg.Homeserver.Media, &cfg.Homeserver.URLPreviews
	opts.Media = homeserver.Media{
		Dir: cfg.MediaDir(), MaxUpload: int64(m.MaxUpload), MaxRemote: int64(m.MaxRemote), MaxPixels: m.MaxPixels,
		DynamicThumbnails: m.DynamicThumb, OpenDownloads: m.OpenDownload,
		UserBytes: int64(m.UserQuota), UserFiles: int64(m.UserFiles), ServerBytes: int64(m.ServerQuota),
		RemoteBytes: int64(m.RemoteCache), RemoteFor: m.RemoteFor.Std(), LocalFor: m.LocalFor.Std(),
		ThumbnailBytes: int64(m.ThumbnailCache), MaxPending: m.MaxPending, PendingFor: m.PendingFor.Std(),
		Redirect: m.S3.Redirect, RedirectFrom: int64(m.S3.RedirectFrom),
	}
	for _, l := range m.TypeLimits {
		kind, limit, err := config.ParseTypeLimit(l)
		if err != nil { // not after check
			return err
		}
		opts.Media.TypeLimits = append(opts.Media.TypeLimits, media.TypeLimit{Type: kind, Max: int64(limit)})
	}
	var err error
	if opts.Media.AVIF, err = avifDecoder(); err != nil {
		return err
	}
	if opts.Media.Bucket, err = bucket(&m.S3); err != nil {
		return err
	}
	opts.Previews = homeserver.Previews{
		Enabled: p.Enabled, AllowPrivate: p.AllowPrivate, Allow: p.Allow, Deny: p.Deny, Language: p.Language,
	}
	opts.Previews.AllowNetworks, opts.Previews.DenyNetworks = p.Networks()
	return nil
}

// bucket is the object store of the configuration; nil if there is none.
func bucket(s *config.S3) (*media.Bucket, error) {
	if s.Endpoint == "" {
		return nil, nil
	}
	b := &media.Bucket{
		Endpoint: s.Endpoint, Region: s.Region, Name: s.Bucket, Prefix: s.Prefix, AccessKey: s.AccessKey.Value(),
		SecretKey: s.SecretKey.Value(), PathStyle: s.PathStyle, PublicEndpoint: s.PublicEndpoint, LinkFor: s.LinkFor.Std(),
	}
	if s.CAFile != "" {
		var err error
		if b.ExtraCAs, err = os.ReadFile(s.CAFile); err != nil {
			return nil, fmt.Errorf("reading homeserver.media.s3.ca_file: %w", err)
		}
	}
	return b, nil
}

// decodeAVIFCmd is for the media store alone, which starts it; see media.WriteAVIF.
type decodeAVIFCmd struct{}

type mediaCmd struct {
	Copy mediaCopyCmd `cmd:"" help:"Copy the files of the media store between its folder and its object store."`
}

type mediaCopyCmd struct {
	To string `default:"s3" enum:"s3,folder" help:"Where to copy to: s3 (from the folder) or folder (from the object store)."`
}

// Help says how a change goes.
func (mediaCopyCmd) Help() string {
	return "Nothing is removed, and what is there already is not copied again, so it can be run beside the server and once more\n" +
		"after it has stopped; then start it with the new setting.\n\nExamples:\n  carillon media copy -c carillon.yaml\n" +
		"  carillon media copy -c carillon.yaml --to folder"
}

// Run copies.
func (c mediaCopyCmd) Run(a *app) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	b, err := bucket(&cfg.Homeserver.Media.S3)
	if err != nil {
		return err
	}
	if b == nil {
		return usagef("homeserver.media.s3.endpoint is not set in the configuration")
	}
	files, bytes, err := media.Copy(a.ctx, cfg.MediaDir(), *b, c.To == "s3")
	if err != nil {
		return err
	}
	a.printf("Copied %d files of %d bytes; all others were there.\n", files, bytes)
	return nil
}
