-- What an EDU is about, of which only the newest is of use: the devices of a user, or the user's keys. '' for others.
ALTER TABLE fed_queue ADD COLUMN topic TEXT NOT NULL DEFAULT '';
