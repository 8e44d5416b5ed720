-- The terms are prepared by the program; no dictionary of the database is used.
CREATE TABLE search_terms (
    doc   BIGINT PRIMARY KEY,
    terms TSVECTOR NOT NULL
);
CREATE INDEX search_terms_terms ON search_terms USING GIN (terms);
