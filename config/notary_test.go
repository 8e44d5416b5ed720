package config_test

import (
	"testing"

	"github.com/carillon-chat/carillon/config"
)

func TestNotaries(t *testing.T) {
	const head = "server_name: example.org\ndata_dir: ./data\nlisten: 127.0.0.1:8008\nhomeserver:\n  federation:\n    notaries:\n"
	cfg, err := read(t, head+"      - server_name: hq.example.org\n        keys: [\"ed25519:a_Xy Noi6WqcDj0QmPxCNQqgezwTlBKrfqehY1u2FyWP9uYw=\"]\n")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := cfg.Homeserver.Federation.Notaries[0].PublicKeys()
	if err != nil || len(keys["ed25519:a_Xy"]) != 32 {
		t.Errorf("%v %v", keys, err)
	}
	check(t, head+"      - server_name: https://hq\n        keys: [ed25519:a Noi6WqcDj0QmPxCNQqgezwTlBKrfqehY1u2FyWP9uYw]\n",
		config.Problem{Line: 7, Field: "homeserver.federation.notaries[0].server_name", Message: "https://hq", Mend: "hq.example.org"})
	for _, bad := range []string{"[]", "[ed25519:a]", "[ed25519:a Noi6]", "[rsa:a Noi6WqcDj0QmPxCNQqgezwTlBKrfqehY1u2FyWP9uYw]", "[Noi6WqcDj0QmPxCNQqgezwTlBKrfqehY1u2FyWP9uYw]"} {
		check(t, head+"      - server_name: hq.example.org\n        keys: "+bad+"\n",
			config.Problem{Line: 8, Field: "homeserver.federation.notaries[0].keys", Mend: "_matrix/key/v2/server"})
	}
}
