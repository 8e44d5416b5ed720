ALTER TABLE as_org_version ADD COLUMN epoch BIGINT NOT NULL DEFAULT 1;

ALTER TABLE as_people ADD COLUMN site TEXT NOT NULL DEFAULT '';

CREATE INDEX as_org_journal_version ON as_org_journal (version);
