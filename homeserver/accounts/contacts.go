package accounts

import (
	"context"

	"github.com/carillon-chat/carillon/homeserver/matrix"
	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

// Contacts is what accounts asks of those who keep e-mail addresses and telephone numbers of accounts. What is nil is
// not there.
type Contacts struct {
	// UserOf is the account that has a contact address, "" if none has.
	UserOf func(ctx context.Context, medium, address string) (matrix.UserID, error)
	// Phone makes the address of a number as it is dialled from a country.
	Phone func(country, number string) (string, error)
	// Registered takes what the stages of a registration have proven, in the transaction that makes the account.
	Registered func(tx *sqldb.Tx, user matrix.UserID, evidence map[string]string) error
	// Unbind takes all addresses of a user from the identity servers where they are published, or from the one named.
	// It says whether that succeeded everywhere.
	Unbind func(ctx context.Context, user matrix.UserID, idServer string) bool
}

// SetContacts connects the keeper of addresses, who is built later. Call it before serving.
func (a *Accounts) SetContacts(c Contacts) { a.contacts = c }

// identified is the user whom a log-in or a stage means.
type identified struct {
	user      matrix.UserID // may be nobody's
	byAddress bool
}

// identified finds the user of an identifier, or of the older field user. Whether there is such an account is not
// told: for an address that nobody has it gives the ID of nobody.
//
// Spec: client-server-api#identifier-types
func (a *Accounts) identified(ctx context.Context, i *identifier, user string) (identified, error) {
	if i == nil {
		if user == "" {
			return identified{}, matrix.MissingParam("identifier is needed")
		}
		i = &identifier{Type: "m.id.user", User: user}
	}
	switch i.Type {
	case "m.id.user":
		if i.User == "" {
			return identified{}, matrix.MissingParam("identifier.user is needed")
		}
		if u, ok := a.localUser(i.User); ok {
			return identified{user: u.ID}, nil
		}
		return identified{user: matrix.UserID(i.User)}, nil
	case "m.id.thirdparty":
		if i.Medium == "" || i.Address == "" {
			return identified{}, matrix.MissingParam("identifier.medium and identifier.address are needed")
		}
		return a.userOf(ctx, i.Medium, i.Address)
	case "m.id.phone":
		number := i.Phone
		if number == "" {
			number = i.Number
		}
		if i.Country == "" || number == "" {
			return identified{}, matrix.MissingParam("identifier.country and identifier.phone are needed")
		}
		if a.contacts.Phone == nil {
			return a.userOf(ctx, "msisdn", number)
		}
		address, err := a.contacts.Phone(i.Country, number)
		if err != nil {
			return identified{}, err
		}
		return a.userOf(ctx, "msisdn", address)
	case "":
		return identified{}, matrix.MissingParam("identifier.type is needed")
	}
	return identified{}, matrix.Unknown("identifier type %q is not known", i.Type)
}

// userOf finds the account of an address; the nobody that stands for an unknown one is different for each, so that
// attempts are counted.
func (a *Accounts) userOf(ctx context.Context, medium, address string) (identified, error) {
	nobody := identified{user: matrix.UserID(medium + ":" + address), byAddress: true}
	if a.contacts.UserOf == nil {
		return nobody, nil
	}
	user, err := a.contacts.UserOf(ctx, medium, address)
	if err != nil || user == "" {
		return nobody, err
	}
	return identified{user: user, byAddress: true}, nil
}
