CREATE TABLE charges (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cents  bigint NOT NULL
);
