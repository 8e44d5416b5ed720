package main

import (
	"maunium.net/go/mautrix/id"

	"github.com/carillon-chat/carillon/appservice/sites"
	"github.com/carillon-chat/carillon/config"
)

// siteOptions are the company's sites as the enterprise service takes them.
func siteOptions(c *config.Sites) sites.Options {
	o := sites.Options{Own: c.Own}
	for _, site := range c.List {
		o.List = append(o.List, sites.Site{
			Name: site.Name, ServerName: site.ServerName, Bot: id.UserID(site.Bot), Head: site.Name == c.HeadOffice, Units: site.Delegated,
		})
	}
	return o
}
