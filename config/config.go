// Package config is the configuration file of Carillon as one documented struct.
//
// The struct is the only place where a setting, its default and its description
// live: the reader, the example file and the reference page are made from it.
// Reading is strict: an unknown key, a value of the wrong kind or two settings
// that contradict each other are all reported, each with its line and with what
// to write instead. Secrets may be given as "file:PATH" or "env:NAME".
//
// Only commands and the constructors of the large parts see this package; all
// other packages receive the plain values they need.
package config

import (
	"net/netip"
	"path/filepath"
	"time"
)

// Config is the whole configuration file.
type Config struct {
	ServerName string `yaml:"server_name" required:"true" example:"example.org" doc:"The domain part of every user and room alias (@person:example.org). It can never change once people use the server. It need not be the name of this machine: see homeserver.federation.well_known."`
	DataDir    string `yaml:"data_dir" required:"true" example:"./data" doc:"Folder for databases, keys and media. Created with mode 0700 when missing. A relative path counts from the working directory."`
	Listen     string `yaml:"listen" required:"true" example:"127.0.0.1:8008" doc:"Address for clients (and for /_carillon/v1): host:port. Use :8008 to listen on all addresses; behind a reverse proxy keep 127.0.0.1."`
	TLSCert    string `yaml:"tls_cert" doc:"PEM certificate chain for the listening address. Empty: plain HTTP, which is right behind a reverse proxy. Read again when the file changes."`
	TLSKey     string `yaml:"tls_key" doc:"PEM private key that belongs to tls_cert."`

	ACME ACME `yaml:"acme" doc:"Certificates that are obtained and renewed by themselves, from Let's Encrypt or from the company's own authority."`

	PublicBaseURL string `yaml:"public_base_url" doc:"The address that clients use, such as https://chat.example.org. It is published in /.well-known/matrix/client. Empty: nothing is published there."`

	Homeserver Homeserver `yaml:"homeserver" doc:"The Matrix homeserver."`
	AppService AppService `yaml:"appservice" doc:"The enterprise service: organisation, read lists, DING."`
	Bridges    Bridges    `yaml:"bridges" doc:"The ways out of the chat: texts to telephones."`
	Log        Log        `yaml:"log" doc:"What the server writes to standard error."`
}

// ACME holds the settings of automatic certificates.
type ACME struct {
	Enabled     bool     `yaml:"enabled" doc:"Serve listen and homeserver.federation.listen with certificates from an ACME authority, in the place of tls_cert. The authority has to reach this machine at port 443 (then listen is :443), or at port 80 (then http_listen is :80)."`
	AcceptTerms bool     `yaml:"accept_terms" doc:"You agree to the terms of the authority. Needed."`
	Directory   string   `yaml:"directory" default:"https://acme-v02.api.letsencrypt.org/directory" doc:"Address of the authority's directory. A network without internet runs an authority of its own, such as step-ca."`
	CAFile      string   `yaml:"ca_file" doc:"PEM certificates that are trusted for the directory besides the system's."`
	Email       string   `yaml:"email" doc:"Where the authority writes when something is wrong with a certificate."`
	Names       []string `yaml:"names" doc:"Names in certificates. Empty: server_name, the hosts of public_base_url and homeserver.federation.well_known."`
	HTTPListen  string   `yaml:"http_listen" doc:"Address, such as :80, where the authority is answered by plain HTTP; everything else there is sent to https."`
	KeyID       string   `yaml:"key_id" doc:"Account of an authority that wants one (external account binding)."`
	Key         Secret   `yaml:"key" doc:"The key that belongs to key_id, in base64url."`
}

