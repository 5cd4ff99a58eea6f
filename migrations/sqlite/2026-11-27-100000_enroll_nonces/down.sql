ALTER TABLE tokens DROP COLUMN enroll_nonce;
