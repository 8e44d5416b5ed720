-- Of pushers by e-mail: when the next one is due and when the last was sent, in ms; 0 for none.
ALTER TABLE pushers ADD COLUMN mail_due BIGINT NOT NULL DEFAULT 0;
ALTER TABLE pushers ADD COLUMN mail_sent BIGINT NOT NULL DEFAULT 0;
