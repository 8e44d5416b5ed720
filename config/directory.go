package config

import (
	"fmt"
	"net"
	"net/url"
	"time"
)

// Directory is an LDAP directory that the company follows.
type Directory struct {
	URL        string   `yaml:"url" example:"ldaps://dc1.example.org" doc:"The directory: ldaps://host, or ldap://host with starttls. Empty: there is none."`
	StartTLS   bool     `yaml:"starttls" doc:"Protect an ldap:// connection by StartTLS."`
	AllowPlain bool     `yaml:"allow_plain" doc:"Go on without TLS, so that the password and people's data can be read on the way. Not needed for a directory on this machine."`
	CAFile     string   `yaml:"ca_file" doc:"PEM certificates of authorities that are trusted besides the system's, such as the company's own."`
	BindDN     string   `yaml:"bind_dn" doc:"The name to log in by, such as cn=carillon,ou=services,dc=example,dc=org or, with Active Directory, carillon@example.org. Reading is enough."`
	Password   Secret   `yaml:"password" doc:"The password that belongs to it."`
	Every      Duration `yaml:"every" default:"10m" doc:"How often all is read, besides when the directory says that it has changed: Active Directory does, and OpenLDAP with its overlay syncprov, and is asked every three seconds."`

	Units  DirectoryUnits  `yaml:"units" doc:"Which entries are units. Attributes that are empty are those that the directory does not have; the company file may then write them."`
	People DirectoryPeople `yaml:"people" doc:"Which entries are people. Who is gone from the directory leaves the company."`
}

// DirectoryUnits say which entries are units.
type DirectoryUnits struct {
	Base    string `yaml:"base" example:"ou=company,dc=example,dc=org" doc:"The entry below which units are, itself included. Empty: the directory has people alone."`
	Filter  string `yaml:"filter" default:"(objectClass=organizationalUnit)" doc:"Which entries there are units."`
	Groups  bool   `yaml:"groups" doc:"Units are groups, such as with the filter (objectClass=group): members have a post in them, groups that are members are the units below."`
	ID      string `yaml:"id" doc:"Attribute with a unit's ID. Empty: entryUUID or objectGUID, which stay when a unit is renamed or moved."`
	Name    string `yaml:"name" doc:"Attribute with the name. Empty: ou, or cn for groups."`
	Code    string `yaml:"code" doc:"Attribute with the unit's code."`
	Order   string `yaml:"order" doc:"Attribute with the number by which units are sorted."`
	Site    string `yaml:"site" doc:"Attribute with the site, such as l."`
	Manager string `yaml:"manager" doc:"Attribute with the names of the managers' entries, such as managedBy."`
}

// DirectoryPeople say which entries are people.
type DirectoryPeople struct {
	Base    string `yaml:"base" example:"dc=example,dc=org" doc:"The entry below which people are. Needed with url."`
	Filter  string `yaml:"filter" default:"(objectClass=person)" doc:"Which entries there are people, such as (&(objectCategory=person)(objectClass=user)(memberOf:1.2.840.113556.1.4.1941:=cn=staff,dc=example,dc=org)) for the members of a group of Active Directory and of those in it."`
	ID      string `yaml:"id" default:"employeeNumber" doc:"Attribute with the job number. Entries without one are passed over."`
	Name    string `yaml:"name" default:"displayName" doc:"Attribute with the real name; cn where an entry has none."`
	Mobile  string `yaml:"mobile" default:"mobile" doc:"Attribute with the mobile number."`
	Email   string `yaml:"email" default:"mail" doc:"Attribute with the e-mail address."`
	Title   string `yaml:"title" default:"title" doc:"Attribute with the title."`
	Manager string `yaml:"manager" default:"manager" doc:"Attribute with the name of the line manager's entry."`
	Unit    string `yaml:"unit" doc:"Attribute with the IDs or codes of units, the main one first, such as departmentNumber. Empty: the unit that the entry stands in, or the groups that it is a member of."`
	Hired   string `yaml:"hired" doc:"Attribute with the date of beginning."`
	Left    string `yaml:"left" doc:"Attribute with the date of leaving, such as accountExpires."`
}

func (d *Directory) check(bad report, s *Sites) {
	const at = "appservice.directory."
	if d.URL == "" {
		if d.People.Base != "" || d.BindDN != "" {
			bad(at+"url", "it is missing", "write the directory's address such as ldaps://dc1.example.org, or remove the other settings")
		}
		return
	}
	u, err := url.Parse(d.URL)
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "ldap" && u.Scheme != "ldaps":
		bad(at+"url", fmt.Sprintf("%q is not a directory's address", d.URL), "write it such as ldaps://dc1.example.org")
	case u.Scheme == "ldap" && !d.StartTLS && !d.AllowPlain && u.Hostname() != "localhost" && !net.ParseIP(u.Hostname()).IsLoopback():
		bad(at+"url", "the password and people's data would go unprotected", "write ldaps://, or set starttls")
	case u.Scheme == "ldaps" && d.StartTLS:
		bad(at+"starttls", "ldaps:// is protected from the first byte", "remove starttls")
	}
	if d.People.Base == "" {
		bad(at+"people.base", "it is missing, as url is set", "write the entry below which people are, such as dc=example,dc=org")
	}
	if d.People.ID == "" {
		bad(at+"people.id", "it is empty", "write the attribute with the job number, such as employeeNumber")
	}
	if d.BindDN != "" && d.Password == "" {
		bad(at+"password", "it is missing, as bind_dn is set", "write file:PATH or env:NAME")
	}
	if d.CAFile != "" {
		checkExists(bad, at+"ca_file", d.CAFile)
	}
	if e := d.Every.Std(); e < 10*time.Second || e > 24*time.Hour {
		bad(at+"every", "it must be between 10s and 24h", "write it such as 10m")
	}
	if s.Own != s.HeadOffice {
		bad(at+"url", "this site is not the head office, which alone reads the company", "remove it here and set it at "+s.HeadOffice)
	}
}
