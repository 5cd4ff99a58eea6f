ALTER TABLE actions DROP COLUMN created_by;
