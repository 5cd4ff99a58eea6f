ALTER TABLE agents DROP COLUMN session_epoch;