// Homeserver holds the settings of the Matrix homeserver.
type Homeserver struct {
	Database        string   `yaml:"database" secret:"true" doc:"Where the homeserver keeps its data. Empty: SQLite in data_dir/homeserver.db. For PostgreSQL: postgres://user:password@host/database?sslmode=require; better as file: or env:."`
	Admins          []string `yaml:"admins" doc:"Users who may use the operator API of the homeserver, such as @chief:example.org."`
	AppServices     []string `yaml:"appservices" doc:"Registration files of application services, or folders of which every *.yaml is read. The enterprise service of the same process needs no entry."`
	Presence        bool     `yaml:"presence" default:"true" doc:"Tell people who of their colleagues is online."`
	TrustedProxies  []string `yaml:"trusted_proxies" doc:"Addresses of reverse proxies, such as 127.0.0.1 or 10.0.0.0/8, whose X-Forwarded-For tells where a client is."`
	DirectoryAll    bool     `yaml:"directory_all" default:"true" doc:"The search for people in clients finds everybody of this server. Off: only those with whom one shares a room, and those of public rooms."`
	InsecurePush    bool     `yaml:"insecure_push_gateways" doc:"Allow push gateways of clients to be plain HTTP and on private addresses. Only for tests, or for a gateway inside the company's network."`
	ThreadRules     bool     `yaml:"thread_subscription_rules" doc:"Threads notify those who follow them, and of others those alone who are mentioned (MSC4306). Clients that cannot follow threads hear of mentions alone, so turn it on when people's clients can."`
	LegacyMentions  bool     `yaml:"legacy_mentions" doc:"Messages of old clients and bridges, which do not say whom they mention, mention by the words of their text, as until version 1.16 of the specification. Newer clients are not affected."`
	DefaultRoomVers string   `yaml:"default_room_version" default:"12" doc:"Version of new rooms, 1 to 12."`

	Federation   Federation   `yaml:"federation" doc:"Talking with other homeservers."`
	Registration Registration `yaml:"registration" doc:"Who may make an account. People of the company file get theirs without it."`
	Email        Email        `yaml:"email" doc:"How e-mails are sent: codes and links that prove an address, and unread messages."`
	SMS          SMS          `yaml:"sms" doc:"How texts to telephones are sent: codes that prove a number."`
	Contacts     Contacts     `yaml:"contacts" doc:"E-mail addresses and telephone numbers of accounts, with which people log in and reset a lost password."`
	Passwords    Passwords    `yaml:"passwords" doc:"How passwords are kept. A log-in costs this much memory and time on the server."`
	OAuth        OAuth        `yaml:"oauth" doc:"The OAuth 2.0 API of Matrix: people sign in on a page of this server, and look after their account there, and clients never see a password. Newer clients prefer it; those that know it not go on with passwords."`
	SSO          SSO          `yaml:"sso" doc:"Signing in through the company's identity provider (OpenID Connect). Needs public_base_url."`
	RateLimits   RateLimits   `yaml:"rate_limits" doc:"Limits per user and device, or per address before log-in."`
	Media        Media        `yaml:"media" doc:"Uploaded files."`
	URLPreviews  URLPreviews  `yaml:"url_previews" doc:"Title, text and picture of pages that people link to, for their clients to show. The server fetches the pages in their place."`
	TURN         TURN         `yaml:"turn" doc:"TURN server for one-to-one calls."`
	Support      Support      `yaml:"support" doc:"Whom to turn to about this server: /.well-known/matrix/support."`
	Notices      Notices      `yaml:"server_notices" doc:"Notices that administrators send to people in the server's own name; each person gets them in a room of his own."`
	PolicyServer PolicyServer `yaml:"policy_server" doc:"This server as a policy server: rooms that name it show it every event before it is sent, and what it does not sign is shown to nobody. Its key is in data_dir/policy_server.key; clients find it at /.well-known/matrix/policy_server."`
	Metrics      Metrics      `yaml:"metrics" doc:"Figures for the operator's monitoring: process, database, requests, and the way to each other server."`
	RTC          RTC          `yaml:"rtc" doc:"Calls of groups, such as those of Element Call, and the delayed events that they need."`
}

// Metrics says where figures are shown.
type Metrics struct {
	Listen string `yaml:"listen" doc:"Address of its own, such as 127.0.0.1:9008, where GET /metrics answers in the text format of Prometheus. It is plain HTTP: let it be reached by the monitoring alone. Empty: nothing is shown."`
	Token  Secret `yaml:"token" doc:"What a reader has to send as \"Authorization: Bearer ...\". Needed where listen is not on this machine alone."`
}

