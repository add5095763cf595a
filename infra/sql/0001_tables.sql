-- What the logs become in SQL: tables, their unique keys (time first) and the indexes the views need.
-- Columns are those of streams/store_tables.py; tests/stack/test_migrate.py compares them.

CREATE SCHEMA IF NOT EXISTS aos;
CREATE SCHEMA aos_data;

-- Requests as the ledger first saw them, accepted or refused at the edge
CREATE TABLE aos_data.request (
    "requested_at" timestamptz NOT NULL,
    "request_id" uuid NOT NULL,
    "round" smallint NOT NULL,
    "kind" text,
    "tenant" text,
    "domain" text,
    "home" integer,
    "id" text,
    "traceparent" text,
    "task_kind" text,
    "priority" smallint,
    "policy" text,
    "deadline_at" timestamptz,
    "budget_usd_micros" bigint,
    "budget_cpu_us" bigint,
    "steps_count" smallint,
    "step_names" text[],
    "step_kinds" text[],
    "text" text,
    "code" text,
    "message" text,
    PRIMARY KEY ("requested_at", "request_id", "round")
);
SELECT create_hypertable('aos_data.request', by_range('requested_at', INTERVAL '6 hours'), create_default_indexes => false);

-- Why each attempt went where it went
CREATE TABLE aos_data.decision (
    "requested_at" timestamptz NOT NULL,
    "request_id" uuid NOT NULL,
    "round" smallint NOT NULL,
    "step" smallint NOT NULL,
    "attempt" smallint NOT NULL,
    "kind" text NOT NULL,
    "cell" text NOT NULL,
    "tenant" text,
    "domain" text,
    "home" integer,
    "step_name" text,
    "task_kind" text,
    "cell_partition" integer,
    "epoch" bigint,
    "agent" text,
    "service" text,
    "policy" text,
    "probability" real,
    "score_predicted" real,
    "latency_predicted_us" bigint,
    "timeout_ms" bigint,
    "draw" real,
    "overridden" boolean,
    "trial" boolean,
    "candidate_agents" text[],
    "candidate_scores" real[],
    "candidate_deviations" real[],
    "candidate_chances" real[],
    "candidate_maskeds" boolean[],
    "filtered_agents" text[],
    "filtered_reasons" text[],
    "filtered_count" integer,
    "violated" text,
    "waited_us" bigint,
    "decided_at" timestamptz,
    "model_version" bigint,
    "settings_version" bigint,
    "degraded" boolean,
    PRIMARY KEY ("requested_at", "request_id", "round", "step", "attempt", "kind", "cell")
);
SELECT create_hypertable('aos_data.decision', by_range('requested_at', INTERVAL '6 hours'), create_default_indexes => false);

-- Finished attempts
CREATE TABLE aos_data.attempt (
    "requested_at" timestamptz NOT NULL,
    "request_id" uuid NOT NULL,
    "round" smallint NOT NULL,
    "step" smallint NOT NULL,
    "attempt" smallint NOT NULL,
    "tenant" text,
    "domain" text,
    "home" integer,
    "id" text,
    "step_name" text,
    "task_kind" text,
    "agent" text,
    "service" text,
    "policy" text,
    "status" text,
    "code" text,
    "message" text,
    "score" real,
    "judged" boolean,
    "probability" real,
    "score_predicted" real,
    "topology" text,
    "priority" smallint,
    "budget_cpu_us" bigint,
    "cost_usd_micros" bigint,
    "cpu_us" bigint,
    "tokens" bigint,
    "waited_us" bigint,
    "latency_us" bigint,
    "assigned_at" timestamptz,
    "finished_at" timestamptz,
    "team" text[],
    "sampled" boolean,
    "sample_share" real,
    "quarantined" text,
    "model_version" bigint,
    "settings_version" bigint,
    "degraded" boolean,
    PRIMARY KEY ("requested_at", "request_id", "round", "step", "attempt")
);
SELECT create_hypertable('aos_data.attempt', by_range('requested_at', INTERVAL '6 hours'), create_default_indexes => false);

