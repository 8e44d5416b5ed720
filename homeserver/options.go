package homeserver

import (
	"net/http"
	"net/netip"
	"time"

	"github.com/carillon-chat/carillon/homeserver/accounts"
	"github.com/carillon-chat/carillon/homeserver/httpapi"
	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/media"
	"github.com/carillon-chat/carillon/homeserver/notices"
	"github.com/carillon-chat/carillon/homeserver/serverkeys"
)

// Options is what a server is built of. The zero values are usable but for
// ServerName, DataDir and Database.
type Options struct {
	ServerName matrix.ServerName
	DataDir    string // signing key and media
	Database   string // see sqldb.Open
	Version    string // of the program, shown to other servers

	DefaultRoomVersion string
	Registration       accounts.Registration
	Passwords          accounts.PasswordCost
	MinPassword        int
	LoginAttempts      float64 // a second, for one account; 0: not limited
	Admins             []matrix.UserID
	RateLimits         httpapi.RateLimits
	TrustedProxies     []netip.Prefix // see httpapi.Options
	Presence           bool

	ApplicationServices []*accounts.ApplicationService
	// Transports reaches application services in the same process, by ID.
	Transports map[string]http.RoundTripper

	Federation   Federation
	Media        Media
	Previews     Previews
	TURN         TURN
	Support      Support
	Realtime     Realtime
	Notices      *notices.Options // nil: no server notices. Server is filled in
	PolicyServer PolicyServer
	Contacts     Contacts
	SignIn       SignIn
	PublicURL    string // for /.well-known/matrix/client
	AllUsers     bool   // the user directory finds everybody of this server
	InsecurePush bool   // push gateways may be plain HTTP
	Metrics      bool   // figures are kept for Server.Metrics
	// ThreadRules and LegacyMentions add predefined push rules; see push.Options.
	ThreadRules, LegacyMentions bool
	Now                         matrix.Now
}

// Federation says how other servers are reached.
type Federation struct {
	Enabled bool
	// AllowPrivate permits connections to loopback and private addresses.
	AllowPrivate bool
	ExtraCAs     []byte // PEM
	// Allow are the only servers to talk to, "*.example.org" for all below;
	// empty: all.
	Allow     []string
	WellKnown string // host:port for /.well-known/matrix/server
	// Notaries are asked for the keys of servers that cannot be reached.
	Notaries []serverkeys.Notary
}

// Media bounds files.
type Media struct {
	Dir               string
	MaxUpload         int64 // bytes
	MaxRemote         int64 // bytes
	MaxPixels         int
	DynamicThumbnails bool
	OpenDownloads     bool // new files on the deprecated endpoints too, without a token

	// The rest is as in media.Options.
	TypeLimits     []media.TypeLimit
	UserBytes      int64
	UserFiles      int64
	ServerBytes    int64
	RemoteBytes    int64
	RemoteFor      time.Duration
	LocalFor       time.Duration
	ThumbnailBytes int64
	MaxPending     int
	PendingFor     time.Duration
	Bucket         *media.Bucket
	Redirect       bool
	RedirectFrom   int64
	AVIF           []string
}

// Previews says whether pages that people link to are fetched for them.
type Previews struct {
	Enabled bool
	// AllowPrivate permits pages on loopback and private addresses.
	AllowPrivate bool
	// AllowNetworks are private networks whose pages are permitted, DenyNetworks those from which none is.
	AllowNetworks, DenyNetworks []netip.Prefix
	// Allow are the only hosts, Deny those that are left alone; see previews.Options.
	Allow, Deny []string
	Language    string // for clients that name none
}
