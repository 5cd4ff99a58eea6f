DROP INDEX actions_live;
ALTER TABLE agents DROP COLUMN secret;
DROP TABLE audit;
DROP FUNCTION odoshi_audit_is_append_only();
