-- The language in which the service speaks to a person who has chosen one.
CREATE TABLE as_languages (
	user_id TEXT PRIMARY KEY,
	lang TEXT NOT NULL
);