-- Ends of requests: exactly one a round
CREATE TABLE aos_data.result (
    "requested_at" timestamptz NOT NULL,
    "request_id" uuid NOT NULL,
    "round" smallint NOT NULL,
    "tenant" text,
    "domain" text,
    "home" integer,
    "id" text,
    "task_kind" text,
    "policy" text,
    "status" text,
    "code" text,
    "message" text,
    "score" real,
    "judged" boolean,
    "topology" text,
    "quality_predicted" real,
    "duration_predicted_us" bigint,
    "priority" smallint,
    "cost_usd_micros" bigint,
    "cpu_us" bigint,
    "tokens" bigint,
    "attempts" smallint,
    "latency_us" bigint,
    "finished_at" timestamptz,
    "team" text[],
    "model_version" bigint,
    "settings_version" bigint,
    "degraded" boolean,
    PRIMARY KEY ("requested_at", "request_id", "round")
);
SELECT create_hypertable('aos_data.result', by_range('requested_at', INTERVAL '6 hours'), create_default_indexes => false);

-- All other experience: corrections, foreign events, ignored answers
CREATE TABLE aos_data.note (
    "requested_at" timestamptz NOT NULL,
    "request_id" uuid NOT NULL,
    "round" smallint NOT NULL,
    "step" smallint NOT NULL,
    "attempt" smallint NOT NULL,
    "kind" text NOT NULL,
    "step_name" text NOT NULL,
    "agent_key" text NOT NULL,
    "finished_at" timestamptz NOT NULL,
    "tenant" text,
    "domain" text,
    "home" integer,
    "id" text,
    "task_kind" text,
    "agent" text,
    "policy" text,
    "status" text,
    "code" text,
    "message" text,
    "score" real,
    "judged" boolean,
    "latency_us" bigint,
    "team" text[],
    "quarantined" text,
    PRIMARY KEY ("requested_at", "request_id", "round", "step", "attempt", "kind", "step_name", "agent_key", "finished_at")
);
SELECT create_hypertable('aos_data.note', by_range('requested_at', INTERVAL '6 hours'), create_default_indexes => false);

-- Input and output bytes, only with the setting store_payloads
CREATE TABLE aos_data.payload (
    "requested_at" timestamptz NOT NULL,
    "request_id" uuid NOT NULL,
    "round" smallint NOT NULL,
    "direction" text NOT NULL,
    "step" smallint NOT NULL,
    "attempt" smallint NOT NULL,
    "log_offset" bigint NOT NULL,
    "log_row" integer NOT NULL,
    "tenant" text,
    "agent" text,
    "content_type" text,
    "body" bytea,
    PRIMARY KEY ("requested_at", "request_id", "round", "direction", "step", "attempt", "log_offset", "log_row")
);
SELECT create_hypertable('aos_data.payload', by_range('requested_at', INTERVAL '6 hours'), create_default_indexes => false);

-- The fleet as it is
CREATE TABLE aos_data.agent (
    "service" text NOT NULL,
    "agent" text NOT NULL,
    "state" text,
    "capabilities" text[],
    "description" text,
    "cell" text,
    "cell_partition" integer,
    "capacity" integer,
    "replicas" integer,
    "price_usd_micros" bigint,
    "timeout_ms" bigint,
    "tenants" text[],
    "fallback" boolean,
    "registered_at" timestamptz,
    "seen_at" timestamptz,
    "version" bigint,
    "log_offset" bigint,
    PRIMARY KEY ("service", "agent")
);

-- What is believed of agents now
CREATE TABLE aos_data.belief (
    "domain" text NOT NULL,
    "task_kind" text NOT NULL,
    "agent" text NOT NULL,
    "count" double precision,
    "score" real,
    "deviation" real,
    "latency_us" double precision,
    "cost_usd_micros" double precision,
    "cpu_us" double precision,
    "drift_count" integer,
    "drifted_at" timestamptz,
    "model_version" bigint,
    "updated_at" timestamptz,
    "means" real[],
    "scales" real[],
    "log_offset" bigint,
    PRIMARY KEY ("domain", "task_kind", "agent")
);

-- Collaborations that were mined, as last said
CREATE TABLE aos_data.pattern (
    "domain" text NOT NULL,
    "pattern" text NOT NULL,
    "kind" text,
    "members" text[],
    "task_kind" text,
    "support" bigint,
    "score" real,
    "baseline" real,
    "effect" real,
    "error" real,
    "persistence" real,
    "window_from" timestamptz,
    "window_to" timestamptz,
    "version" bigint,
    "log_offset" bigint,
    PRIMARY KEY ("domain", "pattern")
);

