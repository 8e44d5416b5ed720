-- hash is '' until content has come; expires_at counts until then only.
CREATE TABLE media (
    origin        TEXT NOT NULL,
    media_id      TEXT NOT NULL,
    uploader      TEXT NOT NULL,
    content_type  TEXT NOT NULL,
    filename      TEXT NOT NULL,
    hash          TEXT NOT NULL,
    size          BIGINT NOT NULL,
    created_at    BIGINT NOT NULL,
    uploaded_at   BIGINT NOT NULL,
    expires_at    BIGINT NOT NULL,
    authenticated BOOLEAN NOT NULL,
    PRIMARY KEY (origin, media_id)
);
CREATE INDEX media_hash ON media (hash);
CREATE INDEX media_uploader ON media (uploader) WHERE uploader <> '';
CREATE INDEX media_pending ON media (expires_at) WHERE hash = '';
CREATE INDEX media_age ON media (uploaded_at);