// Federation holds the settings for talking with other homeservers.
type Federation struct {
	Enabled      bool     `yaml:"enabled" default:"true" doc:"Send to and accept from other homeservers. Off: rooms are local to this server."`
	Listen       string   `yaml:"listen" doc:"Address of its own for federation, such as :8448. Empty: federation is served on the listening address only, which a reverse proxy can map to 8448."`
	TLSCert      string   `yaml:"tls_cert" doc:"PEM certificate chain for the federation address. Needed with federation.listen."`
	TLSKey       string   `yaml:"tls_key" doc:"PEM private key that belongs to federation.tls_cert."`
	CAFile       string   `yaml:"ca_file" doc:"PEM certificates of authorities that are trusted besides the system's, for a company that runs its own."`
	AllowPrivate bool     `yaml:"allow_private_networks" doc:"Allow connections to loopback, private and link-local addresses. Needed between sites of one company network; otherwise leave it off, as strangers choose the names that this server connects to."`
	Allow        []string `yaml:"allow" doc:"Names of the only servers to federate with; *.example.org covers all below it. Empty: every server."`
	WellKnown    string   `yaml:"well_known" doc:"What /.well-known/matrix/server tells other servers: host:port where federation is reached. Empty: nothing is published there."`
	Notaries     []Notary `yaml:"notaries" doc:"Servers that are trusted to tell the keys of others that cannot be reached themselves, in the order in which they are asked; at a company with several sites the head office's."`
}

// Registration says who may make an account.
type Registration struct {
	Enabled      bool     `yaml:"enabled" doc:"Allow people to register with a client. They need a registration token, unless open is set."`
	Open         bool     `yaml:"open" doc:"Registration asks for nothing (m.login.dummy). Anybody who reaches the server can make accounts."`
	Guests       bool     `yaml:"guests" doc:"Allow guest accounts."`
	Flows        []string `yaml:"flows" doc:"What registration asks for, in the place of open or a token: each entry is one way, a list of token, email, phone, terms and nothing, such as \"token email\". CAPTCHAs of other companies are not among them: they tell those who registers here, and cannot be reached from everywhere."`
	Policies     Policies `yaml:"policies" doc:"Documents that people have to accept when they register. Empty: none."`
	SharedSecret Secret   `yaml:"shared_secret" doc:"Whoever knows it may create accounts, also administrators, with /_synapse/admin/v1/register. Empty: that endpoint is off."`
}

// Passwords is the price of an argon2id password hash.
type Passwords struct {
	Memory    Size `yaml:"memory" default:"19MiB" doc:"Memory of one argon2id computation."`
	Time      int  `yaml:"time" default:"2" doc:"Passes of one argon2id computation."`
	MinLength int  `yaml:"min_length" default:"8" doc:"Shortest password that people may choose."`
	LogIn     bool `yaml:"log_in" default:"true" doc:"People may log in by password. Off: only through the providers of homeserver.sso."`
}

// OAuth says whether the OAuth 2.0 API is offered.
type OAuth struct {
	Enabled bool `yaml:"enabled" default:"true" doc:"Offer it, once public_base_url is an https address (or http on this machine, for trying it out). Clients find it by themselves."`
}

// SSO holds the settings of single sign-on.
type SSO struct {
	Providers      []Provider `yaml:"providers" doc:"The identity providers. People see a button for each."`
	TrustedClients []string   `yaml:"trusted_clients" doc:"Beginnings of addresses of clients, such as https://chat.example.org/, that people of the company use: these get in without asking. Before others the person is shown where the client is."`
	CAFile         string     `yaml:"ca_file" doc:"PEM certificates of authorities that are trusted for the providers besides the system's."`
}

