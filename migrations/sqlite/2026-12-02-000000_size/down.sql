DROP INDEX tokens_expiring;
DROP INDEX tokens_revoked;
DROP INDEX agents_removed;
DROP INDEX actions_dispatching;
DROP INDEX open_commands_due;
CREATE INDEX open_commands_due ON open_commands (state, due_at);
