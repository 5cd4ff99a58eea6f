-- Why the last attempt to deliver it failed, while it waits for the next one.
ALTER TABLE open_commands ADD COLUMN error TEXT;
