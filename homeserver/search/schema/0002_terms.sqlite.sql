-- The terms are prepared by the program; the tokenizer only splits at spaces. The text
-- itself is not stored a second time.
CREATE VIRTUAL TABLE search_terms USING fts5(body, scope, content='', contentless_delete=1, tokenize='ascii');
