-- The terms are prepared by the program; no dictionary of the database is used. What is
-- not yet sorted into the index is read by every search, so it is kept small.
CREATE TABLE search_terms (
    doc   BIGINT PRIMARY KEY,
    terms TSVECTOR NOT NULL
);
CREATE INDEX search_terms_terms ON search_terms USING GIN (terms) WITH (gin_pending_list_limit = 1024);
