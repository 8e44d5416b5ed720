package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // time zones on machines that have no list of them
)

// Spec: appendices#server-name
var serverName = regexp.MustCompile(`^([0-9]{1,3}(\.[0-9]{1,3}){3}|\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z.-]{1,255})(:[0-9]{1,5})?$`)

var localpart = regexp.MustCompile(`^[a-z0-9._=/+-]+$`)

var userID = regexp.MustCompile(`^@[\x21-\x39\x3b-\x7e]+:.+$`)

// report takes one problem: the field, what is wrong, what to write instead.
type report func(field, message, mend string)

// check finds what cannot work, or contradicts itself.
func (c *Config) check(bad report) {
	switch {
	case c.ServerName == "":
		bad("server_name", "it is missing", "write the domain of your company, such as server_name: example.org")
	case !serverName.MatchString(c.ServerName) || len(c.ServerName) > 230:
		bad("server_name", fmt.Sprintf("%q is not a server name", c.ServerName), "write a domain, with a port if need be, and nothing else: no https://, no slash")
	}
	if c.DataDir == "" {
		bad("data_dir", "it is missing", "write a folder, such as data_dir: /var/lib/carillon")
	}
	if c.Listen == "" {
		bad("listen", "it is missing", "write an address, such as listen: 127.0.0.1:8008")
	} else {
		checkListen(bad, "listen", c.Listen)
	}
	checkPair(bad, "tls_cert", c.TLSCert, "tls_key", c.TLSKey)
	checkURL(bad, "public_base_url", c.PublicBaseURL)
	c.checkACME(bad)
	c.Homeserver.check(bad, c.ACME.Enabled)
	if len(c.Homeserver.SSO.Providers) > 0 && c.PublicBaseURL == "" {
		bad("homeserver.sso.providers", "they need the address at which people reach this server", "set public_base_url, such as https://chat.example.org")
	}
	c.checkContacts(bad)
	c.AppService.check(bad)
	c.AppService.Sites.check(bad, c)
	c.AppService.Directory.check(bad, &c.AppService.Sites)
	c.Bridges.check(bad, c)
	if c.Homeserver.Database != "" && c.Homeserver.Database == c.AppService.Database {
		bad("appservice.database", "it is the homeserver's database", "give the service one of its own, or leave it empty for a file in data_dir")
	}
	checkWord(bad, "log.level", c.Log.Level, "error", "warn", "info", "debug")
	checkWord(bad, "log.format", c.Log.Format, "text", "json")
}

