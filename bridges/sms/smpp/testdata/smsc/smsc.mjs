// A carrier's SMSC for the tests. It prints a line of JSON for what it hears, and does what lines on its input say.
import smpp from 'smpp';
import readline from 'node:readline';

const told = (o) => process.stdout.write(JSON.stringify(o) + '\n');
let mode = 'ok'; // ok, throttle, refuse, silent, drop
let count = 0;
let current = null;
const seen = [];

const server = smpp.createServer((session) => {
  session.on('error', () => {});
  session.on('close', () => told({ event: 'closed' }));
  session.on('bind_transceiver', (pdu) => {
    const ok = pdu.system_id === 'carillon' && pdu.password === 'secret';
    session.send(pdu.response({ command_status: ok ? 0 : smpp.ESME_RBINDFAIL }));
    told({ event: 'bind', ok });
    if (ok) current = session;
  });
  session.on('enquire_link', (pdu) => { if (mode !== 'silent') session.send(pdu.response()); told({ event: 'enquire' }); });
  session.on('unbind', (pdu) => { session.send(pdu.response()); told({ event: 'unbind' }); session.close(); });
  session.on('deliver_sm_resp', (pdu) => told({ event: 'deliver_resp', status: pdu.command_status }));
  session.on('submit_sm', (pdu) => {
    const udh = pdu.short_message.udh ? pdu.short_message.udh[0] ?? pdu.short_message.udh : null;
    const o = {
      event: 'submit', to: pdu.destination_addr, from: pdu.source_addr, text: pdu.short_message.message, coding: pdu.data_coding,
      esm: pdu.esm_class, registered: pdu.registered_delivery, validity: String(pdu.validity_period ?? ''), udh: udh ? Buffer.from(udh.raw ?? udh).toString('hex') : '',
    };
    told(o);
    switch (mode) {
      case 'throttle': mode = 'ok'; session.send(pdu.response({ command_status: smpp.ESME_RTHROTTLED })); return;
      case 'refuse': session.send(pdu.response({ command_status: smpp.ESME_RINVDSTADR })); return;
      case 'silent': return;
      case 'drop': session.destroy(); return;
    }
    const id = (0xabc000 + ++count).toString(16);
    seen.push(id);
    session.send(pdu.response({ message_id: id }));
  });
});
server.on('error', () => {});
server.listen(Number(process.argv[2] ?? 0), '127.0.0.1', () => told({ event: 'listening', port: server.address().port }));

readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const c = JSON.parse(line);
  if (c.mode) { mode = c.mode; told({ event: 'mode', mode }); }
  if (c.receipt) { // of a text, in the form of old: everything in the words
    current.deliver_sm({
      source_addr: '8613800138000', destination_addr: '10690', esm_class: 4,
      short_message: `id:${c.receipt} sub:001 dlvrd:001 submit date:2611241200 done date:2611241201 stat:${c.stat} err:${c.err ?? '000'} text:`,
    });
  }
  if (c.tlv) { // the new form: in optional parameters
    current.deliver_sm({ source_addr: '8613800138000', destination_addr: '10690', esm_class: 4, short_message: '', receipted_message_id: c.tlv, message_state: c.state });
  }
  if (c.reply) current.deliver_sm({ source_addr: '8613800138000', destination_addr: '10690', short_message: c.reply });
  if (c.enquire) current.enquire_link({}, () => told({ event: 'enquire_resp' }));
  if (c.unknown) current.query_sm({ message_id: 'x', source_addr: '1' }, (p) => told({ event: 'nack', command: p.command }));
  if (c.unbind) current.unbind();
});
