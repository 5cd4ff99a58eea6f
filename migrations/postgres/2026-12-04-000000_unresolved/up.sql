-- Actions whose agents are still to be found, the earliest first.
CREATE INDEX actions_unresolved ON actions (valid_from, no) WHERE ended_at IS NULL AND NOT resolved;
