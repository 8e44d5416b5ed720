package smpp

import (
	"errors"
	"strconv"
	"strings"

	"github.com/linxGnu/gosmpp/data"
	"github.com/linxGnu/gosmpp/pdu"

	"github.com/carillon-chat/carillon/bridges/bridge"
	"github.com/carillon-chat/carillon/bridges/sms"
)

const (
	hasHeader  = 0x40 // esm_class: the text begins with a user data header
	wantsFinal = 0x01 // registered_delivery: a receipt of success or failure
	toOne      = 0x01 // TON international, NPI ISDN
)

// parts makes the PDUs of a text.
func (c *Client) parts(m *sms.Message) ([]*pdu.SubmitSM, error) {
	texts, wide := sms.Split(m.Text)
	encoding := data.GSM7BIT
	if wide {
		encoding = data.UCS2
	}
	ref := byte(c.ref.Add(1))
	out := make([]*pdu.SubmitSM, len(texts))
	for i, text := range texts {
		p, ok := pdu.NewSubmitSM().(*pdu.SubmitSM)
		if !ok {
			return nil, errors.New("no submit_sm") // cannot be
		}
		p.ServiceType = c.o.Service
		p.SourceAddr.SetTon(c.o.SourceTON)
		p.SourceAddr.SetNpi(c.o.SourceNPI)
		p.DestAddr.SetTon(toOne)
		p.DestAddr.SetNpi(toOne)
		if err := errors.Join(p.SourceAddr.SetAddress(c.o.Source), p.DestAddr.SetAddress(strings.TrimPrefix(m.To, "+"))); err != nil {
			return nil, errors.New("the SMSC cannot be told this address")
		}
		body, err := encoding.Encode(text)
		if err != nil {
			return nil, errors.New("the text cannot be encoded")
		}
		if err := p.Message.SetMessageDataWithEncoding(body, encoding); err != nil {
			return nil, errors.New("the text is too long")
		}
		if len(texts) > 1 {
			p.EsmClass = hasHeader
			p.Message.SetUDH(pdu.UDH{pdu.NewIEConcatMessage(byte(len(texts)), byte(i+1), ref)})
		}
		if i == len(texts)-1 {
			p.RegisteredDelivery = wantsFinal
		}
		if !m.Expires.IsZero() {
			p.ValidityPeriod = m.Expires.UTC().Format("060102150405") + "000+"
		}
		out[i] = p
	}
	return out, nil
}

// receipt reads a delivery receipt; State is empty where the text is still under way.
// Source: SMPP 3.4, 5.2.28 (message_state) and appendix B (the text, which older SMSCs have alone).
func receipt(p *pdu.DeliverSM) (r sms.Report, ok bool) {
	text, err := p.Message.GetMessage()
	if err != nil {
		text = ""
	}
	state, code := field(text, "stat:"), field(text, "err:")
	r.ID = field(text, "id:")
	if f, has := p.OptionalParameters[pdu.TagReceiptedMessageID]; has {
		r.ID = strings.TrimRight(string(f.Data), "\x00")
	}
	if f, has := p.OptionalParameters[pdu.TagMessageStateOption]; has && len(f.Data) == 1 {
		if name, known := states[f.Data[0]]; known {
			state = name
		}
	}
	r.Reason = strings.Trim(state+" "+code, " ")
	switch state {
	case "DELIVRD":
		r.State, r.Reason = bridge.Delivered, ""
	case "EXPIRED":
		r.State = bridge.Expired
	case "UNDELIV", "REJECTD", "DELETED":
		r.State = bridge.Failed
	case "ENROUTE", "ACCEPTD", "UNKNOWN":
	default:
		return r, false
	}
	return r, r.ID != "" && len(r.ID) <= 65
}

// states are the values of message_state.
var states = map[byte]string{
	1: "ENROUTE", 2: "DELIVRD", 3: "EXPIRED", 4: "DELETED", 5: "UNDELIV", 6: "ACCEPTD", 7: "UNKNOWN", 8: "REJECTD",
}

// field finds the word behind a name.
func field(text, name string) string {
	_, rest, ok := strings.Cut(text, name)
	if !ok {
		return ""
	}
	word, _, _ := strings.Cut(rest, " ")
	return word
}

// receiptID is an ID of an answer as the receipts have it.
func (c *Client) receiptID(id string) string {
	var n uint64
	var err error
	switch c.o.IDs {
	case "decimal":
		if n, err = strconv.ParseUint(id, 16, 64); err == nil {
			return strconv.FormatUint(n, 10)
		}
	case "hex":
		if n, err = strconv.ParseUint(id, 10, 64); err == nil {
			return strings.ToUpper(strconv.FormatUint(n, 16))
		}
	}
	return id
}
