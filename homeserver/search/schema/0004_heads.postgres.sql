-- The beginnings of words are in the index as words are, marked with "=". All that was
-- indexed is indexed anew in the background.
TRUNCATE search_terms;
TRUNCATE search_docs;
UPDATE search_progress SET upto = 0, downto = 0;