// Provider is an OpenID Connect provider.
type Provider struct {
	ID           string   `yaml:"id" required:"true" example:"company" doc:"Name in addresses and in the database: letters, digits, - and _. Never change it once people use it. The provider has to allow the redirect address PUBLIC_BASE_URL/_carillon/sso/callback/ID."`
	Name         string   `yaml:"name" required:"true" example:"Example Corp" doc:"What people see on the button."`
	Issuer       string   `yaml:"issuer" required:"true" example:"https://login.example.org/" doc:"The provider's issuer, exactly as it writes it itself, an end slash included."`
	ClientID     string   `yaml:"client_id" required:"true" example:"carillon" doc:"What the provider calls this server."`
	ClientSecret Secret   `yaml:"client_secret" example:"file:/etc/carillon/sso-secret" doc:"What the provider knows this server by. Empty for a public client."`
	Scopes       []string `yaml:"scopes" default:"profile,email" doc:"What is asked for besides openid."`
	Localpart    string   `yaml:"localpart" default:"{{.preferred_username}}" doc:"How a person's user name is made of the provider's claims, in the template language of Go: {{.preferred_username}}, or {{before \"@\" .email}} for the part of the address before the @."`
	DisplayName  string   `yaml:"display_name" default:"{{.name}}" doc:"How a new person's display name is made. Empty: none."`
	LinkExisting bool     `yaml:"link_existing" doc:"An account that has the user name belongs to the same person, as when accounts are made from the company file. Leave it off where people can choose their user name at the provider: else they could choose that of somebody else. Off: the person proves by the password once that the account is theirs."`
	Create       bool     `yaml:"create" default:"true" doc:"Make accounts for people who have none when they first sign in."`
	Brand        string   `yaml:"brand" doc:"Kind of provider, for clients that show its sign."`
	Icon         string   `yaml:"icon" doc:"Picture for the button, as mxc:// address."`
}

// RateLimits bounds the requests of one user, device or address.
type RateLimits struct {
	Enabled       bool    `yaml:"enabled" default:"true" doc:"Apply the limits. Application services whose registration says rate_limited: false have none."`
	PerSecond     float64 `yaml:"per_second" default:"20" doc:"Requests a second that a device may make for long, of those that have no limit of their own below. A user may make three times as many with all devices together."`
	Burst         int     `yaml:"burst" default:"100" doc:"Requests that may come at once."`
	Messages      Rate    `yaml:"messages" default:"20/s burst 100" doc:"Messages and other events that a user may send: how many for long, and how many at once."`
	Joins         Rate    `yaml:"joins" default:"1/s burst 60" doc:"Rooms that a user may create, join or knock at."`
	Invites       Rate    `yaml:"invites" default:"1/s burst 100" doc:"People that a user may invite."`
	Media         Rate    `yaml:"media" default:"50/s burst 500" doc:"Files, thumbnails, previews and backed-up keys that a user may fetch or store."`
	Addresses     Rate    `yaml:"addresses" default:"50/s burst 500" doc:"Requests without a log-in from one address. A company may be behind one address."`
	LogInsFrom    Rate    `yaml:"log_ins_by_address" default:"5/s burst 200" doc:"Attempts to log in from one address."`
	Registrations Rate    `yaml:"registrations" default:"1/s burst 50" doc:"Attempts to register from one address."`
	LogIns        int     `yaml:"log_ins_per_minute" default:"10" doc:"Attempts to log in to one account in a minute, wherever they come from."`
}

