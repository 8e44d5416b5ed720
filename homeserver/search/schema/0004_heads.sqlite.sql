-- The beginnings of words are in the index as words are, in a column of their own. The
-- texts are not stored here, so all that was indexed is indexed anew in the background.
DROP TABLE search_terms;
CREATE VIRTUAL TABLE search_terms USING fts5(body, heads, scope, content='', contentless_delete=1, tokenize='ascii');
DELETE FROM search_docs;
UPDATE search_progress SET upto = 0, downto = 0;