func (h *Homeserver) check(bad report, acme bool) {
	checkDSN(bad, "homeserver.database", h.Database)
	for _, a := range h.Admins {
		checkUser(bad, "homeserver.admins", a)
	}
	for _, p := range h.TrustedProxies {
		if _, err := parseNetwork(p); err != nil {
			bad("homeserver.trusted_proxies", fmt.Sprintf("%q is neither an address nor a network", p), "write it such as 127.0.0.1 or 10.0.0.0/8")
		}
	}
	for _, p := range h.AppServices {
		checkExists(bad, "homeserver.appservices", p)
	}
	if v, err := strconv.Atoi(h.DefaultRoomVers); err != nil || v < 1 || v > 12 {
		bad("homeserver.default_room_version", fmt.Sprintf("%q is not a room version", h.DefaultRoomVers), "write a number from 1 to 12; 12 is best")
	}
	f := &h.Federation
	if f.Listen != "" {
		checkListen(bad, "homeserver.federation.listen", f.Listen)
		if !acme && (f.TLSCert == "" || f.TLSKey == "") {
			bad("homeserver.federation.listen", "federation needs TLS there", "set homeserver.federation.tls_cert and tls_key, or acme.enabled, or leave listen empty and let a reverse proxy serve port 8448")
		}
	}
	checkPair(bad, "homeserver.federation.tls_cert", f.TLSCert, "homeserver.federation.tls_key", f.TLSKey)
	if f.CAFile != "" {
		checkExists(bad, "homeserver.federation.ca_file", f.CAFile)
	}
	for _, name := range f.Allow {
		if !serverName.MatchString(strings.TrimPrefix(name, "*.")) {
			bad("homeserver.federation.allow", fmt.Sprintf("%q is not a server name", name), "write names such as example.org or *.example.org")
		}
	}
	if f.WellKnown != "" && !serverName.MatchString(f.WellKnown) {
		bad("homeserver.federation.well_known", fmt.Sprintf("%q is not host:port", f.WellKnown), "write it such as chat.example.org:443")
	}
	f.checkNotaries(bad)
	if h.Registration.Open && !h.Registration.Enabled {
		bad("homeserver.registration.open", "it has no effect while registration is off", "set homeserver.registration.enabled: true, or remove open")
	}
	p := &h.Passwords
	checkRange(bad, "homeserver.passwords.memory", int64(p.Memory), 64<<10, 1<<30, "bytes; 19MiB is usual")
	checkRange(bad, "homeserver.passwords.time", int64(p.Time), 1, 100, "passes; 2 is usual")
	checkRange(bad, "homeserver.passwords.min_length", int64(p.MinLength), 1, 128, "characters; 8 is usual")
	if l := h.RateLimits; l.Enabled && (l.PerSecond <= 0 || l.Burst < 1 || l.LogIns < 1) {
		bad("homeserver.rate_limits", "per_second, burst and log_ins_per_minute must be above 0", "set homeserver.rate_limits.enabled: false for no limits")
	}
	m := &h.Media
	checkRange(bad, "homeserver.media.max_upload", int64(m.MaxUpload), 1, 1<<40, "bytes; 100MiB is usual")
	checkRange(bad, "homeserver.media.max_remote", int64(m.MaxRemote), 1, 1<<40, "bytes; 100MiB is usual")
	checkRange(bad, "homeserver.media.max_pixels", int64(m.MaxPixels), 1, 1<<30, "pixels; 60000000 is usual")
	m.check(bad)
	h.URLPreviews.check(bad)
	h.Support.check(bad)
	h.SSO.check(bad)
	if !p.LogIn && len(h.SSO.Providers) == 0 {
		bad("homeserver.passwords.log_in", "nobody could log in", "add a provider to homeserver.sso.providers first")
	}
	h.TURN.check(bad)
	h.Notices.check(bad)
	checkRange(bad, "homeserver.policy_server.per_minute", int64(h.PolicyServer.PerMinute), 0, 100_000, "events; 60 is much for a person")
	h.Metrics.check(bad)
	for _, u := range h.RTC.LiveKit {
		checkURL(bad, "homeserver.rtc.livekit", u)
	}
	h.RTC.SFU.check(bad)
	if h.RTC.MaxDelay <= 0 {
		bad("homeserver.rtc.max_delay", "it must be above 0", "write it such as 24h")
	}
	checkRange(bad, "homeserver.rtc.max_scheduled", int64(h.RTC.MaxScheduled), 0, 100_000, "events; 100 is usual")
}

func (m *Metrics) check(bad report) {
	if m.Listen == "" {
		if m.Token != "" {
			bad("homeserver.metrics.token", "nothing is shown that it could guard", "set homeserver.metrics.listen, such as 127.0.0.1:9008")
		}
		return
	}
	checkListen(bad, "homeserver.metrics.listen", m.Listen)
	host, _, err := net.SplitHostPort(m.Listen)
	if err != nil || m.Token != "" || host == "localhost" {
		return
	}
	if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
		bad("homeserver.metrics.token", "the figures could be read by everybody who reaches the address", "set a token, best as file: or env:, or listen on 127.0.0.1")
	}
}

