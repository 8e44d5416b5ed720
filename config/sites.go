package config

import (
	"fmt"
	"iter"
	"slices"
	"strings"
)

// Sites are the places of one company that have a Carillon each.
type Sites struct {
	Own        string `yaml:"own" doc:"Name of this site, as units carry it in the company file. Empty: the company has one site, and nothing of this section is needed."`
	HeadOffice string `yaml:"head_office" doc:"Name of the site that imports the company file; all others receive the company from it."`
	List       []Site `yaml:"list" doc:"All sites, this one included; the same list at every site."`
}

// Site is one of them.
type Site struct {
	Name       string   `yaml:"name" required:"true" example:"四川" doc:"Name of the site, as units carry it in the company file."`
	ServerName string   `yaml:"server_name" required:"true" example:"sc.example.org" doc:"The server_name of its homeserver."`
	Bot        string   `yaml:"bot" doc:"User of its enterprise service. Empty: @carillon at its server."`
	Delegated  []string `yaml:"delegated" doc:"IDs of units below which this site imports people by itself, the units included. Only what the head office has here counts."`
}

// check finds what is wrong with the sites. Fields of a site that are missing are reported at the site.
func (s *Sites) check(bad report, c *Config) {
	const at = "appservice.sites."
	if len(s.List) == 0 {
		for field, value := range s.names() {
			if value != "" {
				bad(at+field, "there is no list of sites to find it in", "write appservice.sites.list, or remove it")
			}
		}
		return
	}
	names := s.checkList(bad)
	for field, value := range s.names() {
		switch {
		case value == "":
			bad(at+field, "it is missing", "write one of: "+strings.Join(names, ", "))
		case !slices.Contains(names, value):
			bad(at+field, fmt.Sprintf("%q is not in the list", value), "write one of: "+strings.Join(names, ", "))
		}
	}
	for i, site := range s.List {
		entry := fmt.Sprintf(at+"list[%d]", i)
		if site.Name == s.Own && site.ServerName != c.ServerName && site.ServerName != "" {
			bad(entry+".server_name", fmt.Sprintf("%q is this site, but this server is %q", site.Name, c.ServerName), "write server_name: "+c.ServerName+", or the right name in appservice.sites.own")
		}
		if site.Name == s.HeadOffice && len(site.Delegated) > 0 {
			bad(entry+".delegated", "the head office imports everything anyway", "remove it")
		}
	}
	if len(s.List) > 1 {
		s.checkFederation(bad, &c.Homeserver.Federation)
	}
}

// names yields the settings that name a site.
func (s *Sites) names() iter.Seq2[string, string] {
	return func(yield func(field, value string) bool) {
		_ = yield("own", s.Own) && yield("head_office", s.HeadOffice)
	}
}

// checkList finds what is wrong with single sites, and with two of them; it answers the names.
func (s *Sites) checkList(bad report) (names []string) {
	servers, units := map[string]string{}, map[string]string{}
	for i, site := range s.List {
		at := fmt.Sprintf("appservice.sites.list[%d]", i)
		switch {
		case site.Name == "":
			bad(at, "name is missing", "write the site's name as units carry it, such as name: 四川")
		case len([]rune(site.Name)) > 64:
			bad(at+".name", "it has more than 64 characters", "write a shorter one, as in the company file")
		case slices.Contains(names, site.Name):
			bad(at+".name", fmt.Sprintf("two sites are called %q", site.Name), "give each site a name of its own")
		}
		names = append(names, site.Name)
		switch other, double := servers[site.ServerName]; {
		case site.ServerName == "":
			bad(at, "server_name is missing", "write the server_name of the site's homeserver")
		case !serverName.MatchString(site.ServerName):
			bad(at+".server_name", fmt.Sprintf("%q is not a server name", site.ServerName), "write it such as sc.example.org")
		case double:
			bad(at+".server_name", fmt.Sprintf("the sites %q and %q have the same server", other, site.Name), "each site has a homeserver of its own")
		}
		servers[site.ServerName] = site.Name
		if site.Bot != "" && (!userID.MatchString(site.Bot) || !strings.HasSuffix(site.Bot, ":"+site.ServerName)) {
			bad(at+".bot", fmt.Sprintf("%q is not a user of %s", site.Bot, site.ServerName), "write it such as @carillon:"+site.ServerName+", or remove it")
		}
		for _, u := range site.Delegated {
			if other, double := units[u]; double {
				bad(at+".delegated", fmt.Sprintf("unit %q is delegated to %q too", u, other), "delegate it to one site")
			}
			units[u] = site.Name
		}
	}
	return names
}

// checkFederation finds settings that keep the sites apart.
func (s *Sites) checkFederation(bad report, f *Federation) {
	if !f.Enabled {
		bad("homeserver.federation.enabled", "the sites of appservice.sites speak to each other by federation", "write enabled: true, or remove appservice.sites")
		return
	}
	if len(f.Allow) == 0 {
		return
	}
	for _, site := range s.List {
		name := site.ServerName
		if site.Name == s.Own || slices.ContainsFunc(f.Allow, func(allowed string) bool { return covers(allowed, name) }) {
			continue
		}
		bad("homeserver.federation.allow", fmt.Sprintf("the server %s of site %q is not allowed", name, site.Name), "add "+name)
	}
}

// covers reports whether an entry of the list of allowed servers is, or covers, a server.
func covers(allowed, server string) bool {
	allowed, server = strings.ToLower(allowed), strings.ToLower(server)
	rest, wild := strings.CutPrefix(allowed, "*")
	return allowed == server || wild && strings.HasSuffix(server, rest)
}