// Media holds the settings of the media store.
type Media struct {
	Dir          string   `yaml:"dir" doc:"Folder of the files. Empty: data_dir/media. With s3 it holds thumbnails and uploads that are coming in."`
	MaxUpload    Size     `yaml:"max_upload" default:"100MiB" doc:"Largest file that people may upload."`
	MaxRemote    Size     `yaml:"max_remote" default:"100MiB" doc:"Largest file that is fetched from another server."`
	MaxPixels    int      `yaml:"max_pixels" default:"60000000" doc:"Largest picture (width times height) of which thumbnails are made."`
	TypeLimits   []string `yaml:"type_limits" doc:"Largest uploads by the type that the client states, such as \"image/*=20MiB\" or \"application/x-msdownload=0\" for none at all. The first that fits counts; max_upload bounds them all. Encrypted files are application/octet-stream."`
	OpenDownload bool     `yaml:"open_downloads" doc:"Files uploaded from now on can also be fetched without a log-in, from the endpoints that the specification has retired, for clients that know no others."`
	DynamicThumb bool     `yaml:"dynamic_thumbnails" default:"true" doc:"Make thumbnails of sizes that clients ask for, not only of the standard ones."`

	UserQuota   Size     `yaml:"user_quota" doc:"What one person may upload in all. 0: no limit."`
	UserFiles   int      `yaml:"user_files" doc:"How many files one person may upload in all. 0: no limit."`
	ServerQuota Size     `yaml:"server_quota" doc:"What all people of this server may upload in all. 0: no limit."`
	MaxPending  int      `yaml:"max_pending" default:"20" doc:"Uploads that one person may have announced without having sent them."`
	PendingFor  Duration `yaml:"pending_lifetime" default:"24h" doc:"How long an announced upload may take to come."`
	LocalFor    Duration `yaml:"local_lifetime" doc:"Delete uploads that nobody has asked for in this time, such as 730d. Avatars in use and files that an administrator has protected stay. 0: never."`

	RemoteCache    Size     `yaml:"remote_cache" default:"20GiB" doc:"How much of other servers' files is kept; those asked for longest ago go first. 0: no limit."`
	RemoteFor      Duration `yaml:"remote_lifetime" default:"90d" doc:"Delete copies of other servers' files that nobody has asked for in this time; they are fetched again when somebody does. 0: never."`
	ThumbnailCache Size     `yaml:"thumbnail_cache" default:"4GiB" doc:"How much of thumbnails is kept; those used longest ago go first, and are made again when needed."`

	S3 S3 `yaml:"s3" doc:"Keep files in an object store that speaks S3, and not in dir. \"carillon media copy\" takes those over that are there already."`
}

// S3 is an object store.
type S3 struct {
	Endpoint       string   `yaml:"endpoint" doc:"Address of the store, such as https://s3.example.org:9000. Empty: files are kept in dir."`
	Region         string   `yaml:"region" default:"us-east-1" doc:"Region of the bucket."`
	Bucket         string   `yaml:"bucket" doc:"Name of the bucket, which must be there and private."`
	Prefix         string   `yaml:"prefix" doc:"Put before the names of objects, such as carillon/."`
	AccessKey      Secret   `yaml:"access_key" doc:"Key ID of an account that may read, write, list and delete there."`
	SecretKey      Secret   `yaml:"secret_key" doc:"Secret of that account."`
	PathStyle      bool     `yaml:"path_style" default:"true" doc:"Write the bucket into the path, as most stores want it. Off: before the host's name, as Amazon wants it."`
	CAFile         string   `yaml:"ca_file" doc:"PEM certificates of authorities that are trusted for the store besides the system's."`
	Redirect       bool     `yaml:"redirect" doc:"Send clients and other servers to the store for large files, with a link that is good for link_lifetime, instead of passing the files through. The store must be reached by them, allow requests of web clients from everywhere (CORS), and speak HTTPS."`
	RedirectFrom   Size     `yaml:"redirect_from" default:"1MiB" doc:"Files from this size on are redirected."`
	PublicEndpoint string   `yaml:"public_endpoint" doc:"Address at which clients reach the store, if it is not endpoint."`
	LinkFor        Duration `yaml:"link_lifetime" default:"5m" doc:"How long a link is good."`
}

// URLPreviews says whether pages are fetched for clients.
type URLPreviews struct {
	Enabled       bool     `yaml:"enabled" default:"true" doc:"Fetch pages for clients that ask for a preview."`
	AllowPrivate  bool     `yaml:"allow_private_networks" doc:"Also fetch from loopback, private and link-local addresses: pages of the company's own network, to which then everybody with an account can send this server."`
	AllowNetworks []string `yaml:"allow_networks" doc:"Private networks, such as 10.20.0.0/16, whose pages are fetched though private ones are not."`
	DenyNetworks  []string `yaml:"deny_networks" doc:"Networks from which nothing is fetched. They win over all others."`
	Allow         []string `yaml:"allow" doc:"Names of the only hosts from which pages are fetched; *.example.org covers all below it. Empty: all."`
	Deny          []string `yaml:"deny" doc:"Names of hosts from which nothing is fetched, in the same form. They win over allow."`
	Language      string   `yaml:"language" doc:"What is asked of pages whose reader's client names no language, such as zh-CN,zh;q=0.9,en;q=0.8. Empty: nothing."`
}