func (n *Notices) check(bad report) {
	if !localpart.MatchString(n.Localpart) {
		bad("homeserver.server_notices.localpart", fmt.Sprintf("%q is not a name of a user", n.Localpart), "write small letters, digits and ._=/+-")
	}
	for field, v := range map[string]string{"avatar_url": n.AvatarURL, "room_avatar_url": n.RoomAvatar} {
		if v != "" && !strings.HasPrefix(v, "mxc://") {
			bad("homeserver.server_notices."+field, fmt.Sprintf("%q is not a file of a Matrix server", v), "upload it and write it such as mxc://example.org/abc")
		}
	}
}

func (m *Media) check(bad report) {
	for _, l := range m.TypeLimits {
		if _, _, err := ParseTypeLimit(l); err != nil {
			bad("homeserver.media.type_limits", fmt.Sprintf("%q is not a type and a size", l), "write it such as image/*=20MiB")
		}
	}
	checkRange(bad, "homeserver.media.user_files", int64(m.UserFiles), 0, 1<<40, "files; 0 is no limit")
	checkRange(bad, "homeserver.media.max_pending", int64(m.MaxPending), 1, 10000, "uploads; 20 is usual")
	if m.PendingFor <= 0 {
		bad("homeserver.media.pending_lifetime", "it must be above 0", "write it such as 24h")
	}
	checkRange(bad, "homeserver.media.thumbnail_cache", int64(m.ThumbnailCache), 1<<20, 1<<50, "bytes; 4GiB is usual")
	s := &m.S3
	const s3 = "homeserver.media.s3."
	checkURL(bad, s3+"endpoint", s.Endpoint)
	checkURL(bad, s3+"public_endpoint", s.PublicEndpoint)
	if s.Endpoint == "" {
		if s.Redirect {
			bad(s3+"redirect", "there is no store to redirect to", "set homeserver.media.s3.endpoint, or remove redirect")
		}
		return
	}
	if s.Bucket == "" || s.AccessKey == "" || s.SecretKey == "" {
		bad(s3+"endpoint", "bucket, access_key and secret_key belong to it", "set them too; the keys best as file: or env:")
	}
	if s.CAFile != "" {
		checkExists(bad, s3+"ca_file", s.CAFile)
	}
	checkRange(bad, s3+"link_lifetime", int64(s.LinkFor), int64(time.Second), int64(7*24*time.Hour), "nanoseconds; 5m is usual")
}

// ParseTypeLimit reads an entry of type_limits: a type, such as image/*, and the largest upload of it.
func ParseTypeLimit(s string) (kind string, limit Size, err error) {
	kind, size, ok := strings.Cut(s, "=")
	kind = strings.ToLower(strings.TrimSpace(kind))
	if !ok || kind != "*" && strings.Count(kind, "/") != 1 {
		return "", 0, fmt.Errorf("%q is not a type and a size", s)
	}
	limit, err = ParseSize(size)
	return kind, limit, err
}

func (p *URLPreviews) check(bad report) {
	for field, list := range map[string][]string{"allow_networks": p.AllowNetworks, "deny_networks": p.DenyNetworks} {
		for _, n := range list {
			if _, err := parseNetwork(n); err != nil {
				bad("homeserver.url_previews."+field, fmt.Sprintf("%q is neither an address nor a network", n), "write it such as 10.20.0.0/16")
			}
		}
	}
	for field, list := range map[string][]string{"allow": p.Allow, "deny": p.Deny} {
		for _, name := range list {
			if !serverName.MatchString(strings.TrimPrefix(name, "*.")) {
				bad("homeserver.url_previews."+field, fmt.Sprintf("%q is not the name of a host", name), "write names such as example.org or *.example.org")
			}
		}
	}
}

func (s *Support) check(bad report) {
	checkURL(bad, "homeserver.support.page", s.Page)
	for _, c := range s.Contacts {
		switch {
		case c.User == "" && c.Email == "":
			bad("homeserver.support.contacts", "a contact has neither user nor email", "write one of them")
		case c.Email != "" && !strings.Contains(c.Email, "@"):
			bad("homeserver.support.contacts", fmt.Sprintf("%q is not an e-mail address", c.Email), "write it such as admin@example.org")
		case c.Role == "":
			bad("homeserver.support.contacts", "a contact has no role", "write m.role.admin")
		}
		if c.User != "" {
			checkUser(bad, "homeserver.support.contacts", c.User)
		}
	}
}

