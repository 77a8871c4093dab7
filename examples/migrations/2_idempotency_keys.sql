-- The table of `PostgresStore`. `PostgresStore::migrate` runs this once; run it yourself if your
-- migrations are made otherwise, with the name and schema that you give the store.
CREATE TABLE idempotency_keys (
    -- SHA-256 of scope and key.
    slot        bytea       NOT NULL PRIMARY KEY,
    -- Whose it is: a keyed digest of the scope.
    scope       bytea       NOT NULL,
    -- What the request was: two bytes for the rule, and 14 of a digest.
    fingerprint bytea       NOT NULL,
    -- The fencing token of the present or last claim.
    token       bigint      NOT NULL,
    -- 1, and one more for each lapsed claim that was taken over.
    attempt     integer     NOT NULL,
    -- Until when the claim holds without being renewed.
    lease_until timestamptz NOT NULL,
    -- From when on the row counts as absent.
    forget_at   timestamptz NOT NULL,
    -- From when on the sweeper looks at the row. Separate from `forget_at`, which changes more often, so
    -- that renewing a claim and recording its outcome do not write the index.
    sweep_at    timestamptz NOT NULL,
    -- The outcome; NULL while the operation runs.
    record      bytea
-- Room for the record beside its claim, so that recording it does not write the indexes.
) WITH (fillfactor = 50);
-- For the sweeper.
CREATE INDEX ON idempotency_keys (sweep_at);
-- For removing all that is of one scope.
CREATE INDEX ON idempotency_keys (scope);
