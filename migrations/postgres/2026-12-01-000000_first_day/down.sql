DROP FUNCTION odoshi_number(TEXT);
CREATE FUNCTION odoshi_number(text TEXT) RETURNS DOUBLE PRECISION
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN length(text) <= 64 AND text ~ '^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?$'
        THEN text::DOUBLE PRECISION END
$$;
ALTER TABLE audit DROP COLUMN operations;
ALTER TABLE audit DROP COLUMN target;
ALTER TABLE audit DROP COLUMN address;
ALTER TABLE actions DROP COLUMN retry_of;
ALTER TABLE agent_sessions DROP COLUMN replaced;
ALTER TABLE agent_sessions DROP COLUMN instance;
ALTER TABLE agents DROP COLUMN duplicate_at;
ALTER TABLE agents DROP COLUMN set_labels;
ALTER TABLE agents DROP COLUMN reported_labels;