func (s *SFU) check(bad report) {
	if s.URL == "" {
		if s.Key != "" || s.Secret != "" {
			bad("homeserver.rtc.sfu.url", "there is a key, but no server that it is for", "set it such as wss://sfu.example.org")
		}
		return
	}
	u, err := url.Parse(s.URL)
	if err != nil || u.Scheme != "wss" && u.Scheme != "ws" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		bad("homeserver.rtc.sfu.url", fmt.Sprintf("%q is not the address of a LiveKit server", s.URL), "write it such as wss://sfu.example.org")
	}
	if s.Key == "" {
		bad("homeserver.rtc.sfu.api_key", "it is missing", "write the name of a key of the LiveKit server's configuration")
	}
	if len(s.Secret) < 32 {
		bad("homeserver.rtc.sfu.api_secret", "the LiveKit server takes no secret of less than 32 characters", "make one with: openssl rand -base64 36")
	}
}

func (t *TURN) check(bad report) {
	for _, u := range t.URIs {
		if !strings.HasPrefix(u, "turn:") && !strings.HasPrefix(u, "turns:") {
			bad("homeserver.turn.uris", fmt.Sprintf("%q is not a TURN address", u), "write turn:host:3478?transport=udp or turns:host:5349")
		}
	}
	if len(t.URIs) > 0 && t.SharedSecret == "" && (t.Username == "" || t.Password == "") {
		bad("homeserver.turn", "the TURN server's log-in is missing", "set shared_secret, or username and password")
	}
	if t.Lifetime <= 0 {
		bad("homeserver.turn.lifetime", "it must be above 0", "write it such as 24h")
	}
}

func (a *AppService) check(bad report) {
	checkDSN(bad, "appservice.database", a.Database)
	checkURL(bad, "appservice.homeserver_url", a.HomeserverURL)
	checkURL(bad, "appservice.address", a.Address)
	checkListen(bad, "appservice.listen", a.Listen)
	for _, u := range a.Admins {
		checkUser(bad, "appservice.admins", u)
	}
	checkWord(bad, "appservice.language", a.Language, "zh", "en")
	checkWord(bad, "appservice.login_rule", a.LoginRule, "job_number", "pinyin", "email_local")
	if a.Company == "" || len([]rune(a.Company)) > 64 {
		bad("appservice.company", "it needs 1 to 64 characters", "write the company's name")
	}
	if a.MaxLeave < 0 || a.MaxLeave > 1 {
		bad("appservice.max_leave", "it is not a share", "write a number from 0 to 1, such as 0.1")
	}
	checkRange(bad, "appservice.concurrency", int64(a.Concurrency), 1, 256, "requests; 16 is usual")
	if _, err := time.LoadLocation(a.TimeZone); err != nil || a.TimeZone == "" || a.TimeZone == "Local" {
		bad("appservice.time_zone", fmt.Sprintf("%q is not a time zone", a.TimeZone), "write a name such as Asia/Shanghai or UTC")
	}
	checkWord(bad, "appservice.unit_history", a.UnitHistory, "joined", "shared")
	checkRange(bad, "appservice.ding.per_minute", int64(a.DING.PerMinute), 1, 100000, "DINGs; 10 is usual")
	checkRange(bad, "appservice.ding.max_receivers", int64(a.DING.MaxReceivers), 0, 1000000, "people; 100 is usual")
}

// CheckAlone finds what "carillon appservice", which has no homeserver in its process, misses.
func (c *Config) CheckAlone() error {
	var problems Problems
	if c.AppService.HomeserverURL == "" {
		problems = append(problems, Problem{
			Field: "appservice.homeserver_url", Message: "it is missing",
			Mend: "write the client address of the homeserver, such as http://127.0.0.1:8008",
		})
	}
	if len(problems) > 0 {
		return problems
	}
	return nil
}

