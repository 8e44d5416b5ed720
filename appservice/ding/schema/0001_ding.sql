-- Urgent notices. receivers is what was asked for, resolved when the notice is fired; skipped is who was left out and why.
CREATE TABLE as_dings (
	id TEXT PRIMARY KEY,
	uuid TEXT NOT NULL,
	sender TEXT NOT NULL,
	sender_user TEXT NOT NULL,
	kind TEXT NOT NULL,
	body TEXT NOT NULL,
	receivers TEXT NOT NULL,
	state TEXT NOT NULL,
	reason TEXT NOT NULL,
	created_at BIGINT NOT NULL,
	fire_at BIGINT NOT NULL,
	fired_at BIGINT NOT NULL,
	expires_at BIGINT NOT NULL,
	ended_at BIGINT NOT NULL,
	skipped TEXT NOT NULL,
	already_read BIGINT NOT NULL,
	card_event TEXT NOT NULL,
	card_room TEXT NOT NULL,
	card_rev BIGINT NOT NULL,
	card_shown TEXT NOT NULL,
	card_done BOOLEAN NOT NULL,
	UNIQUE (sender, uuid)
);
CREATE INDEX as_dings_sent ON as_dings (sender, created_at);
CREATE INDEX as_dings_card ON as_dings (card_event) WHERE card_event <> '';
CREATE INDEX as_dings_busy ON as_dings (id) WHERE NOT card_done;
-- One row a notice and receiver, in the order of idx. units is in which units the person received it.
CREATE TABLE as_ding_deliveries (
	ding_id TEXT NOT NULL REFERENCES as_dings (id),
	idx BIGINT NOT NULL,
	person TEXT NOT NULL,
	user_id TEXT NOT NULL,
	units TEXT NOT NULL,
	state TEXT NOT NULL,
	reason TEXT NOT NULL,
	room_id TEXT NOT NULL,
	event_id TEXT NOT NULL,
	record_id TEXT NOT NULL,
	sent_at BIGINT NOT NULL,
	confirmed_at BIGINT NOT NULL,
	via TEXT NOT NULL,
	late BOOLEAN NOT NULL,
	PRIMARY KEY (ding_id, idx)
);
CREATE UNIQUE INDEX as_ding_deliveries_person ON as_ding_deliveries (person, ding_id);
CREATE INDEX as_ding_deliveries_event ON as_ding_deliveries (event_id) WHERE event_id <> '';
-- What happened to a notice, and by whom.
CREATE TABLE as_ding_journal (
	id BIGSERIAL PRIMARY KEY,
	ding_id TEXT NOT NULL,
	at BIGINT NOT NULL,
	actor TEXT NOT NULL,
	action TEXT NOT NULL,
	detail TEXT NOT NULL
);
CREATE INDEX as_ding_journal_ding ON as_ding_journal (ding_id);
