-- Everything that is to leave the service through a channel. item_key is the idempotency key that the channel passes on.
CREATE TABLE as_outbox (
	id BIGSERIAL PRIMARY KEY,
	item_key TEXT NOT NULL UNIQUE,
	channel TEXT NOT NULL,
	item_group TEXT NOT NULL,
	priority BIGINT NOT NULL,
	payload TEXT NOT NULL,
	state TEXT NOT NULL,
	attempts BIGINT NOT NULL,
	next_at BIGINT NOT NULL,
	expires_at BIGINT NOT NULL,
	created_at BIGINT NOT NULL,
	updated_at BIGINT NOT NULL,
	provider_id TEXT NOT NULL,
	detail TEXT NOT NULL,
	reason TEXT NOT NULL
);
CREATE INDEX as_outbox_due ON as_outbox (channel, priority, next_at, id) WHERE state = 'queued';
CREATE INDEX as_outbox_group ON as_outbox (item_group) WHERE item_group <> '';
CREATE INDEX as_outbox_provider ON as_outbox (channel, provider_id) WHERE provider_id <> '';
CREATE INDEX as_outbox_done ON as_outbox (updated_at) WHERE state <> 'queued';
