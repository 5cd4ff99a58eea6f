DROP INDEX agents_by_transport;
ALTER TABLE nodes DROP COLUMN transports;
