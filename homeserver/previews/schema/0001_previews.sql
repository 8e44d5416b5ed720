-- One row for each time that a page was fetched. key: hash of address and language.
-- image: the media ID of its picture, '' for none. failed rows have no answer.
CREATE TABLE url_previews (
    key        TEXT NOT NULL,
    fetched_at BIGINT NOT NULL,
    answer     TEXT NOT NULL,
    image      TEXT NOT NULL,
    failed     BOOLEAN NOT NULL,
    PRIMARY KEY (key, fetched_at)
);
CREATE INDEX url_previews_age ON url_previews (fetched_at);