// Support says whom to turn to about this server.
type Support struct {
	Page     string    `yaml:"page" doc:"Page with help for people and for operators of other servers."`
	Contacts []Contact `yaml:"contacts" doc:"Whom to turn to."`
}

// Contact is somebody to turn to.
type Contact struct {
	User  string `yaml:"user" example:"@admin:example.org" doc:"Their account, here or elsewhere, such as @admin:example.org. This or email is needed."`
	Email string `yaml:"email" example:"admin@example.org" doc:"Their e-mail address."`
	Role  string `yaml:"role" default:"m.role.admin" doc:"What for: m.role.admin for all matters, m.role.security for what is confidential, or a name of your own, such as org.example.data_protection."`
}

// TURN is what clients are told about the TURN server.
type TURN struct {
	URIs         []string `yaml:"uris" doc:"Addresses, such as turn:turn.example.org:3478?transport=udp. Empty: none is offered."`
	SharedSecret Secret   `yaml:"shared_secret" doc:"The static-auth-secret of the TURN server; log-ins are made from it for each user."`
	Username     string   `yaml:"username" doc:"Fixed user name, when there is no shared secret."`
	Password     Secret   `yaml:"password" doc:"Fixed password, when there is no shared secret."`
	Lifetime     Duration `yaml:"lifetime" default:"24h" doc:"How long a log-in is good."`
}

// Notices says who speaks in the server's name, and where.
type Notices struct {
	Enabled     bool   `yaml:"enabled" doc:"Let administrators send notices, with /_carillon/admin/v1/notices or /_synapse/admin/v1/send_server_notice."`
	Localpart   string `yaml:"localpart" default:"_server" doc:"The part before the colon in the sender's name. The account is made for this, and must not be there before."`
	DisplayName string `yaml:"display_name" default:"服务器通知 · Server notices" doc:"Name that people see."`
	AvatarURL   string `yaml:"avatar_url" doc:"Picture of the sender, such as mxc://example.org/abc."`
	RoomName    string `yaml:"room_name" default:"服务器通知 · Server notices" doc:"Name of the rooms."`
	RoomTopic   string `yaml:"room_topic" doc:"Topic of the rooms."`
	RoomAvatar  string `yaml:"room_avatar_url" doc:"Picture of the rooms."`
	MayLeave    bool   `yaml:"may_leave" default:"true" doc:"People may leave the room once they have joined it; the next notice invites them again. The invitation cannot be rejected in any case."`
}

// PolicyServer says what this server signs as a policy server.
type PolicyServer struct {
	Enabled     bool     `yaml:"enabled" doc:"Sign events of rooms that name this server."`
	DenyUsers   []string `yaml:"deny_users" doc:"Users of whom nothing is signed; * and ? stand for other characters, such as @spam*:example.org."`
	DenyServers []string `yaml:"deny_servers" doc:"Servers of whose users nothing is signed; * and ? stand for other characters."`
	DenyTexts   []string `yaml:"deny_texts" doc:"Texts that messages, names and topics must not hold, in any case of letters. Encrypted messages cannot be looked into."`
	PerMinute   int      `yaml:"per_minute" doc:"Events that a user may send in a minute in those rooms. 0: any number."`
}

// RTC is what calls of groups need.
type RTC struct {
	LiveKit      []string `yaml:"livekit" doc:"Addresses of the services that let people into the company's LiveKit servers, such as https://rtc.example.org/livekit/jwt. Clients are told of them; with none they can make no calls of groups."`
	SFU          SFU      `yaml:"sfu" doc:"The company's LiveKit server, if Carillon itself is to let people into it: members of a room into the room's calls, also those of other servers. Then no other service is needed for that."`
	MaxDelay     Duration `yaml:"max_delay" default:"24h" doc:"Longest delay of an event that a client wants sent later."`
	MaxScheduled int      `yaml:"max_scheduled" default:"100" doc:"Events that one user may have scheduled at a time. 0: none, then a call does not notice that a client has gone silent."`
}

