-- Several sites. A notice of another site is kept here for the people of this one: origin is the site of its sender, held
-- tells that the sender's site is asked first whether it still stands. Of a delivery, site is the one that makes it, ''
-- for this one; told, of a notice of another site, whether that knows how the delivery stands.
ALTER TABLE as_dings ADD COLUMN origin TEXT NOT NULL DEFAULT '';
ALTER TABLE as_dings ADD COLUMN held BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE as_ding_deliveries ADD COLUMN site TEXT NOT NULL DEFAULT '';
ALTER TABLE as_ding_deliveries ADD COLUMN told BOOLEAN NOT NULL DEFAULT TRUE;
CREATE INDEX as_ding_deliveries_untold ON as_ding_deliveries (ding_id, idx) WHERE NOT told;
