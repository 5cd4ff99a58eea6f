DROP INDEX actions_live;
ALTER TABLE agents DROP COLUMN secret;
DROP TABLE audit;