func checkListen(bad report, field, addr string) {
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		if n, err := strconv.Atoi(port); err == nil && n >= 0 && n < 65536 {
			return
		}
	}
	bad(field, fmt.Sprintf("%q is not an address to listen on", addr), "write host:port, such as 127.0.0.1:8008 or :8008")
}

func checkURL(bad report, field, value string) {
	if value == "" {
		return
	}
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		bad(field, fmt.Sprintf("%q is not an address", value), "write it such as https://chat.example.org")
	}
}

func checkPair(bad report, certField, cert, keyField, key string) {
	if (cert == "") != (key == "") {
		missing, set := keyField, certField
		if cert == "" {
			missing, set = certField, keyField
		}
		bad(missing, "it is missing, as "+set+" is set", "set both or none")
		return
	}
	if cert != "" {
		checkExists(bad, certField, cert)
		checkExists(bad, keyField, key)
	}
}

func checkExists(bad report, field, path string) {
	if _, err := os.Stat(path); err != nil {
		bad(field, "cannot be read: "+err.Error(), "check the path and who may read it")
	}
}

func checkUser(bad report, field, user string) {
	if !userID.MatchString(user) {
		bad(field, fmt.Sprintf("%q is not a user", user), "write it such as @chief:example.org")
	}
}

func checkWord(bad report, field, value string, words ...string) {
	if !slices.Contains(words, value) {
		bad(field, fmt.Sprintf("%q is not possible", value), "write one of: "+strings.Join(words, ", "))
	}
}

func checkRange(bad report, field string, value, low, high int64, usual string) {
	if value < low || value > high {
		bad(field, fmt.Sprintf("%d is out of range", value), fmt.Sprintf("write %d to %d %s", low, high, usual))
	}
}

func checkDSN(bad report, field, dsn string) {
	scheme, _, ok := strings.Cut(dsn, "://")
	if ok && scheme != "postgres" && scheme != "postgresql" && scheme != "file" {
		bad(field, "a database of the kind "+strconv.Quote(scheme)+" is not supported", "write postgres://user:password@host/database, or a file's path for SQLite")
	}
}

var providerID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func (s *SSO) check(bad report) {
	seen := map[string]bool{}
	for i, p := range s.Providers {
		at := fmt.Sprintf("homeserver.sso.providers[%d].", i)
		switch {
		case !providerID.MatchString(p.ID):
			bad(at+"id", fmt.Sprintf("%q is not possible", p.ID), "write 1 to 64 letters, digits, - and _")
		case seen[p.ID]:
			bad(at+"id", fmt.Sprintf("two providers have the id %q", p.ID), "give each its own")
		}
		seen[p.ID] = true
		for key, v := range map[string]string{"name": p.Name, "client_id": p.ClientID, "localpart": p.Localpart} {
			if v == "" {
				bad(at+key, "it is missing", "write it; see docs/operations.md")
			}
		}
		u, err := url.Parse(p.Issuer)
		if err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || !onThisMachine(u.Hostname())) {
			bad(at+"issuer", fmt.Sprintf("%q is not an https address", p.Issuer), "write the issuer as the provider names it, such as https://login.example.org/")
		}
		if p.Icon != "" && !strings.HasPrefix(p.Icon, "mxc://") {
			bad(at+"icon", fmt.Sprintf("%q is not a mxc:// address", p.Icon), "upload the picture with a client and write its mxc:// address")
		}
	}
	for _, c := range s.TrustedClients {
		if u, err := url.Parse(c); err != nil || u.Scheme == "" {
			bad("homeserver.sso.trusted_clients", fmt.Sprintf("%q is not an address", c), "write it such as https://chat.example.org/ or com.example.app://")
		}
	}
	if s.CAFile != "" {
		checkExists(bad, "homeserver.sso.ca_file", s.CAFile)
	}
}

func onThisMachine(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
