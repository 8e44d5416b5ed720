package homeserver

import (
	"context"
	"path/filepath"

	"github.com/carillon-chat/carillon/homeserver/fedclient"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/media"
	"github.com/carillon-chat/carillon/homeserver/previews"
)

// previews are built also where none are given, so that old ones go.
func (s *Server) previews(ctx context.Context, files *media.Store) (*previews.Previews, error) {
	o := &s.opts.Previews
	guard := fedclient.Guard{}
	if o.AllowPrivate {
		guard = fedclient.Everywhere()
	}
	guard.Allow, guard.Deny = append(guard.Allow, o.AllowNetworks...), o.DenyNetworks
	return previews.New(ctx, s.db, files, previews.Options{
		Server: s.opts.ServerName, Guard: guard, UserAgent: "Carillon/" + s.opts.Version + " (link preview bot)", Now: s.opts.Now,
		Allow: o.Allow, Deny: o.Deny, Language: o.Language,
	})
}

// mediaOptions are the settings of the media store. inUse says that an upload is somebody's avatar.
func (s *Server) mediaOptions(inUse func(matrix.UserID, string) bool) media.Options {
	m := &s.opts.Media
	return media.Options{
		Server: s.opts.ServerName, Dir: s.mediaDir(), Bucket: m.Bucket, Redirect: m.Redirect, RedirectFrom: m.RedirectFrom,
		MaxUpload: m.MaxUpload, MaxRemote: m.MaxRemote, MaxPixels: m.MaxPixels, TypeLimits: m.TypeLimits,
		FixedSizes: !m.DynamicThumbnails, OpenDownloads: m.OpenDownloads,
		UserBytes: m.UserBytes, UserFiles: m.UserFiles, ServerBytes: m.ServerBytes, RemoteBytes: m.RemoteBytes,
		RemoteFor: m.RemoteFor, LocalFor: m.LocalFor, ThumbnailBytes: m.ThumbnailBytes,
		InUse:  func(u matrix.UserID, uri string) bool { return inUse(u, uri) || s.isIcon(uri) },
		Public: s.isIcon, AVIF: m.AVIF, MaxPending: m.MaxPending, PendingFor: m.PendingFor, Now: s.opts.Now,
	}
}

// mediaDir is where files are kept.
func (s *Server) mediaDir() string {
	if s.opts.Media.Dir != "" {
		return s.opts.Media.Dir
	}
	return filepath.Join(s.opts.DataDir, "media")
}

// isIcon says that a picture stands on a button of the sign-in page, which people see who have no token yet.
func (s *Server) isIcon(uri string) bool {
	for _, p := range s.opts.SignIn.Providers {
		if p.Icon == uri {
			return true
		}
	}
	return false
}
