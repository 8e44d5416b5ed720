package smpp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/linxGnu/gosmpp/data"
	"github.com/linxGnu/gosmpp/pdu"
	log "github.com/sirupsen/logrus"

	"github.com/carillon-chat/carillon/bridges/sms"
)

// session is one connection.
type session struct {
	c    *Client
	conn net.Conn

	write sync.Mutex

	mu      sync.Mutex
	waiting map[int32]chan pdu.PDU // by sequence number
	err     error                  // why it ended
}

func newSession(c *Client, conn net.Conn) *session {
	return &session{c: c, conn: conn, waiting: map[int32]chan pdu.PDU{}}
}

// close ends the session; who waits for an answer gets none.
func (s *session) close(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	s.err = why
	_ = s.conn.Close() // it may be broken already
	for _, w := range s.waiting {
		close(w)
	}
	s.waiting = nil
}

// unbind says good-bye.
func (s *session) unbind() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, _ = s.ask(ctx, pdu.NewUnbind())
	s.close(context.Canceled)
}

// put writes a PDU.
func (s *session) put(p pdu.PDU) error {
	b := pdu.NewBuffer(make([]byte, 0, 256))
	p.Marshal(b)
	s.write.Lock()
	defer s.write.Unlock()
	if err := s.conn.SetWriteDeadline(time.Now().Add(s.c.o.Timeout)); err != nil {
		return err
	}
	_, err := s.conn.Write(b.Bytes())
	return err
}

// ask sends a request and waits for its answer. The error is ErrUnsure where the request may have arrived.
func (s *session) ask(ctx context.Context, p pdu.PDU) (pdu.PDU, error) {
	seq := p.GetSequenceNumber()
	answer := make(chan pdu.PDU, 1)
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return nil, s.err
	}
	s.waiting[seq] = answer
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.waiting, seq)
	}()
	if err := s.put(p); err != nil {
		s.close(err) // half a PDU may have gone
		return nil, fmt.Errorf("writing to the SMSC: %w", sms.ErrUnsure)
	}
	t := time.NewTimer(s.c.o.Timeout)
	defer t.Stop()
	select {
	case resp, ok := <-answer:
		if !ok {
			return nil, fmt.Errorf("the session broke: %w", sms.ErrUnsure)
		}
		return resp, nil
	case <-t.C:
		s.close(errors.New("the SMSC does not answer"))
		return nil, fmt.Errorf("the SMSC does not answer: %w", sms.ErrUnsure)
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the SMSC's answer: %w", sms.ErrUnsure)
	}
}

// read takes what the SMSC sends until the session ends.
func (s *session) read(ctx context.Context) error {
	r := bufio.NewReaderSize(s.conn, 16<<10)
	for {
		// An idle link is tried every Enquire; the answer is what comes at the latest.
		if err := s.conn.SetReadDeadline(time.Now().Add(s.c.o.Enquire + 2*s.c.o.Timeout)); err != nil {
			return s.ended(err)
		}
		p, err := parse(r)
		if err != nil {
			return s.ended(err)
		}
		var reply pdu.PDU
		switch p := p.(type) {
		case *pdu.DeliverSM:
			reply = s.deliver(ctx, p)
		case *pdu.EnquireLink:
			reply = p.GetResponse()
		case *pdu.Unbind:
			_ = s.put(p.GetResponse()) // the SMSC is going either way
			return s.ended(errors.New("the SMSC has unbound"))
		case *pdu.AlertNotification:
		default:
			if p.CanResponse() { // a request that is none of ours
				n, _ := pdu.NewGenericNack().(*pdu.GenericNack)
				n.CommandStatus, n.SequenceNumber = data.ESME_RINVCMDID, p.GetSequenceNumber()
				reply = n
				break
			}
			s.mu.Lock()
			if w := s.waiting[p.GetSequenceNumber()]; w != nil {
				select {
				case w <- p:
				default: // a second answer to one request
				}
			}
			s.mu.Unlock()
		}
		if reply == nil {
			continue
		}
		if err := s.put(reply); err != nil {
			return s.ended(err)
		}
	}
}

func (s *session) ended(err error) error {
	s.close(err)
	return err
}

// parse reads a PDU. The library must not bring the process down by what comes from outside.
func parse(r *bufio.Reader) (p pdu.PDU, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("a PDU that cannot be read: %v", v)
		}
	}()
	return pdu.Parse(r)
}

// deliver records a delivery receipt or a reply, and gives the answer.
func (s *session) deliver(ctx context.Context, p *pdu.DeliverSM) pdu.PDU {
	resp := p.GetResponse()
	var err error
	if p.EsmClass&0x3c == 0x04 {
		report, ok := receipt(p)
		switch {
		case !ok:
			log.Debug("a receipt of the SMSC that is none")
		case report.State != "" && s.c.events.Report != nil: // not an intermediate one
			err = s.c.events.Report(ctx, report)
		}
	} else if s.c.events.Reply != nil {
		text, e := p.Message.GetMessage()
		if e == nil {
			err = s.c.events.Reply(ctx, sms.Reply{From: p.SourceAddr.Address(), To: p.DestAddr.Address(), Text: text})
		}
	}
	if err != nil {
		log.WithError(err).Error("what the SMSC tells could not be recorded")
		if r, ok := resp.(*pdu.DeliverSMResp); ok {
			r.CommandStatus = data.ESME_RX_T_APPN // it is to tell it again
		}
	}
	return resp
}
