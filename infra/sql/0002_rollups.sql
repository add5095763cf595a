-- Sums by minute and hour, raised in the transaction that inserts the rows they count.
-- Only whole numbers: their sum does not depend on the order in which rows come.
-- A bucket counts requests by requested_at, attempts and results by finished_at.

CREATE TABLE aos_data.rollup_minute (
    bucket timestamptz NOT NULL,
    tenant text NOT NULL,
    task_kind text NOT NULL,
    requests bigint NOT NULL DEFAULT 0,
    results bigint NOT NULL DEFAULT 0,
    ok bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    rejected bigint NOT NULL DEFAULT 0,
    expired bigint NOT NULL DEFAULT 0,
    cancelled bigint NOT NULL DEFAULT 0,
    attempts bigint NOT NULL DEFAULT 0,
    attempts_failed bigint NOT NULL DEFAULT 0,
    retries bigint NOT NULL DEFAULT 0,
    scored bigint NOT NULL DEFAULT 0,
    score_micros bigint NOT NULL DEFAULT 0,
    cost_usd_micros bigint NOT NULL DEFAULT 0,
    cpu_us bigint NOT NULL DEFAULT 0,
    tokens bigint NOT NULL DEFAULT 0,
    waited_us bigint NOT NULL DEFAULT 0,
    latency_us bigint NOT NULL DEFAULT 0,
    latency_us_max bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (bucket, tenant, task_kind)
) WITH (fillfactor = 50);

CREATE TABLE aos_data.rollup_hour (LIKE aos_data.rollup_minute INCLUDING ALL) WITH (fillfactor = 50);