-- Policies, each version once
CREATE TABLE aos_data.strategy (
    "name" text NOT NULL,
    "version" bigint NOT NULL,
    "status" text,
    "exploration" real,
    "floor" real,
    "weight_success" real,
    "weight_latency" real,
    "weight_stability" real,
    "weight_resource" real,
    "pair_bonus" real,
    "reason" text,
    "evidence_count" bigint,
    "changed_at" timestamptz,
    "log_offset" bigint,
    PRIMARY KEY ("name", "version")
);

-- Bytes that never became a request
CREATE TABLE aos_data.dead_letter (
    "tenant" text,
    "processor" text NOT NULL,
    "code" text NOT NULL,
    "message" text,
    "topic" text NOT NULL,
    "partition" integer NOT NULL,
    "offset" bigint NOT NULL,
    "row" integer NOT NULL,
    "request_id" uuid,
    "headers" text,
    "body" bytea,
    "body_size" bigint,
    "appended_at" timestamptz NOT NULL,
    PRIMARY KEY ("appended_at", "topic", "partition", "offset", "row", "processor", "code")
);
SELECT create_hypertable('aos_data.dead_letter', by_range('appended_at', INTERVAL '6 hours'), create_default_indexes => false);

-- What an operator should know
CREATE TABLE aos_data.alert (
    "alert" text NOT NULL,
    "kind" text NOT NULL,
    "source" text,
    "subject" text,
    "message" text,
    "evidence" text,
    "seen_at" timestamptz NOT NULL,
    PRIMARY KEY ("seen_at", "alert", "kind")
);
SELECT create_hypertable('aos_data.alert', by_range('seen_at', INTERVAL '6 hours'), create_default_indexes => false);

-- by request, by agent and time, by tenant and time. A result is found by its request's time and id (the key), so it
-- needs no index of its own: each index costs 2 to 4 us a row.
CREATE INDEX request_by_id ON aos_data.request (request_id);
CREATE INDEX request_by_tenant ON aos_data.request (tenant, requested_at);
CREATE INDEX decision_by_id ON aos_data.decision (request_id);
CREATE INDEX attempt_by_id ON aos_data.attempt (request_id);
CREATE INDEX attempt_by_agent ON aos_data.attempt (agent, requested_at);
CREATE INDEX note_by_id ON aos_data.note (request_id);
CREATE INDEX dead_letter_by_tenant ON aos_data.dead_letter (tenant, appended_at);

-- What is unique whatever its time: a hypertable's key must hold the time, and a repeated request may bring another.
-- These outlive the chunks, so that a replay after drop_chunks inserts nothing anew.
CREATE TABLE aos_data.request_once (
    request_id uuid NOT NULL,
    round smallint NOT NULL,
    requested_at timestamptz NOT NULL,
    PRIMARY KEY (request_id, round)
);
CREATE TABLE aos_data.result_once (
    request_id uuid NOT NULL,
    round smallint NOT NULL,
    requested_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    status text NOT NULL,
    PRIMARY KEY (request_id, round)
);

-- The sink's place in each log. generation: a fence; who opens a partition raises it, whoever had it before can
-- write no more.
CREATE TABLE aos_data.place (
    topic_id text NOT NULL,
    partition integer NOT NULL,
    topic text NOT NULL,
    next_offset bigint NOT NULL DEFAULT 0,
    generation bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (topic_id, partition)
) WITH (fillfactor = 50);

-- One row a table: rows older than kept_from are not inserted (again). skipped counts them.
CREATE TABLE aos_data.kept (
    table_name text PRIMARY KEY,
    kept_from timestamptz NOT NULL DEFAULT '1970-01-01 00:00:00+00',
    skipped bigint NOT NULL DEFAULT 0
);
INSERT INTO aos_data.kept (table_name)
VALUES ('request'), ('decision'), ('attempt'), ('result'), ('note'), ('payload'), ('dead_letter'), ('alert');

-- Messages that SQL refused although everything was made holdable: a bug, kept in view, in nobody's way.
CREATE TABLE aos_data.unwritable (
    topic_id text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    topic text NOT NULL,
    rows_count integer NOT NULL,
    message text NOT NULL,
    appended_at timestamptz NOT NULL,
    PRIMARY KEY (topic_id, partition, "offset")
);
