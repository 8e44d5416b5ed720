package config

import (
	"fmt"
	"net"
)

// Bridges are the ways out of the chat.
type Bridges struct {
	SMS SMSBridge `yaml:"sms" doc:"Texts to telephones, by a carrier. It sends the codes that prove a telephone number; then homeserver.sms is not needed."`
}

// SMSBridge says how texts reach the carrier.
type SMSBridge struct {
	SMPP SMPP `yaml:"smpp" doc:"The carrier's SMSC, spoken to by SMPP 3.4."`
}

// SMPP is a way to an SMSC.
type SMPP struct {
	Address     string `yaml:"address" example:"smsc.example.org:2775" doc:"host:port of the SMSC. Empty: no texts are sent this way."`
	TLS         bool   `yaml:"tls" doc:"The SMSC speaks TLS at that address. Without it, reach it through a network that the carrier protects."`
	CAFile      string `yaml:"ca_file" doc:"PEM certificates of authorities that are trusted besides the system's."`
	SystemID    string `yaml:"system_id" doc:"The name by which the carrier knows you; at most 15 characters."`
	Password    Secret `yaml:"password" doc:"The password that belongs to it; SMPP allows 8 characters."`
	SystemType  string `yaml:"system_type" doc:"What the carrier wants to be told as type, at most 12 characters."`
	ServiceType string `yaml:"service_type" doc:"What the carrier wants to be told as service, at most 5 characters."`
	Source      string `yaml:"source" doc:"The sender that people see: a number, a short code or a name, at most 20 characters."`
	SourceTON   int    `yaml:"source_ton" doc:"Type of the source: 0 unknown, 1 international, 2 national, 3 short code, 5 letters."`
	SourceNPI   int    `yaml:"source_npi" doc:"Numbering plan of the source: 0 unknown, 1 telephone numbers."`
	Window      int    `yaml:"window" default:"10" doc:"How many texts may wait for the SMSC's answer at a time."`
	PerSecond   int    `yaml:"per_second" doc:"Most parts of texts a second that the carrier allows. 0: as fast as it answers."`
	ReceiptIDs  string `yaml:"receipt_ids" doc:"How the carrier writes a text's ID in its receipts: empty where as in its answer; decimal or hex where it changes the base."`
}

func (b *Bridges) check(bad report, c *Config) {
	const at = "bridges.sms.smpp."
	s := &b.SMS.SMPP
	if s.Address == "" {
		if s.SystemID != "" || s.Password != "" {
			bad(at+"address", "it is missing", "write the SMSC's address such as smsc.example.org:2775, or remove the other settings")
		}
		return
	}
	if _, port, err := net.SplitHostPort(s.Address); err != nil || port == "" {
		bad(at+"address", fmt.Sprintf("%q is not an address", s.Address), "write host and port, such as smsc.example.org:2775")
	}
	if c.Homeserver.SMS.WebhookURL != "" {
		bad(at+"address", "homeserver.sms.webhook_url is set too", "keep one of the two ways to send texts")
	}
	if c.PublicBaseURL == "" {
		bad("public_base_url", "it is missing, as bridges.sms is set", "write the address that clients use: links in messages begin with it")
	}
	checkText(bad, at+"system_id", s.SystemID, 1, 15)
	checkText(bad, at+"password", s.Password.Value(), 0, 8)
	checkText(bad, at+"system_type", s.SystemType, 0, 12)
	checkText(bad, at+"service_type", s.ServiceType, 0, 5)
	checkText(bad, at+"source", s.Source, 0, 20)
	checkRange(bad, at+"source_ton", int64(s.SourceTON), 0, 6, "as the carrier says")
	checkRange(bad, at+"source_npi", int64(s.SourceNPI), 0, 18, "as the carrier says")
	checkRange(bad, at+"window", int64(s.Window), 1, 1000, "texts; 10 is usual")
	checkRange(bad, at+"per_second", int64(s.PerSecond), 0, 10_000, "parts a second, or 0")
	checkWord(bad, at+"receipt_ids", s.ReceiptIDs, "", "decimal", "hex")
	if s.CAFile != "" {
		checkExists(bad, at+"ca_file", s.CAFile)
	}
}

// checkText bounds a text of ASCII characters, and never repeats it: it may be a secret.
func checkText(bad report, field, value string, least, most int) {
	for _, c := range value {
		if c < ' ' || c > '~' {
			bad(field, "it has characters that SMPP cannot carry", "use letters, digits and signs of ASCII")
			return
		}
	}
	if n := len(value); n < least || n > most {
		bad(field, fmt.Sprintf("it has %d characters", n), fmt.Sprintf("write %d to %d", least, most))
	}
}
