-- The table of `SqliteStore`. `SqliteStore::migrate` runs this; run it yourself if your migrations
-- are made otherwise, with the name that you give the store. Times are milliseconds since 1970.
CREATE TABLE IF NOT EXISTS idempotency_keys (
    -- SHA-256 of scope and key.
    slot        BLOB    NOT NULL PRIMARY KEY,
    -- A tag of the scope: whose operation it is.
    scope       BLOB    NOT NULL,
    -- What the request was: two bytes for the rule, and 14 of a digest.
    fingerprint BLOB    NOT NULL,
    -- The fencing token of the present or last claim.
    token       INTEGER NOT NULL,
    -- 1, and one more for each lapsed claim that was taken over.
    attempt     INTEGER NOT NULL,
    -- Until when the claim holds without being renewed.
    lease_until INTEGER NOT NULL,
    -- From when on the row counts as absent.
    forget_at   INTEGER NOT NULL,
    -- From when on the sweeper looks at the row. Separate from `forget_at`, which changes more often, so
    -- that renewing a claim and recording its outcome do not write the index.
    sweep_at    INTEGER NOT NULL,
    -- The outcome, or NULL while the operation runs.
    record      BLOB
);
-- For the sweeper.
CREATE INDEX IF NOT EXISTS idempotency_keys_sweep_at ON idempotency_keys (sweep_at);
-- For forgetting a scope.
CREATE INDEX IF NOT EXISTS idempotency_keys_scope ON idempotency_keys (scope);
