-- accessed_at is when a file was last asked for, to the hour. Protected files are never swept.
ALTER TABLE media ADD COLUMN accessed_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE media ADD COLUMN protected BOOLEAN NOT NULL DEFAULT FALSE;
UPDATE media SET accessed_at = uploaded_at;
DROP INDEX media_age;
DROP INDEX media_uploader;
CREATE INDEX media_of_user ON media (uploader, media_id) WHERE uploader <> '';
CREATE INDEX media_waiting ON media (uploader) WHERE hash = '';
CREATE INDEX media_copies ON media (accessed_at) WHERE uploader = '' AND hash <> '';
CREATE INDEX media_uploads ON media (accessed_at) WHERE uploader <> '' AND hash <> '';
-- What there is of each user's uploads (kind 'user') and of each server's files (kind 'server').
CREATE TABLE media_usage (
    kind  TEXT NOT NULL,
    name  TEXT NOT NULL,
    files BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    PRIMARY KEY (kind, name)
);
INSERT INTO media_usage (kind, name, files, bytes)
    SELECT 'user', uploader, COUNT(*), CAST(SUM(size) AS BIGINT) FROM media WHERE hash <> '' AND uploader <> '' GROUP BY uploader;
INSERT INTO media_usage (kind, name, files, bytes)
    SELECT 'server', origin, COUNT(*), CAST(SUM(size) AS BIGINT) FROM media WHERE hash <> '' GROUP BY origin;
-- What is not given out: target is an mxc URI or the hash of a content.
CREATE TABLE media_quarantine (
    target     TEXT PRIMARY KEY,
    by_user    TEXT NOT NULL,
    reason     TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
