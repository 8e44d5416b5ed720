-- Sessions of clients of the OAuth 2.0 API: the client, what it asked for, and a hash that all refresh tokens of one
-- session share, so that one that was used before is recognised without being kept.
ALTER TABLE access_tokens ADD COLUMN client TEXT NOT NULL DEFAULT '';
ALTER TABLE refresh_tokens ADD COLUMN client TEXT NOT NULL DEFAULT '';
ALTER TABLE refresh_tokens ADD COLUMN scope TEXT NOT NULL DEFAULT '';
ALTER TABLE refresh_tokens ADD COLUMN family TEXT NOT NULL DEFAULT '';
CREATE INDEX refresh_tokens_client ON refresh_tokens (client) WHERE client <> '';
CREATE INDEX refresh_tokens_family ON refresh_tokens (family) WHERE family <> '';