// SFU is a LiveKit server.
type SFU struct {
	URL    string `yaml:"url" doc:"Where clients connect, such as wss://sfu.example.org. The server takes API calls there, too. In its own configuration room.auto_create should be off, and webhook.urls may name this server's /_matrix/client/v1/rtc/livekit/sfu_webhook, so that who drops out of a call is seen to have left it at once."`
	Key    string `yaml:"api_key" doc:"Name of a key of the LiveKit server's configuration."`
	Secret Secret `yaml:"api_secret" doc:"That key's secret, of at least 32 characters."`
}

// AppService holds the settings of the enterprise service.
type AppService struct {
	Enabled       bool     `yaml:"enabled" default:"true" doc:"Run the enterprise service together with the homeserver in \"carillon serve\"."`
	Database      string   `yaml:"database" secret:"true" doc:"Where the service keeps its data. Empty: SQLite in data_dir/appservice.db. It is never the homeserver's database."`
	Registration  string   `yaml:"registration" doc:"Registration file with the tokens between service and homeserver. Empty: data_dir/appservice-registration.yaml, made at the first start."`
	HomeserverURL string   `yaml:"homeserver_url" doc:"Client address of the homeserver, for \"carillon appservice\" beside another homeserver. Empty for \"carillon serve\"."`
	Listen        string   `yaml:"listen" default:"127.0.0.1:8009" doc:"Address on which \"carillon appservice\" takes events and /_carillon/v1. Not used by \"carillon serve\"."`
	Address       string   `yaml:"address" doc:"How the homeserver reaches the service; goes into the registration file. Empty: http:// and the listening address."`
	Admins        []string `yaml:"admins" doc:"Users who may use everything of /_carillon/v1, besides the people whom the company file calls administrators."`
	Language      string   `yaml:"language" default:"zh" doc:"Language of what the service writes to people: zh or en."`
	TimeZone      string   `yaml:"time_zone" default:"Asia/Shanghai" doc:"Where days begin and end: of beginning and leaving, and of times in messages."`
	Company       string   `yaml:"company" default:"Carillon" doc:"Name of the company: of its space and its all-staff room."`

	LoginRule       string  `yaml:"login_rule" default:"job_number" doc:"How a new person's log-in name is made: job_number, pinyin (of the name) or email_local (the part before the @)."`
	GroupSuffix     string  `yaml:"group_suffix" doc:"Added to a unit's name to make the name of its room."`
	AllStaff        bool    `yaml:"all_staff" default:"true" doc:"Keep a room of everybody."`
	AllStaffName    string  `yaml:"all_staff_name" doc:"Name of that room. Empty: the company's name with \"all staff\" in the service's language."`
	MaxLeave        float64 `yaml:"max_leave" default:"0.1" doc:"An import that would make a larger share of the people leave is refused unless forced. 0.1 is ten of a hundred."`
	Concurrency     int     `yaml:"concurrency" default:"16" doc:"Requests to the homeserver at a time while rooms follow the company file."`
	UnitHistory     string  `yaml:"unit_history" default:"joined" doc:"What newcomers see of a unit's room: joined (from their coming on) or shared (all of it)."`
	PlainPasswords  bool    `yaml:"plain_passwords" doc:"Give first passwords to the homeserver as they are. Needed beside another homeserver than Carillon, over a connection that can be trusted."`
	PrivateReceipts bool    `yaml:"private_receipts" doc:"Count private read receipts in read lists too. This is a policy on people's privacy: tell them."`
	PasswordsDir    string  `yaml:"passwords_dir" doc:"Folder of the files with first passwords (mode 0600). Empty: data_dir/first-passwords."`

	Sites     Sites     `yaml:"sites" doc:"Places of the company that have a Carillon each, as in several provinces: see docs/organisation.md."`
	Directory Directory `yaml:"directory" doc:"An LDAP directory, such as Active Directory, that the company follows by itself."`
	DING      DING      `yaml:"ding" doc:"Urgent notices."`
}

