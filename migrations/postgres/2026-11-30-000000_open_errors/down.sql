ALTER TABLE open_commands DROP COLUMN error;
