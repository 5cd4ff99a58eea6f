-- The name of the token that created it, or `spool` or `server`, for those who are told of its end. Older ones have none.
ALTER TABLE actions ADD COLUMN created_by TEXT;
