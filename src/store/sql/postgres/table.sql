-- The table of `PostgresStore`. `PostgresStore::migrate` runs this once. If you manage migrations
-- in another way, run it yourself, with the name and schema that you give the store.
CREATE TABLE idempotency_keys (
    -- SHA-256 of scope and key.
    slot        bytea       NOT NULL PRIMARY KEY,
    -- The operation's owner: a keyed digest of the scope.
    scope       bytea       NOT NULL,
    -- The request's content: two bytes for the rule, and 14 bytes of a digest.
    fingerprint bytea       NOT NULL,
    -- The fencing token of the current or last claim.
    token       bigint      NOT NULL,
    -- 1, plus one for each lapsed claim that was taken over.
    attempt     integer     NOT NULL,
    -- The time until which the claim is valid without a renewal.
    lease_until timestamptz NOT NULL,
    -- The time from which the row is treated as absent.
    forget_at   timestamptz NOT NULL,
    -- The time from which the sweeper looks at the row. It is separate from `forget_at`, which
    -- changes more often, so that renewing a claim and recording its outcome do not write the
    -- index.
    sweep_at    timestamptz NOT NULL,
    -- The outcome, or NULL while the operation runs.
    record      bytea
-- Room for the record next to its claim, so that recording the outcome does not write the indexes.
) WITH (fillfactor = 50);
-- For the sweeper.
CREATE INDEX ON idempotency_keys (sweep_at);
-- For forgetting a scope.
CREATE INDEX ON idempotency_keys (scope);
