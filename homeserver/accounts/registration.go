package accounts

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// Namespace is a set of identifiers an application service is interested in.
type Namespace struct {
	Exclusive bool   `yaml:"exclusive"`
	Regex     string `yaml:"regex"`

	re *regexp.Regexp
}

// Match says whether the identifier begins with something the namespace describes.
func (n *Namespace) Match(id string) bool { return n.re != nil && n.re.MatchString(id) }

// Namespaces are the three namespaces of a registration.
type Namespaces struct {
	Users   []Namespace `yaml:"users"`
	Aliases []Namespace `yaml:"aliases"`
	Rooms   []Namespace `yaml:"rooms"`
}

// ApplicationService is a registration.
//
// Spec: application-service-api#registration
type ApplicationService struct {
	ID               string
	URL              string // empty: wants no traffic
	ASToken          string
	HSToken          string
	SenderLocalpart  string
	Namespaces       Namespaces
	RateLimited      bool // requests of masqueraded users are rate limited
	ReceiveEphemeral bool
	Protocols        []string
	Admin            bool // its sender is a server administrator (im.carillon.admin)
}

// registrationFile is a registration as it is written. Keys that are not named here are tolerated.
type registrationFile struct {
	ID               *string    `yaml:"id"`
	URL              *string    `yaml:"url"`
	ASToken          string     `yaml:"as_token"`
	HSToken          string     `yaml:"hs_token"`
	SenderLocalpart  string     `yaml:"sender_localpart"`
	Namespaces       Namespaces `yaml:"namespaces"`
	RateLimited      *bool      `yaml:"rate_limited"`
	ReceiveEphemeral bool       `yaml:"receive_ephemeral"`
	PushEphemeral    bool       `yaml:"de.sorunome.msc2409.push_ephemeral"`
	Protocols        []string   `yaml:"protocols"`
	Admin            bool       `yaml:"im.carillon.admin"`
}

// ParseRegistration reads one registration and checks it.
func ParseRegistration(b []byte) (*ApplicationService, error) {
	var f registrationFile
	if err := yaml.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("reading the registration: %w", err)
	}
	if f.ID == nil {
		return nil, errors.New("id is missing")
	}
	as := &ApplicationService{
		ID: *f.ID, ASToken: f.ASToken, HSToken: f.HSToken, SenderLocalpart: f.SenderLocalpart,
		Namespaces: f.Namespaces, Protocols: f.Protocols, Admin: f.Admin,
		RateLimited:      f.RateLimited == nil || *f.RateLimited,
		ReceiveEphemeral: f.ReceiveEphemeral || f.PushEphemeral,
	}
	if f.URL != nil {
		as.URL = strings.TrimRight(*f.URL, "/")
	}
	return as, as.Check()
}

// Check validates the registration and compiles its namespaces. It has to be called before Match, OwnsUser and
// the like; New does so for the registrations it is given.
func (as *ApplicationService) Check() error {
	switch {
	case as.ID == "":
		return errors.New("id must not be empty")
	case as.ASToken == "":
		return errors.New("as_token must not be empty")
	case as.HSToken == "":
		return errors.New("hs_token must not be empty")
	case !validLocalpart(as.SenderLocalpart):
		return fmt.Errorf("sender_localpart %q is no user name: use a-z, 0-9 and . _ = - / +", as.SenderLocalpart)
	}
	if as.URL != "" {
		if u, err := url.Parse(as.URL); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return fmt.Errorf("url %q is no http or https address", as.URL)
		}
	}
	for _, list := range []struct {
		name string
		ns   []Namespace
	}{{"users", as.Namespaces.Users}, {"aliases", as.Namespaces.Aliases}, {"rooms", as.Namespaces.Rooms}} {
		for i := range list.ns {
			re, err := regexp.Compile(`^(?:` + list.ns[i].Regex + `)`)
			if err != nil {
				return fmt.Errorf("namespaces.%s[%d]: %w", list.name, i, err)
			}
			list.ns[i].re = re
		}
	}
	return nil
}

// Sender is the service's own user.
func (as *ApplicationService) Sender(server matrix.ServerName) matrix.UserID {
	return matrix.NewUserID(as.SenderLocalpart, server)
}

// OwnsUser says whether the service may act as a local user.
func (as *ApplicationService) OwnsUser(user matrix.UserID) bool {
	return user.Localpart() == as.SenderLocalpart || matchAny(as.Namespaces.Users, string(user), false)
}

// OwnsAlias says whether an alias is in the service's namespaces.
func (as *ApplicationService) OwnsAlias(alias matrix.RoomAlias) bool {
	return matchAny(as.Namespaces.Aliases, string(alias), false)
}

// OwnsRoom says whether a room ID is in the service's namespaces.
func (as *ApplicationService) OwnsRoom(room matrix.RoomID) bool {
	return matchAny(as.Namespaces.Rooms, string(room), false)
}

func matchAny(list []Namespace, id string, onlyExclusive bool) bool {
	for i := range list {
		if (list[i].Exclusive || !onlyExclusive) && list[i].Match(id) {
			return true
		}
	}
	return false
}

// LoadRegistrations reads registration files; of a folder, all its *.yaml and *.yml files in the order of their
// names. It refuses services that share an id, a token or a sender.
func LoadRegistrations(paths ...string) ([]*ApplicationService, error) {
	var files []string
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, fmt.Errorf("application services: %w", err)
		}
		if !info.IsDir() {
			files = append(files, p)
			continue
		}
		entries, err := os.ReadDir(p)
		if err != nil {
			return nil, fmt.Errorf("application services: %w", err)
		}
		for _, e := range entries {
			if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".yaml" || ext == ".yml") {
				files = append(files, filepath.Join(p, e.Name()))
			}
		}
	}
	var list []*ApplicationService
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("application services: %w", err)
		}
		as, err := ParseRegistration(b)
		if err != nil {
			return nil, fmt.Errorf("application service %s: %w", f, err)
		}
		list = append(list, as)
	}
	return list, checkDistinct(list)
}

func checkDistinct(list []*ApplicationService) error {
	for i, a := range list {
		j := slices.IndexFunc(list[:i], func(b *ApplicationService) bool {
			return a.ID == b.ID || a.ASToken == b.ASToken || a.SenderLocalpart == b.SenderLocalpart
		})
		if j < 0 {
			continue
		}
		b := list[j]
		switch {
		case a.ID == b.ID:
			return fmt.Errorf("two application services have the id %q", a.ID)
		case a.ASToken == b.ASToken:
			return fmt.Errorf("application services %q and %q have the same as_token", a.ID, b.ID)
		default:
			return fmt.Errorf("application services %q and %q have the same sender_localpart", a.ID, b.ID)
		}
	}
	return nil
}
