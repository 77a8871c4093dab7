-- The table of `SqliteStore`. `SqliteStore::migrate` runs this. If you manage migrations in another
-- way, run it yourself, with the name that you give the store. Times are milliseconds since 1970.
CREATE TABLE IF NOT EXISTS idempotency_keys (
    -- SHA-256 of scope and key.
    slot        BLOB    NOT NULL PRIMARY KEY,
    -- The operation's owner: a keyed digest of the scope.
    scope       BLOB    NOT NULL,
    -- The request's content: two bytes for the rule, and 14 bytes of a digest.
    fingerprint BLOB    NOT NULL,
    -- The fencing token of the current or last claim.
    token       INTEGER NOT NULL,
    -- 1, plus one for each lapsed claim that was taken over.
    attempt     INTEGER NOT NULL,
    -- The time until which the claim is valid without a renewal.
    lease_until INTEGER NOT NULL,
    -- The time from which the row is treated as absent.
    forget_at   INTEGER NOT NULL,
    -- The time from which the sweeper looks at the row. It is separate from `forget_at`, which
    -- changes more often, so that renewing a claim and recording its outcome do not write the
    -- index.
    sweep_at    INTEGER NOT NULL,
    -- The outcome, or NULL while the operation runs.
    record      BLOB
);
-- For the sweeper.
CREATE INDEX IF NOT EXISTS idempotency_keys_sweep_at ON idempotency_keys (sweep_at);
-- For forgetting a scope.
CREATE INDEX IF NOT EXISTS idempotency_keys_scope ON idempotency_keys (scope);
