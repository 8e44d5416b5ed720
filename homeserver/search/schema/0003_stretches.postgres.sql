-- In which stretches of places a document is, for lengths of 2^12 to 2^20: frequent
-- words are looked for in the newest stretches first.
UPDATE search_terms SET terms = terms || ('''_sa' || (doc >> 12) || ''' ''_sb' || (doc >> 14) || ''' ''_sc' || (doc >> 16)
    || ''' ''_sd' || (doc >> 18) || ''' ''_se' || (doc >> 20) || '''')::tsvector;
