-- Indexes on the table of package events for what is asked here.
CREATE INDEX events_related ON events (rel_to, rel_type, pos) WHERE rel_to <> '';
CREATE INDEX events_threaded ON events (room_id, pos) WHERE rel_type = 'm.thread';
