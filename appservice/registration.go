package appservice

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"github.com/goccy/go-yaml"

	"github.com/carillon-chat/carillon/homeserver/matrix"
)

// The names of the service towards the homeserver.
const (
	ServiceID    = "carillon"
	BotLocalpart = "carillon"
)

// Namespace is a set of identifiers the service is interested in.
type Namespace struct {
	Exclusive bool   `yaml:"exclusive"`
	Regex     string `yaml:"regex"`
}

// Namespaces are the three kinds of them.
type Namespaces struct {
	Users   []Namespace `yaml:"users"`
	Aliases []Namespace `yaml:"aliases"`
	Rooms   []Namespace `yaml:"rooms"`
}

// Registration is the file that homeserver and service share.
//
// Spec: application-service-api#registration
type Registration struct {
	ID              string     `yaml:"id"`
	URL             string     `yaml:"url"`
	ASToken         string     `yaml:"as_token"`
	HSToken         string     `yaml:"hs_token"`
	SenderLocalpart string     `yaml:"sender_localpart"`
	RateLimited     bool       `yaml:"rate_limited"`
	Namespaces      Namespaces `yaml:"namespaces"`
	// ReceiveEphemeral brings read receipts; homeservers older than version 1.13 of the specification know the other key.
	ReceiveEphemeral bool `yaml:"receive_ephemeral"`
	PushEphemeral    bool `yaml:"de.sorunome.msc2409.push_ephemeral"`
	// Admin makes the bot a server administrator on a Carillon homeserver, so that it can lock leavers.
	Admin bool `yaml:"im.carillon.admin"`
}

// NewRegistration makes a registration with new tokens. address is where the homeserver reaches the service.
//
// The namespace of users covers everybody of the server, as everybody is an employee, without claiming the names: the
// homeserver may make accounts of its own. It brings all events of their rooms and, as the specification has it, also
// their private receipts, which the service drops unless Options.PrivateReceipts says otherwise.
func NewRegistration(server, address string) *Registration {
	host := regexp.QuoteMeta(server)
	return &Registration{
		ID: ServiceID, URL: address, ASToken: matrix.RandomString(48), HSToken: matrix.RandomString(48),
		SenderLocalpart: BotLocalpart, ReceiveEphemeral: true, PushEphemeral: true, Admin: true,
		Namespaces: Namespaces{
			Users: []Namespace{
				{Exclusive: true, Regex: "@" + BotLocalpart + "(_.*)?:" + host + "$"},
				{Regex: "@.*:" + host + "$"},
			},
			Aliases: []Namespace{{Exclusive: true, Regex: "#" + BotLocalpart + "_.*:" + host + "$"}},
			Rooms:   []Namespace{},
		},
	}
}

// LoadRegistration reads a registration file.
func LoadRegistration(path string) (*Registration, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the registration: %w", err)
	}
	r := new(Registration)
	if err := yaml.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("reading the registration %s: %w", path, err)
	}
	return r, r.check()
}

// LoadOrCreateRegistration reads a registration file, and makes it first if there is none.
func LoadOrCreateRegistration(path, server, address string) (*Registration, error) {
	r, err := LoadRegistration(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	r = NewRegistration(server, address)
	return r, r.Save(path)
}

// YAML is the registration as a file.
func (r *Registration) YAML() ([]byte, error) {
	b, err := yaml.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("writing the registration: %w", err)
	}
	return append([]byte("# How the homeserver and the enterprise service of Carillon know each other. Keep it secret.\n"), b...), nil
}

// Save writes the registration to a file that nobody else may read.
func (r *Registration) Save(path string) error {
	b, err := r.YAML()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("saving the registration: %w", err)
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("saving the registration: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("saving the registration: %w", err)
	}
	return nil
}

func (r *Registration) check() error {
	switch {
	case r.ID == "":
		return errors.New("the registration has no id")
	case r.ASToken == "" || r.HSToken == "":
		return errors.New("the registration needs as_token and hs_token")
	case r.ASToken == r.HSToken:
		return errors.New("as_token and hs_token of the registration must differ")
	case r.SenderLocalpart == "":
		return errors.New("the registration has no sender_localpart")
	}
	return nil
}