// DING bounds urgent notices.
type DING struct {
	PerMinute    int      `yaml:"per_minute" default:"10" doc:"DINGs that one person may send in a minute."`
	MaxReceivers int      `yaml:"max_receivers" default:"100" doc:"Receivers of one DING of an ordinary employee. Managers reach all below them, administrators everybody."`
	Grace        Duration `yaml:"grace" default:"15m" doc:"A scheduled DING that was missed while the service was down is still sent within this time, else marked missed."`
	Confirm      []string `yaml:"confirm_words" doc:"Reply words that confirm a DING, besides the usual ones in Chinese and English."`
}

// Log says what is logged and how.
type Log struct {
	Level  string `yaml:"level" default:"info" doc:"Least important kind of line to write: error, warn, info or debug."`
	Format string `yaml:"format" default:"text" doc:"text for people, json for log collectors."`
}

// Default is the configuration with every default and nothing that must be chosen.
func Default() *Config {
	c := &Config{}
	setDefaults(c)
	return c
}

// HomeserverDSN is the address of the homeserver's database.
func (c *Config) HomeserverDSN() string {
	return orFile(c.Homeserver.Database, c.DataDir, "homeserver.db")
}

// AppServiceDSN is the address of the enterprise service's database.
func (c *Config) AppServiceDSN() string {
	return orFile(c.AppService.Database, c.DataDir, "appservice.db")
}

// MediaDir is the folder of uploaded files.
func (c *Config) MediaDir() string { return orFile(c.Homeserver.Media.Dir, c.DataDir, "media") }

// PasswordsDir is the folder of the files with first passwords.
func (c *Config) PasswordsDir() string {
	return orFile(c.AppService.PasswordsDir, c.DataDir, "first-passwords")
}

// RegistrationFile is the path of the enterprise service's registration.
func (c *Config) RegistrationFile() string {
	return orFile(c.AppService.Registration, c.DataDir, "appservice-registration.yaml")
}

// TrustedProxies are the addresses of the reverse proxies.
func (c *Config) TrustedProxies() []netip.Prefix { return networks(c.Homeserver.TrustedProxies) }

// Networks are the private networks whose pages are fetched, and those from which nothing is.
func (p *URLPreviews) Networks() (allow, deny []netip.Prefix) {
	return networks(p.AllowNetworks), networks(p.DenyNetworks)
}

func networks(texts []string) []netip.Prefix {
	var list []netip.Prefix
	for _, s := range texts {
		if p, err := parseNetwork(s); err == nil { // else not after check
			list = append(list, p)
		}
	}
	return list
}

// parseNetwork reads an address or a network.
func parseNetwork(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

// Location is the company's time zone.
func (a *AppService) Location() *time.Location {
	l, err := time.LoadLocation(a.TimeZone)
	if err != nil {
		return time.UTC // not after check
	}
	return l
}

// AppServiceAddress is where the homeserver reaches a service that runs on its own.
func (c *Config) AppServiceAddress() string {
	if c.AppService.Address != "" {
		return c.AppService.Address
	}
	return "http://" + publicAddr(c.AppService.Listen)
}

// ClientAddress is where people on this machine, or behind public_base_url, reach the server.
func (c *Config) ClientAddress() string {
	if c.PublicBaseURL != "" {
		return c.PublicBaseURL
	}
	return c.LocalAddress()
}

// LocalAddress is where programs on this machine reach the server.
func (c *Config) LocalAddress() string {
	if c.TLSCert != "" {
		return "https://" + publicAddr(c.Listen)
	}
	return "http://" + publicAddr(c.Listen)
}

func orFile(value, dir, name string) string {
	if value != "" {
		return value
	}
	return filepath.Join(dir, name)
}

// Duration is a time span written like 90s, 15m or 24h.
type Duration time.Duration

// Std is the span as the standard library has it.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String writes the span as it is read, without empty parts.
func (d Duration) String() string { return shortDuration(time.Duration(d)) }
