-- The full-text table reads its lists from the newest on by itself.
SELECT 1;
