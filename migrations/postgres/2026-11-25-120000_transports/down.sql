ALTER TABLE nodes DROP COLUMN transports;
