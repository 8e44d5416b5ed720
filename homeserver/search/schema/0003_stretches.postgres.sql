-- Of which stretch of places a document is: frequent words are looked for in the
-- newest stretches first.
UPDATE search_terms SET terms = terms || ('''_e' || (doc >> 13) || '''')::tsvector;
